//! Prompt look-up: tokens per second with and without it, on text that copies its prompt and on plain
//! text, for one stream and for eight.
//!
//! `cargo bench --bench speculation [MODEL.gguf]`; without a file, the built-in demo. Rounds of the two
//! engines alternate, and the median of their ratios is what counts.
#![expect(clippy::print_stdout, reason = "the figures are the output")]
#![expect(
    clippy::expect_used,
    reason = "a bench that cannot run has nothing to say"
)]

use std::sync::Arc;
use std::time::Instant;

use sluicegate::engine::Engine;
use sluicegate::engine::config::{Process, Settings, Speculation};
use sluicegate::engine::llama::{DEMO, LlamaEngine, Weights, demo_settings};
use sluicegate::generation::{Burst, Event, Input, Request, Sampling};
use sluicegate::telemetry::Metrics;

const ROUNDS: usize = 7;

fn main() {
    let file = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let (weights, length) = match file {
        Some(path) => (Weights::File(path.into()), 60),
        None => (Weights::Embedded(DEMO), 100),
    };
    println!("text   streams  off tok/s  lookup tok/s  ratio  drafts  right (medians of {ROUNDS})");
    for streams in [1, 8] {
        let engines = [Speculation::Off, Speculation::Lookup].map(|speculation| {
            let mut settings = demo_settings();
            settings.parallel = streams;
            settings.speculation = speculation;
            settings.context = std::num::NonZeroU32::new(1024);
            engine(&weights, &settings)
        });
        for (name, request) in [
            ("copy", copying(streams, length)),
            ("plain", plain(streams, length)),
        ] {
            let before = engines[1].gauges();
            let mut figures: Vec<(f64, f64)> = (0..ROUNDS)
                .map(|_| (rate(&engines[0], &request), rate(&engines[1], &request)))
                .collect();
            let off = median(figures.iter().map(|pair| pair.0));
            let on = median(figures.iter_mut().map(|pair| pair.1));
            let ratio = median(figures.iter().map(|pair| pair.1 / pair.0));
            let after = engines[1].gauges();
            let (drafts, right) = (
                after.drafted - before.drafted,
                after.accepted_drafts - before.accepted_drafts,
            );
            println!(
                "{name:6} {streams:7}  {off:9.0}  {on:12.0}  {ratio:5.3}  {drafts:6}  {right:5}"
            );
        }
    }
}

/// Goes on with what the prompt repeats, as the likeliest token does in nearly any model.
fn copying(streams: u32, length: u32) -> Request {
    let text = "one two three four five. ".repeat(8);
    request(text, streams, length, 0.0)
}

fn plain(streams: u32, length: u32) -> Request {
    request("Once upon a time".to_owned(), streams, length, 0.7)
}

fn request(text: String, streams: u32, length: u32, temperature: f32) -> Request {
    Request {
        n: streams,
        max_tokens: Some(length),
        sampling: Sampling {
            temperature: Some(temperature),
            seed: Some(1),
            ignore_eos: Some(true),
            ..Sampling::default()
        },
        ..Request::new(Input::Text(text))
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn engine(weights: &Weights, settings: &Settings) -> Arc<LlamaEngine> {
    let metrics = Metrics::new(["bench"]).expect("metrics");
    let metrics = metrics.model("bench");
    let process = Process::default();
    LlamaEngine::load(
        "bench",
        weights,
        settings,
        &process,
        64,
        metrics,
        &Arc::default(),
    )
    .expect("the model loads")
}

/// Tokens per second, from the first one to the last: prompts are another matter.
fn rate(engine: &LlamaEngine, request: &Request) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let started = engine.start(request).await.expect("it starts");
        let mut sources: Vec<_> = started.sources.into_iter().map(Some).collect();
        let (mut burst, mut tokens, mut open) = (Burst::new(), 0, sources.len());
        let mut first = None;
        while open > 0 {
            burst.clear();
            std::future::poll_fn(|cx| {
                for slot in &mut sources {
                    let Some(source) = slot else { continue };
                    let before = burst.events().count();
                    if source.poll_fill(cx, &mut burst).is_ready()
                        && (burst.events().skip(before))
                            .any(|event| matches!(event, Event::Finish { .. }))
                    {
                        *slot = None;
                        open -= 1;
                    }
                }
                if burst.tokens() > 0 || open == 0 {
                    std::task::Poll::Ready(())
                } else {
                    std::task::Poll::Pending
                }
            })
            .await;
            tokens += burst.tokens();
            first.get_or_insert_with(|| (Instant::now(), tokens));
        }
        let (since, before) = first.expect("there were tokens");
        let tokens = u32::try_from(tokens - before).unwrap_or(0);
        f64::from(tokens) / since.elapsed().as_secs_f64()
    })
}
