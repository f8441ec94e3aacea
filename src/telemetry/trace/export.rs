//! The thread that makes spans of what is kept and hands them to the collector.
//!
//! It has a runtime of its own, so that neither a slow collector nor the work of making spans takes
//! anything from the runtime that carries requests. What the collector does not take in time is dropped
//! and counted, a trace whole or not at all.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{
    ExporterBuildError, RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig,
    WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{
    EnvResourceDetector, ResourceDetector, TelemetryResourceDetector,
};
use opentelemetry_sdk::trace::{SpanData, SpanExporter as Exporter};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::queue::{Item, Queue, Size};
use super::spans::{Anchor, Spans};
use super::{Sink, ratio, semconv};
use crate::telemetry::config::{Config, Endpoint, Protocol};

/// How long the collector may take for a batch.
const TIMEOUT: Duration = Duration::from_secs(10);

/// One more try, this long after the first: a collector that is just being replaced. Not more, because
/// what comes meanwhile has to wait.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// How long the end of the process waits for the last batch.
const LAST_BATCH: Duration = Duration::from_secs(2);

/// Between two lines about a collector that does not answer.
const COMPLAIN_EVERY: Duration = Duration::from_mins(1);

/// Why traces cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// No thread, or no runtime for it.
    #[error("cannot start the thread of traces")]
    Thread(#[from] io::Error),
    /// The exporter does not take the configuration.
    #[error("telemetry.otlp_endpoint cannot be used")]
    Exporter(#[from] ExporterBuildError),
}

/// Starts the thread. It ends some time after `stop`, and then cancels `done`.
pub(super) fn start(
    config: &Config,
    endpoint: &Endpoint,
    sink: Arc<Sink>,
    stop: CancellationToken,
    done: CancellationToken,
) -> Result<(), ExportError> {
    let (protocol, endpoint) = (config.otlp_protocol, endpoint.clone());
    let (tell, told) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name("traces".to_owned())
        .spawn(move || {
            let _done = done.drop_guard();
            let runtime = match tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
            {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = tell.send(Err(error.into()));
                    return;
                }
            };
            runtime.block_on(async {
                match exporter(protocol, &endpoint) {
                    Ok(exporter) => {
                        let _ = tell.send(Ok(()));
                        run(exporter, &sink, &stop).await;
                    }
                    Err(error) => {
                        let _ = tell.send(Err(error));
                    }
                }
            });
            // A connection that hangs is not waited for.
            runtime.shutdown_background();
        })?;
    told.recv()
        .unwrap_or_else(|_| Err(io::Error::other("the thread has ended").into()))
}

fn exporter(protocol: Protocol, endpoint: &Endpoint) -> Result<SpanExporter, ExportError> {
    let retry = RetryPolicy::disabled()
        .with_max_retries(1)
        .with_initial_delay(RETRY_AFTER)
        .with_max_delay(RETRY_AFTER);
    let builder = SpanExporter::builder();
    let mut exporter = match protocol {
        Protocol::Grpc => {
            let mut builder = builder
                .with_tonic()
                .with_endpoint(endpoint.as_str())
                .with_timeout(TIMEOUT)
                .with_retry_policy(retry);
            if endpoint.is_secure() {
                let tls = ClientTlsConfig::new().with_enabled_roots();
                builder = builder.with_tls_config(tls);
            }
            builder.build()?
        }
        Protocol::Http => {
            let builder = builder
                .with_http()
                .with_endpoint(endpoint.traces_url())
                .with_timeout(TIMEOUT)
                .with_retry_policy(retry);
            if endpoint.is_secure() {
                let connector = hyper_rustls::HttpsConnectorBuilder::new()
                    .with_provider_and_native_roots(rustls::crypto::ring::default_provider())?
                    .https_only()
                    .enable_http1()
                    .build();
                let client = HyperClient::new(connector, TIMEOUT, None);
                builder.with_http_client(client).build()?
            } else {
                builder.build()?
            }
        }
    };
    exporter.set_resource(&resource());
    Ok(exporter)
}

/// Who speaks: the environment's word counts (`OTEL_RESOURCE_ATTRIBUTES`, `OTEL_SERVICE_NAME`).
fn resource() -> Resource {
    let instance = uuid::Uuid::new_v4().to_string();
    let detectors: [Box<dyn ResourceDetector>; 2] = [
        Box::new(TelemetryResourceDetector),
        Box::new(EnvResourceDetector::new()),
    ];
    let named = std::env::var("OTEL_SERVICE_NAME").ok();
    let builder = Resource::builder_empty()
        .with_attributes([
            KeyValue::new(semconv::SERVICE_NAME, semconv::US),
            KeyValue::new(semconv::SERVICE_VERSION, env!("CARGO_PKG_VERSION")),
            KeyValue::new(semconv::SERVICE_INSTANCE, instance),
        ])
        .with_detectors(&detectors);
    match named.filter(|name| !name.is_empty()) {
        Some(name) => builder.with_service_name(name).build(),
        None => builder.build(),
    }
}

async fn run(exporter: impl Exporter, sink: &Arc<Sink>, stop: &CancellationToken) {
    let steering = tokio::spawn(steer(sink.clone()));
    let mut courier = Courier {
        exporter,
        spans: Spans::new(),
        complained: None,
    };
    let mut looks = tokio::time::interval(ratio::STEP);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let carrying = async {
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = sink.queue.full.notified() => {}
                () = stop.cancelled() => {}
            }
            // Before the last look: what comes after it is dropped below.
            let is_last = stop.is_cancelled();
            courier.carry(sink).await;
            if is_last {
                return;
            }
        }
    };
    let patience = async {
        stop.cancelled().await;
        tokio::time::sleep(LAST_BATCH).await;
    };
    tokio::select! {
        () = carrying => {}
        // A batch that was on its way is counted by its guard.
        () = patience => {}
    }
    steering.abort();
    sink.queue.close();
}

