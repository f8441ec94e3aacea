//! Connections to one server: HTTP/1.1 with one connection a request, or HTTP/2 with one for all.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::header::{self, HeaderMap};
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::error::Error;
use super::stream::{ChatStream, Frames};
use super::{ChatRequest, Endpoint, Model};

/// How long a connection may take to come about. Local servers answer in microseconds, far ones in a
/// second; beyond this a reader would rather know.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The most that is read of an answer that is no stream: an error, a list of models.
const DOCUMENT_LIMIT: usize = 1024 * 1024;

/// The most a server may send on one HTTP/2 stream ahead of its reader. The least that every peer
/// expects (RFC 9113, section 6.9.2), so that a slow reader is felt as early as can be.
const STREAM_WINDOW: u32 = 65_535;

/// The same for a whole HTTP/2 connection: sixteen streams that are not read do not stop the others.
const CONNECTION_WINDOW: u32 = 16 * STREAM_WINDOW;

/// The most that hyper buffers while it reads HTTP/1.1.
const READ_BUFFER: usize = 64 * 1024;

/// Which HTTP to speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 in clear text by prior knowledge (RFC 9113, section 3.3).
    Http2,
}

/// A client of one server.
#[derive(Debug)]
pub struct Client {
    endpoint: Endpoint,
    version: HttpVersion,
    /// HTTP/2's connection, once there is one. The lock is held while connecting, so that requests
    /// that start together share it.
    shared: Mutex<Option<Arc<SharedConnection>>>,
}

/// What keeps a connection alive while its answer is read. Dropping the last holder closes it.
#[derive(Debug)]
pub(super) enum Lease {
    /// An HTTP/1.1 connection; the set holds the one task that drives it.
    Own { _driver: JoinSet<()> },
    /// A share of an HTTP/2 connection.
    Shared { _connection: Arc<SharedConnection> },
}

#[derive(Debug)]
pub(super) struct SharedConnection {
    sender: http2::SendRequest<Full<Bytes>>,
    _driver: JoinSet<()>,
}

impl Client {
    /// A client; connects when it is first asked for something.
    #[must_use]
    pub fn new(endpoint: Endpoint, version: HttpVersion) -> Self {
        Self {
            endpoint,
            version,
            shared: Mutex::new(None),
        }
    }

    /// The server's address.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Starts a chat and returns its events, once the server has accepted it.
    ///
    /// # Errors
    /// No connection, or the server refused.
    pub async fn chat(&self, request: &ChatRequest) -> Result<ChatStream, Error> {
        Ok(ChatStream::new(self.chat_frames(request).await?))
    }

    /// Starts a chat and returns its raw events.
    ///
    /// # Errors
    /// No connection, or the server refused.
    pub async fn chat_frames(&self, request: &ChatRequest) -> Result<Frames, Error> {
        let path = self.endpoint.path("chat/completions");
        let (response, lease) = self.send(Method::POST, &path, request.body()).await?;
        let response = accepted(response).await?;
        let content_type = text_of(response.headers(), header::CONTENT_TYPE).unwrap_or_default();
        if !content_type
            .trim_start()
            .to_ascii_lowercase()
            .starts_with("text/event-stream")
        {
            return Err(Error::NotAStream {
                content_type: if content_type.is_empty() {
                    "no content-type".to_owned()
                } else {
                    super::error::excerpt(content_type.as_bytes())
                },
            });
        }
        Ok(Frames::new(response.into_body(), lease))
    }

