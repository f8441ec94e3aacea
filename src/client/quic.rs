//! QUIC connections: how one comes about, in one round trip or in none, and what it may receive.
//!
//! The socket is bound to no address of the machine, so that a new one is used as soon as the system's
//! routes say so; the server knows the connection by its id (RFC 9000, section 9).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderValue;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ConnectionError, EndpointConfig, IdleTimeout, TokioRuntime, TransportConfig, VarInt};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::error::Error;
use super::exchange::{self, Answer, Request};
use super::http3::{self, Unsent};
use super::{Endpoint, Transport, sluice, tls};
use crate::auth::{ConnectionSecrets, Key};
use crate::wire::sluice::ALPN;

/// The most that a server may send on one stream ahead of its reader, so that a slow one is felt early.
const STREAM_WINDOW: u32 = 64 * 1024;

/// The same for a whole connection: sixteen streams that are not read do not stop the others.
const CONNECTION_WINDOW: u32 = 16 * STREAM_WINDOW;

/// Streams that only the server sends on: HTTP/3 needs three, and some servers add one that means nothing.
const UNIDIRECTIONAL: u32 = 8;

/// A connection over which nothing came for so long is lost; a sign of life is asked for often enough that
/// one or two may be lost themselves.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
const KEEP_ALIVE: Duration = Duration::from_secs(6);

/// How an endpoint tells that it wants nothing more: `H3_NO_ERROR` (RFC 9114, section 8.1), and what has no
/// number in `sluice/1`.
const NO_ERROR: (VarInt, VarInt) = (VarInt::from_u32(0x100), VarInt::from_u32(0));

/// Whom and how to ask.
#[derive(Clone, Copy)]
pub(super) struct To<'a> {
    pub(super) server: &'a Endpoint,
    pub(super) transport: Transport,
    pub(super) tls: &'a rustls::ClientConfig,
    /// For the handshake.
    pub(super) patience: Duration,
    /// What the server knows us by without a token.
    pub(super) key: Option<&'a HeaderValue>,
}

/// One connection, closed when the last holder drops it.
pub(super) struct Connection {
    endpoint: quinn::Endpoint,
    link: Link,
    secrets: Arc<ConnectionSecrets>,
    handshake: watch::Receiver<Handshake>,
    deadline: Instant,
    _tasks: JoinSet<()>,
}

