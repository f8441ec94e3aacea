//! The trees, against a slow model of them.

use proptest::prelude::*;

use super::super::forest::{Forest, Refused};
use super::super::key::Key;
use super::names;

/// What is kept, the plain way: no links, no order.
#[derive(Clone, Debug)]
struct Plain {
    key: Key,
    parent: Option<Key>,
    bytes: u64,
    used: u64,
    is_held: bool,
}

/// When a node or any of its descendants was used last.
fn recency(kept: &[Plain], key: Key) -> u64 {
    let own = kept.iter().find(|node| node.key == key).unwrap().used;
    let below = kept.iter().filter(|node| node.parent == Some(key));
    below
        .map(|child| recency(kept, child.key))
        .fold(own, u64::max)
}

#[derive(Clone, Debug)]
enum Step {
    Put(usize, usize, u64, bool),
    Touch(usize, usize),
    Settle(usize, usize),
    Empty(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let place = || (0usize..4, 0usize..6);
    prop_oneof![
        6 => (place(), 1u64..5, proptest::bool::weighted(0.2))
            .prop_map(|((chain, block), bytes, held)| Step::Put(chain, block, bytes, held)),
        3 => place().prop_map(|(chain, block)| Step::Touch(chain, block)),
        2 => place().prop_map(|(chain, block)| Step::Settle(chain, block)),
        1 => place().prop_map(|(chain, block)| Step::Empty(chain, block)),
    ]
}

/// Four chains of six; the last two share the first three nodes of another.
fn chains() -> Vec<Vec<Key>> {
    let mut chains: Vec<_> = ["a", "b", "c", "d"].map(|name| names(name, 6)).into();
    let (first, last) = chains.split_at_mut(2);
    for (chain, shared) in last.iter_mut().zip(first) {
        chain[..3].copy_from_slice(&shared[..3]);
    }
    chains
}

proptest! {
    #[test]
    fn the_least_recent_leaf_goes_first_and_no_node_outlives_its_parent(
        steps in proptest::collection::vec(step(), 1..120),
        limit in 5u64..40,
    ) {
        let chains = chains();
        let mut forest = Forest::new(limit);
        let mut kept: Vec<Plain> = Vec::new();
        let mut clock = 0;
        for step in steps {
            clock += 1;
            match step {
                Step::Put(chain, block, bytes, is_held) => {
                    let key = chains[chain][block];
                    let parent = block.checked_sub(1).map(|before| chains[chain][before]);
                    let mut gone = Vec::new();
                    let result = forest.put(key, parent, bytes, clock, is_held, |node| gone.push(node));
                    let known = kept.iter().position(|node| node.key == key);
                    let has_parent =
                        parent.is_none_or(|parent| kept.iter().any(|node| node.key == parent));
                    if known.is_none() && !has_parent {
                        prop_assert_eq!(result, Err(Refused::Orphan));
                        prop_assert!(gone.is_empty());
                        continue;
                    }
                    for node in &gone {
                        // A leaf, nobody's concern, and no other such one was used longer ago.
                        let may_go = |node: &&Plain| {
                            node.key != key
                                && Some(node.key) != parent
                                && !node.is_held
                                && kept.iter().all(|other| other.parent != Some(node.key))
                        };
                        let oldest = kept.iter().filter(may_go).map(|node| node.used).min();
                        let at = kept.iter().position(|plain| plain.key == node.key).unwrap();
                        prop_assert!(may_go(&&kept[at]));
                        prop_assert_eq!(Some(kept[at].used), oldest);
                        prop_assert_eq!(node.parent, kept[at].parent);
                        let gone = kept.remove(at);
                        let parent = kept.iter_mut().find(|plain| Some(plain.key) == gone.parent);
                        if let Some(parent) = parent {
                            parent.used = parent.used.max(gone.used);
                        }
                    }
                    let known = kept.iter().position(|node| node.key == key);
                    let before = known.map_or(0, |at| kept[at].bytes);
                    let sum: u64 = kept.iter().map(|node| node.bytes).sum();
                    let fits = sum - before + bytes <= limit;
                    prop_assert_eq!(result.is_ok(), fits);
                    if fits {
                        let new = Plain { key, parent, bytes, used: clock, is_held };
                        match known {
                            Some(at) => kept[at] = new,
                            None => kept.push(new),
                        }
                    }
                }
                Step::Touch(chain, block) => {
                    let key = chains[chain][block];
                    let node = kept.iter_mut().find(|node| node.key == key);
                    prop_assert_eq!(forest.touch(&key).is_some(), node.is_some());
                    if let Some(node) = node {
                        node.used = clock;
                    }
                }
                Step::Settle(chain, block) => {
                    let key = chains[chain][block];
                    forest.settle(&key, clock);
                    if let Some(node) = kept.iter_mut().find(|node| node.key == key) {
                        node.is_held = false;
                        prop_assert_eq!(forest.value(&key), Some(&clock));
                    }
                }
                Step::Empty(chain, block) => {
                    let key = chains[chain][block];
                    forest.empty(&key, clock);
                    let is_leaf = kept.iter().all(|node| node.parent != Some(key));
                    if let Some(at) = kept.iter().position(|node| node.key == key) {
                        kept[at].bytes = 0;
                        kept[at].is_held = false;
                        if is_leaf {
                            let gone = kept.remove(at);
                            let parent = kept.iter_mut().find(|plain| Some(plain.key) == gone.parent);
                            if let Some(parent) = parent {
                                parent.used = parent.used.max(gone.used);
                            }
                        }
                    }
                }
            }
            prop_assert_eq!(forest.len(), kept.len());
            prop_assert_eq!(forest.bytes(), kept.iter().map(|node| node.bytes).sum::<u64>());
            prop_assert!(forest.bytes() <= limit);
            for node in &kept {
                prop_assert_eq!(forest.parent(&node.key), node.parent);
                if let Some(parent) = node.parent {
                    prop_assert!(kept.iter().any(|other| other.key == parent));
                    prop_assert!(recency(&kept, parent) >= node.used);
                }
            }
        }
    }
}