    /// The models that the server offers, in its order.
    ///
    /// # Errors
    /// No connection, the server refused, or its answer is no list of models.
    pub async fn models(&self) -> Result<Vec<Model>, Error> {
        #[derive(Deserialize)]
        struct List {
            data: Vec<Model>,
        }
        let path = self.endpoint.path("models");
        let (response, _lease) = self.send(Method::GET, &path, Vec::new()).await?;
        let body = document(accepted(response).await?.into_body()).await?;
        let list: List =
            serde_json::from_slice(&body).map_err(|source| Error::malformed(&body, source))?;
        Ok(list.data)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(Response<Incoming>, Lease), Error> {
        let request = Request::builder()
            .method(method)
            .header(
                header::USER_AGENT,
                concat!("sluicegate/", env!("CARGO_PKG_VERSION")),
            )
            .header(header::ACCEPT, "text/event-stream, application/json");
        let request = if body.is_empty() {
            request
        } else {
            request.header(header::CONTENT_TYPE, "application/json")
        };
        let body = Full::new(Bytes::from(body));
        match self.version {
            HttpVersion::Http1 => {
                let request = request
                    .uri(path)
                    .header(header::HOST, self.endpoint.authority())
                    .header(header::CONNECTION, "close")
                    .body(body)?;
                self.send_http1(request).await
            }
            HttpVersion::Http2 => {
                let uri = format!("http://{}{path}", self.endpoint.authority());
                self.send_http2(request.uri(uri).body(body)?).await
            }
        }
    }

    async fn send_http1(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, Lease), Error> {
        let socket = connect(&self.endpoint).await?;
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(READ_BUFFER)
            .handshake(TokioIo::new(socket))
            .await?;
        let driver = drive(connection);
        let response = sender.send_request(request).await?;
        Ok((response, Lease::Own { _driver: driver }))
    }

    async fn send_http2(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, Lease), Error> {
        let connection = self.shared_connection().await?;
        let response = connection.sender.clone().send_request(request).await?;
        let lease = Lease::Shared {
            _connection: connection,
        };
        Ok((response, lease))
    }

    async fn shared_connection(&self) -> Result<Arc<SharedConnection>, Error> {
        let mut shared = self.shared.lock().await;
        if let Some(connection) = shared.as_ref()
            && !connection.sender.is_closed()
        {
            return Ok(Arc::clone(connection));
        }
        let socket = connect(&self.endpoint).await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(socket))
            .await?;
        let connection = Arc::new(SharedConnection {
            sender,
            _driver: drive(connection),
        });
        *shared = Some(Arc::clone(&connection));
        Ok(connection)
    }
}

async fn connect(endpoint: &Endpoint) -> Result<TcpStream, Error> {
    let connecting = TcpStream::connect((endpoint.host(), endpoint.port()));
    let socket = timeout(CONNECT_TIMEOUT, connecting)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .and_then(|socket| socket.set_nodelay(true).map(|()| socket));
    socket.map_err(|source| Error::Connect {
        authority: endpoint.authority().to_owned(),
        source,
    })
}

/// Drives a connection for as long as the returned set lives. What ends it is told to whoever reads
/// an answer from it, so its own result has no reader.
fn drive<C>(connection: C) -> JoinSet<()>
where
    C: Future<Output = hyper::Result<()>> + Send + 'static,
{
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        let _ = connection.await;
    });
    driver
}

/// The response if its status is a success; else the error that its body tells.
async fn accepted(response: Response<Incoming>) -> Result<Response<Incoming>, Error> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let retry_after = text_of(response.headers(), header::RETRY_AFTER)
        .and_then(|seconds| seconds.trim().parse().ok())
        .map(Duration::from_secs);
    // A body that breaks off leaves the status, which says most.
    let body = document(response.into_body()).await.unwrap_or_default();
    Err(Error::refused(status, retry_after, &body))
}

async fn document(body: Incoming) -> Result<Bytes, Error> {
    match Limited::new(body, DOCUMENT_LIMIT).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Error::AnswerTooLarge {
            limit: DOCUMENT_LIMIT,
        }),
        Err(error) => match error.downcast::<hyper::Error>() {
            Ok(error) => Err(Error::Http(*error)),
            // `Limited` has only those two.
            Err(_) => Err(Error::Truncated),
        },
    }
}

fn text_of(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}
