//! A stream whose connection is lost goes on, and whoever comes back for it gets every event once.

mod bare;
mod cuts;

use std::time::Duration;

use serde_json::{Value, json};

use self::bare::{Bare, timeless};
use crate::support::{Answer, Ask, Event, Reply, TestGateway, gateway, within};

async fn resuming() -> TestGateway {
    gateway()
        .scripted()
        .with("[stream]\nresume = true\nresume_streams = 5000")
        .start()
        .await
}

fn call(method: &str, params: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}).to_string()
}

fn completion(more: &Value) -> Value {
    let mut params = json!({"prompt": "x", "stream": true, "resume": true});
    params
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    params
}

/// The id in the first line.
fn stream_of(line: &str) -> String {
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!(
        (&line["method"], &line["params"]["id"]),
        (&json!("stream"), &json!(7))
    );
    line["params"]["stream"].as_str().unwrap().to_owned()
}

/// Begins a stream and waits for its first text; the id and the events so far.
async fn begin(gateway: &TestGateway, model: &str, more: &str) -> (Reply, String) {
    let mut reply = gateway.chat(model, "x", more).send().await;
    let id = reply.header("x-stream-id").to_owned();
    assert!(id.len() >= 22, "{id:?} has at least 128 bits");
    reply.next_event().await.expect("it begins with a role");
    (reply, id)
}

fn resume(gateway: &TestGateway, id: &str, after: usize) -> Ask {
    gateway.get(&format!("/v1/streams/{id}?after={after}"))
}

fn delete(gateway: &TestGateway, id: &str) -> Ask {
    Ask::new(
        gateway.public,
        "DELETE",
        &format!("/v1/streams/{id}"),
        Vec::new(),
    )
}

const STREAM: &str = r#""stream":true"#;

#[tokio::test]
async fn a_generation_goes_on_without_its_reader() {
    let gateway = resuming().await;
    let model = "scripted?text=abcd&tokens=30&pace=5ms";
    let (reply, id) = begin(&gateway, model, STREAM).await;
    drop(reply);
    let metrics = gateway.until("it ends alone", |m| m.ended("ok") == 1).await;
    assert_eq!(metrics.ended_in_all(), 1);
    for _ in 0..2 {
        let answer = resume(&gateway, &id, 0).send().await.answer().await;
        assert_eq!(answer.text(), "abcd".repeat(30), "as often as one likes");
    }
}

#[tokio::test]
async fn a_newer_reader_takes_the_stream_over_and_the_older_one_does_not_look_whole() {
    let gateway = resuming().await;
    let mut old = gateway.connect().await;
    let body = r#"{"model":"scripted?text=abcd&tokens=60&stall_at=2&stall=1h","prompt":"x","stream":true}"#;
    old.post("/v1/completions", body).await;
    let begun = old.read_until("data: ").await;
    let id = begun
        .lines()
        .find_map(|line| line.strip_prefix("x-stream-id: "))
        .expect("it can be resumed")
        .to_owned();
    let mut new = resume(&gateway, &id, 0).send().await;
    let rest = old.read_to_end().await;
    assert!(
        !rest.ends_with("0\r\n\r\n"),
        "the last chunk never comes: {rest:?}"
    );
    assert!(!rest.contains("[DONE]"));
    // The newer one still has it, to the end.
    assert_eq!(delete(&gateway, &id).send().await.status, 204);
    let answer = Answer::of(&new.events().await);
    assert_eq!(answer.texts.concat(), "abcdabcd");
    assert_eq!(answer.error.as_deref(), Some("cancelled"));
    let metrics = gateway
        .until("it is counted", |m| m.ended("client_gone") == 1)
        .await;
    assert_eq!(metrics.ended_in_all(), 1);
}

/// A stream of the demo model that is longer than all that is kept of it, and has no reader after its fifth
/// event: the log is full, and it waits.
async fn full_log(gateway: &TestGateway) -> (Vec<Event>, String) {
    let mut reply = long(gateway).receive_buffer(4096).send().await;
    let id = reply.header("x-stream-id").to_owned();
    let mut events = Vec::new();
    for _ in 0..5 {
        events.push(reply.next_event().await.expect("it goes on"));
    }
    drop(reply);
    gateway
        .until("nobody reads, and the log is full", |m| {
            m.paused() == 1
                && m.sum("connections_open", &[]) == 0
                && m.sum("streams_kept", &[]) >= 1
        })
        .await;
    (events, id)
}

