//! What limits refuse and charge.

mod scopes;

use metrics::{Counter, Gauge};
use metrics_exporter_prometheus::PrometheusRecorder;

pub use self::scopes::{Limit, Scope};
use super::names::{
    LIMIT_ACCOUNTS, LIMIT_ALONE, LIMIT_DRY, LIMIT_NODES, LIMIT_QUOTA_FAILURES,
    LIMIT_REDIS_FAILURES, LIMIT_REDIS_UP, LIMIT_REFUSALS, LIMIT_TOKENS,
};
use super::{counter, gauge};

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
