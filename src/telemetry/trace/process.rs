//! Spans of the process's own work: loading models, reloading keys, draining.
//!
//! These come from `tracing`, which is one for the whole process; so is the place where they go. A span
//! is exported if it is made with [`PROCESS`] as its target; nothing that
//! happens for a request or a token goes this way, because it costs too much there.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, Span, SpanData, SpanProcessor};
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::registry::LookupSpan;

use super::Sink;
use super::queue::Item;
use super::spans::scope;
use crate::generation::clock;
use crate::telemetry::PROCESS;

/// Where they go: to the tracer that was started last, while there is one.
static SINK: Mutex<Weak<Sink>> = Mutex::new(Weak::new());

/// Spans go there from now on.
pub(super) fn export_to(sink: &Arc<Sink>) {
    *SINK.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(sink);
}

/// The layer that makes spans of `tracing`'s.
pub(in crate::telemetry) fn layer<S>() -> impl Layer<S> + Send + Sync
where
    S: Subscriber + Send + Sync + for<'span> LookupSpan<'span>,
{
    let only = filter_fn(|metadata| metadata.is_span() && metadata.target() == PROCESS);
    // Without it, every debug line would be looked at before it is found to be of no interest.
    let only = only.with_max_level_hint(LevelFilter::INFO);
    let provider = SdkTracerProvider::builder()
        .with_sampler(Sampler::AlwaysOn)
        .with_span_processor(ToSink)
        .build();
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer_with_scope(scope()))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_target(false)
        .with_filter(only)
}

#[derive(Debug)]
struct ToSink;

impl SpanProcessor for ToSink {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        let sink = SINK
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .upgrade();
        if let Some(sink) = sink {
            let item = Item::Process(Box::new(span));
            sink.queue
                .push(item, clock::micros(), &sink.settings.load());
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}
