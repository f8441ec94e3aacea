//! Every fact that makes a file unfit, each with a message that names the place and what was expected.

use std::io;

use thiserror::Error;

/// Why a GGUF file was refused. Messages name keys, tensors and byte offsets, never paths.
///
/// Text that comes from the file is shown quoted, escaped and cut short.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The reader failed for a reason that is not in the file.
    #[error("cannot read the file at byte {offset}")]
    Read {
        /// Where, in bytes from the start.
        offset: u64,
        /// What the reader said.
        source: io::Error,
    },
    /// The first four bytes are not `GGUF`.
    #[error("not a GGUF file: it begins with {found}, expected \"GGUF\"")]
    NotGguf {
        /// The four bytes, escaped.
        found: String,
    },
    /// Written for a big-endian machine.
    #[error("a big-endian GGUF file; only little-endian files are read")]
    BigEndian,
    /// A version that llama.cpp does not read.
    #[error("GGUF version {found}, expected 2 or 3")]
    Version {
        /// The version in the header.
        found: u32,
    },
    /// The file ends inside something that it announces.
    #[error("truncated: {what} needs {bytes} bytes at byte {offset}, but the file has {file}")]
    Truncated {
        /// What was being read.
        what: String,
        /// Where it starts.
        offset: u64,
        /// How long it is.
        bytes: u64,
        /// Length of the file.
        file: u64,
    },
    /// A count or length beyond what any real model has; reading on could exhaust memory.
    #[error("{what} is {found}, more than the {limit} that are read")]
    TooLarge {
        /// Of what.
        what: String,
        /// The number in the file.
        found: u64,
        /// The most that is accepted.
        limit: u64,
    },
    /// Bytes that must be text are not.
    #[error("{what} at byte {offset} is not UTF-8")]
    NotUtf8 {
        /// Which text.
        what: String,
        /// Where it starts.
        offset: u64,
    },
    /// A metadata key without a name.
    #[error("metadata key number {index} is empty")]
    EmptyKey {
        /// Counted from 0.
        index: u64,
    },
    /// A name with a zero byte in it. llama.cpp stops reading there and would see another name.
    #[error("the name {name} has a zero byte in it")]
    ZeroInName {
        /// The whole name.
        name: String,
    },
    /// Two metadata entries of one name.
    #[error("metadata key {key} appears twice")]
    DuplicateKey {
        /// The name.
        key: String,
    },
    /// A value type that GGUF does not define, or an array in an array.
    #[error("metadata key {key} has value type {code}, which is not one that llama.cpp reads here")]
    ValueType {
        /// The name.
        key: String,
        /// The type's number.
        code: u32,
    },
    /// A key that every model must have is absent.
    #[error("metadata key \"{key}\" is missing")]
    MissingKey {
        /// The name.
        key: String,
    },
    /// A key whose value has another type than llama.cpp reads.
    #[error("metadata key \"{key}\" is of type {found}, expected {expected}")]
    WrongType {
        /// The name.
        key: String,
        /// The type in the file.
        found: String,
        /// The type that is read.
        expected: &'static str,
    },
    /// A value of the right type that no model can have.
    #[error("metadata key \"{key}\" is {found}, expected {expected}")]
    BadValue {
        /// The name.
        key: String,
        /// What it says.
        found: String,
        /// What would be accepted.
        expected: String,
    },
    /// One piece of a model that is spread over files.
    #[error("one of {count} split files; only models in a single file are read")]
    Split {
        /// How many pieces there are.
        count: u64,
    },
    /// An architecture that this llama.cpp cannot run.
    #[error("architecture {name} is not known to this version of llama.cpp")]
    Architecture {
        /// Its name.
        name: String,
    },
    /// Two tokens with one text; llama.cpp stops the process on it.
    #[error("tokens {first} and {second} are both {text}")]
    DuplicateToken {
        /// The lower id.
        first: u64,
        /// The higher id.
        second: u64,
        /// Their text.
        text: String,
    },
    /// A vocabulary that tokenizes through bytes lacks one.
    #[error(
        "the vocabulary has no token for byte 0x{byte:02X}, without which text cannot be tokenized"
    )]
    MissingByte {
        /// The byte.
        byte: u8,
    },
    /// A merge rule that is not two texts with a space between.
    #[error("merge number {index} is {text}, expected two texts with a space between")]
    Merge {
        /// Counted from 0.
        index: u64,
        /// The rule.
        text: String,
    },
    /// The file holds no weights at all.
    #[error("the file holds no tensors")]
    NoTensors,
    /// A tensor name that is empty or does not fit.
    #[error("tensor number {index} has a name of {bytes} bytes, expected 1 to 63")]
    TensorName {
        /// Counted from 0.
        index: u64,
        /// Length of the name.
        bytes: u64,
    },
    /// Two tensors of one name.
    #[error("tensor {name} appears twice")]
    DuplicateTensor {
        /// The name.
        name: String,
    },
    /// A number of dimensions outside 1 to 4, a dimension that is not positive, or too many elements.
    #[error("tensor {name} has dimensions {found}, expected {expected}")]
    Dimensions {
        /// The name.
        name: String,
        /// What the file says.
        found: String,
        /// What would be accepted.
        expected: String,
    },
    /// A number format that is unknown, or that llama.cpp cannot compute with in this place.
    #[error("tensor {name} is of type {found}, expected {expected}")]
    TensorType {
        /// The name.
        name: String,
        /// The type in the file.
        found: String,
        /// What would be accepted.
        expected: &'static str,
    },
    /// A tensor that does not begin right after the one before it.
    #[error("tensor {name} begins at byte {found} of the data, expected {expected}")]
    Offset {
        /// The name.
        name: String,
        /// The offset in the file.
        found: u64,
        /// The end of the tensor before, aligned.
        expected: u64,
    },
    /// A tensor that memory mapping would put at an address llama.cpp refuses.
    #[error(
        "tensor {name} begins at byte {offset} of the file, expected a multiple of {alignment}"
    )]
    Misaligned {
        /// The name.
        name: String,
        /// From the start of the file.
        offset: u64,
        /// Bytes.
        alignment: u64,
    },
    /// A tensor without which no token can be computed.
    #[error("tensor \"{name}\" is missing")]
    MissingTensor {
        /// The name.
        name: String,
    },
    /// A tensor of an adapter that cannot be applied to the model.
    #[error("tensor {name} {why}")]
    Adapter {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A weight that is infinite or not a number.
    #[error("tensor {name} holds {found} at element {index}, expected finite numbers")]
    NotFinite {
        /// The name.
        name: String,
        /// Counted from 0.
        index: u64,
        /// The number.
        found: f32,
    },
}

/// Text from the file as messages show it: quoted, escaped, at most 60 characters.
pub(super) fn shown(text: &str) -> String {
    const MOST: usize = 60;
    let mut cut: String = text.chars().take(MOST).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    format!("{cut:?}")
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn text_from_the_file_is_escaped_and_cut() {
        assert_eq!(shown("a\u{1b}[2J\n"), r#""a\u{1b}[2J\n""#);
        assert!(shown(&"é".repeat(10_000)).chars().count() < 70);
    }
}
