//! Traces: where a request's trace begins, and where it goes when it is over.
//!
//! While a request runs there is only its [`Trace`]: names and plain facts. When it is over it is decided
//! whether it is kept ([`keep`]); what is kept goes through a bounded [`queue`] to a thread that makes
//! spans of it and exports them ([`export`]). So a request costs the same whatever the collector does.

mod context;
mod events;
mod export;
mod keep;
mod process;
mod queue;
mod ratio;
mod semconv;
mod spans;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::export::ExportError;
pub use self::keep::Reason;
pub(super) use self::process::layer as process_layer;
use self::queue::{Item, Queue};
use super::config::{Config, Traces};
use super::slo::Slo;
use crate::generation::{Told, Trace, TraceSink};

/// How long the end waits for the thread of traces: a little longer than that for its last batch.
const LAST_SPANS: Duration = Duration::from_millis(2500);

/// Begins the trace of each request.
pub struct Tracer {
    sink: Arc<dyn TraceSink>,
    /// Where traces go somewhere.
    export: Option<Export>,
}

struct Export {
    sink: Arc<Sink>,
    /// Ends the thread when the tracer is gone.
    stop: CancellationToken,
    _stop: DropGuard,
    done: CancellationToken,
}

/// What the traces of this process have come to so far, for a scrape.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TraceLoad {
    /// Kept, by [`Reason::ALL`]; dropped ones are among them.
    pub kept: [u64; Reason::ALL.len()],
    /// Kept and yet never exported.
    pub dropped: u64,
    /// The part of ordinary traces that is kept now.
    pub ratio: f64,
}

/// Decides about each trace that is over.
struct Sink {
    settings: ArcSwap<Traces>,
    slo: Arc<Slo>,
    /// The part of ordinary traces that is kept now, as the bits of an `f64`.
    ratio: AtomicU64,
    /// By how much an operator has raised or lowered it, as the bits of an `f64`.
    detail: AtomicU64,
    kept: [AtomicU64; Reason::ALL.len()],
    queue: Queue,
}

struct Nowhere;

impl TraceSink for Nowhere {
    fn told(&self, _: Told) {}
}

impl Tracer {
    /// A tracer whose traces have names and go nowhere.
    #[must_use]
    pub fn off() -> Arc<Self> {
        Self::to(Arc::new(Nowhere))
    }

    /// A tracer whose traces go there.
    #[must_use]
    pub fn to(sink: Arc<dyn TraceSink>) -> Arc<Self> {
        Arc::new(Self { sink, export: None })
    }

    /// A tracer whose traces go where the configuration says, as far as `slo` and the configuration want
    /// them kept. Spans of the process's own work go there too, until another tracer is started.
    ///
    /// # Errors
    /// The thread cannot be started, or the endpoint cannot be used.
    pub fn start(config: &Config, slo: Arc<Slo>) -> Result<Arc<Self>, ExportError> {
        let Some(endpoint) = &config.otlp_endpoint else {
            return Ok(Self::off());
        };
        let sink = Arc::new(Sink::new(&config.traces, slo));
        let (stop, done) = (CancellationToken::new(), CancellationToken::new());
        export::start(config, endpoint, sink.clone(), stop.clone(), done.clone())?;
        process::export_to(&sink);
        Ok(Arc::new(Self {
            sink: sink.clone(),
            export: Some(Export {
                sink,
                _stop: stop.clone().drop_guard(),
                stop,
                done,
            }),
        }))
    }

    /// A request begins now, in the trace that these headers name, if they do.
    #[must_use]
    pub fn begin(&self, traceparent: Option<&str>, tracestate: Option<&str>) -> Trace {
        Trace::begin(context::begin(traceparent, tracestate), self.sink.clone())
    }

    /// Decides by these from now on.
    pub fn set(&self, settings: &Traces) {
        if let Some(export) = &self.export {
            export.sink.settings.store(Arc::new(settings.clone()));
        }
    }

    /// Keeps this many times as many of the ordinary traces as is configured.
    pub fn set_detail(&self, factor: f64) {
        if let Some(export) = &self.export {
            export.sink.detail.store(factor.to_bits(), Relaxed);
        }
    }

    /// What the traces have come to.
    #[must_use]
    pub fn load(&self) -> TraceLoad {
        let Some(Export { sink, .. }) = &self.export else {
            return TraceLoad::default();
        };
        TraceLoad {
            kept: sink.kept.each_ref().map(|count| count.load(Relaxed)),
            dropped: sink.queue.dropped.load(Relaxed),
            ratio: sink.ratio(),
        }
    }

    /// Exports what waits, for at most two seconds; what is told later is dropped.
    pub async fn close(&self) {
        if let Some(export) = &self.export {
            export.stop.cancel();
            // The thread may hang in a system call; the process must not.
            let _ = tokio::time::timeout(LAST_SPANS, export.done.cancelled()).await;
        }
    }
}

impl Sink {
    fn new(settings: &Traces, slo: Arc<Slo>) -> Self {
        Self {
            settings: ArcSwap::from_pointee(settings.clone()),
            slo,
            ratio: AtomicU64::new(settings.ratio.to_bits()),
            detail: AtomicU64::new(1f64.to_bits()),
            kept: Default::default(),
            queue: Queue::default(),
        }
    }

    fn ratio(&self) -> f64 {
        f64::from_bits(self.ratio.load(Relaxed))
    }

    /// What the ratio is while all is well.
    fn base_ratio(&self) -> f64 {
        let detail = f64::from_bits(self.detail.load(Relaxed));
        (self.settings.load().ratio * detail).clamp(0.0, 1.0)
    }
}

impl TraceSink for Sink {
    fn told(&self, told: Told) {
        let Some(reason) = keep::decide(&told, &self.slo, self.ratio()) else {
            return;
        };
        self.kept[reason as usize].fetch_add(1, Relaxed);
        let now = told.ended_at;
        let item = Item::Request(Box::new(told), reason);
        self.queue.push(item, now, &self.settings.load());
    }
}

#[cfg(test)]
mod tests;
