//! Reckoning with what was measured: medians, percentiles, digits that matter.

use std::time::Duration;

/// The middle value, or the mean of the two in the middle; of nothing, none.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(*sorted.get(sorted.len() / 2 - 1)?, upper))
}

/// The duration that a share of all do not exceed; sorts them.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rank is small and positive"
)]
pub(crate) fn percentile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    let rank = (share * float(times.len() as u64)).ceil().max(1.0) as usize;
    times
        .get(rank - 1)
        .or(times.last())
        .copied()
        .unwrap_or_default()
}

/// The time that 99 of a hundred do not exceed.
pub(crate) fn p99(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * 99).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// In milliseconds.
pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A count as a number to reckon with.
#[expect(clippy::cast_precision_loss, reason = "no count here comes near 2^53")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

/// Three digits that matter.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn percentiles_and_medians_are_those_of_the_sorted_values() {
        let mut times: Vec<Duration> = (1..=100).rev().map(|n| n * MS).collect();
        assert_eq!(percentile(&mut times, 0.5), 50 * MS);
        assert_eq!(percentile(&mut times, 0.99), 99 * MS);
        assert_eq!(percentile(&mut times, 1.0), 100 * MS);
        assert_eq!(percentile(&mut [], 0.5), Duration::ZERO);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn the_99th_percentile_is_a_value_that_was_seen() {
        let times: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(p99(&times), Duration::from_millis(198));
        assert_eq!(p99(&[]), Duration::ZERO);
    }
}
