//! `[telemetry.traces]` and `[telemetry.slo]`: which traces are kept, and what a good request is.

use std::num::NonZeroU32;
use std::time::Duration;

use axum::http::Uri;
use bytesize::ByteSize;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// How traces travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// OTLP over gRPC.
    #[default]
    Grpc,
    /// OTLP as protobuf over HTTP/1.1.
    Http,
}

/// The address of an OTLP receiver: `http://` or `https://`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Endpoint(String);

/// Why a text is no endpoint.
#[derive(Debug, thiserror::Error)]
#[error("this is no address like \"http://127.0.0.1:4317\"")]
pub struct NoEndpoint;

impl Endpoint {
    /// As written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it asks for TLS.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.0
            .get(..6)
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"))
    }

    /// The path of traces below it, for HTTP (OTLP specification, "OTLP/HTTP Request").
    #[must_use]
    pub fn traces_url(&self) -> String {
        let base = self.0.trim_end_matches('/');
        if base.ends_with("/v1/traces") {
            return base.to_owned();
        }
        format!("{base}/v1/traces")
    }
}

impl TryFrom<String> for Endpoint {
    type Error = NoEndpoint;

    // The text may hold a password, so an error does not repeat it.
    fn try_from(text: String) -> Result<Self, NoEndpoint> {
        let uri: Uri = text.parse().map_err(|_| NoEndpoint)?;
        let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
        let has_host = uri.host().is_some_and(|host| !host.is_empty());
        if !is_web || !has_host || uri.query().is_some() {
            return Err(NoEndpoint);
        }
        Ok(Self(text))
    }
}

/// `[telemetry.traces]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Traces {
    /// The part of ordinary traces that is kept while all is well; 0 to 1.
    #[serde(deserialize_with = "part")]
    pub ratio: f64,
    /// Spans exported in a second at most; what exceeds it is dropped and counted.
    pub max_spans_per_second: NonZeroU32,
    /// Traces that may wait to be exported.
    pub queue: NonZeroU32,
    /// Their memory at most.
    #[serde(deserialize_with = "queue_bytes")]
    pub queue_bytes: usize,
    /// Token events that one call has at most.
    #[serde(deserialize_with = "token_events")]
    pub token_events: usize,
}

impl Default for Traces {
    fn default() -> Self {
        Self {
            ratio: 0.01,
            max_spans_per_second: NonZeroU32::new(5000).unwrap_or(NonZeroU32::MIN),
            queue: NonZeroU32::new(8192).unwrap_or(NonZeroU32::MIN),
            queue_bytes: 32 << 20,
            token_events: 128,
        }
    }
}

/// `[telemetry.slo]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Slo {
    /// From accepting a request to its first token, at most.
    #[serde(deserialize_with = "wait")]
    pub first_token: Duration,
    /// Between two of its tokens, at most.
    #[serde(deserialize_with = "wait")]
    pub gap: Duration,
    /// The part of requests that is to be good; above 0, below 1.
    #[serde(deserialize_with = "objective")]
    pub objective: f64,
}

impl Default for Slo {
    fn default() -> Self {
        Self {
            first_token: Duration::from_secs(2),
            gap: Duration::from_millis(500),
            objective: 0.99,
        }
    }
}

fn part<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let part = f64::deserialize(deserializer)?;
    if (0.0..=1.0).contains(&part) {
        return Ok(part);
    }
    Err(D::Error::custom("must be between 0 and 1"))
}

fn objective<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let part = f64::deserialize(deserializer)?;
    // Above it, one bad request in a day would be a fire.
    if part > 0.0 && part <= 0.9999 {
        return Ok(part);
    }
    Err(D::Error::custom(
        "must be above 0, and at most 0.9999: one bad request in 10,000",
    ))
}

fn queue_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let size = ByteSize::deserialize(deserializer)?;
    if !(1 << 20..=1 << 30).contains(&size.0) {
        return Err(D::Error::custom(format_args!(
            "{size} is out of range; must be between 1MiB and 1GiB"
        )));
    }
    usize::try_from(size.0).map_err(D::Error::custom)
}

fn token_events<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let events = usize::deserialize(deserializer)?;
    // Receivers take messages of 4 MiB, and an event is some sixty bytes.
    if events > 4096 {
        return Err(D::Error::custom("must be at most 4096"));
    }
    Ok(events)
}

fn wait<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let wait: Duration = humantime_serde::deserialize(deserializer)?;
    if wait.is_zero() || wait > Duration::from_hours(1) {
        return Err(D::Error::custom(
            "must be longer than zero and at most an hour",
        ));
    }
    Ok(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_address_of_the_web() {
        for (good, url) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            (
                "https://collector.example/",
                "https://collector.example/v1/traces",
            ),
            ("http://[::1]:1/otlp", "http://[::1]:1/otlp/v1/traces"),
            ("http://a/v1/traces", "http://a/v1/traces"),
        ] {
            let endpoint = Endpoint::try_from(good.to_owned()).unwrap();
            assert_eq!(endpoint.traces_url(), url);
        }
        for bad in [
            "",
            "localhost:4317",
            "grpc://a:1",
            "http://",
            "http://a/?b",
            "a b",
            "ftp://user:secret@host",
        ] {
            let error = Endpoint::try_from(bad.to_owned()).unwrap_err();
            assert!(!error.to_string().contains("secret"));
        }
    }
}
