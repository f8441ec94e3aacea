//! Rows that other threads sample: the same texts, and no harm from a panic there.

use super::*;
use crate::engine::config::{KvLayout, Settings};

const STREAMS: u32 = 6;

fn engine_with(
    threads: u32,
    shares_rows: bool,
    change: impl FnOnce(&mut Settings),
) -> Arc<LlamaEngine> {
    let engine = engine(|settings| {
        settings.parallel = STREAMS;
        settings.waiting = 16;
        settings.context = NonZeroU32::new(512);
        settings.deterministic = true;
        settings.prefix_cache = bytesize::ByteSize(0);
        settings.sampler_threads = Some(threads);
        change(settings);
    });
    engine.counters.shares_rows.store(shares_rows, Relaxed);
    engine
}

/// Requests that differ in what sampling them takes.
fn requests() -> Vec<Request> {
    let kinds = (0..STREAMS).map(|kind| {
        // Prompts of several chunks: some are read while others decode.
        let mut request = seeded(prompt(kind, 40 + kind * 60), 80);
        let sampling = &mut request.sampling;
        match kind {
            0 => sampling.temperature = Some(0.0),
            1 => sampling.top_k = Some(0),
            2 => sampling.repeat_penalty = Some(1.3),
            3 => request.logprobs = Some(3),
            4 => sampling.ignore_eos = None,
            _ => {}
        }
        request
    });
    kinds.collect()
}

async fn texts(engine: &LlamaEngine) -> Vec<String> {
    let mut running = tokio::task::JoinSet::new();
    for (at, request) in requests().into_iter().enumerate() {
        let source = engine.start(&request).await.unwrap().sources.remove(0);
        running.spawn(async move { (at, given(source).await.text) });
    }
    let mut texts = running.join_all().await;
    texts.sort();
    texts.into_iter().map(|(_, text)| text).collect()
}

#[tokio::test]
async fn texts_are_the_same_whoever_samples() {
    let alone = engine_with(0, false, |_| {});
    let expected = texts(&alone).await;
    assert!(expected.iter().any(|text| text.len() > 80), "{expected:?}");
    assert_eq!(alone.counters.shared_rows.load(Relaxed), 0);
    alone.stop().await;
    // Without a thread the engine's own does what it has put aside.
    for threads in [2, 0] {
        let engine = engine_with(threads, true, |_| {});
        for _ in 0..2 {
            assert_eq!(texts(&engine).await, expected);
        }
        assert!(engine.counters.shared_rows.load(Relaxed) > 100);
        assert_eq!(engine.counters.accepted.load(Relaxed), 0);
        engine.stop().await;
    }
}

#[tokio::test]
async fn a_panic_while_sampling_ends_that_stream_alone() {
    let engine = engine_with(2, true, |_| {});
    let expected = texts(&engine).await;
    let broken = seeded(prompt(9, 20), 400);
    let mut broken = engine.start(&broken).await.unwrap();
    until(|| engine.gauges().load.running == 1).await;
    engine.counters.sampling_panics.store(true, Relaxed);
    let failure = end_of(broken.sources.remove(0)).await.unwrap_err();
    assert_eq!(failure.kind, Kind::Internal);
    assert!(
        format!("{failure:?}").contains("sampling panicked"),
        "{failure:?}"
    );
    assert!(engine.is_alive());
    assert_eq!(texts(&engine).await, expected);
    engine.stop().await;
}

#[tokio::test]
async fn who_leaves_while_its_row_is_out_leaves_nothing_behind() {
    let engine = engine_with(2, true, |settings| settings.kv_layout = KvLayout::Split);
    for _ in 0..20 {
        let mut started = Vec::new();
        for request in requests() {
            started.push(engine.start(&request).await.unwrap());
        }
        until(|| engine.gauges().load.running > 2).await;
        drop(started);
        until(|| engine.counters.accepted.load(Relaxed) == 0).await;
    }
    assert_eq!(engine.gauges().load.running, 0);
    assert_eq!(texts(&engine).await.len(), STREAMS as usize);
    engine.stop().await;
}
