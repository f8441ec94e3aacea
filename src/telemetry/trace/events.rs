//! The tokens of a call as events of its span, with the times at which they came.
//!
//! The first so many have an event each. If there are more, the times of all of them are one list, which
//! is a tenth of the size and says as much. Of very long answers every second or fourth token is in it, as
//! the timeline kept them.

use opentelemetry::trace::Event;
use opentelemetry::{Array, KeyValue, Value};

use super::semconv;
use super::spans::{Anchor, Stretch, int};
use crate::generation::{Moment, Work};

/// What a span says of its tokens.
#[derive(Default)]
pub(super) struct Tokens {
    /// In order of time.
    pub(super) events: Vec<Event>,
    /// What has no event.
    pub(super) dropped: u32,
    /// The times of all tokens, if not all have events.
    pub(super) list: Vec<KeyValue>,
}

/// The events of `work`, whose span is `span`; at most `limit` are of tokens, and as many of what else
/// happened.
pub(super) fn of(work: &Work, span: Stretch, anchor: Anchor, limit: usize) -> Tokens {
    let (timeline, mut told) = (&work.timeline, Tokens::default());
    // By time, for a list in order; at the same time, as it is told here.
    let mut timed: Vec<(u64, Event)> = Vec::new();
    let mut offsets = Vec::new();
    let stride = timeline.stride().max(1);
    let (mut index, mut with_event) = (0u32, 0);
    for (at, choice, bytes) in timeline.tokens() {
        let at = at.clamp(span.from, span.to);
        offsets.push(i64::try_from(at - span.from).unwrap_or(i64::MAX));
        if offsets.len() <= limit {
            let name = if index == 0 {
                semconv::FIRST_TOKEN
            } else {
                semconv::TOKEN
            };
            let mut said = vec![
                KeyValue::new(semconv::TOKEN_INDEX, i64::from(index)),
                KeyValue::new(semconv::TOKEN_BYTES, i64::from(bytes)),
            ];
            if choice > 0 {
                said.push(KeyValue::new(semconv::TOKEN_CHOICE, i64::from(choice)));
            }
            timed.push((at, Event::new(name, anchor.at(at), said, 0)));
            with_event += 1;
        }
        index = index.saturating_add(stride);
    }
    told.dropped = timeline.count().saturating_sub(with_event);
    if told.dropped > 0 {
        let offsets = Value::Array(Array::I64(offsets));
        told.list.push(KeyValue::new(semconv::OFFSETS, offsets));
    }
    if stride > 1 {
        told.list
            .push(KeyValue::new(semconv::STRIDE, i64::from(stride)));
    }
    told.dropped = told.dropped.saturating_add(timeline.more_moments());
    let mut others = 0;
    for &(at, moment) in timeline.moments() {
        let (name, said) = match moment {
            // They have spans.
            Moment::Admitted | Moment::Prefilled => continue,
            Moment::Paused => (semconv::PAUSED, Vec::new()),
            Moment::Resumed => (semconv::RESUMED, Vec::new()),
            Moment::Preempted => (semconv::PREEMPTED, Vec::new()),
            Moment::Stalled(long) => (
                semconv::STALLED,
                vec![KeyValue::new(semconv::STALL, int(long))],
            ),
        };
        others += 1;
        if others > limit {
            told.dropped = told.dropped.saturating_add(1);
            continue;
        }
        let at = at.clamp(span.from, span.to);
        timed.push((at, Event::new(name, anchor.at(at), said, 0)));
    }
    let mut end = vec![KeyValue::new(
        semconv::OUTCOME,
        work.record.outcome.as_str(),
    )];
    if let Some(finish) = work.record.finish {
        let finish = Value::from(finish.as_str());
        end.push(KeyValue::new(semconv::FINISH_REASONS, finish));
    }
    timed.sort_by_key(|&(at, _)| at);
    told.events = timed.into_iter().map(|(_, event)| event).collect();
    told.events
        .push(Event::new(semconv::FINISH, anchor.at(span.to), end, 0));
    told
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::work;
    use super::*;
    use crate::generation::Outcome;

    const SPAN: Stretch = Stretch {
        from: 1000,
        to: 1_000_000,
    };

    fn names(tokens: &Tokens) -> Vec<&str> {
        tokens.events.iter().map(|event| &*event.name).collect()
    }

    #[test]
    fn what_happened_is_told_in_order_and_at_its_time() {
        let anchor = Anchor::now();
        let mut work = work("m", Outcome::Ok);
        for (at, moment) in [
            (1500, Moment::Admitted),
            (1800, Moment::Prefilled),
            (3500, Moment::Paused),
            (3600, Moment::Stalled(250)),
            (3700, Moment::Resumed),
            (4000, Moment::Preempted),
        ] {
            work.timeline.moment(at, moment);
        }
        for (at, choice, bytes) in [(2000, 0, 3), (3000, 1, 4), (5000, 1, 300)] {
            work.timeline.token(at, choice, bytes);
        }
        let told = of(&work, SPAN, anchor, 128);
        let expected = [
            (2000, "first_token"),
            (3000, "token"),
            (3500, "paused"),
            (3600, "stall"),
            (3700, "resumed"),
            (4000, "preempted"),
            (5000, "token"),
            (1_000_000, "finish"),
        ];
        let times: Vec<_> = told
            .events
            .iter()
            .map(|event| (event.timestamp, &*event.name))
            .collect();
        assert_eq!(times, expected.map(|(at, name)| (anchor.at(at), name)));
        let said = |index: usize| {
            let said = told.events[index].attributes.iter();
            said.map(|said| format!("{}={}", said.key, said.value))
                .collect::<Vec<_>>()
                .join(" ")
        };
        let prefix = "sluicegate.token";
        assert_eq!(said(0), format!("{prefix}.index=0 {prefix}.bytes=3"));
        assert_eq!(
            said(6),
            format!("{prefix}.index=2 {prefix}.bytes=255 {prefix}.choice=1")
        );
        assert_eq!(said(3), "sluicegate.stall_us=250");
        assert!(told.list.is_empty());
        assert_eq!(told.dropped, 0);
    }

    #[test]
    fn beyond_the_limit_all_times_are_a_list() {
        let mut work = work("m", Outcome::Ok);
        for at in 0..200 {
            work.timeline.token(2000 + at, 0, 1);
        }
        let told = of(&work, SPAN, Anchor::now(), 128);
        assert_eq!(told.events.len(), 129);
        assert_eq!(told.dropped, 72);
        let offsets = Value::Array(Array::I64((1000..1200).collect()));
        assert_eq!(
            told.list,
            [KeyValue::new("sluicegate.token.offsets_us", offsets)]
        );
        let none = of(&work, SPAN, Anchor::now(), 0);
        assert_eq!(names(&none), ["finish"]);
        assert_eq!(none.list, told.list);
    }

    #[test]
    fn of_a_very_long_answer_it_is_said_how_many_are_left_out() {
        let mut work = work("m", Outcome::Ok);
        for at in 0..10_000 {
            work.timeline.token(2000 + at, 0, 1);
        }
        let stride = i64::from(work.timeline.stride());
        assert!(stride > 1);
        let told = of(&work, SPAN, Anchor::now(), 10);
        assert_eq!(told.dropped, 10_000 - 10);
        let [offsets, said] = &told.list[..] else {
            panic!("a list and its stride")
        };
        assert_eq!(said.value, Value::I64(stride));
        let Value::Array(Array::I64(offsets)) = &offsets.value else {
            panic!("a list")
        };
        assert!(offsets.windows(2).all(|pair| pair[1] - pair[0] == stride));
        let index = &told.events[9].attributes[0];
        assert_eq!(index.value, Value::I64(9 * stride));
    }

    proptest! {
        #[test]
        fn events_are_in_order_within_their_span_and_none_is_lost(
            tokens in prop::collection::vec((any::<u64>(), 0u32..3, 0usize..400), 0..300),
            stalls in prop::collection::vec((any::<u64>(), any::<u64>()), 0..10),
            limit in 0usize..400,
        ) {
            let anchor = Anchor::now();
            let mut work = work("m", Outcome::Ok);
            for &(at, choice, bytes) in &tokens {
                work.timeline.token(at, choice, bytes);
            }
            for &(at, long) in &stalls {
                work.timeline.moment(at, Moment::Stalled(long));
            }
            let told = of(&work, SPAN, anchor, limit);
            let all = tokens.len() + stalls.len() + 1;
            prop_assert_eq!(told.events.len() + told.dropped as usize, all);
            prop_assert!(told.events.is_sorted_by_key(|event| event.timestamp));
            for event in &told.events {
                prop_assert!((anchor.at(SPAN.from)..=anchor.at(SPAN.to)).contains(&event.timestamp));
            }
            prop_assert_eq!(!told.list.is_empty(), tokens.len() > limit);
        }
    }
}
