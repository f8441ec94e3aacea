//! The engine with the built-in model: admission, the unified pool, and how places come back.

mod dense;
mod draft_model;
mod fairness;
mod figures;
mod prefixes;
mod pressure;
mod sampling;
mod shift;
mod speculation;

use super::*;
use crate::engine::config::{KvLayout, Process};
use crate::generation::{Burst, Event, Finish, Message};
use crate::telemetry::Metrics;

pub(super) fn engine(change: impl FnOnce(&mut Settings)) -> Arc<LlamaEngine> {
    engine_of(&Process::default(), change)
}

fn engine_of(process: &Process, change: impl FnOnce(&mut Settings)) -> Arc<LlamaEngine> {
    let mut settings = demo_settings();
    settings.context = NonZeroU32::new(256);
    settings.parallel = 2;
    settings.waiting = 2;
    settings.threads = std::num::NonZeroU16::new(1);
    change(&mut settings);
    let metrics = Metrics::new(["demo"]).unwrap();
    let weights = Weights::Embedded(DEMO);
    let loading = Arc::default();
    LlamaEngine::load(
        "demo",
        &weights,
        &settings,
        process,
        16,
        metrics.model("demo"),
        &loading,
    )
    .expect("the demo loads")
}

fn request(input: Input) -> Request {
    Request {
        sampling: Sampling {
            ignore_eos: Some(true),
            ..Sampling::default()
        },
        ..Request::new(input)
    }
}

fn once() -> Request {
    request(Input::Text("Once upon a time".into()))
}

/// Reads a source to its end: how it ended.
pub(super) async fn end_of(mut source: Box<dyn Source>) -> Result<(), Failure> {
    let mut burst = Burst::new();
    loop {
        burst.clear();
        std::future::poll_fn(|cx| source.poll_fill(cx, &mut burst)).await;
        for event in burst.events() {
            match event {
                Event::Finish { .. } => return Ok(()),
                Event::Failed(failure) => return Err(failure.clone()),
                Event::Text { .. } | Event::End(_) => {}
            }
        }
    }
}

/// What a source gave: its text, and how much of its prompt was cached.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Given {
    text: String,
    cached: u32,
}

/// Reads a source to its good end.
async fn given(mut source: Box<dyn Source>) -> Given {
    let (mut burst, mut text, mut cached) = (Burst::new(), String::new(), 0);
    loop {
        burst.clear();
        std::future::poll_fn(|cx| source.poll_fill(cx, &mut burst)).await;
        cached += burst.cached_tokens();
        for event in burst.events() {
            match event {
                Event::Text { text: more, .. } => text.push_str(more),
                Event::Finish { .. } => return Given { text, cached },
                Event::Failed(failure) => panic!("{failure:?}"),
                Event::End(_) => {}
            }
        }
    }
}

/// The tokens of a source's answer, and why it ended.
async fn tokens(mut source: Box<dyn Source>) -> (Vec<u32>, Finish) {
    let (mut burst, mut tokens) = (Burst::new(), Vec::new());
    loop {
        burst.clear();
        std::future::poll_fn(|cx| source.poll_fill(cx, &mut burst)).await;
        for event in burst.events() {
            match event {
                Event::Text { logprobs, .. } => tokens.extend(logprobs.iter().map(|one| one.token)),
                Event::Finish { reason, .. } => return (tokens, reason),
                Event::Failed(failure) => panic!("{failure:?}"),
                Event::End(_) => {}
            }
        }
    }
}

/// Runs a request of one choice to its end.
async fn run(engine: &LlamaEngine, request: &Request) -> Given {
    given(
        engine
            .start(request)
            .await
            .expect("it starts")
            .sources
            .remove(0),
    )
    .await
}

/// A prompt of `length` tokens that has its first tokens in common with others of the same `kind`.
fn prompt(kind: u32, length: u32) -> Vec<u32> {
    (0..length)
        .map(|at| 300 + (at * 7 + kind * 131) % 1500)
        .collect()
}

