//! The objective: which requests were good, and how fast the budget of bad ones burns.
//!
//! Requests are counted in an hour of five-second buckets: fixed memory, and windows that slide. One
//! lock a request, never one a token.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use super::config;
use crate::generation::{Outcome, Record, clock};

/// Seconds of one bucket.
const BUCKET: u64 = 5;

/// Buckets of an hour.
const HOUR: usize = 720;

/// Buckets of five minutes.
const FIVE_MINUTES: usize = 60;

/// What a request was to the objective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It ended well and in time.
    Good,
    /// It failed for a reason of ours, or came too late.
    Bad,
    /// It says nothing about us: the caller left, asked wrongly, or had used up what they may.
    Neither,
}

/// How many times faster than allowed the budget of bad requests is used up; 1 uses it up exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Burn {
    /// Over the last five minutes.
    pub five_minutes: f64,
    /// Over the last hour.
    pub hour: f64,
}

/// Judges requests and remembers the last hour of them.
pub struct Slo {
    /// Microseconds.
    first_token: AtomicU64,
    /// Microseconds.
    gap: AtomicU64,
    /// The part of requests that may be bad, as the bits of an `f64`.
    budget: AtomicU64,
    ring: Mutex<Ring>,
}

impl Default for Slo {
    fn default() -> Self {
        let slo = Self {
            first_token: AtomicU64::new(0),
            gap: AtomicU64::new(0),
            budget: AtomicU64::new(0),
            ring: Mutex::new(Ring {
                buckets: vec![Bucket::default(); HOUR].into(),
                newest: 0,
            }),
        };
        slo.set(&config::Slo::default());
        slo
    }
}

impl Slo {
    /// Judges by this from now on; what was judged stays.
    pub fn set(&self, config: &config::Slo) {
        let micros = |time: std::time::Duration| u64::try_from(time.as_micros());
        let first_token = micros(config.first_token).unwrap_or(u64::MAX);
        self.first_token.store(first_token, Relaxed);
        self.gap
            .store(micros(config.gap).unwrap_or(u64::MAX), Relaxed);
        let budget = 1.0 - config.objective;
        self.budget.store(budget.to_bits(), Relaxed);
    }

    /// The part of requests that may be bad.
    #[must_use]
    pub fn budget(&self) -> f64 {
        f64::from_bits(self.budget.load(Relaxed))
    }

    /// What a request was that ended so.
    #[must_use]
    pub fn judge(&self, record: &Record) -> Verdict {
        match record.outcome {
            // What callers do, readers who stop among them, must not use up the budget.
            Outcome::ClientGone | Outcome::Stalled | Outcome::Invalid | Outcome::Limited => {
                Verdict::Neither
            }
            Outcome::Ok => {
                let first = record.time_to_first_token.unwrap_or_default();
                let is_late = first.as_micros() > u128::from(self.first_token.load(Relaxed));
                // A sequence that left the batch because its reader was behind came back when the reader
                // did, and that gap is the reader's.
                let is_ours = record.waits.pauses == 0;
                let is_halting = is_ours && u64::from(record.max_gap_us) > self.gap.load(Relaxed);
                if is_late || is_halting {
                    Verdict::Bad
                } else {
                    Verdict::Good
                }
            }
            Outcome::Deadline | Outcome::Shed | Outcome::Upstream | Outcome::Internal => {
                Verdict::Bad
            }
        }
    }

    /// A request was this.
    pub fn count(&self, verdict: Verdict) {
        self.count_at(clock::task_micros(), verdict);
    }

    /// How fast the budget burns now.
    #[must_use]
    pub fn burn(&self) -> Burn {
        self.burn_at(clock::task_micros())
    }

    fn count_at(&self, micros: u64, verdict: Verdict) {
        if verdict == Verdict::Neither {
            return;
        }
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = ring.at(micros);
        match verdict {
            Verdict::Good => bucket.good += 1,
            _ => bucket.bad += 1,
        }
    }

