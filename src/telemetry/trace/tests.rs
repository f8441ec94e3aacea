//! A trace from its end to its spans.

use std::collections::HashMap;
use std::time::Duration;

use opentelemetry::Value;
use opentelemetry::trace::{SpanId, SpanKind, Status};
use opentelemetry_sdk::trace::SpanData;
use proptest::prelude::*;

use super::spans::{Anchor, Spans};
use super::*;
use crate::generation::{
    Exchange, Failure, Finish, Moment, Outcome, Record, RequestId, Timeline, TraceContext, Usage,
    Waits, Work,
};

/// A request that ended so, from 1,000 to 9,000 microseconds.
pub(super) fn told(works: Vec<Work>) -> Told {
    Told {
        context: TraceContext {
            trace_id: u128::MAX / 2,
            span_id: 7,
            ..TraceContext::default()
        },
        began_at: 500,
        ended_at: 9500,
        exchange: Exchange {
            method: "POST",
            route: "/v1/chat/completions",
            transport: "h2",
            id: RequestId::parse("req-1"),
            status: 200,
            bytes: 300,
            is_whole: true,
            ..Exchange::default()
        },
        works,
    }
}

pub(super) fn work(model: &str, outcome: Outcome) -> Work {
    Work {
        route: "chat",
        model: model.into(),
        accepted_at: 1000,
        record: Record {
            waits: Waits::default(),
            outcome,
            finish: (outcome == Outcome::Ok).then_some(Finish::Stop),
            usage: Usage {
                prompt_tokens: 10,
                cached_tokens: 4,
                completion_tokens: 2,
            },
            time_to_first_token: Some(Duration::from_millis(2)),
            duration: Duration::from_millis(8),
            max_gap_us: 1000,
        },
        timeline: Timeline::default(),
        failure: None,
    }
}

fn spans(told: &Told) -> Vec<SpanData> {
    Spans::new().of(told, Reason::Ratio, Anchor::now(), 128)
}

fn said<'a>(span: &'a SpanData, name: &str) -> Option<&'a Value> {
    let said = span
        .attributes
        .iter()
        .find(|said| said.key.as_str() == name);
    said.map(|said| &said.value)
}

fn text(span: &SpanData, name: &str) -> String {
    said(span, name).map_or(String::new(), |value| value.as_str().into_owned())
}

#[test]
fn a_chat_has_its_request_its_call_and_its_phases() {
    let mut chat = work("m", Outcome::Ok);
    chat.timeline.moment(1200, Moment::Admitted);
    chat.timeline.moment(2900, Moment::Prefilled);
    chat.timeline.token(3000, 0, 4);
    chat.timeline.token(4000, 0, 4);
    let mut told = told(vec![chat]);
    told.context.parent = Some(99);
    let anchor = Anchor::now();
    let spans = Spans::new().of(&told, Reason::Slo, anchor, 128);
    let times: Vec<_> = spans
        .iter()
        .map(|span| (&*span.name, span.start_time, span.end_time))
        .collect();
    let expected = [
        ("POST /v1/chat/completions", 500, 9500),
        ("chat m", 1000, 9000),
        ("queue", 1000, 1200),
        ("prefill", 1200, 2900),
        ("decode", 3000, 4000),
    ];
    assert_eq!(
        times,
        expected.map(|(name, from, to)| (name, anchor.at(from), anchor.at(to)))
    );
    let (root, call) = (&spans[0], &spans[1]);
    assert_eq!(root.parent_span_id, SpanId::from(99));
    assert_eq!(root.span_context.span_id(), SpanId::from(7));
    assert_eq!(root.span_kind, SpanKind::Server);
    assert_eq!(call.span_kind, SpanKind::Internal);
    assert!(root.parent_span_is_remote && !call.parent_span_is_remote);
    assert_eq!(call.parent_span_id, SpanId::from(7));
    for part in &spans[2..] {
        assert_eq!(part.parent_span_id, call.span_context.span_id());
    }
    for (name, expected) in [
        ("http.request.method", "POST"),
        ("http.response.status_code", "200"),
        ("network.protocol.version", "2"),
        ("sluicegate.request.id", "req-1"),
        ("sluicegate.trace.kept", "slo"),
        ("sluicegate.trace.sampled_late", "true"),
        ("error.type", ""),
    ] {
        assert_eq!(text(root, name), expected, "{name}");
    }
    for (name, expected) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.request.model", "m"),
        ("gen_ai.usage.input_tokens", "10"),
        ("gen_ai.usage.output_tokens", "2"),
        ("gen_ai.usage.cache_read.input_tokens", "4"),
        ("gen_ai.response.time_to_first_chunk", "0.002"),
        ("gen_ai.response.finish_reasons", "[\"stop\"]"),
    ] {
        assert_eq!(text(call, name), expected, "{name}");
    }
    // Tokens are counted on one span only, or they would be counted twice.
    for span in &spans {
        let counts = said(span, "gen_ai.usage.output_tokens").is_some();
        assert_eq!(counts, span.name == "chat m");
        let scope = &span.instrumentation_scope;
        assert_eq!(scope.name(), "sluicegate");
        assert!(scope.schema_url().is_some());
    }
    assert_eq!(call.events.len(), 3);
    assert_eq!(root.status, Status::Unset);
}

