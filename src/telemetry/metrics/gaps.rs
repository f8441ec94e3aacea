//! The times between tokens: the one histogram that is written per token.
//!
//! A histogram of the exporter keeps every sample until somebody folds it into buckets. Here samples are
//! sorted into buckets where they come up, 64 at a time, and only the sums are shared.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use super::names::{GAP_BOUNDS_US, INTER_TOKEN};
use super::text::Text;

/// One for each bound, and one for what is longer than all of them.
const BUCKETS: usize = GAP_BOUNDS_US.len() + 1;

/// Parts of one histogram, each written by the threads whose number falls to it. More than a few
/// threads that carry tokens of one model are rare, and each part is read at every scrape.
const PARTS: usize = 8;

/// How long tokens took to follow each other, for one model.
#[derive(Default)]
pub(super) struct Gaps {
    parts: [Part; PARTS],
}

/// A line of its own (two, for the neighbour's prefetcher): no thread waits for what another one writes.
#[derive(Default)]
#[repr(align(128))]
struct Part {
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
        let part = &self.parts[part_of_this_thread()];
        for (bucket, count) in part.buckets.iter().zip(counts) {
            if count > 0 {
                bucket.fetch_add(count, Relaxed);
            }
        }
        part.sum_us.fetch_add(sum, Relaxed);
    }

    /// Writes the samples of this series, as Prometheus has them: each bucket holds those before it.
    pub(super) fn write(&self, text: &mut Text, model: &str) {
        let counts: [u64; BUCKETS] = std::array::from_fn(|index| {
            let buckets = self.parts.iter().map(|part| &part.buckets[index]);
            buckets.map(|bucket| bucket.load(Relaxed)).sum()
        });
        let parts = self.parts.iter();
        let sum: u64 = parts.map(|part| part.sum_us.load(Relaxed)).sum();
        #[expect(
            clippy::cast_precision_loss,
            reason = "exact for 285 years of waiting, summed up"
        )]
        let seconds = sum as f64 / 1e6;
        let edges = GAP_BOUNDS_US.map(|micros| f64::from(micros) / 1e6);
        text.histogram(&INTER_TOKEN, &[("model", model)], &edges, &counts, seconds);
    }
}

fn part_of_this_thread() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static PART: Cell<usize> = const { Cell::new(PARTS) };
    }
    PART.with(|part| {
        if part.get() == PARTS {
            part.set(THREADS.fetch_add(1, Relaxed) % PARTS);
        }
        part.get()
    })
}

#[cfg(test)]
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
            for _ in 0..2 * PARTS {
                scope.spawn(|| (0..100).for_each(|_| gaps.record(&[700, 3_000_000])));
            }
        });
        let written = written(&gaps);
        let (series, count) = written.last().unwrap();
        assert_eq!(series, r#"sluicegate_inter_token_seconds_count{model="m"}"#);
        assert_eq!(*count, (2 * PARTS * 100 * 2) as f64);
    }
}
