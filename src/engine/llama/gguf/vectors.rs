//! What a file says about vectors: how to pool them, and whether the model ranks documents.
//!
//! llama.cpp computes a rank without a classifier head, from whatever lies there, and reads one of
//! another width out of bounds or askew. So a head counts only if it is just as its graph expects.

use super::error::GgufError;
use super::metadata::{Metadata, Value};
use super::tensors::Tensors;

/// The architectures whose graph takes a head of one row per label from `cls.output.weight`, continue
/// text besides, and turn the rows into probabilities.
const RANKING: [&str; 2] = ["qwen3", "qwen3vl"];

/// Pooling kinds, by llama.cpp's numbers.
const MEAN: u32 = 1;
const CLS: u32 = 2;
const RANK: u32 = 4;

/// What the vectors of a text's tokens are meant to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Pooled {
    /// The file does not say: a model made to continue text.
    Unsaid,
    /// Their mean.
    Mean,
    /// The first token's, which without causal attention has seen the whole text.
    First,
    /// The last token's.
    Last,
    /// A score for a pair of texts.
    Rank,
}

/// What a file says about vectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Vectors {
    /// `pooling_type`.
    pub(in super::super) pooled: Pooled,
    /// Whether there is a classifier head that can be trusted to rank.
    pub(in super::super) has_head: bool,
    /// Whether vectors are projected once more after pooling, to a width that is not the model's.
    pub(in super::super) is_projected: bool,
    /// How a query and a document become one text, where the file says: with `{query}` and
    /// `{document}` in it.
    pub(in super::super) rank_template: Option<String>,
}

pub(super) fn read(
    metadata: &Metadata,
    tensors: &Tensors,
    architecture: &str,
    width: u32,
) -> Result<Vectors, GgufError> {
    let key = |name: &str| format!("{architecture}.{name}");
    let pooling = metadata.u32(&key("pooling_type"))?;
    let labels = match metadata.find(&key("classifier.output_labels")) {
        Some(&Value::Array(_, count, _)) => count,
        _ => 0,
    };
    // The mean before a head is another architecture's way.
    let takes_last = metadata.u32(&key("classifier.pooling_type"))? != Some(MEAN);
    let head = tensors.find("cls.output.weight");
    let fits = head.is_some_and(|head| {
        // One label would always have the probability 1.
        labels >= 2 && head.shape == [u64::from(width), labels, 1, 1]
    });
    let out = metadata.u32(&key("embedding_length_out"))?;
    let is_dense = ["dense_2.weight", "dense_2.bias", "dense_3.weight"]
        .iter()
        .any(|name| tensors.find(name).is_some());
    Ok(Vectors {
        pooled: match pooling {
            None | Some(0) => Pooled::Unsaid,
            Some(MEAN) => Pooled::Mean,
            Some(CLS) => Pooled::First,
            Some(RANK) => Pooled::Rank,
            Some(_) => Pooled::Last,
        },
        has_head: pooling == Some(RANK) && takes_last && fits && RANKING.contains(&architecture),
        is_projected: is_dense || out.is_some_and(|out| out != width),
        rank_template: metadata
            .text("tokenizer.chat_template.rerank")?
            .filter(|text| text.contains("{query}") && text.contains("{document}"))
            .map(ToOwned::to_owned),
    })
}
