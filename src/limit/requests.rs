//! Requests a minute: governor decides, over a state that is ours.
//!
//! governor has no way to take a decision back. Its state is one number, the theoretical arrival time,
//! and here it lies where we can move it: when another scope refuses, or when headers want to know.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use governor::clock::Clock as _;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};
use governor::{Quota, RateLimiter};

use super::bound::inherit;
use super::{At, Bound, Cell, Clock, Left};

/// Requests of one account, so many a minute.
pub struct Requests {
    limiter: RateLimiter<NotKeyed, Arrival, Clock, NoOpMiddleware<Nanos>>,
    arrival: Arrival,
    /// What governor counts from.
    start: u64,
    quota: Quota,
}

/// When the cell would be full again, in nanoseconds since the limiter's start; 0 before the first
/// request.
#[derive(Clone, Debug, Default)]
struct Arrival(Arc<AtomicU64>);

impl StateStore for Arrival {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut before = self.0.load(Relaxed);
        loop {
            let (outcome, after) = decide((before != 0).then(|| Nanos::new(before)))?;
            match self
                .0
                .compare_exchange_weak(before, after.as_u64(), Relaxed, Relaxed)
            {
                Ok(_) => return Ok(outcome),
                Err(now) => before = now,
            }
        }
    }
}

impl Requests {
    /// A full cell.
    #[must_use]
    pub fn new(per_minute: u64, burst: u64, clock: &Clock) -> Self {
        let arrival = Arrival::default();
        let quota = Quota::per_minute(count(per_minute)).allow_burst(count(burst));
        let start = clock.now().as_u64();
        Self {
            limiter: RateLimiter::new(quota, arrival.clone(), clock.clone()),
            arrival,
            start,
            quota,
        }
    }

    fn interval(&self) -> u64 {
        nanos(self.quota.replenish_interval()).max(1)
    }

    /// Until the cell is full.
    fn owed(&self, at: At) -> u64 {
        let since = at.nanos.saturating_sub(self.start);
        self.arrival.0.load(Relaxed).saturating_sub(since)
    }
}

fn count(n: u64) -> NonZeroU32 {
    NonZeroU32::new(u32::try_from(n).unwrap_or(u32::MAX)).unwrap_or(NonZeroU32::MIN)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Cell for Requests {
    fn take(&self, n: u64, _: At) -> Result<(), Duration> {
        let wait =
            |until: governor::NotUntil<Nanos>| until.wait_time_from(self.limiter.clock().now());
        if n == 1 {
            return self.limiter.check().map_err(wait);
        }
        match self.limiter.check_n(count(n)) {
            Ok(decided) => decided.map_err(wait),
            // A request is one unit; nobody asks for more than a burst of them.
            Err(_) => Err(Duration::MAX),
        }
    }

    fn charge(&self, n: u64, at: At) -> bool {
        let cost = self.interval().saturating_mul(n);
        let since = at.nanos.saturating_sub(self.start);
        let _ = self.arrival.0.fetch_update(Relaxed, Relaxed, |arrival| {
            Some(arrival.max(since).saturating_add(cost))
        });
        self.left(at).remaining >= 1
    }

    fn give(&self, n: u64, _: At) {
        let cost = self.interval().saturating_mul(n);
        let _ = self.arrival.0.fetch_update(Relaxed, Relaxed, |arrival| {
            Some(arrival.saturating_sub(cost))
        });
    }

    fn left(&self, at: At) -> Left {
        let owed = self.owed(at);
        let window = self
            .interval()
            .saturating_mul(u64::from(self.quota.burst_size().get()));
        Left {
            limit: u64::from(self.quota.burst_size().get()),
            remaining: window.saturating_sub(owed) / self.interval(),
            reset: Duration::from_nanos(owed),
            window: Duration::from_nanos(window),
        }
    }

    fn is_idle(&self, at: At) -> bool {
        self.owed(at) == 0
    }

    fn heir(&self, bound: Bound, clock: &Clock) -> Option<Box<dyn Cell>> {
        let Bound::Rate { per_minute, burst } = bound else {
            return None;
        };
        let at = clock.at();
        let new = Self::new(per_minute, burst, clock);
        Some(Box::new(inherit(new, self.left(at), at)))
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_burst_then_one_each_time_one_comes_back() {
        let clock = Clock::fake(0);
        clock.advance(Duration::from_secs(77));
        let cell = Requests::new(60, 3, &clock);
        for left in [2, 1, 0] {
            cell.take(1, clock.at()).unwrap();
            assert_eq!(cell.left(clock.at()).remaining, left);
        }
        assert_eq!(cell.take(1, clock.at()), Err(Duration::from_secs(1)));
        clock.advance(Duration::from_millis(400));
        assert_eq!(cell.take(1, clock.at()), Err(Duration::from_millis(600)));
        clock.advance(Duration::from_millis(600));
        cell.take(1, clock.at()).unwrap();
        let left = cell.left(clock.at());
        assert_eq!((left.limit, left.remaining), (3, 0));
        assert_eq!(left.window, Duration::from_secs(3));
        assert_eq!(left.reset, Duration::from_secs(3));
        clock.advance(left.reset);
        assert!(cell.is_idle(clock.at()));
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_at_once() {
        let clock = Clock::fake(0);
        let cell = Requests::new(1, 2, &clock);
        for _ in 0..100 {
            cell.take(1, clock.at()).unwrap();
            cell.give(1, clock.at());
        }
        assert!(cell.is_idle(clock.at()));
        cell.take(1, clock.at()).unwrap();
        cell.take(1, clock.at()).unwrap();
        assert!(cell.take(1, clock.at()).is_err());
    }

    #[test]
    fn with_another_rate_as_many_are_used_as_before() {
        let clock = Clock::fake(0);
        clock.advance(Duration::from_secs(77));
        let cell = Requests::new(60, 10, &clock);
        for _ in 0..4 {
            cell.take(1, clock.at()).unwrap();
        }
        let (per_minute, burst) = (6, 5);
        let bound = Bound::Rate { per_minute, burst };
        let fewer = cell.heir(bound, &clock).unwrap();
        assert_eq!(fewer.left(clock.at()).remaining, 1);
        fewer.take(1, clock.at()).unwrap();
        assert!(fewer.take(1, clock.at()).is_err());
    }

    #[test]
    fn many_threads_get_exactly_the_burst_while_others_take_and_give_back() {
        let clock = Clock::fake(0);
        let cell = Requests::new(60, 500, &clock);
        let granted: u32 = thread::scope(|scope| {
            let one = || {
                let mut granted = 0;
                for round in 0..1000 {
                    if cell.take(1, clock.at()).is_ok() {
                        if round % 2 == 0 {
                            cell.give(1, clock.at());
                        } else {
                            granted += 1;
                        }
                    }
                }
                granted
            };
            let all: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(granted, 500);
        assert_eq!(cell.left(clock.at()).remaining, 0);
    }
}
