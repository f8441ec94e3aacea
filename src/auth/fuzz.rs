//! What a fuzzer drives: any schedule of requests, honest and not, against one gate.

mod credentials;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::KeyLog as _;

use super::binding::Signed;
use super::config::Auth;
use super::early::Decision;
use super::gate::{Arrival, Gate};
use super::session::Session;
use crate::generation::Caller;

pub use self::credentials::credentials;

const CONNECTIONS: usize = 3;
const TODAY: u64 = 1_700_000_000;

/// Reads bytes as requests on three connections of three lineages, each with any of their tokens, any
/// of their proofs, any id, or bytes of the input instead, and plays them.
///
/// # Panics
/// If a request was served early that is not bound and proven on its own connection, or that had been
/// served early before within its id's life.
pub fn early_policy(bytes: &[u8]) {
    let Some((&most, mut rest)) = bytes.split_first() else {
        return;
    };
    let auth = Auth {
        max_early_ids: usize::from(most % 8),
        ..Auth::default()
    };
    let Ok(gate) = Gate::new(&auth, TODAY) else {
        return;
    };
    let connections: Vec<_> = (0..CONNECTIONS).filter_map(|_| connection(&gate)).collect();
    let start = Instant::now();
    let mut passed = Duration::ZERO;
    let mut served = HashSet::new();
    while let Some((step, after)) = rest.split_first_chunk::<4>() {
        let [who, what, flags, length] = *step;
        let (raw, after) = after
            .split_at_checked(usize::from(length))
            .unwrap_or((after, &[]));
        rest = after;
        let raw = std::str::from_utf8(raw).unwrap_or_default();
        let pick = |byte: u8| connections.get(usize::from(byte));
        let (Some((on, _)), signer, bound) =
            (pick((who >> 4) % 3), pick(who & 3), pick(who >> 2 & 3))
        else {
            return;
        };
        let request = Signed {
            id: ["1", "2", "", raw][usize::from(what & 3)],
            method: ["POST", "GET"][usize::from(what >> 2 & 1)],
            path: "/v1/completions",
            token: bound.map_or(raw, |(_, token)| token),
            body: b"{}",
        };
        let key = signer.and_then(|(session, _)| session.secrets().early());
        let proof = key.map_or_else(
            || raw.to_owned(),
            |key| key.prove(&request.message()).to_string(),
        );
        let flag = |place: u8| flags >> place & 1 == 1;
        passed += Duration::from_secs(u64::from(flags >> 6) * 1000);
        let arrival = Arrival {
            session: Some(on),
            early: flag(0),
            forwarded: flag(1),
            live_only: flag(2),
            room: flag(3),
            proof: flag(4).then_some(&*proof),
            now: start + passed,
            today: TODAY,
        };
        let decision = gate.judge(&arrival, &request, None).decision;
        if decision == Decision::Hold {
            assert!(arrival.early && arrival.room, "held for nothing");
        }
        if decision != Decision::Serve || !arrival.early {
            continue;
        }
        let own = |other: Option<&(Arc<Session>, String)>| {
            other.is_some_and(|(session, _)| Arc::ptr_eq(session, on))
        };
        assert!(
            own(signer) && own(bound) && flag(4),
            "served early unproven"
        );
        assert!(!arrival.live_only, "served early what never may be");
        // An id is remembered for longer than a ticket's lifetime, so within one it is served once.
        let era = passed.as_secs() / auth.ticket_lifetime.as_secs();
        let first = served.insert(((who >> 4) % 3, request.id.to_owned(), era));
        assert!(first, "served early twice");
    }
}

/// A connection as rustls shows it after a resumption's first flight, and a token bound to it.
fn connection(gate: &Gate) -> Option<(Arc<Session>, String)> {
    let session = gate.session().ok()?;
    let random = session.lineage().0.repeat(2);
    session.log("CLIENT_EARLY_TRAFFIC_SECRET", &random, &[7; 32]);
    let (token, _) = gate.bind(&session, &Caller::default(), TODAY).ok()?;
    Some((session, token))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_schedule_breaks_the_policy(
            most: u8,
            // Half of them by the owner of token, proof and connection, and early.
            steps in proptest::collection::vec(
                (
                    prop_oneof![(0_u8..3).prop_map(|own| own * 0b01_0101), any::<u8>()],
                    any::<u8>(),
                    prop_oneof![Just(0b01_1001), any::<u8>()],
                ),
                0..60,
            ),
            tail in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let mut bytes = vec![most];
            for (who, what, flags) in steps {
                bytes.extend([who, what, flags, 0]);
            }
            bytes.extend(tail);
            super::early_policy(&bytes);
        }
    }
}
