//! More requests than can be served: who waits sees its place, who cannot be served is told so at once.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use sluicegate::client::{self, ChatRequest, Client, Endpoint, Options};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::support::{Answer, Event, Reply, TestGateway, demo_file, gateway, within};

/// One token now, the next in an hour: holds its slot.
const HELD: &str = "scripted?pace=1h";

/// A scripted model with few slots, whose readers are told their places quickly.
async fn slots(slots: u32, waiting: u32, notice: &str) -> TestGateway {
    let sections = format!(
        "[stream]\nqueue_notice = '{notice}'\n[[models]]\nname = 'scripted'\nengine = 'scripted'\n\
         [models.script]\nslots = {slots}\nwaiting = {waiting}\n"
    );
    gateway().with(&sections).start().await
}

/// A stream that has begun and stays.
async fn hold(gateway: &TestGateway) -> Reply {
    let mut held = gateway.chat(HELD, "x", r#""stream":true"#).send().await;
    assert!(matches!(held.next_event().await, Some(Event::Data(_))));
    held
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn a_stream_in_line_is_told_its_place_in_comments_and_then_answered_as_ever() {
    let gateway = slots(1, 8, "20ms").await;
    let holder = hold(&gateway).await;
    let ask = || {
        gateway
            .chat("scripted?tokens=3", "x", r#""stream":true"#)
            .send()
    };
    let mut second = ask().await;
    assert_eq!(second.status, 200);
    assert_eq!(
        text(&second.next().await.unwrap()),
        ": queued position=1\n\n"
    );
    let mut third = ask().await;
    assert_eq!(
        text(&third.next().await.unwrap()),
        ": queued position=2\n\n"
    );
    drop(second);
    // Those behind move up.
    while text(&third.next().await.unwrap()) != ": queued position=1\n\n" {}
    drop(holder);
    let answer = Answer::of(&third.events().await);
    assert_eq!(answer.finishes, [Some("stop".to_owned())]);
    assert_eq!(answer.text(), "The gate ope");
}

#[tokio::test]
async fn a_call_in_line_is_told_its_place_in_notifications() {
    let gateway = slots(1, 8, "20ms").await;
    let holder = hold(&gateway).await;
    let call = r#"{"jsonrpc":"2.0","id":"q","method":"complete","params":
        {"model":"scripted?tokens=2","prompt":"x","stream":true}}"#;
    let mut reply = gateway.post("/rpc", call).send().await;
    let first: Value = serde_json::from_slice(&reply.next().await.unwrap()).unwrap();
    let expected = serde_json::json!({
        "jsonrpc": "2.0", "method": "queued", "params": {"id": "q", "position": 1}
    });
    assert_eq!(first, expected);
    drop(holder);
    let lines = reply.lines().await;
    let methods: Vec<_> = lines
        .iter()
        .filter_map(|line| line["method"].as_str())
        .collect();
    let begun = methods
        .iter()
        .position(|method| *method == "token")
        .unwrap();
    assert!(
        methods[begun..].iter().all(|method| *method == "token"),
        "{methods:?}"
    );
    assert_eq!(
        lines.last().unwrap()["result"]["usage"]["completion_tokens"],
        2
    );
}

#[tokio::test]
async fn a_model_tells_places_too_here_and_in_a_process_of_its_own() {
    let program = Path::new(env!("CARGO_BIN_EXE_sluicegate"));
    for isolation in ["none", "process"] {
        // Nobody is set aside for those who wait.
        let settings = format!(
            "context = 2048\nparallel = 1\nwaiting = 4\npark_memory = '0B'\nisolation = '{isolation}'"
        );
        let setup = gateway()
            .with("[stream]\nqueue_notice = '20ms'")
            .program(program);
        let gateway = setup.model("queues", demo_file(), &settings).start().await;
        let endless = r#""stream":true,"ignore_eos":true"#;
        let ask = gateway.chat("queues", "x", endless).receive_buffer(4096);
        let holder = ask.send().await;
        gateway
            .until("its reader is behind", |metrics| metrics.paused() == 1)
            .await;
        let mut next = gateway
            .chat("queues", "x", r#""stream":true,"max_tokens":3"#)
            .send()
            .await;
        assert_eq!(text(&next.next().await.unwrap()), ": queued position=1\n\n");
        drop(holder);
        let answer = Answer::of(&next.events().await);
        assert_eq!(answer.error, None, "{isolation}");
        assert!(answer.finishes[0].is_some());
    }
}

#[tokio::test]
async fn formats_without_a_place_for_it_and_whole_answers_say_nothing() {
    for notice in ["1ms", "off"] {
        let gateway = slots(1, 8, notice).await;
        let holder = hold(&gateway).await;
        let ask = |accept, more| {
            let ask = gateway.chat("scripted?tokens=3", "x", more);
            let ask = ask.header("accept", accept);
            tokio::spawn(async move { ask.send().await.text().await })
        };
        let streamed = r#""stream":true"#;
        let plain = ask("text/plain", streamed);
        let lines = ask("application/x-ndjson", streamed);
        let whole = ask("application/json", r#""stream":false"#);
        in_line(&gateway, 3).await;
        // Some notices' time.
        tokio::time::sleep(Duration::from_millis(10)).await;
        drop(holder);
        assert_eq!(plain.await.unwrap(), "The gate ope");
        let lines = lines.await.unwrap();
        assert!(lines.lines().all(|line| line.starts_with('{')) && !lines.contains("queued"));
        let whole = whole.await.unwrap();
        assert!(whole.contains("The gate ope") && !whole.contains("queued"));
    }
}

#[tokio::test]
async fn a_client_that_knows_nothing_of_places_reads_on() {
    let gateway = slots(1, 8, "5ms").await;
    let holder = hold(&gateway).await;
    let client = Client::new(Endpoint::parse(&gateway.url()).unwrap(), Options::default());
    let read = tokio::spawn(async move {
        let request = ChatRequest::new("scripted?tokens=3").user("x");
        let mut stream = client.chat(&request).await.unwrap();
        let mut all = String::new();
        while let Some(event) = stream.next().await {
            if let client::Event::Text { text, .. } = event.unwrap() {
                all += &text;
            }
        }
        all
    });
    in_line(&gateway, 1).await;
    // Behind it, so that it has had its comments when this one has had three.
    let mut behind = gateway.chat(HELD, "x", r#""stream":true"#).send().await;
    for _ in 0..3 {
        assert_eq!(
            text(&behind.next().await.unwrap()),
            ": queued position=2\n\n"
        );
    }
    drop(behind);
    drop(holder);
    assert_eq!(within(read).await.unwrap(), "The gate ope");
}

#[tokio::test]
async fn a_full_line_is_a_503_that_says_when_to_come_back() {
    let gateway = slots(1, 1, "off").await;
    let _holder = hold(&gateway).await;
    let ask = || gateway.chat(HELD, "x", r#""stream":true"#);
    let _second = AbortOnDropHandle::new(tokio::spawn(ask().send()));
    in_line(&gateway, 1).await;
    let refused = ask().send().await;
    assert!(refused.header("retry-after").parse::<u32>().unwrap() >= 1);
    assert!(refused.header("retry-after-ms").parse::<u32>().unwrap() >= 1);
    assert_eq!(refused.refusal().await, (503, "queue_full".to_owned()));
}

#[tokio::test]
async fn a_deadline_that_the_line_cannot_meet_is_a_503_at_once() {
    let gateway = slots(1, 64, "off").await;
    // Eight of 40 ms each, one after the other: then it is known how long one takes.
    let mut short = JoinSet::new();
    for _ in 0..8 {
        short.spawn(gateway.chat("scripted?tokens=2&pace=40ms", "x", "").send());
    }
    for reply in short.join_all().await {
        assert_eq!(reply.status, 200);
        reply.text().await;
    }
    let _holder = hold(&gateway).await;
    let mut line = JoinSet::new();
    for _ in 0..20 {
        line.spawn(gateway.chat(HELD, "x", r#""stream":true"#).send());
    }
    in_line(&gateway, 20).await;
    let hasty = gateway.chat("scripted", "x", r#""stream":true"#);
    let refused = hasty.header("x-request-timeout", "100ms").send().await;
    assert!(refused.header("retry-after-ms").parse::<u32>().unwrap() >= 100);
    assert_eq!(
        refused.refusal().await,
        (503, "deadline_unmeetable".to_owned())
    );
}

async fn in_line(gateway: &TestGateway, count: u64) {
    let what = format!("{count} wait");
    gateway
        .until(&what, |metrics| metrics.waiting() == count)
        .await;
}
