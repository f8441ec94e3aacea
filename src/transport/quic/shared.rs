//! What all requests of one connection share, whatever its protocol.

use std::sync::Arc;

use axum::http::Extensions;

use super::Quic;
use crate::auth::Session;
use crate::transport::early::{Handshake, Secure};
use crate::transport::listen::Peer;
use crate::transport::pace::Pace;

/// A connection as its requests see it.
pub(super) struct Shared {
    pub(super) connection: quinn::Connection,
    session: Arc<Session>,
    handshake: Handshake,
    pub(super) quic: Arc<Quic>,
}

impl Shared {
    pub(super) fn new(
        connection: quinn::Connection,
        session: Arc<Session>,
        handshake: Handshake,
        quic: Arc<Quic>,
    ) -> Arc<Self> {
        Arc::new(Self {
            connection,
            session,
            handshake,
            quic,
        })
    }

    /// Tells a request of its connection. `came_early`: its stream was there before the handshake had ended.
    pub(super) fn tell(&self, extensions: &mut Extensions, came_early: bool) {
        extensions.insert(Peer {
            address: self.connection.remote_address(),
            identity: self.handshake.peer(),
        });
        extensions.insert(Pace {
            flush_interval: self.quic.settings.flush_interval,
            small_frames: None,
        });
        let (session, handshake) = (self.session.clone(), self.handshake.clone());
        extensions.insert(Secure::new(session, handshake, came_early));
    }
}
