//! The key and value pairs of a GGUF file, with the types they are stored in.
//!
//! llama.cpp reads most keys only in one exact type and fails (or worse) on another, so the getters
//! here are as strict. Long arrays are kept only where something is checked in them.

use std::collections::HashMap;
use std::fmt;
use std::io::{Read, Seek};

use super::error::{GgufError, shown};
use super::source::{MOST_TEXT_BYTES, Source, value_of};

/// Real files have 20 to 60 keys, those with many adapters or templates a few hundred.
const MOST_KEYS: u64 = 1 << 14;
/// Keys are dotted names; the specification allows 2^16 - 1 bytes.
const MOST_KEY_BYTES: u64 = (1 << 16) - 1;
/// The largest vocabularies have 262,144 tokens and about twice as many merges.
const MOST_TEXTS: u64 = 1 << 21;
/// Numbers of any one array that is kept: one per token, or one per block.
const MOST_NUMBERS: u64 = 1 << 21;
/// Arrays of numbers up to this length are per-block settings and always kept.
const SHORT: u64 = 1024;

/// Arrays that are looked into although they are long.
const KEPT: [&str; 6] = [
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.scores",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.suppress_tokens",
    "tokenizer.ggml.precompiled_charsmap",
];

/// Number formats of values, numbered as in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::Text,
            9 => Self::Array,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of one number; texts at least carry their length.
    fn bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::Text | Self::Array | Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::Text => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }
}

/// One value as stored.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Integer(i128, Kind),
    Float(f64, Kind),
    Bool(bool),
    Text(String),
    /// A text too long to be of interest.
    LongText,
    Array(Kind, u64, Items),
}

/// The elements of an array, where they are kept.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Items {
    Integers(Vec<i64>),
    Floats(Vec<f32>),
    Texts(Vec<String>),
    Skipped,
}

impl Value {
    fn kind(&self) -> String {
        match self {
            Self::Integer(_, kind) | Self::Float(_, kind) => kind.name().into(),
            Self::Bool(_) => "bool".into(),
            Self::Text(_) | Self::LongText => "string".into(),
            Self::Array(kind, _, _) => format!("array of {}", kind.name()),
        }
    }
}

/// All keys of a file.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    entries: HashMap<String, Value>,
}

impl Metadata {
    /// Reads `count` pairs.
    pub(super) fn read<R: Read + Seek>(
        source: &mut Source<R>,
        count: u64,
    ) -> Result<Self, GgufError> {
        if count > MOST_KEYS {
            return Err(too_many("the number of metadata keys", count, MOST_KEYS));
        }
        let mut entries = HashMap::new();
        for index in 0..count {
            source.reading(format!("metadata key number {index}"));
            let key = source.name(MOST_KEY_BYTES)?;
            if key.is_empty() {
                return Err(GgufError::EmptyKey { index });
            }
            source.reading(value_of(&key));
            let value = read_value(source, &key)?;
            if entries.contains_key(&key) {
                return Err(GgufError::DuplicateKey { key: shown(&key) });
            }
            entries.insert(key, value);
        }
        Ok(Self { entries })
    }

    pub(super) fn find(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries
            .iter()
            .map(|(key, value)| (key.as_str(), value))
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        match self.find(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(Value::LongText) => Err(too_many(
                &format!("the length of {} in bytes", value_of(key)),
                MOST_TEXT_BYTES + 1,
                MOST_TEXT_BYTES,
            )),
            Some(other) => Err(wrong_type(key, other, "string")),
        }
    }

