//! Early data and bound tokens against a real gateway: what is served before the handshake ends, what
//! waits for it, what is refused.

mod attacks;
mod identity;
mod tcp;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::support::{
    Asked, BIND, CHAT, Metrics, Protocol, Served, Setup, Tap, Visit, Visitor, chat_body, finish,
    gateway, within,
};

fn setup() -> Setup {
    gateway().scripted()
}

/// What has happened to early requests.
fn early(metrics: &Metrics, decision: &str) -> u64 {
    metrics.sum(
        "early_requests_total",
        &[&format!("decision=\"{decision}\"")],
    )
}

fn refused(metrics: &Metrics, reason: &str) -> u64 {
    metrics.sum("auth_refusals_total", &[&format!("reason=\"{reason}\"")])
}

fn tickets(metrics: &Metrics, event: &str) -> u64 {
    metrics.sum("tls_tickets_total", &[&format!("event=\"{event}\"")])
}

fn handshakes(metrics: &Metrics, result: &str) -> u64 {
    metrics.sum("tls_handshakes_total", &[&format!("result=\"{result}\"")])
}

/// Tokens that were generated, and generations that ended well.
fn generated(metrics: &Metrics) -> (u64, u64) {
    let tokens = metrics.sum("tokens_total", &["kind=\"output\""]);
    let ended = metrics.sum("requests_total", &["route=\"chat\"", "outcome=\"ok\""]);
    (tokens, ended)
}

/// A gateway, a visitor with a bound token, and the connection it was bound on.
struct Bound {
    served: Served,
    visitor: Visitor,
    visit: Visit,
    token: String,
}

impl Bound {
    async fn by(setup: Setup, protocol: Protocol) -> Self {
        let served = Served::by(setup).await;
        let visitor = Visitor::new(&served, protocol);
        let visit = visitor.visit(served.gateway.secure()).await;
        let token = visit.bind().await;
        Self {
            served,
            visitor,
            visit,
            token,
        }
    }

    fn address(&self) -> SocketAddr {
        self.served.gateway.secure()
    }

    async fn until(&self, what: &str, reached: impl Fn(&Metrics) -> bool) -> Metrics {
        self.served.gateway.until(what, reached).await
    }
}

/// Derives the full key of a connection that was begun early, by asking something first: what comes as an
/// answer behind the client's Finished comes after the handshake.
async fn finish_when_ended(visit: &Visit) {
    let answer = visit.ask(&Asked::new("GET", "/healthz", "")).await;
    assert_eq!(answer.status, 200);
    finish(&visit.connection, &visit.secrets);
}

#[tokio::test]
async fn a_bound_request_is_answered_before_its_handshake_ends() {
    for protocol in Protocol::ALL {
        let bound = Bound::by(setup(), protocol).await;
        let tap = Tap::before(bound.address()).await;
        let (visit, accepted) = bound.visitor.early_visit(tap.address).await;
        let asked = Asked::chat("1", &bound.token).proven(visit.secrets.early());
        let pending = visit.send(&asked).await;
        bound
            .until("it is served", |m| early(m, "served") == 1)
            .await;
        // The answer may come; the client's Finished, and all else it says from now on, does not.
        tap.hold_client();
        tap.release();
        assert_eq!(pending.answer().await.outcome(), (200, "ok".into()));
        let metrics = bound.served.gateway.metrics().await;
        assert_eq!(handshakes(&metrics, "done"), 1, "that of the first visit");
        tap.release_client();
        bound.until("it ends", |m| handshakes(m, "done") == 2).await;
        assert!(within(accepted).await, "it was early data");
        // With the key of the whole handshake it goes on.
        finish(&visit.connection, &visit.secrets);
        let asked = Asked::chat("2", &bound.token).proven(visit.secrets.full());
        assert_eq!(visit.ask(&asked).await.outcome(), (200, "ok".into()));
        let metrics = bound.served.gateway.metrics().await;
        assert_eq!((generated(&metrics), early(&metrics, "held")), ((6, 2), 0));
    }
}

