//! What a scrape costs, and what it waits for: nothing that streams.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::support::{TestGateway, gateway, within};

/// Far above what any machine takes, and far below what a scrape would take that waits for an engine. The
/// real figures are the load test's.
const QUICK: Duration = Duration::from_millis(500);

async fn page(gateway: &TestGateway) -> String {
    let reply = gateway.ops_get("/metrics").send().await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), "text/plain; version=0.0.4");
    reply.text().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_series_are_scraped_quickly_beside_64_streams_and_probes_do_not_wait() {
    let mut models = String::new();
    for number in 0..40 {
        // Writing to a string cannot fail.
        let _ = writeln!(
            models,
            "[[models]]\nname = 'm{number}'\nengine = 'scripted'"
        );
    }
    let gateway = gateway()
        .with("[telemetry.metrics]\nmax_series = 20000")
        .with(&models)
        .start()
        .await;
    let mut streams = Vec::new();
    for number in 0..64 {
        let model = format!("m{}?tokens=1000000&pace=50ms", number % 40);
        let mut stream = gateway.chat(&model, "x", r#""stream":true"#).send().await;
        stream.next_event().await.expect("it streams");
        streams.push(stream);
    }
    let text = page(&gateway).await;
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let series = samples.filter(|line| !line.is_empty()).count();
    assert!(series >= 10_000, "{series}");

    let mut scrapes = Vec::new();
    let mut probes = Vec::new();
    for _ in 0..5 {
        let began = Instant::now();
        let scrape = async {
            page(&gateway).await;
            began.elapsed()
        };
        let probe = async {
            let health = gateway.ops_get("/healthz").send().await;
            assert_eq!(health.status, 200);
            began.elapsed()
        };
        let (scrape, probe) = Box::pin(within(async { tokio::join!(scrape, probe) })).await;
        scrapes.push(scrape);
        probes.push(probe);
    }
    // The best of them: one may have been unlucky.
    assert!(scrapes.iter().any(|scrape| *scrape < QUICK), "{scrapes:?}");
    assert!(probes.iter().any(|probe| *probe < QUICK / 5), "{probes:?}");
    let open = gateway.metrics().await.sum("streams_open", &[]);
    assert_eq!(open, 64, "none of them was disturbed");
}

#[tokio::test]
async fn a_scrape_answers_while_a_long_prompt_is_read() {
    let gateway = gateway().demo("context = 2048\nparallel = 1").start().await;
    let before = gateway.metrics().await;
    let begun = before.sum("time_to_first_token_seconds_count", &[]);
    // A quick engine may be through with a prompt before anybody looks.
    for attempt in 0..100 {
        let prompt = format!("{attempt} ") + &"All the water of the river. ".repeat(200);
        let ask = gateway.chat("demo", &prompt, r#""max_tokens":1"#);
        let answer = tokio::spawn(async move { ask.send().await.status });
        let mut is_seen = false;
        while !answer.is_finished() {
            let now = gateway.metrics().await;
            let first_tokens = now.sum("time_to_first_token_seconds_count", &[]) - begun;
            is_seen |= now.running() == 1 && first_tokens == attempt;
        }
        assert_eq!(answer.await.unwrap(), 200);
        if is_seen {
            return;
        }
    }
    panic!("every scrape came after the first token");
}

#[tokio::test]
async fn a_request_shows_where_its_time_went() {
    let gateway = gateway().demo("context = 512\nparallel = 2").start().await;
    let before = gateway.metrics().await;
    let more = r#""max_tokens":8,"ignore_eos":true,"seed":1"#;
    let reply = gateway.chat("demo", "Hello!", more).send().await;
    assert_eq!(reply.status, 200);
    reply.text().await;
    let after = gateway.metrics().await;
    for name in [
        "gateway_overhead_seconds_count",
        "queue_seconds_count",
        "prefill_seconds_count",
        "time_to_first_token_seconds_count",
        "tpot_seconds_count",
        "send_stall_seconds_count",
        "e2e_seconds_count",
    ] {
        let grown = after.sum(name, &["demo"]) - before.sum(name, &["demo"]);
        assert_eq!(grown, 1, "{name}\n{after}");
    }
    for (name, labels) in [
        ("engine_step_seconds_count", &["demo"][..]),
        ("engine_batch_rows_count", &["demo", "decode"]),
        ("engine_batch_rows_count", &["demo", "prefill"]),
        ("engine_batch_rows_sum", &["demo", "prefill"]),
    ] {
        assert!(after.sum(name, labels) > before.sum(name, labels), "{name}");
    }
    assert_eq!(after.sum("model_ready", &["demo"]), 1);
    assert_eq!(after.sum("model_info", &["demo", "context=\"512\""]), 1);
    assert!(after.sum("runtime_workers", &[]) >= 1);
}

#[tokio::test]
async fn names_of_other_systems_are_served_where_they_are_wanted() {
    let off = gateway().scripted().start().await;
    for path in ["/metrics/llamacpp", "/metrics/vllm"] {
        assert_eq!(off.ops_get(path).send().await.status, 404);
    }
    let on = gateway()
        .scripted()
        .with("[telemetry.metrics]\naliases = true")
        .start()
        .await;
    let reply = on.chat("scripted?tokens=5", "x", "").send().await;
    assert_eq!(reply.status, 200);
    reply.text().await;
    for (path, line) in [
        ("/metrics/llamacpp", "llamacpp:tokens_predicted_total 5\n"),
        (
            "/metrics/vllm",
            "vllm:generation_tokens_total{model_name=\"scripted\",engine=\"0\"} 5\n",
        ),
    ] {
        let text = on.ops_get(path).send().await.text().await;
        assert!(text.contains(line), "{line}\n{text}");
    }
}
