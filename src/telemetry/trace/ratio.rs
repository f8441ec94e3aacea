//! How much of the ordinary is kept: little while all is well, more while the SLO burns.

use std::time::Duration;

/// Burning at this rate uses the budget up exactly; above it somebody will want to see why.
const TOO_FAST: f64 = 1.0;

/// Between two steps.
pub(super) const STEP: Duration = Duration::from_secs(1);

/// Steps of burning after which the ratio doubles: 1 % is 100 % after half a minute. Where there are few
/// requests, one bad one of the last five minutes is enough, and all of so few are not many.
const UP_AFTER: u32 = 5;

/// Steps without burning after which it begins to come back, and by how many steps then.
const DOWN_AFTER: u32 = 60;

/// Steps between two halvings on the way back.
const DOWN_EVERY: u32 = 5;

/// Where nothing is kept while all is well, this is what a fire begins with.
const LEAST_BURNING: f64 = 0.001;

/// The ratio over time.
pub(super) struct Ratio {
    /// How many times the base it is; a power of two.
    raised: f64,
    burning: u32,
    calm: u32,
}

impl Ratio {
    pub(super) fn new() -> Self {
        Self {
            raised: 1.0,
            burning: 0,
            calm: 0,
        }
    }

    /// A [`STEP`] has passed, and the budget burns this fast. The ratio from now on.
    pub(super) fn step(&mut self, base: f64, burn: f64) -> f64 {
        if burn > TOO_FAST {
            self.calm = 0;
            self.burning += 1;
            if self.burning.is_multiple_of(UP_AFTER) && self.ratio(base) < 1.0 {
                self.raised *= 2.0;
            }
        } else {
            self.burning = 0;
            self.calm = self.calm.saturating_add(1);
            let since = self.calm.checked_sub(DOWN_AFTER);
            if since.is_some_and(|since| since.is_multiple_of(DOWN_EVERY)) {
                self.raised = (self.raised / 2.0).max(1.0);
            }
        }
        self.ratio(base)
    }

    fn ratio(&self, base: f64) -> f64 {
        if self.raised > 1.0 {
            (base.max(LEAST_BURNING) * self.raised).min(1.0)
        } else {
            base
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(ratio: &mut Ratio, count: usize, burn: f64) -> f64 {
        (0..count).fold(0.0, |_, _| ratio.step(0.01, burn))
    }

    #[test]
    fn it_rises_to_all_while_the_budget_burns_and_comes_back() {
        let mut ratio = Ratio::new();
        let is = |ratio: f64, expected: f64| (ratio - expected).abs() < 1e-12;
        assert!(is(steps(&mut ratio, 1000, 1.0), 0.01));
        assert!(is(steps(&mut ratio, 4, 2.0), 0.01));
        assert!(is(steps(&mut ratio, 1, 2.0), 0.02));
        assert!(is(steps(&mut ratio, 5, 2.0), 0.04));
        assert!(is(steps(&mut ratio, 1000, 2.0), 1.0));
        // Calm: it stays for a minute, then comes back by halves.
        assert!(is(steps(&mut ratio, 59, 0.0), 1.0));
        assert!(steps(&mut ratio, 1, 0.0) < 1.0);
        let mut last = 1.0;
        for _ in 0..100 {
            let next = ratio.step(0.01, 0.5);
            assert!(next <= last && next >= 0.01);
            last = next;
        }
        assert!(is(last, 0.01));
    }

    #[test]
    fn one_calm_second_in_a_fire_changes_little() {
        let mut ratio = Ratio::new();
        steps(&mut ratio, 1000, 2.0);
        for _ in 0..100 {
            steps(&mut ratio, 50, 0.0);
            assert!((steps(&mut ratio, 1, 2.0) - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn a_fire_shows_even_where_nothing_is_kept_otherwise() {
        let mut ratio = Ratio::new();
        for _ in 0..200 {
            ratio.step(0.0, 2.0);
        }
        assert!((ratio.step(0.0, 2.0) - 1.0).abs() < 1e-12);
        for _ in 0..200 {
            ratio.step(0.0, 0.0);
        }
        assert!(ratio.step(0.0, 0.0).abs() < 1e-12);
    }
}
