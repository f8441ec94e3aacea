//! HTTP/2.

use super::peer::{
    ACK, CALM, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE,
    PRIORITY, Peer, RST_STREAM, SETTINGS, WINDOW_UPDATE, chat, frame, get, literal, post, string,
};
use crate::support::{Metrics, TestGateway, chat_body, gateway};

/// Far more than is borne of anything, even if it takes a minute.
const MANY: usize = 50_000;

/// A generation that gives nothing for an hour.
fn slow(stream: u32) -> Vec<u8> {
    chat(
        stream,
        &chat_body("scripted?first=1h", "x", r#""stream":true"#),
    )
}

/// Frames on this stream that it must answer with a reset.
type Provoke<'a> = &'a dyn Fn(u32) -> Vec<u8>;

/// Another client's stream runs through `attack` undisturbed, and nothing is left of the attack.
async fn beside(gateway: &TestGateway, attack: impl Future<Output = ()>) {
    let model = "scripted?text=abcd&tokens=50&pace=2ms";
    let running = gateway.chat(model, "x", r#""stream":true"#).send().await;
    attack.await;
    assert_eq!(running.answer().await.text(), "abcd".repeat(50));
    assert_eq!(gateway.get("/healthz").send().await.status, 200);
    let free = |m: &Metrics| m.running() == 0 && m.sum("connections_open", &[]) == 0;
    gateway.until("all is free", free).await;
}

#[tokio::test]
async fn streams_opened_and_reset_in_one_breath_end_the_connection() {
    let gateway = gateway().scripted().start().await;
    beside(&gateway, async {
        let mut peer = Peer::new(&gateway).await;
        let mut burst = Vec::new();
        for number in 0..2000 {
            burst.extend(slow(2 * number + 1));
            burst.extend(frame(RST_STREAM, 0, 2 * number + 1, &[0, 0, 0, 8]));
        }
        let _ = peer.send(&burst).await;
        assert_eq!(peer.rest().await.goaway(), Some(CALM));
        let begun = gateway.metrics().await.ended_in_all();
        assert!(begun <= 200, "{begun} of 2000 were begun");
    })
    .await;
}

#[tokio::test]
async fn streams_reset_one_by_one_once_they_are_begun_end_the_connection() {
    let gateway = gateway().scripted().start().await;
    beside(&gateway, async {
        let mut peer = Peer::new(&gateway).await;
        let mut number = 0;
        loop {
            let stream = 2 * number + 1;
            let mut bytes = slow(stream);
            bytes.extend(frame(PING, 0, 0, &[0; 8]));
            // Its answer comes when the request has been read.
            if !peer.send(&bytes).await || !peer.until(PING, ACK).await {
                break;
            }
            if !peer
                .send(&frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]))
                .await
            {
                break;
            }
            number += 1;
            assert!(
                usize::try_from(number).unwrap() < MANY,
                "it is never sent away"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn resets_that_the_gateway_is_made_to_send_end_the_connection() {
    let zero = |stream| frame(WINDOW_UPDATE, 0, stream, &[0; 4]);
    let overflow = |stream| frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff]);
    let late = |stream| frame(DATA, END_STREAM, stream, b"more");
    let own = |stream: u32| {
        let mut on_itself = stream.to_be_bytes().to_vec();
        on_itself.push(1);
        frame(PRIORITY, 0, stream, &on_itself)
    };
    let ways: [(&str, Provoke); 4] = [
        ("a window update of nothing", &zero),
        ("a window too large", &overflow),
        ("data after the end", &late),
        ("a stream that depends on itself", &own),
    ];
    for (what, provoke) in ways {
        let gateway = gateway().scripted().start().await;
        beside(&gateway, async {
            let mut peer = Peer::new(&gateway).await;
            let mut number = 0;
            loop {
                let stream = 2 * number + 1;
                let mut bytes = slow(stream);
                bytes.extend(provoke(stream));
                bytes.extend(frame(PING, 0, 0, &[0; 8]));
                if !peer.send(&bytes).await || !peer.until(PING, ACK).await {
                    break;
                }
                number += 1;
                assert!(number < 2000, "{what}: it is never sent away");
            }
        })
        .await;
    }
}

#[tokio::test]
async fn headers_that_go_on_and_on_end_the_connection() {
    for (what, piece) in [
        ("nothing", Vec::new()),
        ("fields", literal(b"x", &[b'y'; 1000])),
        ("one field", vec![b'y'; 1000]),
    ] {
        let gateway = gateway().scripted().start().await;
        beside(&gateway, async {
            let mut peer = Peer::new(&gateway).await;
            let mut block = get("/healthz");
            if what == "one field" {
                // A value of which a gigabyte is to come.
                block.extend(b"\0\x01x\x7f\x81\xff\xff\xff\x03");
            }
            peer.send(&frame(HEADERS, END_STREAM, 1, &block)).await;
            let sent = peer.flood(&frame(CONTINUATION, 0, 1, &piece), MANY).await;
            assert!(sent < MANY, "{what}: it is never sent away");
            assert_ne!(peer.rest().await.goaway(), Some(0), "{what}: not in peace");
        })
        .await;
    }
}

#[tokio::test]
async fn frames_that_ask_for_nothing_end_the_connection_when_they_flood() {
    let settings = [0, 3, 0, 0, 0, 100];
    for (what, one) in [
        ("pings", frame(PING, 0, 0, &[7; 8])),
        ("answers to pings", frame(PING, ACK, 0, &[7; 8])),
        ("settings", frame(SETTINGS, 0, 0, &settings)),
        ("empty settings", frame(SETTINGS, 0, 0, &[])),
        ("priorities", frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 16])),
        (
            "windows of the connection",
            frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        ),
        (
            "windows of a stream",
            frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]),
        ),
        ("empty data", frame(DATA, 0, 1, &[])),
        ("padding", frame(DATA, 8, 1, &[3, 0, 0, 0])),
        (
            "resets of what has ended",
            frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]),
        ),
        ("unknown frames", frame(0xbe, 0, 0, b"x")),
    ] {
        let gateway = gateway().scripted().start().await;
        beside(&gateway, async {
            let mut peer = Peer::new(&gateway).await;
            // A request whose body is still to come.
            let head = post("/v1/chat/completions");
            peer.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
            let sent = 10 * peer.flood(&one.repeat(10), MANY / 10).await;
            assert!(sent < MANY, "{what}: it is never sent away");
        })
        .await;
    }
}

