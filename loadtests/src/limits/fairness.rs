//! How fairly something was shared.

use crate::numbers::float;

/// Jain's index: 1 where all have the same, 1/n where one has all.
pub(super) fn jain(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    if squares == 0.0 {
        return 0.0;
    }
    sum * sum / (float(shares.len() as u64) * squares)
}

/// By how many percent of what it should have the worst off, or best off, is away from it.
pub(super) fn farthest(shares: &[f64], weights: &[f64]) -> f64 {
    let (all, sum): (f64, f64) = (shares.iter().sum(), weights.iter().sum());
    if all == 0.0 {
        return 100.0;
    }
    let away = |(share, weight): (&f64, &f64)| (share / all / (weight / sum) - 1.0).abs();
    100.0 * shares.iter().zip(weights).map(away).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn jains_index_is_one_for_equals_and_a_share_for_one_of_many() {
        assert!(near(jain(&[5.0; 4]), 1.0));
        assert!(near(jain(&[8.0, 0.0, 0.0, 0.0]), 0.25));
        assert!(near(jain(&[1.0, 2.0, 3.0]), 36.0 / 42.0));
        assert!(near(jain(&[0.0, 0.0]), 0.0));
    }

    #[test]
    fn weights_are_what_shares_are_measured_by() {
        assert!(near(farthest(&[10.0, 20.0, 40.0], &[1.0, 2.0, 4.0]), 0.0));
        assert!(near(farthest(&[10.0, 10.0], &[1.0, 3.0]), 100.0));
        assert!(near(farthest(&[0.0, 0.0], &[1.0, 3.0]), 100.0));
    }
}
