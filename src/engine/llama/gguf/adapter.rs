//! Whether a `LoRA` adapter fits its model, before llama.cpp reads it.
//!
//! llama.cpp compares the first two dimensions of a pair with the model's tensor and stops the process
//! on most of what else can be wrong with one: ranks that differ, experts that differ, a number format
//! that it cannot multiply by, a key of the wrong type.
//!
//! ```text
//! blk.0.attn_q.weight         rows of n_in numbers, n_out of them      (the model's)
//! blk.0.attn_q.weight.lora_a  rows of n_in numbers, rank of them       scale * alpha / rank * b * a
//! blk.0.attn_q.weight.lora_b  rows of rank numbers, n_out of them      is added to the model's
//! ```

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Seek};

use super::error::{GgufError, shown};
use super::metadata::{Metadata, bad, missing};
use super::source::Source;
use super::tensors::{Tensor, Tensors};
use super::{alignment, read_header};

/// The table of embeddings. Rows are taken from it, so its pair is stored the other way round.
const EMBEDDINGS: &str = "token_embd.weight";
/// The head. Where a file has none, the table of embeddings is used in its place.
const HEAD: &str = "output.weight";

/// Formats that adapters come in, which all backends multiply by.
const FORMATS: [&str; 4] = ["f32", "f16", "bf16", "q8_0"];

/// Adapters of rank 8 to 256 are usual.
const MOST_RANK: u64 = 8192;

/// What of a model an adapter must fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::engine::llama) struct Base {
    architecture: String,
    /// Shapes by name.
    tensors: HashMap<String, Shape>,
    /// Numbers in all of them.
    elements: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Shape {
    dimensions: [u64; 4],
    format: &'static str,
}

impl Base {
    pub(super) fn new(architecture: &str, tensors: &Tensors) -> Self {
        let shape = |tensor: &Tensor| Shape {
            dimensions: tensor.shape,
            format: tensor.format.name,
        };
        let named = tensors.iter().map(|t| (t.name.clone(), shape(t)));
        Self {
            architecture: architecture.into(),
            tensors: named.collect(),
            elements: tensors.elements,
        }
    }
}

/// What a sound adapter says about itself.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::engine::llama) struct AdapterSummary {
    /// The largest rank among its pairs.
    pub(in crate::engine::llama) rank: u64,
    /// Matrices of the model that it changes.
    pub(in crate::engine::llama) pairs: usize,
    /// Vectors that it holds although llama.cpp does not apply them (trained norms).
    pub(in crate::engine::llama) unused: usize,
    /// Bytes of the file that are used: what comes behind belongs to nothing.
    pub(in crate::engine::llama) length: u64,
}

/// Checks an adapter that begins at byte 0 of `reader`, in a file of `file_len` bytes, for `base`. Reads
/// all of it: every number must be one.
///
/// # Errors
/// The first fact that makes it unfit.
pub(in crate::engine::llama) fn check_adapter<R: Read + Seek>(
    reader: R,
    file_len: u64,
    base: &Base,
) -> Result<AdapterSummary, GgufError> {
    let mut source = Source::new(reader, file_len)?;
    let (tensor_count, key_count) = read_header(&mut source)?;
    let metadata = Metadata::read(&mut source, key_count)?;
    check_metadata(&metadata, base)?;
    let alignment = alignment(&metadata)?;
    let tensors = Tensors::read(&mut source, tensor_count, alignment.into())?;
    if tensors.elements > base.elements {
        return Err(GgufError::TooLarge {
            what: "the number of numbers in the adapter".into(),
            found: tensors.elements,
            limit: base.elements,
        });
    }
    let (pairs, unused) = pairs(&tensors)?;
    let mut rank = 0;
    for (name, pair) in &pairs {
        rank = rank.max(check_pair(name, pair, base)?);
        for tensor in [pair.a, pair.b].into_iter().flatten() {
            check_numbers(&mut source, tensor, tensors.start)?;
        }
    }
    let end = tensors.iter().map(Tensor::end).max().unwrap_or(0);
    Ok(AdapterSummary {
        rank,
        pairs: pairs.len(),
        unused,
        length: tensors.start + end,
    })
}

/// llama.cpp stops the process when one of these keys has another type.
fn check_metadata(metadata: &Metadata, base: &Base) -> Result<(), GgufError> {
    for (key, wanted) in [
        ("general.type", "adapter"),
        ("adapter.type", "lora"),
        ("general.architecture", &*base.architecture),
    ] {
        let found = metadata.text(key)?.ok_or_else(|| missing(key))?;
        if found != wanted {
            return Err(bad(key, shown(found), shown(wanted)));
        }
    }
    let key = "adapter.lora.alpha";
    if let Some(alpha) = metadata.f32(key)?
        && !alpha.is_finite()
    {
        return Err(bad(key, alpha, "a finite number"));
    }
    let key = "adapter.alora.invocation_tokens";
    if metadata.find(key).is_some() {
        return Err(bad(
            key,
            "an adapter that a token sequence switches on",
            "none: adapters are on from the first token",
        ));
    }
    Ok(())
}

