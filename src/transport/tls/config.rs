//! `[tls]`: certificates, and the listeners that need one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::super::config::addresses;
use super::certificates;
use crate::gateway::settings::timeout;
use crate::generation::chain;

/// `[tls]`: the listener for TLS over TCP and, on the same port, QUIC over UDP.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Where to listen: one address or a list; never empty. Port 0 takes any free port.
    #[serde(deserialize_with = "addresses")]
    pub listen: Vec<SocketAddr>,
    /// The certificate chain, leaf first, as PEM. Goes with `key`.
    pub cert: Option<PathBuf>,
    /// The private key of the leaf, as PEM.
    pub key: Option<PathBuf>,
    /// Without `cert`: make a certificate for loopback names and keep it in the state directory.
    pub self_signed: bool,
    /// Certificates of those who sign clients' certificates, as PEM; absent: none is asked for.
    pub client_ca: Option<PathBuf>,
    /// Whether a client may do without a certificate. Only with `client_ca`.
    pub client_auth: ClientAuth,
    /// From a connection's first byte to the end of its handshake.
    #[serde(deserialize_with = "timeout")]
    pub handshake_timeout: Duration,
    /// Handshakes that compute at once: each takes about a millisecond of a core, which streams may need;
    /// more wait, within their time.
    pub max_handshakes: NonZeroU32,
}

/// What is asked of a client where `client_ca` is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// A certificate is an identity; none is none.
    #[default]
    Optional,
    /// No certificate, no connection.
    Required,
}

/// Where the certificate comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source<'a> {
    Files { cert: &'a Path, key: &'a Path },
    SelfSigned,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8443)],
            cert: None,
            key: None,
            self_signed: true,
            client_ca: None,
            client_auth: ClientAuth::Optional,
            handshake_timeout: Duration::from_secs(10),
            max_handshakes: const { NonZeroU32::new(2).unwrap() },
        }
    }
}

impl Tls {
    /// Whether the listener is opened at all: there is a certificate, or one may be made.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.source().is_some()
    }

    pub(super) fn source(&self) -> Option<Source<'_>> {
        match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some(Source::Files { cert, key }),
            _ => self.self_signed.then_some(Source::SelfSigned),
        }
    }

    /// What is wrong with the section as a whole, each with the key at fault. Reads the files that it
    /// names, so that what is accepted here can be served.
    #[must_use]
    pub fn conflicts(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                if let Err(error) = certificates::load(cert, key) {
                    found.push((error.key(), chain(&error)));
                }
            }
            (Some(_), None) => found.push(("cert", "goes with tls.key, which is absent".into())),
            (None, Some(_)) => found.push(("key", "goes with tls.cert, which is absent".into())),
            (None, None) => {
                let public = self.listen.iter().find(|at| !at.ip().is_loopback());
                if let Some(public) = public.filter(|_| self.self_signed) {
                    found.push((
                        "listen",
                        format!(
                            "{public} is not loopback, where tls.self_signed is all that there is; \
                             set tls.cert and tls.key"
                        ),
                    ));
                }
            }
        }
        if let Some(Err(error)) = self.client_ca.as_deref().map(certificates::authorities) {
            found.push(("client_ca", chain(&error)));
        }
        if self.client_auth == ClientAuth::Required && self.client_ca.is_none() {
            found.push((
                "client_auth",
                "\"required\" needs tls.client_ca to judge by".into(),
            ));
        }
        found
    }
}
