//! Who goes away frees what was theirs, and is counted once.

use serde_json::json;

use crate::support::{Event, Metrics, chat_body, gateway};

/// Runs to the end of the context unless somebody ends it.
const ENDLESS: &str = r#""stream":true,"ignore_eos":true"#;

#[tokio::test]
async fn a_client_that_leaves_in_mid_stream_frees_its_sequence() {
    let gateway = gateway().demo("context = 2048\nparallel = 2").start().await;
    let mut reply = gateway
        .chat("demo", "Tell me a story.", ENDLESS)
        .send()
        .await;
    reply.next_event().await.expect("it began");
    reply.next_event().await.expect("it goes on");
    drop(reply);
    let metrics = gateway
        .until("it is counted", |m| m.ended_in_all() == 1)
        .await;
    assert_eq!(metrics.ended("client_gone"), 1);
    let metrics = gateway.until("it is freed", |m| m.running() == 0).await;
    assert_eq!(metrics.sum("kv_tokens_used", &[]), 0);
    assert_eq!(metrics.ended_in_all(), 1, "counted once\n{metrics}");
}

#[tokio::test]
async fn a_client_that_leaves_during_a_long_prompt_frees_its_sequence() {
    let gateway = gateway().demo("context = 8192\nparallel = 2").start().await;
    let ids: Vec<_> = (0..8000).map(|at| (300 + at % 1000).to_string()).collect();
    let prompt = ids.join(",");
    let body = format!(r#"{{"model":"demo","prompt":[{prompt}],"max_tokens":1,"stream":true}}"#);
    let asked = tokio::spawn(gateway.post("/v1/completions", body).send());
    gateway.until("it runs", |m| m.running() == 1).await;
    asked.abort();
    let metrics = gateway.until("it is freed", |m| m.running() == 0).await;
    assert!(
        asked.await.is_err_and(|error| error.is_cancelled()),
        "it was still in its prompt"
    );
    assert_eq!(metrics.sum("kv_tokens_used", &[]), 0, "{metrics}");
    assert_eq!(
        metrics.sum("tokens_total", &["kind=\"output\""]),
        0,
        "no token was made"
    );
    assert_eq!(
        (metrics.ended("client_gone"), metrics.ended_in_all()),
        (1, 1)
    );
}

#[tokio::test]
async fn a_client_that_leaves_the_waiting_line_gives_its_place_up() {
    let gateway = gateway()
        .demo("context = 2048\nparallel = 1\nwaiting = 1")
        .start()
        .await;
    // This reader takes nothing, so its sequence holds the only slot.
    let holder = gateway
        .chat("demo", "x", ENDLESS)
        .receive_buffer(4096)
        .send()
        .await;
    let waiting = tokio::spawn(gateway.chat("demo", "x", ENDLESS).send());
    gateway
        .until("it waits", |m| m.sum("requests_waiting", &[]) == 1)
        .await;
    waiting.abort();
    let metrics = gateway
        .until("the line is empty", |m| m.sum("requests_waiting", &[]) == 0)
        .await;
    assert_eq!((metrics.ended("client_gone"), metrics.running()), (1, 1));
    drop(holder);
    gateway
        .until("all is free", |m| {
            m.running() == 0 && m.ended("client_gone") == 2
        })
        .await;
}

#[tokio::test]
async fn a_connection_that_is_half_closed_is_a_client_that_left() {
    let gateway = gateway().scripted().start().await;
    let mut raw = gateway.connect().await;
    let body =
        r#"{"model":"scripted?pace=1h","messages":[{"role":"user","content":"x"}],"stream":true}"#;
    raw.post("/v1/chat/completions", body).await;
    raw.read_until("\"delta\":{\"content\"").await;
    raw.half_close().await;
    let metrics = gateway.until("it is freed", |m| m.running() == 0).await;
    assert_eq!(
        (metrics.ended("client_gone"), metrics.ended_in_all()),
        (1, 1)
    );
}

#[tokio::test]
async fn a_connection_that_is_half_closed_is_answered_where_that_is_wanted() {
    let setup = gateway().scripted().with("[server]\nhalf_close = 'serve'");
    let gateway = setup.start().await;
    let mut raw = gateway.connect().await;
    let body = chat_body(
        "scripted?text=abcd&tokens=20&pace=5ms",
        "x",
        r#""stream":true"#,
    );
    raw.post("/v1/chat/completions", &body).await;
    raw.half_close().await;
    let answer = raw.read_to_end().await;
    assert_eq!(
        answer.matches(r#""content":"abcd""#).count(),
        20,
        "{answer}"
    );
    assert!(answer.contains("[DONE]"), "{answer}");
    // One that has left altogether is noticed when it is written to.
    let mut gone = gateway.connect().await;
    let endless = body.replace("tokens=20", "tokens=1000000");
    gone.post("/v1/chat/completions", &endless).await;
    gone.read_until(r#""content":"abcd""#).await;
    drop(gone);
    let freed = |m: &Metrics| m.ended("client_gone") == 1 && m.running() == 0;
    let metrics = gateway.until("it is freed", freed).await;
    assert_eq!(metrics.ended("ok"), 1);
}

#[tokio::test]
async fn a_cancel_by_request_id_ends_the_stream_with_an_error() {
    let gateway = gateway().demo("context = 2048\nparallel = 2").start().await;
    let ask = gateway.chat("demo", "Tell me a story.", ENDLESS);
    let mut reply = ask.header("x-request-id", "to-be-cancelled").send().await;
    reply.next_event().await.expect("it began");
    let call = |id: &str| {
        let params = json!({"id": id});
        json!({"jsonrpc": "2.0", "id": 1, "method": "cancel", "params": params}).to_string()
    };
    let none = gateway
        .post("/rpc", call("somebody-else"))
        .send()
        .await
        .json()
        .await;
    assert_eq!(none["result"]["cancelled"], 0, "{none}");
    let one = gateway
        .post("/rpc", call("to-be-cancelled"))
        .send()
        .await
        .json()
        .await;
    assert_eq!(one["result"]["cancelled"], 1, "{one}");
    let events = reply.events().await;
    let [.., Event::Data(error), Event::Done] = &events[..] else {
        panic!("an error and [DONE] end it: {events:?}");
    };
    assert_eq!(error["error"]["code"], "cancelled");
    let metrics = gateway.until("it is freed", |m| m.running() == 0).await;
    assert_eq!(
        (metrics.ended("client_gone"), metrics.ended_in_all()),
        (1, 1)
    );
}
