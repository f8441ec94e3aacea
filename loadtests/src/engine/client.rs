//! One streamed answer, with the time of every read.
//!
//! Unlike the load generator's own streams, each is kept whole: what is computed from it (windows, gaps,
//! usage, text) is computed when it has ended, so that reading costs no more than it must.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::count::{self, Counter, Dialect, Method};
use crate::response::{Piece, Response};

/// Bytes read at once.
const READ: usize = 16 * 1024;

/// What a stalled reader's kernel may hold for it: little, so that the server feels it soon.
const STALLED_RECEIVE_BUFFER: u32 = 8 * 1024;

/// How often streams are looked at.
const LOOK: Duration = Duration::from_millis(2);

/// Why there are no figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The server does not offer this.
    NotServed(String),
    /// Anything else.
    Failed(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    /// Where to.
    pub(super) method: Method,
    /// The JSON body.
    pub(super) body: Value,
    /// How the answer is read.
    pub(super) reader: Reader,
}

/// How an answer is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// To its end.
    Once,
    /// To its end, and then the same is asked again.
    Again,
    /// Not beyond its first token.
    Stalls,
}

impl Ask {
    /// A chat that is read to its end.
    pub(super) fn chat(body: Value) -> Self {
        Self {
            method: Method::Chat,
            body,
            reader: Reader::Once,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let path = match self.method {
            Method::Chat => "/v1/chat/completions",
            Method::Completions => "/v1/completions",
        };
        let body = self.body.to_string();
        format!(
            "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: text/event-stream\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }
}

/// What came of an ask, so far or at its end.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// When the request was sent.
    pub(super) sent: Instant,
    /// When something with tokens was read, and how many they were.
    pub(super) reads: Vec<(Instant, u64)>,
    /// It has ended well.
    pub(super) ended: bool,
    /// It has failed.
    pub(super) fault: Option<Fault>,
    body: Vec<u8>,
}

/// The server's own count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Tokens of the prompt.
    pub(super) prompt: u64,
    /// Those of them that were not computed again.
    pub(super) cached: u64,
    /// Tokens of the answer.
    pub(super) completion: u64,
}

impl Answer {
    /// An answer that nothing has come of.
    pub(super) fn new() -> Self {
        Self {
            sent: Instant::now(),
            reads: Vec::new(),
            ended: false,
            fault: None,
            body: Vec::new(),
        }
    }

    /// From sending to the first token.
    pub(super) fn first_token(&self) -> Option<Duration> {
        let (first, _) = self.reads.first()?;
        Some(*first - self.sent)
    }

    /// Token events.
    pub(super) fn events(&self) -> u64 {
        self.reads.iter().map(|(_, tokens)| tokens).sum()
    }

    /// The server's count, which also knows tokens that have no text.
    pub(super) fn usage(&self) -> Option<Usage> {
        let value = self.events_of_body().filter_map(|event| {
            let usage = event.get("usage")?;
            let number = |pointer| usage.pointer(pointer).and_then(Value::as_u64);
            Some(Usage {
                prompt: number("/prompt_tokens")?,
                cached: number("/prompt_tokens_details/cached_tokens").unwrap_or_default(),
                completion: number("/completion_tokens")?,
            })
        });
        value.last()
    }

    /// Its text.
    pub(super) fn text(&self) -> String {
        let text = |event: Value| {
            let choice = event.pointer("/choices/0")?;
            let text = choice.pointer("/delta/content").or(choice.get("text"))?;
            Some(text.as_str()?.to_owned())
        };
        self.events_of_body().filter_map(text).collect()
    }

    fn events_of_body(&self) -> impl Iterator<Item = Value> {
        self.body.split(|byte| *byte == b'\n').filter_map(|line| {
            let data = line.strip_prefix(b"data:")?;
            serde_json::from_slice(data).ok()
        })
    }

