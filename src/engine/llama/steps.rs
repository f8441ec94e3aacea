//! What steps take, counted by the engine's thread and read by anybody.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::telemetry::Steps;

/// [`Steps`] with one writer. A reader may see a step in part.
#[derive(Debug, Default)]
pub(super) struct StepCounters {
    count: AtomicU64,
    step_us: AtomicU64,
    decode_us: AtomicU64,
    decode_calls: AtomicU64,
    decode_rows: AtomicU64,
    prefill_us: AtomicU64,
    prefill_calls: AtomicU64,
    prefill_rows: AtomicU64,
    sample_us: AtomicU64,
    emit_us: AtomicU64,
    other_us: AtomicU64,
    /// What all parts came to when the last step ended.
    known_us: AtomicU64,
    decode_by_rows: [AtomicU64; Steps::ROWS.len() + 1],
    prefill_by_rows: [AtomicU64; Steps::ROWS.len() + 1],
    by_time: [AtomicU64; Steps::MICROS.len() + 1],
}

impl StepCounters {
    /// A step that computed something took so long.
    pub(super) fn step(&self, us: u64) {
        add(&self.count, 1);
        add(&self.step_us, us);
        let parts = [
            &self.decode_us,
            &self.prefill_us,
            &self.sample_us,
            &self.emit_us,
        ];
        let known_us: u64 = parts.iter().map(|part| part.load(Relaxed)).sum();
        let parts_us = known_us.saturating_sub(self.known_us.load(Relaxed));
        self.known_us.store(known_us, Relaxed);
        add(&self.other_us, us.saturating_sub(parts_us));
        add(&self.by_time[Steps::bucket_of_micros(us)], 1);
    }

    /// A call decoded so many rows.
    pub(super) fn decoded(&self, rows: usize, us: u64) {
        add(&self.decode_calls, 1);
        add(&self.decode_rows, rows as u64);
        add(&self.decode_us, us);
        add(&self.decode_by_rows[Steps::bucket_of_rows(rows as u64)], 1);
    }

    /// A call read so many tokens of prompts.
    pub(super) fn prefilled(&self, rows: usize, us: u64) {
        add(&self.prefill_calls, 1);
        add(&self.prefill_rows, rows as u64);
        add(&self.prefill_us, us);
        add(&self.prefill_by_rows[Steps::bucket_of_rows(rows as u64)], 1);
    }

    /// Choosing tokens took so long, and waking who reads them.
    pub(super) fn sampled(&self, sample_us: u64, emit_us: u64) {
        add(&self.sample_us, sample_us);
        add(&self.emit_us, emit_us);
    }

    pub(super) fn read(&self) -> Steps {
        let get = |sum: &AtomicU64| sum.load(Relaxed);
        Steps {
            count: get(&self.count),
            step_us: get(&self.step_us),
            decode_us: get(&self.decode_us),
            decode_calls: get(&self.decode_calls),
            decode_rows: get(&self.decode_rows),
            prefill_us: get(&self.prefill_us),
            prefill_calls: get(&self.prefill_calls),
            prefill_rows: get(&self.prefill_rows),
            sample_us: get(&self.sample_us),
            emit_us: get(&self.emit_us),
            other_us: get(&self.other_us),
            decode_by_rows: self.decode_by_rows.each_ref().map(get),
            prefill_by_rows: self.prefill_by_rows.each_ref().map(get),
            by_time: self.by_time.each_ref().map(get),
        }
    }
}

/// There is one writer: no locked instruction is needed.
fn add(sum: &AtomicU64, more: u64) {
    sum.store(sum.load(Relaxed).wrapping_add(more), Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_step_is_told_at_its_end_and_never_falls() {
        let counters = StepCounters::default();
        let other = || counters.read().other_us;
        counters.decoded(3, 600);
        counters.sampled(100, 50);
        assert_eq!(other(), 0);
        counters.step(1_000);
        assert_eq!(other(), 250);
        counters.decoded(3, 700);
        counters.prefilled(128, 9_000);
        assert_eq!(other(), 250, "a scrape in the middle of a step");
        counters.step(10_000);
        assert_eq!(other(), 550);
        counters.step(0);
        assert_eq!(other(), 550);
        assert_eq!(counters.read().step_us, 11_000);
    }
}