#[test]
fn a_failure_is_an_error_on_its_call_and_on_the_request() {
    let mut failed = work("m", Outcome::Internal);
    failed.failure = Some(Failure::internal(std::io::Error::other("on fire")).with_code("boom"));
    let spans = spans(&told(vec![work("m", Outcome::Ok), failed]));
    assert_eq!(spans[0].status, Status::error(""));
    assert_eq!(text(&spans[0], "error.type"), "internal");
    assert_eq!(spans[1].status, Status::Unset);
    assert_eq!(text(&spans[2], "error.type"), "boom");
    let Status::Error { description } = &spans[2].status else {
        panic!("an error")
    };
    assert!(description.contains("on fire"), "{description}");
}

#[test]
fn callers_who_leave_are_no_error() {
    let spans = spans(&told(vec![work("m", Outcome::ClientGone)]));
    assert!(spans.iter().all(|span| span.status == Status::Unset));
    assert_eq!(text(&spans[1], "sluicegate.outcome"), "client_gone");
}

#[test]
fn long_stalls_have_spans_but_not_without_end() {
    let mut slow = work("m", Outcome::Ok);
    slow.record.duration = Duration::from_mins(1);
    for stall in 1..=20 {
        slow.timeline
            .moment(stall * 1_000_000, Moment::Stalled(500_000));
    }
    let mut told = told(vec![slow]);
    told.ended_at = 61_000_000;
    let spans = spans(&told);
    let stalls: Vec<_> = spans
        .iter()
        .filter(|span| span.name == "send stall")
        .collect();
    assert_eq!(stalls.len(), 16);
    for stall in stalls {
        let long = stall.end_time.duration_since(stall.start_time).unwrap();
        assert_eq!(long, Duration::from_millis(500));
    }
}

proptest! {
    /// Whatever the clocks of the threads said: one root, every other span within its parent.
    #[test]
    fn every_span_lies_within_its_parent(
        began_at in 0u64..1_000_000,
        took in 0u64..1_000_000,
        works in prop::collection::vec(
            (
                any::<u32>(),
                any::<u32>(),
                prop::collection::vec((any::<u32>(), 0u8..6), 0..20),
                prop::collection::vec(any::<u32>(), 0..20),
            ),
            0..4,
        ),
    ) {
        let works = works.into_iter().map(|(accepted_at, took, moments, tokens)| {
            let mut work = work("m", Outcome::Ok);
            work.accepted_at = accepted_at.into();
            work.record.duration = Duration::from_micros(took.into());
            for (at, moment) in moments {
                let moment = match moment {
                    0 => Moment::Admitted,
                    1 => Moment::Prefilled,
                    2 => Moment::Paused,
                    3 => Moment::Resumed,
                    4 => Moment::Preempted,
                    _ => Moment::Stalled(u64::from(at) / 2),
                };
                work.timeline.moment(at.into(), moment);
            }
            for at in tokens {
                work.timeline.token(at.into(), 0, 1);
            }
            work
        });
        let mut told = told(works.collect());
        (told.began_at, told.ended_at) = (began_at, began_at + took);
        let spans = spans(&told);
        let by_id: HashMap<_, _> = spans
            .iter()
            .map(|span| (span.span_context.span_id(), span))
            .collect();
        prop_assert_eq!(by_id.len(), spans.len());
        for (index, span) in spans.iter().enumerate() {
            prop_assert!(span.start_time <= span.end_time);
            prop_assert_eq!(span.span_context.trace_id(), spans[0].span_context.trace_id());
            let parent = by_id.get(&span.parent_span_id);
            prop_assert_eq!(parent.is_none(), index == 0);
            if let Some(parent) = parent {
                prop_assert!(span.start_time >= parent.start_time);
                prop_assert!(span.end_time <= parent.end_time);
            }
        }
    }
}

#[test]
fn a_tracer_that_goes_nowhere_still_gives_names() {
    let tracer = Tracer::off();
    let trace = tracer.begin(None, None);
    let context = trace.context().unwrap();
    assert!(context.trace_id != 0 && context.span_id != 0 && context.parent.is_none());
    assert_eq!(tracer.load(), TraceLoad::default());
}

#[test]
fn what_is_kept_is_counted_by_its_reason() {
    let settings = Traces {
        ratio: 1.0,
        ..Traces::default()
    };
    let sink = Sink::new(&settings, Arc::default());
    sink.told(told(vec![work("m", Outcome::Ok)]));
    sink.told(told(vec![work("m", Outcome::Internal)]));
    let kept = sink.kept.each_ref().map(|count| count.load(Relaxed));
    assert_eq!(kept, [1, 0, 0, 0, 1]);
    sink.detail.store(0.5f64.to_bits(), Relaxed);
    assert!((sink.base_ratio() - 0.5).abs() < 1e-12);
}
