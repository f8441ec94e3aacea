//! QUIC: one UDP endpoint for each address, and the life of a connection up to its protocol.
//!
//! ```text
//!  first datagram
//!      |  a place, a handshake's place, an address that is proved when many are not
//!      v
//!  ClientHello         a TLS configuration of this connection's own
//!      |  ALPN
//!      v
//!  HTTP/3, sluice/1    streams go to the router while the handshake still runs; `early` judges them there
//!      |
//!      v
//!  GOAWAY, last answers acknowledged, closed
//! ```
//!
//! quinn's own tasks, one for the socket and one for each connection, end by themselves with the last
//! connection and the endpoint.

mod budget;
pub mod config;
mod h3;
mod parameters;
mod priority;
mod shared;
mod sluice;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use axum::http::HeaderValue;
use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn::{Endpoint, EndpointConfig, Incoming, TokioRuntime, TransportConfig, VarInt};
use rustls::pki_types::CertificateDer;
use socket2::{Domain, Protocol as IpProtocol, Socket, Type};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use self::shared::Shared;
use super::early::Handshake;
use super::guard::Requests;
use super::listen::Serving;
use super::tls::{self, Tls, TlsError};
use crate::auth::Session;
use crate::telemetry::{self, QuicCounts, Traffic, Transport};
use crate::wire;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// What the kernel keeps of what all connections receive and send, if it lets us: one socket carries
/// them all, and what does not fit is lost.
const SOCKET_BUFFER: usize = 2 << 20;

/// "No error" for connections that speak no protocol yet (RFC 9000, section 20.2, has none for an
/// application's).
const NO_ERROR: VarInt = VarInt::from_u32(0);

/// What a client may ask to speak (RFC 7301), with what serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http3,
    Sluice,
}

/// In our order of preference.
const PROTOCOLS: [(&[u8], Protocol); 2] = [
    (b"h3", Protocol::Http3),
    (wire::sluice::ALPN, Protocol::Sluice),
];

/// Fields about one connection, which have no meaning here (RFC 9114, section 4.2).
const OF_A_CONNECTION: [&str; 5] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
    "upgrade",
];

/// What all QUIC connections share.
pub struct Quic {
    serving: Arc<Serving>,
    settings: config::Quic,
    tls: Arc<Tls>,
    /// What the configurations of connections are copies of.
    crypto: rustls::ServerConfig,
    transport: Arc<TransportConfig>,
    handshakes: Arc<Semaphore>,
    unproved: Arc<Semaphore>,
}

impl Quic {
    /// The same router, places and end as the TCP listeners that share `serving`.
    ///
    /// # Errors
    /// A defect in how we call rustls.
    pub fn new(
        serving: Arc<Serving>,
        settings: config::Quic,
        tls: Arc<Tls>,
    ) -> Result<Arc<Self>, TlsError> {
        let handshakes = usize::try_from(settings.max_handshakes.get()).unwrap_or(usize::MAX);
        let unproved = usize::try_from(settings.retry_above).unwrap_or(usize::MAX);
        Ok(Arc::new(Self {
            crypto: tls.quic(&PROTOCOLS.map(|(name, _)| name))?,
            transport: parameters::transport(&settings, serving.send_budget),
            handshakes: Arc::new(Semaphore::new(handshakes.min(Semaphore::MAX_PERMITS))),
            unproved: Arc::new(Semaphore::new(unproved.min(Semaphore::MAX_PERMITS))),
            serving,
            settings,
            tls,
        }))
    }

    /// An endpoint on this socket, for [`accept`].
    ///
    /// # Errors
    /// The socket cannot be used.
    pub fn endpoint(&self, socket: UdpSocket) -> io::Result<Endpoint> {
        let runtime = Arc::new(TokioRuntime);
        let (_, server) = self.for_connection().map_err(io::Error::other)?;
        Endpoint::new(EndpointConfig::default(), Some(server), socket, runtime)
    }

    /// The configuration of one connection, with a TLS configuration that nobody else has: what is
    /// derived from a connection's keys hangs on it.
    fn for_connection(&self) -> Result<(Arc<Session>, quinn::ServerConfig), Error> {
        let session = self.tls.session()?;
        let crypto = Arc::new(QuicServerConfig::try_from(session.apply(&self.crypto))?);
        let transport = self.transport.clone();
        Ok((
            session,
            parameters::server(&self.settings, transport, crypto),
        ))
    }

