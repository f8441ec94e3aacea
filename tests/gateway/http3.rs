//! HTTP/3: the same answers over QUIC, readers felt one by one, and an end without loss.

use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::support::{
    Answer, Event, Metrics, Served, Tap, chat_body, close_code, connect, gateway,
    quic_request as request, read_certificate, trusting, within,
};

/// Long enough for any window, and for ever.
const ENDLESS: &str = "scripted?tokens=100000000";

fn gone(metrics: &Metrics, count: u64) -> bool {
    metrics.ended("client_gone") == count && metrics.running() == 0
}

#[tokio::test]
async fn an_answer_streams_token_by_token() {
    let served = Served::by(gateway().scripted()).await;
    let http = served.http3().await;
    // The second token comes an hour after the first: what is read before was sent before.
    let mut first = http.chat("scripted?text=abcd&tokens=2&pace=1h", "").await;
    let events = [first.next_event().await, first.next_event().await];
    assert!(
        events
            .iter()
            .all(|event| matches!(event, Some(Event::Data(_)))),
        "{events:?}"
    );
    let whole = http.chat("scripted?text=abcd&tokens=300", "").await;
    assert_eq!(whole.answer().await.text(), "abcd".repeat(300));
}

#[tokio::test]
async fn plain_answers_heads_and_refusals_are_those_of_any_transport() {
    let served = Served::by(gateway().scripted()).await;
    let http = served.http3().await;
    let mut health = http.get("/healthz").await;
    let (status, headers) = health.head().await;
    assert_eq!(status, 200);
    assert_eq!(headers["content-length"], "3");
    assert!(headers.contains_key("x-request-id"));
    assert!(!headers.contains_key("alt-svc"), "it is here already");
    assert_eq!(health.text().await, "ok\n");

    let mut head = http.begin(request("HEAD", "/healthz")).await;
    head.finish().await;
    assert_eq!(head.head().await.0, 200);
    assert_eq!(head.next().await, None, "no body");

    let mut nothing = http.get("/nothing").await;
    assert_eq!(nothing.head().await.0, 404);
    let whole = chat_body("scripted?text=abcd&tokens=3", "x", "");
    let mut whole = http.post("/v1/chat/completions", whole).await;
    assert_eq!(whole.head().await.0, 200);
    assert!(whole.text().await.contains("abcdabcdabcd"));
    assert_eq!(
        served.gateway.metrics().await.sum("connections_open", &[]),
        1
    );
}

#[tokio::test]
async fn answers_over_tls_tell_of_quic_and_plain_ones_do_not() {
    let served = Served::by(gateway().scripted()).await;
    let http = served.http3().await;
    let plain = served.gateway.get("/healthz").send().await;
    assert_eq!(plain.header("alt-svc"), "");
    let port = served.gateway.secure().port();
    let certificate = read_certificate(&served.state.path().join("dev-cert.pem"));
    let client = trusting(certificate).with_no_client_auth();
    let stream = connect(served.gateway.secure(), client, &["h2"])
        .await
        .unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let asked = request("GET", "/healthz");
    let response = within(sender.send_request(asked)).await.unwrap();
    let head = response.headers();
    assert_eq!(head["alt-svc"], format!("h3=\":{port}\"; ma=300"));
    drop(http);
}

