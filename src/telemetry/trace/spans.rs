//! A request that is over, as spans: from its first byte to its last, each call that it asked for, and
//! what a call waited for.
//!
//! Made on the exporter's thread and only for what is kept. Every span lies within its parent: times are
//! those that were taken when things happened, cut where two threads read the clock in another order.

use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{Array, InstrumentationScope, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};

use super::keep::{Reason, is_ours};
use super::{events, semconv};
use crate::generation::{Moment, Told, Work, chain, clock};

/// Stalls of one call that have spans.
const STALL_SPANS: usize = 16;

/// What an error says of itself, at most.
const ERROR_CHARS: usize = 256;

/// Ties the process's clock to that of the world. Made anew for each batch, because the world's clock
/// is set right now and then.
#[derive(Clone, Copy)]
pub(super) struct Anchor {
    world: SystemTime,
    micros: u64,
}

impl Anchor {
    pub(super) fn now() -> Self {
        Self {
            world: SystemTime::now(),
            micros: clock::micros(),
        }
    }

    pub(super) fn at(self, micros: u64) -> SystemTime {
        let after = Duration::from_micros(micros.saturating_sub(self.micros));
        let before = Duration::from_micros(self.micros.saturating_sub(micros));
        self.world + after - before
    }
}

/// Makes spans.
pub(super) struct Spans {
    scope: InstrumentationScope,
    ids: RandomIdGenerator,
}

/// A stretch of time, in the process's microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stretch {
    pub(super) from: u64,
    pub(super) to: u64,
}

impl Stretch {
    /// What of `from..to` lies within.
    fn part(self, from: u64, to: u64) -> Self {
        let from = from.clamp(self.from, self.to);
        Self {
            from,
            to: to.clamp(from, self.to),
        }
    }
}

/// Where a span belongs.
struct Place<'a> {
    told: &'a Told,
    anchor: Anchor,
    parent: u64,
}

impl Spans {
    pub(super) fn new() -> Self {
        Self {
            scope: scope(),
            ids: RandomIdGenerator::default(),
        }
    }

    /// All spans of a trace, its root first.
    pub(super) fn of(
        &self,
        told: &Told,
        reason: Reason,
        anchor: Anchor,
        token_events: usize,
    ) -> Vec<SpanData> {
        let all = Stretch {
            from: told.began_at.min(told.ended_at),
            to: told.ended_at,
        };
        let outside = Place {
            told,
            anchor,
            parent: told.context.parent.unwrap_or(0),
        };
        let mut spans = Vec::with_capacity(1 + 4 * told.works.len());
        spans.push(self.root(&outside, all, reason));
        let token_events = if told.context.is_debug {
            usize::MAX
        } else {
            token_events
        };
        for work in &told.works {
            let place = Place {
                parent: told.context.span_id,
                ..outside
            };
            self.call(&mut spans, &place, all, work, token_events);
        }
        spans
    }

