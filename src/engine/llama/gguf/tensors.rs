//! The table of tensors: names, shapes, number formats and where each lies in the file.

use std::collections::HashMap;
use std::io::{Read, Seek};

use super::error::{GgufError, shown};
use super::source::Source;

/// The largest published mixtures of experts have a few thousand tensors.
const MOST_TENSORS: u64 = 1 << 17;
/// ggml keeps names in arrays of 64 bytes with a zero at the end.
const MOST_NAME_BYTES: u64 = 63;
const MOST_DIMENSIONS: u32 = 4;
/// Weights are mapped where they lie, and ggml's CPU buffers begin at multiples of this.
const ADDRESS_ALIGNMENT: u64 = 32;
/// Norm weights and biases are one number per channel; anything longer is not read.
const MOST_CHECKED: u64 = 1 << 20;

/// A number format that weights come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    pub(super) name: &'static str,
    /// Numbers in one block; a row is a whole number of blocks.
    block: u64,
    /// Bytes of one block.
    bytes: u64,
    /// What llama.cpp can do with it.
    pub(super) role: Role,
}

/// Where a format can stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Anywhere.
    Plain,
    /// Only as a matrix to multiply by or to take rows from.
    Matrix,
    /// Tables of indices, in a few architectures.
    Index,
    /// Only inside computations, never in files.
    Inner,
}

/// ggml's numbering of formats, as of the llama.cpp that is built in (`enum ggml_type` and the
/// table of block sizes in `ggml.c`). `None`: the format was withdrawn.
fn format(code: u32) -> Option<Format> {
    let (name, block, bytes, role) = match code {
        0 => ("f32", 1, 4, Role::Plain),
        1 => ("f16", 1, 2, Role::Matrix),
        2 => ("q4_0", 32, 18, Role::Matrix),
        3 => ("q4_1", 32, 20, Role::Matrix),
        6 => ("q5_0", 32, 22, Role::Matrix),
        7 => ("q5_1", 32, 24, Role::Matrix),
        8 => ("q8_0", 32, 34, Role::Matrix),
        9 => ("q8_1", 32, 36, Role::Inner),
        10 => ("q2_K", 256, 84, Role::Matrix),
        11 => ("q3_K", 256, 110, Role::Matrix),
        12 => ("q4_K", 256, 144, Role::Matrix),
        13 => ("q5_K", 256, 176, Role::Matrix),
        14 => ("q6_K", 256, 210, Role::Matrix),
        15 => ("q8_K", 256, 292, Role::Inner),
        16 => ("iq2_xxs", 256, 66, Role::Matrix),
        17 => ("iq2_xs", 256, 74, Role::Matrix),
        18 => ("iq3_xxs", 256, 98, Role::Matrix),
        19 => ("iq1_s", 256, 50, Role::Matrix),
        20 => ("iq4_nl", 32, 18, Role::Matrix),
        21 => ("iq3_s", 256, 110, Role::Matrix),
        22 => ("iq2_s", 256, 82, Role::Matrix),
        23 => ("iq4_xs", 256, 136, Role::Matrix),
        24 => ("i8", 1, 1, Role::Index),
        25 => ("i16", 1, 2, Role::Index),
        26 => ("i32", 1, 4, Role::Index),
        27 => ("i64", 1, 8, Role::Index),
        28 => ("f64", 1, 8, Role::Inner),
        29 => ("iq1_m", 256, 56, Role::Matrix),
        30 => ("bf16", 1, 2, Role::Matrix),
        34 => ("tq1_0", 256, 54, Role::Matrix),
        35 => ("tq2_0", 256, 66, Role::Matrix),
        39 => ("mxfp4", 32, 17, Role::Matrix),
        40 => ("nvfp4", 64, 36, Role::Matrix),
        41 => ("q1_0", 128, 18, Role::Matrix),
        42 => ("q2_0", 64, 18, Role::Matrix),
        _ => return None,
    };
    Some(Format {
        name,
        block,
        bytes,
        role,
    })
}

/// One tensor.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) name: String,
    /// Row length first; always four, padded with ones.
    pub(super) shape: [u64; 4],
    /// How many of them the file gives.
    dimensions: u32,
    pub(super) format: Format,
    /// From the start of the data.
    pub(super) offset: u64,
    /// Size of the data.
    pub(super) bytes: u64,
    pub(super) elements: u64,
}

impl Tensor {
    /// Where its data ends, from the start of all data.
    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(self.bytes)
    }
}

