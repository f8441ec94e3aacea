//! A client that has a key shows it as seldom as it can.

use sluicegate::client::{ApiKey, Client, Endpoint, Error, Options, Transport};

use super::{WAYS, chat, rest, way};
use crate::keys::{entry, key};
use crate::support::{Metrics, Served, gateway, within};

async fn asking() -> Served {
    let setup = gateway().scripted().with(&entry("auth.keys", "a", ""));
    Served::by(setup).await
}

#[tokio::test]
async fn a_key_is_good_over_every_transport_and_a_wrong_one_is_told_what_to_do() {
    let served = asking().await;
    for way in WAYS {
        let url = if way.is_secure {
            format!("https://{}", served.gateway.secure())
        } else {
            served.gateway.url()
        };
        let client = |key: Option<&str>| {
            let options = Options {
                api_key: key.map(ApiKey::new),
                ..way.options(&served)
            };
            Client::new(Endpoint::parse(&url).unwrap(), options)
        };
        let known = client(Some(&key("a")));
        for _ in 0..3 {
            let mut stream = chat(&known, "scripted?text=abcd&tokens=3").await;
            assert_eq!(rest(&mut stream).await, "abcdabcdabcd", "{way}");
        }
        for wrong in [None, Some("key-of-b")] {
            let error = within(client(wrong).models()).await.unwrap_err();
            assert!(
                matches!(error, Error::Refused { status, .. } if status == 401),
                "{way}: {error:?}"
            );
            let text = error.to_string();
            assert!(
                text.contains("SLUICEGATE_API_KEY") && !text.contains("key-of"),
                "{text}"
            );
        }
    }
}

#[tokio::test]
async fn a_token_of_the_key_opens_the_next_connection_early() {
    let served = asking().await;
    let gateway = &served.gateway;
    for transport in [Transport::Http3, Transport::Quic] {
        let endpoint = Endpoint::parse(&format!("https://{}", gateway.secure())).unwrap();
        let options = Options {
            api_key: Some(ApiKey::new(&key("a"))),
            ..way(transport, true).options(&served)
        };
        let client = Client::new(endpoint, options);
        let bound = |m: &Metrics| m.sum("requests_total", &["route=\"bind\"", "outcome=\"ok\""]);
        let was_bound = bound(&gateway.metrics().await);
        within(client.models()).await.unwrap();
        let is_bound = |m: &Metrics| bound(m) == was_bound + 1;
        gateway.until("it has a token", is_bound).await;
        let early = |m: &Metrics| m.sum("early_requests_total", &["decision=\"served\""]);
        let before = early(&gateway.metrics().await);
        // The token may still be under way to the client, and a machine that stops for a while may see
        // the end of the handshake first.
        for round in 1.. {
            within(client.models()).await.unwrap();
            client.close().await;
            within(client.models()).await.unwrap();
            let now = gateway.metrics().await;
            assert_eq!(now.sum("auth_refusals_total", &[]), 0, "{now}");
            if early(&now) > before {
                break;
            }
            assert!(round < 50, "it is never early\n{now}");
        }
    }
}
