//! `[telemetry.metrics]`: what `/metrics` says, and how often it is written anew.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// `[telemetry.metrics]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Most series; the models that find no room among them are counted together.
    pub max_series: NonZeroU32,
    /// How long a page is handed out again before it is written anew; zero: never.
    #[serde(deserialize_with = "cache")]
    pub cache: Duration,
    /// Whether there are pages under the names of llama-server and vLLM, too.
    pub aliases: bool,
    /// How many times its 5-minute baseline the rate of requests may be before that is an anomaly; above 1.
    #[serde(deserialize_with = "factor")]
    pub anomaly_factor: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_series: const { NonZeroU32::new(10_000).unwrap() },
            cache: Duration::from_secs(1),
            aliases: false,
            anomaly_factor: 2.0,
        }
    }
}

/// An alert that looks at a page older than this comes too late.
const LONGEST_CACHE: Duration = Duration::from_mins(1);

fn cache<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let cache: Duration = humantime_serde::deserialize(deserializer)?;
    if cache > LONGEST_CACHE {
        return Err(D::Error::custom("at most 1m"));
    }
    Ok(cache)
}

fn factor<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let factor = f64::deserialize(deserializer)?;
    // NaN and infinity are neither.
    if factor > 1.0 && factor <= 1000.0 {
        return Ok(factor);
    }
    Err(D::Error::custom("a number above 1, at most 1000"))
}
