//! Tokens a minute: a generic cell rate algorithm (ITU-T I.371) that takes many units at once, gives
//! them back, and can be in debt.
//!
//! The whole state is one number, the *theoretical arrival time*: when the cell would be full again.
//! One unit moves it by a minute divided by the rate.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::bound::inherit;
use super::{At, Bound, Cell, Clock, Left};

const MINUTE: u64 = 60_000_000_000;

/// As long as a cell may take to become full again, about a century and a half: short enough to be added
/// to any clock.
const LONGEST: u64 = u64::MAX / 4;

/// Tokens of one account, so many a minute.
#[derive(Debug)]
pub struct Tokens {
    full_at: AtomicU64,
    /// In which one unit comes back. A whole number of nanoseconds, so that what is taken and given back in
    /// parts of any size is exact; the rates that the configuration allows make it 600 at the least,
    /// and so the rate itself exact to a thousandth.
    interval: u64,
    burst: u64,
}

impl Tokens {
    /// A full cell.
    #[must_use]
    pub fn new(per_minute: u64, burst: u64) -> Self {
        let per_minute = per_minute.max(1);
        let interval = (MINUTE.saturating_add(per_minute / 2) / per_minute).max(1);
        Self {
            full_at: AtomicU64::new(0),
            interval,
            burst: burst.clamp(1, LONGEST / interval),
        }
    }

    /// Makes it hold `left` units: somebody else counts better.
    pub(super) fn set_left(&self, left: u64, at: At) {
        let used = self.time(self.burst.saturating_sub(left));
        self.full_at.store(at.nanos.saturating_add(used), Relaxed);
    }

    /// In which time so many units come back.
    fn time(&self, units: u64) -> u64 {
        units.saturating_mul(self.interval).min(LONGEST)
    }

    fn window(&self) -> u64 {
        self.time(self.burst)
    }
}

impl Cell for Tokens {
    /// More than a burst is granted to a full cell, and leaves it in debt: nobody is refused for ever
    /// because a budget is small.
    fn take(&self, n: u64, at: At) -> Result<(), Duration> {
        let cost = self.time(n);
        let taken = self.full_at.fetch_update(Relaxed, Relaxed, |full_at| {
            let from = full_at.max(at.nanos);
            let fits = from - at.nanos <= self.window().saturating_sub(cost);
            fits.then(|| from.saturating_add(cost))
        });
        taken.map(|_| ()).map_err(|full_at| {
            let must_be = self.window().saturating_sub(cost);
            Duration::from_nanos(full_at.saturating_sub(at.nanos).saturating_sub(must_be))
        })
    }

    fn charge(&self, n: u64, at: At) -> bool {
        let cost = self.time(n);
        let before = self.full_at.fetch_update(Relaxed, Relaxed, |full_at| {
            Some(full_at.max(at.nanos).saturating_add(cost))
        });
        let (Ok(before) | Err(before)) = before;
        let owed = before.max(at.nanos).saturating_add(cost) - at.nanos;
        self.window().saturating_sub(owed) >= self.interval
    }

    fn give(&self, n: u64, _: At) {
        let cost = self.time(n);
        let _ = self.full_at.fetch_update(Relaxed, Relaxed, |full_at| {
            Some(full_at.saturating_sub(cost))
        });
    }

    fn left(&self, at: At) -> Left {
        let owed = self.full_at.load(Relaxed).saturating_sub(at.nanos);
        Left {
            limit: self.burst,
            remaining: self.window().saturating_sub(owed) / self.interval,
            reset: Duration::from_nanos(owed),
            window: Duration::from_nanos(self.window()),
        }
    }

    fn is_idle(&self, at: At) -> bool {
        self.full_at.load(Relaxed) <= at.nanos
    }

    fn heir(&self, bound: Bound, clock: &Clock) -> Option<Box<dyn Cell>> {
        let Bound::Rate { per_minute, burst } = bound else {
            return None;
        };
        let at = clock.at();
        let heir = inherit(Self::new(per_minute, burst), self.left(at), at);
        Some(Box::new(heir))
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    /// One token a second.
    const RATE: u64 = 60;

    /// The same rule as a bucket that is filled by the second.
    struct Bucket {
        level: i64,
        burst: i64,
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Take(u64),
        Give(u64),
        Charge(u64),
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (1..150_u64).prop_map(Step::Take),
            (1..50_u64).prop_map(Step::Give),
            (1..50_u64).prop_map(Step::Charge),
            (0..90_u64).prop_map(Step::Wait),
        ];
        proptest::collection::vec(step, 0..60)
    }

