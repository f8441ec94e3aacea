//! Which datagrams are lost: the same ones for the same seed.

/// A sequence of decisions.
#[derive(Clone, Debug)]
pub(super) struct Loss {
    state: u64,
    /// Random numbers below this lose a datagram.
    below: u64,
}

impl Loss {
    /// So many of a hundred, by this seed.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of the numbers there are; the casts saturate"
    )]
    pub(super) fn new(percent: f64, seed: u64) -> Self {
        Self {
            state: seed,
            below: (percent / 100.0 * u64::MAX as f64) as u64,
        }
    }

    /// Whether the next one is lost.
    pub(super) fn next(&mut self) -> bool {
        // SplitMix64: every state gives another number, and all are as likely.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31) < self.below
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(percent: f64, seed: u64) -> Vec<usize> {
        let mut loss = Loss::new(percent, seed);
        (0..100_000).filter(|_| loss.next()).collect()
    }

    #[test]
    fn so_many_of_a_hundred_are_lost() {
        assert_eq!(lost(0.0, 1).len(), 0);
        assert_eq!(lost(100.0, 1).len(), 100_000);
        for seed in 0..5 {
            let five = lost(5.0, seed).len();
            assert!((4_700..5_300).contains(&five), "{five}");
        }
    }

    #[test]
    fn the_same_are_lost_for_the_same_seed_only() {
        assert_eq!(lost(1.0, 7), lost(1.0, 7));
        assert_ne!(lost(1.0, 7), lost(1.0, 8));
    }
}
