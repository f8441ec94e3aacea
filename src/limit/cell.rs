//! Tokens a minute: a generic cell rate algorithm (ITU-T I.371) that takes many units at once, gives
//! them back, and can be in debt.
//!
//! The whole state is one number, the *theoretical arrival time*: when the cell would be full again.
//! One unit moves it by a minute divided by the rate.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::{At, Cell, Left};

const MINUTE: u64 = 60_000_000_000;

/// Tokens of one account, so many a minute.
#[derive(Debug)]
pub struct Tokens {
    full_at: AtomicU64,
    per_minute: u64,
    burst: u64,
    /// In which a burst comes back.
    tolerance: u64,
}

impl Tokens {
    /// A full cell.
    #[must_use]
    pub fn new(per_minute: u64, burst: u64) -> Self {
        let (per_minute, burst) = (per_minute.max(1), burst.max(1));
        Self {
            full_at: AtomicU64::new(0),
            per_minute,
            burst,
            tolerance: time(burst, per_minute),
        }
    }

    fn time(&self, units: u64) -> u64 {
        time(units, self.per_minute)
    }

    fn units(&self, time: u64) -> u64 {
        let units = u128::from(time) * u128::from(self.per_minute) / u128::from(MINUTE);
        u64::try_from(units).unwrap_or(u64::MAX)
    }
}

/// In which time so many units come back, rounded down to a nanosecond: over any number of requests what
/// is taken and given back differs by less than one unit from what it should be, as the rates that
/// the configuration allows give a unit at least sixty of them.
fn time(units: u64, per_minute: u64) -> u64 {
    let time = u128::from(units) * u128::from(MINUTE) / u128::from(per_minute);
    // As far in the future as any clock can be moved without overflow.
    u64::try_from(time).unwrap_or(u64::MAX).min(u64::MAX / 4)
}

impl Cell for Tokens {
    /// More than a burst is granted to a full cell, and leaves it in debt: nobody is refused for ever
    /// because a budget is small.
    fn take(&self, n: u64, at: At) -> Result<(), Duration> {
        let cost = self.time(n);
        let taken = self.full_at.fetch_update(Relaxed, Relaxed, |full_at| {
            let from = full_at.max(at.nanos);
            let fits = from - at.nanos <= self.tolerance.saturating_sub(cost);
            fits.then(|| from.saturating_add(cost))
        });
        taken.map(|_| ()).map_err(|full_at| {
            let must_be = self.tolerance.saturating_sub(cost);
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
        self.units(self.tolerance.saturating_sub(owed)) >= 1
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
            remaining: self
                .units(self.tolerance.saturating_sub(owed))
                .min(self.burst),
            reset: Duration::from_nanos(owed),
            window: Duration::from_nanos(self.tolerance),
        }
    }

    fn is_idle(&self, at: At) -> bool {
        self.full_at.load(Relaxed) <= at.nanos
    }
}
