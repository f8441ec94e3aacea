//! What waits to be exported: bounded in traces, in memory, and in spans a second.
//!
//! A request's thread takes one lock for as long as a push takes, and wakes nobody but when a batch is
//! full: the exporter looks every second anyway.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use opentelemetry_sdk::trace::SpanData;
use tokio::sync::Notify;

use super::keep::Reason;
use crate::generation::{Moment, Told};
use crate::telemetry::config::Traces;

/// Spans of a batch.
pub(super) const BATCH_SPANS: usize = 512;

/// Bytes of a batch, as far as they can be told before: receivers take messages of 4 MiB.
pub(super) const BATCH_BYTES: usize = 2 << 20;

/// The part of a second's spans that is for what goes wrong.
const RESERVED: f64 = 0.25;

/// What is exported whole or not at all.
pub(super) enum Item {
    /// One request.
    Request(Box<Told>, Reason),
    /// A span of the process's own work.
    Process(Box<SpanData>),
}

/// How large something will be on the wire and is in memory, roughly and never much too small.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) spans: usize,
    pub(super) bytes: usize,
}

#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    /// A batch is full.
    pub(super) full: Notify,
    pub(super) dropped: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    items: VecDeque<(Item, Size)>,
    size: Size,
    is_closed: bool,
    /// Spans that may come now.
    tokens: f64,
    /// When `tokens` was right, in microseconds; 0 before the first.
    at: u64,
}

impl Queue {
    /// Adds one at `now` (microseconds), or drops and counts it.
    pub(super) fn push(&self, item: Item, now: u64, bounds: &Traces) {
        let size = item.size(bounds.token_events);
        let mut waiting = self.lock();
        let fits = !waiting.is_closed
            && waiting.items.len() < bounds.queue.get() as usize
            && waiting.size.bytes + size.bytes <= bounds.queue_bytes;
        let is_ordinary = matches!(&item, Item::Request(_, reason) if reason.is_ordinary());
        let rate = f64::from(bounds.max_spans_per_second.get());
        if !fits || !waiting.take(size.spans, rate, is_ordinary, now) {
            drop(waiting);
            self.dropped.fetch_add(1, Relaxed);
            return;
        }
        let was_full = waiting.size.is_full();
        waiting.items.push_back((item, size));
        waiting.size.spans += size.spans;
        waiting.size.bytes += size.bytes;
        let is_full = waiting.size.is_full();
        drop(waiting);
        if is_full && !was_full {
            self.full.notify_one();
        }
    }

    /// The oldest one, unless a batch of this size would become too large with it. Alone, any is taken.
    pub(super) fn pop(&self, batch: Size) -> Option<(Item, Size)> {
        let mut waiting = self.lock();
        let fits = |more: usize| batch.bytes == 0 || batch.bytes + more <= BATCH_BYTES;
        let (item, size) = waiting.items.pop_front_if(|(_, size)| fits(size.bytes))?;
        waiting.size.spans -= size.spans;
        waiting.size.bytes -= size.bytes;
        Some((item, size))
    }

