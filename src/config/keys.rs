//! Every key there is, learnt from the sections themselves.
//!
//! The sections' `Deserialize` is run against a source that has nothing to give but writes down
//! which fields it is asked for. So suggestions and the test of the reference file know each key the
//! moment it exists.

use std::sync::OnceLock;

use serde::de::{
    self, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor, value::Error,
};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};

use super::Config;
use super::tree::Step;

/// Every key with its section (`server.listen`, `models.script.text`), in the order of the structs.
/// Sections and lists of tables are listed before what they hold.
pub(super) fn all() -> &'static [String] {
    static ALL: OnceLock<Vec<String>> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut found: Vec<String> = fields(&[]).iter().map(|&key| key.to_owned()).collect();
        let mut next = 0;
        while let Some(path) = found.get(next) {
            let steps: Vec<&str> = path.split('.').collect();
            let below: Vec<String> = fields(&steps)
                .iter()
                .map(|key| format!("{path}.{key}"))
                .collect();
            next += 1;
            found.splice(next..next, below);
        }
        found
    })
}

/// The fields of the section that `path` leads to; none if it leads to a plain value.
fn fields(path: &[&str]) -> &'static [&'static str] {
    let mut found: &[&str] = &[];
    // There is nothing to read, so the answer is always an error; what counts is the asking.
    let _ = Config::deserialize(Asker {
        path,
        found: &mut found,
    });
    found
}

/// The key that was probably meant by the last step of `path`, where `siblings` would have fit.
pub(super) fn suggest(path: &[Step], siblings: &[&str]) -> Option<String> {
    let (Step::Key(word), above) = path.split_last()? else {
        return None;
    };
    let near = nearest(word, siblings.iter().copied());
    if near.is_none_or(|near| strsim::osa_distance(near, word) > 2) {
        // Rather than a far-fetched sibling: the same key, in the section where it belongs.
        let last = |key: &&String| key.rsplit_once('.').is_some_and(|(_, last)| last == word);
        if let Some(key) = all().iter().find(last) {
            return Some(key.clone());
        }
    }
    let mut meant = above.to_vec();
    meant.push(Step::Key(near?.to_owned()));
    Some(super::read::path_text(&meant))
}

/// The one of `known` that `word` was probably meant to be, if any is near enough.
pub(super) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase().replace('-', "_");
    known
        .map(|key| (strsim::osa_distance(key, &word), key))
        .min()
        .filter(|&(distance, key)| {
            let beginning = word.len() >= 2 && key.starts_with(&word);
            beginning || distance <= (key.len().max(word.len()) / 3).max(1)
        })
        .map(|(_, key)| key)
}

/// A source that leads down `path`, gives nothing, and notes what is asked for at its end.
struct Asker<'a> {
    path: &'a [&'a str],
    found: &'a mut &'static [&'static str],
}

impl<'de> Deserializer<'de> for Asker<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(nothing())
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if self.path.is_empty() {
            *self.found = fields;
            return Err(nothing());
        }
        visitor.visit_map(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct tuple tuple_struct map enum identifier ignored_any
    }
}

impl<'de> SeqAccess<'de> for Asker<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let element = Asker {
            path: self.path,
            found: self.found,
        };
        seed.deserialize(element).map(Some)
    }
}

impl<'de> MapAccess<'de> for Asker<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let Some(key) = self.path.first() else {
            return Ok(None);
        };
        seed.deserialize((*key).into_deserializer()).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(Asker {
            path: self.path.get(1..).unwrap_or_default(),
            found: self.found,
        })
    }
}

fn nothing() -> Error {
    de::Error::custom("nothing to read")
}