#[tokio::test]
async fn an_upload_is_taken_as_it_is_read_and_one_that_is_too_large_is_refused_early() {
    let setup = gateway()
        .scripted()
        .with("[server]\nmax_body_bytes = '1MiB'");
    let served = Served::by(setup).await;
    let http = served.http3().await;
    // Some windows long, in small pieces.
    let text = "a".repeat(700_000);
    let body = chat_body("scripted?text=abcd&tokens=2", &text, "");
    let mut upload = http.begin(request("POST", "/v1/chat/completions")).await;
    for piece in body.as_bytes().chunks(1000) {
        upload.send(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    upload.finish().await;
    assert_eq!(upload.head().await.0, 200);

    let mut endless = http.begin(request("POST", "/v1/chat/completions")).await;
    let piece = Bytes::from(vec![b' '; 64 * 1024]);
    let mut sent = 0;
    while endless.send(piece.clone()).await.is_ok() {
        sent += piece.len();
        assert!(sent < 16 << 20, "it is told to stop");
    }
    assert_eq!(endless.head().await.0, 413);
    assert!(endless.text().await.contains("request_too_large"));
    assert_eq!(http.get("/healthz").await.head().await.0, 200);
}

#[tokio::test]
async fn a_client_that_cancels_frees_its_sequence_idle_or_in_mid_stream() {
    let served = Served::by(gateway().scripted()).await;
    let http = served.http3().await;
    for (model, count) in [
        ("scripted?pace=1h", 1),
        ("scripted?pace=1ms&tokens=1000000", 2),
    ] {
        let mut exchange = http.chat(model, "").await;
        exchange.next_event().await.expect("it began");
        drop(exchange);
        let freed = |m: &Metrics| gone(m, count);
        served.gateway.until("it is freed", freed).await;
    }
    // Before there is any answer.
    let body = chat_body("scripted?first=1h", "x", r#""stream":true"#);
    let early = http.post("/v1/chat/completions", body).await;
    let runs = |m: &Metrics| m.running() == 1;
    served.gateway.until("it runs", runs).await;
    drop(early);
    served.gateway.until("it is freed", |m| gone(m, 3)).await;
    // And with the connection.
    let mut last = http.chat("scripted?pace=1h", "").await;
    last.next_event().await.expect("it began");
    http.connection.close(0_u32.into(), b"");
    let metrics = served.gateway.until("it is freed", |m| gone(m, 4)).await;
    assert_eq!(metrics.ended_in_all(), 4, "each counted once");
}

#[tokio::test]
async fn a_stalled_reader_pauses_its_sequence_and_goes_on_where_it_was() {
    let setup =
        gateway().demo("context = 2048\nparallel = 4\ndeterministic = true\npause_spill = '1h'");
    let setup = setup.with("[stream]\nstall_timeout = '1h'");
    let served = Served::by(setup).await;
    let brief = r#","seed":9,"ignore_eos":true,"max_tokens":150"#;
    let more = r#","seed":3,"temperature":1.0,"ignore_eos":true,"max_tokens":1500"#;
    let calm = served.http3().await;
    let expected = calm.chat("demo", more).await.answer().await.text();
    let alone = calm.chat("demo", brief).await.answer().await.text();
    let http = served
        .quic()
        .stream_window(4096)
        .http3(served.gateway.secure())
        .await;
    let stalled = http.chat("demo", more).await;
    let paused = |m: &Metrics| m.paused() == 1;
    served
        .gateway
        .until("its sequence leaves the batch", paused)
        .await;
    let beside = calm.chat("demo", brief).await.answer().await;
    assert_eq!(beside.text(), alone);
    let metrics = served.gateway.metrics().await;
    assert!(paused(&metrics), "nothing has moved it");
    assert_eq!(stalled.answer().await.text(), expected);
}

#[tokio::test]
async fn a_path_that_goes_dead_holds_no_more_than_its_budget() {
    let setup = gateway().demo("context = 2048\nparallel = 2");
    let served = Served::by(setup).await;
    let tap = Tap::before(served.gateway.secure()).await;
    tap.release();
    // As much as a browser offers, so that it is not the client who stops us.
    let http = served
        .quic()
        .stream_window(6 << 20)
        .http3(tap.address)
        .await;
    let more = r#","temperature":1.0,"ignore_eos":true,"max_tokens":1900"#;
    let mut whole = http.chat("demo", more).await;
    let bytes = whole.text().await.len() as u64;
    let tokens = |m: &Metrics| m.sum("tokens_total", &["kind=\"output\""]);

    let mut cut_off = http.chat("demo", more).await;
    cut_off.next_event().await.expect("it began");
    tap.hold();
    let before = tokens(&served.gateway.metrics().await);
    let paused = |m: &Metrics| m.paused() == 1;
    let metrics = served.gateway.until("the engine waits", paused).await;
    let pulled = (tokens(&metrics) - before) * bytes / 1900;
    // The budget, a ring and a burst of tokens, and as many that are not counted yet.
    assert!(pulled <= 2 * 64 * 1024, "{pulled} bytes of {bytes}");
}

#[tokio::test]
async fn a_stalled_stream_holds_up_none_of_the_others_on_its_connection() {
    for others in [1, 10, 98] {
        let served = Served::by(gateway().scripted()).await;
        let http = served
            .quic()
            .stream_window(16 * 1024)
            .http3(served.gateway.secure())
            .await;
        let mut stalled = http.chat(ENDLESS, "").await;
        let paused = |m: &Metrics| m.sum("requests_running", &[]) == 1;
        served.gateway.until("it runs", paused).await;
        let mut asked = Vec::new();
        for _ in 0..others {
            asked.push(
                http.chat("scripted?text=abcdefgh&token_bytes=8&tokens=400", "")
                    .await,
            );
        }
        let answers = asked.into_iter().map(|one| tokio::spawn(one.answer()));
        for answer in answers.collect::<Vec<_>>() {
            let answer: Answer = within(answer).await.unwrap();
            assert_eq!(answer.text(), "abcdefgh".repeat(400));
        }
        stalled.next_event().await.expect("it is still there");
        assert_eq!(served.gateway.metrics().await.ended("ok"), others);
    }
}

#[tokio::test]
async fn a_reader_that_does_not_come_back_loses_its_stream_and_nothing_else() {
    let setup = gateway()
        .scripted()
        .with("[stream]\nstall_timeout = '300ms'");
    let served = Served::by(setup).await;
    let http = served
        .quic()
        .stream_window(4096)
        .http3(served.gateway.secure())
        .await;
    let stalled = http.chat(ENDLESS, "").await;
    let cut = |m: &Metrics| m.ended("stalled") == 1 && m.running() == 0;
    served.gateway.until("it is cut off", cut).await;
    // Nothing is read of it, so that it is the gateway's patience that ends it.
    let is_reset = async {
        while http.connection.stats().frame_rx.reset_stream == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(is_reset).await;
    let other = http.chat("scripted?tokens=3&text=abcd", "").await;
    assert_eq!(other.answer().await.text(), "abcd".repeat(3));
    drop(stalled);
}

#[tokio::test]
async fn a_connection_with_nothing_to_ask_is_closed() {
    let setup = gateway()
        .scripted()
        .with("[server]\nidle_timeout = '300ms'");
    let served = Served::by(setup).await;
    let http = served.http3().await;
    let slow = http.chat("scripted?tokens=3&pace=1s&text=abcd", "").await;
    assert_eq!(
        slow.answer().await.text(),
        "abcd".repeat(3),
        "busy is not idle"
    );
    let error = within(http.connection.closed()).await;
    assert_eq!(close_code(&error), Some(0x100), "H3_NO_ERROR: {error}");
}

#[tokio::test]
async fn a_drain_says_goodbye_and_lets_streams_finish() {
    let setup = gateway().scripted();
    let setup = setup.with("[drain]\nlag = '0s'\ntimeout = '20s'");
    let mut served = Served::by(setup).await;
    let http = served.http3().await;
    let idle = served.http3().await;
    let running = http
        .chat("scripted?text=abcd&tokens=30&pace=20ms", "")
        .await;
    let started = Instant::now();
    let drained = served.gateway.drain();
    assert_eq!(running.answer().await.text(), "abcd".repeat(30));
    for connection in [&http.connection, &idle.connection] {
        let error = within(connection.closed()).await;
        assert_eq!(close_code(&error), Some(0x100), "H3_NO_ERROR: {error}");
    }
    within(drained).await.expect("it ends");
    assert!(started.elapsed() < Duration::from_secs(20));
}
