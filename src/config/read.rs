//! From merged values to typed sections, with every problem found at once.
//!
//! serde stops at the first error. So what it stopped at is noted and taken out, and the rest is
//! read again, until nothing is wrong any more: each round removes a node, so it ends.

use serde::de::{
    self, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
    VariantAccess, Visitor,
};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};

use super::error::{Origin, Problem};
use super::keys;
use super::tree::{Node, Step, Value};

/// Reads a `T` out of `root`. On problems, `root` loses what they were found in.
pub(super) fn read<'de, T: Deserialize<'de>>(root: &mut Node) -> Result<T, Vec<Problem>> {
    let mut found: Vec<(Vec<Step>, Problem)> = Vec::new();
    loop {
        let error = match T::deserialize(Reader(root)) {
            Ok(value) if found.is_empty() => return Ok(value),
            Ok(_) => break,
            Err(error) => error,
        };
        let path: Vec<Step> = error.path.into_iter().rev().collect();
        // A table that lost a wrong key may now miss it: that is the same problem, not another.
        if !found.iter().any(|(known, _)| known.starts_with(&path)) {
            let problem = Problem {
                origin: error.origin.or_else(|| root.origin_of(&path)),
                message: error.what.describe(&path),
            };
            found.push((path.clone(), problem));
        }
        if !root.remove(&path) {
            break;
        }
    }
    let mut problems: Vec<_> = found.into_iter().map(|(_, problem)| problem).collect();
    problems.sort();
    Err(problems)
}

/// A path as a person writes it: `models[0].path`.
pub(super) fn path_text(path: &[Step]) -> String {
    path.iter().fold(String::new(), |text, step| match step {
        Step::Index(index) => format!("{text}[{index}]"),
        Step::Key(key) if text.is_empty() => key.clone(),
        Step::Key(key) => format!("{text}.{key}"),
    })
}

/// What a section says when it cannot be read.
#[derive(Debug)]
struct ReadError {
    what: What,
    /// From the innermost step outwards: it grows on the way up.
    path: Vec<Step>,
    origin: Option<Origin>,
}

#[derive(Debug)]
enum What {
    UnknownKey(&'static [&'static str]),
    UnknownWord {
        word: String,
        known: &'static [&'static str],
    },
    Other(String),
}

impl What {
    fn describe(&self, path: &[Step]) -> String {
        let name = path_text(path);
        match self {
            Self::UnknownKey(known) => {
                let hint = keys::suggest(path, known);
                hint.map_or_else(
                    || format!("unknown key {name}"),
                    |near| format!("unknown key {name}; did you mean {near}?"),
                )
            }
            Self::UnknownWord { word, known } => {
                let all = known
                    .iter()
                    .map(|word| format!("{word:?}"))
                    .collect::<Vec<_>>()
                    .join(", ");
                let near = keys::nearest(word, known.iter().copied())
                    .map_or_else(String::new, |near| format!(" (did you mean {near:?}?)"));
                format!("{name}: {word:?} is not one of {all}{near}")
            }
            Self::Other(message) if name.is_empty() => message.clone(),
            Self::Other(message) => format!("{name}: {message}"),
        }
    }
}

impl ReadError {
    fn new(what: What) -> Self {
        Self {
            what,
            path: Vec::new(),
            origin: None,
        }
    }

    /// Adds where it happened, seen from one level further out.
    fn at(mut self, step: Step, node: &Node) -> Self {
        self.path.push(step);
        if self.origin.is_none() {
            self.origin.clone_from(&node.origin);
        }
        self
    }
}

impl std::fmt::Display for ReadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path: Vec<Step> = self.path.iter().rev().cloned().collect();
        f.write_str(&self.what.describe(&path))
    }
}

impl std::error::Error for ReadError {}

impl de::Error for ReadError {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self::new(What::Other(message.to_string()))
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::custom(format_args!("{found} where {} is needed", plain(expected)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::custom(format_args!(
            "{found} does not fit; needed is {}",
            plain(expected)
        ))
    }

    fn unknown_field(_: &str, expected: &'static [&'static str]) -> Self {
        Self::new(What::UnknownKey(expected))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(What::UnknownWord {
            word: variant.to_owned(),
            known: expected,
        })
    }
}