    #[cfg(test)]
    pub(super) fn of(sent: Instant, reads: Vec<(Instant, u64)>, body: &str) -> Self {
        Self {
            sent,
            reads,
            ended: true,
            fault: None,
            body: body.as_bytes().to_vec(),
        }
    }
}

/// Streams under way; they are hung up on when this is dropped.
pub(super) struct Streams {
    set: JoinSet<()>,
    /// The answers of each, one after the other.
    answers: Vec<Rc<RefCell<Vec<Answer>>>>,
}

impl Streams {
    /// Sends all requests now. Needs a `LocalSet`.
    pub(super) fn open(address: SocketAddr, asks: &[Ask]) -> Self {
        let mut set = JoinSet::new();
        let answers = asks
            .iter()
            .map(|ask| {
                let answers = Rc::new(RefCell::new(Vec::new()));
                let (shared, request) = (Rc::clone(&answers), ask.bytes());
                let (method, reader) = (ask.method, ask.reader);
                set.spawn_local(async move {
                    loop {
                        shared.borrow_mut().push(Answer::new());
                        let end = exchange(address, &request, method, reader, &shared).await;
                        let again = end.is_ok() && reader == Reader::Again;
                        with(&shared, |answer| {
                            answer.ended = end.is_ok();
                            answer.fault = end.err();
                        });
                        if !again {
                            return;
                        }
                    }
                });
                answers
            })
            .collect();
        Self { set, answers }
    }

    /// Waits until every stream has had its first token.
    pub(super) async fn begun(&self) -> Result<(), Fault> {
        loop {
            let mut all = true;
            for answers in &self.answers {
                let answers = answers.borrow();
                if let Some(fault) = answers.iter().find_map(|answer| answer.fault.clone()) {
                    return Err(fault);
                }
                all &= answers.first().is_some_and(|first| !first.reads.is_empty());
            }
            if all {
                return Ok(());
            }
            sleep(LOOK).await;
        }
    }

    /// Waits until every answer has ended.
    pub(super) async fn ended(mut self) -> Result<Vec<Answer>, Fault> {
        while self.set.join_next().await.is_some() {}
        self.now()
    }

    /// All answers as they are, those of one stream after those of the one before.
    pub(super) fn now(&self) -> Result<Vec<Answer>, Fault> {
        let answers: Vec<Answer> = self
            .answers
            .iter()
            .flat_map(|answers| answers.borrow().clone())
            .collect();
        match answers.iter().find_map(|answer| answer.fault.clone()) {
            Some(fault) => Err(fault),
            None => Ok(answers),
        }
    }
}

/// Changes the answer that is under way.
fn with<T>(answers: &RefCell<Vec<Answer>>, change: impl FnOnce(&mut Answer) -> T) -> Option<T> {
    answers.borrow_mut().last_mut().map(change)
}

/// The status of a GET, if there is an answer.
pub(super) async fn get(address: SocketAddr, path: &str) -> Option<u16> {
    let mut socket = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.ok()?;
    let (mut response, mut buffer) = (Response::default(), [0; 1024]);
    while response.status == 0 {
        let read = read(&socket, &mut buffer).await.ok()?;
        if read == 0 {
            return None;
        }
        response.feed(&buffer[..read], |_, _| {}).ok()?;
    }
    Some(response.status)
}

async fn exchange(
    address: SocketAddr,
    request: &[u8],
    method: Method,
    reader: Reader,
    answers: &RefCell<Vec<Answer>>,
) -> Result<(), Fault> {
    let stalls = reader == Reader::Stalls;
    let socket = TcpSocket::new_v4()?;
    if stalls {
        socket.set_recv_buffer_size(STALLED_RECEIVE_BUFFER)?;
    }
    let mut socket = socket.connect(address).await?;
    socket.set_nodelay(true)?;
    with(answers, |answer| answer.sent = Instant::now());
    socket.write_all(request).await?;
    let mut buffer = vec![0; READ];
    let (mut response, mut counter) = (Response::default(), Counter::new(Dialect::Sse, method));
    let mut body = Vec::new();
    while !response.done() {
        if stalls && counter.tokens > 0 {
            std::future::pending::<()>().await;
        }
        let read = read(&socket, &mut buffer).await?;
        let (now, before) = (Instant::now(), counter.tokens);
        if read == 0 {
            if response.close() {
                break;
            }
            return Err(Fault::Failed("the body was cut off".to_owned()));
        }
        response
            .feed(&buffer[..read], |_, piece| {
                if let Piece::Bytes(bytes) = piece {
                    counter.bytes(bytes);
                    body.extend_from_slice(bytes);
                }
            })
            .map_err(|error| Fault::Failed(error.to_owned()))?;
        if counter.tokens > before {
            let read = (now, counter.tokens - before);
            with(answers, |answer| answer.reads.push(read));
        }
    }
    if response.status != 200 {
        let fault = format!("status {}: {}", response.status, count::message(&body));
        return Err(match response.status {
            400 | 404 | 405 | 422 | 501 => Fault::NotServed(fault),
            _ => Fault::Failed(fault),
        });
    }
    with(answers, |answer| answer.body = body);
    match counter.failure {
        Some(failure) => Err(Fault::Failed(format!("in the stream: {failure}"))),
        None if !counter.finished => Err(Fault::Failed("the stream has no end mark".to_owned())),
        None => Ok(()),
    }
}

async fn read(socket: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        socket.readable().await?;
        match socket.try_read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use serde_json::json;
    use tokio::task::LocalSet;

    use super::*;

    const BODY: &str = concat!(
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hel\"}}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"lo\"}}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":3,",
        "\"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\n",
        "data: [DONE]\n\n",
    );

    /// Answers one request on each of the connections that come.
    fn serve(status: u16, body: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for socket in listener.incoming() {
                let mut socket = socket.unwrap();
                let _ = socket.read(&mut [0; 4096]).unwrap();
                let head = format!(
                    "HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                socket.write_all((head + body).as_bytes()).unwrap();
            }
        });
        address
    }

