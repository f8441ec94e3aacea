//! Trees of blocks with a size, kept by recency within a number of bytes.
//!
//! A block is useless without the one before it, so only leaves are evicted: the leaf that was used
//! longest ago first. An inner node was used whenever one of its descendants was; it hears of that
//! when the descendant leaves, so that using a block costs the same however deep it lies.

use std::collections::{BTreeSet, HashMap};

use slab::Slab;

use super::key::Key;

/// Trees of nodes that each carry a `T`.
pub(super) struct Forest<T> {
    nodes: Slab<Node<T>>,
    index: HashMap<Key, usize>,
    /// What may be evicted: nodes without children that are not held, the least recent first.
    leaves: BTreeSet<(u64, usize)>,
    bytes: u64,
    limit: u64,
    clock: u64,
}

struct Node<T> {
    key: Key,
    parent: Option<usize>,
    children: usize,
    used: u64,
    bytes: u64,
    is_held: bool,
    value: T,
}

/// A node as it leaves.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Evicted<T> {
    pub(super) key: Key,
    pub(super) parent: Option<Key>,
    pub(super) value: T,
}

/// Why a node was not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Its parent is not here.
    Orphan,
    /// What could be evicted does not make enough room.
    NoRoom,
}

impl<T> Forest<T> {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            nodes: Slab::new(),
            index: HashMap::new(),
            leaves: BTreeSet::new(),
            bytes: 0,
            limit,
            clock: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn value(&self, key: &Key) -> Option<&T> {
        Some(&self.nodes[*self.index.get(key)?].value)
    }

    /// The parent of a node, if the node is here and has one.
    pub(super) fn parent(&self, key: &Key) -> Option<Key> {
        let parent = self.nodes[*self.index.get(key)?].parent?;
        Some(self.nodes[parent].key)
    }

    /// Makes a node the one that was used last.
    pub(super) fn touch(&mut self, key: &Key) -> Option<&T> {
        let at = *self.index.get(key)?;
        self.clock += 1;
        let clock = self.clock;
        self.change(at, |node| node.used = clock);
        Some(&self.nodes[at].value)
    }

    /// Takes a node in, or gives one that is here a new size and value, and makes it the one used last.
    /// A held node is not evicted. What has to go for it is handed to `evicted`.
    pub(super) fn put(
        &mut self,
        key: Key,
        parent: Option<Key>,
        bytes: u64,
        value: T,
        is_held: bool,
        mut evicted: impl FnMut(Evicted<T>),
    ) -> Result<(), Refused> {
        let used = self.clock + 1;
        if let Some(&at) = self.index.get(&key) {
            let before = self.nodes[at].bytes;
            let was_held = self.nodes[at].is_held;
            // It must not go to make room for itself.
            self.change(at, |node| node.is_held = true);
            if !self.make_room(bytes, before, &mut evicted) {
                self.change(at, |node| node.is_held = was_held);
                return Err(Refused::NoRoom);
            }
            self.bytes = self.bytes - before + bytes;
            self.change(at, |node| {
                node.bytes = bytes;
                node.used = used;
                node.value = value;
                node.is_held = is_held;
            });
        } else {
            let parent = self.place_below(parent)?;
            let fits = self.make_room(bytes, 0, &mut evicted);
            if !fits {
                if let Some(parent) = parent {
                    self.change(parent, |parent| parent.children -= 1);
                }
                return Err(Refused::NoRoom);
            }
            self.add(key, parent, bytes, value, used, is_held);
        }
        self.clock = used;
        Ok(())
    }

    /// Takes in a node that is not here, used at `used`, whatever the limit (see [`Forest::trim`]).
    pub(super) fn plant(
        &mut self,
        key: Key,
        parent: Option<Key>,
        bytes: u64,
        value: T,
        used: u64,
    ) -> Result<(), Refused> {
        let parent = self.place_below(parent)?;
        self.add(key, parent, bytes, value, used, false);
        self.clock = self.clock.max(used);
        Ok(())
    }

    /// Counts a child that is about to come, so that its parent stays.
    fn place_below(&mut self, parent: Option<Key>) -> Result<Option<usize>, Refused> {
        let Some(key) = parent else { return Ok(None) };
        let at = *self.index.get(&key).ok_or(Refused::Orphan)?;
        self.change(at, |parent| parent.children += 1);
        Ok(Some(at))
    }

    /// Adds a node whose parent has counted it.
    fn add(
        &mut self,
        key: Key,
        parent: Option<usize>,
        bytes: u64,
        value: T,
        used: u64,
        is_held: bool,
    ) {
        self.bytes += bytes;
        let at = self.nodes.insert(Node {
            key,
            parent,
            children: 0,
            used,
            bytes,
            is_held,
            value,
        });
        self.index.insert(key, at);
        self.change(at, |_| {});
    }

    /// Gives a node a new value and no longer holds it; its recency and size stay.
    pub(super) fn settle(&mut self, key: &Key, value: T) {
        if let Some(&at) = self.index.get(key) {
            self.change(at, |node| {
                node.value = value;
                node.is_held = false;
            });
        }
    }

    /// Takes a node's bytes away. It goes if it is a leaf, else it stays as a hole, with `value`, for its
    /// children's sake: they are useful again when somebody fills it.
    pub(super) fn empty(&mut self, key: &Key, value: T) {
        let Some(&at) = self.index.get(key) else {
            return;
        };
        self.bytes -= std::mem::take(&mut self.nodes[at].bytes);
        self.settle(key, value);
        if self.nodes[at].children == 0 {
            self.remove(at);
        }
    }

    /// Evicts until the limit is kept.
    pub(super) fn trim(&mut self, mut evicted: impl FnMut(Evicted<T>)) {
        self.make_room(0, 0, &mut evicted);
    }

    /// Whether `bytes` more fit in place of `instead`, when leaves have been evicted for them.
    fn make_room(
        &mut self,
        bytes: u64,
        instead: u64,
        evicted: &mut impl FnMut(Evicted<T>),
    ) -> bool {
        if bytes > self.limit {
            return false;
        }
        while self.bytes - instead + bytes > self.limit {
            let Some(&(_, at)) = self.leaves.first() else {
                return false;
            };
            evicted(self.remove(at));
        }
        true
    }

    /// Removes a node without children.
    fn remove(&mut self, at: usize) -> Evicted<T> {
        let used = self.nodes[at].used;
        self.leaves.remove(&(used, at));
        let node = self.nodes.remove(at);
        self.index.remove(&node.key);
        self.bytes -= node.bytes;
        if let Some(parent) = node.parent {
            self.change(parent, |parent| {
                parent.children -= 1;
                parent.used = parent.used.max(used);
            });
        }
        Evicted {
            key: node.key,
            parent: node.parent.map(|parent| self.nodes[parent].key),
            value: node.value,
        }
    }

    /// Changes a node, and what may be evicted with it.
    fn change(&mut self, at: usize, change: impl FnOnce(&mut Node<T>)) {
        let node = &mut self.nodes[at];
        self.leaves.remove(&(node.used, at));
        change(node);
        if node.children == 0 && !node.is_held {
            self.leaves.insert((node.used, at));
        }
    }
}
