//! A request's trace and what its transport counts: one for each request, over every transport, from the
//! first byte to the last.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use sluicegate::generation::{Outcome, Told};
use tokio::net::TcpStream;

use crate::keys::{entry, key};
use crate::support::{
    Asked, CHAT, Metrics, Protocol, Served, TestGateway, Traces, Visitor, chat_body, gateway,
    within,
};

const THREE: &str = "scripted?text=abcd&tokens=3";

/// The second token comes in an hour.
const SLOW: &str = "scripted?text=abcd&tokens=2&pace=1h";

const STREAM: &str = r#""stream":true"#;

async fn scripted(more: &str) -> (TestGateway, Arc<Traces>) {
    let traces = Traces::new();
    let setup = gateway().scripted().with(more).traced(&traces);
    (setup.start().await, traces)
}

/// What is told of how a request came.
fn came(told: &Told) -> (&str, &str, &str, u16) {
    let exchange = &told.exchange;
    (
        exchange.transport,
        exchange.method,
        exchange.route,
        exchange.status,
    )
}

/// The header that names this trace.
fn named(told: &Told) -> String {
    let context = &told.context;
    let sampled = u8::from(context.is_sampled);
    format!(
        "00-{:032x}-{:016x}-{sampled:02x}",
        context.trace_id, context.span_id
    )
}

/// A whole generation of three tokens, told once, with this many bytes.
fn is_whole(told: &Told, transport: &str, bytes: usize, header: &str) {
    assert_eq!(came(told), (transport, "POST", CHAT, 200));
    assert_eq!(header, named(told));
    assert_ne!((told.context.trace_id, told.context.span_id), (0, 0));
    assert_eq!(told.exchange.bytes, bytes as u64, "{told:#?}");
    assert!(told.exchange.is_whole, "{told:#?}");
    assert!(told.exchange.id.is_some());
    let [work] = &told.works[..] else {
        panic!("one piece of work: {told:#?}");
    };
    assert_eq!((work.route, work.record.outcome), ("chat", Outcome::Ok));
    assert_eq!(work.record.usage.completion_tokens, 3);
    assert!(told.began_at <= work.accepted_at && work.accepted_at <= told.ended_at);
}

/// A client of HTTP/2 that knows it beforehand.
type Http2 = hyper::client::conn::http2::SendRequest<Full<Bytes>>;

