//! Days and months of the UTC calendar, numbered from the beginning of 2020.

use std::time::Duration;

use jiff::civil::{self, Date};
use jiff::tz::Offset;
use jiff::{Timestamp, ToSpan as _};

/// Long enough for every step of a clock that is set right, and for one that is a time zone off.
const STEP: Duration = Duration::from_hours(24);

/// The first day and the first month that have a number.
const FIRST: Date = civil::date(2020, 1, 1);

/// When that day begins, in seconds since 1970, and how long each of them is: UTC has no summer, and
/// Unix time no leap seconds.
const START: i64 = 1_577_836_800;
const DAY: i64 = 86_400;

/// A period of the calendar, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Period {
    /// From midnight to midnight.
    Day,
    /// From the first of a month to the next one's.
    Month,
}

impl Period {
    /// The number of the day or month at `now`, in seconds since 1970.
    #[must_use]
    pub fn index(self, now: u64) -> u16 {
        let seconds = i64::try_from(now).unwrap_or(i64::MAX);
        // Asked for with every charge, so without a detour over dates where there is a way.
        let count = match self {
            Self::Day => (seconds - START) / DAY,
            Self::Month => {
                let at = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
                let date = Offset::UTC.to_datetime(at).date();
                let years = i64::from(date.year()) - i64::from(FIRST.year());
                years * 12 + i64::from(date.month()) - 1
            }
        };
        // Before 2020 the clock is not set; what is counted then belongs to the first day.
        u16::try_from(count.max(0)).unwrap_or(u16::MAX)
    }

    /// When the day or month of this number begins, in seconds since 1970.
    #[must_use]
    pub fn start(self, index: u16) -> u64 {
        let date = self.first_day(index);
        let at = Offset::UTC.to_timestamp(date.at(0, 0, 0, 0));
        at.map_or(0, |at| u64::try_from(at.as_second()).unwrap_or(0))
    }

    /// How long the day or month of this number lasts from `now` on.
    #[must_use]
    pub fn left(self, index: u16, now: u64) -> Duration {
        let end = self.start(index.saturating_add(1));
        Duration::from_secs(end.saturating_sub(now))
    }

    /// How long the day or month at `now` is.
    #[must_use]
    pub fn length(self, now: u64) -> Duration {
        let index = self.index(now);
        self.left(index, self.start(index))
    }

    /// The number under which use at `now` is counted, when `counted` is the last one used, and
    /// whether what was counted stays. A clock that goes back never makes a quota new: a small step
    /// leaves the number alone; after a large one the clock was wrong before, and what it counted
    /// moves to the right day.
    #[must_use]
    pub fn step(self, counted: u16, now: u64) -> (u16, bool) {
        let today = self.index(now);
        if counted <= today {
            return (today, counted == today);
        }
        let ahead = self.start(counted).saturating_sub(now);
        let is_near = Duration::from_secs(ahead) <= STEP;
        (if is_near { counted } else { today }, true)
    }

    /// `2026-11-21` or `2026-11`.
    #[must_use]
    pub fn text(self, index: u16) -> String {
        let text = self.first_day(index).to_string();
        match self {
            Self::Day => text,
            Self::Month => text.get(..7).unwrap_or_default().to_owned(),
        }
    }

    /// Reads what [`Self::text`] has written.
    #[must_use]
    pub fn parse(self, text: &str) -> Option<u16> {
        let date: Date = match self {
            Self::Day => text.parse().ok()?,
            Self::Month => format!("{text}-01").parse().ok()?,
        };
        let at = Offset::UTC.to_timestamp(date.at(0, 0, 0, 0)).ok()?;
        let index = self.index(u64::try_from(at.as_second()).ok()?);
        (self.text(index) == text).then_some(index)
    }

    fn first_day(self, index: u16) -> Date {
        let span = match self {
            Self::Day => i32::from(index).days(),
            Self::Month => i32::from(index).months(),
        };
        FIRST.checked_add(span).unwrap_or(Date::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: u64 = 86_400;

    fn at(text: &str) -> u64 {
        let at: Timestamp = text.parse().unwrap();
        u64::try_from(at.as_second()).unwrap()
    }

    #[test]
    fn days_and_months_begin_at_midnight_utc() {
        let (last, first) = (at("2024-02-29T23:59:59Z"), at("2024-03-01T00:00:00Z"));
        for period in [Period::Day, Period::Month] {
            assert_eq!(period.index(last) + 1, period.index(first));
            assert_eq!(period.start(period.index(first)), first);
            let left = period.left(period.index(last), last);
            assert_eq!(left, Duration::from_secs(1));
        }
        assert_eq!(Period::Day.text(Period::Day.index(last)), "2024-02-29");
        assert_eq!(Period::Month.text(Period::Month.index(last)), "2024-02");
    }

    #[test]
    fn nonsense_is_no_day() {
        for text in ["", "2024-02-30", "2019-12-31", "2024-1-01", "x", "2024-02"] {
            assert_eq!(Period::Day.parse(text), None, "{text}");
        }
        for text in ["", "2024-13", "2024", "2019-12", "2024-01-01"] {
            assert_eq!(Period::Month.parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_clock_that_goes_back_makes_nothing_new() {
        let noon = at("2026-11-21T12:00:00Z");
        let today = Period::Day.index(noon);
        assert_eq!(Period::Day.step(today, noon - DAY / 2 - 1), (today, true));
        assert_eq!(Period::Day.step(today, noon + DAY), (today + 1, false));
        // It was in the year 2030 for a while: that day's use counts as today's, not until 2030.
        let wrong = Period::Day.index(at("2030-01-01T00:00:00Z"));
        assert_eq!(Period::Day.step(wrong, noon), (today, true));
    }

    #[test]
    fn a_clock_that_was_never_set_counts_all_the_same() {
        assert_eq!(Period::Day.index(0), 0);
        assert_eq!(Period::Month.index(0), 0);
        assert_eq!(Period::Day.index(u64::MAX), u16::MAX);
    }

    proptest! {
        #[test]
        fn every_moment_lies_in_its_period_and_texts_come_back(now in 1_577_836_800_u64..5_000_000_000) {
            for period in [Period::Day, Period::Month] {
                let index = period.index(now);
                prop_assert!(period.start(index) <= now && now < period.start(index + 1));
                prop_assert_eq!(period.parse(&period.text(index)), Some(index));
            }
        }
    }
}
