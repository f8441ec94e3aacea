//! How fast a waiting line drains, as it was measured, and what that means for who comes next.

use std::time::Duration;

use crate::generation::{Deadlines, Failure, Kind};

/// Starts that the measured time between two of them remembers. More would notice later that requests
/// have become longer; fewer would take one batch that ends together for the rule.
const MEMORY: f64 = 32.0;

/// A deadline must leave this part of the expected wait to spare.
const MARGIN: u32 = 4;

/// Starts before anything is said.
const ENOUGH: f64 = 4.0;

/// When to come back where nothing was measured. A guess that suits small models and large ones alike.
const GUESS: Duration = Duration::from_secs(1);

/// The longest that anybody is told to stay away: what was measured will have changed by then.
const MOST_RETRY: Duration = Duration::from_mins(5);

/// Measures a line, for who serves it: how long it takes, while somebody waits, until the next starts.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    /// Starts out of the line, and the time that they took; both fade with every start.
    starts: f64,
    busy_us: f64,
    looked_us: u64,
    /// How many stood in line then.
    stood: u32,
}

impl Drain {
    /// Takes in that `started` have begun since the last look, and that `standing` wait on.
    #[expect(
        clippy::cast_precision_loss,
        reason = "microseconds between two steps are few"
    )]
    pub(crate) fn look(&mut self, now_us: u64, started: u32, standing: u32) {
        let passed_us = now_us.saturating_sub(self.looked_us);
        if self.stood > 0 {
            // Who came and began at once has not waited, and tells nothing of the line.
            let started = started.min(self.stood);
            let fade = (1.0 - 1.0 / MEMORY).powf(f64::from(started));
            self.starts = self.starts * fade + f64::from(started);
            self.busy_us = self.busy_us * fade + passed_us as f64;
        }
        self.looked_us = now_us;
        self.stood = standing;
    }

    /// Microseconds from one start to the next while somebody waits, once that is known.
    pub(crate) fn each_us(&self) -> Option<u64> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "both are positive, and the cast saturates"
        )]
        (self.starts >= ENOUGH).then(|| ((self.busy_us / self.starts) as u64).max(1))
    }
}

/// What is expected of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Forecast {
    /// From one start to the next; `None` before it was measured.
    pub(crate) each: Option<Duration>,
    /// From a start to the first token.
    pub(crate) lead: Duration,
}

impl Forecast {
    /// What a measured line promises, where no time to a first token is known.
    pub(crate) fn measured(drain: &Drain) -> Self {
        Self {
            each: drain.each_us().map(Duration::from_micros),
            lead: Duration::ZERO,
        }
    }

    /// How long one waits who has `ahead` others before it.
    pub(crate) fn wait(&self, ahead: u64) -> Option<Duration> {
        let places = u32::try_from(ahead).unwrap_or(u32::MAX).saturating_add(1);
        Some(self.each?.saturating_mul(places))
    }

    /// Refuses a request that would have `ahead` others before it if one of its deadlines would pass
    /// meanwhile. The first in line is never refused: it finds out whether the measure still holds.
    ///
    /// # Errors
    /// `Overloaded`, with the time after which there is hope.
    pub(crate) fn check(&self, ahead: u64, deadlines: &Deadlines) -> Result<(), Failure> {
        let Some(wait) = self.wait(ahead).filter(|_| ahead > 0) else {
            return Ok(());
        };
        // Requests differ: of those who are told the middle, half would wait for nothing.
        let cautious = wait.saturating_add(wait / MARGIN);
        let first = cautious.saturating_add(self.lead);
        let bounds = [
            (deadlines.queue, cautious, "in the waiting line"),
            (deadlines.first_token, first, "for the first token"),
            (deadlines.total, first, "for the whole request"),
        ];
        let late = bounds
            .into_iter()
            .filter_map(|(bound, expected, what)| {
                Some((expected.checked_sub(bound?)?, bound?, what))
            })
            .filter(|(late, ..)| !late.is_zero())
            .max_by_key(|&(late, ..)| late);
        let Some((late, bound, what)) = late else {
            return Ok(());
        };
        let bound = humantime::format_duration(bound);
        let wait = humantime::format_duration(Duration::from_millis(
            u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        ));
        Err(Failure::new(
            Kind::Overloaded,
            format!(
                "About {wait} of waiting are ahead: the deadline of {bound} {what} cannot be met."
            ),
        )
        .with_code("deadline_unmeetable")
        .with_retry_after(late.max(self.each.unwrap_or(GUESS)).min(MOST_RETRY)))
    }

