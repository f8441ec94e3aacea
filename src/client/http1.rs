//! HTTP/1.1: each request has a connection of its own, which closing cancels.

use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, HeaderValue};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;

use super::Endpoint;
use super::error::Error;
use super::exchange::{self, Answer, Request, poll_hyper};
use super::tcp::{self, drive};

/// The most that hyper buffers while it reads.
const READ_BUFFER: usize = 64 * 1024;

/// The body of an answer.
pub(super) struct Body {
    incoming: Incoming,
    /// Holds the one task that drives the connection.
    _driver: JoinSet<()>,
}

pub(super) async fn send(
    endpoint: &Endpoint,
    tls: Option<&rustls::ClientConfig>,
    request: &Request,
) -> Result<Answer, Error> {
    let socket = tcp::connect(endpoint, tls, b"http/1.1").await?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(READ_BUFFER)
        .handshake(TokioIo::new(socket))
        .await?;
    let driver = drive(connection);
    let mut sent = hyper::Request::builder()
        .method(request.method.clone())
        .uri(&request.path)
        .header(HOST, endpoint.authority())
        .body(Full::new(request.body.clone()))?;
    sent.headers_mut().extend(request.headers.clone());
    sent.headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    let (head, incoming) = sender.send_request(sent).await?.into_parts();
    Ok(Answer {
        status: head.status,
        headers: head.headers,
        body: exchange::Body::Http1(Body {
            incoming,
            _driver: driver,
        }),
    })
}

impl Body {
    pub(super) fn poll_chunk(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Error>>> {
        poll_hyper(&mut self.incoming, context)
    }
}
