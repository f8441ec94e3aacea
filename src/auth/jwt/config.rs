//! `[auth.jwt]`: whose tokens are believed, and what their claims say about the caller.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::{self, Error as _};
use serde::{Deserialize, Deserializer};

use super::keys;
use crate::generation::Scopes;

/// Clocks that are further apart than this are to be mended, not allowed for.
const MOST_LEEWAY: Duration = Duration::from_mins(10);

/// `[auth.jwt]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Jwt {
    /// A JWK set (RFC 7517, section 5), read again when it changes.
    pub jwks_file: Option<PathBuf>,
    /// Keys beside those of the set.
    pub keys: Vec<Key>,
    /// Who may have issued a token: one or several; absent: not looked at.
    #[serde(deserialize_with = "names")]
    pub issuer: Vec<Box<str>>,
    /// Whom a token must be meant for. Absent is an error: a token that was given to another service would
    /// open this one too.
    #[serde(deserialize_with = "audience")]
    pub audience: Option<Audience>,
    /// How far the issuer's clock may be off.
    #[serde(deserialize_with = "leeway")]
    pub leeway: Duration,
    /// The claim that says who the caller is.
    pub identity_claim: Box<str>,
    /// The claim that says who pays.
    pub organization_claim: Option<Box<str>>,
    /// The claim that says what the caller may do: scopes in a list, or in one text with spaces between.
    pub scope_claim: Box<str>,
    /// What the caller may do if the token does not say so.
    #[serde(deserialize_with = "scopes")]
    pub default_scopes: Scopes,
    /// The claim that lists the models that the caller may use; without it, every one.
    pub models_claim: Option<Box<str>>,
    /// The claim that names the caller's class of limits.
    pub class_claim: Option<Box<str>>,
}

/// `[[auth.jwt.keys]]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// What tokens call it in `kid`.
    pub id: Box<str>,
    /// The one algorithm that it serves.
    pub algorithm: Algorithm,
    /// The public key as PEM (`PUBLIC KEY`), for all but HS256.
    #[serde(default)]
    pub public_key_file: Option<PathBuf>,
    /// The secret, at least 32 bytes, for HS256.
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
}

/// What a key is used with (RFC 7518, section 3.1; RFC 8037).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Algorithm {
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
    /// ECDSA on P-256 with SHA-256.
    #[serde(rename = "ES256")]
    Es256,
    /// RSA with PKCS #1 v1.5 padding and SHA-256.
    #[serde(rename = "RS256")]
    Rs256,
    /// HMAC with SHA-256.
    #[serde(rename = "HS256")]
    Hs256,
}

/// Whom a token must be meant for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Whomever it likes.
    Any,
    /// One of these.
    OneOf(Vec<Box<str>>),
}

impl Default for Jwt {
    fn default() -> Self {
        Self {
            jwks_file: None,
            keys: Vec::new(),
            issuer: Vec::new(),
            audience: None,
            leeway: Duration::from_secs(30),
            identity_claim: "sub".into(),
            organization_claim: None,
            scope_claim: "scope".into(),
            default_scopes: Scopes::GENERATE.with(Scopes::EMBED),
            models_claim: None,
            class_claim: None,
        }
    }
}

impl Jwt {
    /// What is wrong with the section as a whole, each with the key at fault. Reads the files that it
    /// names, so that what is accepted here can be used.
    #[must_use]
    pub fn conflicts(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        if self.audience.is_none() {
            found.push((
                "audience",
                "must name this service as its issuer does, or be \"any\": tokens that were given to other \
                 services would be believed here"
                    .into(),
            ));
        }
        if let Err(fault) = keys::load(self) {
            found.push((fault.key, fault.message));
        }
        found
    }
}

/// One text or a list of them, none of them empty.
fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Box<str>>, D::Error> {
    struct Visitor;

    impl<'de> de::Visitor<'de> for Visitor {
        type Value = Vec<Box<str>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text, or a list of texts, none of them empty")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            if text.is_empty() {
                return Err(E::invalid_value(de::Unexpected::Str(text), &self));
            }
            Ok(vec![text.into()])
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut names = Vec::new();
            while let Some(text) = list.next_element::<Box<str>>()? {
                if text.is_empty() {
                    return Err(A::Error::invalid_value(de::Unexpected::Str(&text), &self));
                }
                names.push(text);
            }
            if names.is_empty() {
                return Err(A::Error::invalid_length(0, &self));
            }
            Ok(names)
        }
    }

    deserializer.deserialize_any(Visitor)
}

fn audience<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Audience>, D::Error> {
    let names = names(deserializer)?;
    Ok(Some(match &names[..] {
        [any] if **any == *"any" => Audience::Any,
        _ => Audience::OneOf(names),
    }))
}

fn leeway<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let leeway: Duration = humantime_serde::deserialize(deserializer)?;
    if leeway > MOST_LEEWAY {
        return Err(D::Error::custom("must be at most 10m"));
    }
    Ok(leeway)
}

fn scopes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Scopes, D::Error> {
    let mut scopes = Scopes::NONE;
    for name in Vec::<String>::deserialize(deserializer)? {
        let Some(scope) = Scopes::parse(&name) else {
            let known: Vec<_> = Scopes::ALL.names().collect();
            return Err(D::Error::custom(format_args!(
                "{name:?} is no scope; known are {}",
                known.join(", ")
            )));
        };
        scopes = scopes.with(scope);
    }
    Ok(scopes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Jwt, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn one_name_or_a_list_of_them() {
        let good = read("issuer = 'a'\naudience = ['x', 'any']").unwrap();
        assert_eq!(good.issuer, [Box::from("a")]);
        let both = vec!["x".into(), "any".into()];
        assert_eq!(good.audience, Some(Audience::OneOf(both)));
        assert_eq!(
            read("audience = 'any'").unwrap().audience,
            Some(Audience::Any)
        );
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for bad in [
            "issuer = ''",
            "issuer = []",
            "issuer = ['']",
            "audience = 5",
            "leeway = '11m'",
            "default_scopes = ['ops']",
            "default_scopes = 'generate'",
            "[[keys]]\nid = 'a'",
            "[[keys]]\nid = 'a'\nalgorithm = 'none'",
            "[[keys]]\nid = 'a'\nalgorithm = 'HS512'",
            "[[keys]]\nid = 'a'\nalgorithm = 'HS256'\nsecret = 'x'",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let none = read("default_scopes = []").unwrap();
        assert_eq!(none.default_scopes, Scopes::NONE);
    }

    #[test]
    fn an_audience_must_be_named_or_waived() {
        let faults = |text: &str| {
            let conflicts = read(text).unwrap().conflicts();
            conflicts
                .into_iter()
                .map(|(key, _)| key)
                .collect::<Vec<_>>()
        };
        assert_eq!(faults(""), ["audience", "jwks_file"]);
        assert_eq!(faults("audience = 'any'"), ["jwks_file"]);
        assert_eq!(
            faults("audience = 'any'\njwks_file = '/nowhere'"),
            ["jwks_file"]
        );
        let key = "audience = 'any'\n[[keys]]\nid = 'a'\nalgorithm = 'HS256'";
        assert_eq!(faults(key), ["keys"]);
    }
}
