//! Any bytes as a header, a key, a key file, a JWT or a bound token: nothing breaks, and nobody is believed who has
//! no secret.
#![no_main]

#[path = "../../src/auth/mod.rs"]
#[allow(dead_code, unused_imports, reason = "only a part of it is called here")]
mod auth;
#[path = "../../src/generation/caller.rs"]
#[allow(dead_code, reason = "nobody asks for all of it here")]
mod caller;
#[path = "../../src/generation/failure.rs"]
#[allow(dead_code, reason = "only refusals come from here")]
mod failure;
#[path = "../../src/generation/outcome.rs"]
#[allow(dead_code, reason = "only refusals come from here")]
mod outcome;
#[path = "../../src/transport"]
mod transport {
    #[path = "early/credential.rs"]
    mod credential;

    /// Nobody else knows how headers are read.
    pub(super) fn shown(headers: &axum::http::HeaderMap) -> (&str, bool) {
        let credential = credential::credential(headers);
        (credential.text, credential.is_clear)
    }
}

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use self::failure::Failure;
use self::outcome::Outcome;

/// What of it `auth` knows.
mod generation {
    pub use super::caller::{Caller, Rights, Scopes};
    pub use super::failure::{Failure, Kind};
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    auth::fuzz::credentials(bytes);
    let mut headers = HeaderMap::new();
    for (at, value) in bytes.split(|byte| *byte == b'\n').take(4).enumerate() {
        let name = [header::AUTHORIZATION, HeaderName::from_static("x-api-key")][at % 2].clone();
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(name, value);
        }
    }
    let (text, is_clear) = transport::shown(&headers);
    let is_there = |value: &HeaderValue| value.to_str().is_ok_and(|value| value.contains(text));
    assert!(text.is_empty() || headers.values().any(is_there), "made up");
    assert!(!is_clear || headers.len() == headers.keys_len(), "one of two is taken");
});
