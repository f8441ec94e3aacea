//! What each transport counts over real sockets: connections, requests, bytes, packets, resets.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::support::{
    CHAT, Certified, Metrics, Served, TestGateway, chat_body, connect, gateway, within,
};

/// Its events are some 60 KB.
const MANY: &str = "scripted?text=abcd&tokens=300";

/// The second token comes in an hour.
const SLOW: &str = "scripted?text=abcd&tokens=2&pace=1h";

fn of(metrics: &Metrics, series: &str, transport: &str) -> u64 {
    metrics.sum(series, &[&format!("transport=\"{transport}\"")])
}

fn bytes(metrics: &Metrics, transport: &str) -> [u64; 2] {
    ["in", "out"].map(|direction| {
        let transport = format!("transport=\"{transport}\"");
        let direction = format!("direction=\"{direction}\"");
        metrics.sum("bytes_total", &[&transport, &direction])
    })
}

/// Connections and requests by transport, in the order of their names.
fn open(metrics: &Metrics) -> [(u64, u64); 4] {
    ["h1", "h2", "h3", "sluice"].map(|transport| {
        (
            of(metrics, "transport_connections", transport),
            of(metrics, "requests_open", transport),
        )
    })
}

/// The metrics once every connection has ended. The page that first says so may have been begun before, and its
/// counters may be older than its gauges.
async fn closed(gateway: &TestGateway) -> Metrics {
    let closed = |m: &Metrics| open(m) == [(0, 0); 4];
    gateway.until("all is closed", closed).await;
    gateway.metrics().await
}

/// Bytes went in this transport only: at least the body's, and not many more.
fn carried(metrics: &Metrics, transport: &str, body: usize) {
    for other in ["h1", "h2", "h3", "sluice"] {
        let [came, went] = bytes(metrics, other);
        if other == transport {
            let body = body as u64;
            assert!(went >= body && went < 4 * body + 20_000, "{went} of {body}");
            assert!((50..20_000).contains(&came), "{came}");
        } else {
            assert_eq!((came, went), (0, 0), "{other}");
        }
    }
}

type Http2 = hyper::client::conn::http2::SendRequest<Full<Bytes>>;

async fn http2(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
) -> Http2 {
    let io = TokioIo::new(stream);
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
    let (sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    sender
}

fn http2_chat(model: &str) -> hyper::Request<Full<Bytes>> {
    hyper::Request::post(format!("https://localhost{CHAT}"))
        .body(Full::from(chat_body(model, "x", r#""stream":true"#)))
        .unwrap()
}

#[tokio::test]
async fn bytes_and_what_is_open_are_counted_for_http1() {
    let gateway = gateway().scripted().start().await;
    let reply = gateway.chat(MANY, "x", r#""stream":true"#).send().await;
    let body = reply.bytes().await.len();
    carried(&closed(&gateway).await, "h1", body);

    let mut reply = gateway.chat(SLOW, "x", r#""stream":true"#).send().await;
    reply.next_event().await.expect("it began");
    assert_eq!(open(&gateway.metrics().await)[0], (1, 1));
    drop(reply);
    closed(&gateway).await;
}

#[tokio::test]
async fn bytes_and_what_is_open_are_counted_for_http2_over_tls() {
    let certified = Certified::new();
    let setup = gateway().scripted().with(&certified.section());
    let gateway = setup.start().await;
    let client = certified.client();
    let stream = connect(gateway.secure(), client, &["h2"]).await.unwrap();
    let mut sender = http2(stream).await;
    let response = within(sender.send_request(http2_chat(MANY))).await.unwrap();
    let body = within(response.into_body().collect()).await.unwrap();
    let body = body.to_bytes().len();
    let ended = |m: &Metrics| open(m)[1] == (1, 0);
    gateway.until("it has ended", ended).await;
    let mut response = within(sender.send_request(http2_chat(SLOW))).await.unwrap();
    within(response.body_mut().frame()).await.unwrap().unwrap();
    assert_eq!(open(&gateway.metrics().await)[1], (1, 1));
    drop(response);
    let reset = |m: &Metrics| m.sum("http2_resets_total", &["reason=\"cancel\""]) == 1;
    let metrics = gateway.until("the reset is counted", reset).await;
    assert_eq!(metrics.sum("http2_resets_total", &[]), 1);
    drop(sender);
    let metrics = closed(&gateway).await;
    carried(&metrics, "h2", body);
    assert_eq!(
        metrics.sum("tls_handshake_seconds_count", &["over=\"tcp\""]),
        1
    );
}

#[tokio::test]
async fn bytes_packets_and_what_is_open_are_counted_for_quic() {
    let served = Served::by(gateway().scripted()).await;
    let gateway = &served.gateway;
    let http = served.http3().await;
    let body = http.chat(MANY, "").await.text().await.len();
    let mut slow = http.chat(SLOW, "").await;
    slow.next_event().await.expect("it began");
    let metrics = gateway.metrics().await;
    assert_eq!(open(&metrics)[2], (1, 1));
    assert_eq!(
        metrics.sum("tls_handshake_seconds_count", &["over=\"quic\""]),
        1
    );
    drop((slow, http));
    let metrics = closed(gateway).await;
    carried(&metrics, "h3", body);
    let sent = metrics.sum("quic_packets_total", &["event=\"sent\""]);
    assert!(sent >= 10, "{sent}");
    assert!(metrics.sum("quic_datagrams_total", &["direction=\"in\""]) >= 5);
    assert!(metrics.sum("quic_acks_total", &["direction=\"in\""]) >= 1);

    let before = bytes(&metrics, "h3");
    let sluice = served.sluice().await;
    let mut exchange = sluice.chat(MANY, "").await;
    exchange.text().await;
    assert_eq!(
        of(&gateway.metrics().await, "transport_connections", "sluice"),
        1
    );
    drop((exchange, sluice));
    let metrics = closed(gateway).await;
    assert_eq!(bytes(&metrics, "h3"), before);
    assert!(bytes(&metrics, "sluice")[1] > 2_000);
}

#[tokio::test]
async fn a_live_connection_is_in_the_counts_before_it_ends() {
    let served = Served::by(gateway().scripted()).await;
    let sluice = served.sluice().await;
    let mut exchange = sluice.chat(SLOW, "").await;
    exchange.next().await;
    let seen = |m: &Metrics| {
        bytes(m, "sluice")[1] > 0 && m.sum("quic_packets_total", &["event=\"sent\""]) > 0
    };
    served.gateway.until("it is seen", seen).await;
}
