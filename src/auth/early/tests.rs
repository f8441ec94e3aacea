//! The policy, row by row and as a whole.

use std::cell::Cell;

use super::*;

/// A bound early request with a good proof, and room to wait.
const GOOD: Facts = Facts {
    early: true,
    forwarded: false,
    safe: false,
    live_only: false,
    room: true,
    proof_required: true,
    named: true,
    credential: Credential::Bound,
    proof: ProofState::Good,
};
/// A request as most are.
const PLAIN: Facts = Facts {
    early: false,
    credential: Credential::Unbound,
    proof: ProofState::Absent,
    named: false,
    ..GOOD
};

const SERVE: Decision = Decision::Serve;
const HOLD: Decision = Decision::Hold;

fn refuse(refusal: Refusal) -> Decision {
    Decision::Refuse(refusal)
}

#[test]
fn the_table() {
    use Credential::*;
    use ProofState::{Absent, Good, Wrong};
    use Seen::{Before, Never, NoRoom};
    let late = Facts {
        early: false,
        ..GOOD
    };
    let unbound = Facts {
        credential: Unbound,
        ..GOOD
    };
    let full = Facts {
        room: false,
        ..GOOD
    };
    #[rustfmt::skip]
    let rows = [
        ("bound, proven, new", GOOD, Never, SERVE),
        ("the same again", GOOD, Before, refuse(Refusal::Replayed)),
        ("no room to remember it", GOOD, NoRoom, HOLD),
        ("no room to remember nor to wait", full, NoRoom, refuse(Refusal::TooEarly)),
        ("nothing to wait for", full, Never, SERVE),
        ("only after the handshake", Facts { live_only: true, ..GOOD }, Never, HOLD),
        ("early, unbound", Facts { proof: Absent, ..unbound }, Never, HOLD),
        ("early, unbound, safe", Facts { proof: Absent, safe: true, ..unbound }, Never, HOLD),
        ("early, unbound, proven", unbound, Never, HOLD),
        ("early, unbound, queue full", Facts { room: false, ..unbound }, Never, refuse(Refusal::TooEarly)),
        ("early, bound, unproven", Facts { proof: Absent, ..GOOD }, Never, refuse(Refusal::ProofMissing)),
        ("early, bound, unproven, proofs optional", Facts { proof: Absent, proof_required: false, ..GOOD }, Never, HOLD),
        ("early, stolen proof", Facts { proof: Wrong, ..GOOD }, Never, refuse(Refusal::ProofWrong)),
        ("early, no id", Facts { named: false, ..GOOD }, Never, refuse(Refusal::Unnamed)),
        ("early, stolen token", Facts { credential: Foreign, ..GOOD }, Never, refuse(Refusal::TokenForeign)),
        ("early, token of another process", Facts { credential: Unknown, ..GOOD }, Never, refuse(Refusal::TokenUnknown)),
        ("early, old token", Facts { credential: Expired, ..GOOD }, Never, refuse(Refusal::TokenExpired)),
        ("plain", PLAIN, Never, SERVE),
        ("late, bound, proven", late, Never, SERVE),
        ("late, served early before", late, Before, refuse(Refusal::Replayed)),
        ("late, record full", late, NoRoom, SERVE),
        ("late, bound, unproven", Facts { proof: Absent, ..late }, Never, refuse(Refusal::ProofMissing)),
        ("late, bound, unproven, proofs optional", Facts { proof: Absent, proof_required: false, ..late }, Never, SERVE),
        ("late, stolen proof", Facts { proof: Wrong, ..late }, Never, refuse(Refusal::ProofWrong)),
        ("late, stolen token", Facts { credential: Foreign, ..late }, Never, refuse(Refusal::TokenForeign)),
        ("late, unbound, wrong proof", Facts { proof: Wrong, ..PLAIN }, Never, refuse(Refusal::ProofWrong)),
        ("late, unbound, proven, served before", Facts { proof: Good, named: true, ..PLAIN }, Before, refuse(Refusal::Replayed)),
        ("early at a proxy", Facts { forwarded: true, ..PLAIN }, Never, refuse(Refusal::TooEarly)),
        ("early at a proxy, safe", Facts { forwarded: true, safe: true, ..PLAIN }, Never, SERVE),
        ("early at a proxy and here", Facts { forwarded: true, ..GOOD }, Never, refuse(Refusal::TooEarly)),
    ];
    for (name, facts, seen, expected) in rows {
        assert_eq!(judge(&facts, |_| seen), expected, "{name}");
    }
}

