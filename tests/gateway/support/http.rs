//! One request over one HTTP/1.1 connection of its own.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::HeaderMap;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpSocket;
use tokio_util::task::AbortOnDropHandle;

use super::sse::{self, Answer, Event};
use super::within;

/// A request to be sent.
pub(crate) struct Ask {
    address: SocketAddr,
    request: hyper::http::request::Builder,
    body: Vec<u8>,
    receive_buffer: Option<u32>,
}

impl Ask {
    pub(crate) fn new(address: SocketAddr, method: &str, path: &str, body: Vec<u8>) -> Self {
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "test");
        Self {
            address,
            request,
            body,
            receive_buffer: None,
        }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    /// For a reader that shall be felt early: the kernel takes this much (twice, really).
    pub(crate) fn receive_buffer(mut self, bytes: u32) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }

    /// Sends it and waits for the head of the answer. Dropping this future, or the reply, closes the
    /// connection.
    pub(crate) async fn send(self) -> Reply {
        let exchange = async {
            let socket = TcpSocket::new_v4()?;
            if let Some(bytes) = self.receive_buffer {
                socket.set_recv_buffer_size(bytes)?;
            }
            let stream = socket.connect(self.address).await?;
            stream.set_nodelay(true)?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            let connection = AbortOnDropHandle::new(tokio::spawn(async move {
                let _ = connection.await;
            }));
            let response = sender
                .send_request(self.request.body(Full::from(self.body))?)
                .await?;
            Ok::<_, anyhow::Error>((response, sender, connection))
        };
        let (response, sender, connection) = within(exchange).await.expect("an answer");
        let (head, body) = response.into_parts();
        Reply {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
            read: String::new(),
            _connection: (sender, connection),
        }
    }
}

/// An answer whose body is still to be read.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    /// What was read of an event stream and is no whole event yet.
    read: String,
    _connection: (http1::SendRequest<Full<Bytes>>, AbortOnDropHandle<()>),
}

impl Reply {
    /// A header's value; empty if there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().expect("it is ASCII"))
    }

    /// The next piece of the body.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        loop {
            let frame = within(self.body.frame()).await?.expect("the body is whole");
            if let Ok(data) = frame.into_data() {
                return Some(data);
            }
        }
    }

    /// The next event of an event stream.
    pub(crate) async fn next_event(&mut self) -> Option<Event> {
        loop {
            if let Some(end) = self.read.find("\n\n") {
                let event = sse::event(&self.read[..end]);
                self.read.drain(..end + 2);
                return Some(event);
            }
            let Some(more) = self.next().await else {
                assert_eq!(self.read, "", "the stream ends with a whole event");
                return None;
            };
            self.read += std::str::from_utf8(&more).expect("pieces end with whole characters");
        }
    }

    /// Everything that is still to come of an event stream.
    pub(crate) async fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next_event().await {
            events.push(event);
        }
        events
    }

    /// The whole of an event stream, put together.
    pub(crate) async fn answer(mut self) -> Answer {
        assert_eq!(
            (self.status, self.header("content-type")),
            (200, "text/event-stream")
        );
        Answer::of(&self.events().await)
    }

    pub(crate) async fn bytes(mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(data) = self.next().await {
            all.extend_from_slice(&data);
        }
        all
    }

    pub(crate) async fn text(self) -> String {
        String::from_utf8(self.bytes().await).expect("it is UTF-8")
    }

    pub(crate) async fn json(self) -> Value {
        let text = self.text().await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Each line of NDJSON.
    pub(crate) async fn lines(self) -> Vec<Value> {
        let text = self.text().await;
        assert!(text.ends_with('\n'), "{text:?} ends with a whole line");
        let lines = text.lines().map(serde_json::from_str);
        lines.collect::<Result<_, _>>().expect("every line is JSON")
    }

    /// Status and code of a refusal, which has OpenAI's shape: four keys of strings or null.
    pub(crate) async fn refusal(self) -> (u16, String) {
        let status = self.status;
        assert_eq!(self.header("content-type"), "application/json");
        let body = self.json().await;
        (status, sse::error_code(&body["error"]))
    }
}
