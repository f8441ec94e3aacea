//! What is counted of the objective, and of the traces that are kept for its sake.

use std::sync::Arc;

use metrics::{Counter, Gauge};
use metrics_exporter_prometheus::PrometheusRecorder;

use super::names::{
    SLO_BURN, SLO_OBJECTIVE, SLO_REQUESTS, TELEMETRY_DROPPED, TRACE_RATIO, TRACES_KEPT,
};
use super::{counter, gauge};
use crate::generation::Record;
use crate::telemetry::slo::{Slo, Verdict};
use crate::telemetry::trace::{Reason, TraceLoad};

/// The series of traces and of the objective as a whole.
pub(super) struct Objective {
    wanted: Gauge,
    burn: [Gauge; 2],
    kept: [Counter; Reason::ALL.len()],
    dropped: Counter,
    ratio: Gauge,
}

impl Objective {
    pub(super) fn new(recorder: &PrometheusRecorder) -> Self {
        Self {
            wanted: gauge(recorder, SLO_OBJECTIVE, &[]),
            burn: ["5m", "1h"].map(|window| gauge(recorder, SLO_BURN, &[("window", window)])),
            kept: Reason::ALL
                .map(|reason| counter(recorder, TRACES_KEPT, &[("reason", reason.as_str())])),
            dropped: counter(recorder, TELEMETRY_DROPPED, &[("signal", "trace")]),
            ratio: gauge(recorder, TRACE_RATIO, &[]),
        }
    }

    pub(super) fn pull(&self, slo: &Slo, traces: &TraceLoad) {
        self.wanted.set(1.0 - slo.budget());
        let burn = slo.burn();
        for (gauge, burn) in self.burn.iter().zip([burn.five_minutes, burn.hour]) {
            gauge.set(burn);
        }
        for (counter, kept) in self.kept.iter().zip(traces.kept) {
            counter.absolute(kept);
        }
        self.dropped.absolute(traces.dropped);
        self.ratio.set(traces.ratio);
    }
}

/// The verdicts on one model's requests.
pub(super) struct Judge {
    slo: Arc<Slo>,
    good: Counter,
    bad: Counter,
}

impl Judge {
    pub(super) fn new(recorder: &PrometheusRecorder, model: &str, slo: &Arc<Slo>) -> Self {
        let verdict = |verdict| {
            let labels = [("model", model), ("verdict", verdict)];
            counter(recorder, SLO_REQUESTS, &labels)
        };
        Self {
            slo: slo.clone(),
            good: verdict("good"),
            bad: verdict("bad"),
        }
    }

    pub(super) fn ended(&self, record: &Record) {
        let verdict = self.slo.judge(record);
        match verdict {
            Verdict::Good => self.good.increment(1),
            Verdict::Bad => self.bad.increment(1),
            Verdict::Neither => return,
        }
        self.slo.count(verdict);
    }
}
