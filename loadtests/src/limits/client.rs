//! One caller's connection: asks over it, one after the other, and what came of each.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::count::{self, Counter, Dialect, Method};
use crate::response::{Piece, Response};

/// Bytes read at once.
const READ: usize = 16 * 1024;

/// What is kept of a body's end: the usage stands there.
const TAIL: usize = 2 * 1024;

/// The fault of an answer whose caller hung up.
pub(super) const LEFT: &str = "left";

/// A whole request.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    bytes: Vec<u8>,
    is_stream: bool,
    leave_after: Option<u64>,
}

/// What came of an ask.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// The status; 0 where none came.
    pub(super) status: u16,
    /// When it was sent.
    pub(super) sent: Instant,
    /// From then to the first token.
    pub(super) first: Option<Duration>,
    /// From then to the end.
    pub(super) total: Duration,
    /// Token events.
    pub(super) tokens: u64,
    /// It is complete, and a good one.
    pub(super) is_whole: bool,
    /// Why it is not, where that is more than its status.
    pub(super) fault: Option<String>,
    /// Whether it says when to come again.
    pub(super) has_retry_after: bool,
    /// Tokens of the prompt that were computed for it.
    pub(super) prompt: Option<u64>,
}

/// A connection that is made when it is needed, and again when it was closed.
#[derive(Debug)]
pub(super) struct Connection {
    address: SocketAddr,
    socket: Option<TcpStream>,
    buffer: Box<[u8]>,
    /// How often one was made.
    pub(super) made: u64,
}

impl Ask {
    /// A chat, with a key and further header lines.
    pub(super) fn chat(key: Option<&str>, lines: &str, body: &Value) -> Self {
        let text = body.to_string();
        let key = key.map_or(String::new(), |key| {
            format!("authorization: Bearer {key}\r\n")
        });
        Self {
            bytes: format!(
                "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n{key}{lines}\
                 content-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
                text.len()
            )
            .into_bytes(),
            is_stream: body["stream"] == true,
            leave_after: None,
        }
    }

    /// The same by a caller who hangs up after so many tokens.
    pub(super) fn leaving_after(mut self, tokens: u64) -> Self {
        self.leave_after = Some(tokens);
        self
    }

    /// What goes onto the socket.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Connection {
    /// A connection to come.
    pub(super) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            socket: None,
            buffer: vec![0; READ].into(),
            made: 0,
        }
    }

    /// Asks and reads to the end; `came` is told of tokens as they come.
    pub(super) async fn ask(&mut self, ask: &Ask, came: &mut impl FnMut(u64)) -> Answer {
        let mut answer = Answer {
            status: 0,
            sent: Instant::now(),
            first: None,
            total: Duration::ZERO,
            tokens: 0,
            is_whole: false,
            fault: None,
            has_retry_after: false,
            prompt: None,
        };
        let end = self.exchange(ask, &mut answer, came).await;
        answer.total = answer.sent.elapsed();
        match end {
            Ok(()) => answer.is_whole = answer.status == 200 && answer.fault.is_none(),
            Err(fault) => {
                self.socket = None;
                answer.fault = Some(fault);
            }
        }
        answer
    }

    async fn connect(&mut self) -> io::Result<TcpStream> {
        self.made += 1;
        let socket = TcpStream::connect(self.address).await?;
        socket.set_nodelay(true)?;
        Ok(socket)
    }

    async fn exchange(
        &mut self,
        ask: &Ask,
        answer: &mut Answer,
        came: &mut impl FnMut(u64),
    ) -> Result<(), String> {
        let kept = self.socket.take().filter(is_open);
        let mut socket = match kept {
            Some(socket) => socket,
            None => self
                .connect()
                .await
                .map_err(|error| failed("connect", &error))?,
        };
        answer.sent = Instant::now();
        socket
            .write_all(&ask.bytes)
            .await
            .map_err(|error| failed("send", &error))?;
        let mut response = Response::default();
        let mut counter = Counter::new(Dialect::Sse, Method::Chat);
        let mut tail = Vec::new();
        while !response.done() {
            let read = socket
                .read(&mut self.buffer)
                .await
                .map_err(|error| failed("read", &error))?;
            if read == 0 {
                if response.close() {
                    break;
                }
                return Err("the answer was cut off".to_owned());
            }
            response.feed(&self.buffer[..read], |_, piece| {
                if let Piece::Bytes(bytes) = piece {
                    counter.bytes(bytes);
                    tail.extend_from_slice(bytes);
                }
            })?;
            tail.drain(..tail.len().saturating_sub(TAIL));
            answer.status = response.status;
            let new = counter.tokens - answer.tokens;
            answer.tokens = counter.tokens;
            if new > 0 && answer.first.is_none() {
                answer.first = Some(answer.sent.elapsed());
            }
            came(new);
            if ask.leave_after.is_some_and(|most| answer.tokens >= most) {
                return Err(LEFT.to_owned());
            }
        }
        answer.status = response.status;
        answer.has_retry_after = response.header("retry-after").is_some();
        answer.prompt = computed_prompt(&tail);
        if answer.status != 200 {
            answer.fault = Some(format!("{}: {}", answer.status, count::message(&tail)));
        } else if ask.is_stream {
            answer.fault = match counter.failure {
                None if !counter.finished => Some("the stream has no end mark".to_owned()),
                failure => failure,
            };
        }
        if response.keep_alive {
            self.socket = Some(socket);
        }
        Ok(())
    }
}