    pub(super) fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        match self.find(key) {
            None => Ok(None),
            Some(&Value::Integer(number, Kind::U32)) => Ok(u32::try_from(number).ok()),
            Some(other) => Err(wrong_type(key, other, "u32")),
        }
    }

    pub(super) fn required_u32(&self, key: &str) -> Result<u32, GgufError> {
        self.u32(key)?.ok_or_else(|| missing(key))
    }

    pub(super) fn f32(&self, key: &str) -> Result<Option<f64>, GgufError> {
        match self.find(key) {
            None => Ok(None),
            Some(&Value::Float(number, Kind::F32)) => Ok(Some(number)),
            Some(other) => Err(wrong_type(key, other, "f32")),
        }
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        match self.find(key) {
            None => Ok(None),
            Some(&Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(wrong_type(key, other, "bool")),
        }
    }

    /// A number for each of `blocks` blocks: one for all, or an array of exactly as many.
    pub(super) fn per_block(&self, key: &str, blocks: u32) -> Result<Option<Vec<u32>>, GgufError> {
        let blocks = blocks as usize;
        match self.find(key) {
            None => Ok(None),
            Some(Value::Array(Kind::U32 | Kind::I32, len, Items::Integers(items))) => {
                if items.len() != blocks {
                    return Err(bad(
                        key,
                        format!("an array of {len}"),
                        format!("{blocks} numbers, one per block"),
                    ));
                }
                items
                    .iter()
                    .map(|&item| {
                        u32::try_from(item).map_err(|_| bad(key, item, "numbers of at least 0"))
                    })
                    .collect::<Result<_, _>>()
                    .map(Some)
            }
            Some(Value::Array(Kind::U32 | Kind::I32, len, _)) => Err(bad(
                key,
                format!("an array of {len}"),
                format!("{blocks} numbers, one per block"),
            )),
            Some(&Value::Integer(number, Kind::U32)) => Ok(Some(vec![
                u32::try_from(number)
                    .unwrap_or(u32::MAX);
                blocks
            ])),
            Some(other) => Err(wrong_type(key, other, "u32, or an array of u32 or i32")),
        }
    }

    /// The texts of an array, to be read through [`as_c`].
    pub(super) fn texts(&self, key: &str) -> Result<Option<&[String]>, GgufError> {
        match self.find(key) {
            None => Ok(None),
            Some(Value::Array(Kind::Text, _, Items::Texts(texts))) => Ok(Some(texts)),
            Some(other) => Err(wrong_type(key, other, "array of string")),
        }
    }
}

fn read_value<R: Read + Seek>(source: &mut Source<R>, key: &str) -> Result<Value, GgufError> {
    let code = source.u32()?;
    match kind(code, key)? {
        Kind::Array => read_array(source, key),
        Kind::Text => read_text(source, key),
        kind => read_number(source, key, kind),
    }
}

fn kind(code: u32, key: &str) -> Result<Kind, GgufError> {
    Kind::from_code(code).ok_or_else(|| GgufError::ValueType {
        key: shown(key),
        code,
    })
}

fn read_text<R: Read + Seek>(source: &mut Source<R>, key: &str) -> Result<Value, GgufError> {
    match source.text(MOST_TEXT_BYTES) {
        Ok(text) => Ok(Value::Text(text)),
        // Some converters embed a whole `tokenizer.json`; only its length matters here. A template
        // or name that long is refused when it is asked for.
        Err(GgufError::TooLarge { found, .. }) if !key.starts_with("tokenizer.chat_template") => {
            source.skip(found)?;
            Ok(Value::LongText)
        }
        Err(error) => Err(error),
    }
}

#[expect(
    clippy::cast_possible_wrap,
    reason = "the same bits, read as the signed type they are stored in"
)]
fn read_number<R: Read + Seek>(
    source: &mut Source<R>,
    key: &str,
    kind: Kind,
) -> Result<Value, GgufError> {
    let number = match kind {
        Kind::U8 => source.u8()?.into(),
        Kind::I8 => (source.u8()? as i8).into(),
        Kind::U16 => source.u16()?.into(),
        Kind::I16 => (source.u16()? as i16).into(),
        Kind::U32 => source.u32()?.into(),
        Kind::I32 => (source.u32()? as i32).into(),
        Kind::U64 => source.u64()?.into(),
        Kind::I64 => (source.u64()? as i64).into(),
        Kind::F32 => return Ok(Value::Float(f32::from_bits(source.u32()?).into(), kind)),
        Kind::F64 => return Ok(Value::Float(f64::from_bits(source.u64()?), kind)),
        Kind::Bool | Kind::Text | Kind::Array => {
            return match source.u8()? {
                0 => Ok(Value::Bool(false)),
                1 => Ok(Value::Bool(true)),
                other => Err(bad(key, other, "a bool, 0 or 1")),
            };
        }
    };
    Ok(Value::Integer(number, kind))
}