    fn asks(address: SocketAddr, count: usize) -> Result<Vec<Answer>, Fault> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, async {
            let asks = vec![Ask::chat(json!({})); count];
            Streams::open(address, &asks).ended().await
        })
    }

    #[test]
    fn an_answer_has_its_tokens_text_and_usage() {
        let answers = asks(serve(200, BODY), 3).unwrap();
        assert_eq!(answers.len(), 3);
        for answer in &answers {
            let usage = Usage {
                prompt: 9,
                cached: 4,
                completion: 3,
            };
            assert_eq!((answer.events(), answer.usage()), (2, Some(usage)));
            assert_eq!(answer.text(), "Hello");
            assert!(answer.ended && answer.first_token().is_some());
        }
    }

    #[test]
    fn a_reader_may_ask_again_or_stop_at_the_first_token() {
        let address = serve(200, BODY);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, async {
            let mut ask = Ask::chat(json!({}));
            ask.reader = Reader::Again;
            let streams = Streams::open(address, &[ask.clone()]);
            streams.begun().await.unwrap();
            while streams.now().unwrap().len() < 3 {
                sleep(LOOK).await;
            }
            assert!(streams.now().unwrap()[0].ended);
            ask.reader = Reader::Stalls;
            let streams = Streams::open(address, &[ask]);
            streams.begun().await.unwrap();
        });
    }

    #[test]
    fn what_is_refused_as_unknown_is_not_served_and_the_rest_has_failed() {
        let error = "{\"error\":{\"message\":\"No.\"}}";
        let fault = asks(serve(400, error), 1).unwrap_err();
        assert_eq!(fault, Fault::NotServed("status 400: No.".to_owned()));
        let fault = asks(serve(503, error), 1).unwrap_err();
        assert_eq!(fault, Fault::Failed("status 503: No.".to_owned()));
        let fault = asks(serve(200, "data: {}\n\n"), 1).unwrap_err();
        assert_eq!(
            fault,
            Fault::Failed("the stream has no end mark".to_owned())
        );
    }
}
