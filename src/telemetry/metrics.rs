//! The metrics: every name in one place, one function per observation.
//!
//! Label values come from closed sets only (configured model names, enums of ours), so no request
//! can make a new series. Figures that somebody else keeps (running sequences, KV cells) are read
//! when Prometheus asks.

mod limits;
mod names;
mod route;
mod traffic;
mod transports;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

use serde::{Deserialize, Serialize};

pub use self::limits::{Limit, LimitLoad, LimitMetrics, Scope};
use self::names::{
    BUILD_INFO, COUNTERS, DRAFT_TOKENS, E2E, ENGINE_DEATHS, ENGINE_RELOADS, ENGINE_THREADS, GAUGES,
    HISTOGRAMS, INTER_TOKEN, KV_CAPACITY, KV_IDLE, KV_USED, MOVES, PARKED, PARKS, PAUSES,
    PREFIX_BYTES, QUEUE, REQUESTS, REQUESTS_RUNNING, REQUESTS_WAITING, SEND_STALLS,
    SEQUENCES_PAUSED, STREAMS_KEPT, STREAMS_OPEN, TELEMETRY_DROPPED, TIME_TO_FIRST_TOKEN, TOKENS,
};
pub use self::route::Route;
pub use self::traffic::{Speaking, Traffic, Transport};
pub use self::transports::{ConnectionOpen, EarlyRequest, Handshake, TicketLoad, Transports};
use super::steps::Steps;
use crate::generation::Outcome;

/// The model label of what names no configured model.
const UNKNOWN_MODEL: &str = "unknown";

/// How often histogram samples are folded into buckets. Until then each takes 16 bytes, so the
/// memory they take is bounded by what one second can bring.
const UPKEEP: Duration = Duration::from_secs(1);

/// Every series of this process.
pub struct Metrics {
    handle: PrometheusHandle,
    models: HashMap<Arc<str>, Arc<ModelMetrics>>,
    unknown: Arc<ModelMetrics>,
    streams_open: Gauge,
    streams_kept: Gauge,
    /// What the sockets count.
    pub transports: Transports,
    /// What limits refuse and charge.
    pub limits: LimitMetrics,
    log_lines_dropped: Counter,
}

/// The series of one model.
pub struct ModelMetrics {
    name: Arc<str>,
    requests: [[Counter; Outcome::ALL.len()]; Route::ALL.len()],
    time_to_first_token: Histogram,
    inter_token: Histogram,
    e2e: Histogram,
    queue: Histogram,
    tokens_input: Counter,
    tokens_output: Counter,
    tokens_cached: Counter,
    send_stalls: Counter,
    pauses: Counter,
    drafts_accepted: Counter,
    drafts_rejected: Counter,
    parks: Counter,
    moves: Counter,
    engine_deaths: Counter,
    engine_reloads: Counter,
    running: Gauge,
    waiting: Gauge,
    paused: Gauge,
    parked: Gauge,
    kv_used: Gauge,
    kv_idle: Gauge,
    prefix_bytes: Gauge,
    kv_capacity: Gauge,
    threads_decode: Gauge,
    threads_prefill: Gauge,
}

/// What moves in a model, as its engine has it at the moment of a scrape.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct ModelLoad {
    /// Sequences in prefill or decode.
    pub running: u32,
    /// Requests in the waiting line.
    pub waiting: u32,
    /// Running sequences out of the batch because their reader is behind.
    pub paused: u32,
    /// Times that a sequence was paused since the model was loaded.
    pub pauses: u64,
    /// Draft tokens tried since the model was loaded.
    pub drafted: u64,
    /// Those of them that were right.
    pub accepted_drafts: u64,
    /// Sequences set aside, with their K/V in host memory.
    pub parked: u32,
    /// Times that a sequence was set aside since the model was loaded.
    pub parks: u64,
    /// Times that a sequence was moved beside the others that run, since the model was loaded.
    pub moves: u64,
    /// KV cells that hold nothing but cached prefixes.
    pub kv_idle: u64,
    /// Bytes of cached prefixes in host memory.
    pub prefix_bytes: u64,
    /// Prompt tokens found in the cache of prefixes since the model was loaded.
    pub prefix_hits: u64,
    /// Prompt tokens looked up in it: those of every sequence that began where prefixes are kept.
    pub prefix_queries: u64,
    /// What the engine's steps took.
    pub steps: Steps,
    /// KV cells in use.
    pub kv_used: u64,
    /// KV cells in all.
    pub kv_capacity: u64,
    /// Threads of the last decode step; 0 before the first, and where none compute.
    pub threads_decode: u32,
    /// Threads of the last chunk of prompts.
    pub threads_prefill: u32,
}