    /// Drops and counts all that waits, and all that comes from now on.
    pub(super) fn close(&self) {
        let mut waiting = self.lock();
        waiting.is_closed = true;
        let items = std::mem::take(&mut waiting.items);
        waiting.size = Size::default();
        drop(waiting);
        self.dropped.fetch_add(items.len() as u64, Relaxed);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Size {
    pub(super) fn is_full(self) -> bool {
        self.spans >= BATCH_SPANS || self.bytes >= BATCH_BYTES
    }
}

impl Waiting {
    /// A bucket of one second's spans. A trace larger than what is left takes what there is, and the
    /// next ones wait for it: no trace is too large to be kept at all.
    fn take(&mut self, spans: usize, rate: f64, is_ordinary: bool, now: u64) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
        let (passed, spans) = (now.saturating_sub(self.at) as f64 / 1e6, spans as f64);
        self.tokens = if self.at == 0 {
            rate
        } else {
            (self.tokens + passed * rate).min(rate)
        };
        self.at = self.at.max(now).max(1);
        let floor = if is_ordinary { rate * RESERVED } else { 0.0 };
        let may = self.tokens > floor;
        if may {
            self.tokens -= spans;
        }
        may
    }
}

impl Item {
    fn size(&self, token_events: usize) -> Size {
        /// Of a span with its names and attributes.
        const SPAN: usize = 600;
        /// Of a token in the list of all, in memory and as an event.
        const TOKEN: usize = 16;
        const EVENT: usize = 96;
        let Self::Request(told, _) = self else {
            return Size {
                spans: 1,
                bytes: SPAN,
            };
        };
        // It goes with each span.
        let state = told.context.state.as_ref().map_or(0, |state| state.len());
        let mut size = Size {
            spans: 1,
            bytes: SPAN + state,
        };
        for work in &told.works {
            let moments = work.timeline.moments();
            let stalls = moments
                .iter()
                .filter(|(_, moment)| matches!(moment, Moment::Stalled(_)))
                .count();
            // The call, its queue, prefill and decode, and its stalls.
            let spans = 4 + stalls;
            let (count, stride) = (work.timeline.count(), work.timeline.stride());
            let tokens = count.div_ceil(stride.max(1)) as usize;
            let events = if told.context.is_debug {
                tokens
            } else {
                tokens.min(token_events)
            };
            size.spans += spans;
            size.bytes +=
                spans * (SPAN + state) + tokens * TOKEN + (events + moments.len()) * EVENT;
            if let Some(failure) = &work.failure {
                let param = failure.param.as_ref().map_or(0, |param| param.len());
                size.bytes += failure.message.len() + param;
            }
        }
        size
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::super::tests::{told, work};
    use super::*;
    use crate::generation::{Failure, Outcome, Work};

    fn bounds(queue: u32, spans: u32) -> Traces {
        Traces {
            queue: NonZeroU32::new(queue).unwrap(),
            max_spans_per_second: NonZeroU32::new(spans).unwrap(),
            ..Traces::default()
        }
    }

    fn item(reason: Reason) -> Item {
        Item::Request(Box::new(told(vec![work("m", Outcome::Ok)])), reason)
    }

    #[test]
    fn it_holds_so_many_and_counts_what_it_drops() {
        let queue = Queue::default();
        for _ in 0..10 {
            queue.push(item(Reason::Ratio), 1, &bounds(3, 1_000_000));
        }
        assert_eq!(queue.dropped.load(Relaxed), 7);
        assert_eq!(std::iter::from_fn(|| queue.pop(Size::default())).count(), 3);
        assert_eq!(queue.lock().size, Size::default());
    }

    #[test]
    fn once_closed_it_takes_nothing() {
        let queue = Queue::default();
        let push = || queue.push(item(Reason::Ratio), 1, &bounds(3, 1_000_000));
        push();
        queue.close();
        push();
        assert!(queue.pop(Size::default()).is_none());
        assert_eq!(queue.dropped.load(Relaxed), 2);
    }

    #[test]
    fn it_holds_so_many_bytes() {
        let queue = Queue::default();
        let bounds = Traces {
            queue_bytes: 1 << 20,
            ..bounds(1_000_000, 1_000_000)
        };
        for _ in 0..3000 {
            let mut long = work("m", Outcome::Ok);
            for at in 0..4096 {
                long.timeline.token(at, 0, 1);
            }
            let told = told(vec![long]);
            queue.push(Item::Request(Box::new(told), Reason::Ratio), 1, &bounds);
        }
        assert!(queue.lock().size.bytes <= 1 << 20);
        let held = queue.lock().items.len();
        assert!((5..30).contains(&held), "{held}");
        assert_eq!(queue.dropped.load(Relaxed), 3000 - held as u64);
    }

    #[test]
    fn what_callers_wrote_counts_for_its_bytes() {
        let plain = item(Reason::Ratio).size(0).bytes;
        let mut refused = told(vec![work("m", Outcome::Invalid)]);
        refused.context.state = Some("s".repeat(100).into());
        refused.works[0].failure = Some(Failure::invalid("p".repeat(2000), "m".repeat(3000)));
        let size = Item::Request(Box::new(refused), Reason::Ratio).size(0);
        // Five spans.
        assert_eq!(size.bytes, plain + 5 * 100 + 5000);
    }

    #[test]
    fn a_trace_too_large_for_what_is_left_of_a_batch_begins_the_next() {
        let queue = Queue::default();
        let long = || {
            let mut long = work("m", Outcome::Ok);
            for at in 0..4096 {
                long.timeline.token(at, 0, 1);
            }
            let told = told(
                (0..16)
                    .map(|_| Work {
                        timeline: long.timeline.clone(),
                        ..work("m", Outcome::Ok)
                    })
                    .collect(),
            );
            Item::Request(Box::new(told), Reason::Ratio)
        };
        for _ in 0..2 {
            queue.push(long(), 1, &bounds(1000, 1_000_000));
        }
        let (_, first) = queue.pop(Size::default()).expect("alone");
        assert!(first.bytes > BATCH_BYTES / 2 && !first.is_full());
        assert!(queue.pop(first).is_none());
        assert!(queue.pop(Size::default()).is_some());
        assert_eq!(queue.lock().size, Size::default());
    }

    #[test]
    fn the_ordinary_leaves_room_for_what_goes_wrong() {
        let queue = Queue::default();
        let bounds = bounds(1000, 40);
        let push = |reason, now| {
            let before = queue.dropped.load(Relaxed);
            queue.push(item(reason), now, &bounds);
            queue.dropped.load(Relaxed) == before
        };
        // Five spans each: thirty of forty are for them.
        let ordinary = (0..100).filter(|_| push(Reason::Caller, 1)).count();
        assert_eq!(ordinary, 6);
        let errors = (0..100).filter(|_| push(Reason::Error, 1)).count();
        assert_eq!(errors, 2);
        // A second later it is full again.
        let ordinary = (0..100).filter(|_| push(Reason::Ratio, 1_000_001)).count();
        assert_eq!(ordinary, 6);
    }

    #[test]
    fn a_trace_larger_than_a_seconds_spans_comes_through_and_others_pay() {
        let queue = Queue::default();
        let large = told((0..100).map(|_| work("m", Outcome::Ok)).collect());
        let bounds = bounds(1000, 40);
        queue.push(Item::Request(Box::new(large), Reason::Ratio), 1, &bounds);
        queue.push(item(Reason::Error), 5_000_000, &bounds);
        assert_eq!(queue.dropped.load(Relaxed), 1);
        queue.push(item(Reason::Error), 20_000_000, &bounds);
        assert_eq!(queue.dropped.load(Relaxed), 1);
    }

    #[tokio::test]
    async fn a_full_batch_wakes_the_exporter() {
        let queue = Queue::default();
        let bounds = bounds(1000, 1_000_000);
        for _ in 0..BATCH_SPANS.div_ceil(5) {
            queue.push(item(Reason::Ratio), 1, &bounds);
        }
        queue.full.notified().await;
    }
}
