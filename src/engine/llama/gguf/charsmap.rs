//! The text normaliser of unigram tokenizers: a trie from character sequences to replacements.
//!
//! ```text
//! u32 size of the trie in bytes | trie: u32 per node | replacements: texts that end in a zero byte
//! ```
//! llama.cpp walks the trie with whatever text it is given and throws where a step leads out of it,
//! which would end the process. So every step that any text can take is taken here first.

use super::error::GgufError;
use super::metadata::{Items, Kind, Metadata, Value, bad, wrong_type};

const KEY: &str = "tokenizer.ggml.precompiled_charsmap";

/// Checks the map, where there is one.
pub(super) fn check(metadata: &Metadata) -> Result<(), GgufError> {
    let items = match metadata.find(KEY) {
        None => return Ok(()),
        Some(Value::Array(Kind::U8 | Kind::I8, _, Items::Integers(items))) => items,
        Some(other) => return Err(wrong_type(KEY, other, "array of u8 or i8")),
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the items were read as single bytes"
    )]
    let bytes: Vec<u8> = items.iter().map(|&item| item as u8).collect();
    let broken = |found: &str| bad(KEY, found, "a trie and its replacements");
    let Some((size, rest)) = bytes.split_first_chunk::<4>() else {
        return Err(broken("too short for its header"));
    };
    let size = u32::from_le_bytes(*size) as usize;
    if size >= rest.len() {
        return Err(broken("shorter than the trie it announces"));
    }
    let (trie, replacements) = rest.split_at(size);
    let (words, _) = trie.as_chunks::<4>();
    let nodes: Vec<u32> = words.iter().map(|&word| u32::from_le_bytes(word)).collect();
    if walk(&nodes, replacements) {
        Ok(())
    } else {
        Err(broken("a trie that leads outside itself"))
    }
}

/// Whether every walk from the root stays inside and every value ends inside the replacements.
fn walk(nodes: &[u32], replacements: &[u8]) -> bool {
    let Some(&root) = nodes.first() else {
        return true;
    };
    // Each node is entered from one state only, so each is followed at most once.
    let mut followed = vec![false; nodes.len()];
    let mut states = vec![base(root)];
    while let Some(state) = states.pop() {
        for byte in 1..=0xFF_u32 {
            let at = (state ^ byte) as usize;
            let (Some(&node), Some(seen)) = (nodes.get(at), followed.get_mut(at)) else {
                return false;
            };
            if node & CHECK != byte || *seen {
                continue;
            }
            *seen = true;
            let next = state ^ byte ^ base(node);
            if node & LEAF != 0 && !ends(nodes, next, replacements) {
                return false;
            }
            states.push(next);
        }
    }
    true
}

/// The byte that leads to a node; the top bit marks values, which no byte leads to.
const CHECK: u32 = 1 << 31 | 0xFF;
/// A sequence ends at this node, and its base leads to the value.
const LEAF: u32 = 1 << 8;

/// Where a node's children are, relative to it.
fn base(node: u32) -> u32 {
    (node >> 10) << ((node & 1 << 9) >> 6)
}

fn ends(nodes: &[u32], value: u32, replacements: &[u8]) -> bool {
    nodes
        .get(value as usize)
        .and_then(|node| replacements.get((node & !(1 << 31)) as usize..))
        .is_some_and(|rest| rest.contains(&0))
}

#[cfg(test)]
mod tests {
    use super::walk;

    #[test]
    fn a_trie_that_stays_inside_is_accepted() {
        // One sequence, "a": the root's children lie at 0 ^ byte, the value of "a" at node 256.
        let mut nodes = vec![0_u32; 512];
        nodes[usize::from(b'a')] = u32::from(b'a') | 1 << 8 | (256 ^ u32::from(b'a')) << 10;
        // The state after "a" is 256, so its children are looked for at 257 to 511.
        nodes[256 + 97] = 0;
        nodes[256] = 1 << 31;
        let state = u32::from(b'a') ^ (256 ^ u32::from(b'a'));
        assert_eq!(state, 256);
        assert!(!walk(&nodes, b"no end"));
        nodes[256] = (1 << 31) | 1;
        assert!(walk(&nodes, b"xb\0"));
        assert!(!walk(&nodes[..300], b"xb\0"));
        nodes[256] = (1 << 31) | 9;
        assert!(!walk(&nodes, b"xb\0"));
    }

    #[test]
    fn a_trie_too_small_for_its_root_is_refused() {
        assert!(!walk(&[0; 255], b"\0"));
        assert!(walk(&[0; 256], b"\0"));
        assert!(walk(&[], b"\0"));
    }
}
