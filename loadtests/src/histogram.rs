//! Durations counted in buckets of equal relative width: constant memory, and percentiles within 1 %.
//!
//! ```text
//! microseconds   0 1 2 … 127 | 128 129 … 255 | 256 258 … 510 | 512 516 … | …
//! buckets        128 of 1 µs |  128 of 1 µs  |  128 of 2 µs  | 128 of 4  | one group per power of two
//! ```

use std::time::Duration;

/// Buckets per power of two: a bucket is at most 1/128 of its value wide.
const GROUP: usize = 128;
const GROUP_BITS: u32 = GROUP.trailing_zeros();

/// Powers of two covered: up to 2^40 µs, twelve days. Longer durations count as that.
const TOP: u64 = (1 << 40) - 1;
const BUCKETS: usize = (40 - GROUP_BITS as usize + 1) * GROUP;

/// A histogram of durations.
#[derive(Clone)]
pub(crate) struct Histogram {
    counts: Box<[u64]>,
    total: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; BUCKETS].into(),
            total: 0,
            max: 0,
        }
    }
}

impl Histogram {
    /// Counts a duration `times` times.
    pub(crate) fn record(&mut self, duration: Duration, times: u64) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(TOP).min(TOP);
        if let Some(count) = self.counts.get_mut(bucket(micros)) {
            *count += times;
        }
        self.total += times;
        if times > 0 {
            self.max = self.max.max(micros);
        }
    }

    /// Adds what another histogram counted.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    /// Every bucket that has something: the longest duration that belongs to it, and how many there are.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        let all = self.counts.iter().enumerate();
        all.filter(|(_, count)| **count > 0)
            .map(|(index, count)| (Duration::from_micros(last_of(index)), *count))
    }

    /// How many durations were counted.
    pub(crate) fn count(&self) -> u64 {
        self.total
    }

    /// The longest duration, exactly (to the microsecond).
    pub(crate) fn max(&self) -> Duration {
        Duration::from_micros(self.max)
    }

    /// The duration that `share` (0 to 1) of all do not exceed, rounded up to its bucket's end.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank is off by one beyond 2^53 samples"
    )]
    pub(crate) fn percentile(&self, share: f64) -> Duration {
        let rank = (share * self.total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_micros(last_of(index).min(self.max));
            }
        }
        self.max()
    }
}

/// The bucket of a value.
fn bucket(micros: u64) -> usize {
    let shift = (u64::BITS - micros.leading_zeros()).saturating_sub(GROUP_BITS + 1);
    // The high bits, of which the first group has both halves and each later one the upper half.
    shift as usize * GROUP + usize::try_from(micros >> shift).unwrap_or(usize::MAX)
}

/// The largest value of a bucket.
fn last_of(bucket: usize) -> u64 {
    let shift = (bucket / GROUP).saturating_sub(1);
    let high = (bucket - shift * GROUP) as u64;
    ((high + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn micros(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    #[test]
    fn small_values_are_exact() {
        let mut histogram = Histogram::default();
        for n in 1..=100 {
            histogram.record(micros(n), 1);
        }
        assert_eq!(histogram.percentile(0.5), micros(50));
        assert_eq!(histogram.percentile(0.99), micros(99));
        assert_eq!(histogram.percentile(1.0), micros(100));
        assert_eq!(histogram.buckets().last(), Some((micros(100), 1)));
        assert_eq!(histogram.max(), micros(100));
    }

    #[test]
    fn nothing_counted_is_zero() {
        let mut histogram = Histogram::default();
        histogram.record(micros(5), 0);
        assert_eq!(histogram.percentile(0.99), Duration::ZERO);
        assert_eq!((histogram.count(), histogram.max()), (0, Duration::ZERO));
    }

    #[test]
    fn the_longest_durations_count_as_the_top() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::MAX, 3);
        assert_eq!(histogram.percentile(0.5), micros(TOP));
        assert_eq!(bucket(TOP), BUCKETS - 1);
    }

    #[test]
    fn merging_adds() {
        let (mut a, mut b) = (Histogram::default(), Histogram::default());
        a.record(micros(1), 1);
        b.record(micros(9), 3);
        a.merge(&b);
        assert_eq!(
            (a.count(), a.percentile(0.25), a.max()),
            (4, micros(1), micros(9))
        );
    }

    proptest! {
        #[test]
        fn a_bucket_holds_its_values_within_one_percent(n in 0..=TOP) {
            let index = bucket(n);
            prop_assert!(index < BUCKETS);
            let last = last_of(index);
            prop_assert!(last >= n);
            prop_assert!((last - n) * 128 <= n);
            prop_assert_eq!(bucket(last), index);
            prop_assert_eq!(bucket(last + 1), index + 1);
        }
    }
}
