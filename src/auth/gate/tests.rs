//! Requests on connections, from the facts of a request to the verdict.

use rustls::KeyLog as _;

use super::*;
use crate::auth::early::Refusal;

const TODAY: u64 = 1_700_000_000;

fn gate(change: impl FnOnce(&mut Auth)) -> Gate {
    let mut auth = Auth::default();
    change(&mut auth);
    Gate::new(&auth, TODAY).unwrap()
}

/// A connection as rustls would have shown it after a resumption's first flight.
fn resumed(gate: &Gate) -> Arc<Session> {
    let session = gate.session().unwrap();
    let lineage = session.lineage();
    session.log(
        "CLIENT_EARLY_TRAFFIC_SECRET",
        &lineage.0.repeat(2),
        &[7; 32],
    );
    session
}

fn request<'a>(id: &'a str, token: &'a str) -> Signed<'a> {
    Signed {
        id,
        method: "POST",
        path: "/v1/chat/completions",
        token,
        body: b"{}",
    }
}

fn arrival<'a>(session: &'a Session, proof: Option<&'a str>) -> Arrival<'a> {
    Arrival {
        session: Some(session),
        early: true,
        forwarded: false,
        live_only: false,
        room: true,
        proof,
        now: Instant::now(),
        today: TODAY,
    }
}

fn prove(session: &Session, request: &Signed<'_>) -> String {
    let key = session.secrets().early().unwrap();
    key.prove(&request.message()).to_string()
}

fn bind(gate: &Gate, session: &Session, identity: Option<&str>) -> String {
    let caller = Caller {
        identity: identity.map(Into::into),
        ..Caller::default()
    };
    gate.bind(session, &caller, TODAY).unwrap().0
}

fn refused(refusal: Refusal) -> Decision {
    Decision::Refuse(refusal)
}

#[test]
fn a_bound_early_request_is_served_once() {
    let gate = gate(|_| {});
    let session = resumed(&gate);
    let token = bind(&gate, &session, Some("alice"));
    let request = request("1", &token);
    let proof = prove(&session, &request);
    let arrival = arrival(&session, Some(&proof));
    let verdict = gate.judge(&arrival, &request, None);
    assert_eq!(verdict.decision, Decision::Serve);
    let grant = verdict.grant.unwrap();
    assert_eq!(grant.caller.identity.as_deref(), Some("alice"));
    for _ in 0..1000 {
        let verdict = gate.judge(&arrival, &request, None);
        assert_eq!(verdict.decision, refused(Refusal::Replayed));
    }
    // Its owner repeats it after the handshake, or on another connection.
    let late = Arrival {
        early: false,
        ..arrival
    };
    let verdict = gate.judge(&late, &request, None);
    assert_eq!(verdict.decision, refused(Refusal::Replayed));
}

#[test]
fn a_callers_ids_are_known_on_all_its_connections_and_a_strangers_are_its_own() {
    let gate = gate(|_| {});
    for (identity, expected) in [
        (Some("alice"), refused(Refusal::Replayed)),
        (None, Decision::Serve),
    ] {
        let decisions = [(); 2].map(|()| {
            let session = resumed(&gate);
            let token = bind(&gate, &session, identity);
            let request = request("1", &token);
            let proof = prove(&session, &request);
            gate.judge(&arrival(&session, Some(&proof)), &request, None)
                .decision
        });
        assert_eq!(decisions, [Decision::Serve, expected], "{identity:?}");
    }
}

#[test]
fn what_was_stolen_is_worth_nothing_on_another_connection() {
    let gate = gate(|_| {});
    let (victim, thief) = (resumed(&gate), resumed(&gate));
    let token = bind(&gate, &victim, Some("alice"));
    let request = request("1", &token);
    let (stolen, own) = (prove(&victim, &request), prove(&thief, &request));
    for early in [true, false] {
        for proof in [Some(&*stolen), Some(&*own), None] {
            let arrival = Arrival {
                early,
                ..arrival(&thief, proof)
            };
            let verdict = gate.judge(&arrival, &request, None);
            assert_eq!(verdict.decision, refused(Refusal::TokenForeign));
            assert_eq!(verdict.grant, None);
        }
    }
    // Nor does the attempt use the id up.
    let verdict = gate.judge(&arrival(&victim, Some(&stolen)), &request, None);
    assert_eq!(verdict.decision, Decision::Serve);
}

