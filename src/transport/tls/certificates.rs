//! The certificate that is shown to whoever connects: read from files, swapped under running
//! connections, replaced only by a good one.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A certificate file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Not readable, or not PEM.
    #[error("cannot read {path}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Whether it is the key's.
        is_key: bool,
        /// Why.
        source: pem::Error,
    },
    /// PEM, but no certificate in it.
    #[error("{0} holds no certificate")]
    Empty(PathBuf),
    /// A certificate that is no X.509.
    #[error("{0} is not a valid certificate")]
    Malformed(PathBuf),
    /// A key of a kind that TLS does not use, or that belongs to another certificate.
    #[error("the private key in {path} cannot be used")]
    Key {
        /// The key's file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// A certificate that cannot be an authority.
    #[error("{path} holds a certificate that is no authority")]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// Out of its time.
    #[error("{0} has expired")]
    Expired(PathBuf),
}

impl CertificateError {
    /// The key of `[tls]` that is at fault.
    pub(super) fn key(&self) -> &'static str {
        match self {
            Self::Key { .. } | Self::Unreadable { is_key: true, .. } => "key",
            _ => "cert",
        }
    }
}

/// A certificate with its key, and when it ends.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) key: Arc<CertifiedKey>,
    /// Seconds since 1970.
    pub(super) expires: i64,
}

/// The certificate in use. Handshakes read it, one watcher writes it.
#[derive(Debug)]
pub(super) struct Certificates {
    current: RwLock<Arc<CertifiedKey>>,
}

impl Certificates {
    pub(super) fn new(key: Arc<CertifiedKey>) -> Arc<Self> {
        Arc::new(Self {
            current: RwLock::new(key),
        })
    }

    /// What handshakes from now on show; those before it are not touched.
    pub(super) fn swap(&self, key: Arc<CertifiedKey>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = key;
    }

    pub(super) fn current(&self) -> Arc<CertifiedKey> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.clone()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

/// Reads a chain and the key of its leaf, and checks that they belong together.
pub(super) fn load(cert: &Path, key: &Path) -> Result<Loaded, CertificateError> {
    let chain = read_certificates(cert)?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|source| {
        let path = key.to_owned();
        CertificateError::Unreadable {
            path,
            is_key: true,
            source,
        }
    })?;
    certified(chain, private, cert, key)
}

/// Joins a chain and a key that were read from, or are to be written to, these files.
pub(super) fn certified(
    chain: Vec<CertificateDer<'static>>,
    private: PrivateKeyDer<'static>,
    cert: &Path,
    key: &Path,
) -> Result<Loaded, CertificateError> {
    let leaf = chain
        .first()
        .ok_or_else(|| CertificateError::Empty(cert.to_owned()))?;
    let (_, parsed) = X509Certificate::from_der(leaf)
        .map_err(|_| CertificateError::Malformed(cert.to_owned()))?;
    let expires = parsed.validity().not_after.timestamp();
    let unusable = |source| CertificateError::Key {
        path: key.to_owned(),
        source,
    };
    let signing = provider()
        .key_provider
        .load_private_key(private)
        .map_err(unusable)?;
    let certified = CertifiedKey::new(chain, signing);
    certified.keys_match().map_err(unusable)?;
    Ok(Loaded {
        key: Arc::new(certified),
        expires,
    })
}

/// Reads the authorities by which clients' certificates are judged.
pub(super) fn authorities(path: &Path) -> Result<RootCertStore, CertificateError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots
            .add(certificate)
            .map_err(|source| CertificateError::Authority {
                path: path.to_owned(),
                source,
            })?;
    }
    Ok(roots)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let unreadable = |source| CertificateError::Unreadable {
        path: path.to_owned(),
        is_key: false,
        source,
    };
    let list = CertificateDer::pem_file_iter(path)
        .map_err(unreadable)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(unreadable)?;
    if list.is_empty() {
        return Err(CertificateError::Empty(path.to_owned()));
    }
    Ok(list)
}

/// The one provider of cryptography, named where it is used so that no process-wide default is needed.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
