//! Reads one answer over any transport and counts its tokens.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};

use super::Transport;
use super::frames::{Piece, Scanner, varint};
use super::request::{self, sluice};
use super::socket::Socket;
use crate::count::{Counter, Dialect, Method};
use crate::response::{self, Response};

/// Bytes read from a socket at once, and most that are read in one call.
const READ: usize = 64 * 1024;

/// Datagrams' worth of bytes taken at once from QUIC.
const CHUNKS: usize = 32;

/// An answer that is being read.
pub(crate) struct Stream {
    body: Body,
    count: Count,
    is_kept: bool,
}

enum Body {
    Http1(Box<(Socket, Response)>),
    Http2(Box<Http2>),
    Quic(Transport, quinn::RecvStream, Scanner),
}

enum Http2 {
    Waits(h2::client::ResponseFuture),
    Reads(h2::RecvStream),
}

/// What one read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Read {
    /// Tokens in it.
    pub(crate) tokens: u64,
    /// Bytes taken, of whatever the transport hands out.
    pub(crate) bytes: usize,
}

/// Why an answer is no good one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A status other than 200.
    Status(u16),
    /// A failure that the stream tells.
    Told(String),
    /// The server closed a connection that was kept, before it saw the request: no answer at all. Ask again.
    Stale,
    /// It ended before its end.
    Cut(&'static str),
    /// A connection that failed, or words that cannot be read.
    Broken(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "status {status}"),
            Self::Told(text) => write!(f, "in the stream: {text}"),
            Self::Stale => f.write_str("closed before an answer"),
            Self::Cut(how) => f.write_str(how),
            Self::Broken(text) => f.write_str(text),
        }
    }
}

/// The tokens of one answer, in either form.
enum Count {
    Events(Counter),
    Frames { tokens: u64, finished: bool },
}

thread_local! {
    /// One buffer serves all streams of the thread: each is done with it before the next is polled, so ten
    /// thousand open streams cost no buffers.
    static BUFFER: std::cell::RefCell<Box<[u8]>> = std::cell::RefCell::new(vec![0; READ].into());
}

impl Stream {
    /// Over a socket of its own, which may have been that of an answer before.
    pub(crate) fn http1(socket: Socket, is_kept: bool) -> Self {
        Self {
            is_kept,
            body: Body::Http1(Box::new((socket, Response::default()))),
            count: Count::events(),
        }
    }

    /// Over HTTP/2.
    pub(crate) fn http2(answer: h2::client::ResponseFuture) -> Self {
        Self {
            is_kept: false,
            body: Body::Http2(Box::new(Http2::Waits(answer))),
            count: Count::events(),
        }
    }

    /// Over QUIC, in either protocol.
    pub(crate) fn quic(transport: Transport, receiving: quinn::RecvStream) -> Self {
        Self {
            is_kept: false,
            body: Body::Quic(transport, receiving, Scanner::default()),
            count: match transport {
                Transport::Sluice => Count::Frames {
                    tokens: 0,
                    finished: false,
                },
                _ => Count::events(),
            },
        }
    }

    /// The connection, where an answer over HTTP/1.1 has ended and another may follow.
    pub(crate) fn into_socket(self) -> Option<Socket> {
        match self.body {
            Body::Http1(both) if both.1.done() && both.1.keep_alive => Some(both.0),
            _ => None,
        }
    }

    /// Reads what there is, at most about so many bytes; `None` at a good end.
    ///
    /// # Errors
    /// What went wrong, in a few words, for counting.
    pub(crate) async fn read(&mut self, most: usize) -> Result<Option<Read>, Fault> {
        let before = self.count.tokens();
        let count = &mut self.count;
        let bytes = match &mut self.body {
            Body::Http1(both) => {
                let (socket, response) = both.as_mut();
                if response.done() {
                    return self.count.end();
                }
                let read = read_http1(socket, response, count, most).await;
                if self.is_kept && read.is_err() && response.status == 0 {
                    return Err(Fault::Stale);
                }
                read?
            }
            Body::Http2(state) => read_http2(state, count).await?,
            Body::Quic(transport, receiving, scanner) => {
                read_quic(*transport, receiving, scanner, count, most).await?
            }
        };
        match bytes {
            Some(bytes) => Ok(Some(Read {
                tokens: self.count.tokens() - before,
                bytes,
            })),
            None => self.count.end(),
        }
    }
}

