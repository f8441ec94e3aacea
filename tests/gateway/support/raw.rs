//! A connection as bytes, for what no well-behaved client would send.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::within;

pub(crate) struct Raw(TcpStream);

impl Raw {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = within(TcpStream::connect(address))
            .await
            .expect("it accepts");
        stream.set_nodelay(true).expect("a socket takes options");
        Self(stream)
    }

    /// Writes; false if the peer has closed.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        within(self.0.write_all(bytes.as_ref())).await.is_ok()
    }

    /// A whole request with this body.
    pub(crate) async fn post(&mut self, path: &str, body: &str) {
        let length = body.len();
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\n");
        assert!(self.send(head + body).await, "the request goes out");
    }

    /// Closes our side for writing; reading goes on.
    pub(crate) async fn half_close(&mut self) {
        self.0.shutdown().await.expect("an open side can be closed");
    }

    /// Reads until `end` has come; everything up to there, and what came behind it.
    pub(crate) async fn read_until(&mut self, end: &str) -> String {
        let mut all = String::new();
        while !all.contains(end) {
            let mut buffer = [0; 4096];
            let count = within(self.0.read(&mut buffer))
                .await
                .expect("the peer has not broken off");
            assert!(count > 0, "the peer closed before {end:?}: {all}");
            all += std::str::from_utf8(&buffer[..count]).expect("it is ASCII");
        }
        all
    }

    /// Reads until the peer closes, gently or not.
    pub(crate) async fn read_to_end(&mut self) -> String {
        let mut all = Vec::new();
        let _ = within(self.0.read_to_end(&mut all)).await;
        // HTTP/2 answers in frames.
        String::from_utf8_lossy(&all).into_owned()
    }
}
