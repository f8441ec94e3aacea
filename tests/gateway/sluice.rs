//! `sluice/1`: the same requests and answers in frames, over QUIC.

use std::time::Duration;

use quinn::{ReadError, VarInt, WriteError};
use serde_json::{Value, json};
use sluicegate::wire::sluice::FRAMES;
use sluicegate::wire::sluice::frames::{Decoder, Frame, Kind, MAX_PAYLOAD};

use crate::support::{
    Came, Metrics, Served, chat_body, close_code, gateway, sluice_frame as frame,
    sluice_head as head, within,
};

const CHAT: &str = "/v1/chat/completions";

/// Long enough for any window, and for ever.
const ENDLESS: &str = "scripted?tokens=100000000";

fn gone(metrics: &Metrics, count: u64) -> bool {
    metrics.ended("client_gone") == count && metrics.running() == 0
}

#[tokio::test]
async fn a_generation_streams_token_by_token_and_ends_with_its_usage() {
    let served = Served::by(gateway().scripted()).await;
    let sluice = served.sluice().await;
    // The second token comes an hour after the first: what is read before was sent before.
    let mut first = sluice.chat("scripted?text=abcd&tokens=2&pace=1h", "").await;
    assert!(matches!(first.next().await, Came::Progress(_, 0)));
    assert_eq!(first.next().await, Came::Tokens(0, 1, "abcd".into()));

    let mut whole = sluice.chat("scripted?text=abcd&tokens=300", "").await;
    let rest = whole.rest().await;
    let (mut text, mut counted) = (String::new(), 0);
    for came in &rest {
        if let Came::Tokens(0, count, piece) = came {
            text += piece;
            counted += count;
        }
    }
    assert_eq!((&*text, counted), (&*"abcd".repeat(300), 300));
    let [Came::Progress(prompt, 0), .., usage, end] = &rest[..] else {
        panic!("PROGRESS first, USAGE and END last: {rest:?}");
    };
    assert_eq!(*usage, Came::Usage(*prompt, 0, 300));
    assert_eq!(*end, Came::End(vec![1]));
}

#[tokio::test]
async fn the_same_frames_come_over_http_for_who_asks_for_them() {
    let served = Served::by(gateway().scripted()).await;
    let ask = served.gateway.chat("scripted?text=abcd&tokens=3", "x", "");
    let reply = ask.header("accept", FRAMES).send().await;
    assert_eq!((reply.status, reply.header("content-type")), (200, FRAMES));
    let bytes = reply.bytes().await;
    let (mut decoder, mut input, mut text) = (Decoder::new(), &bytes[..], String::new());
    while let Some(frame) = decoder.next(&mut input).unwrap() {
        if let Frame::Tokens { text: piece, .. } = frame {
            text.push_str(piece);
        }
    }
    decoder.finish().expect("it ends with END");
    assert_eq!(text, "abcd".repeat(3));
    // A body that cannot be read is refused in the same way.
    let reply = served
        .gateway
        .post(CHAT, "{")
        .header("accept", FRAMES)
        .send()
        .await;
    assert_eq!((reply.status, reply.header("content-type")), (400, FRAMES));
    let bytes = reply.bytes().await;
    let error = Decoder::new()
        .next(&mut &bytes[..])
        .map(|frame| frame.map(|f| f.kind()));
    assert_eq!(error, Ok(Some(Kind::Error)));
}

#[tokio::test]
async fn json_rpc_travels_unchanged() {
    let served = Served::by(gateway().scripted()).await;
    let sluice = served.sluice().await;
    let params = json!({"model": "scripted?text=abcd&tokens=3", "prompt": "x", "stream": true});
    let call = json!({"jsonrpc": "2.0", "id": 7, "method": "complete", "params": params});
    let call = call.to_string();
    let mut exchange = sluice.ask("POST", "/rpc", &[], call.as_bytes()).await;
    let head = exchange.head().await;
    assert_eq!(
        head.headers.first("content-type"),
        Some("application/x-ndjson")
    );
    let over_quic = String::from_utf8(exchange.body().await).unwrap();
    let over_http = served.gateway.post("/rpc", call).send().await.text().await;
    let texts = |lines: &str| -> Vec<Value> {
        let parsed = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        parsed
            .map(|line: Value| line["params"]["text"].clone())
            .collect()
    };
    assert_eq!(texts(&over_quic), texts(&over_http));
    assert_eq!(texts(&over_quic)[0], "abcd");

    let ping = br#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let mut exchange = sluice.ask("POST", "/rpc", &[], ping).await;
    assert_eq!(exchange.head().await.status, 200);
    let reply: Value = serde_json::from_slice(&exchange.body().await).unwrap();
    assert_eq!(reply["id"], 1);
}