#[tokio::test]
async fn an_early_request_without_a_token_waits_for_the_end_of_its_handshake() {
    for protocol in Protocol::ALL {
        let bound = Bound::by(setup(), protocol).await;
        let tap = Tap::before(bound.address()).await;
        let (visit, accepted) = bound.visitor.early_visit(tap.address).await;
        let chat = visit.send(&Asked::chat("1", "")).await;
        let models = visit.send(&Asked::new("GET", "/v1/models", "")).await;
        let held = bound.until("both wait", |m| early(m, "held") == 2).await;
        assert_eq!((generated(&held), early(&held, "served")), ((0, 0), 0));
        tap.release();
        assert_eq!(chat.answer().await.outcome(), (200, "ok".into()));
        assert_eq!(models.answer().await.status, 200);
        assert!(within(accepted).await, "it was early data");
        let metrics = bound.served.gateway.metrics().await;
        assert_eq!(generated(&metrics), (3, 1));
        assert_eq!(early(&metrics, "refused"), 0);
    }
}

#[tokio::test]
async fn a_bound_request_without_a_proof_or_with_a_wrong_one_is_refused_at_once() {
    for protocol in Protocol::ALL {
        let bound = Bound::by(setup(), protocol).await;
        let tap = Tap::before(bound.address()).await;
        let (visit, _) = bound.visitor.early_visit(tap.address).await;
        let bare = visit.send(&Asked::chat("1", &bound.token)).await;
        let mut changed = Asked::chat("2", &bound.token).proven(visit.secrets.early());
        changed.body = chat_body("scripted?tokens=9", "x", "");
        let changed = visit.send(&changed).await;
        let unnamed = Asked::chat("", &bound.token).proven(visit.secrets.early());
        let unnamed = visit.send(&unnamed).await;
        bound
            .until("all are refused", |m| early(m, "refused") == 3)
            .await;
        tap.release();
        let answers = [bare, changed, unnamed];
        let expected = [(401, "proof_missing"), (401, "proof_wrong"), (400, "")];
        for (pending, (status, code)) in answers.into_iter().zip(expected) {
            let answer = pending.answer().await;
            assert_eq!(answer.status, status, "{answer:?}");
            let json = answer.json();
            assert_eq!(json["error"]["code"].as_str().unwrap_or_default(), code);
        }
        assert_eq!(generated(&bound.served.gateway.metrics().await), (0, 0));
    }
}

#[tokio::test]
async fn more_than_may_wait_are_told_to_come_back() {
    for protocol in Protocol::ALL {
        let bound = Bound::by(setup().with("[auth]\nmax_held = 1"), protocol).await;
        let tap = Tap::before(bound.address()).await;
        let (visit, _) = bound.visitor.early_visit(tap.address).await;
        let first = visit.send(&Asked::chat("1", "")).await;
        bound.until("it waits", |m| early(m, "held") == 1).await;
        let second = visit.send(&Asked::chat("2", "")).await;
        let rpc = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
        let third = visit.send(&Asked::new("POST", "/rpc", rpc)).await;
        // Who needs not wait is not in their way.
        let fourth = Asked::chat("4", &bound.token).proven(visit.secrets.early());
        let fourth = visit.send(&fourth).await;
        bound
            .until("two are refused", |m| early(m, "refused") == 2)
            .await;
        bound
            .until("one is served", |m| early(m, "served") == 1)
            .await;
        tap.release();
        assert_eq!(first.answer().await.outcome(), (200, "ok".into()));
        let outcome = second.answer().await.outcome();
        assert_eq!(outcome, (425, "too_early".into()));
        let third = third.answer().await;
        assert_eq!(third.status, 425);
        assert_eq!(third.json()["error"]["code"], -32014);
        assert_eq!(fourth.answer().await.outcome(), (200, "ok".into()));
        // The place is free again.
        finish_when_ended(&visit).await;
        let metrics = bound.served.gateway.metrics().await;
        assert_eq!(generated(&metrics), (6, 2));
        assert_eq!(refused(&metrics, "too_early"), 2);
    }
}

#[tokio::test]
async fn a_refusal_of_frames_comes_in_frames() {
    let bound = Bound::by(setup().with("[auth]\nmax_held = 0"), Protocol::Sluice).await;
    let tap = Tap::before(bound.address()).await;
    let (visit, _) = bound.visitor.early_visit(tap.address).await;
    let sluice = crate::support::Sluice(visit.connection.clone());
    let body = chat_body("scripted?tokens=1", "x", "");
    let mut exchange = sluice.ask("POST", CHAT, &[], body.as_bytes()).await;
    bound
        .until("it is refused", |m| early(m, "refused") == 1)
        .await;
    tap.release();
    let (status, kind, _) = exchange.refused().await;
    assert_eq!((status, &*kind), (425, "too_early"));
}

