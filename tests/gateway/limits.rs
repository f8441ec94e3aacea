//! What is too much, too deep, unknown or malformed is refused clearly, and costs nobody else.

use crate::support::{Reply, TestGateway, chat_body, gateway};

const CHAT: &str = "/v1/chat/completions";
/// One token now, the next in an hour: holds its stream open.
const HELD: &str = "scripted?pace=1h";
/// Holds a sequence of the demo model for as long as its reader takes nothing.
const ENDLESS: &str = r#""stream":true,"ignore_eos":true"#;

async fn refused(gateway: &TestGateway, path: &str, body: impl Into<String>) -> (u16, String) {
    gateway.post(path, body).send().await.refusal().await
}

/// A refusal that says when to come back.
async fn shed(reply: Reply, code: &str) {
    assert_eq!(reply.header("x-should-retry"), "true");
    assert!(reply.header("retry-after").parse::<u32>().unwrap() >= 1);
    assert!(reply.header("retry-after-ms").parse::<u32>().unwrap() >= 1);
    assert_eq!(reply.refusal().await, (503, code.to_owned()));
}

#[tokio::test]
async fn bad_bodies_are_refused_in_openais_shape() {
    let gateway = gateway().scripted().start().await;
    let deep = format!(
        r#"{{"model":"scripted","x":{}{}}}"#,
        "[".repeat(70),
        "]".repeat(70)
    );
    let deepest = format!(r#"{{"x":{}"#, "[".repeat(100_000));
    for body in [
        "",
        "{",
        "nonsense",
        "[]",
        "{}",
        "{\"messages\":[]}",
        "{\"model\":\"scripted\",\"messages\":\"hello\"}",
        "{\"model\":\"scripted\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"n\":-1}",
        "{\"model\":\"scripted\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"max_tokens\":1e99}",
        "{\"model\":\"scripted\",\"messages\":[{\"role\":\"user\",\"content\":\"\u{0}\"}]}",
        &deep,
        &deepest,
    ] {
        let (status, _) = refused(&gateway, CHAT, body).await;
        assert_eq!(status, 400, "{}", &body[..body.len().min(100)]);
    }
    let broken = gateway.post("/rpc", "{").send().await;
    assert_eq!(broken.status, 200, "JSON-RPC has its own errors");
    assert_eq!(broken.json().await["error"]["code"], -32700);
    let fine = gateway.chat("scripted", "x", "").send().await;
    assert_eq!(fine.status, 200, "nobody else is harmed");
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_whether_it_says_so_or_not() {
    let gateway = gateway()
        .scripted()
        .with("[server]\nmax_body_bytes = '4KiB'")
        .start()
        .await;
    let large = chat_body("scripted", &"x".repeat(5000), "");
    assert_eq!(
        refused(&gateway, CHAT, &large).await,
        (413, "request_too_large".to_owned())
    );
    let mut raw = gateway.connect().await;
    raw.send(format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    ))
    .await;
    for _ in 0..5 {
        raw.send(format!("400\r\n{}\r\n", "x".repeat(0x400))).await;
    }
    assert!(raw.read_until("\r\n").await.starts_with("HTTP/1.1 413 "));
    let mut raw = gateway.connect().await;
    raw.send(format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999999\r\n\r\n"
    ))
    .await;
    assert!(
        raw.read_until("\r\n").await.starts_with("HTTP/1.1 413 "),
        "before it is sent"
    );
}

#[tokio::test]
async fn headers_without_end_are_refused() {
    let gateway = gateway()
        .scripted()
        .with("[server]\nmax_header_bytes = '8KiB'")
        .start()
        .await;
    let mut raw = gateway.connect().await;
    let mut sent = raw.send("GET /healthz HTTP/1.1\r\nhost: x\r\n").await;
    for line in 0..200 {
        sent = sent && raw.send(format!("x-{line}: {}\r\n", "y".repeat(100))).await;
    }
    let answer = raw.read_to_end().await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431 "),
        "{answer}"
    );
    assert_eq!(gateway.get("/healthz").send().await.status, 200);
}

#[tokio::test]
async fn unknown_models_paths_methods_and_encodings_have_their_own_errors() {
    let gateway = gateway().scripted().start().await;
    let body = || chat_body("nobody", "x", "");
    assert_eq!(
        refused(&gateway, CHAT, body()).await,
        (404, "model_not_found".to_owned())
    );
    assert_eq!(
        refused(&gateway, "/v1/nothing", body()).await,
        (404, "not_found".to_owned())
    );
    let one = gateway
        .get("/v1/models/nobody")
        .send()
        .await
        .refusal()
        .await;
    assert_eq!(one, (404, "model_not_found".to_owned()));
    let method = gateway.get(CHAT).send().await;
    assert_eq!(method.header("allow"), "POST");
    assert_eq!(
        method.refusal().await,
        (405, "method_not_allowed".to_owned())
    );
    let packed = gateway
        .chat("scripted", "x", "")
        .header("content-encoding", "gzip")
        .send()
        .await;
    assert_eq!(
        packed.refusal().await,
        (415, "unsupported_media_type".to_owned())
    );
    let page = gateway
        .chat("scripted", "x", "")
        .header("sec-fetch-site", "cross-site")
        .send()
        .await;
    assert_eq!(page.refusal().await, (403, "cross_site".to_owned()));
    let own = gateway
        .chat("scripted", "x", "")
        .header("sec-fetch-site", "same-origin")
        .send()
        .await;
    assert_eq!(own.status, 200);
}