    fn root(&self, place: &Place<'_>, all: Stretch, reason: Reason) -> SpanData {
        let told = place.told;
        let exchange = &told.exchange;
        // Where there is nothing, a path has no name.
        let name = if exchange.route.is_empty() {
            exchange.method.into()
        } else {
            format!("{} {}", exchange.method, exchange.route)
        };
        let mut span = self.span(place, told.context.span_id, name, all);
        span.span_kind = SpanKind::Server;
        span.parent_span_is_remote = told.context.parent.is_some();
        let mut say = |name: &'static str, value: Value| {
            span.attributes.push(KeyValue::new(name, value));
        };
        say(semconv::METHOD, exchange.method.into());
        if !exchange.route.is_empty() {
            say(semconv::ROUTE, exchange.route.into());
        }
        say(semconv::TRANSPORT, exchange.transport.into());
        if let Some((name, version)) = semconv::protocol(exchange.transport) {
            say(semconv::PROTOCOL_NAME, name.into());
            say(semconv::PROTOCOL_VERSION, version.into());
        }
        if exchange.status != 0 {
            say(semconv::STATUS, i64::from(exchange.status).into());
        }
        say(semconv::BODY_SIZE, int(exchange.bytes));
        if !exchange.stalled.is_zero() {
            let stalled = u64::try_from(exchange.stalled.as_micros()).unwrap_or(u64::MAX);
            say(semconv::RESPONSE_STALLED, int(stalled));
        }
        say(semconv::WHOLE, exchange.is_whole.into());
        if let Some(id) = &exchange.id {
            say(semconv::REQUEST_ID, id.as_str().to_owned().into());
        }
        say(semconv::KEPT, reason.as_str().into());
        if told.context.parent.is_some() && !told.context.is_sampled {
            // Those before us in the trace do not have their part of it.
            say(semconv::LATE, true.into());
        }
        let failed = told.works.iter().find(|work| is_ours(work.record.outcome));
        let error = match failed {
            Some(work) => Some(work.record.outcome.as_str().into()),
            None if exchange.status >= 500 => Some(exchange.status.to_string().into()),
            None => None,
        };
        if let Some(error) = error {
            say(semconv::ERROR_TYPE, Value::String(error));
            span.status = Status::error("");
        }
        span
    }

    fn call(
        &self,
        spans: &mut Vec<SpanData>,
        place: &Place<'_>,
        all: Stretch,
        work: &Work,
        token_events: usize,
    ) {
        let record = &work.record;
        let took = u64::try_from(record.duration.as_micros()).unwrap_or(u64::MAX);
        let whole = all.part(work.accepted_at, work.accepted_at.saturating_add(took));
        let id = self.new_id();
        let operation = semconv::operation(work.route);
        let name = format!("{operation} {}", work.model);
        let mut span = self.span(place, id, name, whole);
        span.attributes = call_attributes(operation, work);
        if is_ours(record.outcome) {
            span.status = Status::error(work.failure.as_ref().map_or(String::new(), |failure| {
                chain(failure).chars().take(ERROR_CHARS).collect()
            }));
        }
        let tokens = events::of(work, whole, place.anchor, token_events);
        span.events = SpanEvents::default();
        span.events.events = tokens.events;
        span.events.dropped_count = tokens.dropped;
        span.attributes.extend(tokens.list);
        spans.push(span);

        let inside = Place {
            parent: id,
            ..*place
        };
        let mut child = |name: &'static str, from: u64, to: u64| {
            let stretch = whole.part(from, to);
            spans.push(self.span(&inside, self.new_id(), name, stretch));
        };
        let moments = work.timeline.moments();
        let first_at = |wanted: Moment| {
            let found = moments.iter().find(|(_, moment)| *moment == wanted);
            found.map(|&(at, _)| at)
        };
        let waits = &record.waits;
        let after = |from: u64, wait: Duration| {
            from.saturating_add(u64::try_from(wait.as_micros()).unwrap_or(u64::MAX))
        };
        let (first, last) = (work.timeline.first(), work.timeline.last());
        let queued = waits.queue.map(|wait| after(work.accepted_at, wait));
        let admitted = first_at(Moment::Admitted).or(queued);
        if let Some(admitted) = admitted {
            child(semconv::QUEUE, work.accepted_at, admitted);
        }
        let read = first_at(Moment::Prefilled).or(first);
        if let (Some(admitted), Some(read)) = (admitted, read) {
            child(semconv::PREFILL, admitted, read);
        }
        if let (Some(first), Some(last)) = (first, last) {
            child(semconv::DECODE, first, last);
        }
        let stalls = moments.iter().filter_map(|&(at, moment)| match moment {
            Moment::Stalled(long) => Some((at, at.saturating_add(long))),
            _ => None,
        });
        for (from, to) in stalls.take(STALL_SPANS) {
            child(semconv::STALL_SPAN, from, to);
        }
    }

    fn span(
        &self,
        place: &Place<'_>,
        id: u64,
        name: impl Into<std::borrow::Cow<'static, str>>,
        stretch: Stretch,
    ) -> SpanData {
        let context = &place.told.context;
        let state = context
            .state
            .as_deref()
            .and_then(|state| state.parse().ok());
        SpanData {
            span_context: SpanContext::new(
                TraceId::from(context.trace_id),
                SpanId::from(id),
                TraceFlags::SAMPLED,
                false,
                state.unwrap_or(TraceState::NONE),
            ),
            parent_span_id: SpanId::from(place.parent),
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: name.into(),
            start_time: place.anchor.at(stretch.from),
            end_time: place.anchor.at(stretch.to),
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }

    fn new_id(&self) -> u64 {
        u64::from_be_bytes(self.ids.new_span_id().to_bytes()).max(1)
    }
}

/// Who makes these spans, and by which names.
pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope::builder(semconv::US)
        .with_version(env!("CARGO_PKG_VERSION"))
        .with_schema_url(semconv::SCHEMA)
        .build()
}

fn call_attributes(operation: &'static str, work: &Work) -> Vec<KeyValue> {
    let record = &work.record;
    let model = || Value::from(work.model.clone());
    let mut said = vec![
        KeyValue::new(semconv::OPERATION, operation),
        KeyValue::new(semconv::PROVIDER, semconv::US),
        KeyValue::new(semconv::REQUEST_MODEL, model()),
        KeyValue::new(semconv::RESPONSE_MODEL, model()),
        KeyValue::new(semconv::CALL_ROUTE, work.route),
        KeyValue::new(semconv::OUTCOME, record.outcome.as_str()),
        KeyValue::new(semconv::INPUT_TOKENS, i64::from(record.usage.prompt_tokens)),
        KeyValue::new(
            semconv::OUTPUT_TOKENS,
            i64::from(record.usage.completion_tokens),
        ),
        KeyValue::new(
            semconv::CACHED_TOKENS,
            i64::from(record.usage.cached_tokens),
        ),
        KeyValue::new(semconv::MAX_GAP, i64::from(record.max_gap_us)),
    ];
    if let Some(finish) = record.finish {
        let reasons = vec![StringValue::from(finish.as_str())];
        said.push(KeyValue::new(
            semconv::FINISH_REASONS,
            Value::Array(Array::String(reasons)),
        ));
    }
    if let Some(first) = record.time_to_first_token {
        said.push(KeyValue::new(semconv::FIRST_CHUNK, first.as_secs_f64()));
    }
    if let Some(failure) = &work.failure {
        let kind = failure.code.unwrap_or(record.outcome.as_str());
        said.push(KeyValue::new(semconv::ERROR_TYPE, kind));
    }
    said
}

/// As far as an attribute can say it.
pub(super) fn int(value: u64) -> Value {
    Value::I64(i64::try_from(value).unwrap_or(i64::MAX))
}