/// What is read at the moment of a scrape.
pub struct Scrape<I> {
    /// Streams that have not ended.
    pub streams_open: usize,
    /// Streams that can be resumed.
    pub streams_kept: usize,
    /// [`super::Logs::dropped`].
    pub log_lines_dropped: u64,
    /// Tickets of TLS.
    pub tickets: TicketLoad,
    /// Shared and kept limits.
    pub limits: LimitLoad,
    /// Models by name. A name that is not configured counts as "unknown".
    pub models: I,
}

impl Metrics {
    /// The series for these configured models, all at zero.
    ///
    /// # Errors
    /// A histogram has no buckets.
    pub fn new<'a>(models: impl IntoIterator<Item = &'a str>) -> Result<Self, BuildError> {
        let mut builder = PrometheusBuilder::new();
        for (name, _, buckets) in HISTOGRAMS {
            builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets)?;
        }
        let recorder = builder.build_recorder();
        for (name, help, _) in HISTOGRAMS {
            recorder.describe_histogram(name.into(), None, help.into());
        }
        for (name, help) in COUNTERS {
            recorder.describe_counter(name.into(), None, help.into());
        }
        for (name, help) in GAUGES {
            recorder.describe_gauge(name.into(), None, help.into());
        }
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        gauge(&recorder, BUILD_INFO, &version).set(1.0);
        Ok(Self {
            handle: recorder.handle(),
            models: models
                .into_iter()
                .map(|name| (name.into(), Arc::new(ModelMetrics::new(&recorder, name))))
                .collect(),
            unknown: Arc::new(ModelMetrics::new(&recorder, UNKNOWN_MODEL)),
            streams_open: gauge(&recorder, STREAMS_OPEN, &[]),
            streams_kept: gauge(&recorder, STREAMS_KEPT, &[]),
            limits: LimitMetrics::new(&recorder),
            transports: Transports::new(&recorder),
            log_lines_dropped: counter(&recorder, TELEMETRY_DROPPED, &[("signal", "log")]),
        })
    }

    /// The series of a configured model; those of "unknown" for every other name.
    #[must_use]
    pub fn model(&self, name: &str) -> &Arc<ModelMetrics> {
        self.models.get(name).unwrap_or(&self.unknown)
    }

    /// Everything in Prometheus' text format (version 0.0.4). Takes milliseconds with many models:
    /// not for a thread that carries streams.
    #[must_use]
    pub fn render<'a>(
        &self,
        scrape: Scrape<impl IntoIterator<Item = (&'a str, ModelLoad)>>,
    ) -> String {
        #[expect(
            clippy::cast_precision_loss,
            reason = "no process has 2^53 streams or KV cells"
        )]
        {
            self.streams_open.set(scrape.streams_open as f64);
            self.streams_kept.set(scrape.streams_kept as f64);
            for (name, load) in scrape.models {
                let model = self.model(name);
                model.running.set(f64::from(load.running));
                model.waiting.set(f64::from(load.waiting));
                model.paused.set(f64::from(load.paused));
                model.parked.set(f64::from(load.parked));
                model.kv_used.set(load.kv_used as f64);
                model.kv_idle.set(load.kv_idle as f64);
                model.prefix_bytes.set(load.prefix_bytes as f64);
                model.kv_capacity.set(load.kv_capacity as f64);
                model.threads_decode.set(f64::from(load.threads_decode));
                model.threads_prefill.set(f64::from(load.threads_prefill));
                model.pauses.absolute(load.pauses);
                let rejected = load.drafted.saturating_sub(load.accepted_drafts);
                model.drafts_accepted.absolute(load.accepted_drafts);
                model.drafts_rejected.absolute(rejected);
                model.parks.absolute(load.parks);
                model.moves.absolute(load.moves);
            }
        }
        self.transports.pull(&scrape.tickets);
        self.limits.pull(&scrape.limits);
        self.log_lines_dropped.absolute(scrape.log_lines_dropped);
        let mut text = self.handle.render();
        self.transports.write(&mut text);
        text
    }

    /// Starts the thread that folds samples into buckets, so that their memory stays bounded while
    /// nobody scrapes.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start_upkeep(&self) -> io::Result<Upkeep> {
        let handle = self.handle.clone();
        let (stop, stopped) = sync_channel::<()>(0);
        let thread = thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || {
                while stopped.recv_timeout(UPKEEP) == Err(RecvTimeoutError::Timeout) {
                    handle.run_upkeep();
                }
            })?;
        Ok(Upkeep {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

/// The upkeep thread; dropping this ends it and waits for it.
pub struct Upkeep {
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the metrics thread panicked");
        }
    }
}

