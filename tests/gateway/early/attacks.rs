//! Whatever was seen or stolen, used in every way that is known: nothing runs twice, nothing runs for
//! somebody else.

use std::net::SocketAddr;

use tokio::net::UdpSocket;

use super::{Bound, early, finish_when_ended, generated, handshakes, refused, setup, tickets};
use crate::support::{Asked, Metrics, Protocol, Served, Tap, Visitor, within};

/// Sends these datagrams as if they came from somebody else.
async fn copy(datagrams: &[Vec<u8>], socket: &UdpSocket, to: SocketAddr) {
    for datagram in datagrams {
        socket
            .send_to(datagram, to)
            .await
            .expect("loopback takes it");
    }
}

#[tokio::test]
async fn a_thousand_copies_of_a_first_flight_start_nothing() {
    for protocol in Protocol::ALL {
        let setup = setup().with("[tls]\nhandshake_timeout = '2s'");
        let bound = Bound::by(setup, protocol).await;
        let tap = Tap::before(bound.address()).await;
        let (visit, _) = bound.visitor.early_visit(tap.address).await;
        let asked = Asked::chat("1", &bound.token).proven(visit.secrets.early());
        let pending = visit.send(&asked).await;
        bound
            .until("it is served", |m| early(m, "served") == 1)
            .await;
        let flight = tap.sent();
        // While the connection is there, its id leads to it.
        for _ in 0..10 {
            let elsewhere = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            copy(&flight, &elsewhere, bound.address()).await;
        }
        tap.release();
        assert_eq!(pending.answer().await.outcome(), (200, "ok".into()));
        for visit in [&visit, &bound.visit] {
            visit.connection.close(0_u32.into(), b"");
        }
        let gone = |m: &Metrics| m.sum("connections_open", &[]) == 0;
        bound.until("they are gone", gone).await;
        // quinn keeps a closed connection's id for a while and says nothing when it forgets it: so copies
        // are sent until one is seen as what it is, and then the rest of the thousand.
        let mut copies = 0;
        let elsewhere = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        within(async {
            while tickets(&bound.served.gateway.metrics().await, "replayed") == 0 {
                copy(&flight, &elsewhere, bound.address()).await;
                copies += 1;
            }
        })
        .await;
        while copies < 1000 {
            let another = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            copy(&flight, &another, bound.address()).await;
            copies += 1;
        }
        let given_up = |m: &Metrics| handshakes(m, "timed_out") >= 1;
        bound.until("the copy is given up", given_up).await;
        let metrics = bound.until("it is gone", gone).await;
        assert_eq!(generated(&metrics), (3, 1), "once, for its owner");
        assert_eq!((early(&metrics, "served"), early(&metrics, "held")), (1, 0));
        assert_eq!(early(&metrics, "refused"), 0, "no stream even surfaces");
    }
}

#[tokio::test]
async fn a_copy_that_overtakes_its_original_runs_once_and_the_owners_repeat_is_refused() {
    for protocol in Protocol::ALL {
        let bound = Bound::by(setup(), protocol).await;
        let tap = Tap::before(bound.address()).await;
        tap.hold_client();
        let (visit, _) = bound.visitor.early_visit(tap.address).await;
        let asked = Asked::chat("1", &bound.token).proven(visit.secrets.early());
        let _lost = visit.send(&asked).await;
        let thief = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut copied = 0;
        within(async {
            while early(&bound.served.gateway.metrics().await, "served") == 0 {
                let sent = tap.sent();
                copy(&sent[copied..], &thief, bound.address()).await;
                copied = sent.len();
            }
        })
        .await;
        let done = bound.until("it has run", |m| generated(m).1 == 1).await;
        assert_eq!(generated(&done), (3, 1));
        // Now the original: it belongs to the copy's connection, which answers to another address.
        tap.release_client();
        tap.release();
        // Its owner gives up waiting, and asks again with the next ticket.
        let tap = Tap::before(bound.address()).await;
        let (visit, _) = bound.visitor.early_visit(tap.address).await;
        let again = Asked::chat("1", &bound.token).proven(visit.secrets.early());
        let again = visit.send(&again).await;
        bound
            .until("it is refused", |m| refused(m, "replayed") == 1)
            .await;
        tap.release();
        let outcome = again.answer().await.outcome();
        assert_eq!(outcome, (409, "request_replayed".into()));
        // After the handshake it is no better.
        finish_when_ended(&visit).await;
        let again = Asked::chat("1", &bound.token).proven(visit.secrets.full());
        let outcome = visit.ask(&again).await.outcome();
        assert_eq!(outcome, (409, "request_replayed".into()));
        assert_eq!(generated(&bound.served.gateway.metrics().await), (3, 1));
    }
}