    fn burn_at(&self, micros: u64) -> Burn {
        let budget = self.budget();
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.at(micros);
        Burn {
            five_minutes: ring.bad_part(FIVE_MINUTES) / budget,
            hour: ring.bad_part(HOUR) / budget,
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Bucket {
    good: u32,
    bad: u32,
}

struct Ring {
    buckets: Box<[Bucket]>,
    /// The number of the newest bucket since the clock's beginning.
    newest: u64,
}

impl Ring {
    /// The bucket of this moment; those that were skipped are empty. A moment before the newest one
    /// (two threads read the clock and came in the other order) counts as the newest.
    fn at(&mut self, micros: u64) -> &mut Bucket {
        let now = micros / 1_000_000 / BUCKET;
        let skipped = now.saturating_sub(self.newest).min(HOUR as u64);
        self.newest = self.newest.max(now);
        for back in 0..skipped {
            *self.back(back) = Bucket::default();
        }
        self.back(0)
    }

    fn back(&mut self, back: u64) -> &mut Bucket {
        let count = self.buckets.len() as u64;
        let index = (self.newest + count - back % count) % count;
        // Below the length, which is a `usize`.
        let index = usize::try_from(index).unwrap_or(0);
        &mut self.buckets[index]
    }

    /// The part of bad ones among the newest `count` buckets; none of none.
    fn bad_part(&mut self, count: usize) -> f64 {
        let (mut good, mut bad) = (0, 0);
        for back in 0..count as u64 {
            let bucket = *self.back(back);
            good += u64::from(bucket.good);
            bad += u64::from(bucket.bad);
        }
        #[expect(
            clippy::cast_precision_loss,
            reason = "fewer than 2^53 requests an hour"
        )]
        let (all, bad) = ((good + bad) as f64, bad as f64);
        if all > 0.0 { bad / all } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::generation::Usage;

    const SECOND: u64 = 1_000_000;

    fn record(outcome: Outcome, first_token: u64, max_gap_us: u32) -> Record {
        Record {
            waits: crate::generation::Waits::default(),
            outcome,
            finish: None,
            usage: Usage::default(),
            time_to_first_token: Some(Duration::from_micros(first_token)),
            duration: Duration::ZERO,
            max_gap_us,
        }
    }

    #[test]
    fn a_good_request_is_whole_and_in_time() {
        let slo = Slo::default();
        let ok = |first, gap| slo.judge(&record(Outcome::Ok, first, gap));
        assert_eq!(ok(2 * SECOND, 500_000), Verdict::Good);
        assert_eq!(ok(2 * SECOND + 1, 0), Verdict::Bad);
        assert_eq!(ok(0, 500_001), Verdict::Bad);
        let mut paused = record(Outcome::Ok, 0, 500_001);
        paused.waits.pauses = 1;
        assert_eq!(slo.judge(&paused), Verdict::Good);
        paused.waits.pauses = 0;
        paused.waits.preemptions = 1;
        assert_eq!(slo.judge(&paused), Verdict::Bad);
        slo.set(&config::Slo {
            gap: Duration::from_secs(1),
            ..config::Slo::default()
        });
        let ok = |first, gap| slo.judge(&record(Outcome::Ok, first, gap));
        assert_eq!(ok(0, 500_001), Verdict::Good);
        for outcome in Outcome::ALL {
            let expected = match outcome {
                Outcome::Ok => Verdict::Good,
                Outcome::Deadline | Outcome::Shed | Outcome::Upstream | Outcome::Internal => {
                    Verdict::Bad
                }
                _ => Verdict::Neither,
            };
            assert_eq!(slo.judge(&record(outcome, 0, 0)), expected, "{outcome:?}");
        }
    }

    #[test]
    fn the_budget_burns_by_the_part_of_bad_requests_in_each_window() {
        let slo = Slo::default();
        assert_eq!(slo.burn_at(0), Burn::default());
        for _ in 0..99 {
            slo.count_at(10 * SECOND, Verdict::Good);
        }
        slo.count_at(11 * SECOND, Verdict::Bad);
        slo.count_at(12 * SECOND, Verdict::Neither);
        let near = |burn: f64, expected: f64| (burn - expected).abs() < 1e-9;
        let burn = slo.burn_at(13 * SECOND);
        assert!(near(burn.five_minutes, 1.0) && near(burn.hour, 1.0));
        // Six minutes later only the hour knows of it.
        for _ in 0..100 {
            slo.count_at(371 * SECOND, Verdict::Good);
        }
        let burn = slo.burn_at(371 * SECOND);
        assert!(near(burn.five_minutes, 0.0) && near(burn.hour, 0.5));
        assert_eq!(slo.burn_at(2 * 3600 * SECOND), Burn::default());
    }

    #[test]
    fn a_clock_read_out_of_order_counts_as_now() {
        let slo = Slo::default();
        slo.count_at(100 * SECOND, Verdict::Good);
        slo.count_at(90 * SECOND, Verdict::Bad);
        assert!((slo.burn_at(100 * SECOND).hour - 50.0).abs() < 1e-6);
    }

    proptest! {
        /// Against the plain definition: all requests of the window's buckets.
        #[test]
        fn windows_slide_as_they_should(
            steps in prop::collection::vec((0..900 * SECOND, any::<bool>()), 1..60),
        ) {
            let slo = Slo::default();
            let mut told: Vec<(u64, bool)> = Vec::new();
            let mut now = 0;
            for (step, is_bad) in steps {
                now += step;
                let verdict = if is_bad { Verdict::Bad } else { Verdict::Good };
                slo.count_at(now, verdict);
                told.push((now / SECOND / BUCKET, is_bad));
                let newest = now / SECOND / BUCKET;
                let burn = slo.burn_at(now);
                for (burn, count) in [(burn.five_minutes, 60), (burn.hour, 720)] {
                    let window = told.iter().filter(|(at, _)| at + count > newest);
                    let (mut all, mut bad) = (0.0, 0.0);
                    for (_, is_bad) in window {
                        all += 1.0;
                        bad += f64::from(u8::from(*is_bad));
                    }
                    let expected: f64 = bad / all / (1.0 - 0.99);
                    prop_assert!((burn - expected).abs() < 1e-6, "{burn} {expected}");
                }
            }
        }
    }
}
