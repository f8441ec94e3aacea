//! The policy for early data (RFC 8470) and bound credentials, as one function of facts.
//!
//! A request that came before the TLS handshake ended may be a copy of another. It is served at once
//! only if it cannot do harm as one: its token is bound to the lineage, its proof was made with this
//! connection's early key, and its id was never served early. Everything else waits for the handshake, which
//! who merely repeats a flight cannot complete, or is told to come back.

use super::replay::Seen;
use crate::generation::{Failure, Kind};

/// All that the decision depends on, but for what is known of the request's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts that are independent of one another"
)]
pub struct Facts {
    /// It came as early data of this connection, and the handshake has not ended yet.
    pub early: bool,
    /// A proxy before us says that it came as early data there (`Early-Data: 1`).
    pub forwarded: bool,
    /// Its method changes nothing (RFC 9110, section 9.2.1).
    pub safe: bool,
    /// It is never served early, whatever it carries.
    pub live_only: bool,
    /// There is room to hold it.
    pub room: bool,
    /// Bound tokens need a proof with every request, not only with early ones.
    pub proof_required: bool,
    /// It has an id of its caller's.
    pub named: bool,
    /// What it carries as credential.
    pub credential: Credential,
    /// What its proof is worth on this connection.
    pub proof: ProofState,
}

/// A credential, as far as its binding goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credential {
    /// None, or one that anybody may use who has it.
    Unbound,
    /// A bound token of this connection's lineage, in its time.
    Bound,
    /// A bound token that was not sealed here.
    Unknown,
    /// A bound token whose time is over.
    Expired,
    /// A bound token of another lineage, or without TLS.
    Foreign,
}

/// A proof, as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProofState {
    /// There is none.
    Absent,
    /// It is none of a known version, or no key of this connection made it for this request.
    Wrong,
    /// The early key or the full key of this connection made it for this request.
    Good,
}

/// What to ask of the record of ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Record it if it is new.
    Record,
    /// Only look.
    Look,
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Serve it now.
    Serve,
    /// Wait until the handshake has ended, then judge again.
    Hold,
    /// Answer with a failure.
    Refuse(Refusal),
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// It came early, cannot be served so, and cannot be held.
    TooEarly,
    /// Its id was served before.
    Replayed,
    /// The bound token was not sealed here.
    TokenUnknown,
    /// The bound token's time is over.
    TokenExpired,
    /// The bound token belongs to another TLS lineage.
    TokenForeign,
    /// A proof is needed.
    ProofMissing,
    /// The proof does not hold.
    ProofWrong,
    /// A proof without a request id to be told apart by.
    Unnamed,
}

/// Decides. `ids` is asked at most once, and asked to record only where the answer `Never` means
/// that the request is served: an id is never used up by a request that does not run.
pub fn judge(facts: &Facts, ids: impl FnOnce(Ask) -> Seen) -> Decision {
    // Where it was early is beyond our reach: it cannot be held here (RFC 8470, section 5.2).
    if facts.forwarded && !facts.safe {
        return Decision::Refuse(Refusal::TooEarly);
    }
    let bound = match facts.credential {
        Credential::Unbound => false,
        Credential::Bound => true,
        Credential::Unknown => return Decision::Refuse(Refusal::TokenUnknown),
        Credential::Expired => return Decision::Refuse(Refusal::TokenExpired),
        Credential::Foreign => return Decision::Refuse(Refusal::TokenForeign),
    };
    let proven = match facts.proof {
        ProofState::Wrong => return Decision::Refuse(Refusal::ProofWrong),
        ProofState::Good if !facts.named => return Decision::Refuse(Refusal::Unnamed),
        ProofState::Absent if bound && facts.proof_required => {
            return Decision::Refuse(Refusal::ProofMissing);
        }
        ProofState::Absent => false,
        ProofState::Good => true,
    };
    if !facts.early {
        // A client whose early request was lost repeats it on a connection that is complete.
        return if proven && ids(Ask::Look) == Seen::Before {
            Decision::Refuse(Refusal::Replayed)
        } else {
            Decision::Serve
        };
    }
    if bound && proven && !facts.live_only {
        match ids(Ask::Record) {
            Seen::Never => return Decision::Serve,
            Seen::Before => return Decision::Refuse(Refusal::Replayed),
            Seen::NoRoom => {}
        }
    }
    if facts.room {
        Decision::Hold
    } else {
        Decision::Refuse(Refusal::TooEarly)
    }
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::TooEarly,
        Self::Replayed,
        Self::TokenUnknown,
        Self::TokenExpired,
        Self::TokenForeign,
        Self::ProofMissing,
        Self::ProofWrong,
        Self::Unnamed,
    ];

    /// Its name in metrics and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TooEarly => "too_early",
            Self::Replayed => "replayed",
            Self::TokenUnknown => "token_unknown",
            Self::TokenExpired => "token_expired",
            Self::TokenForeign => "token_foreign",
            Self::ProofMissing => "proof_missing",
            Self::ProofWrong => "proof_wrong",
            Self::Unnamed => "unnamed",
        }
    }

    /// What the caller is told.
    #[must_use]
    pub fn failure(self) -> Failure {
        // Whatever is wrong with a token, the way out is the same; this code is what clients look for.
        let bind = |message: &'static str| {
            Failure::new(Kind::Unauthorized, message).with_code("bind_again")
        };
        match self {
            Self::TooEarly => Failure::new(
                Kind::TooEarly,
                "The request came as early data and cannot be served before the TLS handshake has ended. Send it again after it.",
            ),
            Self::Replayed => Failure::new(
                Kind::Replayed,
                "A request with this x-request-id was accepted before; it does not run twice.",
            ),
            Self::TokenUnknown => {
                bind("The bound token was not issued by this server process; bind again.")
            }
            Self::TokenExpired => bind("The bound token has expired; bind again."),
            Self::TokenForeign => {
                bind("The bound token belongs to another TLS session; bind again.")
            }
            Self::ProofMissing => Failure::new(
                Kind::Unauthorized,
                "A bound token needs a proof: the header x-sluice-proof.",
            )
            .with_code("proof_missing"),
            Self::ProofWrong => Failure::new(
                Kind::Unauthorized,
                "The proof does not match this request on this connection.",
            )
            .with_code("proof_wrong"),
            Self::Unnamed => Failure::invalid(
                "x-request-id",
                "A request with a proof needs an x-request-id of its own, which the proof covers.",
            ),
        }
    }
}

#[cfg(test)]
mod tests;
