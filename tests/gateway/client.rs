//! The client library against a gateway: the same over every transport, and what only some of them can.

mod early;
mod keys;
mod resume;

use std::fmt;
use std::time::Duration;

use sluicegate::client::{ChatRequest, ChatStream, Client, Endpoint, Error, Event, Options};
use sluicegate::client::{Transport, Usage};
use tokio::net::UdpSocket;
use tokio::time::Instant;

use crate::support::{Certified, Metrics, Served, gateway, read_certificate, within};
use crate::windows::settled;

/// A way to the gateway.
#[derive(Clone, Copy, Debug)]
struct Way {
    transport: Transport,
    is_secure: bool,
}

const WAYS: [Way; 6] = [
    way(Transport::Http1, false),
    way(Transport::Http2, false),
    way(Transport::Http1, true),
    way(Transport::Http2, true),
    way(Transport::Http3, true),
    way(Transport::Quic, true),
];

const fn way(transport: Transport, is_secure: bool) -> Way {
    Way {
        transport,
        is_secure,
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let security = if self.is_secure {
            "over TLS"
        } else {
            "in clear text"
        };
        write!(f, "{} {security}", self.transport.name())
    }
}

impl Way {
    /// A client that trusts the gateway's own certificate.
    fn client(self, served: &Served) -> Client {
        let url = if self.is_secure {
            format!("https://{}", served.gateway.secure())
        } else {
            served.gateway.url()
        };
        Client::new(Endpoint::parse(&url).unwrap(), self.options(served))
    }

    /// A machine that is busy with other things is no blocked network.
    fn patient(self) -> Options {
        Options {
            quic_patience: Duration::from_secs(30),
            ..self.transport.into()
        }
    }

    /// Trusts the gateway's own certificate.
    fn options(self, served: &Served) -> Options {
        Options {
            certificates: vec![read_certificate(&served.state.path().join("dev-cert.pem"))],
            ..self.patient()
        }
    }
}

async fn served() -> Served {
    Served::by(gateway().scripted()).await
}

async fn chat(client: &Client, model: &str) -> ChatStream {
    let request = ChatRequest::new(model).user("x");
    within(client.chat(&request)).await.unwrap()
}

async fn next(stream: &mut ChatStream) -> Option<Event> {
    within(stream.next()).await.map(Result::unwrap)
}

async fn next_text(stream: &mut ChatStream) -> Option<String> {
    while let Some(event) = next(stream).await {
        if let Event::Text { text, .. } = event {
            return Some(text);
        }
    }
    None
}

async fn rest(stream: &mut ChatStream) -> String {
    let mut all = String::new();
    while let Some(text) = next_text(stream).await {
        all += &text;
    }
    all
}

#[tokio::test]
async fn the_same_is_said_over_every_transport() {
    let served = served().await;
    for way in WAYS {
        let client = way.client(&served);
        let models = within(client.models()).await.unwrap();
        assert_eq!(models[0].id, "scripted", "{way}");
        let mut stream = chat(&client, "scripted?text=abcd&tokens=300").await;
        let (mut text, mut others) = (String::new(), Vec::new());
        while let Some(event) = next(&mut stream).await {
            match event {
                Event::Text { text: piece, .. } => text += &piece,
                other => others.push(other),
            }
        }
        assert_eq!(text, "abcd".repeat(300), "{way}");
        let [role, finish, Event::Usage(usage)] = &others[..] else {
            panic!("{way}: {others:?}");
        };
        let expected = Event::Role {
            choice: 0,
            role: "assistant".to_owned(),
        };
        assert_eq!(*role, expected, "{way}");
        assert!(
            matches!(finish, Event::Finish { choice: 0, reason } if reason == "stop"),
            "{way}: {finish:?}"
        );
        let Usage {
            completion_tokens, ..
        } = usage;
        assert_eq!(*completion_tokens, 300, "{way}");
        assert_eq!(client.transport(), way.transport);
        assert_eq!(client.take_fall_back(), None);
    }
}

