//! Files that rank, down to the scores of a small model that is written here.

use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;

use super::super::build::{Gguf, Put, sound};
use super::super::{Pooled, Vectors};
use super::{accepted, run};
use crate::engine::Engine;
use crate::engine::config::{Process, Settings};
use crate::engine::llama::{LlamaEngine, Weights};
use crate::generation::{
    Caller, Deadlines, EmbedRequest, Failure, Input, Kind, RequestId, RerankRequest, Scores,
};
use crate::telemetry::Metrics;

const WIDTH: u64 = 64;
const HEAD: u64 = 32;
const TEMPLATE: &str = "Query: {query}\nDocument: {document}\n<|end|>";

/// A qwen3 of one block with random weights, a vocabulary of bytes, and a head of two classes.
fn ranking() -> Gguf {
    let tokens = tokens();
    let count = tokens.len();
    let mut kinds = vec![1; count];
    kinds[count - 1] = 3;
    let mut file = sound();
    file.keys.retain(|(key, _)| !key.starts_with(b"llama."));
    file.tensors.clear();
    for (key, value) in [
        ("general.architecture", Put::from("qwen3")),
        ("qwen3.context_length", Put::U32(128)),
        ("qwen3.embedding_length", Put::U32(64)),
        ("qwen3.block_count", Put::U32(1)),
        ("qwen3.feed_forward_length", Put::U32(64)),
        ("qwen3.attention.head_count", Put::U32(2)),
        ("qwen3.attention.head_count_kv", Put::U32(1)),
        ("qwen3.attention.layer_norm_rms_epsilon", Put::F32(1e-5)),
        ("qwen3.rope.freq_base", Put::F32(10_000.0)),
        ("qwen3.pooling_type", Put::U32(4)),
        (
            "qwen3.classifier.output_labels",
            Put::Texts(vec!["yes".into(), "no".into()]),
        ),
        ("tokenizer.ggml.tokens", Put::Texts(tokens)),
        ("tokenizer.ggml.token_type", Put::I32s(kinds)),
        ("tokenizer.ggml.merges", Put::Texts(vec!["t h".into()])),
        ("tokenizer.ggml.eos_token_id", Put::U32(256)),
        ("tokenizer.chat_template.rerank", TEMPLATE.into()),
    ] {
        file.set(key, value);
    }
    for key in ["bos_token_id", "eot_token_id"] {
        file.remove(&format!("tokenizer.ggml.{key}"));
    }
    file.add("token_embd.weight", &[WIDTH, count as u64], 0);
    file.add("output_norm.weight", &[WIDTH], 0);
    for (name, dimensions) in [
        ("attn_norm", &[WIDTH][..]),
        ("attn_q", &[WIDTH, WIDTH]),
        ("attn_k", &[WIDTH, HEAD]),
        ("attn_v", &[WIDTH, HEAD]),
        ("attn_output", &[WIDTH, WIDTH]),
        ("attn_q_norm", &[HEAD]),
        ("attn_k_norm", &[HEAD]),
        ("ffn_norm", &[WIDTH]),
        ("ffn_gate", &[WIDTH, WIDTH]),
        ("ffn_up", &[WIDTH, WIDTH]),
        ("ffn_down", &[WIDTH, WIDTH]),
    ] {
        file.add(&format!("blk.0.{name}.weight"), dimensions, 0);
    }
    file.add("cls.output.weight", &[WIDTH, 2], 0);
    let mut state = 1_u32;
    for tensor in &mut file.tensors {
        for bytes in tensor.data.chunks_exact_mut(4) {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let random = f32::from((state >> 16) as u16) / 65_536.0 - 0.5;
            bytes.copy_from_slice(&random.to_le_bytes());
        }
    }
    file
}

/// A token for each byte, written as GPT-2's vocabularies write them, and one that ends a text.
fn tokens() -> Vec<String> {
    let mut others = 256..;
    let mut tokens: Vec<_> = (0_u32..256)
        .map(|byte| {
            let plain = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
            let shown = if plain { Some(byte) } else { others.next() };
            shown.and_then(char::from_u32).unwrap().to_string()
        })
        .collect();
    tokens.push("<|end|>".into());
    tokens
}

