//! TLS (RFC 8446): which certificate is shown, which protocols are offered, who the peer is.
//!
//! One certificate and one provider of cryptography serve TCP and QUIC. A handshake costs about a
//! millisecond of a core, so only so many compute at once, and each has only so much time.

mod certificates;
pub mod config;
mod identity;
mod self_signed;
mod watch;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{Acceptor, WebPkiClientVerifier};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use self::certificates::{CertificateError, Certificates, authorities, load, provider};
use self::config::{ClientAuth, Source};
use crate::auth::files::Files;
use crate::auth::{Gate, Session};
use crate::telemetry::{Handshake, Metrics};

pub(super) use self::identity::identity_of;

/// Protocols over TCP, best first (RFC 7301).
const TCP_PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Bytes that rustls encrypts ahead of the socket for one connection. Its own bound of 64 KiB would
/// be as much again as a stream may have under way.
pub(super) const CIPHERTEXT_AHEAD: usize = 8 * 1024;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of certificates or keys.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The self-signed certificate could not be made.
    #[error("cannot make a self-signed certificate")]
    SelfSigned(#[source] io::Error),
    /// The authorities for clients cannot be used.
    #[error("tls.client_ca cannot be used")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// A defect in how we call rustls.
    #[error("TLS cannot be set up")]
    Setup(#[from] rustls::Error),
}

/// What every TLS connection of the process shares.
pub struct Tls {
    certificates: Arc<Certificates>,
    /// Those of the certificate, if it comes from files.
    files: Option<Files>,
    tcp: Arc<ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
    handshakes: Semaphore,
    settings: config::Tls,
    gate: Arc<Gate>,
    metrics: Option<Arc<Metrics>>,
}

impl Tls {
    /// Reads or makes the certificate; `None` where the section leaves TLS off. `state` is the directory
    /// for what outlives the process.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn build(
        settings: &config::Tls,
        state: Option<&Path>,
        gate: Arc<Gate>,
        metrics: Option<Arc<Metrics>>,
    ) -> Result<Option<Arc<Self>>, TlsError> {
        let Some(source) = settings.source() else {
            return Ok(None);
        };
        let (files, loaded) = match source {
            Source::Files { cert, key } => (Some(Files::new([cert, key])), load(cert, key)?),
            Source::SelfSigned => {
                let made = self_signed::certificate(state);
                (None, made.map_err(TlsError::SelfSigned)?)
            }
        };
        if let Some(metrics) = &metrics {
            metrics.transports.certificate_until(loaded.expires);
        }
        let certificates = Certificates::new(loaded.key);
        let verifier = verifier(settings)?;
        let mut tcp = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_client_cert_verifier(verifier.clone())
            .with_cert_resolver(certificates.clone());
        tcp.alpn_protocols = TCP_PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Ok(Some(Arc::new(Self {
            certificates,
            files,
            tcp: Arc::new(tcp),
            verifier,
            handshakes: Semaphore::new(
                usize::try_from(settings.max_handshakes.get()).unwrap_or(usize::MAX),
            ),
            settings: settings.clone(),
            gate,
            metrics,
        })))
    }

    /// The same certificate and the same judgement of clients for QUIC, which has TLS 1.3 only
    /// (RFC 9001, section 4.2).
    ///
    /// # Errors
    /// A defect in how we call rustls.
    pub fn quic(&self, protocols: &[&[u8]]) -> Result<ServerConfig, TlsError> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(self.verifier.clone())
            .with_cert_resolver(self.certificates.clone());
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        // QUIC knows none or all (RFC 9001, section 4.6.1); the flow windows bound it.
        config.max_early_data_size = u32::MAX;
        Ok(config)
    }

    /// Follows the certificate's files for as long as it is polled; ends at once where there are none.
    pub async fn follow(self: Arc<Self>) {
        let Some(files) = self.files.clone() else {
            return;
        };
        let renew = move || match self.settings.source() {
            Some(Source::Files { cert, key }) => {
                watch::renew(cert, key, &self.certificates, self.metrics.as_deref())
            }
            Some(Source::SelfSigned) | None => Ok(()),
        };
        files.follow(renew).await;
    }

    /// How long a handshake may take.
    pub(super) fn handshake_timeout(&self) -> Duration {
        self.settings.handshake_timeout
    }

    /// Counts a handshake that ended well.
    pub(super) fn done(&self, time: Duration, over_quic: bool) {
        self.ended(Handshake::Done);
        if let Some(metrics) = &self.metrics {
            metrics.transports.handshake_took(time, over_quic);
        }
    }

    /// Counts a handshake.
    pub(super) fn ended(&self, how: Handshake) {
        if let Some(metrics) = &self.metrics {
            metrics.transports.handshake(how);
        }
    }

    /// What one connection is accepted with, and no other.
    pub(super) fn session(&self) -> io::Result<Arc<Session>> {
        self.gate.session().map_err(io::Error::other)
    }

    /// Shakes hands over TCP.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
    ) -> io::Result<(TlsStream<TcpStream>, Arc<Session>)> {
        let began = Instant::now();
        let session = self.session()?;
        let shake = async {
            let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
            let config = Arc::new(session.apply(&self.tcp));
            // Only for as long as it computes: whoever says nothing more takes nobody's place.
            let place = self.handshakes.acquire().await;
            let shaking = hello.into_stream_with(config, |connection| {
                connection.set_buffer_limit(Some(CIPHERTEXT_AHEAD));
            });
            drop(place);
            shaking.await
        };
        let shaken = timeout(self.settings.handshake_timeout, shake).await;
        tell_of_replay(&session, peer);
        match shaken {
            Ok(Ok(stream)) => {
                self.done(began.elapsed(), false);
                let (_, tls) = stream.get_ref();
                session.secrets().finish(&|out, label, context| {
                    tls.export_keying_material(out, label, Some(context))
                        .is_ok()
                });
                Ok((stream, session))
            }
            Ok(Err(error)) => {
                self.ended(Handshake::Failed);
                Err(error)
            }
            Err(_) => {
                self.ended(Handshake::TimedOut);
                Err(io::ErrorKind::TimedOut.into())
            }
        }
    }
}

/// Once a connection: somebody shows a ticket that has opened a connection before.
pub(super) fn tell_of_replay(session: &Session, peer: SocketAddr) {
    if session.replayed() {
        tracing::warn!(
            %peer,
            "a TLS ticket was shown again; its early data, if there is any, is not taken"
        );
    }
}

fn verifier(settings: &config::Tls) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let Some(path) = &settings.client_ca else {
        return Ok(WebPkiClientVerifier::no_client_auth());
    };
    let roots = Arc::new(authorities(path)?);
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
    let builder = match settings.client_auth {
        ClientAuth::Optional => builder.allow_unauthenticated(),
        ClientAuth::Required => builder,
    };
    Ok(builder.build()?)
}
