//! Vectors of the built-in model: the same alone and in a crowd, cancelled, refused.

use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;

use super::super::{DEMO, LlamaEngine, Weights, demo_settings};
use super::*;
use crate::engine::Engine;
use crate::engine::config::Process;
use crate::generation::{Caller, Deadlines, EmbedRequest, Input, RequestId, RerankRequest};
use crate::telemetry::Metrics;

fn engine(change: impl FnOnce(&mut Settings)) -> Arc<LlamaEngine> {
    let mut settings = demo_settings();
    settings.context = NonZeroU32::new(512);
    settings.parallel = 2;
    settings.waiting = 2;
    settings.threads = NonZeroU16::new(1);
    change(&mut settings);
    let metrics = Metrics::new(["demo"]).unwrap();
    LlamaEngine::load(
        "demo",
        &Weights::Embedded(DEMO),
        &settings,
        &Process::default(),
        16,
        metrics.model("demo"),
        &Arc::default(),
    )
    .expect("the demo loads")
}

fn request(inputs: Vec<Input>) -> EmbedRequest {
    EmbedRequest {
        id: RequestId::random(),
        caller: Caller::default(),
        model: String::new(),
        inputs,
        dimensions: None,
        normalize: false,
        deadlines: Deadlines::default(),
    }
}

fn text(text: &str) -> Input {
    Input::Text(text.into())
}

async fn vectors_of(engine: &LlamaEngine, inputs: &[Input]) -> Vec<Vec<f32>> {
    let vectors = engine.embed(&request(inputs.to_vec())).await.unwrap();
    assert_eq!(vectors.rows().len(), inputs.len());
    vectors.rows().map(<[f32]>::to_vec).collect()
}

fn some_inputs() -> Vec<Input> {
    let mut inputs: Vec<_> = [1, 2, 40, 100]
        .into_iter()
        .map(|words| text(&"once upon a time ".repeat(words)))
        .collect();
    inputs.extend(["Hello", "The water runs.", "a"].map(text));
    inputs.push(Input::Tokens((100..229).collect()));
    inputs.push(Input::Tokens(vec![7]));
    inputs
}

#[tokio::test]
async fn an_input_has_the_same_bits_alone_in_a_batch_and_again() {
    for pooling in [Pooling::Auto, Pooling::Mean] {
        let engine = engine(|settings| settings.pooling = pooling);
        let inputs = some_inputs();
        let together = vectors_of(&engine, &inputs).await;
        for (input, expected) in inputs.iter().zip(&together) {
            let alone = vectors_of(&engine, std::slice::from_ref(input)).await;
            assert_eq!(&alone[0], expected, "{pooling:?} {input:?}");
        }
        assert_eq!(vectors_of(&engine, &inputs).await, together);
        assert_ne!(together[0], together[1]);
        engine.stop().await;
    }
}

#[tokio::test]
async fn texts_that_say_nearly_the_same_have_similar_vectors() {
    let engine = engine(|settings| settings.pooling = Pooling::Mean);
    let mut request = request(
        ["The cat sat on the mat.", "A cat sat on the mat.", "x = 7;"]
            .map(text)
            .to_vec(),
    );
    request.normalize = true;
    let vectors = engine.embed(&request).await.unwrap();
    let rows: Vec<_> = vectors.rows().collect();
    let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    assert!((cosine(rows[0], rows[0]) - 1.0).abs() < 1e-5);
    assert!(cosine(rows[0], rows[1]) > cosine(rows[0], rows[2]));
    assert!(vectors.usage.prompt_tokens > 10);
    engine.stop().await;
}

#[tokio::test]
async fn what_the_model_cannot_do_is_refused_by_its_place() {
    let engine = engine(|settings| settings.embeddings_context = NonZeroU32::new(32));
    let most = engine.shared.vocabulary.most_bytes(32).unwrap();
    let long = || Input::Tokens(vec![5; 33]);
    let table = [
        (vec![text("a"), long()], Kind::ContextExceeded, "input[1]"),
        (
            vec![text(&"x".repeat(most + 1))],
            Kind::ContextExceeded,
            "input[0]",
        ),
        (
            vec![text(&"a ".repeat(40))],
            Kind::ContextExceeded,
            "input[0]",
        ),
        (
            vec![text("a"), Input::Tokens(vec![u32::MAX])],
            Kind::Invalid,
            "input[1]",
        ),
        (vec![Input::Tokens(Vec::new())], Kind::Invalid, "input[0]"),
    ];
    for (inputs, kind, place) in table {
        let failure = engine.embed(&request(inputs)).await.unwrap_err();
        assert_eq!(
            (failure.kind, failure.param.as_deref()),
            (kind, Some(place))
        );
    }
    let mut wide = request(vec![text("a")]);
    wide.dimensions = Some(u32::MAX);
    let failure = engine.embed(&wide).await.unwrap_err();
    assert_eq!(failure.param.as_deref(), Some("dimensions"));
    // All of it, to the last token, is fine.
    vectors_of(&engine, &[Input::Tokens(vec![5; 32])]).await;
    engine.stop().await;
}