async fn read_http1(
    socket: &mut Socket,
    response: &mut Response,
    count: &mut Count,
    most: usize,
) -> Result<Option<usize>, Fault> {
    let (read, fed) = poll_fn(|context| {
        BUFFER.with_borrow_mut(|buffer| {
            let most = most.min(READ);
            let mut buffer = ReadBuf::new(&mut buffer[..most]);
            let polled = Pin::new(&mut *socket).poll_read(context, &mut buffer);
            polled.map_ok(|()| {
                let bytes = buffer.filled();
                let fed = response.feed(bytes, |status, piece| match piece {
                    response::Piece::Bytes(bytes) if status == 200 => count.bytes(bytes),
                    _ => {}
                });
                (bytes.len(), fed)
            })
        })
    })
    .await
    .map_err(|error: io::Error| Fault::Broken(format!("read: {error}")))?;
    fed.map_err(|error| Fault::Broken(error.to_owned()))?;
    if response.status == 0 && read == 0 {
        return Err(Fault::Broken("closed before an answer".to_owned()));
    }
    if response.status != 200 && (response.done() || read == 0) {
        return Err(Fault::Status(response.status));
    }
    if read == 0 && !response.close() {
        return Err(Fault::Cut("the body was cut off"));
    }
    Ok((read > 0).then_some(read))
}

async fn read_http2(state: &mut Http2, count: &mut Count) -> Result<Option<usize>, Fault> {
    let failed = |error: h2::Error| Fault::Broken(format!("read: {error}"));
    if let Http2::Waits(answer) = state {
        let answer = answer.await.map_err(failed)?;
        if answer.status() != 200 {
            return Err(Fault::Status(answer.status().as_u16()));
        }
        *state = Http2::Reads(answer.into_body());
    }
    let Http2::Reads(body) = state else {
        return Ok(None);
    };
    let Some(bytes) = body.data().await else {
        return Ok(None);
    };
    let bytes = bytes.map_err(failed)?;
    count.bytes(&bytes);
    body.flow_control()
        .release_capacity(bytes.len())
        .map_err(failed)?;
    Ok(Some(bytes.len()))
}

async fn read_quic(
    transport: Transport,
    receiving: &mut quinn::RecvStream,
    scanner: &mut Scanner,
    count: &mut Count,
    most: usize,
) -> Result<Option<usize>, Fault> {
    let failed = |error: quinn::ReadError| Fault::Broken(format!("read: {error}"));
    let mut chunks = [const { Bytes::new() }; CHUNKS];
    let read = if most < READ {
        let chunk = receiving.read_chunk(most, true).await.map_err(failed)?;
        chunk.map(|chunk| {
            chunks[0] = chunk.bytes;
            1
        })
    } else {
        receiving.read_chunks(&mut chunks).await.map_err(failed)?
    };
    let Some(read) = read else {
        return if scanner.is_between() {
            Ok(None)
        } else {
            Err(Fault::Cut("the body was cut off"))
        };
    };
    let mut bytes = 0;
    for chunk in &chunks[..read] {
        bytes += chunk.len();
        scanner.feed(chunk, |piece| count.piece(transport, &piece))?;
    }
    Ok(Some(bytes))
}

impl Count {
    fn events() -> Self {
        Self::Events(Counter::new(Dialect::Sse, Method::Chat))
    }