impl ModelMetrics {
    fn new(recorder: &PrometheusRecorder, name: &str) -> Self {
        let model = [("model", name)];
        let threads = |phase| {
            let labels = [("model", name), ("phase", phase)];
            gauge(recorder, ENGINE_THREADS, &labels)
        };
        let tokens = |kind| counter(recorder, TOKENS, &[("model", name), ("kind", kind)]);
        let drafts = |result| {
            let labels = [("model", name), ("result", result)];
            counter(recorder, DRAFT_TOKENS, &labels)
        };
        Self {
            name: name.into(),
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
            time_to_first_token: histogram(recorder, TIME_TO_FIRST_TOKEN, &model),
            inter_token: histogram(recorder, INTER_TOKEN, &model),
            e2e: histogram(recorder, E2E, &model),
            queue: histogram(recorder, QUEUE, &model),
            tokens_input: tokens("input"),
            tokens_output: tokens("output"),
            tokens_cached: tokens("cached"),
            send_stalls: counter(recorder, SEND_STALLS, &model),
            pauses: counter(recorder, PAUSES, &model),
            drafts_accepted: drafts("accepted"),
            drafts_rejected: drafts("rejected"),
            parks: counter(recorder, PARKS, &model),
            moves: counter(recorder, MOVES, &model),
            engine_deaths: counter(recorder, ENGINE_DEATHS, &model),
            engine_reloads: counter(recorder, ENGINE_RELOADS, &model),
            running: gauge(recorder, REQUESTS_RUNNING, &model),
            waiting: gauge(recorder, REQUESTS_WAITING, &model),
            paused: gauge(recorder, SEQUENCES_PAUSED, &model),
            parked: gauge(recorder, PARKED, &model),
            kv_used: gauge(recorder, KV_USED, &model),
            kv_idle: gauge(recorder, KV_IDLE, &model),
            prefix_bytes: gauge(recorder, PREFIX_BYTES, &model),
            kv_capacity: gauge(recorder, KV_CAPACITY, &model),
            threads_decode: threads("decode"),
            threads_prefill: threads("prefill"),
        }
    }

    /// The model's name; "unknown" for what is not configured.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn shared_name(&self) -> Arc<str> {
        self.name.clone()
    }

    /// A request left the waiting line after this long.
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

    pub(super) fn request_ended(&self, route: Route, outcome: Outcome) {
        self.requests[route as usize][outcome as usize].increment(1);
    }

    pub(super) fn first_token(&self, after: Duration) {
        self.time_to_first_token.record(after);
    }

    pub(super) fn gaps(&self, micros: &[u32]) {
        for &gap in micros {
            self.inter_token.record(f64::from(gap) / 1e6);
        }
    }

    pub(super) fn finished_well(&self, duration: Duration) {
        self.e2e.record(duration);
    }

    pub(super) fn tokens_read(&self, prompt: u32, cached: u32) {
        self.tokens_input.increment(u64::from(prompt));
        self.tokens_cached.increment(u64::from(cached));
    }

    pub(super) fn tokens_generated(&self, count: u32) {
        self.tokens_output.increment(u64::from(count));
    }

    pub(super) fn reader_cut(&self) {
        self.send_stalls.increment(1);
    }
}