/// A request that gives the same text whenever nothing disturbs it.
fn seeded(tokens: Vec<u32>, most: u32) -> Request {
    let mut request = request(Input::Tokens(tokens));
    request.max_tokens = Some(most);
    request.sampling.seed = Some(7);
    request.sampling.temperature = Some(1.0);
    request
}

async fn refusal(engine: &LlamaEngine, request: &Request) -> Failure {
    let refused = engine.start(request).await.err();
    refused.expect("it is refused")
}

/// Lets the engine thread go on until `reached`; it has no event to wait for.
pub(super) async fn until(reached: impl Fn() -> bool) {
    let reached = async {
        while !reached() {
            tokio::task::yield_now().await;
        }
    };
    let most = Duration::from_mins(1);
    (tokio::time::timeout(most, reached).await).expect("it comes about within a minute");
}

#[tokio::test]
async fn a_unified_pool_of_the_default_size_lets_all_sequences_run_at_once() {
    let engine = engine(|settings| settings.kv_layout = KvLayout::Unified);
    assert_eq!(engine.gauges().load.kv_capacity, 512);
    let (first, second) = (once(), once());
    let mut first = engine.start(&first).await.unwrap();
    let mut second = engine.start(&second).await.unwrap();
    // Nobody reads: both fill their rings and pause, and neither waits.
    until(|| engine.gauges().load.paused == 2).await;
    assert_eq!(engine.gauges().load.waiting, 0);
    for started in [&mut first, &mut second] {
        end_of(started.sources.remove(0)).await.unwrap();
    }
    engine.stop().await;
}

#[tokio::test]
async fn a_smaller_unified_pool_makes_requests_wait_for_cells_and_ends_them_all() {
    let engine = engine(|settings| {
        settings.kv_layout = KvLayout::Unified;
        settings.kv_cells = NonZeroU32::new(256);
    });
    assert_eq!(engine.gauges().load.kv_capacity, 256);
    assert_eq!(engine.card().context, 256);
    let (first, second) = (once(), once());
    let mut first = engine.start(&first).await.unwrap();
    let mut second = engine.start(&second).await.unwrap();
    until(|| engine.gauges().load.paused == 1).await;
    assert_eq!(engine.gauges().load.waiting, 1);
    end_of(first.sources.remove(0)).await.unwrap();
    end_of(second.sources.remove(0)).await.unwrap();
    engine.stop().await;
}

#[tokio::test]
async fn refused_requests_give_their_places_back() {
    let engine = engine(|_| {});
    let most = engine.shared.vocabulary.most_bytes(256).unwrap();
    let hopeless = request(Input::Text("x".repeat(most + 1)));
    let message = vec![Message {
        role: crate::generation::Role("user".into()),
        content: "x".repeat(most + 1),
        name: None,
    }];
    for hopeless in [hopeless, request(Input::Chat(message))] {
        let failure = refusal(&engine, &hopeless).await;
        assert_eq!(failure.kind, Kind::ContextExceeded);
        assert!(failure.message.contains("bytes"), "{}", failure.message);
    }
    let long = request(Input::Text("a ".repeat(300)));
    assert_eq!(refusal(&engine, &long).await.kind, Kind::ContextExceeded);
    let outside = request(Input::Tokens(vec![u32::MAX]));
    assert_eq!(refusal(&engine, &outside).await.kind, Kind::Invalid);
    assert_eq!(engine.counters.accepted.load(Relaxed), 0);
    engine.stop().await;
}

#[tokio::test]
async fn a_full_line_is_refused_before_anything_is_tokenized() {
    let engine = engine(|_| {});
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(engine.start(&once()).await.unwrap());
    }
    // What would be refused for its tokens is refused for want of a place.
    let outside = request(Input::Tokens(vec![u32::MAX]));
    let failure = refusal(&engine, &outside).await;
    assert_eq!(failure.code, Some("queue_full"));
    // Dropped sources cancel, whether they run or wait.
    held.clear();
    until(|| engine.counters.accepted.load(Relaxed) == 0).await;
    assert_eq!(engine.gauges().load.running, 0);
    engine.stop().await;
}

