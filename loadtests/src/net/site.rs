//! A server that streams are opened to: where it is, what it is called, and what every request to it says.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;

use super::request::{EVENTS, HOST, JSON, PATH};
use crate::target::Target;

/// A server.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Its name in its certificate.
    pub(super) name: String,
    /// Who may have signed that.
    pub(super) roots: Arc<RootCertStore>,
    head: String,
}

impl Site {
    /// The gateway on this machine, whose certificate is known where it has one.
    ///
    /// # Errors
    /// The certificate is none.
    pub(crate) fn of_gateway(
        address: SocketAddr,
        certificate: Option<&CertificateDer<'static>>,
    ) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        if let Some(certificate) = certificate {
            roots.add(certificate.clone())?;
        }
        Ok(Self {
            address,
            name: HOST.to_owned(),
            roots: Arc::new(roots),
            head: head("", HOST, None),
        })
    }

    /// Any server that speaks HTTP/1.1, with the key that it asks for. Certificates are those that the system
    /// trusts.
    ///
    /// # Errors
    /// The system has no certificates, where they are needed.
    pub(crate) fn of_target(target: &Target, key: Option<&str>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        if target.is_secure {
            let (found, _) =
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            (found > 0)
                .then_some(())
                .context("the system has no trusted certificates (SSL_CERT_FILE names a file)")?;
        }
        Ok(Self {
            address: target.address,
            name: target.host().to_owned(),
            roots: Arc::new(roots),
            head: head(&target.base, &target.authority, key),
        })
    }

    /// Every line of a request's head over HTTP/1.1 but the last one, which tells the length.
    pub(super) fn head(&self) -> &str {
        &self.head
    }
}

fn head(base: &str, authority: &str, key: Option<&str>) -> String {
    let key = key.map_or(String::new(), |key| {
        format!("authorization: Bearer {key}\r\n")
    });
    format!(
        "POST {base}{PATH} HTTP/1.1\r\nhost: {authority}\r\n{key}accept: {EVENTS}\r\n\
         content-type: {JSON}\r\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_base_the_host_and_the_key() {
        let target = Target::parse("http://127.0.0.1:9/api/v1").unwrap();
        let site = Site::of_target(&target, Some("k")).unwrap();
        let expected = "POST /api/v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:9\r\n\
                        authorization: Bearer k\r\naccept: text/event-stream\r\n\
                        content-type: application/json\r\n";
        assert_eq!(site.head(), expected);
        let gateway = Site::of_gateway(target.address, None).unwrap();
        assert!(gateway.head().contains("\r\nhost: localhost\r\naccept:"));
    }
}
