//! Streams whose connection is lost on the way, and that come whole all the same.

use std::net::SocketAddr;
use std::time::Duration;

use sluicegate::client::{ChatRequest, Client, Endpoint, Error, Options, Transport};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{chat, next_text, rest, way};
use crate::support::{Metrics, Served, Tap, gateway, within};

/// A relay of TCP connections, which can cut them.
struct Relay {
    address: SocketAddr,
    cut: watch::Sender<()>,
    _task: AbortOnDropHandle<()>,
}

impl Relay {
    async fn before(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, _) = watch::channel(());
        let cuts = cut.clone();
        let task = async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut cut = cuts.subscribe();
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(to).await.unwrap();
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        };
        Self {
            address,
            cut,
            _task: AbortOnDropHandle::new(tokio::spawn(task)),
        }
    }

    /// Closes every connection.
    fn cut(&self) {
        self.cut.send_replace(());
    }
}

/// A text in which each token has its number.
fn numbered(pace: &str) -> (String, String) {
    let words: Vec<_> = (0..100).map(|number| format!("{number:03},")).collect();
    let text = words.concat();
    let model = format!("scripted?text={text}&token_bytes=4&tokens=100&pace={pace}");
    (text, model)
}

fn resuming(transport: Transport) -> Options {
    Options {
        resume: true,
        ..transport.into()
    }
}

#[tokio::test]
async fn a_stream_whose_tcp_connection_is_cut_comes_whole_and_once() {
    let gateway = gateway().scripted().with("[stream]\nresume = true");
    let gateway = gateway.start().await;
    let relay = Relay::before(gateway.public).await;
    let endpoint = Endpoint::parse(&relay.address.to_string()).unwrap();
    let (expected, model) = numbered("3ms");
    for transport in [Transport::Http1, Transport::Http2] {
        let client = Client::new(endpoint.clone(), resuming(transport));
        let mut stream = chat(&client, &model).await;
        let mut text = String::new();
        for _ in 0..3 {
            for _ in 0..8 {
                text += &next_text(&mut stream).await.expect("it goes on");
            }
            relay.cut();
        }
        text += &rest(&mut stream).await;
        assert_eq!(text, expected, "{transport:?}");
    }
    let ended = |m: &Metrics| m.ended("ok") == 2;
    let metrics = gateway.until("each ran once, to its end", ended).await;
    assert_eq!(metrics.ended_in_all(), 2);
}

#[tokio::test]
async fn a_stream_whose_quic_connection_is_lost_comes_whole_and_once() {
    // How soon both sides know that it is lost.
    let quic = "[quic]\nidle_timeout = '1s'\nkeep_alive = '200ms'\n[stream]\nresume = true";
    let served = Served::by(gateway().scripted().with(quic)).await;
    // What is made after the loss, which is noticed after a second, can only come over another connection.
    let (expected, model) = numbered("20ms");
    let mut ended = 0;
    for transport in [Transport::Http3, Transport::Quic] {
        let tap = Tap::before(served.gateway.secure()).await;
        tap.release();
        let mut options = way(transport, true).options(&served);
        options.resume = true;
        // An attempt that meets the closed tap gives way to the next, which is then let through.
        options.quic_patience = Duration::from_secs(1);
        let endpoint = Endpoint::parse(&format!("https://{}", tap.address)).unwrap();
        let client = Client::new(endpoint, options);
        let mut stream = chat(&client, &model).await;
        let mut text = String::new();
        for _ in 0..8 {
            text += &next_text(&mut stream).await.expect("it goes on");
        }
        tap.hold();
        ended += 1;
        let alone = |m: &Metrics| m.ended("ok") == ended;
        // The client asks for the rest meanwhile, again and again.
        let ((), rest) = tokio::join!(
            async {
                served
                    .gateway
                    .until("it ends without a reader", alone)
                    .await;
                tap.release();
            },
            rest(&mut stream)
        );
        assert_eq!(text + &rest, expected, "{transport:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_resumed_ends_with_the_loss() {
    for resume in [false, true] {
        let gateway = gateway().scripted();
        // Either side may not want it.
        let gateway = gateway
            .with(&format!("[stream]\nresume = {}", !resume))
            .start()
            .await;
        let relay = Relay::before(gateway.public).await;
        let endpoint = Endpoint::parse(&relay.address.to_string()).unwrap();
        let options = Options {
            resume,
            ..Transport::Http1.into()
        };
        let client = Client::new(endpoint, options);
        let request = ChatRequest::new("scripted?tokens=9&stall_at=2&stall=1h").user("x");
        let mut stream = within(client.chat(&request)).await.unwrap();
        next_text(&mut stream).await.expect("it begins");
        relay.cut();
        let error = loop {
            match within(stream.next()).await.expect("no good end") {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(
            matches!(error, Error::Http(_) | Error::Truncated),
            "{error:?}"
        );
        assert!(within(stream.next()).await.is_none());
    }
}

#[tokio::test]
async fn dropping_a_stream_that_the_server_keeps_ends_it_all_the_same() {
    let served = Served::by(gateway().scripted().with("[stream]\nresume = true")).await;
    let gateway = &served.gateway;
    let mut gone = 0;
    for way in super::WAYS {
        let client = way.client(&served);
        let mut stream = chat(&client, "scripted?tokens=100000000&pace=1ms").await;
        next_text(&mut stream).await.expect("it begins");
        drop(stream);
        gone += 1;
        let freed = |m: &Metrics| m.ended("client_gone") == gone && m.running() == 0;
        gateway.until(&format!("it is freed, {way}"), freed).await;

        // One that was read to its end is still kept, for whoever wants it again.
        let mut stream = chat(&client, "scripted?text=abcd&tokens=2").await;
        assert_eq!(rest(&mut stream).await, "abcdabcd", "{way}");
        drop(stream);
        client.close().await;
        let kept = gateway.metrics().await.sum("streams_kept", &[]);
        assert_eq!(kept, gone, "{way}");
    }
}
