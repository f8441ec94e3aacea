//! Where the caller stands with its limits, in the headers of every answer.
//!
//! Twice: as OpenAI's clients know it (`x-ratelimit-remaining-tokens`), by the tightest limit on requests
//! and on tokens, and as the IETF's draft has it (draft-ietf-httpapi-ratelimit-headers-10), limit by
//! limit: `RateLimit-Policy` says how much of what in which time, `RateLimit` what is left of it.

use std::fmt::{self, Display, Write};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

use super::http::{Context, caller};
use crate::limit::{Left, Standing};

/// The model that was asked for, among the extensions of an answer: its limits are told, too.
#[derive(Clone)]
pub(super) struct Asked(pub(super) String);

/// Adds the headers to an answer.
pub(super) async fn tell(State(context): State<Context>, request: Request, next: Next) -> Response {
    let caller = caller(request.extensions());
    let mut response = next.run(request).await;
    let model = response.extensions_mut().remove::<Asked>();
    let model = model.as_ref().map(|Asked(model)| &**model);
    if let Some(standing) = context.gateway.standing(&caller, model) {
        write(&standing, response.headers_mut());
    }
    response
}

/// The three headers of one kind, in OpenAI's words: limit, remaining, reset.
type Names = [&'static str; 3];

const REQUESTS: Names = [
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
];
const TOKENS: Names = [
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
];

fn write(standing: &Standing, headers: &mut HeaderMap) {
    for (names, left) in [(REQUESTS, standing.requests), (TOKENS, standing.tokens)] {
        let Some(left) = left else { continue };
        let [limit, remaining, reset] = names.map(HeaderName::from_static);
        headers.insert(limit, left.limit.into());
        headers.insert(remaining, left.remaining.into());
        insert(headers, reset, &Go(left.reset).to_string());
    }
    let list = |item: fn(&Left) -> String| {
        let items = standing.limits.iter();
        let items = items.map(|(name, left)| format!("\"{name}\"{}", item(left)));
        items.collect::<Vec<_>>().join(", ")
    };
    let policy = list(|left| format!(";q={};w={}", left.limit, seconds(left.window).max(1)));
    insert(
        headers,
        HeaderName::from_static("ratelimit-policy"),
        &policy,
    );
    let left = list(|left| format!(";r={};t={}", left.remaining, seconds(left.reset)));
    insert(headers, HeaderName::from_static("ratelimit"), &left);
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Whole seconds, rounded up: who comes back then is not too early.
fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// A duration as Go writes it: `12ms`, `1s`, `6m0s`, `1h0m0s`. Whole seconds from one on.
struct Go(Duration);

impl Display for Go {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(duration) = self;
        if !duration.is_zero() && *duration < Duration::from_secs(1) {
            let millis = duration.as_nanos().div_ceil(1_000_000);
            return if millis < 1000 {
                write!(f, "{millis}ms")
            } else {
                f.write_str("1s")
            };
        }
        let seconds = seconds(*duration);
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if hours > 0 || minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        write!(f, "{}", seconds % 60)?;
        f.write_char('s')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_writes_them() {
        let table = [
            (0, "0s"),
            (1, "1ms"),
            (12_000, "12ms"),
            (12_001, "13ms"),
            (999_001, "1s"),
            (1_000_000, "1s"),
            (8_640_000, "9s"),
            (360_000_000, "6m0s"),
            (3_600_000_000, "1h0m0s"),
            (90_061_000_000, "25h1m1s"),
        ];
        for (micros, text) in table {
            assert_eq!(Go(Duration::from_micros(micros)).to_string(), text);
        }
    }

    #[test]
    fn each_limit_is_told_and_the_tightest_in_openais_words() {
        let left = |limit, remaining, seconds: u64| Left {
            limit,
            remaining,
            reset: Duration::from_millis(seconds * 1000 - 500),
            window: Duration::from_mins(1),
        };
        let (requests, tokens) = (left(60, 59, 1), left(1000, 400, 36));
        let standing = Standing {
            requests: Some(requests),
            tokens: Some(tokens),
            limits: vec![
                ("caller.requests_per_minute", requests),
                ("model.tokens_per_minute", tokens),
            ],
        };
        let mut headers = HeaderMap::new();
        write(&standing, &mut headers);
        let value = |name: &str| headers[name].to_str().unwrap().to_owned();
        assert_eq!(value("x-ratelimit-limit-requests"), "60");
        assert_eq!(value("x-ratelimit-remaining-requests"), "59");
        assert_eq!(value("x-ratelimit-reset-requests"), "500ms");
        assert_eq!(value("x-ratelimit-limit-tokens"), "1000");
        assert_eq!(value("x-ratelimit-remaining-tokens"), "400");
        assert_eq!(value("x-ratelimit-reset-tokens"), "36s");
        assert_eq!(
            value("ratelimit-policy"),
            r#""caller.requests_per_minute";q=60;w=60, "model.tokens_per_minute";q=1000;w=60"#
        );
        assert_eq!(
            value("ratelimit"),
            r#""caller.requests_per_minute";r=59;t=1, "model.tokens_per_minute";r=400;t=36"#
        );
    }

    #[test]
    fn a_caller_without_limits_on_tokens_is_told_of_none() {
        let requests = Left {
            limit: 1,
            remaining: 1,
            reset: Duration::ZERO,
            window: Duration::from_millis(10),
        };
        let standing = Standing {
            requests: Some(requests),
            tokens: None,
            limits: vec![("caller.requests_per_minute", requests)],
        };
        let mut headers = HeaderMap::new();
        write(&standing, &mut headers);
        assert!(!headers.contains_key("x-ratelimit-limit-tokens"));
        assert!(
            headers["ratelimit-policy"]
                .to_str()
                .unwrap()
                .ends_with(";q=1;w=1")
        );
    }
}
