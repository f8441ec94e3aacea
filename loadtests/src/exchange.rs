//! One request and its answer over a plain socket.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::yield_now;
use tokio::time::sleep;

use crate::count::{self, Counter, Dialect, Method};
use crate::response::{Piece, Response};
use crate::stats::{Stats, Timeline};

/// Bytes read at once. One buffer serves all streams of a thread: each is done with it before the
/// next is polled, so ten thousand open streams cost no buffers.
pub(crate) const READ: usize = 64 * 1024;

/// A slow reader reads this often, and each time its share of the rate.
const SLOW_TICK: Duration = Duration::from_millis(100);

/// What a slow reader's kernel may hold for it: little, so that the server feels it soon.
const SLOW_RECEIVE_BUFFER: u32 = 8 * 1024;

/// What all streams of a thread share.
pub(crate) struct Shared {
    /// The thread's figures.
    pub(crate) stats: RefCell<Stats>,
    buffer: RefCell<Box<[u8]>>,
    /// Where the server is.
    pub(crate) address: SocketAddr,
    /// Whole requests, head and body; taken in turn.
    pub(crate) requests: Rc<[Vec<u8>]>,
    /// The form of the answers.
    pub(crate) dialect: Dialect,
    /// What is asked for.
    pub(crate) method: Method,
    /// What gaps are compared with.
    pub(crate) expected_gap: Option<Duration>,
}

/// How a stream is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As fast as it comes; counted in the figures.
    Full,
    /// At most so many bytes a second; 0 stops reading at the first token. Counted apart.
    Slow(u64),
}

impl Shared {
    /// The state of a thread that has sent nothing yet.
    pub(crate) fn new(
        address: SocketAddr,
        requests: Rc<[Vec<u8>]>,
        dialect: Dialect,
        method: Method,
        expected_gap: Option<Duration>,
    ) -> Self {
        Self {
            stats: RefCell::default(),
            buffer: RefCell::new(vec![0; READ].into()),
            address,
            requests,
            dialect,
            method,
            expected_gap,
        }
    }

    /// Sends request number `turn` and reads its answer to the end. `begun` is called once, when the
    /// server has accepted it. The connection is kept in `connection` if it can be used again.
    ///
    /// # Errors
    /// The kind of failure, for counting.
    pub(crate) async fn exchange(
        &self,
        connection: &mut Option<TcpStream>,
        turn: usize,
        pace: Pace,
        begun: &mut impl FnMut(),
    ) -> Result<(), String> {
        let request = &self.requests[turn % self.requests.len()];
        let mut timeline = self.stats.borrow().sent();
        let mut socket = match connection.take() {
            Some(socket) if reusable(&socket) => socket,
            _ => self.connect(pace).await?,
        };
        socket
            .write_all(request)
            .await
            .map_err(|error| failed("send", &error))?;
        let mut answer = Answer {
            response: Response::default(),
            counter: Counter::new(self.dialect, self.method),
            refusal: Vec::new(),
        };
        self.read(&mut socket, &mut answer, &mut timeline, pace, begun)
            .await?;
        answer.verdict()?;
        if answer.response.keep_alive {
            *connection = Some(socket);
        }
        if pace == Pace::Full {
            self.stats.borrow_mut().finished(&timeline);
        }
        Ok(())
    }

    async fn connect(&self, pace: Pace) -> Result<TcpStream, String> {
        let socket = if self.address.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        };
        let connect = async {
            let socket = socket?;
            if let Pace::Slow(_) = pace {
                socket.set_recv_buffer_size(SLOW_RECEIVE_BUFFER)?;
            }
            let stream = socket.connect(self.address).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        connect
            .await
            .map_err(|error: io::Error| failed("connect", &error))
    }

    /// Reads once and counts: the bytes read, and the tokens in them. The shared buffer is borrowed
    /// for no longer.
    fn poll_once(
        &self,
        socket: &mut TcpStream,
        most: usize,
        answer: &mut Answer,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<(usize, Result<u64, String>)>> {
        let mut buffer = self.buffer.borrow_mut();
        let mut read = ReadBuf::new(&mut buffer[..most]);
        ready!(Pin::new(socket).poll_read(context, &mut read))?;
        let bytes = read.filled();
        Poll::Ready(Ok((bytes.len(), answer.take(bytes))))
    }

    async fn read(
        &self,
        socket: &mut TcpStream,
        answer: &mut Answer,
        timeline: &mut Timeline,
        pace: Pace,
        begun: &mut impl FnMut(),
    ) -> Result<(), String> {
        let most = match pace {
            Pace::Full | Pace::Slow(0) => READ,
            Pace::Slow(rate) => usize::try_from(rate / 10).unwrap_or(READ).clamp(1, READ),
        };
        let mut has_begun = false;
        while !answer.response.done() {
            match pace {
                Pace::Full => {}
                Pace::Slow(0) if answer.counter.tokens > 0 => std::future::pending().await,
                Pace::Slow(_) => sleep(SLOW_TICK).await,
            }
            let (read, tokens) = poll_fn(|context| self.poll_once(socket, most, answer, context))
                .await
                .map_err(|error| failed("read", &error))?;
            let tokens = tokens?;
            if read == 0 {
                return if answer.response.close() {
                    Ok(())
                } else {
                    Err("the body was cut off".to_owned())
                };
            }
            self.note(timeline, read, tokens, pace);
            if !has_begun && answer.response.status == 200 {
                has_begun = true;
                begun();
            }
            if read == most {
                // More is waiting; the other streams come first, or one full pipe would hide them.
                yield_now().await;
            }
        }
        Ok(())
    }

    fn note(&self, timeline: &mut Timeline, bytes: usize, tokens: u64, pace: Pace) {
        let mut stats = self.stats.borrow_mut();
        if pace == Pace::Full {
            stats.bytes += bytes as u64;
            stats.read(timeline, Instant::now(), tokens, self.expected_gap);
        } else {
            stats.slow.tokens += tokens;
        }
    }
}

/// An idle connection that the server has closed, or talks on unasked, is of no use.
fn reusable(socket: &TcpStream) -> bool {
    let end = socket.try_read(&mut [0; 1]);
    matches!(end, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

struct Answer {
    response: Response,
    counter: Counter,
    /// The head of a body that came with a status other than 200.
    refusal: Vec<u8>,
}

impl Answer {
    /// Takes what one read brought; returns how many tokens that was.
    fn take(&mut self, bytes: &[u8]) -> Result<u64, String> {
        const MOST: usize = 4096;
        let before = self.counter.tokens;
        let (counter, refusal) = (&mut self.counter, &mut self.refusal);
        self.response
            .feed(bytes, |status, piece| match (status, piece) {
                (200, Piece::Bytes(bytes)) => counter.bytes(bytes),
                (200, Piece::ChunkEnd) => counter.chunk_end(),
                (_, Piece::Bytes(bytes)) if refusal.len() < MOST => {
                    refusal.extend_from_slice(bytes);
                }
                _ => {}
            })?;
        Ok(self.counter.tokens - before)
    }

    /// Whether the answer was a good one.
    fn verdict(&self) -> Result<(), String> {
        if self.response.status != 200 {
            let message = count::message(&self.refusal);
            return Err(format!("status {}: {message}", self.response.status));
        }
        if let Some(failure) = &self.counter.failure {
            return Err(format!("in the stream: {failure}"));
        }
        if !self.counter.finished {
            return Err("the stream ended without its end mark".to_owned());
        }
        Ok(())
    }
}

fn failed(doing: &str, error: &io::Error) -> String {
    format!("{doing}: {}", error.kind())
}
