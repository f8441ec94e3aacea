//! Traces at a collector: whole, each thing on its own span, and no burden when the collector is one.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::{
    CHAT, Collector, Metrics, Mood, Setup, Span, TestGateway, chat_body, gateway, said, within,
};

const ROOT: &str = "POST /v1/chat/completions";

const THREE: &str = "scripted?text=abcd&tokens=3";

/// A gateway that exports there.
fn exporting(url: &str, protocol: &str, traces: &str) -> Setup {
    gateway().scripted().with(&telemetry(url, protocol, traces))
}

fn telemetry(url: &str, protocol: &str, traces: &str) -> String {
    format!(
        "[telemetry]\notlp_endpoint = '{url}'\notlp_protocol = '{protocol}'\n[telemetry.traces]\n{traces}"
    )
}

/// The one span of this name.
fn named<'s>(spans: &'s [Span], name: &str) -> &'s Span {
    let mut found = spans.iter().filter(|span| span.name == name);
    let span = found
        .next()
        .unwrap_or_else(|| panic!("no {name} in {spans:#?}"));
    assert!(found.next().is_none(), "two {name} in {spans:#?}");
    span
}

fn within_parent(span: &Span, parent: &Span) {
    assert_eq!(span.trace_id, parent.trace_id);
    assert_eq!(span.parent_span_id, parent.span_id);
    assert!(span.start_time_unix_nano >= parent.start_time_unix_nano);
    assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
    assert!(span.end_time_unix_nano <= parent.end_time_unix_nano);
}

