//! What is renewed on disk is shown to the next handshake.

use std::path::Path;

use jiff::Timestamp;

use super::certificates::{CertificateError, Certificates, load};
use crate::generation::chain;
use crate::telemetry::Metrics;

/// Reads the pair again after a change, and shows it from now on if it is good and another one.
pub(super) fn renew(
    cert: &Path,
    key: &Path,
    certificates: &Certificates,
    metrics: Option<&Metrics>,
) -> Result<(), String> {
    let loaded = load(cert, key).and_then(|loaded| {
        if loaded.expires < Timestamp::now().as_second() {
            return Err(CertificateError::Expired(cert.to_owned()));
        }
        Ok(loaded)
    });
    match loaded {
        Ok(loaded) if loaded.key.cert == certificates.current().cert => Ok(()),
        Ok(loaded) => {
            certificates.swap(loaded.key);
            let until = Timestamp::from_second(loaded.expires).unwrap_or_default();
            tracing::info!(%until, "the certificate was replaced");
            if let Some(metrics) = metrics {
                metrics.transports.certificate_replaced(loaded.expires);
            }
            Ok(())
        }
        Err(error) => {
            if let Some(metrics) = metrics {
                metrics.transports.certificate_refused();
            }
            Err(chain(&error))
        }
    }
}
