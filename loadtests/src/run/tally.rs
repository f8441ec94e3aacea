//! What streams of one kind have seen.
//!
//! Times run from when a request should have begun, and not from when it was sent: a generator that is held up
//! by a slow server, and so asks less while it is slow, would otherwise not see the slowness (coordinated
//! omission).

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::histogram::Histogram;
use crate::net::Fault;

/// The most points of tokens over time.
const POINTS: u32 = 200;

/// The least time between two of them.
const LEAST_STEP: Duration = Duration::from_millis(100);

/// Kinds of failure that are told apart; the rest are counted as one.
const KINDS: usize = 20;

/// When is measured; nothing counts before that is known.
#[derive(Debug, Default)]
pub(super) struct Window(Cell<Option<(Instant, Instant)>>);

impl Window {
    /// Sets it.
    pub(super) fn set(&self, begin: Instant, end: Instant) {
        self.0.set(Some((begin, end)));
    }

    /// Whether it is open then.
    pub(super) fn holds(&self, at: Instant) -> bool {
        self.0
            .get()
            .is_some_and(|(begin, end)| begin <= at && at < end)
    }

    /// Whether it is over.
    pub(super) fn is_over(&self, at: Instant) -> bool {
        self.0.get().is_some_and(|(_, end)| at >= end)
    }

    /// The point of tokens over time that an instant belongs to, if any.
    fn point(&self, at: Instant) -> Option<usize> {
        let (begin, end) = self.0.get().filter(|_| self.holds(at))?;
        let step = step(end - begin).as_micros();
        usize::try_from((at - begin).as_micros() / step).ok()
    }
}

/// The time between two points of tokens over time.
pub(super) fn step(spell: Duration) -> Duration {
    (spell / POINTS).max(LEAST_STEP)
}

/// What was seen.
#[derive(Clone, Default)]
pub(super) struct Tally {
    /// From when a request should have begun to its first token.
    pub(super) first_token: Histogram,
    /// Between a token and the one before; zero for tokens that came in one read.
    pub(super) gap: Histogram,
    /// From when a request should have begun to its good end.
    pub(super) total: Histogram,
    /// How much later requests were sent than they should have been.
    pub(super) late: Histogram,
    /// Tokens over time.
    pub(super) points: Vec<u64>,
    /// Tokens.
    pub(super) tokens: u64,
    /// Requests that were due and count.
    pub(super) due: u64,
    /// Answers that ended well.
    pub(super) finished: u64,
    /// Answers that said to come again.
    pub(super) refused: u64,
    /// Answers that ended before their end.
    pub(super) truncated: u64,
    /// All else that is no good answer.
    pub(super) errors: u64,
    /// Answers under way at the end, which were hung up on.
    pub(super) running: u64,
    /// What went wrong, and how often.
    pub(super) kinds: BTreeMap<String, u64>,
}

/// One answer under way.
pub(super) struct Timeline {
    /// When its request should have begun.
    pub(super) intended: Instant,
    last: Option<Instant>,
    /// Whether its first token and its end count.
    pub(super) counts: bool,
}

impl Timeline {
    /// Nothing has come yet.
    pub(super) fn new(intended: Instant, counts: bool) -> Self {
        Self {
            intended,
            last: None,
            counts,
        }
    }
}

impl Tally {
    /// One read brought `tokens` tokens.
    pub(super) fn read(
        &mut self,
        window: &Window,
        timeline: &mut Timeline,
        now: Instant,
        tokens: u64,
    ) {
        if tokens == 0 {
            return;
        }
        let last = timeline.last.replace(now);
        if last.is_none() && timeline.counts {
            self.first_token.record(now - timeline.intended, 1);
        }
        let Some(point) = window.point(now) else {
            return;
        };
        if self.points.len() <= point {
            self.points.resize(point + 1, 0);
        }
        self.points[point] += tokens;
        self.tokens += tokens;
        if let Some(last) = last {
            self.gap.record(now - last, 1);
        }
        self.gap.record(Duration::ZERO, tokens - 1);
    }

    /// An answer has ended.
    pub(super) fn ended(&mut self, timeline: &Timeline, now: Instant, end: Result<(), Fault>) {
        if !timeline.counts {
            return;
        }
        let Err(fault) = end else {
            self.finished += 1;
            self.total.record(now - timeline.intended, 1);
            return;
        };
        match fault {
            Fault::Status(429 | 503) => self.refused += 1,
            Fault::Cut(_) => self.truncated += 1,
            Fault::Status(_) | Fault::Told(_) | Fault::Broken(_) | Fault::Stale => self.errors += 1,
        }
        self.kind(fault.to_string(), 1);
    }