/// What speaks on a connection.
#[derive(Clone)]
pub(super) struct Link {
    quic: quinn::Connection,
    http3: Option<http3::Sender>,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handshake {
    /// Requests go as early data.
    Running,
    /// It has ended, in one round trip.
    Full,
    /// It has ended, and early data was taken.
    Early,
    /// It has ended; what was sent before is lost and was never read.
    Rejected,
    /// It never will.
    Lost,
}

/// Why there is no connection.
pub(super) enum Fault {
    /// Nothing comes back over UDP.
    Blocked,
    /// The same, but a request may have got there that must not be sent twice.
    Unanswered,
    Failed(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Connects, to the first address of each family at once. With `early`, to that address, and without
/// waiting for the handshake if there is a session to resume.
pub(super) async fn connect(to: To<'_>, early: Option<SocketAddr>) -> Result<Connection, Fault> {
    let addresses = match early {
        Some(address) => vec![address],
        None => resolve(to.server).await?,
    };
    let deadline = Instant::now() + to.patience;
    let mut attempts = JoinSet::new();
    for address in addresses {
        let (server, config) = (to.server.clone(), to.tls.clone());
        let transport = to.transport;
        attempts.spawn(async move {
            attempt(
                &server,
                address,
                transport,
                config,
                early.is_some(),
                deadline,
            )
            .await
        });
    }
    let mut fault = Fault::Blocked;
    while let Ok(Some(ended)) = timeout_at(deadline, attempts.join_next()).await {
        match ended {
            Ok(Ok(connection)) => return Ok(connection),
            // A server that answers says more than silence does.
            Ok(Err(why)) => {
                if matches!(fault, Fault::Blocked) {
                    fault = why;
                }
            }
            Err(error) => fault = Fault::Failed(Error::quic(error)),
        }
    }
    Err(fault)
}

/// The first address of each family.
async fn resolve(server: &Endpoint) -> Result<Vec<SocketAddr>, Error> {
    let found = tokio::net::lookup_host((server.host(), server.port())).await;
    let failed = |source| Error::Connect {
        authority: server.authority().to_owned(),
        source,
    };
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in found.map_err(failed)? {
        if addresses.iter().all(|a| a.is_ipv4() != address.is_ipv4()) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(failed(io::ErrorKind::NotFound.into()));
    }
    Ok(addresses)
}

async fn attempt(
    server: &Endpoint,
    address: SocketAddr,
    transport: Transport,
    mut config: rustls::ClientConfig,
    is_early: bool,
    deadline: Instant,
) -> Result<Connection, Fault> {
    let secrets = Arc::new(ConnectionSecrets::default());
    config.key_log = secrets.clone();
    config.enable_early_data = is_early;
    let is_http3 = transport == Transport::Http3;
    config.alpn_protocols = vec![if is_http3 {
        b"h3".to_vec()
    } else {
        ALPN.to_vec()
    }];
    let crypto = QuicClientConfig::try_from(config).map_err(|e| Error::Tls(e.into()))?;
    let mut client = quinn::ClientConfig::new(Arc::new(crypto));
    client.transport_config(Arc::new(parameters()));

    // What cannot even be sent does not get through either.
    let socket = socket(address).map_err(|_| Fault::Blocked)?;
    let runtime = Arc::new(TokioRuntime);
    let endpoint = quinn::Endpoint::new(EndpointConfig::default(), None, socket, runtime)
        .map_err(|_| Fault::Blocked)?;
    let connecting = endpoint
        .connect_with(client, address, server.host())
        .map_err(|_| Fault::Blocked)?;

    let mut tasks = JoinSet::new();
    let (ended, handshake) = watch::channel(Handshake::Running);
    let quic = match connecting.into_0rtt() {
        Ok((quic, accepted)) => {
            let (quic_of_task, secrets) = (quic.clone(), secrets.clone());
            tasks.spawn(async move {
                let accepted = accepted.await;
                ended.send_replace(if quic_of_task.close_reason().is_some() {
                    Handshake::Lost
                } else {
                    finish(&quic_of_task, &secrets);
                    if accepted {
                        Handshake::Early
                    } else {
                        Handshake::Rejected
                    }
                });
            });
            quic
        }
        Err(connecting) => {
            let quic = connecting
                .await
                .map_err(|error| refused(server, transport, error))?;
            finish(&quic, &secrets);
            ended.send_replace(Handshake::Full);
            quic
        }
    };
    let http3 = if is_http3 {
        let (sender, driver) = http3::open(quic.clone()).await?;
        tasks.spawn(driver);
        Some(sender)
    } else {
        None
    };
    Ok(Connection {
        endpoint,
        link: Link { quic, http3 },
        secrets,
        handshake,
        deadline,
        _tasks: tasks,
    })
}

/// Derives the key of the whole handshake.
fn finish(quic: &quinn::Connection, secrets: &ConnectionSecrets) {
    let _ = secrets
        .finish(&|out, label, context| quic.export_keying_material(out, label, context).is_ok());
}

fn parameters() -> TransportConfig {
    let mut parameters = TransportConfig::default();
    parameters
        .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(UNIDIRECTIONAL.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .datagram_receive_buffer_size(None);
    parameters
}

/// A socket that reaches this address from wherever the machine is.
fn socket(peer: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if peer.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    UdpSocket::bind((any, 0))
}

/// What a failed handshake means.
fn refused(server: &Endpoint, transport: Transport, error: ConnectionError) -> Fault {
    /// TLS alerts as QUIC has them (RFC 9001, section 4.8).
    const ALERTS: u64 = 0x100;
    /// RFC 7301, section 3.2.
    const NO_APPLICATION_PROTOCOL: u8 = 120;
    let code = match &error {
        ConnectionError::TransportError(error) => u64::from(error.code),
        ConnectionError::ConnectionClosed(close) => u64::from(close.error_code),
        ConnectionError::TimedOut | ConnectionError::Reset => return Fault::Blocked,
        _ => 0,
    };
    let alert = code
        .checked_sub(ALERTS)
        .and_then(|alert| u8::try_from(alert).ok());
    Fault::Failed(match alert {
        Some(NO_APPLICATION_PROTOCOL) => Error::NotSpoken {
            authority: server.authority().to_owned(),
            protocol: transport.name(),
        },
        Some(alert) if tls::is_about_certificate(alert) => tls::untrusted(server, error.into()),
        _ => Error::Connect {
            authority: server.authority().to_owned(),
            source: io::Error::other(error),
        },
    })
}

impl Connection {
    /// Whether requests can still be sent on it, as far as is known.
    pub(super) fn is_open(&self) -> bool {
        let is_usable = match self.state() {
            Handshake::Running | Handshake::Full | Handshake::Early => true,
            // HTTP/3 has lost its control stream with the early data (RFC 9114, section 6.2.1).
            Handshake::Rejected => self.link.http3.is_none(),
            Handshake::Lost => false,
        };
        is_usable && self.link.quic.close_reason().is_none()
    }

    /// How far it is now.
    pub(super) fn state(&self) -> Handshake {
        *self.handshake.borrow()
    }

    /// Waits for the end of the handshake.
    pub(super) async fn established(&self) -> Handshake {
        let mut handshake = self.handshake.clone();
        let ended = handshake
            .wait_for(|state| *state != Handshake::Running)
            .await;
        ended.map_or(Handshake::Lost, |state| *state)
    }

    /// Ends when nothing comes back: the handshake has had its time and still runs, or the connection was given up
    /// for silence before that. Never otherwise.
    pub(super) async fn overdue(&self) {
        let ended = timeout_at(self.deadline, self.established()).await;
        if ended.is_ok() && !self.is_silent() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether it was given up in its handshake because nothing came back.
    pub(super) fn is_silent(&self) -> bool {
        let closed = self.link.quic.close_reason();
        self.state() == Handshake::Lost
            && matches!(
                closed,
                Some(ConnectionError::TimedOut | ConnectionError::Reset)
            )
    }

    /// The key to prove requests with.
    pub(super) fn key(&self) -> Option<&Key> {
        self.secrets.full().or_else(|| self.secrets.early())
    }

    pub(super) fn peer(&self) -> SocketAddr {
        self.link.quic.remote_address()
    }

    /// Sends a request and waits for the head of its answer.
    pub(super) async fn send(
        self: &Arc<Self>,
        server: &Endpoint,
        request: &Request,
    ) -> Result<Answer, Unsent> {
        let connection = Arc::clone(self);
        let (status, headers, body) = if let Some(http3) = &self.link.http3 {
            let (status, headers, body) = http3.send(server, request).await?;
            let body = exchange::Body::Http3 {
                body: Box::new(body),
                _connection: connection,
            };
            (status, headers, body)
        } else {
            let sent = sluice::send(&self.link.quic, request).await;
            let (status, headers, body) = sent.map_err(Unsent::Failed)?;
            let body = exchange::Body::Sluice {
                body,
                _connection: connection,
            };
            (status, headers, body)
        };
        Ok(Answer {
            status,
            headers,
            body,
        })
    }

    /// Goes on from a new socket, as a host with a new address would.
    pub(super) fn rebind(&self) -> io::Result<()> {
        self.endpoint.rebind(socket(self.peer())?)
    }

    /// Closes it and waits, for a moment, until the server has been told.
    pub(super) async fn close(&self) {
        const LOOKS: u32 = 50;
        self.say_goodbye();
        for _ in 0..LOOKS {
            if self.link.quic.stats().frame_tx.connection_close > 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn say_goodbye(&self) {
        let code = if self.link.http3.is_some() {
            NO_ERROR.0
        } else {
            NO_ERROR.1
        };
        self.link.quic.close(code, b"");
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.say_goodbye();
    }
}
