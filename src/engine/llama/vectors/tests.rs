//! Vectors of the built-in model: the same alone and in a crowd, cancelled, refused.

use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;

use super::super::{DEMO, LlamaEngine, Weights, demo_settings};
use super::*;
use crate::engine::Engine;
use crate::engine::config::Process;
use crate::generation::{
    Caller, Deadlines, EmbedRequest, Input, Request, RequestId, RerankRequest, Sampling,
};
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
    let mut inputs: Vec<_> = [1, 2, 40, 130]
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
