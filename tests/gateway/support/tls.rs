//! Certificates for loopback, and clients that trust them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::within;

/// A folder with a certificate for loopback, as `cert.pem` and `key.pem`.
pub(crate) struct Certified {
    folder: TempDir,
}

impl Certified {
    pub(crate) fn new() -> Self {
        let certified = Self {
            folder: tempfile::tempdir().expect("a folder"),
        };
        certified.renew();
        certified
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces both files by a new pair; returns the new certificate.
    pub(crate) fn renew(&self) -> CertificateDer<'static> {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
        let certificate = params.self_signed(&key).expect("a certificate");
        replace(&self.path("key.pem"), &key.serialize_pem());
        replace(&self.path("cert.pem"), &certificate.pem());
        certificate.der().clone()
    }

    pub(crate) fn section(&self) -> String {
        let (cert, key) = (self.path("cert.pem"), self.path("key.pem"));
        let (cert, key) = (cert.display(), key.display());
        format!("[tls]\ncert = '{cert}'\nkey = '{key}'")
    }

    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        read_certificate(&self.path("cert.pem"))
    }

    /// A client that trusts what is there now.
    pub(crate) fn client(&self) -> ClientConfig {
        trusting(self.certificate()).with_no_client_auth()
    }
}

/// As tools that renew certificates do: a new file, then a rename.
pub(crate) fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("it can be written");
    std::fs::rename(&new, path).expect("it can be renamed");
}

pub(crate) fn read_certificate(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).expect("a certificate")
}

/// A client that trusts this certificate.
pub(crate) fn trusting(
    certificate: CertificateDer<'static>,
) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("it is one");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(roots)
}

/// Shakes hands over TCP, offering these protocols.
pub(crate) async fn connect(
    address: SocketAddr,
    config: ClientConfig,
    protocols: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    secure(TcpStream::connect(address).await?, config, protocols).await
}

/// The same on a connected socket.
pub(crate) async fn secure(
    socket: TcpStream,
    mut config: ClientConfig,
    protocols: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let names = protocols.iter().map(|name| name.as_bytes().to_vec());
    config.alpn_protocols = names.collect();
    let name = ServerName::try_from("localhost").expect("a name");
    within(TlsConnector::from(Arc::new(config)).connect(name, socket)).await
}
