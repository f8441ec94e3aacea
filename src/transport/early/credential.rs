//! What the headers of a request show of its caller.

use axum::http::{HeaderMap, HeaderName, header};

/// Where SDKs of other makes put the key.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The credential of a request.
#[derive(Clone, Copy)]
pub(in crate::transport) struct Credential<'h> {
    /// What is shown; empty if nothing is.
    pub(in crate::transport) text: &'h str,
    /// Whether that is all: there are not two that differ, and no header that cannot be read.
    pub(in crate::transport) is_clear: bool,
}

/// The credential in `Authorization: Bearer` (RFC 6750, section 2.1) or `x-api-key`. Other schemes are none of
/// ours: somebody before us may ask for them. Nobody shall judge one credential and serve another, so a
/// header that is there twice counts for nothing.
pub(in crate::transport) fn credential(headers: &HeaderMap) -> Credential<'_> {
    let bearer = only(headers, &header::AUTHORIZATION).map(|value| {
        let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
        let is_ours = scheme.eq_ignore_ascii_case("bearer");
        if is_ours { token.trim() } else { "" }
    });
    let key = only(headers, &API_KEY).map(str::trim);
    match (bearer, key) {
        (Ok(bearer), Ok(key)) => Credential {
            text: if bearer.is_empty() { key } else { bearer },
            is_clear: bearer.is_empty() || key.is_empty() || bearer == key,
        },
        (bearer, _) => Credential {
            text: bearer.unwrap_or_default(),
            is_clear: false,
        },
    }
}

/// A header is there twice, or is no text.
struct Unclear;

/// The text of a header; empty without one.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<&'h str, Unclear> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok("");
    };
    if values.next().is_some() {
        return Err(Unclear);
    }
    value.to_str().map_err(|_| Unclear)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn shown(bearer: &[&str], keys: &[&str]) -> (String, bool) {
        let mut headers = HeaderMap::new();
        let mut add = |name: HeaderName, values: &[&str]| {
            for value in values {
                headers.append(&name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
            }
        };
        add(header::AUTHORIZATION, bearer);
        add(API_KEY, keys);
        let credential = credential(&headers);
        (credential.text.to_owned(), credential.is_clear)
    }

    #[test]
    fn the_credential_is_what_follows_bearer_or_the_key() {
        for (bearer, keys, text, is_clear) in [
            (&["Bearer sgb1.x"][..], &[][..], "sgb1.x", true),
            (&["bearer  sgb1.x "], &[], "sgb1.x", true),
            (&["Basic sgb1.x"], &[], "", true),
            (&["Bearer"], &[], "", true),
            (&["Bearer "], &["k"], "k", true),
            (&["sgb1.x"], &[], "", true),
            (&[], &[], "", true),
            (&[], &[" k "], "k", true),
            (&["Basic x"], &["k"], "k", true),
            (&["Bearer k"], &["k"], "k", true),
            (&["Bearer k"], &["l"], "k", false),
            // Nobody shall judge one and serve the other.
            (&["Bearer a", "Bearer b"], &[], "", false),
            (&["Bearer a", "Bearer a"], &["a"], "", false),
            (&[], &["a", "b"], "", false),
            (&["Bearer \u{e9}"], &[], "", false),
            (&["Bearer a"], &["\u{e9}"], "a", false),
        ] {
            let expected = (text.to_owned(), is_clear);
            assert_eq!(shown(bearer, keys), expected, "{bearer:?} {keys:?}");
        }
    }

    proptest! {
        #[test]
        fn any_headers_show_something_or_nothing(
            bearer in proptest::collection::vec("(?i:bearer )?[ -~\u{80}-\u{ff}]{0,20}", 0..3),
            keys in proptest::collection::vec("[ -~\u{80}-\u{ff}]{0,20}", 0..3),
        ) {
            let bearer: Vec<_> = bearer.iter().map(|text| &**text).collect();
            let keys: Vec<_> = keys.iter().map(|text| &**text).collect();
            let (text, is_clear) = shown(&bearer, &keys);
            let is_there = |all: &[&str]| all.iter().any(|one| one.contains(&*text));
            prop_assert!(text.is_empty() || is_there(&bearer) || is_there(&keys));
            prop_assert!(!is_clear || (bearer.len() < 2 && keys.len() < 2));
        }
    }
}
