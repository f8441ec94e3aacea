//! The JSON of REQUEST and RESPONSE: what HTTP has in its head.
//!
//! ```text
//! {"method": "POST", "path": "/v1/chat/completions", "headers": {"authorization": "Bearer …"}}
//! {"status": 200, "headers": {"content-type": "application/json", "set-cookie": ["a=1", "b=2"]}}
//! ```
//!
//! A header that comes more than once has a list of values. Keys that are not known are passed over.

use std::fmt;

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The head of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestHead {
    /// The HTTP method; POST unless it is said.
    #[serde(default = "post")]
    pub method: String,
    /// Path and query, beginning with `/`.
    pub path: String,
    /// Headers.
    #[serde(default, skip_serializing_if = "Headers::is_empty")]
    pub headers: Headers,
}

/// The head of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponseHead {
    /// The HTTP status.
    pub status: u16,
    /// Headers.
    #[serde(default)]
    pub headers: Headers,
}

/// Names and values, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first value under this name, in whatever case it is written.
    #[must_use]
    pub fn first(&self, name: &str) -> Option<&str> {
        let mut found = self.0.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.as_str())
    }
}

fn post() -> String {
    "POST".to_owned()
}

impl Serialize for Headers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (at, (name, value)) in self.0.iter().enumerate() {
            let same = |(n, _): &&(String, String)| n.eq_ignore_ascii_case(name);
            if self.0[..at].iter().any(|one| same(&one)) {
                continue;
            }
            let others = self.0[at + 1..].iter().filter(same);
            let values: Vec<&str> = others.map(|(_, value)| value.as_str()).collect();
            if values.is_empty() {
                map.serialize_entry(name, value)?;
            } else {
                let mut all = vec![value.as_str()];
                all.extend(values);
                map.serialize_entry(name, &all)?;
            }
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;

        impl<'de> Visitor<'de> for Map {
            type Value = Headers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of header names and their values")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
                let mut headers = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    for value in map.next_value::<Values>()?.0 {
                        headers.push((name.clone(), value));
                    }
                }
                Ok(Headers(headers))
            }
        }

        deserializer.deserialize_map(Map)
    }
}

/// One value or a list of them.
struct Values(Vec<String>);

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;

        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Values;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a header's value, or a list of them")
            }

            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Values, E> {
                Ok(Values(vec![value.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Values, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push(value);
                }
                Ok(Values(values))
            }
        }

        deserializer.deserialize_any(OneOrMany)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_enough() {
        let head: RequestHead = serde_json::from_str(r#"{"path":"/rpc","later":[1]}"#).unwrap();
        assert_eq!((&*head.method, &*head.path), ("POST", "/rpc"));
        assert!(head.headers.is_empty());
        assert!(serde_json::from_str::<RequestHead>(r#"{"method":"GET"}"#).is_err());
    }

    #[test]
    fn a_header_may_have_several_values() {
        let text = r#"{"status":200,"headers":{"a":["1","2"],"b":"3"}}"#;
        let head: ResponseHead = serde_json::from_str(text).unwrap();
        let pairs: Vec<_> = head.headers.0.iter().map(|(n, v)| (&**n, &**v)).collect();
        assert_eq!(pairs, [("a", "1"), ("a", "2"), ("b", "3")]);
        assert_eq!(serde_json::to_string(&head).unwrap(), text);
        assert_eq!(head.headers.first("B"), Some("3"));
    }

    #[test]
    fn what_is_no_header_is_refused() {
        for headers in [
            r#"{"a":1}"#,
            r#"{"a":{"b":"c"}}"#,
            r#"[["a","1"]]"#,
            r#""a""#,
        ] {
            let text = format!(r#"{{"path":"/","headers":{headers}}}"#);
            assert!(
                serde_json::from_str::<RequestHead>(&text).is_err(),
                "{text}"
            );
        }
    }
}