#[tokio::test]
async fn what_is_stolen_is_worth_nothing_elsewhere() {
    for protocol in Protocol::ALL {
        let bound = Bound::by(setup(), protocol).await;
        let asked = Asked::chat("1", &bound.token).proven(bound.visit.secrets.full());
        let answer = bound.visit.ask(&asked).await;
        assert_eq!(answer.outcome(), (200, "ok".into()));
        // Token and proof, on a connection of the thief's; then with a proof of the thief's.
        let thief = Visitor::new(&bound.served, protocol);
        let theirs = thief.visit(bound.address()).await;
        let proven = Asked::chat("1", &bound.token).proven(theirs.secrets.full());
        for stolen in [&asked, &proven, &Asked::chat("1", &bound.token)] {
            let outcome = theirs.ask(stolen).await.outcome();
            assert_eq!(outcome, (401, "bind_again".into()));
        }
        // The proof alone is worth nothing on the owner's own next connection.
        let next = bound.visitor.visit(bound.address()).await;
        let outcome = next.ask(&asked).await.outcome();
        assert_eq!(outcome, (401, "proof_wrong".into()));
        let proven = Asked::chat("2", &bound.token).proven(next.secrets.full());
        let outcome = next.ask(&proven).await.outcome();
        assert_eq!(outcome, (200, "ok".into()), "the lineage lives on");
        // Early data of the thief's own session is no way in either.
        let tap = Tap::before(bound.address()).await;
        let (early_theirs, _) = thief.early_visit(tap.address).await;
        let proven = Asked::chat("3", &bound.token).proven(early_theirs.secrets.early());
        let pending = early_theirs.send(&proven).await;
        tap.release();
        let outcome = pending.answer().await.outcome();
        assert_eq!(outcome, (401, "bind_again".into()));
        let metrics = bound.served.gateway.metrics().await;
        assert_eq!(generated(&metrics), (6, 2));
        assert_eq!(refused(&metrics, "token_foreign"), 4);
        assert_eq!(refused(&metrics, "proof_wrong"), 1);
    }
}

#[tokio::test]
async fn a_restart_ends_early_data_and_tokens_and_binding_again_brings_both_back() {
    for protocol in Protocol::ALL {
        let Bound {
            served,
            visitor,
            visit,
            token,
        } = Bound::by(setup(), protocol).await;
        drop(visit);
        let Served { mut gateway, state } = served;
        within(gateway.drain()).await.unwrap();
        let setup = setup().self_signed(state.path());
        let served = Served {
            gateway: setup.start().await,
            state,
        };
        let address = served.gateway.secure();
        let (connection, accepted, _) = visitor.early_connection(address).await;
        assert!(!within(accepted).await, "nobody knows the ticket");
        connection.close(0_u32.into(), b"");
        let visit = visitor.visit(address).await;
        let asked = Asked::chat("1", &token).proven(visit.secrets.full());
        let outcome = visit.ask(&asked).await.outcome();
        assert_eq!(outcome, (401, "bind_again".into()));
        let token = visit.bind().await;
        let asked = Asked::chat("1", &token).proven(visit.secrets.full());
        assert_eq!(visit.ask(&asked).await.outcome(), (200, "ok".into()));
        let metrics = served.gateway.metrics().await;
        assert_eq!(refused(&metrics, "token_unknown"), 1);
        assert!(tickets(&metrics, "unknown") >= 1);
        assert_eq!(generated(&metrics), (3, 1));
    }
}
