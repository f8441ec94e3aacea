//! Reads a GGUF file's head and refuses what llama.cpp would not survive.
//!
//! llama.cpp trusts a good part of the metadata: a duplicate token, a layer count of zero or a norm
//! in the wrong number format ends the whole process, not the load. This checker is plain Rust, runs
//! first, and turns all of that into a [`GgufError`]. It reads the header, the metadata, the table of
//! tensors and the small vectors among the weights, whatever the size of the file; the memory it
//! takes is bounded by fixed caps.
//!
//! ```text
//! "GGUF" | u32 version | u64 tensors | u64 keys
//! keys:    text name | u32 type | value                      (text: u64 length, UTF-8 bytes)
//! tensors: text name | u32 dimensions | u64 each | u32 format | u64 offset
//! padding to general.alignment | data: each tensor padded to the alignment
//! ```

mod adapter;
mod architecture;
mod charsmap;
mod error;
mod metadata;
mod model;
mod source;
mod tensors;
mod vectors;
mod vocabulary;

#[cfg(test)]
pub(in crate::engine::llama) mod build;
#[cfg(test)]
mod tests;

use std::io::{Read, Seek};

pub(super) use adapter::{AdapterSummary, Base, check_adapter};
pub use error::GgufError;
pub(super) use vectors::{Pooled, Vectors};

use error::shown;
use metadata::{Metadata, bad};
use source::Source;
use tensors::Tensors;

const MAGIC: [u8; 4] = *b"GGUF";
const DEFAULT_ALIGNMENT: u32 = 32;
/// Real files use 32; some page-align with 4096.
const MOST_ALIGNMENT: u32 = 1 << 20;

/// What a sound file says about its model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Summary {
    /// `general.architecture`, for example `llama`.
    pub architecture: String,
    /// `general.name`, when it says.
    pub name: Option<String>,
    /// Transformer blocks.
    pub block_count: u32,
    /// Tokens that the model was trained to attend to.
    pub context_length: u32,
    /// Width of the residual stream.
    pub embedding_length: u32,
    /// Attention heads of the widest block; 0 for purely recurrent models.
    pub head_count: u32,
    /// Key and value heads of the widest block.
    pub head_count_kv: u32,
    /// Whether the model continues text: causal attention, not an encoder or a diffusion model.
    /// llama.cpp asserts on batches of others, so they must not reach a decode loop.
    pub generates: bool,
    /// What it says about vectors.
    pub vectors: Vectors,
    /// Tokens in the vocabulary.
    pub vocabulary: u32,
    /// `tokenizer.ggml.model`, for example `gpt2`.
    pub tokenizer: String,
    /// `tokenizer.ggml.pre`, the pre-tokenizer, when it says.
    pub pre_tokenizer: Option<String>,
    /// The chat template in Jinja, when there is one; at most 1 MiB.
    pub chat_template: Option<String>,
    /// Beginning of sequence, when the file names it.
    pub bos: Option<u32>,
    /// End of sequence, when the file names it.
    pub eos: Option<u32>,
    /// End of turn, when the file names it.
    pub eot: Option<u32>,
    /// Whether prompts begin with `bos`, when the file says.
    pub add_bos: Option<bool>,
    /// `general.file_type`, llama.cpp's number of the quantisation recipe, when it says.
    pub file_type: Option<u32>,
    /// The number format that holds most of the weights, for example `q8_0`.
    pub weights: String,
    /// Alignment of tensors, in bytes.
    pub alignment: u32,
    /// Tensors in the file.
    pub tensors: u64,
    /// Size of all tensors, in bytes.
    pub tensor_bytes: u64,
    /// Numbers in all tensors.
    pub parameters: u64,
    /// What adapters must fit.
    pub base: Base,
}

/// Checks a GGUF file that begins at byte 0 of `reader` and is `file_len` bytes long.
///
/// Reading is buffered here, and bounded: the weights are not read, besides vectors (norms, biases).
///
/// # Errors
/// The first fact that makes the file unfit for the llama.cpp that is built in.
pub(super) fn check<R: Read + Seek>(reader: R, file_len: u64) -> Result<Summary, GgufError> {
    let mut source = Source::new(reader, file_len)?;
    let (tensor_count, key_count) = read_header(&mut source)?;
    let metadata = Metadata::read(&mut source, key_count)?;
    let architecture = model::architecture(&metadata)?;
    let alignment = alignment(&metadata)?;
    let tensors = Tensors::read(&mut source, tensor_count, alignment.into())?;
    let vocabulary = vocabulary::check(&metadata)?;
    let model = model::check(&metadata, &tensors, architecture, vocabulary.tokens)?;
    let owned = |key: &str| Ok::<_, GgufError>(metadata.text(key)?.map(ToOwned::to_owned));
    Ok(Summary {
        name: owned("general.name")?,
        chat_template: owned("tokenizer.chat_template")?,
        file_type: metadata.u32("general.file_type")?,
        base: Base::new(&model.architecture, &tensors),
        vectors: vectors::read(&metadata, &tensors, architecture, model.width)?,
        architecture: model.architecture,
        block_count: model.blocks,
        context_length: model.context,
        embedding_length: model.width,
        head_count: model.heads,
        head_count_kv: model.kv_heads,
        generates: model.causal,
        vocabulary: vocabulary.tokens,
        tokenizer: vocabulary.model,
        pre_tokenizer: vocabulary.pre,
        bos: vocabulary.bos,
        eos: vocabulary.eos,
        eot: vocabulary.eot,
        add_bos: vocabulary.add_bos,
        weights: tensors.main_format().into(),
        alignment,
        tensors: tensor_count,
        tensor_bytes: tensors.bytes,
        parameters: tensors.elements,
    })
}

/// Numbers of tensors and of keys.
fn read_header<R: Read + Seek>(source: &mut Source<R>) -> Result<(u64, u64), GgufError> {
    source.reading("the header");
    let magic = source.four()?;
    if magic != MAGIC {
        return Err(GgufError::NotGguf {
            found: shown(&magic.escape_ascii().to_string()),
        });
    }
    let version = source.u32()?;
    match version {
        2 | 3 => {}
        _ if matches!(version.swap_bytes(), 1..=3) => return Err(GgufError::BigEndian),
        found => return Err(GgufError::Version { found }),
    }
    Ok((source.u64()?, source.u64()?))
}

fn alignment(metadata: &Metadata) -> Result<u32, GgufError> {
    let key = "general.alignment";
    match metadata.u32(key)?.unwrap_or(DEFAULT_ALIGNMENT) {
        alignment if alignment.is_power_of_two() && alignment <= MOST_ALIGNMENT => Ok(alignment),
        other => Err(bad(
            key,
            other,
            format!("a power of two up to {MOST_ALIGNMENT}"),
        )),
    }
}
