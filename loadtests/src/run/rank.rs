//! How much larger the values of one side are than those of another, and how sure that is.
//!
//! The test is Mann and Whitney's: it looks only at which value is larger than which, so neither a round that was
//! disturbed nor the shape of the distribution matters. The ratio is Hodges and Lehmann's: the median of all
//! ratios of a value of the one side to one of the other; its confidence interval is the set of ratios that the
//! test would not reject. The distribution under "no difference" is exact, not approximated: rounds are few.
//!
//! Values are those of whole rounds (a quantile, a rate). Requests within a round are no independent samples: they
//! share their process, their moment and their neighbours.

/// Most values of a side.
const MOST: usize = 50;

/// What the second side is of the first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ratio {
    /// The estimate.
    pub(super) estimate: f64,
    /// Where it is, but for the chance that was allowed.
    pub(super) interval: [f64; 2],
    /// How likely so large a difference is where there is none.
    pub(super) p: f64,
}

/// Compares positive values. `chance` is how often the interval may miss the truth. None where there are too few
/// values for that, or they are not positive.
pub(super) fn ratio(base: &[f64], head: &[f64], chance: f64) -> Option<Ratio> {
    let is_good = |values: &[f64]| {
        (1..=MOST).contains(&values.len())
            && values.iter().all(|value| *value > 0.0 && value.is_finite())
    };
    if !is_good(base) || !is_good(head) {
        return None;
    }
    let below = below(base.len(), head.len());
    // With fewer ratios than this below 1, or above it, the test would reject.
    let least = below
        .iter()
        .take_while(|share| **share <= chance / 2.0)
        .count();
    if least == 0 {
        return None;
    }
    let mut ratios: Vec<f64> = base
        .iter()
        .flat_map(|base| head.iter().map(move |head| head / base))
        .collect();
    ratios.sort_by(f64::total_cmp);
    let count = ratios.len();
    let low = *ratios.get(least - 1)?;
    let high = *ratios.get(count.checked_sub(least)?)?;
    let estimate = (ratios[(count - 1) / 2] * ratios[count / 2]).sqrt();
    // Ties count for the less surprising side.
    let smaller = ratios.iter().filter(|ratio| **ratio <= 1.0).count();
    let larger = ratios.iter().filter(|ratio| **ratio >= 1.0).count();
    let p = below.get(smaller.min(larger)).copied().unwrap_or(1.0);
    Some(Ratio {
        estimate,
        interval: [low, high],
        p: (2.0 * p).min(1.0),
    })
}

/// The chance that, of all pairs of so many values of the same kind, no more than 0, 1, 2 … have the first one
/// larger.
fn below(first: usize, second: usize) -> Vec<f64> {
    // ways[k][u]: of the ranks so far, k belong to the first side and beat u values of the second.
    let pairs = first * second;
    let mut ways = vec![vec![0.0; pairs + 1]; first + 1];
    ways[0][0] = 1.0;
    for rank in 0..first + second {
        for taken in (0..first.min(rank + 1)).rev() {
            let beaten = rank - taken;
            if beaten > second {
                continue;
            }
            for pairs_before in (0..=pairs - beaten.min(pairs)).rev() {
                let more = ways[taken][pairs_before];
                if more > 0.0 {
                    ways[taken + 1][pairs_before + beaten] += more;
                }
            }
        }
    }
    let all: f64 = ways[first].iter().sum();
    let mut sum = 0.0;
    let share = |ways: &f64| {
        sum += ways;
        sum / all
    };
    ways[first].iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_distribution_is_that_of_the_tables() {
        // Critical values of the two-sided test at 5 %, as every table has them; and the counts of 3 and 3.
        for (first, second, critical) in [
            (4, 4, 0),
            (5, 5, 2),
            (6, 6, 5),
            (8, 8, 13),
            (10, 10, 23),
            (5, 8, 6),
        ] {
            let below = below(first, second);
            assert!(
                below[critical] <= 0.025 && below[critical + 1] > 0.025,
                "{first}, {second}"
            );
        }
        let three = below(3, 3);
        let twentieths: Vec<f64> = three.iter().map(|share| (share * 20.0).round()).collect();
        assert_eq!(
            twentieths,
            [1.0, 2.0, 4.0, 7.0, 10.0, 13.0, 16.0, 18.0, 19.0, 20.0]
        );
    }

    #[test]
    fn the_same_is_not_different_and_twice_is_twice() {
        let base = [10.0, 11.0, 12.0, 10.5, 11.5, 10.2];
        let same = ratio(&base, &base, 0.01).unwrap();
        assert!(same.interval[0] < 1.0 && same.interval[1] > 1.0);
        assert!((same.estimate - 1.0).abs() < 1e-9 && same.p > 0.9);
        let twice: Vec<f64> = base.iter().map(|value| value * 2.0).collect();
        let twice = ratio(&base, &twice, 0.01).unwrap();
        assert!((twice.estimate - 2.0).abs() < 1e-9 && twice.interval[0] > 1.0);
        assert!((twice.p - 2.0 / 924.0).abs() < 1e-9);
    }

    #[test]
    fn one_bad_round_of_six_changes_little() {
        let base = [10.0, 11.0, 12.0, 10.5, 11.5, 10.2];
        let head = [10.1, 10.9, 12.1, 10.4, 11.6, 900.0];
        let ratio = ratio(&base, &head, 0.01).unwrap();
        assert!(ratio.interval[0] < 1.0 && ratio.estimate < 1.1);
    }

    #[test]
    fn too_few_values_and_zeros_say_nothing() {
        assert_eq!(ratio(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0], 0.01), None);
        assert_eq!(ratio(&[0.0; 6], &[1.0; 6], 0.01), None);
        assert_eq!(ratio(&[], &[1.0; 6], 0.01), None);
    }

    proptest! {
        #[test]
        fn the_estimate_is_in_its_interval_and_both_sides_can_be_swapped(
            base in prop::collection::vec(0.1..100.0_f64, 5..9),
            head in prop::collection::vec(0.1..100.0_f64, 5..9),
        ) {
            let there = ratio(&base, &head, 0.05).unwrap();
            let back = ratio(&head, &base, 0.05).unwrap();
            prop_assert!(there.interval[0] <= there.estimate && there.estimate <= there.interval[1]);
            prop_assert!((there.estimate * back.estimate - 1.0).abs() < 1e-9);
            prop_assert!((there.interval[0] * back.interval[1] - 1.0).abs() < 1e-9);
            prop_assert!((there.p - back.p).abs() < 1e-9);
            // An interval without 1 and a test that rejects are the same thing.
            let excludes = there.interval[0] > 1.0 || there.interval[1] < 1.0;
            prop_assert_eq!(excludes, there.p <= 0.05);
        }
    }
}
