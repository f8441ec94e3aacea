//! Follows the certificate's files: what is renewed on disk is shown to the next handshake.
//!
//! The files are looked at instead of watched: it sees every way of replacing them (rename, symbolic
//! links that move, bind mounts, network file systems), and a few seconds are soon enough.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::certificates::{CertificateError, Certificates, Loaded, load};
use crate::generation::chain;
use crate::telemetry::Metrics;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The two files, and how they were when they were last read.
pub(super) struct Watched {
    cert: PathBuf,
    key: PathBuf,
    seen: [Option<Stamp>; 2],
}

/// What changes when a file is replaced or written: device, inode, size, and both of its times.
type Stamp = (u64, u64, u64, [i64; 4]);

impl Watched {
    pub(super) fn new(cert: &Path, key: &Path) -> Self {
        Self {
            seen: [stamp(cert), stamp(key)],
            cert: cert.to_owned(),
            key: key.to_owned(),
        }
    }

    /// The new pair, if the files have changed since the last look.
    fn look(&mut self) -> Option<Result<Loaded, CertificateError>> {
        let now = [stamp(&self.cert), stamp(&self.key)];
        if now == self.seen {
            return None;
        }
        // Two files are not replaced at once: a pair that does not match yet is read again when the
        // second one changes.
        self.seen = now;
        Some(load(&self.cert, &self.key).and_then(|loaded| {
            if loaded.expires < Timestamp::now().as_second() {
                return Err(CertificateError::Expired(self.cert.clone()));
            }
            Ok(loaded)
        }))
    }
}

/// Runs for as long as it is polled.
pub(super) async fn follow(
    mut watched: Watched,
    certificates: Arc<Certificates>,
    metrics: Option<Arc<Metrics>>,
) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        // A file system may hang; the runtime must not.
        let looked = tokio::task::spawn_blocking(move || {
            let found = watched.look();
            (watched, found)
        });
        let Ok((again, found)) = looked.await else {
            return;
        };
        watched = again;
        match found {
            None => {}
            Some(Ok(loaded)) if loaded.key.cert == certificates.current().cert => {}
            Some(Ok(loaded)) => {
                certificates.swap(loaded.key);
                let until = Timestamp::from_second(loaded.expires).unwrap_or_default();
                tracing::info!(%until, "the certificate was replaced");
                if let Some(metrics) = &metrics {
                    metrics.transports.certificate_replaced(loaded.expires);
                }
            }
            Some(Err(error)) => {
                let error = chain(&error);
                tracing::error!(error, "the new certificate is refused; the old one stays");
                if let Some(metrics) = &metrics {
                    metrics.transports.certificate_refused();
                }
            }
        }
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    let times = [
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
    ];
    Some((meta.dev(), meta.ino(), meta.len(), times))
}