/// About 400 KB, of which a reader that takes nothing gets 100 at most: less than half of [`ROOM`].
fn long(gateway: &TestGateway) -> Ask {
    let more = r#""stream":true,"seed":3,"temperature":1.0,"ignore_eos":true,"max_tokens":1500"#;
    gateway.chat("demo", "Tell me a story.", more)
}

const ROOM: &str = "[stream]\nresume = true\nresume_bytes = '256KiB'";

#[tokio::test]
async fn a_full_log_pauses_the_sequence_and_loses_nothing() {
    let gateway = gateway()
        .demo("context = 2048\nparallel = 2\ndeterministic = true")
        .with(ROOM)
        .start()
        .await;
    let expected = long(&gateway).send().await.answer().await.text();
    let (mut events, id) = full_log(&gateway).await;
    let mut resumed = resume(&gateway, &id, 5).send().await;
    events.extend(resumed.events().await);
    let count = events.len();
    assert_eq!(Answer::of(&events).text(), expected);
    let metrics = gateway.until("all is free", |m| m.running() == 0).await;
    assert_eq!((metrics.ended("ok"), metrics.ended_in_all()), (2, 2));

    // What was handed out long ago is not kept, and that is said.
    let (status, code) = resume(&gateway, &id, 0).send().await.refusal().await;
    assert_eq!((status, &*code), (410, "events_gone"));
    let last = resume(&gateway, &id, count - 1).send().await;
    assert_eq!(last.text().await, "data: [DONE]\n\n");
}

#[tokio::test]
async fn a_stream_that_nobody_comes_back_for_ends_as_if_its_caller_had_left() {
    let gateway = gateway()
        .demo("context = 2048\nparallel = 2")
        .with("[stream]\nresume = true\nresume_time = '50ms'")
        .start()
        .await;
    let endless = r#""stream":true,"ignore_eos":true"#;
    let (reply, id) = begin(&gateway, "demo", endless).await;
    drop(reply);
    let metrics = gateway
        .until("it is cut", |m| m.ended_in_all() == 1 && m.running() == 0)
        .await;
    assert_eq!(metrics.ended("client_gone"), 1);
    assert_eq!(metrics.sum("kv_tokens_used", &[]), 0);
    let (status, code) = resume(&gateway, &id, 0).send().await.refusal().await;
    assert_eq!((status, &*code), (404, "stream_not_found"));
    assert_eq!(gateway.metrics().await.ended_in_all(), 1, "counted once");
}