    /// Finds a place for a connection; `None` when it was answered otherwise.
    fn admit(&self, incoming: Incoming) -> Option<(Incoming, Admission)> {
        let unproved = if incoming.remote_address_validated() {
            None
        } else if let Ok(permit) = self.unproved.clone().try_acquire_owned() {
            Some(permit)
        } else {
            if let Err(error) = incoming.retry() {
                error.into_incoming().refuse();
            }
            return None;
        };
        let place = self.serving.places.clone().try_acquire_owned();
        let handshake = self.handshakes.clone().try_acquire_owned();
        if let (Ok(place), Ok(handshake)) = (place, handshake) {
            let handshake = (handshake, unproved);
            return Some((incoming, Admission { place, handshake }));
        }
        incoming.refuse();
        None
    }
}

/// A connection's places.
struct Admission {
    /// Until it ends.
    place: OwnedSemaphorePermit,
    /// Until its handshake ends.
    handshake: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
}

/// Binds a UDP address, IPv6 apart from IPv4 as the TCP listeners do.
///
/// # Errors
/// As the system says: in use, not permitted, no such address.
pub fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::DGRAM, Some(IpProtocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // What the system allows is enough to begin with.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// The `Alt-Svc` field (RFC 7838) that sends clients of a TCP port to the same port of QUIC.
#[must_use]
pub fn alt_svc(port: u16, settings: &config::Quic) -> HeaderValue {
    let seconds = settings.alt_svc_max_age.as_secs();
    let text = if seconds == 0 || !settings.enabled {
        "clear".to_owned()
    } else {
        format!("h3=\":{port}\"; ma={seconds}")
    };
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("clear"))
}

