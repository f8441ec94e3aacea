//! Reading JSON bodies, strictly and within bounds.
//!
//! A body may begin with one UTF-8 byte-order mark; it must be UTF-8 and one JSON value. Unknown
//! fields are ignored (clients send what other servers know), a known field given twice is refused, and
//! a value of a wrong type is refused with the path of the field at fault.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{
    Deserialize, DeserializeOwned, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use super::json;
use crate::generation::{Failure, Kind};

/// Longest excerpt of a parser's message that goes back to the caller: it quotes their own values.
const MESSAGE_MAX: usize = 300;

/// The text of a body, without its byte-order mark, if it is UTF-8 and nests at most `depth` deep.
pub(super) fn text(body: &[u8], depth: usize) -> Result<&str, Failure> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let text = std::str::from_utf8(body).map_err(|error| {
        let at = error.valid_up_to();
        malformed(format!("The body is not UTF-8: bad byte at offset {at}."))
    })?;
    if text.bytes().all(|byte| byte.is_ascii_whitespace()) {
        return Err(malformed("The body is empty; a JSON object is expected."));
    }
    match too_deep(body, depth) {
        Some(at) => Err(malformed(format!(
            "The body nests more than {depth} arrays and objects (at byte {at})."
        ))),
        None => Ok(text),
    }
}

/// A typed object from the whole of `text`. (Serde would read a struct from an array, too.)
pub(super) fn object<T: DeserializeOwned>(text: &str) -> Result<T, Failure> {
    if text.trim_start().starts_with('{') {
        typed(text)
    } else {
        Err(malformed("The body must be a JSON object."))
    }
}

/// A typed value from the whole of `text`.
pub(super) fn typed<T: DeserializeOwned>(text: &str) -> Result<T, Failure> {
    let mut parser = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut parser).map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        let failure = if error.is_data() {
            Failure::new(Kind::Invalid, sentence("", &error))
        } else {
            malformed(sentence("The body is not valid JSON: ", &error))
        };
        // The root is ".", and a place where no key was read yet "?".
        if path == "." || path.contains('?') {
            failure
        } else {
            failure.with_param(path)
        }
    })?;
    parser
        .end()
        .map_err(|error| malformed(sentence("The body is not valid JSON: ", &error)))?;
    Ok(value)
}

fn malformed(message: impl Into<std::borrow::Cow<'static, str>>) -> Failure {
    Failure::new(Kind::Invalid, message).with_code("malformed_body")
}

/// A parser's message as a sentence, cut to a length that cannot be abused.
fn sentence(before: &str, error: &serde_json::Error) -> String {
    let message = error.to_string();
    let end = message.floor_char_boundary(MESSAGE_MAX);
    let mut text = format!("{before}{}", &message[..end]);
    if before.is_empty()
        && let Some(first) = text.get_mut(..1)
    {
        first.make_ascii_uppercase();
    }
    text.push_str(if end < message.len() { "…" } else { "." });
    text
}

/// Where `json` first nests deeper than `depth`, if it does. Exact for valid JSON; for anything else the
/// parser has the word.
fn too_deep(json: &[u8], depth: usize) -> Option<usize> {
    const BLOCK: usize = 16;
    let mut open = 0_usize;
    let mut in_string = false;
    let mut at = 0;
    while let Some(&byte) = json.get(at) {
        if in_string {
            if let Some(block) = json.get(at..at + BLOCK)
                && json::plain(block)
            {
                at += BLOCK;
                continue;
            }
            match byte {
                b'"' => in_string = false,
                b'\\' => at += 1,
                _ => {}
            }
        } else {
            match byte {
                b'"' => in_string = true,
                b'[' | b'{' => {
                    open += 1;
                    if open > depth {
                        return Some(at);
                    }
                }
                b']' | b'}' => open = open.saturating_sub(1),
                _ => {}
            }
        }
        at += 1;
    }
    None
}

/// A list of at most `N` values. Longer ones are refused while they are read, so that a small body
/// cannot become a large list.
#[derive(Debug)]
pub(super) struct Bounded<T, const N: usize>(pub(super) Vec<T>);

impl<T, const N: usize> Default for Bounded<T, N> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for Bounded<T, N> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T, const N: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for List<T, N> {
            type Value = Bounded<T, N>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                list(&mut seq, N, Vec::new()).map(Bounded)
            }
        }
        deserializer.deserialize_seq(List(PhantomData))
    }
}

/// Appends the rest of `seq` to `values`, up to `bound` in all.
pub(super) fn list<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(
    seq: &mut A,
    bound: usize,
    mut values: Vec<T>,
) -> Result<Vec<T>, A::Error> {
    while let Some(value) = seq.next_element()? {
        if values.len() == bound {
            return Err(A::Error::custom(format_args!(
                "more than {bound} values in the array"
            )));
        }
        values.push(value);
    }
    Ok(values)
}

