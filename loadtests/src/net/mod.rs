//! Streams from a server over each transport: connections, requests, and answers whose tokens are counted.
//!
//! A `dial`er makes connections to a `site` and opens a `stream` on one of them; below are what is said first
//! (`request`), `frames` of HTTP/3 and `sluice/1`, and `socket`s that count what goes through them.

mod dial;
mod frames;
mod request;
mod site;
mod socket;
mod stream;

pub(crate) use dial::{Connection, Dialer};
pub(crate) use request::body;
pub(crate) use site::Site;
pub(crate) use stream::Fault;

/// How streams reach the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Transport {
    /// HTTP/1.1, a connection for each stream.
    Http1,
    /// The same over TLS.
    Http1Tls,
    /// HTTP/2 by prior knowledge.
    Http2,
    /// HTTP/2 over TLS.
    Http2Tls,
    /// HTTP/3.
    Http3,
    /// Our own protocol on QUIC.
    Sluice,
}

impl Transport {
    /// All, in the order of reports.
    pub(crate) const ALL: [Self; 6] = [
        Self::Http1,
        Self::Http1Tls,
        Self::Http2,
        Self::Http2Tls,
        Self::Http3,
        Self::Sluice,
    ];

    /// For flags and reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http1 => "h1",
            Self::Http1Tls => "h1+tls",
            Self::Http2 => "h2",
            Self::Http2Tls => "h2+tls",
            Self::Http3 => "h3",
            Self::Sluice => "sluice/1",
        }
    }

    /// Its name in TLS.
    pub(crate) fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 | Self::Http1Tls => b"http/1.1",
            Self::Http2 | Self::Http2Tls => b"h2",
            Self::Http3 => b"h3",
            Self::Sluice => b"sluice/1",
        }
    }

    /// Whether it needs TLS.
    pub(crate) fn is_secure(self) -> bool {
        !matches!(self, Self::Http1 | Self::Http2)
    }

    /// Whether it is over UDP.
    pub(crate) fn is_quic(self) -> bool {
        matches!(self, Self::Http3 | Self::Sluice)
    }

    /// Whether a connection has many streams.
    pub(crate) fn is_multiplexed(self) -> bool {
        !matches!(self, Self::Http1 | Self::Http1Tls)
    }
}
