//! The metrics: every name in one place, one function per observation.
//!
//! Label values come from closed sets only (configured model names, enums of ours), so no request
//! can make a new series. Figures that somebody else keeps (running sequences, KV cells) are read
//! when Prometheus asks.

mod aliases;
pub(super) mod config;
mod engine;
mod families;
mod gaps;
mod limits;
mod load;
mod model;
mod names;
mod objective;
mod pace;
mod pages;
mod process;
mod quic;
mod operations;
mod route;
mod traffic;
mod runtime;
mod sheds;
#[cfg(test)]
pub(super) mod tests;
mod text;
mod transports;

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use tokio::runtime::Handle;

use self::config::Config;
pub use self::limits::{Limit, LimitLoad, LimitMetrics, Scope};
pub use self::load::{ModelInfo, ModelLoad, ModelScrape, Scrape};
use self::model::Common;
pub use self::model::ModelMetrics;
use self::names::{
    BUILD_INFO, COUNTERS, GAUGES, HISTOGRAMS, INTER_TOKEN, RENDER_SECONDS, REQUEST_RATE,
    REQUEST_RATE_ANOMALY, REQUEST_RATE_BASELINE, SERIES_DROPPED, STREAMS_KEPT, STREAMS_OPEN,
    TELEMETRY_DROPPED,
};
use self::objective::Objective;
pub use self::operations::Operations;
use self::pace::Pace;
pub use self::pages::{Page, Pages, Upkeep};
pub use self::quic::{QuicCounts, Watched};
pub use self::route::Route;
use self::runtime::{Looked, Runtime};
use self::sheds::Sheds;
use self::text::Text;
pub use self::traffic::{Speaking, Traffic, Transport};
pub use self::transports::{ConnectionOpen, EarlyRequest, Handshake, TicketLoad, Transports};
use super::slo::Slo;

/// The model label of what names no configured model. A model of this name would have its series twice.
pub const UNKNOWN_MODEL: &str = "unknown";

/// The model label of all models for which `max_series` leaves no room.
const OTHER_MODEL: &str = "other";

/// Every series of this process.
pub struct Metrics {
    handle: PrometheusHandle,
    /// By the name that a request is counted under.
    models: HashMap<Arc<str>, Arc<ModelMetrics>>,
    /// Those that have series of their own, in the order of the configuration.
    own: Vec<Arc<ModelMetrics>>,
    /// For every name that is not configured.
    unknown: Arc<ModelMetrics>,
    /// For models that are too many.
    other: Option<Arc<ModelMetrics>>,
    series_dropped: usize,
    streams_open: Gauge,
    streams_kept: Gauge,
    /// What the sockets count.
    pub transports: Transports,
    /// What limits refuse and charge.
    pub limits: LimitMetrics,
    log_lines_dropped: Counter,
    objective: Objective,
    /// Judges the requests of all models.
    pub slo: Arc<Slo>,
    common: Common,
    runtime: Runtime,
    /// What runs the tasks, once that is known.
    runs_on: OnceLock<Handle>,
    started: Instant,
    moving: Mutex<Moving>,
    /// What operators do.
    pub operations: Operations,
}

/// What is worked out from second to second.
struct Moving {
    pace: Pace,
    looked: Option<Looked>,
    render_seconds: f64,
}

