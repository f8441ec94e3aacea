//! Time: of clients that dawdle, of requests that wait, and of answers that break.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::{Event, gateway, within};

/// Far longer than any time-out set here, far shorter than any default.
const SOON: Duration = Duration::from_secs(5);

const SERVER: &str = "[server]
first_byte_timeout = '300ms'
header_timeout = '300ms'
body_timeout = '300ms'
idle_timeout = '300ms'
";

#[tokio::test]
async fn a_connection_that_sends_nothing_is_closed() {
    let gateway = gateway().scripted().with(SERVER).start().await;
    let start = Instant::now();
    assert_eq!(gateway.connect().await.read_to_end().await, "");
    assert!(start.elapsed() < SOON);
}

#[tokio::test]
async fn headers_that_trickle_are_cut_off() {
    // This one alone: another time-out must not do its work.
    let setup = gateway()
        .scripted()
        .with("[server]\nheader_timeout = '300ms'");
    let gateway = setup.start().await;
    let start = Instant::now();
    let mut raw = gateway.connect().await;
    let mut open = raw.send("GET /healthz HTTP/1.1\r\nx: ").await;
    while open && start.elapsed() < SOON {
        // A byte now and then, as such a client would; each one resets a naive idle clock.
        tokio::time::sleep(Duration::from_millis(20)).await;
        open = raw.send("y").await;
    }
    assert!(start.elapsed() < SOON, "it was never cut off");
    assert!(!raw.read_to_end().await.contains("200"));
}

#[tokio::test]
async fn a_body_that_does_not_come_is_a_408() {
    let gateway = gateway().scripted().with(SERVER).start().await;
    let mut raw = gateway.connect().await;
    raw.send("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{\"mo")
        .await;
    let answer = raw.read_until("}}").await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("\"code\":\"request_timeout\""), "{answer}");
    assert_eq!(gateway.metrics().await.ended("invalid"), 1);
}