async fn http2(gateway: &TestGateway) -> Http2 {
    let stream = TcpStream::connect(gateway.public).await.unwrap();
    let io = TokioIo::new(stream);
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
    let (sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    sender
}

fn http2_chat(gateway: &TestGateway, model: &str) -> hyper::Request<Full<Bytes>> {
    hyper::Request::post(format!("{}{CHAT}", gateway.url()))
        .body(Full::from(chat_body(model, "x", STREAM)))
        .unwrap()
}

#[tokio::test]
async fn each_request_is_one_trace_over_every_transport() {
    let traces = Traces::new();
    let served = Served::by(gateway().scripted().traced(&traces)).await;
    let gateway = &served.gateway;

    let reply = gateway.chat(THREE, "x", STREAM).send().await;
    let header = reply.header("traceresponse").to_owned();
    let bytes = reply.bytes().await;
    is_whole(&traces.one().await, "h1", bytes.len(), &header);

    let reply = gateway.chat(THREE, "x", "").send().await;
    let header = reply.header("traceresponse").to_owned();
    let bytes = reply.bytes().await;
    is_whole(&traces.one().await, "h1", bytes.len(), &header);

    let request = http2_chat(gateway, THREE);
    let response = http2(gateway).await.send_request(request);
    let response = within(response).await.unwrap();
    let header = response.headers()["traceresponse"].clone();
    let body = within(response.into_body().collect()).await.unwrap();
    let len = body.to_bytes().len();
    is_whole(&traces.one().await, "h2", len, header.to_str().unwrap());

    let http = served.http3().await;
    let mut exchange = http.post(CHAT, chat_body(THREE, "x", STREAM)).await;
    let header = exchange.head().await.1["traceresponse"].clone();
    let len = exchange.text().await.len();
    is_whole(&traces.one().await, "h3", len, header.to_str().unwrap());

    let body = chat_body(THREE, "x", "");
    let fields = [("accept", "application/json")];
    let sluice = served.sluice().await;
    let mut exchange = sluice.ask("POST", CHAT, &fields, body.as_bytes()).await;
    let head = exchange.head().await;
    let header = head.headers.first("traceresponse").unwrap().to_owned();
    let len = exchange.body().await.len();
    is_whole(&traces.one().await, "sluice", len, &header);
    traces.none_yet();
}

#[tokio::test]
async fn a_trace_goes_on_while_its_answer_does_and_ends_when_its_client_leaves() {
    let traces = Traces::new();
    let served = Served::by(gateway().scripted().traced(&traces)).await;
    let gateway = &served.gateway;
    let left = |told: Told, transport: &str| {
        assert_eq!(came(&told), (transport, "POST", CHAT, 200));
        assert!(!told.exchange.is_whole && told.exchange.bytes > 0);
        assert_eq!(told.works.len(), 1);
        assert_eq!(told.works[0].record.outcome, Outcome::ClientGone);
    };

    let mut reply = gateway.chat(SLOW, "x", STREAM).send().await;
    reply.next_event().await.expect("it began");
    traces.none_yet();
    drop(reply);
    left(traces.one().await, "h1");

    let mut sender = http2(gateway).await;
    let response = sender.send_request(http2_chat(gateway, SLOW));
    let mut response = within(response).await.unwrap();
    within(response.body_mut().frame()).await.unwrap().unwrap();
    traces.none_yet();
    drop(response);
    left(traces.one().await, "h2");

    let http = served.http3().await;
    let mut exchange = http.chat(SLOW, "").await;
    exchange.next_event().await.expect("it began");
    traces.none_yet();
    drop(exchange);
    left(traces.one().await, "h3");

    let sluice = served.sluice().await;
    let mut exchange = sluice.chat(SLOW, "").await;
    exchange.next().await;
    exchange.next().await;
    traces.none_yet();
    drop((exchange, sluice));
    left(traces.one().await, "sluice");
}

#[tokio::test]
async fn a_client_that_leaves_before_the_head_has_a_trace_without_a_status() {
    let (gateway, traces) = scripted("").await;
    // Nothing is sent before all is there.
    let ask = gateway.chat(SLOW, "x", "").send();
    let asking = tokio::spawn(ask);
    let runs = |m: &Metrics| m.running() == 1;
    gateway.until("it runs", runs).await;
    traces.none_yet();
    asking.abort();
    let told = traces.one().await;
    assert_eq!(came(&told), ("h1", "POST", CHAT, 0));
    assert_eq!(told.works[0].record.outcome, Outcome::ClientGone);
    assert!(!told.exchange.is_whole && told.exchange.bytes == 0);
}

#[tokio::test]
async fn a_reader_who_stops_is_seen_in_the_trace_and_in_the_metrics() {
    let (gateway, traces) = scripted("[stream]\nstall_timeout = '1s'").await;
    let endless = "scripted?tokens=100000000";
    let ask = gateway.chat(endless, "x", STREAM);
    let mut reply = ask.receive_buffer(4096).send().await;
    reply.next_event().await.expect("it began");
    gateway
        .until("it is cut off", |m| m.ended("stalled") == 1)
        .await;
    drop(reply);
    let told = traces.one().await;
    assert_eq!(told.works[0].record.outcome, Outcome::Stalled);
    assert!(
        told.exchange.stalled >= Duration::from_millis(900),
        "{told:#?}"
    );
    let text = gateway.ops_get("/metrics").send().await.text().await;
    let series = "sluicegate_transport_stall_seconds_total{transport=\"h1\"} ";
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    let seconds: f64 = line.expect("the series").parse().unwrap();
    assert!(seconds >= 0.9, "{seconds}");
}

#[tokio::test]
async fn what_is_refused_is_traced_with_its_status_and_no_path_of_the_callers() {
    let keys = entry("auth.keys", "a", "");
    let (gateway, traces) = scripted(&keys).await;
    let bearer = format!("Bearer {}", key("a"));
    let with_key = |ask: crate::support::Ask| ask.header("authorization", &bearer);
    let table = [
        (
            gateway.chat(THREE, "x", ""),
            ("POST", CHAT, 401),
            Some(Outcome::Limited),
        ),
        (
            with_key(gateway.post(CHAT, "{")),
            ("POST", CHAT, 400),
            Some(Outcome::Invalid),
        ),
        (
            with_key(gateway.get("/nothing/here")),
            ("GET", "", 404),
            None,
        ),
        (with_key(gateway.get(CHAT)), ("GET", CHAT, 405), None),
        (
            with_key(gateway.ask("BREW", "/v1/models/some/path")),
            ("_OTHER", "/v1/models/{*id}", 405),
            None,
        ),
        (
            with_key(gateway.get("/v1/streams/1234")),
            ("GET", "/v1/streams/{id}", 404),
            None,
        ),
        (
            gateway.ask("HEAD", "/app.js"),
            ("HEAD", "/app.js", 200),
            None,
        ),
    ];
    for (ask, (method, route, status), outcome) in table {
        let reply = ask.send().await;
        assert_eq!(reply.status, status, "{method} {route}");
        assert!(!reply.header("traceresponse").is_empty());
        reply.bytes().await;
        let told = traces.one().await;
        assert_eq!(came(&told), ("h1", method, route, status));
        let first = told.works.first();
        assert_eq!(first.map(|work| work.record.outcome), outcome, "{told:#?}");
        assert!(told.exchange.is_whole, "{told:#?}");
    }
}

#[tokio::test]
async fn whatever_is_asked_of_a_model_is_work_of_its_trace() {
    let (gateway, traces) = scripted("").await;
    let rpc = json!({"jsonrpc": "2.0", "id": 1, "method": "tokenize",
        "params": {"model": "scripted", "content": "x"}});
    let table = [
        (
            "/v1/completions",
            json!({"model": THREE, "prompt": "x"}),
            "completions",
        ),
        (
            "/v1/embeddings",
            json!({"model": "scripted", "input": "x"}),
            "embeddings",
        ),
        (
            "/v1/rerank",
            json!({"model": "scripted", "query": "x", "documents": ["y"]}),
            "rerank",
        ),
        (
            "/v1/tokenize",
            json!({"model": "scripted", "content": "x"}),
            "tokenize",
        ),
        (
            "/v1/detokenize",
            json!({"model": "scripted", "tokens": [65]}),
            "tokenize",
        ),
        ("/rpc", rpc, "rpc"),
    ];
    for (path, body, route) in table {
        let reply = gateway.post(path, body.to_string()).send().await;
        assert_eq!(reply.status, 200, "{path}");
        reply.bytes().await;
        let told = traces.one().await;
        assert_eq!(came(&told), ("h1", "POST", path, 200));
        let works: Vec<_> = told.works.iter().map(|work| work.route).collect();
        assert_eq!(works, [route], "{path}");
        assert_eq!(told.works[0].record.outcome, Outcome::Ok);
    }
}

#[tokio::test]
async fn the_calls_of_a_batch_are_the_works_of_one_trace() {
    let (gateway, traces) = scripted("").await;
    let call = |id: u32, model: &str| {
        json!({"jsonrpc": "2.0", "id": id, "method": "complete",
            "params": {"model": model, "prompt": "x"}})
    };
    let batch = json!([call(1, THREE), call(2, THREE), call(3, "unknown")]);
    let reply = gateway.post("/rpc", batch.to_string()).send().await;
    assert_eq!(reply.status, 200);
    reply.bytes().await;
    let told = traces.one().await;
    assert_eq!(came(&told), ("h1", "POST", "/rpc", 200));
    let mut outcomes: Vec<_> = told.works.iter().map(|work| work.record.outcome).collect();
    outcomes.sort_by_key(|outcome| outcome.as_str());
    assert_eq!(outcomes.len(), 3, "{told:#?}");
    assert_eq!(outcomes[1..], [Outcome::Ok; 2]);
}

#[tokio::test]
async fn a_stream_takes_its_trace_along_when_it_outlives_its_connection() {
    let (gateway, traces) = scripted("[stream]\nresume = true").await;
    // Its reader leaves in the first second of three.
    let slow = "scripted?text=abcd&tokens=4&pace=1s";
    let mut reply = gateway.chat(slow, "x", STREAM).send().await;
    let path = format!("/v1/streams/{}?after=0", reply.header("x-stream-id"));
    reply.next_event().await.expect("it began");
    traces.none_yet();
    drop(reply);
    let first = traces.one().await;
    assert_eq!(came(&first), ("h1", "POST", CHAT, 200));
    assert!(!first.exchange.is_whole, "its reader was lost");
    assert_eq!(first.works[0].record.outcome, Outcome::Ok, "it was not");
    assert_eq!(first.works[0].record.usage.completion_tokens, 4);

    let text = gateway.get(&path).send().await.answer().await.text();
    assert_eq!(text, "abcd".repeat(4));
    let second = traces.one().await;
    assert_eq!(came(&second), ("h1", "GET", "/v1/streams/{id}", 200));
    assert!(second.exchange.is_whole && second.works.is_empty());
}

#[tokio::test]
async fn early_data_has_its_trace_like_any_other() {
    for (protocol, transport) in [(Protocol::Http3, "h3"), (Protocol::Sluice, "sluice")] {
        let traces = Traces::new();
        let served = Served::by(gateway().scripted().traced(&traces)).await;
        let visitor = Visitor::new(&served, protocol);
        let visit = visitor.visit(served.gateway.secure()).await;
        let token = visit.bind().await;
        let bound = traces.one().await;
        assert_eq!(bound.works.len(), 1, "{bound:#?}");
        assert_eq!(bound.works[0].route, "bind");
        let (early, _) = visitor.early_visit(served.gateway.secure()).await;
        let asked = Asked::chat("early-1", &token);
        let asked = asked.proven(early.secrets.early());
        assert_eq!(early.ask(&asked).await.status, 200);
        let told = traces.one().await;
        assert_eq!(came(&told), (transport, "POST", CHAT, 200));
        assert_eq!(told.exchange.id.as_ref().unwrap().as_str(), "early-1");
        assert!(told.exchange.is_whole);
    }
}

/// A caller's trace.
const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

#[tokio::test]
async fn no_header_of_a_trace_is_worth_a_refusal() {
    let (gateway, traces) = scripted("").await;
    let long = format!("00-{ID}-00f067aa0ba902b7-01{}", "x".repeat(4000));
    let hostile = [
        format!("00-{}-00f067aa0ba902b7-01", ID.to_uppercase()),
        format!("ff-{ID}-00f067aa0ba902b7-01"),
        format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
        format!("00-{ID}-0000000000000000-01"),
        format!("00-{ID}-00f067aa0ba902b7-01-more"),
        format!("00-{ID}"),
        String::new(),
        long,
    ];
    for parent in hostile {
        let ask = gateway.get("/v1/models").header("traceparent", &parent);
        let reply = ask.header("tracestate", "a=1").send().await;
        assert_eq!(reply.status, 200, "{parent:?}");
        reply.bytes().await;
        let told = traces.one().await;
        assert_ne!(format!("{:032x}", told.context.trace_id), ID, "{parent:?}");
        assert_eq!((told.context.parent, &told.context.state), (None, &None));
    }
    let mut raw = gateway.connect().await;
    let head = b"GET /v1/models HTTP/1.1\r\nhost: x\r\ntraceparent: 00-\xe9\xff\r\n\r\n";
    assert!(raw.send(head).await);
    assert!(raw.read_until("\r\n\r\n").await.contains(" 200 "));
    assert_eq!(traces.one().await.context.parent, None);

    let parent = format!("00-{ID}-00f067aa0ba902b7-01");
    let twice = gateway.get("/v1/models").header("traceparent", &parent);
    let twice = twice.header("traceparent", &parent).send().await;
    assert_eq!(twice.status, 200);
    twice.bytes().await;
    let told = traces.one().await;
    assert_ne!(
        format!("{:032x}", told.context.trace_id),
        ID,
        "twice is none"
    );
}

#[tokio::test]
async fn probes_have_no_trace() {
    let (gateway, traces) = scripted("").await;
    for path in ["/healthz", "/readyz"] {
        let reply = gateway.get(path).send().await;
        assert_eq!((reply.status, reply.header("traceresponse")), (200, ""));
        reply.bytes().await;
    }
    gateway.get("/v1/models").send().await.bytes().await;
    assert_eq!(traces.one().await.exchange.route, "/v1/models");
}

#[tokio::test]
async fn detail_is_kept_for_operators_and_where_nobody_is_asked() {
    let (open, traces) = scripted("").await;
    for (value, expected) in [("1", true), ("true", false), ("0", false)] {
        let ask = open.get("/v1/models").header("x-sluicegate-debug", value);
        ask.send().await.bytes().await;
        assert_eq!(traces.one().await.context.is_debug, expected, "{value}");
    }

    let keys = [
        entry("auth.keys", "a", "scopes = ['generate']"),
        entry("auth.keys", "b", "scopes = ['generate', 'ops:read']"),
    ];
    let (asking, traces) = scripted(&keys.concat()).await;
    for (id, status, expected) in [("a", 200, false), ("b", 200, true), ("c", 401, false)] {
        let reply = asking
            .get("/v1/models")
            .header("authorization", &format!("Bearer {}", key(id)))
            .header("x-sluicegate-debug", "1")
            .send()
            .await;
        assert_eq!(reply.status, status, "{id}");
        reply.bytes().await;
        assert_eq!(traces.one().await.context.is_debug, expected, "{id}");
    }
}

#[tokio::test]
async fn a_callers_trace_goes_on_with_what_others_want_handed_on() {
    let traces = Traces::new();
    let served = Served::by(gateway().scripted().traced(&traces)).await;
    let parent = format!("00-{ID}-00f067aa0ba902b7-01");
    let goes_on = |told: Told, header: &str| {
        assert_eq!(format!("{:032x}", told.context.trace_id), ID);
        assert_eq!(told.context.parent, Some(0x00f0_67aa_0ba9_02b7));
        assert_ne!(told.context.span_id, 0x00f0_67aa_0ba9_02b7);
        assert_eq!(told.context.state.as_deref(), Some("a=1,b=2"));
        assert_eq!(header, named(&told), "the id of our part");
    };

    let ask = served.gateway.chat(THREE, "x", STREAM);
    let ask = ask.header("traceparent", &parent);
    let ask = ask.header("tracestate", "a=1").header("tracestate", "b=2");
    let reply = ask.send().await;
    let header = reply.header("traceresponse").to_owned();
    reply.bytes().await;
    goes_on(traces.one().await, &header);

    let fields = [("traceparent", &*parent), ("tracestate", "a=1,b=2")];
    let body = chat_body(THREE, "x", "");
    let sluice = served.sluice().await;
    let mut exchange = sluice.ask("POST", CHAT, &fields, body.as_bytes()).await;
    let head = exchange.head().await;
    exchange.rest().await;
    goes_on(
        traces.one().await,
        head.headers.first("traceresponse").unwrap(),
    );
}