fn read_array<R: Read + Seek>(source: &mut Source<R>, key: &str) -> Result<Value, GgufError> {
    let code = source.u32()?;
    let kind = kind(code, key)?;
    if kind == Kind::Array {
        return Err(GgufError::ValueType {
            key: shown(key),
            code,
        });
    }
    let len = source.u64()?;
    let Some(bytes) = len.checked_mul(kind.bytes()) else {
        return Err(too_many(
            &format!("the length of {}", value_of(key)),
            len,
            MOST_NUMBERS,
        ));
    };
    source.expect(bytes)?;
    let kept = KEPT.contains(&key);
    if kind == Kind::Text {
        return read_texts(source, key, len, kept);
    }
    if !kept && len > SHORT {
        source.skip(bytes)?;
        return Ok(Value::Array(kind, len, Items::Skipped));
    }
    if len > MOST_NUMBERS {
        return Err(too_many(
            &format!("the length of {}", value_of(key)),
            len,
            MOST_NUMBERS,
        ));
    }
    let items = read_items(source, key, kind, len)?;
    Ok(Value::Array(kind, len, items))
}

fn read_texts<R: Read + Seek>(
    source: &mut Source<R>,
    key: &str,
    len: u64,
    kept: bool,
) -> Result<Value, GgufError> {
    if len > MOST_TEXTS {
        return Err(too_many(
            &format!("the length of {}", value_of(key)),
            len,
            MOST_TEXTS,
        ));
    }
    let mut texts = Vec::new();
    for _ in 0..len {
        if kept {
            texts.push(source.text(MOST_TEXT_BYTES)?);
        } else {
            source.skip_text()?;
        }
    }
    let items = if kept {
        Items::Texts(texts)
    } else {
        Items::Skipped
    };
    Ok(Value::Array(Kind::Text, len, items))
}

fn read_items<R: Read + Seek>(
    source: &mut Source<R>,
    key: &str,
    kind: Kind,
    len: u64,
) -> Result<Items, GgufError> {
    if matches!(kind, Kind::F32 | Kind::F64) {
        let mut floats = Vec::new();
        for _ in 0..len {
            if let Value::Float(number, _) = read_number(source, key, kind)? {
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "llama.cpp reads no f64 arrays"
                )]
                floats.push(number as f32);
            }
        }
        return Ok(Items::Floats(floats));
    }
    let mut integers = Vec::new();
    for _ in 0..len {
        integers.push(match read_number(source, key, kind)? {
            Value::Integer(number, _) => i64::try_from(number).unwrap_or(i64::MAX),
            Value::Bool(flag) => flag.into(),
            _ => 0,
        });
    }
    Ok(Items::Integers(integers))
}

/// A text of an array as llama.cpp sees it: up to the first zero byte.
pub(super) fn as_c(text: &str) -> &str {
    text.split('\0').next().unwrap_or_default()
}

pub(super) fn missing(key: &str) -> GgufError {
    GgufError::MissingKey { key: key.into() }
}

pub(super) fn bad(key: &str, found: impl fmt::Display, expected: impl Into<String>) -> GgufError {
    GgufError::BadValue {
        key: key.into(),
        found: found.to_string(),
        expected: expected.into(),
    }
}

pub(super) fn wrong_type(key: &str, found: &Value, expected: &'static str) -> GgufError {
    GgufError::WrongType {
        key: key.into(),
        found: found.kind(),
        expected,
    }
}

fn too_many(what: &str, found: u64, limit: u64) -> GgufError {
    GgufError::TooLarge {
        what: what.into(),
        found,
        limit,
    }
}
