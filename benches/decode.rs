//! The whole engine against the bare decode loop, in one run: what scheduling, sampling, the rings and
//! text cost beside the model. Prints tokens per second of both and their ratio.
//!
//! `cargo bench --bench decode`; the model is the built-in demo.
#![expect(clippy::print_stdout, reason = "the figures are the output")]
#![expect(
    clippy::expect_used,
    reason = "a bench that cannot run has nothing to say"
)]

use std::sync::Arc;
use std::time::Instant;

use sluicegate::engine::Engine;
use sluicegate::engine::config::{Process, Settings};
use sluicegate::engine::llama::bare::BareLoop;
use sluicegate::engine::llama::{DEMO, LlamaEngine, Weights, demo_settings};
use sluicegate::generation::{Burst, Input, Request, Sampling};
use sluicegate::telemetry::Metrics;

/// Tokens per sequence and round.
const LENGTH: u32 = 200;
const ROUNDS: usize = 5;

fn main() {
    println!("rows  bare tok/s  engine tok/s  share (medians of {ROUNDS} alternating rounds)");
    for rows in [1, 8, 16, 32] {
        let mut settings = demo_settings();
        settings.parallel = rows;
        let weights = Weights::Embedded(DEMO);
        let mut bare = BareLoop::new(&weights, &settings).expect("the demo model loads");
        let engine = engine(&weights, &settings);
        let mut figures: Vec<(f64, f64)> = (0..ROUNDS)
            .map(|_| (bare_rate(&mut bare), engine_rate(&engine, rows)))
            .collect();
        let bare = median(figures.iter_mut().map(|pair| pair.0));
        let whole = median(figures.iter_mut().map(|pair| pair.1));
        println!(
            "{rows:4}  {bare:10.0}  {whole:12.0}  {:4.0} %",
            100.0 * whole / bare
        );
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn bare_rate(bare: &mut BareLoop) -> f64 {
    bare.restart();
    let start = Instant::now();
    for _ in 0..LENGTH {
        bare.step().expect("the model decodes");
    }
    f64::from(LENGTH * bare.rows()) / start.elapsed().as_secs_f64()
}

fn engine(weights: &Weights, settings: &Settings) -> Arc<LlamaEngine> {
    let metrics = Metrics::new(["bare"]).expect("metrics");
    let (process, ring) = (Process::default(), 64);
    LlamaEngine::load(
        "bare",
        weights,
        settings,
        &process,
        ring,
        metrics.model("bare"),
        &Arc::default(),
    )
    .expect("the demo model loads")
}

/// As a server would: every sequence with sampling, and a reader that turns tokens into text.
fn engine_rate(engine: &LlamaEngine, rows: u32) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let request = Request {
            n: rows,
            max_tokens: Some(LENGTH),
            sampling: Sampling {
                temperature: Some(0.7),
                ignore_eos: Some(true),
                ..Sampling::default()
            },
            ..Request::new(Input::Text("Once".into()))
        };
        let start = Instant::now();
        let started = engine.start(&request).await.expect("it starts");
        let mut sources: Vec<_> = started.sources.into_iter().map(Some).collect();
        let (mut burst, mut tokens, mut open) = (Burst::new(), 0, sources.len());
        while open > 0 {
            burst.clear();
            std::future::poll_fn(|cx| {
                for slot in &mut sources {
                    let Some(source) = slot else { continue };
                    let before = burst.events().count();
                    if source.poll_fill(cx, &mut burst).is_ready()
                        && burst.events().skip(before).any(|event| {
                            matches!(event, sluicegate::generation::Event::Finish { .. })
                        })
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
        }
        f64::from(u32::try_from(tokens).unwrap_or(0)) / start.elapsed().as_secs_f64()
    })
}
