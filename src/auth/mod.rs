//! Who asks, and whether they ask now: credentials tied to a TLS session, and early data that
//! cannot be replayed.
//!
//! A *lineage* is one full TLS handshake and every connection that was resumed from it. A caller
//! turns a credential into a sealed token of its lineage ([`token`]) and proves with each request
//! that it holds the keys of the very connection on which the request travels ([`binding`],
//! [`session`]). Only such requests may be served from early data, each ticket opens one connection
//! ([`tickets`]) and each request id one request ([`replay`]); [`early`] holds the whole policy as
//! one function, and [`gate`] asks it. Nothing here knows sockets.

pub mod binding;
pub mod callers;
pub mod config;
pub mod early;
pub mod files;
pub mod fuzz;
pub mod gate;
pub mod jwt;
pub mod keys;
pub mod replay;
pub mod session;
pub mod tickets;
pub mod token;

pub use self::binding::{Key, Lineage, Message, Proof, Signed};
pub use self::callers::{Callers, Shown};
pub use self::early::{Decision, Refusal};
pub use self::gate::{Arrival, Gate, Verdict};
pub use self::session::{ConnectionSecrets, Session};

/// The system gave no random bytes. Nothing that must be unguessable can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system gave no random bytes")]
pub struct NoRandomness;

/// Random bytes of the system.
fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    let source = ring::rand::SystemRandom::new();
    ring::rand::SecureRandom::fill(&source, &mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes)
}