#[tokio::test]
async fn more_streams_than_allowed_are_refused_and_insisting_ends_the_connection() {
    let gateway = gateway()
        .scripted()
        .with("[server]\nmax_streams_per_connection = 10");
    let gateway = gateway.start().await;
    beside(&gateway, async {
        let mut peer = Peer::new(&gateway).await;
        for number in 0..2000 {
            if !peer.send(&slow(2 * number + 1)).await {
                break;
            }
        }
        assert_eq!(peer.rest().await.goaway(), Some(CALM));
        let begun = gateway.metrics().await.ended_in_all();
        assert!(begun <= 11, "{begun} were begun");
    })
    .await;
}

#[tokio::test]
async fn headers_that_unpack_into_megabytes_are_not_served() {
    let mut bomb = get("/healthz");
    // A field of 4,000 bytes to remember, and a reference to it ten thousand times.
    bomb.push(0x40);
    string(&mut bomb, b"x");
    string(&mut bomb, &[b'y'; 4000]);
    bomb.extend([0xbe; 10_000]);
    let mut many = get("/healthz");
    for _ in 0..10_000 {
        many.extend(literal(b"x", b""));
    }
    let mut large = get("/healthz");
    large.extend(literal(b"x", &vec![b'y'; 1 << 20]));
    for (what, block) in [
        ("a bomb", bomb),
        ("many fields", many),
        ("a large field", large),
    ] {
        let gateway = gateway().scripted().start().await;
        beside(&gateway, async {
            let mut peer = Peer::new(&gateway).await;
            let mut pieces = block.chunks(16_000);
            let first = pieces.next().unwrap();
            let mut open = peer.send(&frame(HEADERS, END_STREAM, 1, first)).await;
            for piece in pieces {
                open = open && peer.send(&frame(CONTINUATION, 0, 1, piece)).await;
            }
            open = open && peer.send(&frame(CONTINUATION, END_HEADERS, 1, &[])).await;
            // It asks for no more, so that it is let go once this is dealt with.
            let _ = open && peer.send(&frame(GOAWAY, 0, 0, &[0; 8])).await;
            let rest = peer.rest().await;
            assert!(!rest.text().contains("ok"), "{what}");
        })
        .await;
    }
}

#[tokio::test]
async fn beginnings_without_a_rest_are_given_up() {
    let settings = "[server]\nfirst_byte_timeout = '300ms'\nidle_timeout = '300ms'\nbody_timeout = '300ms'\n[http2]\nping_interval = '300ms'\nping_timeout = '300ms'";
    let settings_frame = frame(SETTINGS, 0, 0, &[]);
    let headers = frame(HEADERS, END_STREAM | END_HEADERS, 1, &get("/healthz"));
    for (what, bytes) in [
        ("half a preface", PREFACE[..12].to_vec()),
        ("a preface alone", PREFACE.to_vec()),
        (
            "nothing behind the settings",
            [PREFACE, &settings_frame].concat(),
        ),
        (
            "half a frame",
            [PREFACE, &settings_frame, &headers[..20]].concat(),
        ),
        (
            "headers to be continued",
            [
                PREFACE,
                &settings_frame,
                &frame(HEADERS, END_STREAM, 1, &get("/healthz")),
            ]
            .concat(),
        ),
        (
            "headers without the body",
            [
                PREFACE,
                &settings_frame,
                &frame(HEADERS, END_HEADERS, 1, &post("/v1/chat/completions")),
            ]
            .concat(),
        ),
    ] {
        let gateway = gateway().scripted().with(settings).start().await;
        beside(&gateway, async {
            let mut peer = Peer::silent(&gateway).await;
            assert!(peer.send(&bytes).await);
            let rest = peer.rest().await;
            let has_timed_out = rest.text().contains("request_timeout");
            assert_eq!(has_timed_out, what == "headers without the body", "{what}");
        })
        .await;
    }
}

#[tokio::test]
async fn a_window_of_zero_on_every_stream_holds_little_and_not_for_long() {
    let setup = gateway()
        .scripted()
        .with("[stream]\nstall_timeout = '300ms'");
    let gateway = setup.start().await;
    beside(&gateway, async {
        let mut peer = Peer::new(&gateway).await;
        // SETTINGS_INITIAL_WINDOW_SIZE.
        let settings = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
        assert!(peer.send(&settings).await);
        let endless = chat_body("scripted?tokens=100000000", "x", r#""stream":true"#);
        for number in 0..100 {
            assert!(peer.send(&chat(2 * number + 1, &endless)).await);
        }
        let rest = peer.rest().await;
        assert_eq!(rest.text(), "");
        let metrics = gateway.metrics().await;
        assert_eq!(metrics.ended("stalled"), 100, "{metrics}");
        // What waits for each: its ring of tokens and one frame.
        let tokens = metrics.sum("tokens_total", &["kind=\"output\""]);
        assert!(tokens < 100 * 10_000, "{tokens}");
    })
    .await;
}
