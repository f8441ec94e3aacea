//! What operators do to the running process.

use std::time::SystemTime;

use metrics::{Counter, Gauge};
use metrics_exporter_prometheus::PrometheusRecorder;

use super::names::{CONFIG_RELOADED_AT, CONFIG_RELOADS, DETAIL};
use super::{counter, gauge};

/// Reloads, and what was turned while serving.
pub struct Operations {
    applied: Counter,
    refused: Counter,
    reloaded_at: Gauge,
    detail: Gauge,
}

impl Operations {
    pub(super) fn new(recorder: &PrometheusRecorder) -> Self {
        let reloads = |result| counter(recorder, CONFIG_RELOADS, &[("result", result)]);
        let operations = Self {
            applied: reloads("applied"),
            refused: reloads("refused"),
            reloaded_at: gauge(recorder, CONFIG_RELOADED_AT, &[]),
            detail: gauge(recorder, DETAIL, &[]),
        };
        // What runs at first was read just now.
        operations.reloaded_at.set(now());
        operations
    }

    /// The configuration was read again, and taken or not.
    pub fn reloaded(&self, is_taken: bool) {
        if is_taken {
            self.applied.increment(1);
            self.reloaded_at.set(now());
        } else {
            self.refused.increment(1);
        }
    }
}

impl Operations {
    /// How many times as much as configured is recorded in traces and profiles.
    pub fn detail(&self, factor: f64) {
        self.detail.set(factor);
    }
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}