    fn tokens(&self) -> u64 {
        match self {
            Self::Events(counter) => counter.tokens,
            Self::Frames { tokens, .. } => *tokens,
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        if let Self::Events(counter) = self {
            counter.bytes(bytes);
        }
    }

    /// Takes a frame of HTTP/3 or of `sluice/1`.
    fn piece(&mut self, transport: Transport, piece: &Piece<'_>) -> Result<(), Fault> {
        match (piece, self) {
            (Piece::Data(bytes), Self::Events(counter)) => counter.bytes(bytes),
            (Piece::Frame(request::H3_HEADERS, head), Self::Events(_))
                if transport == Transport::Http3 =>
            {
                request::h3_status(head)?;
            }
            (Piece::Frame(sluice::RESPONSE, head), Self::Frames { .. }) => {
                request::sluice_status(head)?;
            }
            (Piece::Frame(sluice::TOKENS, payload), Self::Frames { tokens, .. }) => {
                let mut payload = *payload;
                let _choice = varint(&mut payload);
                *tokens += varint(&mut payload)
                    .ok_or_else(|| Fault::Broken("TOKENS is not well formed".to_owned()))?;
            }
            (Piece::Frame(sluice::ERROR, payload), Self::Frames { .. }) => {
                let text = String::from_utf8_lossy(payload);
                return Err(Fault::Told(text.into_owned()));
            }
            (Piece::Frame(sluice::END, _), Self::Frames { finished, .. }) => *finished = true,
            // What later versions add.
            _ => {}
        }
        Ok(())
    }

    fn end(&self) -> Result<Option<Read>, Fault> {
        let finished = match self {
            Self::Events(counter) => {
                if let Some(failure) = &counter.failure {
                    return Err(Fault::Told(failure.clone()));
                }
                counter.finished
            }
            Self::Frames { finished, .. } => *finished,
        };
        if finished {
            Ok(None)
        } else {
            Err(Fault::Cut("the stream ended without its end mark"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::put_frame;
    use super::*;

    fn count(transport: Transport, bytes: &[u8]) -> Result<(u64, bool), Fault> {
        let mut scanner = Scanner::default();
        let mut count = match transport {
            Transport::Sluice => Count::Frames {
                tokens: 0,
                finished: false,
            },
            _ => Count::events(),
        };
        for byte in bytes {
            scanner.feed(&[*byte], |piece| count.piece(transport, &piece))?;
        }
        Ok((count.tokens(), count.end().is_ok()))
    }

    fn frames(frames: &[(u32, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (kind, payload) in frames {
            put_frame(&mut out, *kind, payload);
        }
        out
    }

    #[test]
    fn sluice_counts_what_its_frames_say_that_they_hold() {
        let head: &[u8] = b"{\"status\":200,\"headers\":{}}";
        let some: &[(u32, &[u8])] = &[
            (3, head),
            (0x12, &[1, 0]),
            (0x10, b"\x00\x02Hi"),
            (6, b""),
            (0x10, b"\x00\x40\x41text"),
        ];
        assert_eq!(count(Transport::Sluice, &frames(some)), Ok((67, false)));
        let all = [some, &[(4, &[1])]].concat();
        assert_eq!(count(Transport::Sluice, &frames(&all)), Ok((67, true)));
    }

    #[test]
    fn sluice_tells_a_failure() {
        let refused = frames(&[(3, b"{\"status\":404}")]);
        assert_eq!(count(Transport::Sluice, &refused), Err(Fault::Status(404)));
        let broken = frames(&[(5, b"{\"code\":1}")]);
        assert!(count(Transport::Sluice, &broken).is_err());
    }

    #[test]
    fn http3_counts_the_events_of_its_data() {
        let event = b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
        let bytes = frames(&[
            (1, &[0, 0, 0xd9]),
            (0, &event[..20]),
            (0, &event[20..]),
            (0x21, b"grease"),
            (0, b"data: [DONE]\n\n"),
        ]);
        assert_eq!(count(Transport::Http3, &bytes), Ok((1, true)));
        assert!(count(Transport::Http3, &frames(&[(1, &[0, 0, 0xdb])])).is_err());
    }
}
