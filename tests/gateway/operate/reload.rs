//! Another configuration while serving: over HTTP, with streams open.

use serde_json::{Value, json};

use crate::keys::{entry, key};
use crate::support::{Ask, TestGateway, gateway, within};

const RELOAD: &str = "/ops/v1/reload";

/// One token now, the next in an hour: holds its stream open.
const HELD: &str = "scripted?pace=1h";

async fn reload(gateway: &TestGateway, sections: &str) -> Value {
    gateway.rewrite(sections);
    let reply = gateway.ops("POST", RELOAD, "").send().await;
    assert_eq!(reply.status, 200);
    reply.json().await
}

async fn status(ask: Ask) -> u16 {
    ask.send().await.status
}

#[tokio::test]
async fn limits_change_for_the_next_request_and_streams_go_on() {
    let gateway = gateway().scripted().start().await;
    let slow = "scripted?tokens=200&pace=5ms";
    let stream = gateway.chat(slow, "x", r#""stream":true"#).send().await;
    let changed = reload(&gateway, "[limits.anonymous]\nrequests_per_minute = 2").await;
    let change = json!({"key": "limits.anonymous.requests_per_minute", "from": null, "to": 2});
    assert_eq!(changed, json!({"applied": [change], "restart": []}));
    for expected in [200, 200, 429] {
        assert_eq!(status(gateway.chat("scripted", "x", "")).await, expected);
    }
    let changed = reload(&gateway, "").await;
    assert_eq!(changed["applied"].as_array().unwrap().len(), 1);
    assert_eq!(status(gateway.chat("scripted", "x", "")).await, 200);
    assert_eq!(stream.answer().await.pieces.len(), 200, "it lost nothing");
    let metrics = gateway.metrics().await;
    let applied = metrics.sum("config_reloads_total", &["result=\"applied\""]);
    assert_eq!(applied, 2);
    let at = "config_last_reload_success_timestamp_seconds";
    assert!(metrics.sum(at, &[]) > 1_700_000_000);
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_is_told_as_check_tells_it() {
    let gateway = gateway().scripted().start().await;
    gateway.rewrite("[limits.anonymous]\nrequests_per_minute = 1\nstreems = 2\n[drain]\nlag = 'x'");
    let reply = gateway.ops("POST", RELOAD, "").send().await;
    assert_eq!(reply.status, 422);
    let error = reply.json().await;
    let told = error["error"]["message"].as_str().unwrap();
    assert!(told.contains("test.toml:3") && told.contains("did you mean limits.anonymous.streams"));
    assert!(told.contains("drain.lag"), "every problem at once: {told}");
    for _ in 0..3 {
        assert_eq!(status(gateway.chat("scripted", "x", "")).await, 200);
    }
    let metrics = gateway.metrics().await;
    let refused = metrics.sum("config_reloads_total", &["result=\"refused\""]);
    assert_eq!(refused, 1);
}

#[tokio::test]
async fn what_needs_a_restart_is_named_and_the_rest_holds() {
    let gateway = gateway().scripted().start().await;
    let sections = "[stream]\nring = 128\nstall_timeout = '100ms'\n[server]\nmax_body_bytes = 4096";
    for _ in 0..2 {
        let changed = reload(&gateway, sections).await;
        let names: Vec<_> = changed["restart"].as_array().unwrap().iter().collect();
        let names: Vec<_> = names.iter().map(|change| &change["key"]).collect();
        assert_eq!(names, ["server.max_body_bytes", "stream.ring"]);
    }
    // A reader that takes nothing is cut off after the new time, not the old one of 30 s.
    let endless = "scripted?tokens=100000000";
    let mut raw = gateway.connect().await;
    let body = crate::support::chat_body(endless, "x", r#""stream":true"#);
    let length = body.len();
    raw.send(&format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}"
    ))
    .await;
    gateway
        .until("the stall", |metrics| metrics.ended("stalled") == 1)
        .await;
}

#[tokio::test]
async fn deadlines_hold_for_new_streams_only() {
    let gateway = gateway().scripted().start().await;
    let mut old = gateway.chat(HELD, "x", r#""stream":true"#).send().await;
    old.next_event().await;
    reload(&gateway, "[deadlines]\ngap = '50ms'").await;
    let new = gateway.chat(HELD, "x", r#""stream":true"#).send().await;
    let error = new.answer().await.error;
    assert_eq!(error.as_deref(), Some("deadline_exceeded"));
    let metrics = gateway.metrics().await;
    assert_eq!(metrics.sum("streams_open", &[]), 1, "{metrics}");
}

#[tokio::test]
async fn the_objective_and_the_drain_are_the_last_ones() {
    let setup = gateway().scripted().with("[drain]\ntimeout = '1h'");
    let mut gateway = setup.start().await;
    let held = gateway.chat(HELD, "x", r#""stream":true"#).send().await;
    let sections = "[drain]\ntimeout = '0s'\n[telemetry.slo]\nobjective = 0.5";
    let changed = reload(&gateway, sections).await;
    assert_eq!(changed["applied"].as_array().unwrap().len(), 2, "{changed}");
    let objective = gateway.metrics().await.value("slo_objective");
    assert!((objective - 0.5).abs() < f64::EPSILON, "{objective}");
    within(gateway.drain()).await.unwrap();
    assert!(within(held.answer()).await.error.is_some());
}

#[tokio::test]
async fn keys_come_and_go_with_their_streams() {
    let gateway = gateway().scripted().start().await;
    let chat = |id: &str, model: &str| {
        let ask = gateway.chat(model, "x", r#""stream":true"#);
        ask.header("authorization", &format!("Bearer {}", key(id)))
    };
    assert_eq!(status(gateway.chat("scripted", "x", "")).await, 200);
    let both = entry("auth.keys", "a", "") + &entry("auth.keys", "b", "");
    let changed = reload(&gateway, &both).await;
    assert!(!changed.to_string().contains("sha256"), "{changed}");
    assert_eq!(status(gateway.chat("scripted", "x", "")).await, 401);
    let stays = chat("a", "scripted?tokens=100&pace=5ms").send().await;
    let goes = chat("b", HELD).send().await;
    assert_eq!((stays.status, goes.status), (200, 200));
    reload(&gateway, &entry("auth.keys", "a", "")).await;
    let error = within(goes.answer()).await.error;
    assert_eq!(error.as_deref(), Some("key_removed"));
    assert_eq!(status(chat("b", "scripted")).await, 401);
    assert_eq!(stays.answer().await.pieces.len(), 100);
}

#[tokio::test]
async fn reloads_come_one_at_a_time_and_the_last_word_holds() {
    let gateway = gateway().scripted().start().await;
    let all = (1..=20).map(|number| {
        gateway.rewrite(&format!("[limits.anonymous]\nstreams = {number}"));
        let ask = gateway.ops("POST", RELOAD, "");
        tokio::spawn(async move { ask.send().await.status })
    });
    for reloaded in all.collect::<Vec<_>>() {
        assert_eq!(reloaded.await.unwrap(), 200);
    }
    let changed = reload(&gateway, "[limits.anonymous]\nstreams = 20").await;
    assert_eq!(changed, json!({"applied": [], "restart": []}));
}

#[tokio::test]
async fn only_who_may_change_things_reloads() {
    let keys = entry("auth.keys", "looks", "scopes = ['ops:read']")
        + &entry("auth.keys", "changes", "scopes = ['ops:write']");
    let all = format!("[ops]\nrequire_key = true\n{keys}");
    let gateway = gateway().scripted().with(&all).start().await;
    gateway.rewrite(&all);
    let ask = |id: &str| {
        let ask = gateway.ops("POST", RELOAD, "");
        ask.header("authorization", &format!("Bearer {}", key(id)))
    };
    assert_eq!(status(gateway.ops("POST", RELOAD, "")).await, 401);
    assert_eq!(status(ask("looks")).await, 403);
    assert_eq!(status(ask("changes")).await, 200);
    let foreign = ask("changes").header("sec-fetch-site", "cross-site");
    assert_eq!(status(foreign).await, 403);
}
