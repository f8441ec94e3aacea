//! The times between tokens: the one histogram that is written per token.
//!
//! A histogram of the exporter keeps every sample until somebody folds it into buckets. Here samples are
//! sorted into buckets where they come up, 64 at a time, and only the sums are shared.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::names::{GAP_BOUNDS_US, INTER_TOKEN};
use super::text::Text;

/// One for each bound, and one for what is longer than all of them.
const BUCKETS: usize = GAP_BOUNDS_US.len() + 1;

/// How long tokens took to follow each other, for one model. On cache lines of its own (two at a time, for
/// the prefetcher), so that models do not slow each other down. A part for each thread would gain nothing
/// more: a stream comes here once in 64 tokens.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Gaps {
    buckets: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl Gaps {
    /// Counts these gaps, in microseconds.
    pub(super) fn record(&self, gaps: &[u32]) {
        let mut counts = [0u64; BUCKETS];
        let mut sum = 0u64;
        for &gap in gaps {
            counts[GAP_BOUNDS_US.partition_point(|&bound| bound < gap)] += 1;
            sum += u64::from(gap);
        }
        for (bucket, count) in self.buckets.iter().zip(counts) {
            if count > 0 {
                bucket.fetch_add(count, Relaxed);
            }
        }
        self.sum_us.fetch_add(sum, Relaxed);
    }

    /// Writes the samples of this series.
    pub(super) fn write(&self, text: &mut Text, model: &str) {
        let counts = self.buckets.each_ref().map(|bucket| bucket.load(Relaxed));
        #[expect(
            clippy::cast_precision_loss,
            reason = "exact for 285 years of waiting, summed up"
        )]
        let seconds = self.sum_us.load(Relaxed) as f64 / 1e6;
        let edges = GAP_BOUNDS_US.map(|micros| f64::from(micros) / 1e6);
        text.histogram(&INTER_TOKEN, &[("model", model)], &edges, &counts, seconds);
    }
}

#[cfg(test)]
#[expect(
    clippy::cast_precision_loss,
    clippy::float_cmp,
    reason = "small figures, and exact ones"
)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    fn written(gaps: &Gaps) -> Vec<(String, f64)> {
        let mut text = Text::default();
        gaps.write(&mut text, "m");
        let text = text.into_string();
        let lines = text.lines().map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        });
        lines.collect()
    }

    proptest! {
        #[test]
        fn every_gap_is_in_the_buckets_whose_bound_it_does_not_exceed(
            gaps in prop::collection::vec(any::<u32>().prop_map(|gap| gap >> (gap % 32)), 0..300),
        ) {
            let histogram = Gaps::default();
            for chunk in gaps.chunks(64) {
                histogram.record(chunk);
            }
            let written = written(&histogram);
            prop_assert_eq!(written.len(), BUCKETS + 2);
            for (bound, (series, count)) in GAP_BOUNDS_US.iter().zip(&written) {
                let within = gaps.iter().filter(|&gap| gap <= bound).count();
                let le = format!("le=\"{}\"", f64::from(*bound) / 1e6);
                prop_assert!(series.contains(&le), "{} {}", series, le);
                prop_assert_eq!(*count, within as f64);
            }
            for (series, count) in &written[BUCKETS - 1..] {
                if !series.contains("_sum") {
                    prop_assert_eq!(*count, gaps.len() as f64);
                }
            }
            let sum: u64 = gaps.iter().map(|&gap| u64::from(gap)).sum();
            prop_assert_eq!(written[BUCKETS].1, sum as f64 / 1e6);
        }
    }

    #[test]
    fn nothing_is_lost_between_threads() {
        let gaps = Gaps::default();
        thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| (0..100).for_each(|_| gaps.record(&[700, 3_000_000])));
            }
        });
        let written = written(&gaps);
        let (series, count) = written.last().unwrap();
        assert_eq!(series, r#"sluicegate_inter_token_seconds_count{model="m"}"#);
        assert_eq!(*count, 3_200.0);
    }
}
