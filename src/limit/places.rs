//! So many at once: streams, and those of them that wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use super::{At, Bound, Cell, Clock, Left};

/// When to come back after all places were taken: nobody knows when a stream ends.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Places that are given back by whoever took them, not by time.
#[derive(Debug)]
pub struct Places {
    most: u32,
    taken: Arc<AtomicU32>,
}

impl Places {
    /// So many free places.
    #[must_use]
    pub fn new(most: u32) -> Self {
        Self {
            most,
            taken: Arc::default(),
        }
    }
}

fn count(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Cell for Places {
    fn take(&self, n: u64, _: At) -> Result<(), Duration> {
        let taken = self.taken.fetch_update(Relaxed, Relaxed, |taken| {
            taken
                .checked_add(count(n))
                .filter(|&taken| taken <= self.most)
        });
        taken.map(|_| ()).map_err(|_| RETRY_AFTER)
    }

    fn charge(&self, n: u64, _: At) -> bool {
        let before = self.taken.fetch_add(count(n), Relaxed);
        before.saturating_add(count(n)) < self.most
    }

    fn give(&self, n: u64, _: At) {
        let _ = self.taken.fetch_update(Relaxed, Relaxed, |taken| {
            Some(taken.saturating_sub(count(n)))
        });
    }

    fn left(&self, _: At) -> Left {
        let taken = self.taken.load(Relaxed);
        Left {
            limit: u64::from(self.most),
            remaining: u64::from(self.most.saturating_sub(taken)),
            reset: if taken == 0 {
                Duration::ZERO
            } else {
                RETRY_AFTER
            },
            window: RETRY_AFTER,
        }
    }

    fn is_idle(&self, _: At) -> bool {
        self.taken.load(Relaxed) == 0
    }

    /// Whoever has a place keeps it, and gives it back to both.
    fn heir(&self, bound: Bound, _: &Clock) -> Option<Box<dyn Cell>> {
        let Bound::Places(most) = bound else {
            return None;
        };
        let taken = self.taken.clone();
        Some(Box::new(Self { most, taken }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_when_it_is_given_back_and_not_before() {
        let at = Clock::fake(0).at();
        let places = Places::new(2);
        places.take(1, at).unwrap();
        places.take(1, at).unwrap();
        assert_eq!(places.take(1, at), Err(RETRY_AFTER));
        assert_eq!(places.left(at).remaining, 0);
        places.give(1, at);
        assert!(!places.is_idle(at));
        places.take(1, at).unwrap();
        places.give(2, at);
        assert!(places.is_idle(at));
    }

    #[test]
    fn fewer_places_are_kept_by_those_who_have_them() {
        let clock = Clock::fake(0);
        let at = clock.at();
        let places = Places::new(3);
        places.take(3, at).unwrap();
        let fewer = places.heir(Bound::Places(2), &clock).unwrap();
        assert_eq!(fewer.left(at).remaining, 0);
        places.give(1, at);
        assert!(fewer.take(1, at).is_err());
        places.give(1, at);
        fewer.take(1, at).unwrap();
        assert!(fewer.take(1, at).is_err());
    }

    #[test]
    fn more_than_there_are_at_once_is_refused() {
        let at = Clock::fake(0).at();
        let places = Places::new(2);
        assert!(places.take(3, at).is_err());
        assert!(places.take(u64::MAX, at).is_err());
        assert!(places.is_idle(at));
    }
}
