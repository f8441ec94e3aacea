//! Whether requests come much faster than they did.
//!
//! The rate of the last 10 s stands against that of the 5 minutes before them. A burst among a few
//! requests means nothing, so the rate must also be above its baseline by a rate of its own.

use std::collections::VecDeque;
use std::time::Duration;

/// What "now" is: long enough that one batch of a client is no burst, short enough to tell in time.
const NOW: Duration = Duration::from_secs(10);

/// What it stands against.
const BEFORE: Duration = Duration::from_mins(5);

/// Less of a past is no baseline: a process that has just started is always busier than before.
const LEAST_BEFORE: Duration = Duration::from_mins(1);

/// How often the count is noted, at most.
const STEP: Duration = Duration::from_millis(900);

/// Requests a second that a rate is above its baseline at least when something is the matter.
const LEAST_EXCESS: f64 = 1.0;

/// The count of requests over the last minutes.
#[derive(Debug)]
pub(super) struct Pace {
    /// How many times the baseline is too much.
    factor: f64,
    /// When there were how many, oldest first; times are since the start.
    seen: VecDeque<(Duration, u64)>,
}

/// What the counts come to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Reading {
    /// Requests a second now.
    pub(super) rate: f64,
    /// Requests a second before; 0 while there is no baseline.
    pub(super) baseline: f64,
    /// Whether that is too much of a rise.
    pub(super) is_anomaly: bool,
}

impl Pace {
    pub(super) fn new(factor: f64) -> Self {
        Self {
            factor,
            seen: VecDeque::from([(Duration::ZERO, 0)]),
        }
    }

    /// There have been `total` requests at `now`.
    pub(super) fn note(&mut self, now: Duration, total: u64) {
        let &(last, _) = self.seen.back().unwrap_or(&(Duration::ZERO, 0));
        if now.saturating_sub(last) < STEP {
            return;
        }
        self.seen.push_back((now, total));
        // The one before the oldest that counts stays: the window begins with it.
        while let Some(&(second, _)) = self.seen.get(1)
            && now.saturating_sub(second) >= NOW + BEFORE
        {
            self.seen.pop_front();
        }
    }

    /// What the notes so far come to.
    pub(super) fn read(&self) -> Reading {
        let (Some(&first), Some(&last)) = (self.seen.front(), self.seen.back()) else {
            return Reading::default();
        };
        let turn = self.seen.iter().rev();
        let turn = turn
            .copied()
            .find(|(at, _)| last.0.saturating_sub(*at) >= NOW);
        let Some(turn) = turn else {
            let rate = per_second(first, last);
            return Reading {
                rate,
                ..Reading::default()
            };
        };
        let rate = per_second(turn, last);
        if turn.0.saturating_sub(first.0) < LEAST_BEFORE {
            return Reading {
                rate,
                ..Reading::default()
            };
        }
        let baseline = per_second(first, turn);
        Reading {
            rate,
            baseline,
            is_anomaly: rate > baseline * self.factor && rate - baseline >= LEAST_EXCESS,
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "nobody is asked 2^53 times in 5 minutes"
)]
fn per_second(from: (Duration, u64), to: (Duration, u64)) -> f64 {
    let seconds = to.0.saturating_sub(from.0).as_secs_f64();
    if seconds > 0.0 {
        to.1.saturating_sub(from.1) as f64 / seconds
    } else {
        0.0
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "small figures, and exact ones")]
mod tests {
    use super::*;

    /// Lets so many requests a second come for so many seconds; the reading at the end of each.
    struct Day {
        pace: Pace,
        second: u64,
        total: u64,
    }

    impl Day {
        fn new() -> Self {
            Self {
                pace: Pace::new(2.0),
                second: 0,
                total: 0,
            }
        }

        fn pass(&mut self, seconds: u64, per_second: u64) -> Vec<Reading> {
            let readings = (0..seconds).map(|_| {
                self.second += 1;
                self.total += per_second;
                self.pace.note(Duration::from_secs(self.second), self.total);
                self.pace.read()
            });
            readings.collect()
        }
    }

    fn any(readings: &[Reading]) -> bool {
        readings.iter().any(|reading| reading.is_anomaly)
    }

    #[test]
    fn three_times_the_usual_rate_is_told_within_10_s_and_forgotten_when_it_is_usual() {
        let mut day = Day::new();
        assert!(!any(&day.pass(400, 10)));
        let readings = day.pass(10, 30);
        assert!(readings[9].is_anomaly, "{:?}", readings[9]);
        assert_eq!(readings[9].rate, 30.0);
        assert_eq!(readings[9].baseline, 10.0);
        assert!(!readings[0].is_anomaly, "one second is no trend");
        // From the time on when twice the baseline has caught up with it.
        let later = day.pass(400, 30);
        assert!(later[0].is_anomaly && !later[399].is_anomaly);
        assert_eq!(later[399].baseline, 30.0);
    }

    #[test]
    fn twice_the_usual_rate_is_no_anomaly_and_less_is_none_either() {
        let mut day = Day::new();
        assert!(!any(&day.pass(400, 10)));
        assert!(!any(&day.pass(60, 20)));
        assert!(!any(&day.pass(400, 0)));
    }

    #[test]
    fn a_few_requests_after_silence_are_no_anomaly_and_many_are() {
        let mut day = Day::new();
        assert!(!any(&day.pass(400, 0)));
        assert!(!any(&day.pass(1, 3)));
        assert!(!any(&day.pass(30, 0)));
        assert!(any(&day.pass(10, 5)));
    }

    #[test]
    fn the_first_minute_has_nothing_to_stand_against() {
        let mut day = Day::new();
        assert!(!any(&day.pass(60, 1)));
        assert!(
            !any(&day.pass(5, 1000)),
            "55 s were seen before the last 10"
        );
    }

    #[test]
    fn what_is_kept_does_not_grow_however_often_it_is_noted() {
        let mut pace = Pace::new(2.0);
        for milli in 0..1_000_000 {
            pace.note(Duration::from_millis(milli), milli);
        }
        assert!(pace.seen.len() <= 346, "{}", pace.seen.len());
        let reading = pace.read();
        assert!((reading.rate - 1000.0).abs() < 1e-6, "{reading:?}");
    }
}
