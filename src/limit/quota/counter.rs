//! What was used of one quota: a number that belongs to a day or a month, in one atomic word.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::calendar::Period;

/// Bits of the number; the ones above it tell the period. More than anybody will generate in a month.
const BITS: u32 = 48;

/// The largest number; counting stops there.
const MOST: u64 = (1 << BITS) - 1;

/// A count of the current day or month. Whoever counts says which of the two it is, each time the same.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    /// Counts `amount`, if it still fits under `limit`, or if it is the first of the period: as with a
    /// rate, nobody is refused for ever because a quota is small.
    ///
    /// # Errors
    /// It does not fit, and nothing is counted. How long until the next period begins.
    pub(super) fn take(
        &self,
        period: Period,
        now: u64,
        amount: u64,
        limit: u64,
    ) -> Result<(), Duration> {
        let taken = self.update(period, now, |used| {
            let sum = used.saturating_add(amount);
            (sum <= limit || used == 0).then_some(sum)
        });
        taken.map(|_| ()).map_err(|index| period.left(index, now))
    }

    /// Counts `amount`, whatever the limit. What was used then.
    pub(super) fn add(&self, period: Period, now: u64, amount: u64) -> u64 {
        let added = self.update(period, now, |used| Some(used.saturating_add(amount)));
        added.unwrap_or_default()
    }

    /// Takes `amount` off what is counted.
    pub(super) fn give_back(&self, period: Period, now: u64, amount: u64) {
        let _ = self.update(period, now, |used| Some(used.saturating_sub(amount)));
    }

    /// What was used of the current day or month, and until when that lasts.
    pub(super) fn used(&self, period: Period, now: u64) -> (u64, Duration) {
        let (index, used) = current(self.0.load(Ordering::Relaxed), period, now);
        (used, period.left(index, now))
    }

    /// The number of the day or month that was counted last, and what was used of it.
    pub(super) fn kept(&self) -> (u16, u64) {
        unpack(self.0.load(Ordering::Relaxed))
    }

    /// Takes over what was kept, unless more is known already.
    pub(super) fn raise(&self, index: u16, used: u64) {
        self.0.fetch_max(pack(index, used), Ordering::Relaxed);
    }

    /// The new count; or, where `count` did not want one, the current day or month.
    fn update(
        &self,
        period: Period,
        now: u64,
        count: impl Fn(u64) -> Option<u64>,
    ) -> Result<u64, u16> {
        let mut counted = Err(0);
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
                let (index, used) = current(word, period, now);
                let sum = count(used);
                counted = sum.ok_or(index);
                // Also what does not fit is seen on a day, which the next step of the clock starts from.
                let next = pack(index, sum.unwrap_or(used));
                (next != word).then_some(next)
            });
        counted
    }
}

fn current(word: u64, period: Period, now: u64) -> (u16, u64) {
    let (counted, used) = unpack(word);
    let (index, stays) = period.step(counted, now);
    (index, if stays { used } else { 0 })
}

fn pack(index: u16, used: u64) -> u64 {
    u64::from(index) << BITS | used.min(MOST)
}

fn unpack(word: u64) -> (u16, u64) {
    ((word >> BITS) as u16, word & MOST)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: u64 = 86_400;
    const NOON: u64 = 1_763_726_400;

    #[test]
    fn a_quota_is_used_up_and_new_the_next_day() {
        let counter = Counter::default();
        counter.take(Period::Day, NOON, 7, 10).unwrap();
        counter.take(Period::Day, NOON, 3, 10).unwrap();
        let wait = counter.take(Period::Day, NOON, 1, 10).unwrap_err();
        assert_eq!(wait, Duration::from_secs(DAY / 2));
        counter.take(Period::Day, NOON + DAY / 2, 10, 10).unwrap();
        assert_eq!(counter.used(Period::Day, NOON + DAY / 2).0, 10);
    }

    #[test]
    fn a_fresh_quota_grants_what_is_larger_than_itself_once() {
        let counter = Counter::default();
        counter.take(Period::Day, NOON, 11, 10).unwrap();
        assert!(counter.take(Period::Day, NOON, 1, 10).is_err());
        counter.give_back(Period::Day, NOON, 5);
        counter.take(Period::Day, NOON, 4, 10).unwrap();
    }

    #[test]
    fn a_clock_set_back_gives_nobody_a_second_quota() {
        let counter = Counter::default();
        counter.take(Period::Day, NOON, 10, 10).unwrap();
        for back in [1, DAY / 2 + 1, DAY, 400 * DAY] {
            assert!(
                counter.take(Period::Day, NOON - back, 1, 10).is_err(),
                "{back}"
            );
        }
        // A clock that was a month ahead does not lock anybody out for that month.
        let counter = Counter::default();
        counter.take(Period::Day, NOON + 30 * DAY, 10, 10).unwrap();
        assert!(counter.take(Period::Day, NOON, 1, 10).is_err());
        counter.take(Period::Day, NOON + DAY, 1, 10).unwrap();
    }

    #[test]
    fn counting_never_wraps_into_another_day() {
        let counter = Counter::default();
        for _ in 0..3 {
            counter.add(Period::Day, NOON, u64::MAX);
        }
        assert_eq!(counter.kept(), (Period::Day.index(NOON), MOST));
    }

    #[test]
    fn threads_together_take_no_more_than_there_is() {
        let counter = Counter::default();
        let taken: usize = std::thread::scope(|scope| {
            let take = || {
                let tries =
                    (0..1000).filter(|_| counter.take(Period::Month, NOON, 3, 5000).is_ok());
                tries.count()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        assert_eq!(taken, 1666);
    }

    proptest! {
        /// Against two numbers in plain sight, with a clock that only goes on.
        #[test]
        fn it_counts_like_a_number_for_each_day(
            steps in proptest::collection::vec((0_u64..DAY, 0_u64..40, any::<bool>()), 1..100),
        ) {
            let (counter, limit) = (Counter::default(), 100);
            let (mut now, mut used, mut day) = (NOON, 0_u64, Period::Day.index(NOON));
            for (seconds, amount, back) in steps {
                now += seconds;
                let today = Period::Day.index(now);
                if today != day { (used, day) = (0, today); }
                if back {
                    counter.give_back(Period::Day, now, amount);
                    used = used.saturating_sub(amount);
                } else {
                    let fits = used + amount <= limit || used == 0;
                    prop_assert_eq!(counter.take(Period::Day, now, amount, limit).is_ok(), fits);
                    if fits { used += amount; }
                }
                prop_assert_eq!(counter.used(Period::Day, now).0, used);
            }
        }
    }
}