async fn chat(gateway: &TestGateway, model: &str) {
    let answer = gateway.chat(model, "x", r#""stream":true"#).send().await;
    answer.bytes().await;
}

fn dropped(metrics: &Metrics) -> u64 {
    metrics.sum("telemetry_dropped_total", &["signal=\"trace\""])
}

fn kept(metrics: &Metrics) -> u64 {
    metrics.sum("traces_kept_total", &[])
}

#[tokio::test]
async fn a_chat_arrives_whole_with_its_tokens_at_their_times() {
    for protocol in ["grpc", "http"] {
        let collector = Collector::start(Mood::Takes).await;
        let gateway = exporting(&collector.url(), protocol, "ratio = 0.0")
            .start()
            .await;
        let reply = gateway
            .chat(THREE, "x", r#""stream":true"#)
            .header(
                "traceparent",
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            )
            .header("tracestate", "vendor=1")
            .send()
            .await;
        let bytes = reply.bytes().await.len();
        let spans = collector.spans(ROOT, 1).await;
        let root = named(&spans, ROOT);
        assert_eq!(root.parent_span_id, 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes());
        assert_eq!(
            root.trace_id,
            0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes()
        );
        assert_eq!(root.trace_state, "vendor=1");
        let about = said(&root.attributes);
        assert_eq!(about["sluicegate.trace.kept"], "caller");
        assert_eq!(about["http.response.status_code"], "200");
        assert_eq!(about["http.response.body.size"], bytes.to_string());
        assert_eq!(about["sluicegate.response.complete"], "true");
        let call = named(&spans, "chat scripted");
        within_parent(call, root);
        assert_eq!(said(&call.attributes)["gen_ai.usage.output_tokens"], "3");
        let decode = named(&spans, "decode");
        within_parent(decode, call);
        for part in ["queue", "prefill"] {
            within_parent(named(&spans, part), call);
        }
        let events: Vec<_> = call.events.iter().map(|event| &*event.name).collect();
        assert_eq!(events, ["first_token", "token", "token", "finish"]);
        assert_eq!(call.events[0].time_unix_nano, decode.start_time_unix_nano);
        assert_eq!(call.events[2].time_unix_nano, decode.end_time_unix_nano);
        assert_eq!(
            said(&call.events[2].attributes)["sluicegate.token.index"],
            "2"
        );

        let batch = &collector.batches()[0].resource_spans[0];
        let who = said(&batch.resource.as_ref().unwrap().attributes);
        assert_eq!(who["service.name"], "sluicegate");
        let scope = &batch.scope_spans[0];
        assert!(
            scope
                .schema_url
                .starts_with("https://opentelemetry.io/schemas/")
        );
        // No text of anybody.
        let all = format!("{spans:?}");
        assert!(!all.contains("abcd"), "{all}");
    }
}

#[tokio::test]
async fn what_goes_wrong_is_kept_and_the_ordinary_is_not() {
    let collector = Collector::start(Mood::Takes).await;
    let traces = "ratio = 0.0\n[telemetry.slo]\nfirst_token = '1h'\ngap = '150ms'";
    let mut gateway = exporting(&collector.url(), "grpc", traces).start().await;
    chat(&gateway, THREE).await;
    chat(&gateway, "no such model").await;
    chat(&gateway, "scripted?tokens=2&pace=300ms").await;
    chat(&gateway, "scripted?tokens=5&fail_at=2").await;
    let spans = collector.spans(ROOT, 2).await;
    within(gateway.drain()).await.unwrap();
    let mut reasons: Vec<_> = collector
        .taken()
        .iter()
        .filter(|span| span.name == ROOT)
        .map(|root| said(&root.attributes)["sluicegate.trace.kept"].clone())
        .collect();
    reasons.sort();
    assert_eq!(reasons, ["error", "slo"], "{spans:#?}");
}

#[tokio::test]
async fn what_is_kept_can_be_changed_while_serving() {
    let collector = Collector::start(Mood::Takes).await;
    let slow = "scripted?tokens=2&pace=200ms";
    let setup = exporting(&collector.url(), "grpc", "ratio = 0.0");
    let gateway = setup.start().await;
    let reload = async |traces: &str| {
        gateway.rewrite(&telemetry(&collector.url(), "grpc", traces));
        let reply = gateway.ops("POST", "/ops/v1/reload", "").send().await;
        assert_eq!(reply.status, 200);
        reply.bytes().await;
    };
    chat(&gateway, slow).await;
    reload("ratio = 0.0\n[telemetry.slo]\ngap = '10ms'").await;
    chat(&gateway, slow).await;
    let spans = collector.spans(ROOT, 1).await;
    let root = named(&spans, ROOT);
    assert_eq!(said(&root.attributes)["sluicegate.trace.kept"], "slo");
    reload("ratio = 1.0").await;
    gateway
        .until("all are kept", |m| m.value("trace_ratio") >= 1.0)
        .await;
    chat(&gateway, THREE).await;
    let spans = collector.spans(ROOT, 2).await;
    let roots = spans.iter().filter(|span| span.name == ROOT);
    let kept: Vec<_> = roots
        .map(|root| said(&root.attributes)["sluicegate.trace.kept"].clone())
        .collect();
    assert_eq!(kept, ["slo", "ratio"]);
}

#[tokio::test]
async fn the_end_of_the_process_exports_what_waits() {
    let collector = Collector::start(Mood::Takes).await;
    let mut gateway = exporting(&collector.url(), "http", "ratio = 1.0")
        .start()
        .await;
    for _ in 0..10 {
        chat(&gateway, THREE).await;
    }
    within(gateway.drain()).await.unwrap();
    let spans = collector.taken();
    assert_eq!(spans.iter().filter(|span| span.name == ROOT).count(), 10);
}

/// As fast as the machine takes them.
#[tokio::test(flavor = "multi_thread")]
async fn of_eight_thousand_short_requests_every_trace_is_whole_and_its_own() {
    const READERS: usize = 16;
    const EACH: usize = 500;
    let collector = Collector::start(Mood::Takes).await;
    let traces = "ratio = 1.0\nqueue = 10000\nqueue_bytes = '1GiB'\nmax_spans_per_second = 1000000";
    let gateway = exporting(&collector.url(), "grpc", traces).start().await;
    let readers = (0..READERS).map(|reader| {
        let (address, url) = (gateway.public, format!("{}{CHAT}", gateway.url()));
        tokio::spawn(async move {
            let stream = TcpStream::connect(address).await.unwrap();
            let io = TokioIo::new(stream);
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
                    .await
                    .unwrap();
            tokio::spawn(connection);
            for number in 0..EACH {
                let tokens = 1 + (reader + number) % 7;
                let model = format!("scripted?text=a&tokens={tokens}");
                let request = hyper::Request::post(&url)
                    .header("x-request-id", format!("r-{reader}-{number}-{tokens}"))
                    .body(Full::<Bytes>::from(chat_body(&model, "x", "")))
                    .unwrap();
                let answer = within(sender.send_request(request)).await.unwrap();
                assert_eq!(answer.status(), 200);
                within(answer.into_body().collect()).await.unwrap();
            }
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.await.unwrap();
    }
    let spans = collector.spans(ROOT, READERS * EACH).await;
    let mut traces: HashMap<&[u8], Vec<&Span>> = HashMap::new();
    for span in &spans {
        traces.entry(&span.trace_id).or_default().push(span);
    }
    assert_eq!(traces.len(), READERS * EACH);
    let mut ids = HashSet::new();
    for spans in traces.values() {
        let (roots, rest): (Vec<&Span>, Vec<_>) = spans
            .iter()
            .partition(|span| span.parent_span_id.is_empty());
        let [root] = roots[..] else {
            panic!("one root: {spans:#?}")
        };
        let (calls, parts): (Vec<&Span>, Vec<_>) =
            rest.iter().partition(|span| span.name == "chat scripted");
        let [call] = calls[..] else {
            panic!("one call: {spans:#?}")
        };
        within_parent(call, root);
        let names: HashSet<_> = parts.iter().map(|part| &*part.name).collect();
        assert_eq!(names, HashSet::from(["queue", "prefill", "decode"]));
        assert_eq!(parts.len(), 3);
        for part in parts {
            within_parent(part, call);
            assert!(part.events.is_empty());
        }
        assert!(root.events.is_empty());
        // The tokens are those of the request that the root names.
        let id = said(&root.attributes)["sluicegate.request.id"].clone();
        let tokens = id.rsplit('-').next().unwrap();
        assert_eq!(said(&call.attributes)["gen_ai.usage.output_tokens"], tokens);
        let names = call.events.iter().map(|event| &*event.name);
        let came = names.filter(|name| name.ends_with("token")).count();
        assert_eq!(came.to_string(), tokens);
        assert!(ids.insert(id));
    }
    let metrics = gateway
        .until("all are counted", |m| kept(m) == (READERS * EACH) as u64)
        .await;
    assert_eq!(dropped(&metrics), 0);
}

#[tokio::test]
async fn a_collector_that_hangs_costs_no_request_anything_and_a_bounded_number_of_traces_memory() {
    for protocol in ["grpc", "http"] {
        let collector = Collector::start(Mood::Hangs).await;
        let traces = "ratio = 1.0\nqueue = 16";
        let gateway = exporting(&collector.url(), protocol, traces).start().await;
        for _ in 0..200 {
            chat(&gateway, THREE).await;
        }
        // A batch of 512 spans is on its way, five of each trace, and the queue is full; the rest is dropped.
        let held = 16 + 512_u64.div_ceil(5);
        let metrics = gateway
            .until("all are counted", |m| {
                kept(m) == 200 && dropped(m) >= 200 - held
            })
            .await;
        assert_eq!(metrics.ended("ok"), 200);
        assert!(collector.taken().is_empty());
    }
}

#[tokio::test]
async fn a_slow_collector_gets_all_in_its_time() {
    let collector = Collector::start(Mood::Slow).await;
    let mut gateway = exporting(&collector.url(), "grpc", "ratio = 1.0")
        .start()
        .await;
    for _ in 0..20 {
        chat(&gateway, THREE).await;
        collector.take_one();
    }
    let spans = collector.spans(ROOT, 20).await;
    assert_eq!(spans.iter().filter(|span| span.name == ROOT).count(), 20);
    within(gateway.drain()).await.unwrap();
}

#[tokio::test]
async fn what_a_collector_refuses_is_dropped_whole_and_counted_and_later_ones_arrive() {
    for (protocol, mood) in [
        ("grpc", Mood::Refuses),
        ("grpc", Mood::Resets),
        ("http", Mood::Refuses),
        ("http", Mood::Resets),
    ] {
        let collector = Collector::start(mood).await;
        let gateway = exporting(&collector.url(), protocol, "ratio = 1.0")
            .start()
            .await;
        chat(&gateway, THREE).await;
        let metrics = gateway.until("it is given up", |m| dropped(m) == 1).await;
        assert_eq!(kept(&metrics), 1);
        collector.set(Mood::Takes);
        chat(&gateway, "scripted?text=a&tokens=2").await;
        let spans = collector.spans(ROOT, 1).await;
        assert_eq!(spans.iter().filter(|span| span.name == ROOT).count(), 1);
        let call = named(&spans, "chat scripted");
        assert_eq!(said(&call.attributes)["gen_ai.usage.output_tokens"], "2");
        let metrics = gateway.until("both are kept", |m| kept(m) == 2).await;
        assert_eq!(dropped(&metrics), 1, "{protocol} {mood:?}");
    }
}

#[tokio::test]
async fn no_collector_at_all_is_no_problem_either() {
    // Taken, so that nobody else gets it, and nobody listens.
    let port = TcpSocket::new_v4().unwrap();
    port.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}", port.local_addr().unwrap());
    let mut gateway = exporting(&url, "grpc", "ratio = 1.0").start().await;
    chat(&gateway, THREE).await;
    gateway.until("it is given up", |m| dropped(m) == 1).await;
    within(gateway.drain()).await.unwrap();
}
