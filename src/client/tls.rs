//! TLS on the client's side: whom to trust, and what to say when somebody is not.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{self, CryptoProvider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

use super::{Endpoint, Error, Options};

/// Sessions that are kept to be resumed: a few for each of the connections that one server gets at once.
/// They end with the client, since rustls cannot write them down.
const SESSIONS: usize = 32;

/// What every connection's configuration is a copy of; the copies of each share one store of sessions.
#[derive(Debug)]
pub(super) struct Configs {
    pub(super) tcp: ClientConfig,
    /// Apart, because sessions of TCP and of QUIC cannot resume each other.
    pub(super) quic: ClientConfig,
}

impl Configs {
    /// Reads the system's certificates, which are some hundred files.
    pub(super) fn new(options: &Options) -> Result<Self, Error> {
        let tcp = config(options)?;
        let mut quic = tcp.clone();
        quic.resumption = sessions();
        Ok(Self { tcp, quic })
    }
}

fn config(options: &Options) -> Result<ClientConfig, Error> {
    let provider = Arc::new(crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Tls(error.into()))?;
    let mut config = if options.insecure {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth()
    } else {
        builder
            .with_root_certificates(roots(&options.certificates)?)
            .with_no_client_auth()
    };
    config.resumption = sessions();
    Ok(config)
}

fn sessions() -> Resumption {
    Resumption::in_memory_sessions(SESSIONS)
}

fn roots(certificates: &[CertificateDer<'static>]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots
            .add(certificate.clone())
            .map_err(|error| Error::Tls(error.into()))?;
    }
    // Systems carry certificates that are malformed or too old to be used; those are passed over.
    let native = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(native.certs);
    match native.errors.into_iter().next() {
        Some(error) if roots.is_empty() => Err(Error::Tls(error.into())),
        _ => Ok(roots),
    }
}

/// The name that the server's certificate must be for.
pub(super) fn name(endpoint: &Endpoint) -> Result<ServerName<'static>, Error> {
    ServerName::try_from(endpoint.host().to_owned()).map_err(|error| Error::Tls(error.into()))
}

/// What became of a handshake over TCP.
pub(super) fn failed(endpoint: &Endpoint, error: io::Error) -> Error {
    let cause = error.get_ref().and_then(|e| e.downcast_ref());
    match cause {
        Some(rustls::Error::InvalidCertificate(_)) => untrusted(endpoint, error.into()),
        _ => Error::Connect {
            authority: endpoint.authority().to_owned(),
            source: error,
        },
    }
}

/// The error for a certificate that is not trusted.
pub(super) fn untrusted(endpoint: &Endpoint, source: Box<dyn StdError + Send + Sync>) -> Error {
    Error::Certificate {
        authority: endpoint.authority().to_owned(),
        is_local: endpoint.is_loopback(),
        source,
    }
}

/// Whether an alert speaks of the peer's certificate: what a QUIC connection tells of that error.
pub(super) fn is_about_certificate(alert: u8) -> bool {
    matches!(
        AlertDescription::from(alert),
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
    )
}

/// Takes any certificate, and makes sure only that the peer has its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
