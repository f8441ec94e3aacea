//! HTTP/3: each request is a stream of the QUIC connection.

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h3::client::{RequestStream, SendRequest};
use h3::error::StreamError;
use h3_quinn::{BidiStream, OpenStreams};
use hyper::header::HeaderMap;
use hyper::{StatusCode, http};

use super::Endpoint;
use super::error::Error;
use super::exchange::Request;

/// The most that the head of an answer may take (RFC 9114, section 4.2.2).
const MOST_HEAD: u64 = 64 * 1024;

/// What sends requests on one connection.
#[derive(Clone)]
pub(super) struct Sender(SendRequest<OpenStreams, Bytes>);

/// The body of an answer. quinn stops the stream when it is dropped before its end.
pub(super) struct Body(RequestStream<BidiStream<Bytes>, Bytes>);

/// Opens HTTP/3 on a connection; what it returns besides must be driven.
pub(super) async fn open(
    connection: quinn::Connection,
) -> Result<(Sender, impl Future<Output = ()> + Send + 'static), Error> {
    let (mut driver, sender) = h3::client::builder()
        .max_field_section_size(MOST_HEAD)
        .send_grease(false)
        .build(h3_quinn::Connection::new(connection))
        .await
        .map_err(Error::quic)?;
    let drive = async move {
        // Whoever reads an answer learns how the connection ended.
        let _ = driver.wait_idle().await;
    };
    Ok((Sender(sender), drive))
}

/// Why a request has no answer.
pub(super) enum Unsent {
    /// The server takes no more requests on this connection (RFC 9114, section 5.2).
    Leaving,
    Failed(Error),
}

impl Sender {
    /// Sends a request and reads the head of its answer.
    pub(super) async fn send(
        &self,
        endpoint: &Endpoint,
        request: &Request,
    ) -> Result<(StatusCode, HeaderMap, Body), Unsent> {
        let head = http::Request::builder()
            .method(request.method.clone())
            .uri(format!("{}{}", endpoint.origin(), request.path))
            .body(())
            .map(|mut head| {
                head.headers_mut().extend(request.headers.clone());
                head
            });
        let head = head.map_err(|error| Unsent::Failed(error.into()))?;
        let mut sender = self.0.clone();
        let mut stream = sender.send_request(head).await.map_err(|error| {
            if matches!(error, StreamError::RemoteClosing { .. }) {
                Unsent::Leaving
            } else {
                Unsent::Failed(Error::quic(error))
            }
        })?;
        // A server that has answered already wants no more of the body (RFC 9114, section 4.1).
        if !request.body.is_empty() && stream.send_data(request.body.clone()).await.is_err() {
            return answer(stream).await.map_err(Unsent::Failed);
        }
        let _ = stream.finish().await;
        answer(stream).await.map_err(Unsent::Failed)
    }
}

async fn answer(
    mut stream: RequestStream<BidiStream<Bytes>, Bytes>,
) -> Result<(StatusCode, HeaderMap, Body), Error> {
    let (head, ()) = stream
        .recv_response()
        .await
        .map_err(Error::quic)?
        .into_parts();
    Ok((head.status, head.headers, Body(stream)))
}

impl Body {
    pub(super) fn poll_chunk(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Error>>> {
        Poll::Ready(match ready!(self.0.poll_recv_data(context)) {
            Ok(Some(mut data)) => {
                let length = data.remaining();
                Some(Ok(data.copy_to_bytes(length)))
            }
            Ok(None) => None,
            Err(error) => Some(Err(Error::quic(error))),
        })
    }
}