/// The two matrices for one of the model's.
#[derive(Default)]
struct Pair<'a> {
    a: Option<&'a Tensor>,
    b: Option<&'a Tensor>,
}

/// The pairs by the name of the tensor they are for, and how many tensors there are beside them.
fn pairs(tensors: &Tensors) -> Result<(BTreeMap<&str, Pair<'_>>, usize), GgufError> {
    let mut pairs: BTreeMap<&str, Pair<'_>> = BTreeMap::new();
    let mut unused = 0;
    for tensor in tensors.iter() {
        let name = &*tensor.name;
        if let Some(base) = name.strip_suffix(".lora_a") {
            pairs.entry(base).or_default().a = Some(tensor);
        } else if let Some(base) = name.strip_suffix(".lora_b") {
            pairs.entry(base).or_default().b = Some(tensor);
        } else if name.ends_with("_norm.weight") {
            unused += 1;
        } else {
            return Err(refused(name, "is neither a .lora_a nor a .lora_b"));
        }
    }
    Ok((pairs, unused))
}

/// Checks one pair; its rank.
fn check_pair(name: &str, pair: &Pair<'_>, base: &Base) -> Result<u64, GgufError> {
    let (Some(a), Some(b)) = (pair.a, pair.b) else {
        return Err(refused(name, "has only one of .lora_a and .lora_b"));
    };
    // llama.cpp takes every such part out of the name, wherever it stands.
    if name.contains(".lora_") {
        return Err(refused(name, "is no tensor of a model"));
    }
    let Some(of) = base.tensors.get(name) else {
        return Err(refused(name, "is not in the model; is it another model's?"));
    };
    if of.format == "nvfp4" {
        return Err(refused(
            name,
            "is nvfp4 in the model, which takes no adapter",
        ));
    }
    let is_embeddings = name == EMBEDDINGS;
    if is_embeddings && !base.tensors.contains_key(HEAD) {
        return Err(refused(
            name,
            "is also the head of this model, and a pair cannot serve as both",
        ));
    }
    if name.ends_with(EMBEDDINGS) && !is_embeddings {
        return Err(refused(name, "is a table that llama.cpp does not adapt"));
    }
    for tensor in [a, b] {
        if !FORMATS.contains(&tensor.format.name) {
            return Err(GgufError::TensorType {
                name: shown(&tensor.name),
                found: tensor.format.name.into(),
                expected: "f32, f16, bf16 or q8_0",
            });
        }
    }
    let [inputs, outputs, experts, more] = of.dimensions;
    let rank = b.shape[0];
    let (expected_a, expected_b) = if is_embeddings {
        ([rank, outputs, 1, 1], [rank, inputs, 1, 1])
    } else {
        (
            [inputs, rank, experts, more],
            [rank, outputs, experts, more],
        )
    };
    for (tensor, expected) in [(a, expected_a), (b, expected_b)] {
        if tensor.shape != expected {
            return Err(GgufError::Dimensions {
                name: shown(&tensor.name),
                found: format!("{:?}", tensor.shape),
                expected: format!("{expected:?} for a rank of {rank}"),
            });
        }
    }
    if rank > MOST_RANK {
        return Err(GgufError::TooLarge {
            what: format!("the rank of {}", shown(name)),
            found: rank,
            limit: MOST_RANK,
        });
    }
    Ok(rank)
}

/// Numbers that are none would make every token of every request with this adapter fail.
fn check_numbers<R: Read + Seek>(
    source: &mut Source<R>,
    tensor: &Tensor,
    start: u64,
) -> Result<(), GgufError> {
    /// A multiple of every block below.
    const STEP: u64 = 34 * 2048;
    source.reading(format!("tensor {}", shown(&tensor.name)));
    source.seek(start + tensor.offset)?;
    // Bytes of a block, the numbers in it, and the exponent that marks what is no number. A block of
    // q8_0 begins with its scale; its other bytes are integers.
    let (block, numbers, exponent) = match tensor.format.name {
        "f32" => (4, 1, 0x7f80_0000),
        "f16" => (2, 1, 0x7c00),
        "q8_0" => (34, 32, 0x7c00),
        _ => (2, 1, 0x7f80),
    };
    let mut buffer = vec![0; usize::try_from(tensor.bytes.min(STEP)).unwrap_or(0)];
    let mut done = 0;
    while done < tensor.bytes {
        let len = usize::try_from((tensor.bytes - done).min(STEP)).unwrap_or(0);
        source.fill(&mut buffer[..len])?;
        for (index, bytes) in buffer[..len].chunks_exact(block).enumerate() {
            let word = match *bytes {
                [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
                [a, b, ..] => u32::from(u16::from_le_bytes([a, b])),
                [] | [_] => 0,
            };
            if word & exponent == exponent {
                return Err(GgufError::NotFinite {
                    name: shown(&tensor.name),
                    index: (done / block as u64 + index as u64) * numbers,
                    found: f32::NAN,
                });
            }
        }
        done += len as u64;
    }
    Ok(())
}

fn refused(name: &str, why: &'static str) -> GgufError {
    GgufError::Adapter {
        name: shown(name),
        why,
    }
}
