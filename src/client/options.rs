//! How a client reaches its server.

use std::time::Duration;

use rustls::pki_types::CertificateDer;

use super::ApiKey;

/// What to speak to the server. Everything that a client can ask is the same over each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Transport {
    /// HTTP/1.1, with a connection for each request; over TLS with an `https` URL.
    #[default]
    Http1,
    /// HTTP/2, by prior knowledge in clear text (RFC 9113, section 3.3) or by ALPN over TLS.
    Http2,
    /// HTTP/3, with HTTP/2 over TLS where UDP does not get through.
    Http3,
    /// `sluice/1`, this project's own protocol on QUIC, with the same way out.
    Quic,
}

impl Transport {
    /// Whether it is on QUIC, and so always encrypted.
    #[must_use]
    pub fn is_quic(self) -> bool {
        matches!(self, Self::Http3 | Self::Quic)
    }

    /// Its usual name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
            Self::Http3 => "HTTP/3",
            Self::Quic => "sluice/1",
        }
    }
}

/// What may be chosen about a [`super::Client`]. A [`Transport`] alone leaves everything else as it is here.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to speak.
    pub transport: Transport,
    /// Who asks, for servers that want to know: sent with every request.
    pub api_key: Option<ApiKey>,
    /// Whether any certificate is taken for the server's. Then TLS keeps nobody out who can put himself
    /// between: for a server on this machine, and for tests.
    pub insecure: bool,
    /// Certificates to trust beside those that the system trusts: of authorities, or the server's own.
    pub certificates: Vec<CertificateDer<'static>>,
    /// Whether a stream whose connection is lost is picked up behind its last event, where the server
    /// keeps streams (`stream.resume` in this project's gateway).
    pub resume: bool,
    /// How long the handshake of a QUIC connection may take before UDP counts as blocked and HTTP/2 is
    /// spoken instead, for as long as the client lives.
    pub quic_patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            transport: Transport::default(),
            api_key: None,
            insecure: false,
            certificates: Vec::new(),
            resume: false,
            // HTTP/2 is spoken within 300 ms where a server is near. More than a round trip around the globe.
            quic_patience: Duration::from_millis(280),
        }
    }
}

impl From<Transport> for Options {
    fn from(transport: Transport) -> Self {
        Self {
            transport,
            ..Self::default()
        }
    }
}
