//! One message that two readers could take for two: whatever the other one thinks, ours either takes all
//! of it for one request or refuses it, and in doubt reads nothing more from that connection.

use crate::support::{TestGateway, chat_body, gateway};

use super::peer::{DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Peer, frame, literal, post};

/// The request that somebody in front of us might have passed on unseen; its answer is a list.
const SMUGGLED: &str = "GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n";
const ANSWER: &str = r#""object":"list""#;

/// Only for what is never to be answered: a slow machine must not be the reason.
const SERVER: &str = "[server]
header_timeout = '100ms'
body_timeout = '100ms'
idle_timeout = '100ms'
";

/// Whether a body is read, or left to the connection.
const PATHS: [&str; 2] = ["/v1/chat/completions", "/healthz"];

async fn never_answers_more(gateway: &TestGateway, headers: &str, body: &str) {
    for path in PATHS {
        for version in ["1.1", "1.0"] {
            let mut raw = gateway.connect().await;
            raw.send(format!(
                "POST {path} HTTP/{version}\r\nhost: x\r\nconnection: keep-alive\r\n{headers}\r\n\r\n{body}"
            ))
            .await;
            let answer = raw.read_to_end().await;
            assert!(
                !answer.contains(ANSWER),
                "{path} {headers:?} {body:?}: {answer}"
            );
            assert!(
                answer.matches("HTTP/1.").count() <= 1,
                "{headers:?}: {answer}"
            );
        }
    }
}

#[tokio::test]
async fn a_request_behind_a_whole_one_is_served() {
    let gateway = gateway().scripted().start().await;
    let behind = SMUGGLED.replace("host: x", "host: x\r\nconnection: close");
    for (headers, body) in [
        ("content-length: 2", "{}"),
        ("transfer-encoding: chunked", "2\r\n{}\r\n0\r\n\r\n"),
    ] {
        let mut raw = gateway.connect().await;
        raw.send(format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{headers}\r\n\r\n{body}{behind}"
        ))
        .await;
        let answers = raw.read_to_end().await;
        assert!(answers.contains(ANSWER), "{answers}");
    }
}

#[tokio::test]
async fn the_request_behind_an_end_that_only_one_reader_sees_is_not_served() {
    let gateway = gateway().scripted().with(SERVER).start().await;
    let ended = format!("0\r\n\r\n{SMUGGLED}");
    let whole = ended.len();
    for coding in [
        "transfer-encoding: chunked",
        "Transfer-Encoding : chunked",
        "transfer-encoding:\tchunked",
        "transfer-encoding: xchunked",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: identity\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity",
        "transfer-encoding:\r\n chunked",
        "x: y\ntransfer-encoding: chunked",
        "x: y\rtransfer-encoding: chunked",
        "transfer-encoding: \u{b}chunked",
        "transfer-encoding: \"chunked\"",
        "transfer-encoding: chunked;q=1",
        "transfer-encoding: chunked\0",
        "transfer_encoding: chunked",
        "tRANSFER-eNCODING: cHUNKED",
    ] {
        for headers in [
            format!("content-length: {whole}\r\n{coding}"),
            format!("{coding}\r\ncontent-length: {whole}"),
        ] {
            never_answers_more(&gateway, &headers, &ended).await;
        }
    }
    // The other way round: the chunk holds the request, the length ends before it.
    let chunk = format!("{:x}\r\n{SMUGGLED}\r\n0\r\n\r\n", SMUGGLED.len());
    let head = format!("{:x}\r\n", SMUGGLED.len()).len();
    for headers in [
        format!("content-length: {head}\r\ntransfer-encoding: chunked"),
        format!("transfer-encoding: chunked\r\ncontent-length: {head}"),
    ] {
        never_answers_more(&gateway, &headers, &chunk).await;
    }
}

#[tokio::test]
async fn lengths_that_can_be_read_in_two_ways_are_refused() {
    let gateway = gateway().scripted().with(SERVER).start().await;
    let whole = SMUGGLED.len();
    for lengths in [
        format!("content-length: 0\r\ncontent-length: {whole}"),
        format!("content-length: {whole}\r\ncontent-length: 0"),
        format!("content-length: 0, {whole}"),
        format!("content-length: {whole}, 0"),
        format!("content-length: 0 {whole}"),
        format!("content-length: +{whole}"),
        "content-length: -0".to_owned(),
        "content-length: 0x0".to_owned(),
        "content-length: 0_0".to_owned(),
        "content-length: 0.0".to_owned(),
        "content-length: ".to_owned(),
        "content-length: 18446744073709551616".to_owned(),
        "content-length: \u{ff10}".to_owned(),
        "content-length : 0".to_owned(),
        "content-length:\r\n 0".to_owned(),
    ] {
        never_answers_more(&gateway, &lengths, SMUGGLED).await;
    }
}

