//! Traces: where a request's trace begins, and where it goes when it is over.

use std::sync::Arc;

use crate::generation::{Told, Trace, TraceContext, TraceSink};

/// Begins the trace of each request.
pub struct Tracer {
    sink: Arc<dyn TraceSink>,
}

struct Nowhere;

impl TraceSink for Nowhere {
    fn told(&self, _: Told) {}
}

impl Tracer {
    /// A tracer whose traces have names and go nowhere.
    #[must_use]
    pub fn off() -> Arc<Self> {
        Arc::new(Self {
            sink: Arc::new(Nowhere),
        })
    }

    /// A tracer whose traces go there.
    #[must_use]
    pub fn to(sink: Arc<dyn TraceSink>) -> Arc<Self> {
        Arc::new(Self { sink })
    }

    /// A request begins now, in the trace that these headers name, if they do.
    #[must_use]
    pub fn begin(&self, _traceparent: Option<&str>, _tracestate: Option<&str>) -> Trace {
        let random = uuid::Uuid::new_v4().as_u128();
        #[expect(clippy::cast_possible_truncation, reason = "half of it is as random")]
        let context = TraceContext {
            trace_id: uuid::Uuid::new_v4().as_u128(),
            span_id: random as u64 | 1,
            ..TraceContext::default()
        };
        Trace::begin(context, self.sink.clone())
    }
}
