//! Names of blocks: equal names mean equal K/V.
//!
//! What the K and V of a token are depends on the model, how it is run, and every token before it. A
//! name is therefore a hash over the block's tokens under the name of the block before; the first one
//! hangs on a [`Root`], which stands for all that is not tokens. A hash that callers cannot steer
//! (BLAKE3) keeps one tenant's prompt from ever naming another's.

use std::fmt;

use super::super::plan::GRID;

/// Tokens of a block: prompts are computed on this grid, so a block's bits do not depend on which
/// request computed it.
pub(crate) const BLOCK: usize = GRID as usize;

/// The name of a block.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key([u8; 32]);

impl Key {
    /// Reads what `Display` writes.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut key = [0; 32];
        let (digits, rest) = text.as_bytes().as_chunks::<2>();
        if digits.len() != key.len() || !rest.is_empty() {
            return None;
        }
        for (byte, digits) in key.iter_mut().zip(digits) {
            let value = |digit: u8| match digit {
                b'0'..=b'9' => Some(digit - b'0'),
                b'a'..=b'f' => Some(digit - b'a' + 10),
                _ => None,
            };
            *byte = value(digits[0])? << 4 | value(digits[1])?;
        }
        Some(Self(key))
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Everything but tokens that K/V depend on, and whom it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Root(Key);

impl Root {
    /// A root for these parts in this order: the model, K/V types, adapters, tenant, …
    pub(crate) fn new(parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("sluicegate prefix root 1");
        for part in parts {
            // With its length before it, no part can pretend to be two.
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self(Key(hasher.finalize().into()))
    }

    pub(super) fn key(&self) -> &Key {
        &self.0
    }
}

/// Names the whole blocks of `tokens` that `out` does not name yet: `out` holds the names of the first
/// `out.len()` blocks, and gets the others behind them.
pub(crate) fn chain(root: &Root, tokens: &[u32], out: &mut Vec<Key>) {
    let mut bytes = [0; BLOCK * 4];
    let (blocks, _) = tokens.as_chunks::<BLOCK>();
    let mut parent = out.last().copied().unwrap_or(root.0);
    for block in blocks.iter().skip(out.len()) {
        for (bytes, token) in bytes.as_chunks_mut().0.iter_mut().zip(block) {
            *bytes = token.to_le_bytes();
        }
        parent = Key(blake3::keyed_hash(&parent.0, &bytes).into());
        out.push(parent);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(root: &Root, tokens: &[u32]) -> Vec<Key> {
        let mut keys = Vec::new();
        chain(root, tokens, &mut keys);
        keys
    }

    #[test]
    fn roots_differ_where_their_parts_are_cut_differently() {
        assert_eq!(Root::new(&[b"a", b"bc"]), Root::new(&[b"a", b"bc"]));
        assert_ne!(Root::new(&[b"a", b"bc"]), Root::new(&[b"ab", b"c"]));
        assert_ne!(Root::new(&[b"a"]), Root::new(&[b"a", b""]));
        assert_ne!(Root::new(&[b"a", b"b"]), Root::new(&[b"b", b"a"]));
    }

    #[test]
    fn only_whole_blocks_have_names() {
        let root = Root::new(&[]);
        assert!(keys(&root, &[7; BLOCK - 1]).is_empty());
        assert_eq!(keys(&root, &[7; BLOCK]).len(), 1);
        assert_eq!(keys(&root, &[7; 3 * BLOCK - 1]).len(), 2);
    }

    proptest! {
        #[test]
        fn a_chain_is_the_same_whether_it_grows_or_is_made_at_once(
            tokens in proptest::collection::vec(any::<u32>(), 0..400),
            cut in 0usize..400,
        ) {
            let root = Root::new(&[b"model"]);
            let mut grown = Vec::new();
            chain(&root, &tokens[..cut.min(tokens.len())], &mut grown);
            chain(&root, &tokens, &mut grown);
            prop_assert_eq!(grown, keys(&root, &tokens));
        }

        #[test]
        fn a_changed_token_changes_its_block_and_all_behind_it_and_none_before(
            tokens in proptest::collection::vec(0u32..9, 4 * BLOCK),
            at in 0usize..4 * BLOCK,
        ) {
            let root = Root::new(&[b"model"]);
            let before = keys(&root, &tokens);
            let mut changed = tokens;
            changed[at] += 9;
            let after = keys(&root, &changed);
            for (block, (a, b)) in before.iter().zip(&after).enumerate() {
                prop_assert_eq!(a == b, block < at / BLOCK);
            }
            let elsewhere = keys(&Root::new(&[b"other"]), &changed);
            prop_assert!(after.iter().zip(&elsewhere).all(|(a, b)| a != b));
        }
    }
}
