//! What one thread measures, and how the threads' figures become one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::histogram::Histogram;

/// Figures of one thread, or of all of them.
#[derive(Clone, Default)]
pub(crate) struct Stats {
    /// Nothing counts before this is set.
    pub(crate) measuring: bool,
    /// From sending the request to its first token.
    pub(crate) first_token: Histogram,
    /// Between a token and the one before; zero for tokens that came in one read.
    pub(crate) gap: Histogram,
    /// How far gaps are from the expected one, where one is expected.
    pub(crate) gap_error: Histogram,
    /// From sending the request to the end of its answer.
    pub(crate) total: Histogram,
    /// Token events.
    pub(crate) tokens: u64,
    /// Bytes read from sockets.
    pub(crate) bytes: u64,
    /// Answers that ended well.
    pub(crate) finished: u64,
    /// Failed requests by kind.
    pub(crate) errors: BTreeMap<String, u64>,
    /// What the slow readers saw.
    pub(crate) slow: Slow,
}

/// Figures of the readers that are slow on purpose; they count nowhere else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slow {
    /// Token events read.
    pub(crate) tokens: u64,
    /// Answers read to a good end.
    pub(crate) finished: u64,
    /// Answers that the server cut off or refused.
    pub(crate) cut: u64,
}

/// The times of one answer.
pub(crate) struct Timeline {
    sent: Instant,
    last: Option<Instant>,
    /// The request was sent while measuring, so its first token and its total count.
    whole: bool,
}

impl Stats {
    /// Begins to measure; forgets what came before, but for the errors of opening and for the slow
    /// readers, who do their work once.
    pub(crate) fn begin(&mut self) {
        *self = Self {
            measuring: true,
            errors: std::mem::take(&mut self.errors),
            slow: self.slow,
            ..Self::default()
        };
    }

    /// A request is sent now.
    pub(crate) fn sent(&self) -> Timeline {
        Timeline {
            sent: Instant::now(),
            last: None,
            whole: self.measuring,
        }
    }

    /// One read brought `tokens` tokens.
    pub(crate) fn read(
        &mut self,
        timeline: &mut Timeline,
        now: Instant,
        tokens: u64,
        expected: Option<Duration>,
    ) {
        if tokens == 0 {
            return;
        }
        let last = timeline.last.replace(now);
        if !self.measuring {
            return;
        }
        self.tokens += tokens;
        match last {
            Some(last) => self.gaps(now - last, 1, expected),
            None if timeline.whole => self.first_token.record(now - timeline.sent, 1),
            None => {}
        }
        self.gaps(Duration::ZERO, tokens - 1, expected);
    }

    fn gaps(&mut self, gap: Duration, times: u64, expected: Option<Duration>) {
        self.gap.record(gap, times);
        if let Some(expected) = expected {
            self.gap_error.record(gap.abs_diff(expected), times);
        }
    }

    /// An answer ended well.
    pub(crate) fn finished(&mut self, timeline: &Timeline) {
        if self.measuring {
            self.finished += 1;
            if timeline.whole {
                self.total.record(timeline.sent.elapsed(), 1);
            }
        }
    }

    /// A request failed.
    pub(crate) fn failed(&mut self, kind: String) {
        if self.measuring {
            *self.errors.entry(kind).or_default() += 1;
        }
    }

    /// Adds another thread's figures.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.first_token.merge(&other.first_token);
        self.gap.merge(&other.gap);
        self.gap_error.merge(&other.gap_error);
        self.total.merge(&other.total);
        self.tokens += other.tokens;
        self.bytes += other.bytes;
        self.finished += other.finished;
        for (kind, count) in &other.errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
        self.slow.tokens += other.slow.tokens;
        self.slow.finished += other.slow.finished;
        self.slow.cut += other.slow.cut;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn tokens_of_one_read_have_no_gap_between_them() {
        let mut stats = Stats::default();
        stats.begin();
        let mut timeline = stats.sent();
        let start = timeline.sent;
        stats.read(&mut timeline, start + 10 * MS, 1, Some(50 * MS));
        stats.read(&mut timeline, start + 20 * MS, 0, Some(50 * MS));
        stats.read(&mut timeline, start + 60 * MS, 3, Some(50 * MS));
        assert_eq!((stats.tokens, stats.gap.count()), (4, 3));
        assert_eq!(stats.first_token.max(), 10 * MS);
        assert_eq!(
            (stats.gap.percentile(0.5), stats.gap.max()),
            (Duration::ZERO, 50 * MS)
        );
        assert_eq!(stats.gap_error.max(), 50 * MS);
        assert_eq!(stats.gap_error.percentile(0.3), Duration::ZERO);
    }

    #[test]
    fn a_request_sent_while_warming_up_gives_gaps_but_no_total() {
        let mut stats = Stats::default();
        let mut timeline = stats.sent();
        let start = timeline.sent;
        stats.read(&mut timeline, start + MS, 1, None);
        stats.failed("x".to_owned());
        stats.begin();
        stats.read(&mut timeline, start + 2 * MS, 1, None);
        stats.finished(&timeline);
        assert_eq!((stats.tokens, stats.gap.count(), stats.finished), (1, 1, 1));
        assert_eq!((stats.first_token.count(), stats.total.count()), (0, 0));
        assert!(stats.errors.is_empty());
    }

    #[test]
    fn merging_adds_everything() {
        let mut one = Stats {
            tokens: 1,
            bytes: 2,
            finished: 3,
            ..Stats::default()
        };
        one.errors.insert("x".to_owned(), 4);
        one.slow = Slow {
            tokens: 5,
            finished: 6,
            cut: 7,
        };
        let mut sum = one.clone();
        sum.merge(&one);
        assert_eq!(
            (sum.tokens, sum.bytes, sum.finished, sum.errors["x"]),
            (2, 4, 6, 8)
        );
        assert_eq!(
            sum.slow,
            Slow {
                tokens: 10,
                finished: 12,
                cut: 14
            }
        );
    }
}
