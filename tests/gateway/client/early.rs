//! A client that comes again asks in its first packet.

use std::time::Duration;

use sluicegate::client::{ChatRequest, Client, Endpoint, Error, Transport};

use super::{chat, rest, way};
use crate::support::{Metrics, Served, Tap, gateway, within};

fn served_early(metrics: &Metrics) -> u64 {
    metrics.sum("early_requests_total", &["decision=\"served\""])
}

#[tokio::test]
async fn a_second_connection_is_served_before_its_handshake_has_ended() {
    let served = Served::by(gateway().scripted()).await;
    let gateway = &served.gateway;
    for transport in [Transport::Http3, Transport::Quic] {
        // So far away that the rest of the handshake comes after the request.
        let tap = Tap::late(gateway.secure(), Duration::from_millis(20)).await;
        let endpoint = Endpoint::parse(&format!("https://{}", tap.address)).unwrap();
        let client = Client::new(endpoint, way(transport, true).options(&served));
        let before = gateway.metrics().await;
        let bound = |m: &Metrics| m.sum("requests_total", &["route=\"bind\""]);
        let was_bound = bound(&before);
        within(client.models()).await.unwrap();
        let is_bound = |m: &Metrics| bound(m) == was_bound + 1;
        gateway.until("it has a token", is_bound).await;

        // A machine that stops for a while may see the end of the handshake first.
        for round in 1.. {
            // The token may still be under way to the client.
            within(client.models()).await.unwrap();
            client.close().await;
            let mut stream = chat(&client, "scripted?text=abcd&tokens=30").await;
            assert_eq!(rest(&mut stream).await, "abcd".repeat(30), "{transport:?}");
            let now = gateway.metrics().await;
            assert_eq!(now.sum("auth_refusals_total", &[]), 0, "{now}");
            assert_eq!(bound(&now), was_bound + 1, "one token is enough\n{now}");
            if served_early(&now) > served_early(&before) {
                break;
            }
            assert!(round < 20, "it is never early\n{now}");
        }
        assert_eq!(client.transport(), transport);
    }
}

#[tokio::test]
async fn a_session_that_the_gateway_has_forgotten_costs_a_round_trip_and_nothing_else() {
    // Room for the tickets of one connection: those of the next push them out.
    let served = Served::by(gateway().scripted().with("[auth]\nmax_tickets = 2")).await;
    let gateway = &served.gateway;
    let mut binds = 0;
    for transport in [Transport::Http3, Transport::Quic] {
        let client = way(transport, true).client(&served);
        let other = way(transport, true).client(&served);
        for client in [&client, &other] {
            within(client.models()).await.unwrap();
            binds += 1;
            let is_bound = |m: &Metrics| m.sum("requests_total", &["route=\"bind\""]) == binds;
            gateway.until("it has a token", is_bound).await;
            within(client.models()).await.unwrap();
        }
        client.close().await;
        for _ in 0..2 {
            let mut stream = chat(&client, "scripted?text=abcd&tokens=30").await;
            assert_eq!(rest(&mut stream).await, "abcd".repeat(30), "{transport:?}");
        }
        binds += 1;
        let is_bound = |m: &Metrics| m.sum("requests_total", &["route=\"bind\""]) == binds;
        let metrics = gateway.until("it has a new token", is_bound).await;
        assert_eq!(metrics.sum("auth_refusals_total", &[]), 0, "{metrics}");
        assert_eq!(client.transport(), transport);
    }
    let metrics = gateway.metrics().await;
    assert_eq!(
        metrics.sum("requests_total", &["route=\"chat\""]),
        4,
        "each once"
    );
}

#[tokio::test]
async fn an_early_request_of_which_nothing_comes_back_is_not_sent_again_another_way() {
    let served = Served::by(gateway().scripted()).await;
    let gateway = &served.gateway;
    let chats = |m: &Metrics| m.sum("requests_total", &["route=\"chat\""]);
    let tap = Tap::before(gateway.secure()).await;
    tap.release();
    let endpoint = Endpoint::parse(&format!("https://{}", tap.address)).unwrap();
    let client = Client::new(endpoint, way(Transport::Quic, true).options(&served));
    within(client.models()).await.unwrap();
    let is_bound = |m: &Metrics| m.sum("requests_total", &["route=\"bind\""]) == 1;
    gateway.until("it has a token", is_bound).await;
    for round in 1.. {
        // The token may still be under way to the client; then the request is held, and never served.
        within(client.models()).await.unwrap();
        client.close().await;
        tap.hold();
        let request = ChatRequest::new("scripted?text=abcd&tokens=30").user("x");
        let error = within(client.chat(&request)).await.unwrap_err();
        if matches!(error, Error::Unanswered { .. }) {
            break;
        }
        assert!(round < 20, "it is never early: {error:?}");
        tap.release();
    }
    let once = |m: &Metrics| chats(m) == 1;
    let metrics = gateway.until("it was served", once).await;
    assert_eq!(served_early(&metrics), 1, "{metrics}");
    assert_eq!(client.transport(), Transport::Http2, "from now on");
}
