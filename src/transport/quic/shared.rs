//! What all requests of one connection share, whatever its protocol.

use std::sync::{Arc, OnceLock};

use axum::http::Extensions;
use rustls::pki_types::CertificateDer;

use super::Quic;
use super::handshake::Handshake;
use crate::transport::early::EarlyData;
use crate::transport::listen::Peer;
use crate::transport::pace::Pace;
use crate::transport::tls;

/// A connection as its requests see it.
pub(super) struct Shared {
    pub(super) connection: quinn::Connection,
    pub(super) handshake: Handshake,
    identity: OnceLock<Option<Arc<str>>>,
    pub(super) quic: Arc<Quic>,
}

impl Shared {
    pub(super) fn new(
        connection: quinn::Connection,
        handshake: Handshake,
        quic: Arc<Quic>,
    ) -> Arc<Self> {
        Arc::new(Self {
            connection,
            handshake,
            identity: OnceLock::new(),
            quic,
        })
    }

    /// Tells a request of its connection. To be called once the handshake has ended, or for a request that
    /// need not wait for that.
    pub(super) fn tell(&self, extensions: &mut Extensions, early: bool) {
        extensions.insert(Peer {
            address: self.connection.remote_address(),
            identity: self.identity(),
        });
        extensions.insert(Pace {
            flush_interval: self.quic.settings.flush_interval,
            small_frames: None,
        });
        extensions.insert(EarlyData(early));
    }

    /// Who the client's certificate says that it is.
    fn identity(&self) -> Option<Arc<str>> {
        let read = || {
            let chain = self.connection.peer_identity()?;
            let chain = chain.downcast::<Vec<CertificateDer<'static>>>().ok()?;
            tls::identity_of(&chain)
        };
        self.identity.get_or_init(read).clone()
    }
}