const ORIGIN: Metadata<'static> = Metadata::new("sluicegate", Level::INFO, None);

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    let labels: Vec<Label> = labels
        .iter()
        .map(|&(key, value)| Label::new(key, value.to_owned()))
        .collect();
    Key::from_parts(name, labels)
}

fn counter(
    recorder: &PrometheusRecorder,
    name: &'static str,
    labels: &[(&'static str, &str)],
) -> Counter {
    recorder.register_counter(&key(name, labels), &ORIGIN)
}

fn gauge(
    recorder: &PrometheusRecorder,
    name: &'static str,
    labels: &[(&'static str, &str)],
) -> Gauge {
    recorder.register_gauge(&key(name, labels), &ORIGIN)
}

fn histogram(
    recorder: &PrometheusRecorder,
    name: &'static str,
    labels: &[(&'static str, &str)],
) -> Histogram {
    recorder.register_histogram(&key(name, labels), &ORIGIN)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::telemetry) fn scrape(metrics: &Metrics) -> String {
        metrics.render(Scrape {
            streams_open: 3,
            tickets: TicketLoad {
                issued: 6,
                early_ids: 2,
                ..TicketLoad::default()
            },
            limits: LimitLoad {
                redis_up: true,
                nodes: 4,
                redis_failures: 15,
                alone: 16,
                quota_failures: 17,
            },
            streams_kept: 2,
            log_lines_dropped: 5,
            models: [(
                "m",
                ModelLoad {
                    running: 1,
                    waiting: 2,
                    paused: 3,
                    pauses: 4,
                    drafted: 9,
                    accepted_drafts: 7,
                    parked: 9,
                    parks: 10,
                    moves: 13,
                    kv_idle: 11,
                    prefix_bytes: 12,
                    prefix_hits: 14,
                    prefix_queries: 15,
                    steps: Steps::default(),
                    kv_used: 5,
                    kv_capacity: 6,
                    threads_decode: 7,
                    threads_prefill: 8,
                },
            )],
        })
    }

    pub(in crate::telemetry) fn value(text: &str, series: &str) -> String {
        let line = text
            .lines()
            .find(|line| {
                line.strip_prefix(series)
                    .is_some_and(|r| r.starts_with(' '))
            })
            .unwrap_or_else(|| panic!("no {series} in\n{text}"));
        line.rsplit(' ').next().unwrap().to_owned()
    }

    #[test]
    fn every_metric_is_rendered_from_the_start_with_help_and_never_as_a_summary() {
        let text = scrape(&Metrics::new(["m"]).unwrap());
        assert!(!text.contains(" summary"), "{text}");
        let names = HISTOGRAMS
            .map(|(name, ..)| (name, "histogram"))
            .into_iter()
            .chain(COUNTERS.map(|(name, _)| (name, "counter")))
            .chain(GAUGES.map(|(name, _)| (name, "gauge")));
        for (name, kind) in names {
            assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name}");
            assert!(text.contains(&format!("# HELP {name} ")), "{name}");
        }
    }

    #[test]
    fn pulled_figures_are_those_of_the_scrape() {
        let text = scrape(&Metrics::new(["m"]).unwrap());
        assert_eq!(value(&text, "sluicegate_streams_open"), "3");
        assert_eq!(value(&text, "sluicegate_streams_kept"), "2");
        assert_eq!(
            value(&text, r#"sluicegate_tls_tickets_total{event="issued"}"#),
            "6"
        );
        assert_eq!(value(&text, "sluicegate_early_ids"), "2");
        for (name, expected) in [
            ("redis_up", "1"),
            ("nodes", "4"),
            ("redis_failures_total", "15"),
            ("alone_total", "16"),
            ("quota_write_failures_total", "17"),
        ] {
            assert_eq!(value(&text, &format!("sluicegate_limit_{name}")), expected);
        }
        assert_eq!(
            value(&text, r#"sluicegate_requests_running{model="m"}"#),
            "1"
        );
        assert_eq!(
            value(&text, r#"sluicegate_requests_waiting{model="m"}"#),
            "2"
        );
        assert_eq!(
            value(&text, r#"sluicegate_sequences_paused{model="m"}"#),
            "3"
        );
        for (name, expected) in [
            ("pauses_total", "4"),
            ("parks_total", "10"),
            ("moves_total", "13"),
            ("sequences_parked", "9"),
            ("kv_tokens_idle", "11"),
            ("prefix_cache_bytes", "12"),
        ] {
            let sample = format!(r#"sluicegate_{name}{{model="m"}}"#);
            assert_eq!(value(&text, &sample), expected, "{name}");
        }
        for (result, expected) in [("accepted", "7"), ("rejected", "2")] {
            let series = format!(r#"sluicegate_draft_tokens_total{{model="m",result="{result}"}}"#);
            assert_eq!(value(&text, &series), expected);
        }
        assert_eq!(value(&text, r#"sluicegate_kv_tokens_used{model="m"}"#), "5");
        assert_eq!(
            value(&text, r#"sluicegate_kv_tokens_capacity{model="m"}"#),
            "6"
        );
        let threads = |phase| format!(r#"sluicegate_engine_threads{{model="m",phase="{phase}"}}"#);
        assert_eq!(value(&text, &threads("decode")), "7");
        assert_eq!(value(&text, &threads("prefill")), "8");
        assert_eq!(
            value(&text, r#"sluicegate_telemetry_dropped_total{signal="log"}"#),
            "5"
        );
    }

    #[test]
    fn buckets_rise() {
        for (name, _, buckets) in HISTOGRAMS {
            assert!(buckets.is_sorted_by(|a, b| a < b), "{name}");
        }
    }

    #[test]
    fn strange_model_names_make_no_series() {
        let metrics = Metrics::new(["m"]).unwrap();
        let before = scrape(&metrics).lines().count();
        for number in 0..100_000 {
            let model = metrics.model(&format!("model-{number}"));
            model.request_ended(Route::Chat, Outcome::Invalid);
        }
        let text = scrape(&metrics);
        assert_eq!(text.lines().count(), before);
        let series = r#"sluicegate_requests_total{model="unknown",route="chat",outcome="invalid"}"#;
        assert_eq!(value(&text, series), "100000");
    }

    #[test]
    fn each_outcome_and_route_has_its_own_counter() {
        let metrics = Metrics::new(["m"]).unwrap();
        let mut times = 0;
        for route in Route::ALL {
            for outcome in Outcome::ALL {
                times += 1;
                for _ in 0..times {
                    metrics.model("m").request_ended(route, outcome);
                }
                let (route, outcome) = (route.as_str(), outcome.as_str());
                let series = format!(
                    r#"sluicegate_requests_total{{model="m",route="{route}",outcome="{outcome}"}}"#
                );
                assert_eq!(value(&scrape(&metrics), &series), times.to_string());
            }
        }
    }

    #[test]
    fn a_connection_counts_until_its_guard_is_dropped() {
        let metrics = Metrics::new([]).unwrap();
        let first = metrics.transports.connection_opened();
        let _second = metrics.transports.connection_opened();
        drop(first);
        assert_eq!(value(&scrape(&metrics), "sluicegate_connections_open"), "1");
    }

    #[test]
    fn the_upkeep_thread_ends_with_its_handle() {
        let upkeep = Metrics::new([]).unwrap().start_upkeep().unwrap();
        drop(upkeep);
    }

    #[test]
    fn two_sets_of_metrics_do_not_meet() {
        let (a, b) = (Metrics::new(["m"]).unwrap(), Metrics::new(["m"]).unwrap());
        a.model("m").queued(Duration::from_millis(20));
        let count = r#"sluicegate_queue_seconds_count{model="m"}"#;
        assert_eq!(value(&scrape(&a), count), "1");
        assert_eq!(value(&scrape(&b), count), "0");
    }
}
