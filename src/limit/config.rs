//! `[limits]`: how much the server, each class of callers, each organization and each model may use.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::num::{NonZeroU16, NonZeroU32, NonZeroU64};
use std::path::PathBuf;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::Bound;
use super::limiter::USUAL;
use super::quota::Period;
use super::shared::config::Redis;
use crate::generation;
use crate::telemetry::Limit;

/// `[limits]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Streams open at once, waiting ones included; more are refused.
    pub max_streams: NonZeroU32,
    /// How a stream ends whose caller has no tokens left.
    pub when_dry: WhenDry,
    /// Accounts kept at once; further callers share one. Addresses of unknown callers take half of them at
    /// the most.
    pub max_accounts: NonZeroU32,
    /// For callers of whom only the address is known.
    pub anonymous: Class,
    /// By name; `default` holds for known callers who have no other.
    pub classes: BTreeMap<String, Class>,
    /// By name, for all callers of one organization together.
    pub organizations: BTreeMap<String, Rates>,
    /// By name, for all callers of one model together.
    pub models: BTreeMap<String, Rates>,
    /// Where the use of a day and of a month is kept; absent, `quotas.json` in the state directory.
    pub quota_file: Option<PathBuf>,
    /// Where nodes share their limits; absent, each has them to itself.
    pub redis: Option<Redis>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_streams: const { NonZeroU32::new(1024).unwrap() },
            when_dry: WhenDry::default(),
            max_accounts: const { NonZeroU32::new(65_536).unwrap() },
            anonymous: Class::default(),
            classes: BTreeMap::new(),
            organizations: BTreeMap::new(),
            models: BTreeMap::new(),
            quota_file: None,
            redis: None,
        }
    }
}

/// How a stream ends whose caller has no tokens left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenDry {
    /// As if it had reached its `max_tokens`.
    #[default]
    Length,
    /// With an error.
    Error,
}

/// The most urgent that a caller may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Takes what others leave.
    Background,
    /// As most.
    Normal,
    /// Before others.
    Interactive,
}

impl From<Priority> for generation::Class {
    fn from(priority: Priority) -> Self {
        match priority {
            Priority::Background => Self::Background,
            Priority::Normal => Self::Normal,
            Priority::Interactive => Self::Interactive,
        }
    }
}

