//! Connections to the gateway over each transport, and streams on them.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Endpoint, TransportConfig, VarInt};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use super::Transport;
use super::request;
use super::site::Site;
use super::socket::{Socket, Wire};
use super::stream::Stream;

/// What one stream may be sent ahead on HTTP/2; QUIC has quinn's own default, which is more.
const STREAM_WINDOW: u32 = 1 << 20;

/// What a connection may be sent ahead: never the bound here.
const CONNECTION_WINDOW: u32 = 256 << 20;

/// The same for one stream of readers who do not keep up, so that the server feels it soon.
const SMALL_WINDOW: u32 = 64 << 10;

/// And what the kernel may hold for them.
const SMALL_BUFFER: u32 = 8 << 10;

/// Makes connections of one kind.
pub(crate) struct Dialer {
    transport: Transport,
    site: Site,
    tls: Arc<rustls::ClientConfig>,
    endpoint: Option<Endpoint>,
    small: bool,
    wire: Arc<Wire>,
}

/// A connection.
pub(crate) enum Connection {
    /// One stream on each, made when the stream is; those that can be used again.
    Http1(RefCell<Vec<Socket>>),
    /// With its driver, which ends with it.
    Http2(
        h2::client::SendRequest<Bytes>,
        #[expect(dead_code, reason = "it must run for as long as the connection")] JoinSet<()>,
    ),
    /// With the control stream of HTTP/3.
    Quic(
        quinn::Connection,
        #[expect(dead_code, reason = "it must stay open for as long as the connection")]
        Option<quinn::SendStream>,
    ),
}

impl Connection {
    /// Keeps what an answer that has ended came over, for another one.
    pub(crate) fn keep(&self, stream: Stream) {
        if let (Self::Http1(kept), Some(socket)) = (self, stream.into_socket()) {
            kept.borrow_mut().push(socket);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Self::Quic(connection, _) = self {
            // H3_NO_ERROR (RFC 9114, section 8.1); `sluice/1` reads nothing into it.
            connection.close(VarInt::from_u32(0x100), b"");
        }
    }
}

impl Dialer {
    /// For connections to a server. `small`: for readers who do not keep up. Needs a runtime.
    ///
    /// # Errors
    /// There is no UDP port.
    pub(crate) fn new(transport: Transport, site: Site, small: bool) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(Arc::clone(&site.roots))
            .with_no_client_auth();
        tls.alpn_protocols = vec![transport.alpn().to_vec()];
        let tls = Arc::new(tls);
        let endpoint = transport.is_quic().then(|| endpoint(&tls, small));
        Ok(Self {
            transport,
            site,
            tls,
            endpoint: endpoint.transpose()?,
            small,
            wire: Arc::default(),
        })
    }

    /// Bytes over TCP so far, down and up.
    pub(crate) fn wire(&self) -> (u64, u64) {
        self.wire.read()
    }

    /// Makes a connection. Needs a `LocalSet`.
    ///
    /// # Errors
    /// In a few words, for counting.
    pub(crate) async fn connect(&self) -> Result<Connection, String> {
        let failed = |error: &dyn std::fmt::Display| format!("connect: {error}");
        match (&self.endpoint, self.transport) {
            (_, Transport::Http1 | Transport::Http1Tls) => {
                Ok(Connection::Http1(RefCell::default()))
            }
            (Some(endpoint), transport) => {
                let connection = endpoint
                    .connect(self.site.address, &self.site.name)
                    .map_err(|error| failed(&error))?
                    .await
                    .map_err(|error| failed(&error))?;
                let mut control = None;
                if transport == Transport::Http3 {
                    let mut stream = connection.open_uni().await.map_err(|e| failed(&e))?;
                    let hello = request::control_stream();
                    stream.write_all(&hello).await.map_err(|e| failed(&e))?;
                    control = Some(stream);
                }
                Ok(Connection::Quic(connection, control))
            }
            (None, _) => {
                let socket = self.socket().await?;
                let window = if self.small {
                    SMALL_WINDOW
                } else {
                    STREAM_WINDOW
                };
                let (requests, connection) = h2::client::Builder::new()
                    .initial_window_size(window)
                    .initial_connection_window_size(CONNECTION_WINDOW)
                    .handshake(socket)
                    .await
                    .map_err(|error| failed(&error))?;
                let mut driver = JoinSet::new();
                driver.spawn_local(async move {
                    // What becomes of it is seen by the streams.
                    let _ = connection.await;
                });
                Ok(Connection::Http2(requests, driver))
            }
        }
    }

    /// Sends a request with this body on a connection.
    ///
    /// # Errors
    /// In a few words, for counting.
    pub(crate) async fn open(
        &self,
        connection: &Connection,
        body: &[u8],
    ) -> Result<Stream, String> {
        let failed = |error: &dyn std::fmt::Display| format!("send: {error}");
        match connection {
            Connection::Http1(kept) => {
                let kept = kept.borrow_mut().pop().and_then(Socket::if_open);
                let is_kept = kept.is_some();
                let mut socket = match kept {
                    Some(socket) => socket,
                    None => self.socket().await?,
                };
                let request = request::bytes(self.transport, &self.site, body);
                socket.write_all(&request).await.map_err(|e| failed(&e))?;
                socket.flush().await.map_err(|e| failed(&e))?;
                Ok(Stream::http1(socket, is_kept))
            }
            Connection::Http2(requests, _) => {
                let mut requests = requests.clone().ready().await.map_err(|e| failed(&e))?;
                let head = request::head(self.transport.is_secure()).map_err(|e| failed(&e))?;
                let (answer, mut sending) =
                    requests.send_request(head, false).map_err(|e| failed(&e))?;
                sending
                    .send_data(Bytes::copy_from_slice(body), true)
                    .map_err(|e| failed(&e))?;
                Ok(Stream::http2(answer))
            }
            Connection::Quic(connection, _) => {
                let (mut sending, receiving) =
                    connection.open_bi().await.map_err(|e| failed(&e))?;
                let request = request::bytes(self.transport, &self.site, body);
                sending.write_all(&request).await.map_err(|e| failed(&e))?;
                sending.finish().map_err(|e| failed(&e))?;
                Ok(Stream::quic(self.transport, receiving))
            }
        }
    }

    async fn socket(&self) -> Result<Socket, String> {
        let tls = self.transport.is_secure().then_some(&self.tls);
        let buffer = (self.small && !self.transport.is_multiplexed()).then_some(SMALL_BUFFER);
        Socket::connect(&self.site, tls, buffer, &self.wire)
            .await
            .map_err(|error| format!("connect: {error}"))
    }
}

fn endpoint(tls: &Arc<rustls::ClientConfig>, small: bool) -> Result<Endpoint> {
    let crypto = QuicClientConfig::try_from(Arc::clone(tls)).context("TLS for QUIC")?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let mut transport = TransportConfig::default();
    if small {
        transport.stream_receive_window(VarInt::from_u32(SMALL_WINDOW));
    }
    config.transport_config(Arc::new(transport));
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    // Many connections share it.
    socket.set_recv_buffer_size(4 << 20)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    let mut endpoint = Endpoint::new(
        quinn::EndpointConfig::default(),
        None,
        socket.into(),
        Arc::new(quinn::TokioRuntime),
    )?;
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}