    /// When to come back to a line that is full, where `waiting` stand in it: when half of them have
    /// gone. By the first place that comes free everybody would be back at once.
    pub(crate) fn retry_after(&self, waiting: u32) -> Duration {
        let each = self.each.unwrap_or(GUESS);
        if self.each.is_none() {
            return GUESS;
        }
        each.saturating_mul((waiting / 2).max(1)).min(MOST_RETRY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1000;

    /// A line of ten, one start every `each_ms`.
    fn steady(drain: &mut Drain, from_us: u64, each_ms: u64, starts: u64) -> u64 {
        for start in 1..=starts {
            drain.look(from_us + start * each_ms * MS, 1, 10);
        }
        from_us + starts * each_ms * MS
    }

    fn near(drain: &Drain, us: u64) {
        let each = drain.each_us().unwrap();
        assert!(each.abs_diff(us) * 10 <= us, "{each}, not {us}");
    }

    #[test]
    fn a_steady_line_is_measured_and_a_change_is_noticed_within_its_memory() {
        let mut drain = Drain::default();
        drain.look(0, 0, 10);
        assert_eq!(drain.each_us(), None);
        let now = steady(&mut drain, 0, 100, 40);
        near(&drain, 100 * MS);
        let now = steady(&mut drain, now, 1000, 120);
        near(&drain, 1000 * MS);
        steady(&mut drain, now, 10, 300);
        near(&drain, 10 * MS);
    }

    #[test]
    fn starts_in_batches_count_by_their_time() {
        let mut drain = Drain::default();
        drain.look(0, 0, 100);
        for batch in 1..=10 {
            drain.look(batch * 800 * MS, 16, 100);
        }
        let each = drain.each_us().unwrap();
        assert!((35 * MS..65 * MS).contains(&each), "{each}");
    }

    #[test]
    fn time_without_a_line_and_starts_without_a_wait_tell_nothing() {
        let mut drain = Drain::default();
        drain.look(0, 0, 10);
        let now = steady(&mut drain, 0, 100, 40);
        drain.look(now + 1000 * MS, 10, 0);
        for second in 2..100 {
            drain.look(now + second * 1000 * MS, 5, 0);
        }
        near(&drain, 100 * MS);
    }

    #[test]
    fn a_deadline_that_cannot_be_met_is_refused_with_the_time_that_is_missing() {
        let forecast = Forecast {
            each: Some(Duration::from_millis(500)),
            lead: Duration::from_secs(1),
        };
        let queue = |seconds| Deadlines {
            queue: Some(Duration::from_secs(seconds)),
            ..Deadlines::default()
        };
        assert!(forecast.check(8, &queue(6)).is_ok());
        assert!(forecast.check(1000, &Deadlines::default()).is_ok());
        // Ten seconds, and a quarter to spare.
        let failure = forecast.check(19, &queue(6)).unwrap_err();
        assert_eq!(failure.code, Some("deadline_unmeetable"));
        assert_eq!(failure.retry_after, Some(Duration::from_millis(6500)));
        let first_token = Deadlines {
            first_token: Some(Duration::from_secs(6)),
            ..Deadlines::default()
        };
        assert!(
            forecast.check(8, &first_token).is_err(),
            "the prompt counts"
        );
        assert!(forecast.check(7, &first_token).is_ok());
        assert!(forecast.check(0, &queue(0)).is_ok(), "the first one tries");
        assert!(
            Forecast::default().check(1000, &queue(0)).is_ok(),
            "nothing is known"
        );
    }

    #[test]
    fn a_full_line_asks_to_come_back_when_half_of_it_has_gone() {
        let mut forecast = Forecast::default();
        assert_eq!(forecast.retry_after(64), GUESS);
        forecast.each = Some(Duration::from_millis(250));
        assert_eq!(forecast.retry_after(64), Duration::from_secs(8));
        assert_eq!(forecast.retry_after(0), Duration::from_millis(250));
        assert_eq!(forecast.retry_after(u32::MAX), MOST_RETRY);
    }
}