    proptest! {
        #[test]
        fn it_grants_what_a_bucket_would(burst in 1..100_u64, steps in steps()) {
            let clock = Clock::fake(0);
            let cell = Tokens::new(RATE, burst);
            let burst = burst.cast_signed();
            let mut bucket = Bucket { level: burst, burst };
            for step in steps {
                let at = clock.at();
                match step {
                    Step::Take(n) => {
                        let granted = n.cast_signed() <= bucket.level || bucket.level == bucket.burst;
                        let wait = (n.cast_signed()).min(bucket.burst) - bucket.level;
                        match cell.take(n, at) {
                            Ok(()) => prop_assert!(granted),
                            Err(until) => {
                                prop_assert!(!granted);
                                prop_assert_eq!(until, Duration::from_secs(wait.cast_unsigned()));
                            }
                        }
                        bucket.level -= if granted { n.cast_signed() } else { 0 };
                    }
                    Step::Charge(n) => {
                        bucket.level -= n.cast_signed();
                        prop_assert_eq!(cell.charge(n, at), bucket.level >= 1);
                    }
                    Step::Give(n) => {
                        cell.give(n, at);
                        bucket.level = (bucket.level + n.cast_signed()).min(bucket.burst);
                    }
                    Step::Wait(seconds) => {
                        clock.advance(Duration::from_secs(seconds));
                        bucket.level = (bucket.level + seconds.cast_signed()).min(bucket.burst);
                    }
                }
                let left = cell.left(clock.at());
                prop_assert_eq!(left.remaining, bucket.level.max(0).cast_unsigned());
                prop_assert_eq!(left.reset.as_secs().cast_signed(), bucket.burst - bucket.level);
                prop_assert_eq!(cell.is_idle(clock.at()), bucket.level == bucket.burst);
            }
        }

        #[test]
        fn no_rate_and_no_amount_overflows(rate in 1..=100_000_000_u64, burst in 1..=70_000_000_u64, n: u64, now: u32) {
            let at = At { nanos: u64::from(now), unix: 0 };
            let cell = Tokens::new(rate, burst);
            prop_assert_eq!(cell.left(at).remaining, burst);
            prop_assert!(cell.take(n, at).is_ok(), "a full cell grants everything");
            let _ = cell.charge(n, at);
            prop_assert!(cell.left(at).remaining <= burst);
            cell.give(n, at);
        }

        #[test]
        fn what_is_taken_in_one_piece_and_given_back_in_many_is_nothing(rate in 1..=100_000_000_u64, parts in proptest::collection::vec(1..1000_u64, 1..50)) {
            let at = At { nanos: 1 << 60, unix: 0 };
            let cell = Tokens::new(rate, 1_000_000);
            prop_assert!(cell.take(parts.iter().sum(), at).is_ok());
            for part in &parts {
                cell.give(*part, at);
            }
            prop_assert!(cell.is_idle(at));
        }
    }

    #[test]
    fn more_than_a_burst_is_granted_to_a_full_cell_and_is_owed() {
        let clock = Clock::fake(0);
        let cell = Tokens::new(RATE, 10);
        cell.take(25, clock.at()).unwrap();
        assert_eq!(cell.left(clock.at()).remaining, 0);
        assert_eq!(cell.take(1, clock.at()), Err(Duration::from_secs(16)));
        clock.advance(Duration::from_secs(16));
        cell.take(1, clock.at()).unwrap();
        assert_eq!(cell.take(25, clock.at()), Err(Duration::from_secs(10)));
    }

    #[test]
    fn with_another_rate_as_many_are_used_as_before() {
        let clock = Clock::fake(1);
        let cell = Tokens::new(RATE, 60);
        cell.take(20, clock.at()).unwrap();
        let bound = |per_minute, burst| Bound::Rate { per_minute, burst };
        let more = cell.heir(bound(600, 100), &clock).unwrap();
        assert_eq!(more.left(clock.at()).remaining, 80);
        let fewer = more.heir(bound(6, 10), &clock).unwrap();
        assert_eq!(fewer.left(clock.at()).remaining, 0);
        assert!(fewer.take(1, clock.at()).is_err());
        let fresh = Tokens::new(RATE, 60).heir(bound(6, 10), &clock).unwrap();
        assert!(fresh.is_idle(clock.at()));
    }

    #[test]
    fn many_threads_take_exactly_what_there_is() {
        let at = Clock::fake(0).at();
        let cell = Tokens::new(RATE, 1000);
        let granted: u64 = thread::scope(|scope| {
            let one = || {
                let mut granted = 0;
                for round in 0..2000_u64 {
                    if cell.take(3, at).is_ok() {
                        if round % 2 == 0 {
                            cell.give(3, at);
                        } else {
                            granted += 3;
                        }
                    }
                }
                granted
            };
            let all: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(granted, 999);
        assert_eq!(cell.left(at).remaining, 1);
    }
}