#[tokio::test]
async fn a_model_without_a_head_does_not_rank_and_one_switched_off_does_nothing() {
    let rank = RerankRequest {
        id: RequestId::random(),
        caller: Caller::default(),
        model: String::new(),
        query: "q".into(),
        documents: vec!["a".into()],
        deadlines: Deadlines::default(),
    };
    let engine = engine_with(Embeddings::Auto);
    let failure = engine.rerank(&rank).await.unwrap_err();
    assert_eq!(failure.code, Some("unsupported_by_model"));
    engine.stop().await;
    let engine = engine_with(Embeddings::Off);
    let failure = engine.embed(&request(vec![text("a")])).await.unwrap_err();
    assert_eq!(
        (failure.kind, failure.code),
        (Kind::Invalid, Some("unsupported_by_model"))
    );
    engine.stop().await;
}

fn engine_with(embeddings: Embeddings) -> Arc<LlamaEngine> {
    engine(|settings| settings.embeddings = embeddings)
}

#[tokio::test]
async fn who_leaves_gives_the_places_back_and_what_follows_is_served() {
    let engine = engine_with(Embeddings::On);
    let embedder = engine.embedder.as_ref().unwrap();
    let free = embedder.free_places();
    let many = request(vec![Input::Tokens(vec![5; 500]); 500]);
    {
        let mut leaves = Box::pin(engine.embed(&many));
        // Far too much for the time that a step of the runtime takes.
        assert!(futures_poll(&mut leaves).await.is_none());
        assert_eq!(embedder.free_places(), free - 500);
    }
    vectors_of(&engine, &some_inputs()).await;
    assert_eq!(embedder.free_places(), free);
    engine.stop().await;
}

/// Polls a future once.
async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|cx| {
        use std::task::Poll;
        Poll::Ready(match std::pin::Pin::new(&mut *future).poll(cx) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test]
async fn a_stop_ends_what_is_under_way() {
    let engine = engine_with(Embeddings::On);
    let many = request(vec![Input::Tokens(vec![5; 500]); 500]);
    let mut waits = Box::pin(engine.embed(&many));
    assert!(futures_poll(&mut waits).await.is_none());
    engine.stop().await;
    assert_eq!(waits.await.unwrap_err().kind, Kind::Draining);
    let late = engine.embed(&request(vec![text("a")])).await.unwrap_err();
    assert_eq!(late.kind, Kind::Draining);
}

#[tokio::test]
async fn a_small_request_does_not_wait_for_a_large_one() {
    let engine = engine_with(Embeddings::On);
    let large = request(vec![Input::Tokens(vec![5; 400]); 200]);
    let small = request(vec![text("Hello")]);
    let mut large = Box::pin(engine.embed(&large));
    assert!(futures_poll(&mut large).await.is_none());
    engine.embed(&small).await.unwrap();
    assert!(futures_poll(&mut large).await.is_none(), "it goes on");
    drop(large);
    engine.stop().await;
}

#[tokio::test]
async fn who_does_not_want_to_wait_is_told_so() {
    let engine = engine_with(Embeddings::On);
    let mut hasty = request(vec![text("a")]);
    hasty.deadlines.queue = Some(Duration::from_nanos(1));
    let failure = engine.embed(&hasty).await.unwrap_err();
    assert_eq!(failure.code, Some("queue_timeout"));
    hasty.deadlines.queue = Some(Duration::MAX);
    engine.embed(&hasty).await.unwrap();
    engine.stop().await;
}

#[test]
fn rows_with_logits_fit_their_memory_and_the_grid() {
    assert_eq!(mean_rows(2_000, 512), 512);
    assert_eq!(mean_rows(152_000, 512), 64);
    assert_eq!(mean_rows(64_000, 512), 256);
    assert_eq!(mean_rows(1_000_000, 64), 64);
}
