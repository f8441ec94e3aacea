//! What benches of the whole engine share: one that is loaded, and a reader that takes all it makes.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use sluicegate::engine::Engine;
use sluicegate::engine::config::{Process, Settings};
use sluicegate::engine::llama::{LlamaEngine, Weights};
use sluicegate::generation::{Burst, Event, Request};
use sluicegate::telemetry::Metrics;

/// The engine, loaded.
pub(crate) fn engine(weights: &Weights, settings: &Settings) -> Arc<LlamaEngine> {
    let metrics = Metrics::new(["bench"]).expect("metrics");
    let (process, ring) = (Process::default(), 64);
    LlamaEngine::load(
        "bench",
        weights,
        settings,
        &process,
        ring,
        metrics.model("bench"),
        &Arc::default(),
    )
    .expect("the model loads")
}

/// Tokens per second of all sequences of a request, from the first one to the last: prompts are another
/// matter. They are read as a server would, each into text.
pub(crate) fn decode_rate(engine: &LlamaEngine, request: &Request) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let started = engine.start(request).await.expect("it starts");
        let mut sources: Vec<_> = started.sources.into_iter().map(Some).collect();
        let (mut burst, mut tokens, mut open) = (Burst::new(), 0, sources.len());
        let mut first = None;
        while open > 0 {
            burst.clear();
            poll_fn(|cx| {
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
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
            .await;
            tokens += u32::try_from(burst.tokens()).expect("a count");
            first.get_or_insert_with(|| (tokens, Instant::now()));
        }
        let (first, since) = first.expect("there were tokens");
        f64::from(tokens - first) / since.elapsed().as_secs_f64()
    })
}

/// The value in the middle.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