/// A string, or a list of at most `N` of them.
#[derive(Debug)]
pub(super) enum OneOrMany<T, const N: usize> {
    /// The string.
    One(String),
    /// The list.
    Many(Vec<T>),
}

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for OneOrMany<T, N> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T, const N: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for Either<T, N> {
            type Value = OneOrMany<T, N>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(OneOrMany::One(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                list(&mut seq, N, Vec::new()).map(OneOrMany::Many)
            }
        }
        deserializer.deserialize_any(Either(PhantomData))
    }
}

/// A field that this server does not serve: what matters is only whether it asks for anything.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unserved {
    /// False, zero, an empty string, list or object.
    Empty,
    /// A string.
    Word(String),
    /// Anything else.
    Full,
}

impl<'de> Deserialize<'de> for Unserved {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Unserved;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Unserved, E> {
                Ok(full_if(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Unserved, E> {
                Ok(full_if(value != 0))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Unserved, E> {
                Ok(full_if(value != 0))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Unserved, E> {
                Ok(full_if(value != 0.0))
            }
            fn visit_unit<E>(self) -> Result<Unserved, E> {
                Ok(Unserved::Empty)
            }
            fn visit_str<E>(self, value: &str) -> Result<Unserved, E> {
                Ok(if value.is_empty() {
                    Unserved::Empty
                } else {
                    Unserved::Word(value.to_owned())
                })
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Unserved, A::Error> {
                let mut any = false;
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    any = true;
                }
                Ok(full_if(any))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unserved, A::Error> {
                let mut any = false;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    any = true;
                }
                Ok(full_if(any))
            }
        }
        fn full_if(any: bool) -> Unserved {
            if any { Unserved::Full } else { Unserved::Empty }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Body {
        list: Bounded<u32, 3>,
        inner: Vec<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "read for its type only")]
    struct Inner {
        number: f64,
    }

    fn body(bytes: &[u8]) -> Result<Body, Failure> {
        object(text(bytes, 4)?)
    }

    #[test]
    fn one_byte_order_mark_at_the_head_is_skipped_and_a_second_is_not() {
        assert!(body(b"\xef\xbb\xbf{}").is_ok());
        let failure = body(b"\xef\xbb\xbf\xef\xbb\xbf{}").unwrap_err();
        assert_eq!(failure.code, Some("malformed_body"));
    }

    #[test]
    fn a_wrong_type_names_the_path_of_its_field() {
        let failure = body(br#"{"inner":[{"number":1},{"number":"x"}]}"#).unwrap_err();
        assert_eq!(failure.param.as_deref(), Some("inner[1].number"));
        assert!(failure.message.contains("line 1 column"), "{failure}");
    }

    #[test]
    fn hostile_bodies_are_failures() {
        let deep = "[".repeat(100_000);
        let long = format!("{{\"inner\":\"{}\"}}", "x".repeat(100_000));
        let table: &[(&[u8], &str)] = &[
            (b"", "empty"),
            (b" \n", "empty"),
            (deep.as_bytes(), "nests more than 4"),
            (br#"{"a":[[[[]]]]}"#, "nests more than 4"),
            (b"{\"list\":[1,2,3,4]}", "more than 3"),
            (br#"{"list":[],"list":[]}"#, "uplicate field"),
            (br#"{"inner":[{"number":1e999}]}"#, "out of range"),
            (br#"{"inner":[{"number":NaN}]}"#, "not valid JSON"),
            (b"{} {}", "trailing"),
            (b"[[1]]", "must be a JSON object"),
            (b"{\"x\":\"\xff\"}", "not UTF-8"),
            (b"{", "EOF"),
            (long.as_bytes(), "invalid type"),
        ];
        for &(bytes, expected) in table {
            let failure = body(bytes).unwrap_err();
            assert_eq!(failure.kind, Kind::Invalid);
            assert!(
                failure
                    .message
                    .to_lowercase()
                    .contains(&expected.to_lowercase()),
                "{expected}: {failure}"
            );
            assert!(failure.message.len() < 400, "{failure}");
        }
    }

    #[test]
    fn brackets_inside_strings_are_not_depth() {
        assert!(body(br#"{"a":"[[[[[[[[[[[[[[[[[[[[\"[[[[[[[[[","b":["\\"]}"#).is_ok());
    }

    proptest! {
        #[test]
        fn the_depth_scan_agrees_with_a_parser(
            text in r#"\{"a":"[\[\]"\\a-c]{0,40}",?[\[\]{}":a]{0,10}"#,
            depth in 0_usize..6,
        ) {
            fn nested(value: &serde_json::Value) -> usize {
                match value {
                    serde_json::Value::Array(list) => 1 + list.iter().map(nested).max().unwrap_or(0),
                    serde_json::Value::Object(map) => 1 + map.values().map(nested).max().unwrap_or(0),
                    _ => 0,
                }
            }
            if let Ok(value) = serde_json::from_str::<serde_json::Value>(&text) {
                prop_assert_eq!(too_deep(text.as_bytes(), depth).is_some(), nested(&value) > depth);
            }
        }
    }
}
