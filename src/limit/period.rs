//! Requests and tokens in a day or a month of UTC, counted in memory.
//!
//! A period ends when the calendar passes its end; a clock that is set back does not begin it anew.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

use super::{At, Cell, Left};

/// A period of the calendar, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Period {
    /// From midnight to midnight.
    Day,
    /// From the first of a month to the next one's.
    Month,
}

impl Period {
    /// The begin and the end of the period that `unix` lies in, in seconds since 1970.
    #[must_use]
    pub fn around(self, unix: u64) -> (u64, u64) {
        let seconds = i64::try_from(unix).unwrap_or(i64::MAX);
        let Ok(at) = Timestamp::from_second(seconds) else {
            // After the year 9999 there is one long period.
            return (unix, u64::MAX);
        };
        let today = at.to_zoned(TimeZone::UTC).date();
        let (begin, end) = match self {
            Self::Day => (today, today.tomorrow()),
            Self::Month => (today.first_of_month(), today.last_of_month().tomorrow()),
        };
        let second = |date: jiff::civil::Date| {
            let zoned: Result<Zoned, _> = date.to_zoned(TimeZone::UTC);
            zoned
                .ok()
                .and_then(|at| u64::try_from(at.timestamp().as_second()).ok())
        };
        (
            second(begin).unwrap_or(unix),
            end.ok().and_then(second).unwrap_or(u64::MAX),
        )
    }
}

/// What was spent in one period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Where the period began, in seconds since 1970.
    pub begin: u64,
    /// Where it ends; 0 before the first use.
    pub end: u64,
    /// How much was spent since.
    pub units: u64,
}

/// A counter that may outlive the account it belongs to.
pub type Counter = Arc<Mutex<Spent>>;

/// So many units in each period.
#[derive(Debug)]
pub struct Quota {
    period: Period,
    most: u64,
    counter: Counter,
}

impl Quota {
    /// A quota over this counter.
    #[must_use]
    pub fn new(period: Period, most: u64, counter: Counter) -> Self {
        Self {
            period,
            most,
            counter,
        }
    }

    /// Works on the current period's count; begins a new one if the last is over.
    fn with<T>(&self, at: At, work: impl FnOnce(&mut Spent) -> T) -> T {
        let mut spent = self.counter.lock().unwrap_or_else(PoisonError::into_inner);
        if at.unix >= spent.end {
            let (begin, end) = self.period.around(at.unix);
            *spent = Spent {
                begin,
                end,
                units: 0,
            };
        }
        work(&mut spent)
    }
}

impl Cell for Quota {
    fn take(&self, n: u64, at: At) -> Result<(), Duration> {
        self.with(at, |spent| {
            // As with a rate, a fresh quota grants one request that is larger than itself.
            if n <= self.most.saturating_sub(spent.units) || spent.units == 0 {
                spent.units = spent.units.saturating_add(n);
                return Ok(());
            }
            Err(Duration::from_secs(spent.end.saturating_sub(at.unix)))
        })
    }

    fn charge(&self, n: u64, at: At) -> bool {
        self.with(at, |spent| {
            spent.units = spent.units.saturating_add(n);
            spent.units < self.most
        })
    }

    /// What was taken before midnight and is given back after it is given to nobody.
    fn give(&self, n: u64, at: At) {
        self.with(at, |spent| spent.units = spent.units.saturating_sub(n));
    }

    fn left(&self, at: At) -> Left {
        self.with(at, |spent| Left {
            limit: self.most,
            remaining: self.most.saturating_sub(spent.units),
            reset: Duration::from_secs(spent.end.saturating_sub(at.unix)),
            window: Duration::from_secs(spent.end.saturating_sub(spent.begin)),
        })
    }

    fn is_idle(&self, at: At) -> bool {
        self.with(at, |spent| spent.units == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2024-02-29 12:00:00 UTC.
    const LEAP_DAY: u64 = 1_709_208_000;
    const HOUR: u64 = 3600;

    fn at(unix: u64) -> At {
        At { nanos: 0, unix }
    }

    #[test]
    fn periods_are_those_of_the_calendar() {
        let noon = LEAP_DAY;
        assert_eq!(
            Period::Day.around(noon),
            (noon - 12 * HOUR, noon + 12 * HOUR)
        );
        let (begin, end) = Period::Month.around(noon);
        assert_eq!(begin, noon - (28 * 24 + 12) * HOUR, "the first of February");
        assert_eq!(end, noon + 12 * HOUR, "the first of March");
        assert_eq!(Period::Month.around(end).0, end);
        assert_eq!(Period::Day.around(0), (0, 24 * HOUR));
        assert!(Period::Day.around(u64::MAX).1 == u64::MAX);
    }

    #[test]
    fn a_quota_is_back_with_the_next_period_and_not_before() {
        let quota = Quota::new(Period::Day, 10, Counter::default());
        quota.take(7, at(LEAP_DAY)).unwrap();
        let wait = Duration::from_secs(12 * HOUR);
        assert_eq!(quota.take(4, at(LEAP_DAY)), Err(wait));
        quota.take(3, at(LEAP_DAY)).unwrap();
        assert_eq!(quota.left(at(LEAP_DAY)).remaining, 0);
        assert!(quota.take(1, at(LEAP_DAY + 12 * HOUR - 1)).is_err());
        quota.take(1, at(LEAP_DAY + 12 * HOUR)).unwrap();
        assert_eq!(quota.left(at(LEAP_DAY + 12 * HOUR)).remaining, 9);
    }

    #[test]
    fn a_clock_that_is_set_back_begins_no_period_anew() {
        let quota = Quota::new(Period::Day, 10, Counter::default());
        quota.take(10, at(LEAP_DAY)).unwrap();
        for back in [HOUR, 24 * HOUR, 400 * 24 * HOUR] {
            assert!(quota.take(1, at(LEAP_DAY - back)).is_err());
        }
    }

    #[test]
    fn a_fresh_quota_grants_one_request_larger_than_itself_and_a_used_one_none() {
        let quota = Quota::new(Period::Month, 10, Counter::default());
        quota.take(25, at(LEAP_DAY)).unwrap();
        quota.give(20, at(LEAP_DAY));
        assert_eq!(quota.left(at(LEAP_DAY)).remaining, 5);
        assert!(quota.take(25, at(LEAP_DAY)).is_err());
        assert!(quota.charge(4, at(LEAP_DAY)));
        assert!(!quota.charge(1, at(LEAP_DAY)));
    }
}
