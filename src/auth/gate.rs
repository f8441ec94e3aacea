//! Where a request's facts are gathered and put to the policy: one object per process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::NoRandomness;
use super::binding::{Lineage, Proof, Signed};
use super::config::Auth;
use super::early::{self, Ask, Credential, Decision, Facts, ProofState, Refusal};
use super::replay::{Replay, Scope};
use super::session::Session;
use super::tickets::{Limits, Tickets};
use super::token::{Grant, MintError, OpenError, PREFIX, Tokens};
use crate::generation::Caller;

/// How much longer than a ticket an id is remembered: rustls accepts early data from clients whose
/// clock runs up to a minute differently.
const SLACK: Duration = Duration::from_mins(1);

/// Everything that binding and early data need to remember.
#[derive(Debug)]
pub struct Gate {
    tickets: Arc<Tickets>,
    tokens: Tokens,
    replay: Replay,
    proof_required: bool,
}

/// How a request came to us.
#[derive(Clone, Copy, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts that are independent of one another"
)]
pub struct Arrival<'a> {
    /// The TLS connection it came on; `None` without TLS of our own.
    pub session: Option<&'a Session>,
    /// It came as early data, and the handshake has not ended until now.
    pub early: bool,
    /// `Early-Data: 1` was on it.
    pub forwarded: bool,
    /// It must not be served early whatever it carries, as `POST /v1/bind`.
    pub live_only: bool,
    /// There is room to hold it.
    pub room: bool,
    /// The value of `x-sluice-proof`, if there was one.
    pub proof: Option<&'a str>,
    /// The clock.
    pub now: Instant,
    /// The calendar, in seconds since 1970.
    pub today: u64,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What to do.
    pub decision: Decision,
    /// What the bound token says, if there is one that holds.
    pub grant: Option<Grant>,
}

impl Gate {
    /// With nothing in it; `today` in seconds since 1970.
    ///
    /// # Errors
    /// If the system gives no random bytes.
    pub fn new(auth: &Auth, today: u64) -> Result<Self, NoRandomness> {
        Ok(Self {
            tickets: Arc::new(Tickets::new(Limits {
                capacity: auth.max_tickets,
                lifetime: auth.ticket_lifetime,
                lineage: auth.lineage_lifetime,
            })),
            tokens: Tokens::new(auth.token_lifetime, today)?,
            replay: Replay::new(auth.max_early_ids, auth.ticket_lifetime + SLACK),
            proof_required: auth.require_proof,
        })
    }

    /// The session of a connection that is about to be accepted.
    ///
    /// # Errors
    /// If the system gives no random bytes; the connection cannot be accepted then.
    pub fn session(&self) -> Result<Arc<Session>, NoRandomness> {
        let lineage = Lineage::random()?;
        Ok(Session::new(Arc::clone(&self.tickets), lineage))
    }

    /// The ticket store.
    #[must_use]
    pub fn tickets(&self) -> &Arc<Tickets> {
        &self.tickets
    }

    /// Ids of early requests in memory.
    #[must_use]
    pub fn early_ids(&self) -> usize {
        self.replay.len()
    }

    /// Seals a token that is good on the lineage of this connection. Who calls this has made sure who
    /// `caller` is, and that the handshake has ended.
    ///
    /// # Errors
    /// If the names are too long, or the system gives no random bytes.
    pub fn bind(
        &self,
        session: &Session,
        caller: &Caller,
        today: u64,
    ) -> Result<(String, Grant), MintError> {
        self.tokens.mint(caller, session.lineage(), today)
    }

    /// What a bound token says, if it holds on this connection now.
    ///
    /// # Errors
    /// Why it does not.
    pub fn open(
        &self,
        token: &str,
        session: Option<&Session>,
        today: u64,
    ) -> Result<Grant, Refusal> {
        match self.tokens.open(token, today) {
            Err(OpenError::Unknown) => Err(Refusal::TokenUnknown),
            Err(OpenError::Expired) => Err(Refusal::TokenExpired),
            Ok(grant) => match session {
                Some(session) if session.lineage() == grant.lineage => Ok(grant),
                _ => Err(Refusal::TokenForeign),
            },
        }
    }

    /// Judges a request whose body is complete. `request.id` is the caller's own id, empty if it sent
    /// none; `request.token` what followed `Bearer `. For a credential that is not a bound token,
    /// `identity` is who it belongs to.
    #[must_use]
    pub fn judge(
        &self,
        arrival: &Arrival<'_>,
        request: &Signed<'_>,
        identity: Option<&str>,
    ) -> Verdict {
        let (credential, grant) = self.credential(arrival, request.token);
        let facts = Facts {
            early: arrival.early,
            forwarded: arrival.forwarded,
            safe: matches!(request.method, "GET" | "HEAD" | "OPTIONS" | "TRACE"),
            live_only: arrival.live_only,
            room: arrival.room,
            proof_required: self.proof_required,
            named: !request.id.is_empty(),
            credential,
            proof: proof(arrival, request),
        };
        let known = grant
            .as_ref()
            .map_or(identity, |grant| grant.caller.identity.as_deref());
        let decision = early::judge(&facts, |ask| {
            let scope = match (known, arrival.session) {
                (Some(identity), _) => Scope::Identity(identity),
                (None, Some(session)) => Scope::Lineage(session.lineage()),
                // Ids are asked for only with a good proof, which needs a session.
                (None, None) => Scope::Identity(""),
            };
            match ask {
                Ask::Record => self.replay.record(scope, request.id, arrival.now),
                Ask::Look => self.replay.look(scope, request.id, arrival.now),
            }
        });
        Verdict { decision, grant }
    }

    fn credential(&self, arrival: &Arrival<'_>, token: &str) -> (Credential, Option<Grant>) {
        if !token.starts_with(PREFIX) {
            return (Credential::Unbound, None);
        }
        match self.open(token, arrival.session, arrival.today) {
            Ok(grant) => (Credential::Bound, Some(grant)),
            Err(Refusal::TokenExpired) => (Credential::Expired, None),
            Err(Refusal::TokenForeign) => (Credential::Foreign, None),
            Err(_) => (Credential::Unknown, None),
        }
    }
}

fn proof(arrival: &Arrival<'_>, request: &Signed<'_>) -> ProofState {
    let Some(text) = arrival.proof else {
        return ProofState::Absent;
    };
    let good = arrival.session.is_some_and(|session| {
        text.parse::<Proof>().is_ok_and(|proof| {
            session
                .secrets()
                .check(&request.message(), &proof)
                .is_some()
        })
    });
    if good {
        ProofState::Good
    } else {
        ProofState::Wrong
    }
}

#[cfg(test)]
mod tests;