/// What was expected, without Rust's names for numbers.
fn plain(expected: &dyn de::Expected) -> String {
    let text = expected.to_string();
    let (nonzero, kind) = match text.strip_prefix("a nonzero ") {
        Some(kind) => (true, kind),
        None => (false, text.as_str()),
    };
    let bits = match kind {
        "u8" => 8,
        "u16" => 16,
        "u32" => 32,
        "u64" | "usize" => 64,
        "f32" | "f64" => return "a number".to_owned(),
        _ => return text,
    };
    let max = u64::MAX >> (64 - bits);
    format!("a whole number from {} to {max}", u8::from(nonzero))
}

#[derive(Clone, Copy)]
struct Reader<'a>(&'a Node);

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.0.value {
            Value::Boolean(value) => visitor.visit_bool(*value),
            Value::Integer(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::String(text) => visitor.visit_str(text),
            Value::Datetime(text) => Err(de::Error::invalid_type(
                Unexpected::Other(&format!("date {text}")),
                &visitor,
            )),
            Value::Array(list) => visitor.visit_seq(List(list.iter())),
            Value::Table(entries) => visitor.visit_map(Table {
                entries: entries.iter(),
                value: None,
            }),
        }
    }

    // A key that is there has a value: TOML has no null.
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        match &self.0.value {
            Value::String(word) => visitor.visit_enum(Word(word)),
            _ => Err(de::Error::invalid_type(
                self.unexpected(),
                &"a word in quotes",
            )),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

impl Reader<'_> {
    fn unexpected(&self) -> Unexpected<'_> {
        match &self.0.value {
            Value::Boolean(value) => Unexpected::Bool(*value),
            Value::Integer(value) => Unexpected::Signed(*value),
            Value::Float(value) => Unexpected::Float(*value),
            Value::String(text) | Value::Datetime(text) => Unexpected::Str(text),
            Value::Array(_) => Unexpected::Seq,
            Value::Table(_) => Unexpected::Map,
        }
    }
}

struct List<'a>(std::slice::Iter<'a, (usize, Node)>);

impl<'de> SeqAccess<'de> for List<'_> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, ReadError> {
        let Some((index, node)) = self.0.next() else {
            return Ok(None);
        };
        seed.deserialize(Reader(node))
            .map(Some)
            .map_err(|error| error.at(Step::Index(*index), node))
    }
}

struct Table<'a> {
    entries: std::collections::btree_map::Iter<'a, String, Node>,
    value: Option<(&'a str, &'a Node)>,
}

impl<'de> MapAccess<'de> for Table<'_> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, ReadError> {
        let Some((key, node)) = self.entries.next() else {
            return Ok(None);
        };
        self.value = Some((key, node));
        let key_reader: de::value::StrDeserializer<'_, ReadError> =
            key.as_str().into_deserializer();
        seed.deserialize(key_reader)
            .map(Some)
            .map_err(|error| error.at(Step::Key(key.clone()), node))
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, ReadError> {
        let Some((key, node)) = self.value.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        seed.deserialize(Reader(node))
            .map_err(|error| error.at(Step::Key(key.to_owned()), node))
    }
}

struct Word<'a>(&'a str);

impl<'de> EnumAccess<'de> for Word<'_> {
    type Error = ReadError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), ReadError> {
        let reader: de::value::StrDeserializer<'_, ReadError> = self.0.into_deserializer();
        Ok((seed.deserialize(reader)?, self))
    }
}

impl<'de> VariantAccess<'de> for Word<'_> {
    type Error = ReadError;

    fn unit_variant(self) -> Result<(), ReadError> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, ReadError> {
        Err(self.bare())
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, ReadError> {
        Err(self.bare())
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, ReadError> {
        Err(self.bare())
    }
}

impl Word<'_> {
    fn bare(&self) -> ReadError {
        de::Error::custom(format_args!("{:?} needs a value of its own", self.0))
    }
}
