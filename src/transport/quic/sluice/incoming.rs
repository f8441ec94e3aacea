//! What a client sends on one stream: the head of a request, then its body.
//!
//! The body is read from the stream when the handler asks for more and not before: that is what holds
//! the client's upload back.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header};
use bytes::{Buf, Bytes, BytesMut};
use http_body::{Body, Frame as Piece};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use quinn::{ReadError, RecvStream, VarInt};
use tokio::task::coop;

use crate::generation::{Failure, Kind};
use crate::transport::quic::OF_A_CONNECTION;
use crate::wire::sluice::FRAMES;
use crate::wire::sluice::frames::{Decoder, Frame, FrameError};
use crate::wire::sluice::head::{Headers, RequestHead};

/// Most bytes that one read takes from quinn.
const READ: usize = 16 * 1024;

/// What stands for itself in a path (RFC 3986, section 2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Paths whose answer is a generation: frames, unless `accept` asks for something else.
const GENERATIONS: [&str; 2] = ["/v1/chat/completions", "/v1/completions"];

/// The receiving half of a request's stream.
pub(super) struct Incoming {
    stream: RecvStream,
    decoder: Decoder,
    /// Bytes that were read and not decoded yet.
    unread: Bytes,
    has_ended: bool,
}

impl Incoming {
    /// `max_head`: most bytes of the frame that holds the head.
    pub(super) fn new(stream: RecvStream, max_head: usize) -> Self {
        Self {
            stream,
            decoder: Decoder::with_most(max_head),
            unread: Bytes::new(),
            has_ended: false,
        }
    }

    /// Tells the client to send no more.
    pub(super) fn stop(&mut self, code: VarInt) {
        // It may have ended by itself.
        let _ = self.stream.stop(code);
    }

    /// The head of the request. What follows is the body of it.
    pub(super) async fn request(&mut self, timeout: Duration) -> Result<Request<()>, Failure> {
        let head = tokio::time::timeout(timeout, self.head());
        head.await.unwrap_or_else(|_| {
            let limit = humantime::format_duration(timeout);
            let message = format!("The head of the request did not arrive within {limit}.");
            Err(Failure::new(Kind::SlowRequest, message))
        })
    }

    async fn head(&mut self) -> Result<Request<()>, Failure> {
        loop {
            let mut input = &self.unread[..];
            let found = match self.decoder.next(&mut input) {
                Ok(None | Some(Frame::Ping)) => None,
                Ok(Some(Frame::Request(json))) => Some(requested(json)),
                Ok(Some(Frame::Resume { after, id, headers })) => Some(resumed(after, id, headers)),
                Ok(Some(other)) => Some(Err(unexpected(&other, "before the head"))),
                Err(error) => Some(Err(malformed(error))),
            };
            let taken = self.unread.len() - input.len();
            self.unread.advance(taken);
            if let Some(found) = found {
                return found;
            }
            if self.unread.is_empty() && !std::future::poll_fn(|cx| self.poll_read(cx)).await? {
                return Err(broken_off());
            }
        }
    }