/// All tensors of a file, in order.
#[derive(Debug)]
pub(super) struct Tensors {
    all: Vec<Tensor>,
    /// Where the data begins in the file.
    pub(super) start: u64,
    by_name: HashMap<String, usize>,
    /// Sum of the tensors' sizes.
    pub(super) bytes: u64,
    /// Sum of the tensors' elements.
    pub(super) elements: u64,
}

impl Tensors {
    /// Reads `count` descriptions and checks that their data lies one after the other in the file.
    pub(super) fn read<R: Read + Seek>(
        source: &mut Source<R>,
        count: u64,
        alignment: u64,
    ) -> Result<Self, GgufError> {
        if count == 0 {
            return Err(GgufError::NoTensors);
        }
        if count > MOST_TENSORS {
            return Err(GgufError::TooLarge {
                what: "the number of tensors".into(),
                found: count,
                limit: MOST_TENSORS,
            });
        }
        let mut tensors = Self {
            all: Vec::new(),
            start: 0,
            by_name: HashMap::new(),
            bytes: 0,
            elements: 0,
        };
        for index in 0..count {
            let tensor = read_tensor(source, index)?;
            let place = tensors.all.len();
            if tensors.by_name.insert(tensor.name.clone(), place).is_some() {
                return Err(GgufError::DuplicateTensor {
                    name: shown(&tensor.name),
                });
            }
            tensors.elements = tensors.elements.saturating_add(tensor.elements);
            tensors.bytes = tensors.bytes.saturating_add(tensor.bytes);
            tensors.all.push(tensor);
        }
        let start = source.at().next_multiple_of(alignment);
        tensors.start = start;
        tensors.check_places(start, alignment, source.len())?;
        tensors.check_norms(source, start)?;
        Ok(tensors)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Tensor> {
        self.all.iter()
    }

    pub(super) fn find(&self, name: &str) -> Option<&Tensor> {
        self.by_name.get(name).and_then(|&at| self.all.get(at))
    }

    /// The format that holds most of the bytes.
    pub(super) fn main_format(&self) -> &'static str {
        let mut sums: HashMap<&'static str, u64> = HashMap::new();
        for tensor in &self.all {
            let sum = sums.entry(tensor.format.name).or_default();
            *sum = sum.saturating_add(tensor.bytes);
        }
        sums.into_iter()
            .max_by_key(|&(name, bytes)| (bytes, name))
            .map_or("none", |(name, _)| name)
    }

    /// llama.cpp wants each tensor right behind the one before, so nothing can overlap.
    fn check_places(&self, start: u64, alignment: u64, file: u64) -> Result<(), GgufError> {
        let mut expected = 0_u64;
        for tensor in &self.all {
            if tensor.offset != expected {
                return Err(GgufError::Offset {
                    name: shown(&tensor.name),
                    found: tensor.offset,
                    expected,
                });
            }
            let end = start
                .checked_add(tensor.offset)
                .and_then(|at| at.checked_add(tensor.bytes));
            if end.is_none_or(|end| end > file) {
                return Err(GgufError::Truncated {
                    what: format!("tensor {}", shown(&tensor.name)),
                    offset: start.saturating_add(tensor.offset),
                    bytes: tensor.bytes,
                    file,
                });
            }
            let offset = start + tensor.offset;
            if !offset.is_multiple_of(ADDRESS_ALIGNMENT) {
                return Err(GgufError::Misaligned {
                    name: shown(&tensor.name),
                    offset,
                    alignment: ADDRESS_ALIGNMENT,
                });
            }
            // In range: offset and size were just found to lie within the file.
            expected = (tensor.offset + tensor.bytes).next_multiple_of(alignment);
        }
        Ok(())
    }

    /// What is added or multiplied in must be plain f32: ggml stops the process on anything else.
    /// These tensors are small, so their numbers are looked at as well.
    fn check_norms<R: Read + Seek>(
        &self,
        source: &mut Source<R>,
        start: u64,
    ) -> Result<(), GgufError> {
        for tensor in &self.all {
            let vector = is_vector(tensor);
            let fits = match tensor.format.role {
                Role::Plain => true,
                Role::Matrix => !vector,
                Role::Index => is_index_table(&tensor.name),
                Role::Inner => false,
            };
            if !fits {
                return Err(GgufError::TensorType {
                    name: shown(&tensor.name),
                    found: tensor.format.name.into(),
                    expected: if vector {
                        "f32"
                    } else {
                        "f32, f16, bf16 or a quantised type"
                    },
                });
            }
            if vector && tensor.format.role == Role::Plain && tensor.elements <= MOST_CHECKED {
                check_finite(source, tensor, start + tensor.offset)?;
            }
        }
        Ok(())
    }
}

