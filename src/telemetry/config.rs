//! `[telemetry]`: what is logged, how a line looks, and where traces go.

mod traces;

use serde::Deserialize;
use tracing_subscriber::EnvFilter;

pub use self::traces::{Endpoint, Protocol, Slo, Traces};
use super::MetricsConfig;

/// `[telemetry]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Which events are logged.
    pub log: Filter,
    /// How they are written.
    pub format: Format,
    /// What `/metrics` says.
    pub metrics: MetricsConfig,
    /// Where traces go; without one they have names and go nowhere.
    pub otlp_endpoint: Option<Endpoint>,
    /// How they travel.
    pub otlp_protocol: Protocol,
    /// Which traces are kept, and what of them.
    pub traces: Traces,
    /// What a good request is.
    pub slo: Slo,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `text` on a terminal, `json` elsewhere.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One object a line, for machines.
    Json,
}

/// A `RUST_LOG`-style filter that is known to parse: `info`, `warn,sluicegate::engine=debug`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Filter(String);

/// Why a text is not a filter.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// It does not parse.
    #[error("{text:?} is no log filter: {reason}")]
    Syntax {
        /// The filter.
        text: String,
        /// The parser's words.
        reason: String,
    },
    /// It parses, but as the name of a module that only looks like a level.
    #[error("{word:?} is no log level; did you mean {level:?}?")]
    Level {
        /// What was written.
        word: String,
        /// The nearest level.
        level: &'static str,
    },
}

const LEVELS: [&str; 6] = ["trace", "debug", "info", "warn", "error", "off"];

impl Filter {
    /// The filter as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn env_filter(&self) -> EnvFilter {
        EnvFilter::new(&self.0)
    }
}

impl Default for Filter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl TryFrom<String> for Filter {
    type Error = FilterError;

    fn try_from(text: String) -> Result<Self, FilterError> {
        for directive in text.split(',') {
            // A bare word is a target at every level, so a mistyped level would silence all else.
            let word = directive.trim().to_ascii_lowercase();
            if LEVELS.contains(&word.as_str()) || word.contains([':', '=', '[']) {
                continue;
            }
            let near = LEVELS.map(|level| (strsim::osa_distance(level, &word), level));
            if let Some((1 | 2, level)) = near.into_iter().min() {
                return Err(FilterError::Level { word, level });
            }
        }
        match EnvFilter::builder().parse(&text) {
            Ok(_) => Ok(Self(text)),
            Err(error) => Err(FilterError::Syntax {
                text,
                reason: error.to_string(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_checked() {
        for good in [
            "info",
            "warn,sluicegate::engine=debug",
            "off",
            "sluicegate=trace,hyper=warn",
            "INFO",
            "",
        ] {
            assert!(Filter::try_from(good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["infoo", "sluicegate=loud", "warm", "info,dbug", "a[=info"] {
            assert!(Filter::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mistyped_level_names_the_nearest() {
        let error = Filter::try_from("wran".to_owned()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"wran\" is no log level; did you mean \"warn\"?"
        );
    }
}