fn engine(file: &Gguf) -> Arc<LlamaEngine> {
    let mut settings = Settings::default();
    settings.context = NonZeroU32::new(128);
    settings.parallel = 1;
    settings.threads = NonZeroU16::new(1);
    LlamaEngine::load(
        "ranks",
        &Weights::Embedded(file.bytes().leak()),
        &settings,
        &Process::default(),
        16,
        Metrics::new(["ranks"]).unwrap().model("ranks"),
        &Arc::default(),
    )
    .expect("it loads")
}

async fn rank(engine: &LlamaEngine, documents: &[&str]) -> Result<Scores, Failure> {
    let request = RerankRequest {
        id: RequestId::random(),
        caller: Caller::default(),
        model: String::new(),
        query: "What runs?".into(),
        documents: documents.iter().map(ToString::to_string).collect(),
        deadlines: Deadlines::default(),
    };
    engine.rerank(&request).await
}

async fn embed(engine: &LlamaEngine) -> Result<usize, Failure> {
    let request = EmbedRequest {
        id: RequestId::random(),
        caller: Caller::default(),
        model: String::new(),
        inputs: vec![Input::Text("a".into())],
        dimensions: None,
        normalize: true,
        deadlines: Deadlines::default(),
    };
    Ok(engine.embed(&request).await?.width)
}

#[tokio::test]
async fn a_model_with_a_head_gives_each_document_a_probability() {
    let engine = engine(&ranking());
    let documents = [
        "The water runs.",
        "A stone.",
        "",
        "The water runs. It does.",
    ];
    let all = rank(&engine, &documents).await.unwrap();
    assert_eq!(all.scores.len(), documents.len());
    assert!(all.scores.iter().all(|score| (0.0..=1.0).contains(score)));
    assert!(
        all.scores
            .windows(2)
            .all(|pair| (pair[0] - pair[1]).abs() > 1e-6)
    );
    assert!(all.usage.prompt_tokens > 100);
    for (document, &expected) in documents.iter().zip(&all.scores) {
        let alone = rank(&engine, &[document]).await.unwrap();
        assert!((alone.scores[0] - expected).abs() < 1e-5, "{document:?}");
    }
    let failure = rank(&engine, &["a", &"long ".repeat(40)])
        .await
        .unwrap_err();
    assert_eq!(failure.kind, Kind::ContextExceeded);
    assert_eq!(failure.param.as_deref(), Some("documents[1]"));
    let failure = embed(&engine).await.unwrap_err();
    assert_eq!(failure.code, Some("unsupported_by_model"));
    engine.stop().await;
}

#[tokio::test]
async fn a_model_that_only_says_so_neither_ranks_nor_embeds() {
    let mut file = ranking();
    file.tensors
        .retain(|tensor| !tensor.name.starts_with("cls"));
    let engine = engine(&file);
    for failure in [
        rank(&engine, &["a"]).await.unwrap_err(),
        embed(&engine).await.unwrap_err(),
    ] {
        assert_eq!(failure.code, Some("unsupported_by_model"));
    }
    engine.stop().await;
}

#[test]
fn only_a_head_that_the_graph_expects_counts() {
    let vectors = |change: fn(&mut Gguf)| -> Vectors {
        let mut file = ranking();
        change(&mut file);
        run(&file).unwrap().vectors
    };
    let whole = vectors(|_| {});
    assert_eq!((whole.pooled, whole.has_head), (Pooled::Rank, true));
    assert_eq!(whole.rank_template.as_deref(), Some(TEMPLATE));
    let changes: [fn(&mut Gguf); 5] = [
        |file| file.tensor("cls.output.weight").name = "cls.weight".into(),
        |file| {
            file.remove("qwen3.classifier.output_labels");
        },
        |file| {
            let three = ["a", "b", "c"].map(String::from).to_vec();
            file.set("qwen3.classifier.output_labels", Put::Texts(three));
        },
        |file| {
            file.set("qwen3.classifier.pooling_type", Put::U32(1));
        },
        |file| {
            file.set("qwen3.pooling_type", Put::U32(3));
        },
    ];
    for change in changes {
        assert!(!vectors(change).has_head);
    }
    assert_eq!(vectors(changes[4]).pooled, Pooled::Last);
    let projected = vectors(|file| {
        file.add("dense_2.weight", &[WIDTH, 32], 0);
    });
    assert!(projected.is_projected);
    assert_eq!(accepted(|_| {}).vectors.pooled, Pooled::Unsaid);
}
