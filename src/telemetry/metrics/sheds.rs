//! Why requests were refused or ended for want of capacity.

use metrics::Counter;
use metrics_exporter_prometheus::PrometheusRecorder;

use super::counter;
use super::names::SHED;

/// Codes of failures that have a series; the last one stands for every other.
const REASONS: [&str; 11] = [
    "queue_full",
    "too_many_streams",
    "deadline_unmeetable",
    "server_draining",
    "model_loading",
    "model_failed",
    "model_restarting",
    "model_quarantined",
    "too_many_adapter_sets",
    "too_early",
    OTHER,
];

const OTHER: &str = "other";

/// Counters of the requests that were refused for want of capacity, over all models.
pub(super) struct Sheds([Counter; REASONS.len()]);

impl Sheds {
    pub(super) fn new(recorder: &PrometheusRecorder) -> Self {
        Self(REASONS.map(|reason| counter(recorder, SHED, &[("reason", reason)])))
    }

    /// One more, for this reason.
    pub(super) fn refused(&self, code: Option<&str>) {
        let code = code.unwrap_or(OTHER);
        let series = REASONS.iter().zip(&self.0);
        let mut found = series.filter(|(reason, _)| **reason == code || **reason == OTHER);
        if let Some((_, counter)) = found.next() {
            counter.increment(1);
        }
    }
}
