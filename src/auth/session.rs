//! One TLS connection as rustls shows it through two of its hooks: secrets as they are derived, and
//! tickets as they are issued and redeemed.
//!
//! Every connection gets its own copy of the TLS configuration that points to its own object here.
//! So nothing is looked up by the `ClientHello`'s random, and rustls is used as it is.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use rustls::KeyLog;
use rustls::server::StoresServerSessions;

use super::binding::{self, Key, Lineage, Message, Proof, Secret};
use super::tickets::{Origin, Taken, Tickets};

/// rustls's names of the two secrets that are listened to. The early one is derived on every
/// resumption, with or without early data; the other on every TLS 1.3 handshake, and is taken only
/// for the client's random beside it.
const EARLY: &str = "CLIENT_EARLY_TRAFFIC_SECRET";
const HANDSHAKE: &str = "CLIENT_HANDSHAKE_TRAFFIC_SECRET";

/// The keys of one connection, on either side of it.
///
/// A client sets it as `key_log` of the configuration it connects with; the early key is there
/// as soon as the connection is started, where a ticket allows early data.
#[derive(Default)]
pub struct ConnectionSecrets {
    client_random: OnceLock<[u8; 32]>,
    early: OnceLock<Key>,
    full: OnceLock<Key>,
}

/// Which key of the connection made a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MadeWith {
    /// The key of the complete handshake.
    Full,
    /// The key that both sides have from the first flight on.
    Early,
}

impl ConnectionSecrets {
    /// The key for early data. That it exists does not say that early data came or was accepted.
    #[must_use]
    pub fn early(&self) -> Option<&Key> {
        self.early.get()
    }

    /// The key of the complete handshake, once [`Self::finish`] has made it.
    #[must_use]
    pub fn full(&self) -> Option<&Key> {
        self.full.get()
    }

    /// To be called when the handshake has ended: derives the full key. `None` if the exporter
    /// refuses, and on TLS 1.2, which is never bound.
    pub fn finish(&self, exporter: binding::Exporter<'_>) -> Option<&Key> {
        if self.full.get().is_none() {
            let client_random = self.client_random.get()?;
            let key = binding::derive(Secret::Exporter(exporter), client_random)?;
            // Two callers at once derive the same key.
            let _ = self.full.set(key);
        }
        self.full.get()
    }

    /// Which key of this connection made the proof; `None` if none did.
    #[must_use]
    pub fn check(&self, message: &Message, proof: &Proof) -> Option<MadeWith> {
        let made = |key: Option<&Key>| key.is_some_and(|key| key.verify(message, proof));
        if made(self.full()) {
            Some(MadeWith::Full)
        } else if made(self.early()) {
            Some(MadeWith::Early)
        } else {
            None
        }
    }
}

impl KeyLog for ConnectionSecrets {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        let Ok(random) = client_random.try_into() else {
            return;
        };
        if !self.will_log(label) {
            return;
        }
        let _ = self.client_random.set(random);
        if label == EARLY
            && let Some(key) = binding::derive(Secret::EarlyTraffic(secret), &random)
        {
            let _ = self.early.set(key);
        }
    }

    fn will_log(&self, label: &str) -> bool {
        matches!(label, EARLY | HANDSHAKE)
    }
}

impl fmt::Debug for ConnectionSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionSecrets")
            .field("early", &self.early.get().is_some())
            .field("full", &self.full.get().is_some())
            .finish_non_exhaustive()
    }
}

/// The server's side of one connection: its keys, and the lineage it belongs to.
pub struct Session {
    secrets: ConnectionSecrets,
    tickets: Arc<Tickets>,
    /// Of this connection itself, in force unless it turns out to be a resumption.
    own: Origin,
    /// Of the ticket that was taken last, before it is known whether its holder can use it.
    offered: Mutex<Option<Origin>>,
    inherited: OnceLock<Origin>,
    replayed: AtomicBool,
}

impl Session {
    /// A connection that is about to be accepted.
    #[must_use]
    pub fn new(tickets: Arc<Tickets>, lineage: Lineage) -> Arc<Self> {
        Arc::new(Self {
            secrets: ConnectionSecrets::default(),
            tickets,
            own: Origin {
                lineage,
                since: Instant::now(),
            },
            offered: Mutex::new(None),
            inherited: OnceLock::new(),
            replayed: AtomicBool::new(false),
        })
    }

    /// The configuration with which to accept this connection, and no other.
    #[must_use]
    pub fn apply(self: &Arc<Self>, base: &rustls::ServerConfig) -> rustls::ServerConfig {
        let mut config = base.clone();
        config.key_log = Arc::clone(self) as Arc<dyn KeyLog>;
        config.session_storage = Arc::clone(self) as Arc<dyn StoresServerSessions>;
        config
    }

    /// The keys.
    #[must_use]
    pub fn secrets(&self) -> &ConnectionSecrets {
        &self.secrets
    }

    /// The lineage; settled once the `ClientHello` has been read, so before any request.
    #[must_use]
    pub fn lineage(&self) -> Lineage {
        self.origin().lineage
    }

    /// Whether a ticket that had been used before was shown: the mark of a replayed first flight.
    #[must_use]
    pub fn replayed(&self) -> bool {
        self.replayed.load(Ordering::Relaxed)
    }

    fn origin(&self) -> Origin {
        self.inherited.get().copied().unwrap_or(self.own)
    }
}

impl KeyLog for Session {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        // rustls derives the early secret only after the binder was found good. A ticket's id travels in the clear
        // and can be shown by anybody, so taking it alone must not hand on the lineage: with another
        // name or suite beside it, rustls goes on with a full handshake and the stranger's own keys.
        if label == EARLY {
            let offered = *self.offered.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(origin) = offered {
                let _ = self.inherited.set(origin);
            }
        }
        self.secrets.log(label, client_random, secret);
    }

    fn will_log(&self, label: &str) -> bool {
        self.secrets.will_log(label)
    }
}

impl StoresServerSessions for Session {
    fn put(&self, id: Vec<u8>, session: Vec<u8>) -> bool {
        self.tickets
            .put(&id, session, self.origin(), Instant::now())
    }

    /// How TLS 1.2 looks sessions up.
    fn get(&self, _id: &[u8]) -> Option<Vec<u8>> {
        None
    }

    /// Called for each ticket that the client shows until one can be used, which is then the last.
    fn take(&self, id: &[u8]) -> Option<Vec<u8>> {
        let taken = self.tickets.take(id, Instant::now());
        let (origin, session) = match taken {
            Taken::Fresh(origin, session) => (Some(origin), Some(session)),
            Taken::Spent => {
                self.replayed.store(true, Ordering::Relaxed);
                (None, None)
            }
            Taken::TooOld | Taken::Unknown => (None, None),
        };
        *self.offered.lock().unwrap_or_else(PoisonError::into_inner) = origin;
        session
    }

    /// Asked by TLS 1.2 alone, which is not bound, and so not resumed either: what it would store
    /// has no early secret by which the lineage could be inherited.
    fn can_cache(&self) -> bool {
        false
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("lineage", &self.lineage())
            .field("resumed", &self.inherited.get().is_some())
            .field("replayed", &self.replayed())
            .field("secrets", &self.secrets)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
