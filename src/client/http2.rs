//! HTTP/2: one connection for all requests, each a stream that dropping resets.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::Endpoint;
use super::error::Error;
use super::exchange::{self, Answer, Request, poll_hyper};
use super::tcp::{self, drive};

/// The most that a server may send on one stream ahead of its reader. The least that every peer
/// expects (RFC 9113, section 6.9.2), so that a slow reader is felt as early as can be.
const STREAM_WINDOW: u32 = 65_535;

/// The same for a whole connection: sixteen streams that are not read do not stop the others.
const CONNECTION_WINDOW: u32 = 16 * STREAM_WINDOW;

/// How often a connection with a request on it is pinged, and how long it has for the answer: who has lost
/// the server without a word finds out.
const PING: Duration = Duration::from_secs(10);

/// The connection, once there is one. The lock is held while connecting, so that requests that start
/// together share it.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<Option<Arc<Connection>>>);

#[derive(Debug)]
struct Connection {
    sender: http2::SendRequest<Full<Bytes>>,
    _driver: JoinSet<()>,
}

/// The body of an answer.
pub(super) struct Body {
    incoming: Incoming,
    _connection: Arc<Connection>,
}

impl Shared {
    pub(super) async fn send(
        &self,
        endpoint: &Endpoint,
        tls: Option<&rustls::ClientConfig>,
        request: &Request,
    ) -> Result<Answer, Error> {
        let connection = self.connection(endpoint, tls).await?;
        let mut sent = hyper::Request::builder()
            .method(request.method.clone())
            .uri(format!("{}{}", endpoint.origin(), request.path))
            .body(Full::new(request.body.clone()))?;
        sent.headers_mut().extend(request.headers.clone());
        let response = connection.sender.clone().send_request(sent).await?;
        let (head, incoming) = response.into_parts();
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body: exchange::Body::Http2(Body {
                incoming,
                _connection: connection,
            }),
        })
    }

    async fn connection(
        &self,
        endpoint: &Endpoint,
        tls: Option<&rustls::ClientConfig>,
    ) -> Result<Arc<Connection>, Error> {
        let mut shared = self.0.lock().await;
        if let Some(connection) = shared.as_ref()
            && !connection.sender.is_closed()
        {
            return Ok(Arc::clone(connection));
        }
        let socket = tcp::connect(endpoint, tls, b"h2").await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .handshake(TokioIo::new(socket))
            .await?;
        let connection = Arc::new(Connection {
            sender,
            _driver: drive(connection),
        });
        *shared = Some(Arc::clone(&connection));
        Ok(connection)
    }
}

impl Body {
    pub(super) fn poll_chunk(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Error>>> {
        poll_hyper(&mut self.incoming, context)
    }
}
