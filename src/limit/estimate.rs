//! What a request will probably take, before anything of it was tokenized or computed.
//!
//! Both figures are learnt per model from the requests before, without a lock: a lost update costs
//! nothing but one observation.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Bytes of text per token, where nothing is known: English in most vocabularies.
const BYTES_PER_TOKEN: f32 = 4.0;

/// Tokens of an answer, where nothing is known.
const OUTPUT: f32 = 256.0;

/// The share that one observation has in the mean.
const NEW: f32 = 1.0 / 16.0;

/// The share of answers that are to be shorter than the estimate.
const QUANTILE: f32 = 0.9;

/// How far one answer moves the estimate, relative to itself.
const STEP: f32 = 0.1;

/// What is known of one model.
#[derive(Debug)]
pub(super) struct Estimate {
    bytes_per_token: AtomicU32,
    output: AtomicU32,
}

impl Default for Estimate {
    fn default() -> Self {
        Self {
            bytes_per_token: AtomicU32::new(BYTES_PER_TOKEN.to_bits()),
            output: AtomicU32::new(OUTPUT.to_bits()),
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "estimates: a share of a percent does not matter, and casts saturate"
)]
impl Estimate {
    /// Tokens of a text of so many bytes.
    pub(super) fn input(&self, bytes: u64) -> u64 {
        let per_token = f32::from_bits(self.bytes_per_token.load(Relaxed));
        (bytes as f32 / per_token).ceil() as u64
    }

    /// Tokens of one answer whose length nobody bounded: nine of ten are shorter.
    pub(super) fn output(&self) -> u64 {
        f32::from_bits(self.output.load(Relaxed)).ceil() as u64
    }

    /// So many bytes were so many tokens.
    pub(super) fn learn_input(&self, bytes: u64, tokens: u64) {
        if bytes == 0 || tokens == 0 {
            return;
        }
        // A chat template alone makes tokens of no bytes; what is below a quarter of a byte is that.
        let seen = (bytes as f32 / tokens as f32).clamp(0.25, 64.0);
        let before = f32::from_bits(self.bytes_per_token.load(Relaxed));
        let after = before + (seen - before) * NEW;
        self.bytes_per_token.store(after.to_bits(), Relaxed);
    }

    /// An answer whose length nobody bounded had so many tokens.
    pub(super) fn learn_output(&self, tokens: u64) {
        let before = f32::from_bits(self.output.load(Relaxed));
        let step = (before * STEP).max(1.0);
        // Nine small steps down for each large one up: the estimate rests where one in ten is longer.
        let after = if tokens as f32 > before {
            before + step * QUANTILE
        } else {
            before - step * (1.0 - QUANTILE)
        };
        self.output.store(after.clamp(1.0, 1e6).to_bits(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_per_token_are_learnt() {
        let estimate = Estimate::default();
        assert_eq!(estimate.input(400), 100);
        assert_eq!(estimate.input(0), 0);
        for _ in 0..200 {
            estimate.learn_input(300, 300);
        }
        assert!(
            (400..=401).contains(&estimate.input(400)),
            "{}",
            estimate.input(400)
        );
    }

    #[test]
    fn nine_of_ten_answers_are_shorter_than_the_estimate() {
        let estimate = Estimate::default();
        assert_eq!(estimate.output(), 256);
        let mut longer = 0;
        for round in 0..20_000_u64 {
            // Every length from 0 to 999 comes as often as any other.
            let tokens = round.wrapping_mul(7_919) % 1000;
            longer += u64::from(round >= 10_000 && tokens > estimate.output());
            estimate.learn_output(tokens);
        }
        assert!(
            (700..1300).contains(&longer),
            "{longer} of 10000 were longer"
        );
    }

    #[test]
    fn no_observation_makes_an_estimate_useless() {
        let estimate = Estimate::default();
        for tokens in [0, u64::MAX, 1] {
            for _ in 0..500 {
                estimate.learn_output(tokens);
                estimate.learn_input(1, tokens);
                estimate.learn_input(u64::MAX, tokens);
                assert!((1..=1_000_000).contains(&estimate.output()));
                assert!((1..=400).contains(&estimate.input(100)));
            }
        }
    }
}