#[tokio::test]
async fn raw_events_are_server_sent_events_over_every_transport() {
    let served = served().await;
    for way in WAYS {
        let client = way.client(&served);
        let request = ChatRequest::new("scripted?text=abcd&tokens=2").user("x");
        let mut frames = within(client.chat_frames(&request)).await.unwrap();
        let mut count = 0;
        while let Some(message) = within(frames.next()).await.unwrap() {
            assert!(serde_json::from_slice::<serde_json::Value>(message.data).is_ok());
            count += 1;
        }
        assert!(count >= 3, "{way}: {count} events");
    }
}

#[tokio::test]
async fn a_refusal_is_the_servers_words_over_every_transport() {
    let served = served().await;
    for way in WAYS {
        let client = way.client(&served);
        let request = ChatRequest::new("nobody").user("x");
        match within(client.chat(&request)).await.unwrap_err() {
            Error::Refused {
                status, message, ..
            } => {
                assert_eq!(status, 404, "{way}");
                assert!(message.contains("nobody"), "{way}: {message}");
            }
            other => panic!("{way}: {other}"),
        }
    }
}

#[tokio::test]
async fn dropping_a_stream_frees_its_sequence_over_every_transport() {
    let served = served().await;
    let gateway = &served.gateway;
    // In mid-stream, and while nothing is being sent.
    let models = [
        "scripted?tokens=100000000&pace=1ms",
        "scripted?tokens=9&stall_at=2&stall=1h",
    ];
    let mut gone = 0;
    for way in WAYS {
        let client = way.client(&served);
        for model in models {
            let mut stream = chat(&client, model).await;
            next_text(&mut stream).await.expect("it begins");
            drop(stream);
            gone += 1;
            let freed = |m: &Metrics| m.ended("client_gone") == gone && m.running() == 0;
            gateway.until(&format!("it is freed, {way}"), freed).await;
        }
        // The client is as good as before.
        let mut stream = chat(&client, "scripted?text=abcd&tokens=2").await;
        assert_eq!(rest(&mut stream).await, "abcdabcd", "{way}");
    }
}