    /// Reads more; false at the end of the stream.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Failure>> {
        if self.has_ended {
            return Poll::Ready(Ok(false));
        }
        // A peer that sends nothing but frames to be skipped shall not hold a thread.
        let budget = ready!(coop::poll_proceed(cx));
        let mut buffer = BytesMut::zeroed(READ);
        let read = ready!(self.stream.poll_read(cx, &mut buffer));
        budget.made_progress();
        Poll::Ready(match read {
            Ok(0) => {
                self.has_ended = true;
                Ok(false)
            }
            Ok(read) => {
                buffer.truncate(read);
                self.unread = buffer.freeze();
                Ok(true)
            }
            Err(error) => {
                self.has_ended = true;
                Err(reset(error))
            }
        })
    }

    /// The next bytes of the body among those that were read.
    fn take_data(&mut self) -> Result<Option<Bytes>, Failure> {
        while !self.unread.is_empty() {
            let mut input = &self.unread[..];
            let data = match self.decoder.next(&mut input) {
                Ok(Some(Frame::Data(piece))) => Some(self.unread.slice_ref(piece)),
                Ok(None | Some(Frame::Ping)) => None,
                Ok(Some(other)) => return Err(unexpected(&other, "within the body")),
                Err(error) => return Err(malformed(error)),
            };
            let taken = self.unread.len() - input.len();
            self.unread.advance(taken);
            if data.is_some() {
                return Ok(data);
            }
        }
        Ok(None)
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Failure>>> {
        loop {
            match self.take_data() {
                Ok(None) => {}
                Ok(Some(data)) => return Poll::Ready(Some(Ok(data))),
                Err(failure) => return Poll::Ready(Some(Err(failure))),
            }
            match ready!(self.poll_read(cx)) {
                Ok(true) => {}
                Ok(false) if self.decoder.is_between_frames() => return Poll::Ready(None),
                Ok(false) => return Poll::Ready(Some(Err(broken_off()))),
                Err(failure) => return Poll::Ready(Some(Err(failure))),
            }
        }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Piece<Bytes>, Failure>>> {
        let polled = ready!(self.poll_data(cx));
        if matches!(polled, Some(Err(_))) {
            // An error is the last thing that a body says.
            (self.has_ended, self.unread) = (true, Bytes::new());
            self.decoder = Decoder::new();
        }
        Poll::Ready(polled.map(|data| data.map(Piece::data)))
    }
}

/// The request that REQUEST holds.
fn requested(json: &[u8]) -> Result<Request<()>, Failure> {
    let head: RequestHead = serde_json::from_slice(json).map_err(|error| {
        let message = format!("The head of the request cannot be read: {error}.");
        Failure::new(Kind::Invalid, message)
    })?;
    let method = Method::from_bytes(head.method.as_bytes());
    let method = method.map_err(|_| Failure::invalid("method", "This is not a method."))?;
    request(method, &head.path, &head.headers)
}

/// The request that RESUME is short for.
fn resumed(after: u64, id: &str, headers: &[u8]) -> Result<Request<()>, Failure> {
    let headers = if headers.is_empty() {
        Headers::default()
    } else {
        serde_json::from_slice(headers).map_err(|error| {
            let message = format!("The headers cannot be read: {error}.");
            Failure::invalid("headers", message)
        })?
    };
    let id = utf8_percent_encode(id, RESERVED);
    let path = format!("/v1/streams/{id}?after={after}");
    request(Method::GET, &path, &headers)
}

fn request(method: Method, path: &str, headers: &Headers) -> Result<Request<()>, Failure> {
    let uri = Uri::try_from(path).ok().filter(|_| path.starts_with('/'));
    let uri = uri.ok_or_else(|| {
        Failure::invalid(
            "path",
            "The path begins with / and holds what a URL may hold.",
        )
    })?;
    let mut map = HeaderMap::new();
    for (name, value) in &headers.0 {
        append(&mut map, name, value)?;
    }
    if GENERATIONS.contains(&uri.path()) && !map.contains_key(header::ACCEPT) {
        map.insert(header::ACCEPT, HeaderValue::from_static(FRAMES));
    }
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    // What it is closest to: no Host is needed, and nothing is said of the connection.
    *request.version_mut() = Version::HTTP_3;
    *request.headers_mut() = map;
    Ok(request)
}

fn append(map: &mut HeaderMap, name: &str, value: &str) -> Result<(), Failure> {
    let known = HeaderName::try_from(name).ok();
    let known = known.filter(|name| !OF_A_CONNECTION.contains(&name.as_str()));
    if let Some(name) = known
        && let Ok(value) = HeaderValue::try_from(value)
        && map.try_append(name, value).is_ok()
    {
        return Ok(());
    }
    let mut name = name.to_owned();
    name.truncate(name.floor_char_boundary(64));
    let message = format!("The header {name:?} cannot be taken.");
    Err(Failure::invalid("headers", message))
}

fn unexpected(frame: &Frame<'_>, place: &str) -> Failure {
    let name = frame.kind().name();
    Failure::new(
        Kind::Invalid,
        format!("A {name} frame may not come {place}."),
    )
}

fn malformed(error: FrameError) -> Failure {
    let kind = match error {
        FrameError::TooLong { .. } => Kind::TooLarge,
        _ => Kind::Invalid,
    };
    Failure::new(kind, format!("This is not sluice/1: {error}.")).with_source(error)
}

fn broken_off() -> Failure {
    Failure::new(Kind::Invalid, "The request broke off within a frame.")
}

fn reset(error: ReadError) -> Failure {
    Failure::new(Kind::Invalid, "The request broke off.").with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_becomes_a_request_that_asks_for_frames() {
        let json = br#"{"path":"/v1/completions","headers":{"Authorization":"Bearer x"}}"#;
        let request = requested(json).unwrap();
        assert_eq!(request.method(), Method::POST);
        assert_eq!(request.headers()["authorization"], "Bearer x");
        assert_eq!(request.headers()["accept"], FRAMES);
        let json = br#"{"method":"GET","path":"/v1/models"}"#;
        let request = requested(json).unwrap();
        assert_eq!(request.method(), Method::GET);
        assert!(request.headers().is_empty(), "no generation");
        let json = br#"{"path":"/v1/completions","headers":{"accept":"text/plain"}}"#;
        assert_eq!(requested(json).unwrap().headers()["accept"], "text/plain");
    }

    #[test]
    fn a_resume_is_a_get_of_the_rest() {
        let request = resumed(70, "a-1/b?c", br#"{"authorization":"x"}"#).unwrap();
        assert_eq!(request.uri(), "/v1/streams/a-1%2Fb%3Fc?after=70");
        assert_eq!(request.headers()["authorization"], "x");
        assert!(resumed(0, "a", b"").is_ok());
        assert!(resumed(0, "a", b"[").is_err());
    }

    #[test]
    fn what_cannot_be_a_request_is_refused_by_its_place() {
        for (json, place) in [
            ("{", None),
            (r#"{"path":"rpc"}"#, Some("path")),
            (r#"{"path":"http://else/where"}"#, Some("path")),
            (r#"{"path":"/a b"}"#, Some("path")),
            (r#"{"path":"/","method":"G T"}"#, Some("method")),
            (r#"{"path":"/","headers":{"a b":"c"}}"#, Some("headers")),
            (r#"{"path":"/","headers":{"a":"c\n"}}"#, Some("headers")),
            (
                r#"{"path":"/","headers":{"Transfer-Encoding":"chunked"}}"#,
                Some("headers"),
            ),
        ] {
            let failure = requested(json.as_bytes()).unwrap_err();
            assert_eq!(failure.kind, Kind::Invalid);
            assert_eq!(failure.param.as_deref(), place, "{json}");
        }
    }
}
