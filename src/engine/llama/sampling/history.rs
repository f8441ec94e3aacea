//! The last tokens of a sequence, bounded, with their counts kept up to date token by token.

use std::collections::HashMap;

/// The newest tokens, always as one contiguous slice.
#[derive(Debug)]
pub(super) struct History {
    /// Up to twice the window: when full, the newer half moves to the front, which costs one word
    /// per token on average and keeps every look-back a plain slice.
    tokens: Vec<u32>,
    window: usize,
    counted: usize,
    counts: HashMap<u32, u32>,
}

impl History {
    /// Remembers `window` tokens and counts occurrences among the last `counted` of them. Allocates
    /// here, and never again.
    pub(super) fn new(window: usize, counted: usize) -> Self {
        let window = window.max(counted);
        Self {
            tokens: Vec::with_capacity(2 * window),
            window,
            counted,
            // Twice what it holds at most, so that erased slots never force a larger table.
            counts: HashMap::with_capacity(if counted == 0 { 0 } else { 2 * (counted + 1) }),
        }
    }

    /// Adds the newest token.
    pub(super) fn push(&mut self, token: u32) {
        if self.window == 0 {
            return;
        }
        if self.counted > 0 {
            let leaving = self
                .tokens
                .len()
                .checked_sub(self.counted)
                .and_then(|at| self.tokens.get(at).copied());
            *self.counts.entry(token).or_insert(0) += 1;
            if let Some(old) = leaving
                && let Some(count) = self.counts.get_mut(&old)
            {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&old);
                }
            }
        }
        if self.tokens.len() >= 2 * self.window {
            let keep_from = self.tokens.len() - self.window;
            self.tokens.copy_within(keep_from.., 0);
            self.tokens.truncate(self.window);
        }
        self.tokens.push(token);
    }

    /// Adds many, oldest first; looks only at those that can still matter.
    pub(super) fn extend(&mut self, tokens: &[u32]) {
        let skip = tokens.len().saturating_sub(self.window);
        for &token in tokens.iter().skip(skip) {
            self.push(token);
        }
    }

    /// The newest `n` tokens, or as many as there are, oldest first.
    pub(super) fn last(&self, n: usize) -> &[u32] {
        let from = self.tokens.len().saturating_sub(n.min(self.window));
        self.tokens.get(from..).unwrap_or_default()
    }

    /// Each token of the counted window with its number of occurrences there, in no order.
    pub(super) fn counts(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.counts.iter().map(|(&token, &count)| (token, count))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn counts_and_tail_equal_a_recount(
            tokens in prop::collection::vec(0_u32..12, 0..300),
            window in 0_usize..40,
            counted in 0_usize..40,
            split in 0_usize..300,
        ) {
            let mut history = History::new(window, counted);
            let split = split.min(tokens.len());
            history.extend(&tokens[..split]);
            for &token in &tokens[split..] {
                history.push(token);
            }
            for n in [0, 1.min(window), window, counted] {
                let expected = &tokens[tokens.len().saturating_sub(n)..];
                prop_assert_eq!(history.last(n), expected);
            }
            let mut expected = HashMap::new();
            for &token in &tokens[tokens.len().saturating_sub(counted)..] {
                *expected.entry(token).or_insert(0) += 1;
            }
            prop_assert_eq!(history.counts().collect::<HashMap<_, _>>(), expected);
        }
    }

    #[test]
    fn a_long_history_never_grows_its_memory() {
        let mut history = History::new(64, 64);
        let made = allocation_counter::measure(|| {
            for i in 0..100_000_u32 {
                history.push(i.wrapping_mul(2_654_435_761));
            }
        });
        assert_eq!(made.count_total, 0);
    }
}
