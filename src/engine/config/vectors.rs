//! The settings of a model about vectors: whether it gives them, and how they are made.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Whether a model answers requests for embeddings and ranks documents. Both take a KV cache of their
/// own beside the one of the streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Embeddings {
    /// The cache is made with the first request. Running streams wait for that once.
    #[default]
    Auto,
    /// The cache is made when the model is loaded.
    On,
    /// Such requests are refused.
    Off,
}

impl Serialize for Embeddings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::On => serializer.serialize_bool(true),
            Self::Off => serializer.serialize_bool(false),
        }
    }
}

impl<'de> Deserialize<'de> for Embeddings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Embeddings;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or \"auto\"")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Embeddings, E> {
                Ok(if value {
                    Embeddings::On
                } else {
                    Embeddings::Off
                })
            }
            fn visit_str<E: Error>(self, value: &str) -> Result<Embeddings, E> {
                match value {
                    "auto" => Ok(Embeddings::Auto),
                    // The environment and flags know only text.
                    "true" => Ok(Embeddings::On),
                    "false" => Ok(Embeddings::Off),
                    other => Err(E::custom(format_args!(
                        "{other:?} is not known; write true, false or \"auto\""
                    ))),
                }
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// How the vectors of a text's tokens become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// What the file says; the last token's where it says nothing.
    #[default]
    Auto,
    /// The mean of all.
    Mean,
    /// The last token's, the only one that has seen the whole text.
    Last,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Row {
        embeddings: Embeddings,
    }

    #[test]
    fn embeddings_are_on_off_or_auto() {
        for (text, expected) in [
            ("true", Embeddings::On),
            ("false", Embeddings::Off),
            ("\"auto\"", Embeddings::Auto),
        ] {
            let row: Row = toml::from_str(&format!("embeddings = {text}")).unwrap();
            assert_eq!(row.embeddings, expected);
        }
        assert!(toml::from_str::<Row>("embeddings = \"yes\"").is_err());
        assert!(toml::from_str::<Row>("embeddings = 1").is_err());
    }
}
