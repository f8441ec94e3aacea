//! Streams whose connection is lost on the way, and that come whole all the same.

use std::net::SocketAddr;

use sluicegate::client::{ChatRequest, Client, Endpoint, Error, Options, Transport};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{chat, next_text, rest, way};
use crate::support::{Metrics, Served, gateway, within};

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
fn numbered() -> (String, String) {
    let words: Vec<_> = (0..100).map(|number| format!("{number:03},")).collect();
    let text = words.concat();
    let model = format!("scripted?text={text}&token_bytes=4&tokens=100&pace=3ms");
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
    let (expected, model) = numbered();
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
async fn a_stream_whose_quic_connection_is_closed_comes_whole_and_once() {
    let served = Served::by(gateway().scripted().with("[stream]\nresume = true")).await;
    let (expected, model) = numbered();
    for transport in [Transport::Http3, Transport::Quic] {
        let mut options = way(transport, true).options(&served);
        options.resume = true;
        let url = format!("https://{}", served.gateway.secure());
        let client = Client::new(Endpoint::parse(&url).unwrap(), options);
        let mut stream = chat(&client, &model).await;
        let mut text = String::new();
        for _ in 0..3 {
            for _ in 0..8 {
                text += &next_text(&mut stream).await.expect("it goes on");
            }
            // Under the stream's feet; what follows goes over another one.
            client.close().await;
        }
        text += &rest(&mut stream).await;
        assert_eq!(text, expected, "{transport:?}");
    }
    let ended = |m: &Metrics| m.ended("ok") >= 2;
    let metrics = served.gateway.until("each ran to its end", ended).await;
    let chats = metrics.sum("requests_total", &["route=\"chat\""]);
    assert_eq!(chats, 2, "each ran once\n{metrics}");
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