#[test]
fn a_proof_for_another_request_uses_no_id_up() {
    let gate = gate(|_| {});
    let session = resumed(&gate);
    let token = bind(&gate, &session, None);
    let (first, second) = (request("1", &token), request("2", &token));
    let proof = prove(&session, &first);
    let arrival = arrival(&session, Some(&proof));
    let wrong = gate.judge(&arrival, &second, None);
    assert_eq!(wrong.decision, refused(Refusal::ProofWrong));
    assert_eq!(gate.early_ids(), 0);
    let changed = Signed {
        body: b"{\"n\":9}",
        ..first
    };
    let wrong = gate.judge(&arrival, &changed, None);
    assert_eq!(wrong.decision, refused(Refusal::ProofWrong));
    assert_eq!(gate.judge(&arrival, &first, None).decision, Decision::Serve);
}

#[test]
fn without_tls_of_our_own_a_bound_token_is_foreign_and_a_proof_wrong() {
    let gate = gate(|_| {});
    let session = resumed(&gate);
    let token = bind(&gate, &session, None);
    let plain = Arrival {
        session: None,
        early: false,
        ..arrival(&session, None)
    };
    let verdict = gate.judge(&plain, &request("1", &token), None);
    assert_eq!(verdict.decision, refused(Refusal::TokenForeign));
    let verdict = gate.judge(&plain, &request("1", "raw-key"), None);
    assert_eq!(verdict.decision, Decision::Serve);
    let unbound = request("1", "");
    let proof = prove(&session, &unbound);
    let proven = Arrival {
        proof: Some(&proof),
        ..plain
    };
    let verdict = gate.judge(&proven, &unbound, None);
    assert_eq!(verdict.decision, refused(Refusal::ProofWrong));
}

#[test]
fn expired_and_unknown_tokens_say_so() {
    let gate = gate(|auth| auth.token_lifetime = Duration::from_secs(10));
    let session = resumed(&gate);
    let token = bind(&gate, &session, None);
    let later = Arrival {
        today: TODAY + 10,
        ..arrival(&session, None)
    };
    let verdict = gate.judge(&later, &request("1", &token), None);
    assert_eq!(verdict.decision, refused(Refusal::TokenExpired));
    let verdict = gate.judge(&later, &request("1", "sgb1.AAAA"), None);
    assert_eq!(verdict.decision, refused(Refusal::TokenUnknown));
}

#[test]
fn with_a_full_record_early_requests_wait() {
    let gate = gate(|auth| auth.max_early_ids = 1);
    let session = resumed(&gate);
    let token = bind(&gate, &session, None);
    let judge = |id, early| {
        let request = request(id, &token);
        let proof = prove(&session, &request);
        let arrival = Arrival {
            early,
            ..arrival(&session, Some(&proof))
        };
        gate.judge(&arrival, &request, None).decision
    };
    assert_eq!(judge("1", true), Decision::Serve);
    assert_eq!(judge("2", true), Decision::Hold);
    assert_eq!(judge("2", false), Decision::Serve);
    assert_eq!(judge("1", false), refused(Refusal::Replayed));
}

#[test]
fn browsers_are_let_in_by_lineage_where_proofs_are_optional() {
    for (require_proof, early, expected) in [
        (true, false, refused(Refusal::ProofMissing)),
        (false, false, Decision::Serve),
        (false, true, Decision::Hold),
    ] {
        let gate = gate(|auth| auth.require_proof = require_proof);
        let session = resumed(&gate);
        let token = bind(&gate, &session, None);
        let arrival = Arrival {
            early,
            ..arrival(&session, None)
        };
        let decision = gate.judge(&arrival, &request("", &token), None).decision;
        assert_eq!(decision, expected);
    }
}

#[test]
fn nothing_secret_is_printed() {
    let gate = gate(|_| {});
    let session = resumed(&gate);
    let token = bind(&gate, &session, Some("alice"));
    let shown = format!("{gate:?}");
    assert!(
        !shown.contains(&token) && !shown.contains("alice"),
        "{shown}"
    );
}

/// What single-use tickets are worth: without them a copy of a first flight would open a connection of
/// the same lineage with the same early key, and the proof in it would hold there.
#[test]
fn were_a_ticket_good_twice_its_copy_would_be_stopped_by_the_id_alone() {
    let gate = gate(|_| {});
    let original = resumed(&gate);
    let copy = Session::new(Arc::clone(gate.tickets()), original.lineage());
    let random = original.lineage().0.repeat(2);
    copy.log("CLIENT_EARLY_TRAFFIC_SECRET", &random, &[7; 32]);
    for (identity, id) in [(Some("alice"), "1"), (None, "2")] {
        let token = bind(&gate, &original, identity);
        let request = request(id, &token);
        let proof = prove(&original, &request);
        let decisions = [&*original, &*copy].map(|session| {
            let arrival = arrival(session, Some(&proof));
            gate.judge(&arrival, &request, None).decision
        });
        assert_eq!(decisions, [Decision::Serve, refused(Refusal::Replayed)]);
    }
}