#[tokio::test]
async fn chunks_that_can_be_read_in_two_ways_end_the_connection() {
    let gateway = gateway().scripted().with(SERVER).start().await;
    for chunks in [
        "0x0\r\n\r\n",
        "-0\r\n\r\n",
        "+0\r\n\r\n",
        "\r\n\r\n",
        "g\r\n\r\n",
        "0\n\n",
        "0\r\r",
        "0;x\n\n",
        "1\r\nab\r\n0\r\n\r\n",
        "1\r\na0\r\n\r\n",
        "1\r\na\n0\r\n\r\n",
        "10000000000000000\r\n\r\n0\r\n\r\n",
        "fffffffffffffffff\r\n\r\n",
    ] {
        let body = format!("{chunks}{SMUGGLED}");
        never_answers_more(&gateway, "transfer-encoding: chunked", &body).await;
    }
}

#[tokio::test]
async fn a_body_nobody_asked_for_is_no_request() {
    let gateway = gateway().scripted().with(SERVER).start().await;
    let length = SMUGGLED.len();
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "CONNECT"] {
        for path in ["/healthz", "/nothing", "/v1/chat/completions"] {
            let mut raw = gateway.connect().await;
            raw.send(format!(
                "{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{SMUGGLED}"
            ))
            .await;
            let answer = raw.read_to_end().await;
            assert!(!answer.contains(ANSWER), "{method} {path}: {answer}");
        }
    }
}

#[tokio::test]
async fn no_other_protocol_is_switched_to() {
    let gateway = gateway().scripted().start().await;
    for upgrade in ["h2c", "websocket", "TLS/1.0"] {
        let mut raw = gateway.connect().await;
        raw.send(format!(
            "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings, close\r\nupgrade: {upgrade}\r\nhttp2-settings: AAMAAABk\r\n\r\n"
        ))
        .await;
        let answer = raw.read_to_end().await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{upgrade}: {answer}");
        assert!(!answer.contains(" 101 "), "{upgrade}: {answer}");
    }
}

#[tokio::test]
async fn line_ends_in_what_is_given_back_break_no_head() {
    let gateway = gateway().scripted().with(SERVER).start().await;
    for id in ["a\rx-evil: 1", "a\nx-evil: 1", "a\0b", "a\r\n x-evil: 1"] {
        let mut raw = gateway.connect().await;
        raw.send(format!(
            "GET /healthz HTTP/1.1\r\nhost: x\r\nx-request-id: {id}\r\n\r\n"
        ))
        .await;
        assert!(
            !answer_head(&raw.read_to_end().await).contains("x-evil"),
            "{id:?}"
        );
    }
    for model in ["scripted\r\nx-evil: 1", "no\r\n\r\nx-evil: 1"] {
        let mut raw = gateway.connect().await;
        raw.post("/v1/chat/completions", &chat_body(model, "x", ""))
            .await;
        let answer = raw.read_to_end().await;
        assert!(!answer.contains("\nx-evil"), "{model:?}: {answer}");
    }
}

fn answer_head(answer: &str) -> String {
    answer
        .split("\r\n\r\n")
        .next()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test]
async fn http2_bodies_other_than_their_length_and_fields_of_http1_are_no_requests() {
    let body = chat_body("scripted?tokens=1", "x", "");
    let length = |by: usize| literal(b"content-length", by.to_string().as_bytes());
    for (what, more) in [
        ("nothing", length(body.len())),
        ("too short", length(body.len() + 1)),
        ("too long", length(body.len() - 1)),
        ("two lengths", [length(body.len()), length(0)].concat()),
        ("no number", literal(b"content-length", b"+1")),
        ("a coding", literal(b"transfer-encoding", b"chunked")),
        ("a connection", literal(b"connection", b"x-request-id")),
        ("an upgrade", literal(b"upgrade", b"h2c")),
        ("te", literal(b"te", b"gzip")),
        ("a line end", literal(b"x", b"y\r\ncontent-length: 0")),
        ("a line end in a name", literal(b"x\r\ny", b"z")),
        ("a capital", literal(b"X-Request-Id", b"z")),
        ("a method twice", literal(b":method", b"GET")),
        (
            "a pseudo field behind others",
            [literal(b"x", b"y"), literal(b":scheme", b"http")].concat(),
        ),
    ] {
        let gateway = gateway().scripted().start().await;
        let mut peer = Peer::new(&gateway).await;
        let block = [post("/v1/chat/completions"), more].concat();
        let frames = [
            frame(HEADERS, END_HEADERS, 1, &block),
            frame(DATA, END_STREAM, 1, body.as_bytes()),
            frame(GOAWAY, 0, 0, &[0; 8]),
        ];
        peer.send(&frames.concat()).await;
        let rest = peer.rest().await;
        let is_right = what == "nothing";
        let text = rest.text();
        assert_eq!(text.contains("choices"), is_right, "{what}: {text}");
        let served = gateway.metrics().await.ended("ok");
        assert_eq!(served, u64::from(is_right), "{what}");
    }
}
