//! Random numbers by a fixed rule, so that every run asks the same.

use std::time::Duration;

/// A source of numbers: xorshift64, whose upper bits are the better ones.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The numbers of one seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next 64 bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// One of 64.
    pub(crate) fn one_of_64(&mut self) -> usize {
        usize::try_from(self.bits() >> 58).unwrap_or_default()
    }

    /// At least 0 and below 1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    pub(crate) fn share(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The time between two arrivals that know nothing of each other (a Poisson process).
    pub(crate) fn gap(&mut self, per_second: f64) -> Duration {
        Duration::from_secs_f64(-(1.0 - self.share()).ln() / per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_from_their_seed() {
        let (mut one, mut same, mut other) = (Random::new(1), Random::new(1), Random::new(2));
        let first = one.bits();
        assert_eq!(first, same.bits());
        assert_ne!(first, other.bits());
        assert_ne!(first, one.bits());
    }

    #[test]
    fn arrivals_come_at_their_rate_on_average() {
        let mut random = Random::new(7);
        let all: Duration = (0..10_000).map(|_| random.gap(50.0)).sum();
        let per_second = 10_000.0 / all.as_secs_f64();
        assert!((49.0..51.0).contains(&per_second), "{per_second}");
    }
}