#[tokio::test]
async fn a_kept_connection_that_stays_idle_is_closed() {
    let gateway = gateway().scripted().with(SERVER).start().await;
    let start = Instant::now();
    let mut raw = gateway.connect().await;
    raw.send("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(raw.read_to_end().await.ends_with("ok\n"));
    assert!(start.elapsed() < SOON);
}

#[tokio::test]
async fn a_running_stream_is_no_idle_connection() {
    let gateway = gateway().scripted().with(SERVER).start().await;
    // Longer between two tokens than any of the connection's time-outs.
    let ask = gateway.chat(
        "scripted?text=ab&token_bytes=1&tokens=2&pace=1s",
        "x",
        r#""stream":true"#,
    );
    assert_eq!(ask.send().await.answer().await.text(), "ab");
}

#[tokio::test]
async fn a_silent_stream_gives_signs_of_life() {
    let gateway = gateway()
        .scripted()
        .with("[stream]\nkeep_alive = '50ms'")
        .start()
        .await;
    let model = "scripted?text=abcd&tokens=2&first=300ms&stall_at=1&stall=300ms";
    let mut reply = gateway.chat(model, "x", r#""stream":true"#).send().await;
    let first = reply.next_event().await;
    assert!(
        matches!(first, Some(Event::Comment)),
        "before the first token: {first:?}"
    );
    let answer = reply.answer().await;
    assert!(answer.comments >= 4, "and between tokens: {answer:?}");
    assert_eq!(answer.text(), "abcdabcd");
}

#[tokio::test]
async fn a_failure_before_the_first_token_is_a_status() {
    let gateway = gateway().scripted().start().await;
    for (kind, status) in [
        ("internal", 500),
        ("upstream", 502),
        ("overloaded", 503),
        ("deadline", 504),
    ] {
        for stream in [true, false] {
            let model = format!("scripted?fail_at=0&fail_kind={kind}");
            let ask = gateway.chat(&model, "x", &format!(r#""stream":{stream}"#));
            assert_eq!(
                ask.send().await.refusal().await.0,
                status,
                "{kind} {stream}"
            );
        }
    }
    let metrics = gateway.metrics().await;
    for outcome in ["internal", "upstream", "shed", "deadline"] {
        assert_eq!(metrics.ended(outcome), 2, "{outcome}");
    }
}

#[tokio::test]
async fn a_failure_in_mid_stream_is_said_in_the_stream() {
    let gateway = gateway().scripted().start().await;
    let model = "scripted?text=abcdef&token_bytes=1&fail_at=3&fail_kind=upstream";
    let more = r#""stream":true"#;
    let answer = gateway.chat(model, "x", more).send().await.answer().await;
    assert_eq!(
        (&*answer.texts[0], answer.error.as_deref()),
        ("abc", Some("upstream_error"))
    );
    let text = gateway
        .chat(model, "x", more)
        .header("accept", "text/plain")
        .send()
        .await
        .text()
        .await;
    assert!(text.starts_with("abc\n[error: "), "{text}");
    let ask = gateway
        .chat(model, "x", more)
        .header("accept", "application/x-ndjson");
    let lines = ask.send().await.lines().await;
    assert_eq!(lines.last().unwrap()["error"]["code"], "upstream_error");
    let params = crate::support::chat_body(model, "x", more);
    let call = format!(r#"{{"jsonrpc":"2.0","id":7,"method":"chat","params":{params}}}"#);
    let lines = gateway.post("/rpc", call).send().await.lines().await;
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["id"], &last["error"]["data"]["kind"]),
        (&7.into(), &"upstream".into())
    );
    // A whole document has not begun yet: it is a status still.
    assert_eq!(
        gateway.chat(model, "x", "").send().await.refusal().await.0,
        502
    );
    assert_eq!(gateway.metrics().await.ended("upstream"), 5);
}

#[tokio::test]
async fn a_caller_is_taken_at_its_word_about_how_long_it_waits() {
    let gateway = gateway().scripted().start().await;
    for stream in [true, false] {
        let start = Instant::now();
        let ask = gateway.chat("scripted?first=1h", "x", &format!(r#""stream":{stream}"#));
        let reply = ask.header("x-request-timeout", "200ms").send().await;
        assert_eq!(reply.refusal().await, (504, "deadline_exceeded".to_owned()));
        assert!((Duration::from_millis(200)..SOON).contains(&start.elapsed()));
    }
    let ask = gateway.chat("scripted?pace=50ms&tokens=1000", "x", r#""stream":true"#);
    let answer = ask
        .header("x-request-timeout", "0.3")
        .send()
        .await
        .answer()
        .await;
    assert_eq!(answer.error.as_deref(), Some("deadline_exceeded"));
    assert!(!answer.pieces.is_empty());
    let ask = gateway
        .chat("scripted", "x", "")
        .header("x-request-timeout", "soon");
    assert_eq!(ask.send().await.refusal().await.0, 400);
    assert_eq!(gateway.metrics().await.ended("deadline"), 3);
}

#[tokio::test]
async fn the_servers_deadlines_hold_without_being_asked_for() {
    let deadlines = "[deadlines]\nfirst_token = '200ms'\ngap = '200ms'";
    let gateway = gateway().scripted().with(deadlines).start().await;
    let late = gateway
        .chat("scripted?first=1h", "x", r#""stream":true"#)
        .send()
        .await;
    assert_eq!(late.refusal().await, (504, "deadline_exceeded".to_owned()));
    let ask = gateway.chat("scripted?stall_at=2&stall=1h", "x", r#""stream":true"#);
    let answer = ask.send().await.answer().await;
    assert_eq!(
        (answer.pieces.len(), answer.error.as_deref()),
        (2, Some("deadline_exceeded"))
    );
}

#[tokio::test]
async fn signs_of_life_do_not_put_the_next_tokens_deadline_off() {
    let settings = "[deadlines]\ngap = '500ms'\n[stream]\nkeep_alive = '20ms'";
    let gateway = gateway().scripted().with(settings).start().await;
    let ask = gateway.chat("scripted?stall_at=2&stall=1h", "x", r#""stream":true"#);
    // Without the deadline they would come for ever.
    let answer = within(async { ask.send().await.answer().await }).await;
    assert_eq!(answer.error.as_deref(), Some("deadline_exceeded"));
    assert!(answer.comments > 0, "there were signs of life");
}

#[tokio::test]
async fn waiting_in_line_has_its_own_deadline() {
    // With memory to park in, whoever waits would take the place of a reader who does not read.
    let setup = gateway().demo("context = 2048\nparallel = 1\nwaiting = 4\npark_memory = 0");
    let gateway = setup.with("[deadlines]\nqueue = '200ms'").start().await;
    let endless = r#""stream":true,"ignore_eos":true"#;
    let _holder = gateway
        .chat("demo", "x", endless)
        .receive_buffer(4096)
        .send()
        .await;
    for stream in [true, false] {
        let reply = gateway
            .chat("demo", "x", &format!(r#""stream":{stream}"#))
            .send()
            .await;
        assert_eq!(reply.refusal().await, (504, "queue_timeout".to_owned()));
    }
    let metrics = gateway.metrics().await;
    assert_eq!(
        (
            metrics.ended("deadline"),
            metrics.sum("requests_waiting", &[])
        ),
        (2, 0)
    );
}