#[tokio::test]
async fn a_queue_deadline_ends_the_wait_and_an_endless_one_is_none() {
    // Nobody is set aside for those who wait.
    let engine = engine(|settings| {
        settings.parallel = 1;
        settings.park_memory = bytesize::ByteSize(0);
    });
    let _running = engine.start(&once()).await.unwrap();
    until(|| engine.gauges().load.paused == 1).await;
    let mut patient = once();
    patient.deadlines.queue = Some(Duration::MAX);
    let _patient = engine.start(&patient).await.unwrap();
    let mut hasty = once();
    hasty.deadlines.queue = Some(Duration::from_millis(1));
    let mut hasty = engine.start(&hasty).await.unwrap();
    let failure = end_of(hasty.sources.remove(0)).await.unwrap_err();
    assert_eq!(failure.code, Some("queue_timeout"));
    assert_eq!(engine.gauges().load.waiting, 1);
    engine.stop().await;
}

#[tokio::test]
async fn bytes_of_many_tokens_equal_those_of_few() {
    let engine = engine(|_| {});
    let few = [5, 6, 7];
    let expected = engine.pieces(&few).await.unwrap();
    let many = few.repeat(PIECES_INLINE);
    let all = engine.pieces(&many).await.unwrap();
    assert!(all.chunks(3).all(|chunk| chunk == expected));
    engine.stop().await;
}

#[tokio::test]
async fn settings_that_other_servers_clients_send_by_default_are_taken() {
    let engine = engine(|_| {});
    let mut usual = once();
    usual.max_tokens = Some(2);
    usual.sampling.repeat_last_n = Some(crate::generation::ranges::MAX_WINDOW);
    usual.sampling.dry = Some(crate::generation::Dry {
        penalty_last_n: u32::MAX,
        ..crate::generation::Dry::default()
    });
    let mut started = engine.start(&usual).await.unwrap();
    end_of(started.sources.remove(0)).await.unwrap();
    engine.stop().await;
}

#[test]
fn a_stopped_loading_ends_early() {
    let loading = Arc::new(Loading::default());
    loading.stop();
    let metrics = Metrics::new(["demo"]).unwrap();
    let loaded = LlamaEngine::load(
        "demo",
        &Weights::Embedded(DEMO),
        &demo_settings(),
        &Process::default(),
        16,
        metrics.model("demo"),
        &loading,
    );
    assert!(matches!(loaded.err(), Some(LoadError::Stopped)));
}

#[tokio::test]
async fn an_engine_thread_that_ends_by_itself_is_not_alive() {
    let engine = engine(|_| {});
    assert!(engine.is_alive());
    *engine.join.lock().unwrap() = Some(std::thread::spawn(|| {}));
    until(|| !engine.is_alive()).await;
    engine.stop().await;
    assert!(engine.is_alive(), "it was told to end");
}

#[tokio::test]
async fn a_panic_of_the_engine_thread_ends_running_and_waiting_streams_with_an_error() {
    let engine = engine(|settings| settings.parallel = 1);
    let (first, second) = (once(), once());
    let mut running = engine.start(&first).await.unwrap();
    let mut waiting = engine.start(&second).await.unwrap();
    until(|| engine.gauges().load.paused == 1 && engine.gauges().load.waiting == 1).await;
    engine.counters.panics.store(true, Relaxed);
    engine.thread.unpark();
    for started in [&mut running, &mut waiting] {
        let failure = end_of(started.sources.remove(0)).await.unwrap_err();
        assert_eq!(failure.kind, Kind::Internal);
    }
    until(|| !engine.is_alive()).await;
    assert_eq!(refusal(&engine, &once()).await.kind, Kind::NotReady);
    engine.stop().await;
}
