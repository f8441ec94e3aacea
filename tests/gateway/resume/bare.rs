//! Answers as bytes, for what is lost and what is left of them.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::within;

/// An answer whose body is the bytes of the connection: HTTP/1.0 has no chunks.
pub(super) struct Bare {
    stream: TcpStream,
    head: String,
    read: Vec<u8>,
}

impl Bare {
    pub(super) async fn send(
        address: SocketAddr,
        method: &str,
        path: &str,
        more: &str,
        body: &str,
    ) -> Self {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.0\r\nx-request-id: one\r\ncontent-length: {length}\r\n{more}\r\n{body}"
        );
        let mut stream = within(TcpStream::connect(address)).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        let end = loop {
            if let Some(at) = all.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(more_of(&mut stream, &mut all).await, "a head: {all:?}");
        };
        let read = all.split_off(end);
        let head = String::from_utf8(all).unwrap();
        Self { stream, head, read }
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find_map(|(key, value)| (key == name).then_some(value))
    }

    pub(super) fn status(&self) -> &str {
        &self.head[9..12]
    }

    /// The first `count` bytes of the body; then the connection is lost.
    pub(super) async fn cut_after(mut self, count: usize) -> Vec<u8> {
        while self.read.len() < count {
            assert!(more_of(&mut self.stream, &mut self.read).await);
        }
        self.read.truncate(count);
        self.read
    }

    pub(super) async fn rest(mut self) -> Vec<u8> {
        while more_of(&mut self.stream, &mut self.read).await {}
        self.read
    }
}

async fn more_of(stream: &mut TcpStream, read: &mut Vec<u8>) -> bool {
    within(stream.read_buf(read)).await.unwrap() > 0
}

/// What is the same in two answers to the same request: all but the second in which they were made.
pub(super) fn timeless(body: &[u8]) -> String {
    let text = std::str::from_utf8(body).unwrap();
    let mut parts = text.split("\"created\":");
    let mut all = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        all += "\"created\":";
        all += part.trim_start_matches(|digit: char| digit.is_ascii_digit());
    }
    all
}