impl Metrics {
    /// The series for these configured models, all at zero.
    ///
    /// # Errors
    /// A histogram has no buckets.
    pub fn new<'a>(models: impl IntoIterator<Item = &'a str>) -> Result<Self, BuildError> {
        Self::with(&Config::default(), models)
    }

    /// The same, as they are configured.
    ///
    /// # Errors
    /// As [`Metrics::new`].
    pub fn with<'a>(
        config: &Config,
        models: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, BuildError> {
        let recorder = recorder()?;
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        gauge(&recorder, BUILD_INFO, &version).set(1.0);
        let common = Common {
            arrivals: Arc::default(),
            sheds: Arc::new(Sheds::new(&recorder)),
            slo: Arc::default(),
        };
        let mut metrics = Self {
            handle: recorder.handle(),
            models: HashMap::new(),
            own: Vec::new(),
            unknown: Arc::new(ModelMetrics::new(&recorder, UNKNOWN_MODEL, &common)),
            other: None,
            series_dropped: 0,
            streams_open: gauge(&recorder, STREAMS_OPEN, &[]),
            streams_kept: gauge(&recorder, STREAMS_KEPT, &[]),
            limits: LimitMetrics::new(&recorder),
            transports: Transports::new(&recorder),
            operations: Operations::new(&recorder),
            log_lines_dropped: counter(&recorder, TELEMETRY_DROPPED, &[("signal", "log")]),
            objective: Objective::new(&recorder),
            slo: common.slo.clone(),
            runtime: Runtime::new(&recorder),
            runs_on: OnceLock::new(),
            started: Instant::now(),
            moving: Mutex::new(Moving {
                pace: Pace::new(config.anomaly_factor),
                looked: None,
                render_seconds: 0.0,
            }),
            common,
        };
        metrics.register(&recorder, config, models);
        Ok(metrics)
    }

    /// Makes the series of the configured models, as long as there is room for them.
    fn register<'a>(
        &mut self,
        recorder: &PrometheusRecorder,
        config: &Config,
        models: impl IntoIterator<Item = &'a str>,
    ) {
        let most = usize::try_from(config.max_series.get()).unwrap_or(usize::MAX);
        let without = self.series();
        let mut each = 0;
        let common = self.common.clone();
        let make = |name: &str| Arc::new(ModelMetrics::new(recorder, name, &common));
        for name in models {
            // The last place is for all those that find none.
            let is_room = without + (self.own.len() + 2) * each <= most;
            let model = if is_room {
                let model = make(name);
                self.own.push(model.clone());
                if each == 0 {
                    each = self.series() - without;
                }
                model
            } else {
                self.series_dropped += each;
                self.other.get_or_insert_with(|| make(OTHER_MODEL)).clone()
            };
            self.models.insert(name.into(), model);
        }
        if self.series_dropped > 0 {
            tracing::warn!(
                telemetry.metrics.max_series = most,
                models = self.own.len(),
                dropped = self.series_dropped,
                "too many models for telemetry.metrics.max_series; the last ones are counted together, as \"other\""
            );
        }
    }

    /// How many series there are; each model that gets ready has one more.
    fn series(&self) -> usize {
        let text = self.write(&Scrape::default());
        let samples = text.lines();
        let samples = samples.filter(|line| !line.is_empty() && !line.starts_with('#'));
        samples.count() + self.own.len()
    }

    /// The series of a configured model; those of "unknown" for every other name.
    #[must_use]
    pub fn model(&self, name: &str) -> &Arc<ModelMetrics> {
        self.models.get(name).unwrap_or(&self.unknown)
    }

    /// Everything in Prometheus' text format (version 0.0.4). Takes milliseconds with many models:
    /// not for a thread that carries streams.
    #[must_use]
    pub fn render(&self, scrape: &Scrape) -> String {
        self.pull(scrape);
        self.write(scrape)
    }

    /// Takes over what others keep.
    fn pull(&self, scrape: &Scrape) {
        #[expect(clippy::cast_precision_loss, reason = "no process has 2^53 streams")]
        {
            self.streams_open.set(scrape.streams_open as f64);
            self.streams_kept.set(scrape.streams_kept as f64);
        }
        self.transports.pull(&scrape.tickets);
        self.limits.pull(&scrape.limits);
        self.objective.pull(&self.slo, &scrape.traces);
        self.log_lines_dropped.absolute(scrape.log_lines_dropped);
    }

    fn write(&self, scrape: &Scrape) -> String {
        let mut text = Text::after(self.handle.render());
        self.transports.write(&mut text);
        text.family(&INTER_TOKEN);
        let all = self.own.iter().chain(&self.other);
        for model in all.chain([&self.unknown]) {
            model.write_gaps(&mut text);
        }
        let read: HashMap<&str, _> = scrape
            .models
            .iter()
            .map(|model| (&*model.name, model))
            .collect();
        let names = self.own.iter().map(|model| model.name());
        let models: Vec<_> = names.map(|name| (name, read.get(name).copied())).collect();
        engine::write(&mut text, &models);
        self.runtime.write(&mut text, self.runs_on.get());
        self.write_moving(&mut text);
        text.single(&SERIES_DROPPED, self.series_dropped);
        process::write(&mut text);
        text.into_string()
    }

    fn write_moving(&self, text: &mut Text) {
        let moving = self.moving();
        let pace = moving.pace.read();
        text.single(&REQUEST_RATE, pace.rate);
        text.single(&REQUEST_RATE_BASELINE, pace.baseline);
        text.single(&REQUEST_RATE_ANOMALY, u8::from(pace.is_anomaly));
        text.single(&RENDER_SECONDS, moving.render_seconds);
    }

    /// Notes how late tasks come to run, for as long as it is polled; more often while `is_busy`.
    pub async fn probe(&self, is_busy: impl Fn() -> bool) {
        self.runtime.probe(is_busy).await;
    }

    /// What has to be done every second: samples are folded into buckets, until then each takes 16
    /// bytes; what moves is looked at.
    fn tick(&self) {
        self.handle.run_upkeep();
        let mut moving = self.moving();
        let now = self.started.elapsed();
        moving.pace.note(now, self.common.arrivals.load(Relaxed));
        if let Some(runtime) = self.runs_on.get() {
            moving.looked = Some(self.runtime.look(runtime, moving.looked));
        }
    }

    fn moving(&self) -> MutexGuard<'_, Moving> {
        self.moving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An exporter that knows every name and every bucket.
fn recorder() -> Result<PrometheusRecorder, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for (name, _, buckets) in HISTOGRAMS {
        builder = builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), buckets)?;
    }
    let recorder = builder.build_recorder();
    for &(name, help, _) in HISTOGRAMS {
        recorder.describe_histogram(name.into(), None, help.into());
    }
    for &(name, help) in COUNTERS {
        recorder.describe_counter(name.into(), None, help.into());
    }
    for &(name, help) in GAUGES {
        recorder.describe_gauge(name.into(), None, help.into());
    }
    Ok(recorder)
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