/// An idle connection that the server has closed, or talks on unasked, is of no use.
fn is_open(socket: &TcpStream) -> bool {
    let end = socket.try_read(&mut [0; 1]);
    matches!(end, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

fn failed(doing: &str, error: &io::Error) -> String {
    format!("{doing}: {}", error.kind())
}

/// The prompt's tokens that were not found in a cache, by the usage at the end of a body.
fn computed_prompt(tail: &[u8]) -> Option<u64> {
    let number = |name: &[u8]| {
        let place = memchr::memmem::rfind(tail, name)? + name.len();
        let digits = tail[place..].trim_ascii_start();
        let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
        std::str::from_utf8(&digits[..end])
            .ok()?
            .parse::<u64>()
            .ok()
    };
    let cached = number(b"\"cached_tokens\":").unwrap_or_default();
    Some(number(b"\"prompt_tokens\":")?.saturating_sub(cached))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use serde_json::json;

    use super::*;

    /// Answers one request after the other on one connection.
    fn serve(answers: Vec<String>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            for answer in answers {
                let _ = socket.read(&mut [0; 4096]).unwrap();
                socket.write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    fn http(head: &str, body: &str) -> String {
        format!(
            "HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    fn token(text: &str) -> String {
        format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
    }

    #[tokio::test]
    async fn a_connection_is_kept_and_each_answer_tells_what_it_was() {
        let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2,\
                     \"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\n";
        let stream = [&token("a"), &token("b"), usage, "data: [DONE]\n\n"].concat();
        let refusal = "{\"error\":{\"message\":\"Later.\"}}";
        let address = serve(vec![
            http("429 x\r\nretry-after: 2", refusal),
            http("200 x", &stream),
            http("200 x", &token("c")),
        ]);
        let mut connection = Connection::new(address);
        let ask = Ask::chat(Some("k"), "", &json!({"stream": true}));
        assert!(
            ask.bytes()
                .windows(23)
                .any(|line| line == b"authorization: Bearer k")
        );
        let refused = connection.ask(&ask, &mut |_| {}).await;
        assert_eq!((refused.status, refused.has_retry_after), (429, true));
        assert_eq!(refused.fault.as_deref(), Some("429: Later."));
        let mut told = 0;
        let good = connection.ask(&ask, &mut |tokens| told += tokens).await;
        assert!(good.is_whole && good.first.is_some());
        assert_eq!((good.tokens, told, good.prompt), (2, 2, Some(5)));
        let cut = connection.ask(&ask, &mut |_| {}).await;
        assert!(!cut.is_whole && cut.tokens == 1, "{cut:?}");
        assert_eq!(connection.made, 1);
    }

    #[tokio::test]
    async fn who_hangs_up_has_left() {
        let address = serve(vec![http("200 x", &[token("a"), token("b")].concat())]);
        let mut connection = Connection::new(address);
        let ask = Ask::chat(None, "", &json!({"stream": true})).leaving_after(2);
        let answer = connection.ask(&ask, &mut |_| {}).await;
        assert_eq!((answer.fault.as_deref(), answer.tokens), (Some(LEFT), 2));
        assert!(connection.socket.is_none());
    }
}