/// Whether a tensor is used element by element rather than as a matrix.
fn is_vector(tensor: &Tensor) -> bool {
    // A matrix of one row, as in a classifier's head, is given with two dimensions.
    tensor.dimensions == 1 || is_elementwise(&tensor.name)
}

fn is_elementwise(name: &str) -> bool {
    name.ends_with("norm.weight")
        || name.rsplit('.').next() == Some("bias")
        || name.starts_with("rope_")
}

/// Tokens to experts, and a draft model's tokens to those of its target.
fn is_index_table(name: &str) -> bool {
    name.contains("tid2eid") || name.starts_with("d2t")
}

fn check_finite<R: Read + Seek>(
    source: &mut Source<R>,
    tensor: &Tensor,
    at: u64,
) -> Result<(), GgufError> {
    source.reading(format!("tensor {}", shown(&tensor.name)));
    source.seek(at)?;
    let mut bytes = vec![0; usize::try_from(tensor.bytes).unwrap_or(usize::MAX)];
    source.fill(&mut bytes)?;
    let (words, _) = bytes.as_chunks::<4>();
    for (index, &word) in words.iter().enumerate() {
        let number = f32::from_le_bytes(word);
        // Some architectures keep -inf in masks and such; a norm weight or bias never is.
        if !number.is_finite() && is_elementwise(&tensor.name) || number.is_nan() {
            return Err(GgufError::NotFinite {
                name: shown(&tensor.name),
                index: index as u64,
                found: number,
            });
        }
    }
    Ok(())
}

fn read_tensor<R: Read + Seek>(source: &mut Source<R>, index: u64) -> Result<Tensor, GgufError> {
    source.reading(format!("the name of tensor number {index}"));
    let name = source.name(MOST_NAME_BYTES).map_err(|error| match error {
        GgufError::TooLarge { found, limit, .. } if limit == MOST_NAME_BYTES => {
            GgufError::TensorName {
                index,
                bytes: found,
            }
        }
        other => other,
    })?;
    if name.is_empty() {
        return Err(GgufError::TensorName { index, bytes: 0 });
    }
    source.reading(format!("the description of tensor {}", shown(&name)));
    let dimensions = source.u32()?;
    if dimensions == 0 || dimensions > MOST_DIMENSIONS {
        return Err(GgufError::Dimensions {
            name: shown(&name),
            found: format!("in the number of {dimensions}"),
            expected: format!("1 to {MOST_DIMENSIONS} of them"),
        });
    }
    let mut shape = [1; 4];
    for dimension in shape.iter_mut().take(dimensions as usize) {
        *dimension = source.u64()?;
    }
    let elements = count_elements(&name, shape)?;
    let code = source.u32()?;
    let Some(format) = format(code) else {
        return Err(GgufError::TensorType {
            name: shown(&name),
            found: format!("number {code}"),
            expected: "one that this version of llama.cpp reads",
        });
    };
    let [row, ..] = shape;
    if !row.is_multiple_of(format.block) {
        return Err(GgufError::Dimensions {
            name: shown(&name),
            found: format!("{shape:?}"),
            expected: format!("rows of a multiple of {} for {}", format.block, format.name),
        });
    }
    let bytes = (elements / format.block)
        .checked_mul(format.bytes)
        .filter(|&bytes| i64::try_from(bytes).is_ok())
        .ok_or_else(|| GgufError::Dimensions {
            name: shown(&name),
            found: format!("{shape:?}"),
            expected: "fewer than 2^63 bytes".into(),
        })?;
    let offset = source.u64()?;
    Ok(Tensor {
        name,
        shape,
        dimensions,
        format,
        offset,
        bytes,
        elements,
    })
}

fn count_elements(name: &str, shape: [u64; 4]) -> Result<u64, GgufError> {
    let refuse = |expected: &str| GgufError::Dimensions {
        name: shown(name),
        found: format!("{shape:?}"),
        expected: expected.into(),
    };
    if shape.contains(&0) {
        return Err(refuse("at least 1 each"));
    }
    shape
        .iter()
        .try_fold(1_u64, |product, &dimension| product.checked_mul(dimension))
        .filter(|&elements| i64::try_from(elements).is_ok())
        .ok_or_else(|| refuse("a product below 2^63"))
}
