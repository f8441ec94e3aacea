//! What limits refuse and charge. The names of scopes and limits are closed sets: no caller makes a
//! series.

use metrics::{Counter, Gauge};
use metrics_exporter_prometheus::PrometheusRecorder;

use super::names::{
    LIMIT_ACCOUNTS, LIMIT_ALONE, LIMIT_DRY, LIMIT_NODES, LIMIT_QUOTA_FAILURES,
    LIMIT_REDIS_FAILURES, LIMIT_REDIS_UP, LIMIT_REFUSALS, LIMIT_TOKENS,
};
use super::{counter, gauge};

/// Whose limit it is, from the outside in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// All callers of one organization together.
    Organization,
    /// One caller: a key, a token's subject, a certificate, or an address.
    Caller,
    /// One caller's use of one model.
    CallerOnModel,
    /// All callers of one model together.
    Model,
}

impl Scope {
    /// Every scope, in the order in which they are asked.
    pub const ALL: [Self; 4] = [
        Self::Organization,
        Self::Caller,
        Self::CallerOnModel,
        Self::Model,
    ];

    /// The name in answers, metrics and keys.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Organization => "organization",
            Self::Caller => "caller",
            Self::CallerOnModel => "caller_on_model",
            Self::Model => "model",
        }
    }
}

/// What is limited. Named as in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Limit {
    /// Streams at once.
    Streams,
    /// Of those, the ones that wait for their first token.
    Queued,
    /// Requests a minute.
    RequestsPerMinute,
    /// Requests in a day.
    RequestsPerDay,
    /// Requests in a month.
    RequestsPerMonth,
    /// Tokens a minute, in and out together.
    TokensPerMinute,
    /// Prompt tokens a minute.
    InputTokensPerMinute,
    /// Generated tokens a minute.
    OutputTokensPerMinute,
    /// Tokens in a day, in and out together.
    TokensPerDay,
    /// Tokens in a month, in and out together.
    TokensPerMonth,
}

/// The full names of every limit of one scope, in the order of [`Limit::ALL`].
macro_rules! names_of {
    ($scope:literal) => {
        [
            concat!($scope, ".streams"),
            concat!($scope, ".queued"),
            concat!($scope, ".requests_per_minute"),
            concat!($scope, ".requests_per_day"),
            concat!($scope, ".requests_per_month"),
            concat!($scope, ".tokens_per_minute"),
            concat!($scope, ".input_tokens_per_minute"),
            concat!($scope, ".output_tokens_per_minute"),
            concat!($scope, ".tokens_per_day"),
            concat!($scope, ".tokens_per_month"),
        ]
    };
}

impl Limit {
    /// Every limit, in the order in which they are asked: what costs nothing to give back first.
    pub const ALL: [Self; 10] = [
        Self::Streams,
        Self::Queued,
        Self::RequestsPerMinute,
        Self::RequestsPerDay,
        Self::RequestsPerMonth,
        Self::TokensPerMinute,
        Self::InputTokensPerMinute,
        Self::OutputTokensPerMinute,
        Self::TokensPerDay,
        Self::TokensPerMonth,
    ];

    const NAMES: [[&'static str; 10]; 4] = [
        names_of!("organization"),
        names_of!("caller"),
        names_of!("caller_on_model"),
        names_of!("model"),
    ];

    /// The name of this limit in this scope, as answers tell it: `caller.tokens_per_minute`.
    #[must_use]
    pub fn of(self, scope: Scope) -> &'static str {
        Self::NAMES[scope as usize][self as usize]
    }

    /// The name without its scope, as in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        let name = self.of(Scope::Model);
        name.split_once('.').map_or(name, |(_, name)| name)
    }
}

/// Shared and kept limits at the moment of a scrape.
#[derive(Clone, Copy, Debug, Default)]
pub struct LimitLoad {
    /// Whether the server of shared limits answers.
    pub redis_up: bool,
    /// Nodes among which limits are divided while it does not.
    pub nodes: u32,
    /// Times that it did not answer well or in time, since the start.
    pub redis_failures: u64,
    /// Requests that were decided without it, since the start.
    pub alone: u64,
    /// Times that the quotas' file could not be written, since the start.
    pub quota_failures: u64,
}

/// Counters of the limiter.
pub struct LimitMetrics {
    refusals: [[Counter; Limit::ALL.len()]; Scope::ALL.len()],
    ran_dry: [[Counter; Limit::ALL.len()]; Scope::ALL.len()],
    input: Counter,
    output: Counter,
    accounts: Gauge,
    redis_up: Gauge,
    nodes: Gauge,
    redis_failures: Counter,
    alone: Counter,
    quota_failures: Counter,
}

impl LimitMetrics {
    pub(super) fn new(recorder: &PrometheusRecorder) -> Self {
        let each = |name: &'static str| {
            Scope::ALL.map(|scope| {
                Limit::ALL.map(|limit| {
                    let labels = [("scope", scope.as_str()), ("limit", limit.as_str())];
                    counter(recorder, name, &labels)
                })
            })
        };
        let tokens = |kind| counter(recorder, LIMIT_TOKENS, &[("kind", kind)]);
        Self {
            refusals: each(LIMIT_REFUSALS),
            ran_dry: each(LIMIT_DRY),
            input: tokens("input"),
            output: tokens("output"),
            accounts: gauge(recorder, LIMIT_ACCOUNTS, &[]),
            redis_up: gauge(recorder, LIMIT_REDIS_UP, &[]),
            nodes: gauge(recorder, LIMIT_NODES, &[]),
            redis_failures: counter(recorder, LIMIT_REDIS_FAILURES, &[]),
            alone: counter(recorder, LIMIT_ALONE, &[]),
            quota_failures: counter(recorder, LIMIT_QUOTA_FAILURES, &[]),
        }
    }

    /// A request was refused by this limit.
    pub fn refused(&self, scope: Scope, limit: Limit) {
        self.refusals[scope as usize][limit as usize].increment(1);
    }

    /// A stream was ended by this limit.
    pub fn ran_dry(&self, scope: Scope, limit: Limit) {
        self.ran_dry[scope as usize][limit as usize].increment(1);
    }

    /// There are so many accounts now.
    pub fn accounts(&self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.accounts.set(f64::from(count));
    }

    pub(super) fn pull(&self, load: &LimitLoad) {
        self.redis_up.set(f64::from(u8::from(load.redis_up)));
        self.nodes.set(f64::from(load.nodes));
        self.redis_failures.absolute(load.redis_failures);
        self.alone.absolute(load.alone);
        self.quota_failures.absolute(load.quota_failures);
    }

    /// Tokens were charged to somebody.
    pub fn charged(&self, input: u64, output: u64) {
        self.input.increment(input);
        self.output.increment(output);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_says_its_scope_and_its_limit() {
        let mut seen = std::collections::HashSet::new();
        for scope in Scope::ALL {
            for limit in Limit::ALL {
                let name = limit.of(scope);
                assert_eq!(name, format!("{}.{}", scope.as_str(), limit.as_str()));
                assert!(seen.insert(name));
            }
        }
        let debugged = Limit::ALL.map(|limit| format!("{limit:?}").to_lowercase());
        for (limit, debugged) in Limit::ALL.iter().zip(debugged) {
            assert_eq!(limit.as_str().replace('_', ""), debugged);
        }
    }
}
