//! What the steps of an engine took, as sums since its model was loaded.
//!
//! The engine's own thread counts; whoever scrapes reads. Buckets are by powers of two, so that finding
//! one takes no search.

use serde::{Deserialize, Serialize};

/// Sums and counts over the steps of one engine. Bucket counts are not cumulative: each step or call is
/// in one bucket, and the last bucket takes what is above every edge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steps {
    /// Steps that computed something.
    pub count: u64,
    /// Microseconds of those steps.
    pub step_us: u64,
    /// Microseconds in calls that decode.
    pub decode_us: u64,
    /// Calls that decode.
    pub decode_calls: u64,
    /// Rows of those calls: a token of each sequence, and its drafts.
    pub decode_rows: u64,
    /// Microseconds in calls that read prompts.
    pub prefill_us: u64,
    /// Calls that read prompts.
    pub prefill_calls: u64,
    /// Rows of those calls: tokens of prompts.
    pub prefill_rows: u64,
    /// Microseconds that the engine's thread sampled, pushing into the outlets among it.
    pub sample_us: u64,
    /// Microseconds that it woke readers and let go of what had ended.
    pub emit_us: u64,
    /// What the parts above do not account for: planning, moving K/V, drafts and vectors. Known at the end of
    /// a step; the difference taken at any other time could fall.
    pub other_us: u64,
    /// Decode calls by their rows; edges are [`Steps::ROWS`].
    pub decode_by_rows: [u64; Steps::ROWS.len() + 1],
    /// Prefill calls by their rows; edges are [`Steps::ROWS`].
    pub prefill_by_rows: [u64; Steps::ROWS.len() + 1],
    /// Steps by their time; edges are [`Steps::MICROS`].
    pub by_time: [u64; Steps::MICROS.len() + 1],
}

impl Steps {
    /// Upper edges of the buckets of batch sizes, in rows.
    pub const ROWS: [u64; 13] = edges(1);

    /// Upper edges of the buckets of step times, in microseconds: from 125 us to 4.096 s.
    pub const MICROS: [u64; 16] = edges(125);

    /// The bucket of a batch of so many rows.
    #[must_use]
    pub fn bucket_of_rows(rows: u64) -> usize {
        bucket(rows).min(Self::ROWS.len())
    }

    /// The bucket of a step that took so long.
    #[must_use]
    pub fn bucket_of_micros(micros: u64) -> usize {
        bucket(micros.div_ceil(Self::MICROS[0])).min(Self::MICROS.len())
    }
}

/// The powers of two, times the first edge.
const fn edges<const N: usize>(first: u64) -> [u64; N] {
    let mut edges = [first; N];
    let mut at = 1;
    while at < N {
        edges[at] = edges[at - 1] * 2;
        at += 1;
    }
    edges
}

/// The least power of two that is no less, by its exponent.
fn bucket(value: u64) -> usize {
    let exponent = value.saturating_sub(1).checked_ilog2();
    exponent.map_or(0, |exponent| exponent as usize + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn by_search(edges: &[u64], value: u64) -> usize {
        edges.partition_point(|&edge| edge < value)
    }

    proptest! {
        #[test]
        fn buckets_are_where_a_search_finds_them(rows in 0..10_000_u64, micros in 0..10_000_000_u64) {
            prop_assert_eq!(Steps::bucket_of_rows(rows), by_search(&Steps::ROWS, rows));
            prop_assert_eq!(Steps::bucket_of_micros(micros), by_search(&Steps::MICROS, micros));
        }
    }

    #[test]
    fn every_edge_belongs_to_the_bucket_below_it() {
        for (at, &edge) in Steps::ROWS.iter().enumerate() {
            assert_eq!(Steps::bucket_of_rows(edge), at);
            assert_eq!(Steps::bucket_of_rows(edge + 1), at + 1);
        }
        for (at, &edge) in Steps::MICROS.iter().enumerate() {
            assert_eq!(Steps::bucket_of_micros(edge), at);
            assert_eq!(Steps::bucket_of_micros(edge + 1), at + 1);
        }
        assert_eq!(Steps::bucket_of_micros(u64::MAX), Steps::MICROS.len());
        assert_eq!(Steps::MICROS[15], 4_096_000);
    }
}