#[tokio::test]
async fn the_end_of_a_stream_is_kept_for_a_time_and_then_forgotten() {
    let gateway = gateway()
        .scripted()
        .with("[stream]\nresume = true\nresume_time = '50ms'")
        .start()
        .await;
    let reply = gateway.chat("scripted?tokens=2", "x", STREAM).send().await;
    let id = reply.header("x-stream-id").to_owned();
    reply.answer().await.text();
    within(async {
        while resume(&gateway, &id, 0).send().await.status == 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let (status, _) = resume(&gateway, &id, 0).send().await.refusal().await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn what_cannot_be_resumed_is_refused_with_the_reason() {
    let gateway = resuming().await;
    let (reply, id) = begin(&gateway, "scripted?pace=1h&tokens=2", STREAM).await;
    for (path, expected) in [
        (
            "/v1/streams/none?after=0".to_owned(),
            (404, "stream_not_found"),
        ),
        (format!("/v1/streams/{id}x"), (404, "stream_not_found")),
        (
            format!("/v1/streams/{id}?after=-1"),
            (400, "invalid_request_error"),
        ),
        (
            format!("/v1/streams/{id}?after=99"),
            (400, "invalid_request_error"),
        ),
    ] {
        let (status, code) = gateway.get(&path).send().await.refusal().await;
        assert_eq!((status, &*code), expected, "{path}");
    }
    let path = format!("/v1/streams/{id}");
    let head = Ask::new(gateway.public, "HEAD", &path, Vec::new());
    assert_eq!(head.send().await.status, 405);
    let foreign = gateway.get(&path).header("sec-fetch-site", "cross-site");
    assert_eq!(foreign.send().await.refusal().await.0, 403);
    let rpc = |method, params| gateway.post("/rpc", call(method, &params));
    for (stream, code) in [(&*id, -32602), ("none", -32003)] {
        let lines = rpc("resume", json!({"stream": stream})).send().await;
        let lines = lines.lines().await;
        assert_eq!(
            (&lines[0]["id"], &lines[0]["error"]["code"]),
            (&json!(7), &json!(code)),
            "{lines:?}"
        );
    }
    let metrics = gateway.metrics().await;
    assert_eq!(
        metrics.sum("streams_open", &[]),
        1,
        "its reader still has it"
    );
    drop(reply);
}

#[tokio::test]
async fn a_full_store_makes_no_stream_resumable_until_one_was_read_to_its_end() {
    let gateway = gateway()
        .scripted()
        .with("[stream]\nresume = true\nresume_streams = 1")
        .start()
        .await;
    let first = "scripted?text=abcd&tokens=3&stall_at=1&stall=1h";
    let (first, id) = begin(&gateway, first, STREAM).await;
    let second = gateway.chat("scripted?tokens=2", "x", STREAM).send().await;
    assert_eq!(second.header("x-stream-id"), "");
    second.answer().await.text();
    let params = completion(&json!({"model": "scripted?tokens=2"}));
    let lines = gateway.post("/rpc", call("complete", &params)).send().await;
    let lines = lines.lines().await;
    assert_eq!(lines[0]["method"], "token", "no stream is announced");
    assert_eq!(delete(&gateway, &id).send().await.status, 204);
    drop(first);

    let reply = gateway.chat("scripted?tokens=2", "x", STREAM).send().await;
    assert_ne!(reply.header("x-stream-id"), "", "there is room again");
    reply.answer().await.text();
    within(async {
        // Its reader is gone a moment after its last byte.
        loop {
            let reply = gateway.chat("scripted?tokens=2", "x", STREAM).send().await;
            let has_id = !reply.header("x-stream-id").is_empty();
            reply.answer().await.text();
            if has_id {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_event_source_finds_its_place_by_the_last_id() {
    let gateway = resuming().await;
    let address = gateway.public;
    let body = r#"{"model":"scripted?text=abcd&tokens=3&pace=1ms","prompt":"x","stream":true}"#;
    let path = "/v1/completions";
    let without = Bare::send(address, "POST", path, "", body).await;
    let plain = String::from_utf8(without.rest().await).unwrap();
    assert!(!plain.contains("id: "), "only for those who ask");
    let count = plain.matches("\n\n").count();

    let asked = Bare::send(address, "POST", path, "x-stream-ids: 1\r\n", body).await;
    let stream = format!("/v1/streams/{}", asked.header("x-stream-id").unwrap());
    let with_ids = String::from_utf8(asked.rest().await).unwrap();
    let ids: Vec<_> = with_ids
        .lines()
        .filter_map(|line| line.strip_prefix("id: "))
        .collect();
    let expected: Vec<_> = (1..=count).map(|number| number.to_string()).collect();
    assert_eq!(ids, expected);

    for seen in 1..count {
        let header = format!("last-event-id: {seen}\r\n");
        let rest = Bare::send(address, "GET", &stream, &header, "").await;
        let rest = String::from_utf8(rest.rest().await).unwrap();
        assert!(with_ids.ends_with(&rest), "{rest}");
        assert!(
            rest.starts_with(&format!("id: {}\ndata: ", seen + 1)),
            "{rest}"
        );
    }
    let header = format!("last-event-id: {count}\r\n");
    let over = Bare::send(address, "GET", &stream, &header, "").await;
    assert_eq!(over.status(), "204", "it need not come back");

    // A stream that was begun without ids has them for who reads it as an EventSource.
    let asked = Bare::send(address, "POST", path, "", body).await;
    let stream = format!("/v1/streams/{}?ids=1", asked.header("x-stream-id").unwrap());
    asked.rest().await;
    let again = Bare::send(address, "GET", &stream, "", "").await;
    let again = String::from_utf8(again.rest().await).unwrap();
    assert_eq!(timeless(again.as_bytes()), timeless(with_ids.as_bytes()));
}

#[tokio::test]
async fn a_stream_is_cancelled_by_its_id_whether_it_is_read_or_not() {
    let gateway = resuming().await;
    let model = "scripted?text=abcd&tokens=3&stall_at=1&stall=1h";
    // Read: its reader is told.
    let (mut reply, id) = begin(&gateway, model, STREAM).await;
    assert_eq!(delete(&gateway, &id).send().await.status, 204);
    let mut events = vec![];
    while let Some(event) = reply.next_event().await {
        events.push(event);
    }
    assert!(
        events.iter().any(
            |event| matches!(event, Event::Data(data) if data["error"]["code"] == "cancelled")
        ),
        "{events:?}"
    );
    // Not read.
    let (reply, id) = begin(&gateway, model, STREAM).await;
    drop(reply);
    assert_eq!(delete(&gateway, &id).send().await.status, 204);
    for ask in [delete(&gateway, &id), resume(&gateway, &id, 0)] {
        let (status, code) = ask.send().await.refusal().await;
        assert_eq!((status, &*code), (404, "stream_not_found"));
    }
    // By JSON-RPC, in its lines.
    let mut old = gateway.connect().await;
    let params = completion(&json!({"model": model}));
    old.post("/rpc", &call("complete", &params)).await;
    let begun = old.read_until("\"token\"").await;
    let first = begun
        .lines()
        .find(|line| line.contains("\"stream\""))
        .unwrap();
    let stream = stream_of(first);
    for expected in [1, 0] {
        let params = json!({"stream": stream});
        let reply = gateway.post("/rpc", call("cancel", &params)).send().await;
        assert_eq!(reply.json().await["result"], json!({"cancelled": expected}));
    }
    old.read_until("\"kind\":\"cancelled\"").await;
    let metrics = gateway
        .until("all are over", |m| m.sum("streams_open", &[]) == 0)
        .await;
    assert_eq!(
        (metrics.ended("client_gone"), metrics.ended_in_all()),
        (3, 3)
    );
}

#[tokio::test]
async fn a_drain_waits_for_streams_without_a_reader_and_lets_readers_come_back() {
    let mut gateway = gateway()
        .demo("context = 2048\nparallel = 2\ndeterministic = true")
        .with(ROOM)
        .with("[drain]\nlag = '0s'\ntimeout = '10m'")
        .start()
        .await;
    let expected = long(&gateway).send().await.answer().await.text();
    let (mut events, id) = full_log(&gateway).await;
    let drained = gateway.drain();
    within(async {
        while gateway.get("/readyz").send().await.status == 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(!drained.is_finished());
    let mut resumed = resume(&gateway, &id, 5).send().await;
    events.extend(resumed.events().await);
    assert_eq!(Answer::of(&events).text(), expected);
    within(drained).await.expect("it ends");
}

#[tokio::test]
async fn a_drain_cuts_streams_without_a_reader_in_time() {
    let mut gateway = gateway()
        .scripted()
        .with("[stream]\nresume = true\nresume_time = '1h'\n[drain]\nlag = '0s'\ntimeout = '200ms'")
        .start()
        .await;
    let (reply, _) = begin(&gateway, "scripted?pace=1h&tokens=2", STREAM).await;
    drop(reply);
    let ended = gateway.chat("scripted?tokens=2", "x", STREAM).send().await;
    ended.answer().await.text();
    let started = tokio::time::Instant::now();
    within(gateway.drain()).await.expect("it ends");
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "neither a running stream nor a kept end holds it up: {:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn nothing_is_kept_unless_it_is_switched_on() {
    let gateway = gateway().scripted().start().await;
    let ask = gateway.chat("scripted?tokens=2", "x", STREAM);
    let reply = ask.header("x-stream-ids", "1").send().await;
    assert_eq!(reply.header("x-stream-id"), "");
    reply.answer().await.text();
    for ask in [delete(&gateway, "id"), resume(&gateway, "id", 0)] {
        let (status, code) = ask.send().await.refusal().await;
        assert_eq!((status, &*code), (404, "stream_not_found"));
    }
    let params = completion(&json!({"model": "scripted?tokens=2"}));
    let lines = gateway.post("/rpc", call("complete", &params)).send().await;
    assert_eq!(lines.lines().await[0]["method"], "token");
}