#[tokio::test]
async fn what_is_no_generation_comes_in_data_as_on_any_transport() {
    let served = Served::by(gateway().scripted()).await;
    let sluice = served.sluice().await;
    let mut health = sluice
        .ask("GET", "/healthz", &[("x-request-id", "mine")], b"")
        .await;
    let head = health.head().await;
    assert_eq!(
        (head.status, head.headers.first("x-request-id")),
        (200, Some("mine"))
    );
    assert_eq!(head.headers.first("connection"), None);
    assert_eq!(health.body().await, b"ok\n");
    let mut head = sluice.ask("HEAD", "/healthz", &[], b"").await;
    assert_eq!(head.head().await.status, 200);
    assert_eq!(head.body().await, b"");
    // Larger than one DATA frame, and than the send window.
    let openrpc = served
        .gateway
        .get("/rpc/openrpc.json")
        .send()
        .await
        .bytes()
        .await;
    let mut large = sluice.ask("GET", "/rpc/openrpc.json", &[], b"").await;
    large.head().await;
    assert_eq!(large.body().await, openrpc);
    let mut script = sluice.ask("GET", "/app.js", &[], b"").await;
    script.head().await;
    assert_eq!(
        script.body().await,
        served.gateway.get("/app.js").send().await.bytes().await
    );
    assert_eq!(sluice.status_of("/nothing").await, 404);
    // Other formats on the same path.
    let body = chat_body("scripted?text=abcd&tokens=2", "x", r#""stream":true"#);
    let headers = [("accept", "text/event-stream")];
    let mut events = sluice.ask("POST", CHAT, &headers, body.as_bytes()).await;
    assert_eq!(
        events.head().await.headers.first("content-type"),
        Some("text/event-stream")
    );
    let text = String::from_utf8(events.body().await).unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    assert_eq!(
        served.gateway.metrics().await.sum("connections_open", &[]),
        1
    );
}

#[tokio::test]
async fn a_resume_asks_for_the_rest_of_a_stream() {
    let served = Served::by(gateway().scripted()).await;
    let sluice = served.sluice().await;
    let resume = Frame::Resume {
        after: 3,
        id: "no-such-stream",
        headers: b"",
    };
    let mut exchange = sluice.open(&frame(&resume)).await;
    exchange.send.finish().unwrap();
    let path = "/v1/streams/no-such-stream?after=3";
    assert_eq!(exchange.head().await.status, sluice.status_of(path).await);
}

#[tokio::test]
async fn a_stream_that_was_begun_over_http_goes_on_over_quic() {
    let setup = gateway().scripted().with("[stream]\nresume = true");
    let served = Served::by(setup).await;
    let sluice = served.sluice().await;
    let model = "scripted?text=abcd&tokens=3&stall_at=2&stall=1h";
    let ask = served.gateway.chat(model, "x", "");
    let mut reply = ask.header("accept", FRAMES).send().await;
    let id = reply.header("x-stream-id").to_owned();
    reply.next().await.expect("it began");
    drop(reply);
    let resume = Frame::Resume {
        after: 1,
        id: &id,
        headers: b"",
    };
    let mut exchange = sluice.open(&frame(&resume)).await;
    exchange.send.finish().unwrap();
    assert_eq!(exchange.head().await.status, 200);
    let mut text = String::new();
    while text != "abcd".repeat(2) {
        let came = exchange.next().await;
        let Came::Tokens(0, _, piece) = came else {
            panic!("PROGRESS was the first event: {came:?}");
        };
        text += &piece;
    }
}

#[tokio::test]
async fn an_upload_is_taken_as_it_is_read_and_one_that_is_too_large_is_refused() {
    let setup = gateway()
        .scripted()
        .with("[server]\nmax_body_bytes = '1MiB'");
    let served = Served::by(setup).await;
    let sluice = served.sluice().await;
    // Some windows long.
    let text = "a".repeat(700_000);
    let body = chat_body("scripted?text=abcd&tokens=2", &text, "");
    for size in [1000, MAX_PAYLOAD] {
        let mut upload = sluice.open(&head("POST", CHAT, &[])).await;
        for piece in body.as_bytes().chunks(size) {
            within(upload.send.write_all(&frame(&Frame::Data(piece))))
                .await
                .unwrap();
        }
        upload.send.finish().unwrap();
        assert_eq!(upload.head().await.status, 200);
        assert_eq!(upload.text().await, "abcd".repeat(2));
    }
    let mut endless = sluice.open(&head("POST", CHAT, &[])).await;
    let piece = frame(&Frame::Data(&vec![b' '; MAX_PAYLOAD]));
    let mut sent = 0;
    let error = loop {
        match within(endless.send.write_all(&piece)).await {
            Ok(()) => sent += piece.len(),
            Err(error) => break error,
        }
        assert!(sent < 16 << 20, "it is told to stop");
    };
    assert!(matches!(error, WriteError::Stopped(_)), "{error}");
    let (status, kind, _) = endless.refused().await;
    assert_eq!((status, &*kind), (413, "too_large"));
    assert_eq!(sluice.status_of("/healthz").await, 200);
}

#[tokio::test]
async fn a_client_that_cancels_frees_its_sequence_idle_or_in_mid_stream() {
    let served = Served::by(gateway().scripted()).await;
    let sluice = served.sluice().await;
    for (count, model) in [
        (1, "scripted?pace=1h"),
        (2, "scripted?pace=1ms&tokens=1000000"),
    ] {
        let mut exchange = sluice.chat(model, "").await;
        exchange.next().await;
        exchange.next().await;
        exchange.stop();
        let freed = |m: &Metrics| gone(m, count);
        served.gateway.until("it is freed", freed).await;
    }
    // Before there is any answer.
    let body = chat_body("scripted?first=1h", "x", "");
    let mut early = sluice.ask("POST", CHAT, &[], body.as_bytes()).await;
    let runs = |m: &Metrics| m.running() == 1;
    served.gateway.until("it runs", runs).await;
    early.stop();
    served.gateway.until("it is freed", |m| gone(m, 3)).await;
    // And with the connection.
    let mut last = sluice.chat("scripted?pace=1h", "").await;
    last.next().await;
    sluice.0.close(0_u32.into(), b"");
    let metrics = served.gateway.until("it is freed", |m| gone(m, 4)).await;
    assert_eq!(metrics.ended_in_all(), 4, "each counted once");
}

#[tokio::test]
async fn a_stalled_reader_pauses_its_sequence_and_goes_on_where_it_was() {
    // However long the others take.
    let setup = gateway()
        .demo("context = 2048\nparallel = 4\ndeterministic = true")
        .with("[stream]\nstall_timeout = '1h'");
    let served = Served::by(setup).await;
    let more = r#""seed":3,"temperature":1.0,"ignore_eos":true,"max_tokens":1500"#;
    let expected = served.sluice().await.chat("demo", more).await.text().await;
    let narrow = served.sluice_host().stream_window(1024);
    let sluice = served.sluice_by(&narrow).await;
    let mut stalled = sluice.chat("demo", more).await;
    let paused = |m: &Metrics| m.paused() == 1;
    let paused_now = served
        .gateway
        .until("its sequence leaves the batch", paused);
    paused_now.await;
    let mut beside = served.sluice().await.chat("demo", more).await;
    assert_eq!(beside.text().await, expected);
    assert!(
        paused(&served.gateway.metrics().await),
        "nothing has moved it"
    );
    assert_eq!(stalled.text().await, expected);
}

#[tokio::test]
async fn a_stalled_stream_holds_up_none_of_the_others_on_its_connection() {
    let served = Served::by(gateway().scripted()).await;
    let narrow = served.sluice_host().stream_window(16 * 1024);
    let sluice = served.sluice_by(&narrow).await;
    let mut stalled = sluice.chat(ENDLESS, "").await;
    for _ in 0..20 {
        let mut other = sluice
            .chat("scripted?text=abcdefgh&token_bytes=8&tokens=400", "")
            .await;
        assert_eq!(other.text().await, "abcdefgh".repeat(400));
    }
    stalled.next().await;
    assert_eq!(served.gateway.metrics().await.ended("ok"), 20);
}

#[tokio::test]
async fn a_reader_that_stalls_too_long_is_cut_off_and_loses_its_stream_alone() {
    let setup = gateway()
        .scripted()
        .with("[stream]\nstall_timeout = '300ms'");
    let served = Served::by(setup).await;
    let narrow = served.sluice_host().stream_window(4096);
    let sluice = served.sluice_by(&narrow).await;
    let mut stalled = sluice.chat(ENDLESS, "").await;
    let cut = |m: &Metrics| m.ended("stalled") == 1 && m.running() == 0;
    served.gateway.until("it is cut off", cut).await;
    let reset = within(stalled.recv.received_reset()).await.unwrap();
    assert_eq!(reset, Some(VarInt::from_u32(0x34)));
    let mut other = sluice.chat("scripted?text=abcd&tokens=3", "").await;
    assert_eq!(other.text().await, "abcd".repeat(3), "the others go on");
    assert_eq!(served.gateway.metrics().await.ended_in_all(), 2);
}

#[tokio::test]
async fn a_silent_answer_shows_signs_of_life() {
    let setup = gateway().scripted().with("[stream]\nkeep_alive = '50ms'");
    let served = Served::by(setup).await;
    let sluice = served.sluice().await;
    let mut exchange = sluice.chat("scripted?first=1h", "").await;
    assert_eq!(exchange.next().await, Came::Ping);
    assert_eq!(exchange.next().await, Came::Ping);
}

#[tokio::test]
async fn a_stream_that_breaks_ends_in_an_error_frame() {
    let served = Served::by(gateway().scripted()).await;
    let sluice = served.sluice().await;
    let model = "scripted?text=abcd&tokens=9&pace=20ms&fail_at=2";
    let mut exchange = sluice.chat(model, "").await;
    let rest = exchange.rest().await;
    let Some(Came::Error(fault)) = rest.last() else {
        panic!("an ERROR ends it: {rest:?}");
    };
    assert_eq!((&*fault.kind, fault.code), ("internal", 0x41));
}

#[tokio::test]
async fn a_drain_lets_streams_finish_and_refuses_new_ones() {
    let setup = gateway().scripted();
    let setup = setup.with("[drain]\nlag = '0s'\ntimeout = '30s'");
    let mut served = Served::by(setup).await;
    let narrow = served.sluice_host().stream_window(4096);
    let sluice = served.sluice_by(&narrow).await;
    // Many windows long, so it ends only when it is read.
    let model = "scripted?text=abcdefgh&token_bytes=8&tokens=4000";
    let mut running = sluice.chat(model, "").await;
    let drained = served.gateway.drain();
    let body = chat_body("scripted?tokens=1", "x", "");
    let refused = loop {
        let mut late = sluice.ask("POST", CHAT, &[], body.as_bytes()).await;
        if late.head().await.status != 200 {
            break late.rest().await;
        }
    };
    assert!(
        matches!(&refused[..], [Came::Error(fault)] if fault.kind == "draining"),
        "{refused:?}"
    );
    assert_eq!(running.text().await, "abcdefgh".repeat(4000));
    let error = within(sluice.0.closed()).await;
    assert_eq!(close_code(&error), Some(0x31), "{error}");
    within(drained).await.expect("it ends");
}

#[tokio::test]
async fn a_connection_that_is_about_to_close_finishes_what_it_has_and_takes_no_more() {
    let setup = gateway().scripted();
    let setup = setup.with("[drain]\nlag = '0s'\ntimeout = '30s'");
    let mut served = Served::by(setup).await;
    let sluice = served.sluice().await;
    let idle = served.sluice().await;
    let mut upload = sluice.open(&head("POST", CHAT, &[])).await;
    // So that the one before it has come.
    assert_eq!(sluice.status_of("/healthz").await, 200);
    let drained = served.gateway.drain();
    let error = within(idle.0.closed()).await;
    assert_eq!(close_code(&error), Some(0x31), "{error}");
    let mut late = sluice.open(&head("GET", "/healthz", &[])).await;
    let error = within(late.recv.read(&mut [0; 9])).await.unwrap_err();
    assert_eq!(error, ReadError::Reset(VarInt::from_u32(0x31)));
    upload.send.finish().unwrap();
    // A body that is empty is none, whoever is about to close.
    assert_eq!(upload.refused().await.0, 400);
    let error = within(sluice.0.closed()).await;
    assert_eq!(close_code(&error), Some(0x31), "{error}");
    within(drained).await.expect("it ends");
}

#[tokio::test]
async fn a_connection_with_nothing_to_ask_is_closed() {
    let setup = gateway()
        .scripted()
        .with("[server]\nidle_timeout = '300ms'");
    let served = Served::by(setup).await;
    let sluice = served.sluice().await;
    let mut slow = sluice
        .chat("scripted?tokens=3&pace=400ms&text=abcd", "")
        .await;
    assert_eq!(slow.text().await, "abcd".repeat(3), "busy is not idle");
    let error = within(sluice.0.closed()).await;
    assert_eq!(close_code(&error), Some(0), "{error}");
}

#[tokio::test]
async fn streams_beyond_the_limit_wait_with_the_client() {
    let setup = gateway().scripted().with("[quic]\nmax_streams = 2");
    let served = Served::by(setup).await;
    let sluice = served.sluice().await;
    let _first = sluice.chat("scripted?pace=1h", "").await;
    let mut second = sluice.chat("scripted?pace=1h", "").await;
    let mut third = std::pin::pin!(sluice.status_of("/healthz"));
    let came = tokio::time::timeout(Duration::from_millis(100), &mut third).await;
    assert!(came.is_err(), "there is no room for a third");
    second.stop();
    assert_eq!(within(third).await, 200);
}