#[test]
fn every_combination_of_facts_keeps_the_promises() {
    let mut served_early = 0;
    for (facts, seen) in combinations() {
        let asked = Cell::new(None);
        let decision = judge(&facts, |ask| {
            assert_eq!(asked.replace(Some(ask)), None, "asked twice: {facts:?}");
            seen
        });
        let at = format!("{facts:?} {seen:?} -> {decision:?}");
        let proven = facts.proof == ProofState::Good && facts.named;
        let bound = facts.credential == Credential::Bound;
        if facts.early && decision == SERVE {
            served_early += 1;
            assert!(bound && proven && !facts.live_only, "{at}");
            assert_eq!(
                (asked.get(), seen),
                (Some(Ask::Record), Seen::Never),
                "{at}"
            );
        }
        if asked.get() == Some(Ask::Record) && seen == Seen::Never {
            assert_eq!(decision, SERVE, "an id used up for nothing: {at}");
        }
        if decision == HOLD {
            assert!(facts.early && facts.room, "{at}");
        }
        if decision == SERVE {
            assert!(bound || facts.credential == Credential::Unbound, "{at}");
            assert_ne!(facts.proof, ProofState::Wrong, "{at}");
            assert!(!(proven && seen == Seen::Before), "{at}");
            assert!(!facts.forwarded || facts.safe, "{at}");
            assert!(!(bound && facts.proof_required) || proven, "{at}");
        }
        if facts.proof != ProofState::Good {
            assert_eq!(asked.get(), None, "{at}");
        }
        // What was held is judged again later, and then never held.
        let later = judge(
            &Facts {
                early: false,
                ..facts
            },
            |_| seen,
        );
        assert_ne!(later, HOLD, "{at}");
        if decision == HOLD && seen != Seen::Before {
            assert_eq!(later, SERVE, "{at}");
        }
    }
    // Otherwise the promises above say nothing: forwarded or not (then safe), safe, room, proof_required.
    assert_eq!(served_early, 3 * 2 * 2);
}

fn combinations() -> impl Iterator<Item = (Facts, Seen)> {
    let credentials = [
        Credential::Unbound,
        Credential::Bound,
        Credential::Unknown,
        Credential::Expired,
        Credential::Foreign,
    ];
    let proofs = [ProofState::Absent, ProofState::Wrong, ProofState::Good];
    (0_u8..1 << 7).flat_map(move |bits| {
        credentials.into_iter().flat_map(move |credential| {
            proofs.into_iter().flat_map(move |proof| {
                let bit = |place: u8| bits >> place & 1 == 1;
                let facts = Facts {
                    early: bit(0),
                    forwarded: bit(1),
                    safe: bit(2),
                    live_only: bit(3),
                    room: bit(4),
                    proof_required: bit(5),
                    named: bit(6),
                    credential,
                    proof,
                };
                [Seen::Never, Seen::Before, Seen::NoRoom].map(|seen| (facts, seen))
            })
        })
    })
}

#[test]
fn each_refusal_has_a_name_and_a_failure_of_its_kind() {
    let names: std::collections::HashSet<_> = Refusal::ALL.map(Refusal::name).into();
    assert_eq!(names.len(), Refusal::ALL.len());
    let kinds = Refusal::ALL.map(|refusal| refusal.failure().kind);
    let expected = [
        Kind::TooEarly,
        Kind::Replayed,
        Kind::Unauthorized,
        Kind::Unauthorized,
        Kind::Unauthorized,
        Kind::Unauthorized,
        Kind::Unauthorized,
        Kind::Invalid,
    ];
    assert_eq!(kinds, expected);
    for token in [
        Refusal::TokenUnknown,
        Refusal::TokenExpired,
        Refusal::TokenForeign,
    ] {
        assert_eq!(token.failure().code, Some("bind_again"));
    }
}