/// Moves the ratio by how the objective fares.
async fn steer(sink: Arc<Sink>) {
    let mut ratio = ratio::Ratio::new();
    let mut steps = tokio::time::interval(ratio::STEP);
    steps.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        steps.tick().await;
        let next = ratio.step(sink.base_ratio(), sink.slo.burn().five_minutes);
        sink.ratio.store(next.to_bits(), Relaxed);
    }
}

struct Courier<E> {
    exporter: E,
    spans: Spans,
    complained: Option<Instant>,
}

/// Counts the traces of a batch as lost unless it is told that they arrived.
struct OnTheWay<'a> {
    queue: &'a Queue,
    traces: u64,
}

impl Drop for OnTheWay<'_> {
    fn drop(&mut self) {
        self.queue.dropped.fetch_add(self.traces, Relaxed);
    }
}

impl<E: Exporter> Courier<E> {
    /// Exports all that waits, batch by batch.
    async fn carry(&mut self, sink: &Sink) {
        loop {
            let (batch, traces) = self.batch(sink);
            if traces == 0 {
                return;
            }
            let mut on_the_way = OnTheWay {
                queue: &sink.queue,
                traces,
            };
            let sent = tokio::time::timeout(TIMEOUT, self.exporter.export(batch)).await;
            let error = match sent {
                Ok(Ok(())) => {
                    on_the_way.traces = 0;
                    if self.complained.take().is_some() {
                        tracing::info!("traces are exported again");
                    }
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer for {TIMEOUT:?}"),
            };
            drop(on_the_way);
            if self
                .complained
                .is_none_or(|at| at.elapsed() > COMPLAIN_EVERY)
            {
                self.complained = Some(Instant::now());
                tracing::warn!(error, traces, "traces could not be exported");
            }
        }
    }

    /// The spans of whole traces, until a batch is full; and how many traces.
    fn batch(&self, sink: &Sink) -> (Vec<SpanData>, u64) {
        let (anchor, token_events) = (Anchor::now(), sink.settings.load().token_events);
        let (mut batch, mut traces, mut size) = (Vec::new(), 0, Size::default());
        while !size.is_full()
            && let Some((item, more)) = sink.queue.pop(size)
        {
            traces += 1;
            size.spans += more.spans;
            size.bytes += more.bytes;
            match item {
                Item::Request(told, reason) => {
                    batch.extend(self.spans.of(&told, reason, anchor, token_events));
                }
                Item::Process(span) => batch.push(*span),
            }
        }
        (batch, traces)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use opentelemetry_sdk::error::OTelSdkResult;

    use super::super::tests::{told, work};
    use super::*;
    use crate::generation::{Outcome, TraceSink};
    use crate::telemetry::config::Traces;
    use crate::telemetry::slo::{Slo, Verdict};

    /// Takes every batch at once, or none ever.
    #[derive(Clone, Debug, Default)]
    struct Far {
        hangs: bool,
        spans: Arc<Mutex<usize>>,
    }

    impl Exporter for Far {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            if self.hangs {
                std::future::pending::<()>().await;
            }
            *self.spans.lock().unwrap() += batch.len();
            Ok(())
        }
    }

    fn sink(ratio: f64, slo: &Arc<Slo>) -> Arc<Sink> {
        let settings = Traces {
            ratio,
            ..Traces::default()
        };
        Arc::new(Sink::new(&settings, slo.clone()))
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_two_seconds_for_a_collector_that_hangs_and_counts_what_is_lost() {
        for hangs in [true, false] {
            let (sink, stop) = (sink(1.0, &Arc::default()), CancellationToken::new());
            let spans = Arc::default();
            let far = Far {
                hangs,
                spans: Arc::clone(&spans),
            };
            // More than a batch.
            for _ in 0..300 {
                sink.told(told(vec![work("m", Outcome::Ok)]));
            }
            stop.cancel();
            let began = Instant::now();
            run(far, &sink, &stop).await;
            let (waits, lost) = if hangs {
                (LAST_BATCH, 300)
            } else {
                (Duration::ZERO, 0)
            };
            assert_eq!(began.elapsed().as_secs(), waits.as_secs());
            assert_eq!(sink.queue.dropped.load(Relaxed), lost);
            // Its request and its call: there are no times of tokens.
            assert_eq!(
                *spans.lock().unwrap(),
                (300 - usize::try_from(lost).unwrap()) * 2
            );
            // What comes later is not kept for nobody.
            sink.told(told(vec![work("m", Outcome::Ok)]));
            assert_eq!(sink.queue.dropped.load(Relaxed), lost + 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_ratio_follows_the_objective_up_and_back_and_the_operator() {
        let slo = Arc::<Slo>::default();
        let (sink, stop) = (sink(0.01, &slo), CancellationToken::new());
        let running = tokio::spawn({
            let (sink, stop) = (sink.clone(), stop.clone());
            async move { run(Far::default(), &sink, &stop).await }
        });
        let is = |ratio: f64| (sink.ratio() - ratio).abs() < 1e-9;
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert!(is(0.01));
        slo.count(Verdict::Bad);
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert!(is(1.0));
        // Five minutes know of it, then it comes back.
        tokio::time::sleep(Duration::from_mins(10)).await;
        assert!(is(0.01));
        sink.detail.store(2f64.to_bits(), Relaxed);
        tokio::time::sleep(ratio::STEP * 2).await;
        assert!(is(0.02));
        stop.cancel();
        running.await.unwrap();
    }
}
