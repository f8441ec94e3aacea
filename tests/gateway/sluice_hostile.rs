//! `sluice/1` spoken badly or in bad faith: each gets its reason, and nobody else notices.

use quinn::VarInt;
use sluicegate::wire::sluice::frames::{Frame, Kind, MAX_PAYLOAD, header, varint};

use crate::support::{
    Served, chat_body, gateway, sluice_frame as frame, sluice_head as head, within,
};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn garbage_is_refused_with_its_reason_and_harms_nobody_else() {
    let served = Served::by(gateway().scripted()).await;
    let sluice = served.sluice().await;
    let mut other = sluice
        .chat("scripted?text=abcd&tokens=2&pace=500ms", "")
        .await;
    let empty_tokens = [Kind::Tokens as u8, 0];
    let request = |json: &str| frame(&Frame::Request(json.as_bytes()));
    let table: [(Vec<u8>, &str); 7] = [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "broke off"),
        (empty_tokens.to_vec(), "TOKENS"),
        (frame(&Frame::Data(b"x")), "DATA frame may not come before"),
        (request("{"), "cannot be read"),
        (request(r#"{"path":"no"}"#), "begins with /"),
        (request("\u{0}"), "cannot be read"),
        (
            request(r#"{"path":"/","headers":{"te":["a","\n"]}}"#),
            "header",
        ),
    ];
    for (bytes, reason) in table {
        let mut exchange = sluice.open(&bytes).await;
        // It may have been refused already.
        let _ = exchange.send.finish();
        let (status, kind, message) = exchange.refused().await;
        assert_eq!((status, &*kind), (400, "invalid"), "{message}");
        assert!(message.contains(reason), "{message}");
    }
    // Within the body.
    let mut bytes = head("POST", CHAT, &[]);
    bytes.extend(frame(&Frame::Request(b"{}")));
    let mut exchange = sluice.open(&bytes).await;
    let (status, _, message) = exchange.refused().await;
    assert_eq!(status, 400);
    assert!(
        message.contains("REQUEST frame may not come within the body"),
        "{message}"
    );
    assert_eq!(other.text().await, "abcd".repeat(2));
}

#[tokio::test]
async fn a_request_that_ends_within_a_frame_is_none() {
    let served = Served::by(gateway().scripted()).await;
    let sluice = served.sluice().await;
    let body = chat_body("scripted?tokens=1", "x", "");
    let mut whole = head("POST", CHAT, &[]);
    let head_len = whole.len();
    whole.extend(frame(&Frame::Data(body.as_bytes())));
    for end in [0, 1, head_len - 1, head_len + 1, whole.len() - 1] {
        let mut exchange = sluice.open(&whole[..end]).await;
        exchange.send.finish().unwrap();
        let (status, _, message) = exchange.refused().await;
        assert_eq!(status, 400, "{message}");
        assert!(message.contains("broke off"), "{end}: {message}");
    }
    // One that its client takes back.
    let mut exchange = sluice.open(&whole[..whole.len() - 1]).await;
    exchange.send.reset(VarInt::from_u32(0x35)).unwrap();
    assert!(exchange.head().await.status >= 400);
    assert_eq!(served.gateway.metrics().await.ended("ok"), 0);
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_from_its_length() {
    let setup = gateway()
        .scripted()
        .with("[server]\nmax_header_bytes = '8KiB'");
    let served = Served::by(setup).await;
    let sluice = served.sluice().await;
    for length in [8193, MAX_PAYLOAD + 1, usize::try_from(varint::MAX).unwrap()] {
        let mut out = Vec::new();
        header(&mut out, Kind::Request, length);
        let mut exchange = sluice.open(&out).await;
        let (status, kind, _) = exchange.refused().await;
        assert_eq!((status, &*kind), (413, "too_large"));
    }
    let path = format!("/{}", "a".repeat(8000));
    assert_eq!(sluice.status_of(&path).await, 404, "this one fits");
}

#[tokio::test]
async fn a_head_that_does_not_come_is_refused_in_time() {
    let setup = gateway()
        .scripted()
        .with("[server]\nheader_timeout = '200ms'");
    let served = Served::by(setup).await;
    let sluice = served.sluice().await;
    let mut silent = Vec::new();
    for bytes in [&b"\x01"[..], b"\x06\x00", b"\x01\x20{"] {
        silent.push(sluice.open(bytes).await);
    }
    for mut exchange in silent {
        let (status, kind, _) = exchange.refused().await;
        assert_eq!((status, &*kind), (408, "slow_request"));
    }
    assert_eq!(sluice.status_of("/healthz").await, 200);
}

#[tokio::test]
async fn unknown_frames_and_pings_are_passed_over() {
    let served = Served::by(gateway().scripted()).await;
    let sluice = served.sluice().await;
    let mut unknown = Vec::new();
    varint::write(&mut unknown, 0x21);
    varint::write(&mut unknown, 200_000);
    unknown.resize(unknown.len() + 200_000, 0xff);
    let body = chat_body("scripted?text=abcd&tokens=2", "x", "");
    let (first, second) = body.as_bytes().split_at(body.len() / 2);
    let ping = frame(&Frame::Ping);
    let request = head("POST", CHAT, &[]);
    let data = [frame(&Frame::Data(first)), frame(&Frame::Data(second))];
    let mut exchange = sluice.open(&ping).await;
    let parts: [&[u8]; 8] = [
        &unknown, &request, &unknown, &data[0], &ping, &unknown, &data[1], &unknown,
    ];
    for part in parts {
        within(exchange.send.write_all(part)).await.unwrap();
    }
    exchange.send.finish().unwrap();
    assert_eq!(exchange.head().await.status, 200);
    assert_eq!(exchange.text().await, "abcd".repeat(2));
}