/// Accepts until told to stop. Connections run on until [`super::listen::Closing`] ends them.
pub async fn accept(endpoint: Endpoint, quic: Arc<Quic>) {
    let closing = &quic.serving.closing;
    loop {
        let incoming = tokio::select! {
            biased;
            () = closing.graceful.cancelled() => break,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else {
            // quinn gives an endpoint up when its socket fails, and says why in its own log line.
            tracing::error!("the QUIC endpoint has failed; HTTP/3 is no longer served");
            return;
        };
        let peer = incoming.remote_address();
        let Some((incoming, admission)) = quic.admit(incoming) else {
            tracing::debug!(%peer, "a connection was refused, or must prove its address");
            continue;
        };
        let quic = quic.clone();
        closing.tracker.spawn(async move {
            let Admission { place, handshake } = admission;
            let serving = quic.serving.clone();
            let _counted = serving
                .metrics
                .as_ref()
                .map(|metrics| metrics.transports.connection_opened());
            tokio::select! {
                biased;
                // Dropping it closes it.
                () = serving.closing.now.cancelled() => {}
                result = connection(incoming, handshake, quic) => {
                    if let Err(error) = result {
                        tracing::debug!(%peer, %error, "connection ended");
                    }
                }
            }
            drop(place);
        });
    }
    endpoint.set_server_config(None);
}

async fn connection(
    incoming: Incoming,
    place_of_handshake: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
    quic: Arc<Quic>,
) -> Result<(), Error> {
    let began = Instant::now();
    let deadline = began + quic.tls.handshake_timeout();
    let peer = incoming.remote_address();
    let (session, config) = quic.for_connection()?;
    let accepted = incoming.accept_with(Arc::new(config));
    let mut connecting = accepted.inspect_err(|_| quic.tls.ended(telemetry::Handshake::Failed))?;
    let protocol = {
        let hello = timeout_at(deadline, connecting.handshake_data());
        let graceful = &quic.serving.closing.graceful;
        let Some(data) = graceful.run_until_cancelled(hello).await else {
            return Ok(());
        };
        let Ok(data) = data else {
            quic.tls.ended(telemetry::Handshake::TimedOut);
            return Err("no whole ClientHello came".into());
        };
        data.ok().and_then(|data| protocol(&*data))
    };
    // `into_0rtt` never fails on a server. The value of `ended` means nothing there; that it comes does.
    let (Some(protocol), Ok((connection, ended))) = (protocol, connecting.into_0rtt()) else {
        quic.tls.ended(telemetry::Handshake::Failed);
        return Err("no protocol was agreed on".into());
    };
    tls::tell_of_replay(&session, peer);
    let (end, handshake) = Handshake::begin();
    let handshaking = {
        let (connection, session) = (connection.clone(), session.clone());
        let tls = quic.tls.clone();
        async move {
            let in_time = timeout_at(deadline, ended).await.is_ok();
            if !has_finished(&connection) {
                tls.ended(if in_time {
                    telemetry::Handshake::Failed
                } else {
                    telemetry::Handshake::TimedOut
                });
                connection.close(NO_ERROR, b"no handshake");
                return "the handshake did not end";
            }
            tls.done(began.elapsed(), true);
            // Whoever is told that it has ended finds the key there.
            session.secrets().finish(&|out, label, context| {
                connection
                    .export_keying_material(out, label, context)
                    .is_ok()
            });
            end.finished(identity(&connection));
            drop(place_of_handshake);
            std::future::pending().await
        }
    };
    let serving = &quic.serving;
    let transport = match protocol {
        Protocol::Http3 => Transport::Http3,
        Protocol::Sluice => Transport::Sluice,
    };
    let traffic = serving.traffic(transport);
    let _speaking = traffic.as_ref().map(Traffic::connection);
    let _watched = serving.metrics.as_ref().map(|metrics| {
        let connection = connection.clone();
        let look = move || counts(&connection.stats());
        metrics.transports.watch_quic(transport, look)
    });
    let requests = Requests::new(transport, traffic);
    let leave = async {
        tokio::select! {
            () = serving.closing.graceful.cancelled() => {}
            () = requests.until_idle(serving.settings.idle_timeout) => {}
        }
    };
    let shared = Shared::new(connection.clone(), session, handshake, quic.clone());
    let served = async {
        match protocol {
            Protocol::Http3 => h3::serve(shared, &requests, leave).await,
            Protocol::Sluice => sluice::serve(shared, &requests, leave).await,
        }
    };
    tokio::select! {
        error = handshaking => Err(error.into()),
        served = served => served,
    }
}

/// What was agreed on; `None` for a client that asked for nothing.
fn protocol(data: &dyn std::any::Any) -> Option<Protocol> {
    let name = data.downcast_ref::<HandshakeData>()?.protocol.as_deref()?;
    let mut known = PROTOCOLS.iter();
    known
        .find(|(known, _)| *known == name)
        .map(|&(_, protocol)| protocol)
}

fn counts(stats: &quinn::ConnectionStats) -> QuicCounts {
    QuicCounts {
        bytes_in: stats.udp_rx.bytes,
        bytes_out: stats.udp_tx.bytes,
        datagrams_in: stats.udp_rx.datagrams,
        datagrams_out: stats.udp_tx.datagrams,
        packets_sent: stats.path.sent_packets,
        packets_lost: stats.path.lost_packets,
        acks_in: stats.frame_rx.acks,
        acks_out: stats.frame_tx.acks,
        congestion_events: stats.path.congestion_events,
        path_challenges: stats.frame_tx.path_challenge,
    }
}

/// Who the client's certificate says that it is.
fn identity(connection: &quinn::Connection) -> Option<Arc<str>> {
    let chain = connection.peer_identity()?;
    let chain = chain.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    tls::identity_of(&chain)
}

/// Whether the peer's Finished was seen: only then is there anything to export.
fn has_finished(connection: &quinn::Connection) -> bool {
    let mut out = [0; 32];
    connection
        .export_keying_material(&mut out, b"EXPORTER-sluicegate-finished", b"")
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn alt_svc_names_the_port_for_a_while_or_takes_it_back() {
        let mut settings = config::Quic::default();
        assert_eq!(alt_svc(8443, &settings), "h3=\":8443\"; ma=300");
        settings.alt_svc_max_age = Duration::ZERO;
        assert_eq!(alt_svc(8443, &settings), "clear");
    }

    #[test]
    fn both_families_may_have_the_same_port() {
        let four = bind("0.0.0.0:0".parse().unwrap()).unwrap();
        let port = four.local_addr().unwrap().port();
        if let Ok(six) = Socket::new(Domain::IPV6, Type::DGRAM, None) {
            drop(six);
            let six = bind(SocketAddr::new("::".parse().unwrap(), port)).unwrap();
            assert_eq!(six.local_addr().unwrap().port(), port);
        }
    }
}
