//! Which layout of the KV cache suits what is asked of it.
//!
//! On a split one each row computes attention over its own sequence only, and its bits do not depend on
//! its neighbours; a common prefix is copied for everybody who has it. On a pooled one each row pays for
//! every cell in use, and a common prefix is there once: computing 32 sequences of 512 tokens takes 2.2
//! times as long as split when they have nothing in common, and 0.6 times when they have it all (one
//! core, 48M parameters). So `auto` starts split, and goes over when most of what is live is shared.

use crate::engine::Layout;
use crate::engine::config::KvLayout;

/// Sequences that must have been seen before anything is concluded.
const ENOUGH: f32 = 24.0;
/// How much of the past remains after each sequence.
const MEMORY: f32 = 1.0 - 1.0 / 48.0;
/// Sequences at once from which sharing cells is worth anything.
const COMPANY: u32 = 4;
/// Shared parts of live tokens at which the layout changes; apart, so that it does not swing.
const POOL_FROM: f32 = 0.5;
const SPLIT_BELOW: f32 = 0.3;

/// Chooses between the two.
#[derive(Clone, Debug)]
pub(super) struct Chooser {
    /// Whether there is a choice.
    is_free: bool,
    pooled: bool,
    reason: &'static str,
    sequences: f32,
    tokens: f32,
    shared: f32,
}

impl Chooser {
    /// A chooser that begins with what was asked for; `auto` begins split, and stays so if there is a
    /// reason.
    pub(super) fn new(asked: KvLayout, stays_split: Option<&'static str>) -> Self {
        Self {
            is_free: asked == KvLayout::Auto && stays_split.is_none(),
            pooled: asked == KvLayout::Unified,
            reason: match asked {
                KvLayout::Auto => stays_split.unwrap_or("rows pay for their own cells only"),
                KvLayout::Split | KvLayout::Unified => "configured",
            },
            sequences: 0.0,
            tokens: 0.0,
            shared: 0.0,
        }
    }

    /// Whether the cells are a pool.
    pub(super) fn is_pooled(&self) -> bool {
        self.pooled
    }

    /// What it has chosen, for operators.
    pub(super) fn shown(&self) -> Layout {
        Layout {
            name: if self.pooled { "unified" } else { "split" },
            reason: self.reason,
        }
    }

    /// Notes a sequence that ended with `tokens` tokens, of which `shared` came from others, beside
    /// `company` others.
    #[expect(clippy::cast_precision_loss, reason = "a share of a few thousand")]
    pub(super) fn ended(&mut self, tokens: u32, shared: u32, company: u32) {
        if self.is_free {
            let together = company >= COMPANY;
            self.sequences = self.sequences * MEMORY + 1.0;
            self.tokens = self.tokens * MEMORY + tokens as f32;
            self.shared = self.shared * MEMORY + if together { shared as f32 } else { 0.0 };
        }
    }

    /// Changes its mind, if there is reason to; whether it did. To be asked while nothing runs.
    pub(super) fn changes(&mut self) -> bool {
        if !self.is_free || self.sequences < ENOUGH {
            return false;
        }
        let share = self.shared / self.tokens.max(1.0);
        let (pooled, reason) = if share > POOL_FROM {
            (true, "most live tokens are shared")
        } else if share < SPLIT_BELOW {
            (false, "few live tokens are shared")
        } else {
            return false;
        };
        let changes = pooled != self.pooled;
        if changes {
            (self.pooled, self.reason) = (pooled, reason);
            (self.sequences, self.tokens, self.shared) = (0.0, 0.0, 0.0);
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(chooser: &mut Chooser, count: u32, shared: u32, company: u32) -> bool {
        for _ in 0..count {
            chooser.ended(1000, shared, company);
        }
        chooser.changes()
    }

    #[test]
    fn a_prefix_that_most_share_makes_it_a_pool_and_its_end_splits_it_again() {
        let mut chooser = Chooser::new(KvLayout::Auto, None);
        assert!(!chooser.is_pooled());
        assert!(!after(&mut chooser, 20, 800, 8), "too few to tell");
        assert!(after(&mut chooser, 20, 800, 8));
        assert!(chooser.is_pooled() && chooser.shown().reason.contains("most"));
        assert!(!after(&mut chooser, 100, 400, 8), "between the two");
        assert!(after(&mut chooser, 200, 0, 8));
        assert!(!chooser.is_pooled());
    }

    #[test]
    fn one_after_the_other_is_no_reason_for_a_pool() {
        let mut chooser = Chooser::new(KvLayout::Auto, None);
        assert!(!after(&mut chooser, 500, 900, 1));
    }

    #[test]
    fn what_was_asked_for_stays() {
        for mut chooser in [
            Chooser::new(KvLayout::Split, None),
            Chooser::new(KvLayout::Auto, Some("deterministic")),
        ] {
            assert!(!after(&mut chooser, 500, 900, 8) && !chooser.is_pooled());
        }
        let mut unified = Chooser::new(KvLayout::Unified, None);
        assert!(!after(&mut unified, 500, 0, 8) && unified.is_pooled());
    }
}