#[tokio::test]
async fn what_operators_see_is_not_public() {
    let gateway = gateway().scripted().start().await;
    assert_eq!(gateway.get("/metrics").send().await.status, 404);
    assert_eq!(gateway.ops_get("/metrics").send().await.status, 200);
    assert_eq!(gateway.ops_get("/v1/models").send().await.status, 404);
    for path in ["/healthz", "/readyz"] {
        assert_eq!(gateway.get(path).send().await.status, 200);
        assert_eq!(gateway.ops_get(path).send().await.status, 200);
    }
}

#[tokio::test]
async fn more_streams_than_allowed_are_shed_and_the_first_to_end_makes_room() {
    let gateway = gateway()
        .scripted()
        .with("[limits]\nmax_streams = 2")
        .start()
        .await;
    let first = gateway.chat(HELD, "x", r#""stream":true"#).send().await;
    let _second = gateway.chat(HELD, "x", r#""stream":true"#).send().await;
    let third = gateway.chat("scripted", "x", "").send().await;
    shed(third, "too_many_streams").await;
    let health = gateway.get("/healthz").send().await;
    assert_eq!(health.status, 200, "no health check waits behind a stream");
    drop(first);
    gateway
        .until("there is room", |m| m.sum("streams_open", &[]) == 1)
        .await;
    assert_eq!(gateway.chat("scripted", "x", "").send().await.status, 200);
    assert_eq!(gateway.metrics().await.ended("shed"), 1);
}

#[tokio::test]
async fn a_full_waiting_line_sheds_and_a_place_in_it_is_worth_something() {
    let gateway = gateway()
        .demo("context = 2048\nparallel = 1\nwaiting = 1")
        .start()
        .await;
    let holder = gateway
        .chat("demo", "x", ENDLESS)
        .receive_buffer(4096)
        .send()
        .await;
    gateway
        .until("it holds the slot", |m| m.running() == 1)
        .await;
    let waiting = tokio::spawn(gateway.chat("demo", "x", r#""max_tokens":3"#).send());
    gateway
        .until("one waits", |m| m.sum("requests_waiting", &[]) == 1)
        .await;
    shed(gateway.chat("demo", "x", "").send().await, "queue_full").await;
    drop(holder);
    assert_eq!(
        waiting.await.unwrap().json().await["usage"]["completion_tokens"],
        3
    );
}

#[tokio::test]
async fn without_a_waiting_line_a_busy_model_sheds_at_once() {
    let gateway = gateway()
        .demo("context = 2048\nparallel = 1\nwaiting = 0")
        .start()
        .await;
    let _holder = gateway
        .chat("demo", "x", ENDLESS)
        .receive_buffer(4096)
        .send()
        .await;
    shed(gateway.chat("demo", "x", "").send().await, "queue_full").await;
    shed(
        gateway.chat("demo", "x", r#""stream":true"#).send().await,
        "queue_full",
    )
    .await;
}

#[tokio::test]
async fn a_request_for_more_choices_than_there_can_ever_be_is_refused() {
    let gateway = gateway()
        .demo("context = 256\nparallel = 2\nwaiting = 2")
        .start()
        .await;
    let reply = gateway
        .chat("demo", "x", r#""n":5,"max_tokens":1"#)
        .send()
        .await;
    assert_eq!(
        reply.refusal().await.0,
        400,
        "to come back later would not help"
    );
    let reply = gateway
        .chat("demo", "x", r#""n":4,"max_tokens":1"#)
        .send()
        .await;
    let whole = reply.json().await;
    assert_eq!(
        whole["choices"].as_array().map(Vec::len),
        Some(4),
        "two now, two later: {whole}"
    );
}

#[tokio::test]
async fn who_has_seen_the_end_finds_the_place_free() {
    let gateway = gateway()
        .demo("context = 256\nparallel = 1\nwaiting = 0")
        .start()
        .await;
    for _ in 0..100 {
        let reply = gateway.chat("demo", "x", r#""max_tokens":1"#).send().await;
        assert_eq!(reply.status, 200);
        reply.bytes().await;
    }
}
