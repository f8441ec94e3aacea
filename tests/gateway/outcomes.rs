//! Every request ends in exactly one outcome, counted once.

use crate::support::{Metrics, TestGateway, chat_body, gateway};

const STREAM: &str = r#""stream":true"#;

/// Each of these sends some requests of one sort and returns how many.
async fn answered(gateway: &TestGateway) -> u64 {
    let short = r#""max_tokens":5"#;
    for accept in ["application/json", "text/plain", "application/x-ndjson"] {
        let ask = gateway
            .chat("demo", "Hello!", short)
            .header("accept", accept);
        ask.send().await.bytes().await;
    }
    let several = r#""stream":true,"n":2,"max_tokens":5"#;
    gateway
        .chat("demo", "Hello!", several)
        .send()
        .await
        .answer()
        .await;
    4
}

async fn refused(gateway: &TestGateway) -> u64 {
    let long = "word ".repeat(1000);
    let bodies = [
        "{".to_owned(),
        chat_body("nobody", "x", ""),
        chat_body("demo", &long, ""),
        chat_body("scripted?tokens=0", "x", STREAM),
    ];
    for body in bodies {
        gateway
            .post("/v1/chat/completions", body)
            .send()
            .await
            .bytes()
            .await;
    }
    4
}

async fn broken(gateway: &TestGateway) -> u64 {
    for at in [0, 3] {
        let model = format!("scripted?fail_at={at}&fail_kind=upstream");
        gateway.chat(&model, "x", STREAM).send().await.bytes().await;
    }
    let late = gateway.chat("scripted?first=1h", "x", STREAM);
    late.header("x-request-timeout", "50ms")
        .send()
        .await
        .bytes()
        .await;
    3
}

/// In mid-stream, and before the answer began.
async fn left(gateway: &TestGateway) -> u64 {
    let running =
        |count| move |m: &Metrics| m.sum("requests_running", &[r#"model="scripted""#]) == count;
    drop(gateway.chat("scripted?pace=1h", "x", STREAM).send().await);
    gateway.until("the first is gone", running(0)).await;
    let early = tokio::spawn(gateway.chat("scripted?first=1h", "x", "").send());
    gateway.until("the second runs", running(1)).await;
    early.abort();
    gateway.until("the second is gone", running(0)).await;
    2
}

async fn stalled(gateway: &TestGateway) -> u64 {
    let before = gateway.metrics().await.ended("stalled");
    let ask = gateway.chat("scripted?tokens=100000000", "x", STREAM);
    let _reply = ask.receive_buffer(4096).send().await;
    gateway
        .until("it is cut off", |m| m.ended("stalled") > before)
        .await;
    1
}

/// A batch of two generations and what is none; a stream; a body that does not parse.
async fn by_rpc(gateway: &TestGateway) -> u64 {
    let call = |id: u32, method: &str, params: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#)
    };
    let chat = |more: &str| call(1, "chat", &chat_body("demo", "Hello!", more));
    let short = chat(r#""max_tokens":3"#);
    let ping = call(3, "ping", "{}");
    let stream = chat(r#""max_tokens":3,"stream":true"#);
    for body in [format!("[{short},{short},{ping}]"), stream, "{".to_owned()] {
        gateway.post("/rpc", body).send().await.bytes().await;
    }
    4
}

#[tokio::test]
async fn after_a_mixed_run_the_outcomes_add_up_to_the_requests() {
    let setup = gateway()
        .scripted()
        .demo("context = 256\nparallel = 2\nwaiting = 8");
    let gateway = setup
        .with("[stream]\nstall_timeout = '300ms'")
        .start()
        .await;
    let mut sent = 0;
    for _ in 0..3 {
        sent += answered(&gateway).await;
        sent += refused(&gateway).await;
        sent += broken(&gateway).await;
        sent += left(&gateway).await;
        sent += stalled(&gateway).await;
        sent += by_rpc(&gateway).await;
        // What is not a generation counts as none.
        for path in ["/healthz", "/v1/models", "/", "/nothing"] {
            gateway.get(path).send().await.bytes().await;
        }
    }
    let metrics = gateway
        .until("nothing is open", |m| {
            m.sum("streams_open", &[]) == 0 && m.running() == 0
        })
        .await;
    let expected = [
        ("ok", 3 * 7),
        ("invalid", 3 * 5),
        ("upstream", 3 * 2),
        ("deadline", 3),
        ("client_gone", 3 * 2),
        ("stalled", 3),
        ("shed", 0),
        ("limited", 0),
        ("internal", 0),
    ];
    for (outcome, count) in expected {
        assert_eq!(metrics.ended(outcome), count, "{outcome}\n{metrics}");
    }
    assert_eq!(metrics.ended_in_all(), sent);
    assert_eq!(expected.map(|(_, count)| count).iter().sum::<u64>(), sent);
}

#[tokio::test]
async fn the_tokens_of_a_stream_that_was_cut_off_are_counted_once() {
    let gateway = gateway().scripted().start().await;
    let ask = gateway
        .chat("scripted?pace=10ms&tokens=1000&text=abcd", "x", STREAM)
        .header("x-request-timeout", "500ms");
    let answer = ask.send().await.text().await;
    gateway
        .until("it has ended", |m| m.ended("deadline") == 1)
        .await;
    let counted = gateway
        .metrics()
        .await
        .sum("tokens_total", &["kind=\"output\""]);
    let delivered = u64::try_from(answer.matches(r#""content":"abcd""#).count()).unwrap();
    assert!(delivered >= 20, "{delivered}");
    // One more may have been taken from the script when the deadline struck.
    assert!(
        (delivered..=delivered + 1).contains(&counted),
        "{counted} counted, {delivered} delivered"
    );
}

#[tokio::test]
async fn a_client_that_leaves_before_its_body_is_complete_is_counted() {
    let gateway = gateway().scripted().start().await;
    let mut client = gateway.connect().await;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";
    assert!(client.send(head).await);
    drop(client);
    gateway
        .until("it is counted", |m| m.ended_in_all() == 1)
        .await;
}
