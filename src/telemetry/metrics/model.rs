//! What is counted about one model's requests, as they come and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use metrics::{Counter, Histogram};
use metrics_exporter_prometheus::PrometheusRecorder;

use super::gaps::Gaps;
use super::names::{
    E2E, ENGINE_DEATHS, ENGINE_RELOADS, OVERHEAD, PREFILL, QUEUE, REQUESTS, SEND_STALL,
    SEND_STALLS, TIME_TO_FIRST_TOKEN, TOKENS, TPOT,
};
use super::objective::Judge;
use super::route::Route;
use super::sheds::Sheds;
use super::text::Text;
use super::{counter, histogram};
use crate::generation::{Outcome, Record};
use crate::telemetry::slo::Slo;

/// What all models are counted in together.
#[derive(Clone)]
pub(super) struct Common {
    /// Requests.
    pub(super) arrivals: Arc<AtomicU64>,
    /// Those of them that were refused for want of capacity.
    pub(super) sheds: Arc<Sheds>,
    /// How many of them were as they should be.
    pub(super) slo: Arc<Slo>,
}

/// The series of one model.
pub struct ModelMetrics {
    name: Arc<str>,
    common: Common,
    requests: [[Counter; Outcome::ALL.len()]; Route::ALL.len()],
    time_to_first_token: Histogram,
    gaps: Gaps,
    tpot: Histogram,
    e2e: Histogram,
    overhead: Histogram,
    queue: Histogram,
    prefill: Histogram,
    send_stall: Histogram,
    tokens_input: Counter,
    tokens_output: Counter,
    tokens_cached: Counter,
    send_stalls: Counter,
    engine_deaths: Counter,
    engine_reloads: Counter,
    judge: Judge,
}

impl ModelMetrics {
    pub(super) fn new(recorder: &PrometheusRecorder, name: &str, common: &Common) -> Self {
        let model = [("model", name)];
        let times = |name| histogram(recorder, name, &model);
        let tokens = |kind| counter(recorder, TOKENS, &[("model", name), ("kind", kind)]);
        Self {
            name: name.into(),
            common: common.clone(),
            requests: Route::ALL.map(|route| {
                Outcome::ALL.map(|outcome| {
                    let labels = [
                        ("model", name),
                        ("route", route.as_str()),
                        ("outcome", outcome.as_str()),
                    ];
                    counter(recorder, REQUESTS, &labels)
                })
            }),
            time_to_first_token: times(TIME_TO_FIRST_TOKEN),
            gaps: Gaps::default(),
            tpot: times(TPOT),
            e2e: times(E2E),
            overhead: times(OVERHEAD),
            queue: times(QUEUE),
            prefill: times(PREFILL),
            send_stall: times(SEND_STALL),
            tokens_input: tokens("input"),
            tokens_output: tokens("output"),
            tokens_cached: tokens("cached"),
            send_stalls: counter(recorder, SEND_STALLS, &model),
            engine_deaths: counter(recorder, ENGINE_DEATHS, &model),
            engine_reloads: counter(recorder, ENGINE_RELOADS, &model),
            judge: Judge::new(recorder, name, &common.slo),
        }
    }

    /// The model's name; "unknown" for what is not configured.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(in crate::telemetry) fn shared_name(&self) -> Arc<str> {
        self.name.clone()
    }

    /// A request without a stream left the waiting line after this long.
    pub fn queued(&self, wait: Duration) {
        self.queue.record(wait);
    }

    /// The engine stopped although nobody stopped it, or did not load again.
    pub fn engine_died(&self) {
        self.engine_deaths.increment(1);
    }

    /// The model was loaded again after its engine had stopped.
    pub fn engine_reloaded(&self) {
        self.engine_reloads.increment(1);
    }

    pub(in crate::telemetry) fn request_came(&self) {
        self.common.arrivals.fetch_add(1, Relaxed);
    }

    pub(in crate::telemetry) fn request_ended(&self, route: Route, outcome: Outcome) {
        self.requests[route as usize][outcome as usize].increment(1);
    }

    pub(in crate::telemetry) fn handed_over(&self, after: Duration) {
        self.overhead.record(after);
    }

    pub(in crate::telemetry) fn refused(&self, code: Option<&str>) {
        self.common.sheds.refused(code);
    }

    pub(in crate::telemetry) fn first_token(&self, after: Duration) {
        self.time_to_first_token.record(after);
    }

    pub(in crate::telemetry) fn gaps(&self, micros: &[u32]) {
        self.gaps.record(micros);
    }

    pub(super) fn write_gaps(&self, text: &mut Text) {
        self.gaps.write(text, &self.name);
    }

    pub(in crate::telemetry) fn judged(&self, record: &Record) {
        self.judge.ended(record);
    }

    /// Where the time of a request went that has ended.
    pub(in crate::telemetry) fn spent(&self, record: &Record) {
        if let Some(queued) = record.waits.queue {
            self.queued(queued);
        }
        if let Some(prefill) = record.waits.prefill {
            self.prefill.record(prefill);
        }
        if record.outcome == Outcome::Ok {
            self.e2e.record(record.duration);
        }
        let Some(first) = record.time_to_first_token else {
            return;
        };
        self.send_stall.record(record.waits.stalled);
        let later = record.usage.completion_tokens.saturating_sub(1);
        if record.outcome == Outcome::Ok && later > 0 {
            self.tpot
                .record(record.duration.saturating_sub(first) / later);
        }
    }

    pub(in crate::telemetry) fn tokens_read(&self, prompt: u32, cached: u32) {
        self.tokens_input.increment(u64::from(prompt));
        self.tokens_cached.increment(u64::from(cached));
    }

    pub(in crate::telemetry) fn tokens_generated(&self, count: u32) {
        self.tokens_output.increment(u64::from(count));
    }

    pub(in crate::telemetry) fn reader_cut(&self) {
        self.send_stalls.increment(1);
    }
}
