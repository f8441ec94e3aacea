//! A reader that stops is felt by the engine: its sequence pauses, nobody else's does, and nothing
//! of its text is lost.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::{Answer, Event, Metrics, TestGateway, gateway};

/// Long enough to fill every buffer on the way.
const LONG: &str =
    r#""stream":true,"seed":3,"temperature":1.0,"ignore_eos":true,"max_tokens":1500"#;

/// What the server may hold for one reader on its side of the socket.
const HELD: u64 = 64 * 1024;

/// What a reader that takes nothing has taken all the same: its kernel's buffer and one read.
const TAKEN: u64 = 16 * 1024;

async fn short_answer(gateway: &TestGateway) -> (String, Duration) {
    let start = Instant::now();
    let more = r#""stream":true,"seed":9,"ignore_eos":true,"max_tokens":150"#;
    let text = gateway
        .chat("demo", "Tell me a story.", more)
        .send()
        .await
        .answer()
        .await
        .text();
    (text, start.elapsed())
}

#[tokio::test]
async fn a_stalled_reader_pauses_alone_and_resumes_exactly_where_it_was() {
    let gateway = gateway()
        .demo("context = 2048\nparallel = 4\ndeterministic = true")
        // However long the others take.
        .with("[stream]\nstall_timeout = '1h'")
        .start()
        .await;
    let ask = || gateway.chat("demo", "Tell me a story.", LONG);
    let whole = ask().send().await.bytes().await;
    let (expected, alone) = short_answer(&gateway).await;
    let before = gateway
        .metrics()
        .await
        .sum("tokens_total", &["kind=\"output\""]);

    let mut stalled = ask().receive_buffer(4096).send().await;
    let paused = |m: &Metrics| m.paused() == 1;
    let metrics = gateway.until("its sequence leaves the batch", paused).await;
    assert!(metrics.sum("pauses_total", &[]) >= 1);
    assert_eq!(
        (metrics.running(), metrics.sum("streams_open", &[])),
        (1, 1)
    );

    // How far the engine ran ahead of a reader that takes nothing. A stream's tokens are counted in
    // groups of 64, so there may be nearly as many more.
    let tokens = metrics.sum("tokens_total", &["kind=\"output\""]) - before;
    let bytes = (tokens + 64) * whole.len() as u64 / 1500;
    assert!(
        bytes <= HELD + TAKEN,
        "{tokens} tokens, about {bytes} bytes, were pulled"
    );

    let (text, beside) = short_answer(&gateway).await;
    assert_eq!(text, expected);
    // Twice the time is a machine with other things to do; a stream that waits for the stalled
    // one would not end at all.
    assert!(
        beside < alone * 4 + Duration::from_millis(500),
        "{beside:?} beside, {alone:?} alone"
    );
    let metrics = gateway.metrics().await;
    assert!(paused(&metrics), "nothing has moved it");
    assert_eq!(
        metrics.sum("tokens_total", &["kind=\"output\""]) - before - 150,
        tokens
    );

    let text = Answer::of(&stalled.events().await).text();
    assert_eq!(
        text,
        ask().send().await.answer().await.text(),
        "nothing lost, nothing twice"
    );
    let metrics = gateway.until("all is free", |m| m.running() == 0).await;
    assert_eq!((metrics.paused(), metrics.ended("ok")), (0, 5));
}

#[tokio::test]
async fn a_reader_that_stalls_too_long_is_cut_off_and_told_so() {
    let gateway = gateway()
        .scripted()
        .with("[stream]\nstall_timeout = '1s'")
        .start()
        .await;
    let endless = "scripted?tokens=100000000";
    let ask = gateway.chat(endless, "x", r#""stream":true"#);
    let mut reply = ask.receive_buffer(4096).send().await;
    reply.next_event().await.expect("it began");
    let metrics = gateway
        .until("it is counted", |m| m.ended("stalled") == 1)
        .await;
    assert_eq!(
        (metrics.running(), metrics.sum("streams_open", &[])),
        (0, 0),
        "and freed"
    );
    assert_eq!(metrics.sum("send_stalls_total", &[]), 1);
    // The reader is back: what was on its way comes first, then the reason.
    let events = reply.events().await;
    let [.., Event::Data(error), Event::Done] = &events[..] else {
        panic!("an error and [DONE] end it: {:?}", events.last());
    };
    assert_eq!(error["error"]["code"], "reader_stalled");
    assert_eq!(gateway.metrics().await.ended_in_all(), 1);
}

#[tokio::test]
async fn a_reader_that_never_comes_back_loses_its_connection() {
    let gateway = gateway()
        .scripted()
        .with("[stream]\nstall_timeout = '200ms'")
        .start()
        .await;
    let endless = "scripted?tokens=100000000";
    let ask = gateway.chat(endless, "x", r#""stream":true"#);
    let _reply = ask.receive_buffer(4096).send().await;
    assert_eq!(gateway.metrics().await.sum("connections_open", &[]), 1);
    let gone = |m: &Metrics| m.sum("connections_open", &[]) == 0;
    let metrics = gateway.until("it is gone", gone).await;
    assert_eq!((metrics.ended("stalled"), metrics.ended_in_all()), (1, 1));
}

#[tokio::test]
async fn a_thousand_fast_streams_beside_a_stalled_one_lose_nothing() {
    let gateway = gateway().scripted().start().await;
    let ask = gateway.chat("scripted?tokens=100000000", "x", r#""stream":true"#);
    let _stalled = ask.receive_buffer(4096).send().await;
    let model = "scripted?text=abcdefgh&token_bytes=8&tokens=200";
    for _ in 0..20 {
        let mut replies = Vec::new();
        for _ in 0..50 {
            replies.push(tokio::spawn(
                gateway.chat(model, "x", r#""stream":true"#).send(),
            ));
        }
        for reply in replies {
            let answer = reply.await.unwrap().answer().await;
            assert_eq!(answer.text(), "abcdefgh".repeat(200));
        }
    }
    assert_eq!(gateway.metrics().await.ended("ok"), 1000);
}