#[tokio::test]
async fn a_reader_who_stops_is_felt_by_the_engine_over_every_transport() {
    let served = served().await;
    let gateway = &served.gateway;
    for way in WAYS {
        let client = way.client(&served);
        let before = settled(gateway).await;
        let mut stream = chat(&client, "scripted?tokens=100000000&token_bytes=16").await;
        next_text(&mut stream).await.expect("it begins");
        // What is on the way: the gateway's budget, our window; of HTTP/1.1 what the kernel takes.
        let bytes = match way.transport {
            Transport::Http1 => 8 << 20,
            _ => 256 << 10,
        };
        let pulled = settled(gateway).await - before;
        assert!(pulled <= bytes / 16, "{way}: {pulled} tokens");
        // A reader who goes on is served on.
        for _ in 0..2 * pulled {
            next_text(&mut stream).await.expect("it goes on");
        }
        drop(stream);
        gateway.until("it is freed", |m| m.running() == 0).await;
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_named_and_can_be_taken_all_the_same() {
    let served = served().await;
    let url = format!("https://{}", served.gateway.secure());
    for way in WAYS.into_iter().filter(|way| way.is_secure) {
        let endpoint = Endpoint::parse(&url).unwrap();
        let stranger = Client::new(endpoint.clone(), way.patient());
        let error = within(stranger.models()).await.unwrap_err();
        assert!(
            matches!(error, Error::Certificate { is_local: true, .. }),
            "{way}: {error:?}"
        );
        assert!(error.to_string().contains("--insecure"), "{error}");
        assert_eq!(
            stranger.transport(),
            way.transport,
            "UDP is not what was wrong"
        );
        let options = Options {
            insecure: true,
            ..way.patient()
        };
        let client = Client::new(endpoint, options);
        assert_eq!(within(client.models()).await.unwrap()[0].id, "scripted");
    }
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    // It is for localhost, and for no address.
    let certified = Certified::new();
    let gateway = gateway().scripted().with(&certified.section());
    let gateway = gateway.start().await;
    let port = gateway.secure().port();
    for way in WAYS.into_iter().filter(|way| way.is_secure) {
        let options = Options {
            certificates: vec![certified.certificate()],
            ..way.patient()
        };
        for (host, fits) in [("localhost", true), ("127.0.0.1", false)] {
            let endpoint = Endpoint::parse(&format!("https://{host}:{port}")).unwrap();
            let client = Client::new(endpoint, options.clone());
            match within(client.models()).await {
                Ok(_) => assert!(fits, "{way}: {host}"),
                Err(error) => {
                    let is_refused = matches!(error, Error::Certificate { .. });
                    assert!(!fits && is_refused, "{way}: {host}: {error:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn quic_needs_an_https_url() {
    let served = served().await;
    let endpoint = Endpoint::parse(&served.gateway.url()).unwrap();
    let client = Client::new(endpoint, Transport::Quic);
    let error = within(client.models()).await.unwrap_err();
    assert!(matches!(error, Error::NotSecure), "{error:?}");
}

#[tokio::test]
async fn where_udp_is_swallowed_http2_is_spoken_and_remembered() {
    let served = Served::by(gateway().scripted().with("[quic]\nenabled = false")).await;
    let black_hole = UdpSocket::bind(served.gateway.secure()).await.unwrap();
    for transport in [Transport::Http3, Transport::Quic] {
        let mut options = way(transport, true).options(&served);
        options.quic_patience = Options::default().quic_patience;
        let url = format!("https://{}", served.gateway.secure());
        let client = Client::new(Endpoint::parse(&url).unwrap(), options);
        let mut stream = chat(&client, "scripted?text=abcd&tokens=30").await;
        assert_eq!(rest(&mut stream).await, "abcd".repeat(30));
        assert_eq!(client.transport(), Transport::Http2);
        assert_eq!(client.take_fall_back(), Some(transport));
        assert_eq!(client.take_fall_back(), None, "told once");

        let mut datagram = [0; 2048];
        let (_, from) = within(black_hole.recv_from(&mut datagram)).await.unwrap();
        while black_hole.try_recv(&mut datagram).is_ok() {}
        assert!(within(client.models()).await.is_ok());
        let again = black_hole.try_recv(&mut datagram);
        assert!(again.is_err(), "{from} does not try UDP again");
    }
}

#[tokio::test]
async fn a_stream_goes_on_from_another_address() {
    let served = served().await;
    for transport in [Transport::Http3, Transport::Quic] {
        let client = way(transport, true).client(&served);
        let mut stream = chat(&client, "scripted?text=abcd&tokens=150&pace=10ms").await;
        let mut text = next_text(&mut stream).await.expect("it begins");
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        let mut moves = 0;
        while let Some(more) = next_text(&mut stream).await {
            text += &more;
            longest = longest.max(last.elapsed());
            last = Instant::now();
            if text.len() >= 4 * 40 * (moves + 1) && moves < 2 {
                moves += 1;
                client.rebind().await.unwrap();
            }
        }
        assert_eq!((text, moves), ("abcd".repeat(150), 2), "{transport:?}");
        // On a machine with nothing else to do it is about 20 ms.
        assert!(
            longest < Duration::from_secs(2),
            "{transport:?}: {longest:?}"
        );
    }
}

#[tokio::test]
async fn what_is_told_at_the_end_arrives() {
    let served = served().await;
    for transport in [Transport::Http3, Transport::Quic] {
        let client = way(transport, true).client(&served);
        within(client.models()).await.unwrap();
        let open = |count| move |m: &Metrics| m.sum("connections_open", &[]) == count;
        // The other one is the operator's own.
        client.close().await;
        served.gateway.until("it is closed", open(0)).await;
    }
}