    /// So many have not ended although there was time.
    pub(super) fn unanswered(&mut self, count: u64, patience: Duration) {
        self.errors += count;
        self.kind(format!("no end within {} s", patience.as_secs()), count);
    }

    fn kind(&mut self, mut kind: String, count: u64) {
        if self.kinds.len() >= KINDS && !self.kinds.contains_key(&kind) {
            "something else".clone_into(&mut kind);
        }
        *self.kinds.entry(kind).or_default() += count;
    }

    /// Answers that have ended, in whatever way.
    pub(super) fn ends(&self) -> u64 {
        self.finished + self.refused + self.truncated + self.errors
    }

    /// Adds what others have seen.
    pub(super) fn merge(&mut self, other: &Self) {
        self.first_token.merge(&other.first_token);
        self.gap.merge(&other.gap);
        self.total.merge(&other.total);
        self.late.merge(&other.late);
        if self.points.len() < other.points.len() {
            self.points.resize(other.points.len(), 0);
        }
        for (count, more) in self.points.iter_mut().zip(&other.points) {
            *count += more;
        }
        self.tokens += other.tokens;
        self.due += other.due;
        self.finished += other.finished;
        self.refused += other.refused;
        self.truncated += other.truncated;
        self.errors += other.errors;
        self.running += other.running;
        for (kind, count) in &other.kinds {
            self.kind(kind.clone(), *count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn window(begin: Instant) -> Window {
        let window = Window::default();
        window.set(begin, begin + 1000 * MS);
        window
    }

    #[test]
    fn times_run_from_when_a_request_should_have_begun() {
        let begin = Instant::now();
        let window = window(begin);
        let mut tally = Tally::default();
        // Sent 300 ms late, and answered at once.
        let mut timeline = Timeline::new(begin, true);
        tally.read(&window, &mut timeline, begin + 310 * MS, 1);
        tally.read(&window, &mut timeline, begin + 330 * MS, 3);
        tally.ended(&timeline, begin + 350 * MS, Ok(()));
        assert_eq!(tally.first_token.max(), 310 * MS);
        assert_eq!(tally.total.max(), 350 * MS);
        assert_eq!((tally.gap.count(), tally.gap.max()), (3, 20 * MS));
        assert_eq!((tally.tokens, &tally.points[..]), (4, &[0, 0, 0, 4][..]));
    }

    #[test]
    fn tokens_outside_the_window_do_not_count() {
        let begin = Instant::now();
        let unset = Window::default();
        let mut tally = Tally::default();
        let mut timeline = Timeline::new(begin, false);
        tally.read(&unset, &mut timeline, begin + MS, 1);
        let window = window(begin + 10 * MS);
        tally.read(&window, &mut timeline, begin + 9 * MS, 1);
        tally.read(&window, &mut timeline, begin + 11 * MS, 1);
        tally.read(&window, &mut timeline, begin + 2000 * MS, 1);
        tally.ended(&timeline, begin + 2000 * MS, Ok(()));
        assert_eq!((tally.tokens, tally.gap.count(), tally.ends()), (1, 1, 0));
        assert_eq!(tally.first_token.count(), 0);
        assert!(window.is_over(begin + 1010 * MS) && !window.is_over(begin + 1009 * MS));
    }

    #[test]
    fn ends_are_told_apart() {
        let begin = Instant::now();
        let mut tally = Tally::default();
        for fault in [
            Fault::Status(429),
            Fault::Status(503),
            Fault::Status(500),
            Fault::Told("no".to_owned()),
            Fault::Cut("cut"),
            Fault::Broken("reset".to_owned()),
        ] {
            tally.ended(&Timeline::new(begin, true), begin, Err(fault));
        }
        assert_eq!((tally.refused, tally.truncated, tally.errors), (2, 1, 3));
        assert_eq!(tally.ends(), 6);
        let mut sum = tally.clone();
        sum.merge(&tally);
        assert_eq!((sum.ends(), sum.kinds["status 429"]), (12, 2));
        for n in 0..100 {
            sum.kind(format!("{n}"), 1);
        }
        assert!(sum.kinds.len() <= KINDS + 1);
    }

    #[test]
    fn there_are_never_too_many_points() {
        assert_eq!(step(Duration::from_secs(3)), 100 * MS);
        assert_eq!(step(Duration::from_secs(200)), 1000 * MS);
    }
}