#[tokio::test]
async fn a_token_is_not_bound_in_early_data_nor_from_a_bound_one() {
    for protocol in Protocol::ALL {
        let bound = Bound::by(setup(), protocol).await;
        let tap = Tap::before(bound.address()).await;
        let (visit, _) = bound.visitor.early_visit(tap.address).await;
        let plain = visit.send(&Asked::new("POST", BIND, "")).await;
        let again = Asked {
            id: "1",
            token: bound.token.clone(),
            ..Asked::new("POST", BIND, "{}")
        };
        let again = again.proven(visit.secrets.early());
        let again = visit.send(&again).await;
        let rpc = Asked {
            id: "2",
            token: bound.token.clone(),
            ..Asked::new(
                "POST",
                "/rpc",
                r#"{"jsonrpc":"2.0","id":1,"method":"bind"}"#,
            )
        };
        let rpc = rpc.proven(visit.secrets.early());
        let rpc = visit.send(&rpc).await;
        bound.until("two wait", |m| early(m, "held") == 2).await;
        bound
            .until("one is served", |m| early(m, "served") == 1)
            .await;
        tap.release();
        assert_eq!(plain.answer().await.status, 200, "after the handshake");
        let outcome = again.answer().await.outcome();
        assert_eq!(outcome, (403, "already_bound".into()));
        let rpc = rpc.answer().await.json();
        assert_eq!(rpc["error"]["code"], -32014, "{rpc}");
    }
}

#[tokio::test]
async fn a_token_that_json_rpc_has_bound_is_as_good() {
    for protocol in Protocol::ALL {
        let served = Served::by(setup()).await;
        let visitor = Visitor::new(&served, protocol);
        let visit = visitor.visit(served.gateway.secure()).await;
        let rpc = Asked::new(
            "POST",
            "/rpc",
            r#"{"jsonrpc":"2.0","id":1,"method":"bind"}"#,
        );
        let answer = visit.ask(&rpc).await.json();
        let token = answer["result"]["token"].as_str().expect("a token");
        assert!(answer["result"]["expires_at"].is_u64(), "{answer}");
        let asked = Asked::chat("1", token).proven(visit.secrets.full());
        assert_eq!(visit.ask(&asked).await.outcome(), (200, "ok".into()));
        let bad = visit.ask(&Asked::new("POST", BIND, r#"{"a":1}"#)).await;
        assert_eq!(bad.status, 400);
    }
}

#[tokio::test]
async fn what_a_proxy_forwards_as_early_is_served_only_if_it_is_safe() {
    let gateway = setup().start().await;
    let chat = gateway.chat("scripted?tokens=1", "x", "");
    let chat = chat.header("early-data", "1").send().await;
    assert_eq!(chat.header("x-should-retry"), "true");
    assert_eq!(chat.refusal().await, (425, "too_early".into()));
    let rpc = gateway.post("/rpc", r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#);
    let rpc = rpc.header("early-data", "1").send().await;
    assert_eq!(rpc.status, 425);
    assert_eq!(rpc.json().await["error"]["code"], -32014);
    let models = gateway.get("/v1/models").header("early-data", "1");
    assert_eq!(models.send().await.status, 200);
    let metrics = gateway.metrics().await;
    assert_eq!(
        (generated(&metrics), refused(&metrics, "too_early")),
        ((0, 0), 2)
    );
    assert_eq!(early(&metrics, "refused"), 0, "it was not early here");
}

#[tokio::test]
#[ignore = "a measurement"]
#[expect(clippy::print_stdout, reason = "the measurement")]
async fn the_round_trip_that_early_data_saves() {
    const ROUNDS: usize = 5;
    let bound = Bound::by(setup(), Protocol::Sluice).await;
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[ROUNDS / 2]
    };
    for millis in [20, 50] {
        let (mut full, mut early) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let tap = Tap::late(bound.address(), Duration::from_millis(millis)).await;
            let start = Instant::now();
            let visit = bound.visitor.visit(tap.address).await;
            let answer = visit.ask(&Asked::chat("", "")).await;
            full.push(start.elapsed());
            assert_eq!(answer.outcome(), (200, "ok".into()));
            let id = format!("{millis}-{round}").leak();
            let start = Instant::now();
            let (visit, _) = bound.visitor.early_visit(tap.address).await;
            let asked = Asked::chat(id, &bound.token).proven(visit.secrets.early());
            let answer = visit.ask(&asked).await;
            early.push(start.elapsed());
            assert_eq!(answer.outcome(), (200, "ok".into()));
        }
        let (full, early) = (median(full), median(early));
        println!("RTT {} ms: 1-RTT {full:.1?}, 0-RTT {early:.1?}", 2 * millis);
    }
}