/// A struct with the fields of [`Rates`] and some more, since serde cannot refuse unknown keys of a
/// flattened one.
macro_rules! with_rates {
    ($(#[$about:meta])* pub struct $name:ident { $($more:tt)* }) => {
        $(#[$about])*
        #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            /// Requests a minute.
            #[serde(deserialize_with = "per_minute")]
            pub requests_per_minute: Option<NonZeroU32>,
            /// Requests at once; absent, a minute's.
            #[serde(deserialize_with = "per_minute")]
            pub request_burst: Option<NonZeroU32>,
            /// Tokens a minute, in and out together.
            #[serde(deserialize_with = "tokens_per_minute")]
            pub tokens_per_minute: Option<NonZeroU32>,
            /// Prompt tokens a minute.
            #[serde(deserialize_with = "tokens_per_minute")]
            pub input_tokens_per_minute: Option<NonZeroU32>,
            /// Generated tokens a minute.
            #[serde(deserialize_with = "tokens_per_minute")]
            pub output_tokens_per_minute: Option<NonZeroU32>,
            /// Tokens at once, of each rate; absent, a minute's.
            #[serde(deserialize_with = "tokens_per_minute")]
            pub token_burst: Option<NonZeroU32>,
            /// Streams at once.
            pub streams: Option<NonZeroU32>,
            /// Streams that wait for their first token, at once.
            pub queued: Option<NonZeroU32>,
            /// Requests in a day of UTC.
            #[serde(deserialize_with = "quota")]
            pub requests_per_day: Option<NonZeroU64>,
            /// Requests in a month of UTC.
            #[serde(deserialize_with = "quota")]
            pub requests_per_month: Option<NonZeroU64>,
            /// Tokens in a day of UTC, in and out together.
            #[serde(deserialize_with = "quota")]
            pub tokens_per_day: Option<NonZeroU64>,
            /// Tokens in a month of UTC, in and out together.
            #[serde(deserialize_with = "quota")]
            pub tokens_per_month: Option<NonZeroU64>,
            $($more)*
        }

        impl $name {
            /// Every limit that is set, in the order in which they are asked.
            #[must_use]
            pub fn bounds(&self) -> Vec<(Limit, Bound)> {
                let rate = |per_minute: Option<NonZeroU32>, burst: Option<NonZeroU32>| {
                    per_minute.map(|rate| Bound::Rate {
                        per_minute: u64::from(rate.get()),
                        burst: u64::from(burst.unwrap_or(rate).get()),
                    })
                };
                let tokens = |rate_of| rate(rate_of, self.token_burst);
                let places = |most: Option<NonZeroU32>| {
                    most.map(|most| Bound::Places(most.get()))
                };
                let quota = |period, most: Option<NonZeroU64>| {
                    most.map(|most| Bound::Quota { period, most: most.get() })
                };
                let of = |limit| match limit {
                    Limit::Streams => places(self.streams),
                    Limit::Queued => places(self.queued),
                    Limit::RequestsPerMinute => rate(self.requests_per_minute, self.request_burst),
                    Limit::RequestsPerDay => quota(Period::Day, self.requests_per_day),
                    Limit::RequestsPerMonth => quota(Period::Month, self.requests_per_month),
                    Limit::TokensPerMinute => tokens(self.tokens_per_minute),
                    Limit::InputTokensPerMinute => tokens(self.input_tokens_per_minute),
                    Limit::OutputTokensPerMinute => tokens(self.output_tokens_per_minute),
                    Limit::TokensPerDay => quota(Period::Day, self.tokens_per_day),
                    Limit::TokensPerMonth => quota(Period::Month, self.tokens_per_month),
                };
                let all = Limit::ALL.into_iter();
                all.filter_map(|limit| Some((limit, of(limit)?))).collect()
            }

            /// A key that has no effect, and why.
            fn idle(&self) -> Option<(&'static str, &'static str)> {
                if self.request_burst.is_some() && self.requests_per_minute.is_none() {
                    return Some(("request_burst", "has no effect without requests_per_minute"));
                }
                let rates = [
                    self.tokens_per_minute,
                    self.input_tokens_per_minute,
                    self.output_tokens_per_minute,
                ];
                if self.token_burst.is_some() && rates.iter().all(Option::is_none) {
                    return Some(("token_burst", "has no effect without a rate of tokens"));
                }
                None
            }
        }
    };
}

with_rates! {
    /// How much may be used. What is absent is not limited.
    pub struct Rates {}
}

with_rates! {
    /// How much each caller of a class may use, and what share of the engine they get.
    pub struct Class {
        /// The share of each caller relative to others'; absent, 1.
        pub weight: Option<NonZeroU16>,
        /// The most urgent that a request may be; absent, as it asks.
        pub priority: Option<Priority>,
        /// By model, beside the others: for each caller on that model alone.
        pub models: BTreeMap<String, Rates>,
    }
}

impl Limits {
    /// Whether anything is limited by the day or the month.
    #[must_use]
    pub fn has_quotas(&self) -> bool {
        let is_quota = |bounds: Vec<(Limit, Bound)>| {
            let mut bounds = bounds.iter();
            bounds.any(|(_, bound)| matches!(bound, Bound::Quota { .. }))
        };
        let mut classes = self.classes.values().chain([&self.anonymous]);
        let mut others = self.organizations.values().chain(self.models.values());
        classes.any(|class| {
            let mut models = class.models.values();
            is_quota(class.bounds()) || models.any(|rates| is_quota(rates.bounds()))
        }) || others.any(|rates| is_quota(rates.bounds()))
    }

    /// The classes that a caller may be of.
    pub fn class_names(&self) -> impl Iterator<Item = &str> {
        self.classes.keys().map(String::as_str).chain([USUAL])
    }

    /// What no key can see alone: the path to a key below `limits`, and what is wrong with it. `models`
    /// are the names of those that are served.
    #[must_use]
    pub fn conflicts(&self, models: &[&str]) -> Vec<(Vec<String>, String)> {
        let mut found = Vec::new();
        let mut idle = |path: &[&str], problem: Option<(&str, &str)>| {
            if let Some((key, message)) = problem {
                let path = path.iter().chain([&key]).map(|&step| step.to_owned());
                found.push((path.collect(), message.to_owned()));
            }
        };
        let mut named = Vec::new();
        idle(&["anonymous"], self.anonymous.idle());
        for (model, rates) in &self.anonymous.models {
            idle(&["anonymous", "models", model], rates.idle());
            named.push((vec!["anonymous", "models", model], model));
        }
        for (name, class) in &self.classes {
            idle(&["classes", name], class.idle());
            for (model, rates) in &class.models {
                idle(&["classes", name, "models", model], rates.idle());
                named.push((vec!["classes", name, "models", model], model));
            }
        }
        for (name, rates) in &self.organizations {
            idle(&["organizations", name], rates.idle());
        }
        for (model, rates) in &self.models {
            idle(&["models", model], rates.idle());
            named.push((vec!["models", model], model));
        }
        for (path, model) in named {
            if !models.contains(&model.as_str()) {
                let path = path.into_iter().map(str::to_owned).collect();
                found.push((path, format!("no model named {model} is served")));
            }
        }
        found
    }
}

/// Requests a minute: below a million a second, so that governor can tell their distances apart.
fn per_minute<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NonZeroU32>, D::Error> {
    at_most(deserializer, const { NonZeroU32::new(60_000_000).unwrap() })
}

/// Tokens a minute: each of them then takes 600 nanoseconds at the least.
fn tokens_per_minute<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<NonZeroU32>, D::Error> {
    at_most(
        deserializer,
        const { NonZeroU32::new(100_000_000).unwrap() },
    )
}

/// Requests or tokens in a day or a month: what all nodes have used of it is told in headers, whose
/// integers have at most 15 digits (RFC 8941, section 3.3.1), and is counted in 48 bits.
fn quota<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NonZeroU64>, D::Error> {
    at_most(
        deserializer,
        const { NonZeroU64::new(100_000_000_000_000).unwrap() },
    )
}

fn at_most<'de, D, N>(deserializer: D, most: N) -> Result<Option<N>, D::Error>
where
    D: Deserializer<'de>,
    N: Deserialize<'de> + PartialOrd + Display + Copy,
{
    match Option::<N>::deserialize(deserializer)? {
        Some(n) if n > most => Err(D::Error::custom(format_args!(
            "{n} is too many; at most {most}, or leave it out for no limit"
        ))),
        n => Ok(n),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Limits, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn what_is_absent_is_not_limited() {
        let limits = read("").unwrap();
        assert_eq!(limits, Limits::default());
        assert!(limits.anonymous.bounds().is_empty());
    }

    #[test]
    fn a_quota_is_found_wherever_it_is_set() {
        for table in [
            "anonymous",
            "anonymous.models.m",
            "classes.c",
            "classes.c.models.m",
            "organizations.o",
            "models.m",
        ] {
            let has = |key: &str| read(&format!("[{table}]\n{key} = 1")).unwrap().has_quotas();
            assert!(
                has("requests_per_day") && has("tokens_per_month"),
                "{table}"
            );
            assert!(!has("requests_per_minute"), "{table}");
        }
    }

    #[test]
    fn a_burst_is_a_minutes_unless_it_is_said() {
        let limits =
            read("[anonymous]\nrequests_per_minute = 6\ntokens_per_minute = 100\ntoken_burst = 7")
                .unwrap();
        let rate = |per_minute, burst| Bound::Rate { per_minute, burst };
        assert_eq!(
            limits.anonymous.bounds(),
            [
                (Limit::RequestsPerMinute, rate(6, 6)),
                (Limit::TokensPerMinute, rate(100, 7)),
            ]
        );
    }

    #[test]
    fn zero_unknown_keys_and_rates_beyond_reason_are_refused() {
        for text in [
            "[anonymous]\nrequests_per_minute = 0",
            "[anonymous]\ntokens_per_minute = 2000000000",
            "[classes.a]\nrequests = 1",
            "[organizations.a]\nweight = 2",
            "when_dry = 'stop'",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_quota_that_cannot_be_counted_is_refused() {
        for key in [
            "requests_per_day",
            "requests_per_month",
            "tokens_per_day",
            "tokens_per_month",
        ] {
            for table in ["classes.a", "models.m"] {
                let of = |most: u64| read(&format!("[{table}]\n{key} = {most}"));
                assert!(of(100_000_000_000_000).is_ok(), "{table}.{key}");
                let error = of(100_000_000_000_001).unwrap_err().to_string();
                assert!(error.contains("at most 100000000000000"), "{error}");
            }
        }
    }

    #[test]
    fn keys_without_effect_and_models_that_are_not_served_are_conflicts() {
        let limits = read(
            "[anonymous]\nrequest_burst = 1\n[classes.a.models.m]\ntoken_burst = 1\n[models.other]\n\
             streams = 1",
        )
        .unwrap();
        let found = limits.conflicts(&["m"]);
        let paths: Vec<_> = found.iter().map(|(path, _)| path.join(".")).collect();
        assert_eq!(
            paths,
            [
                "anonymous.request_burst",
                "classes.a.models.m.token_burst",
                "models.other"
            ]
        );
        assert!(limits.conflicts(&["m", "other"]).len() == 2);
    }
}
