//! The last few values that were asked for, by key.

use std::collections::HashMap;
use std::hash::Hash;

/// Keeps at most `room` values; the one that was asked for longest ago makes way.
pub(super) struct Cache<K, V> {
    room: usize,
    /// Counts the questions.
    now: u64,
    entries: HashMap<K, (u64, V)>,
}

impl<K: Clone + Eq + Hash, V> Cache<K, V> {
    pub(super) fn new(room: usize) -> Self {
        Self {
            room,
            now: 0,
            entries: HashMap::new(),
        }
    }

    pub(super) fn get(&mut self, key: &K) -> Option<&V> {
        self.now += 1;
        let (asked, value) = self.entries.get_mut(key)?;
        *asked = self.now;
        Some(value)
    }

    pub(super) fn put(&mut self, key: K, value: V) {
        self.now += 1;
        if self.entries.len() >= self.room && !self.entries.contains_key(&key) {
            // A walk over a few dozen entries, beside a compilation.
            let oldest = self.entries.iter().min_by_key(|(_, (asked, _))| *asked);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.entries.remove(&oldest);
            }
        }
        self.entries.insert(key, (self.now, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_that_was_asked_for_longest_ago_makes_way() {
        let mut cache = Cache::new(2);
        cache.put("a", 1);
        cache.put("b", 2);
        assert_eq!(cache.get(&"a").copied(), Some(1));
        cache.put("c", 3);
        assert_eq!(cache.get(&"b").copied(), None);
        assert_eq!(
            (cache.get(&"a").copied(), cache.get(&"c").copied()),
            (Some(1), Some(3))
        );
        cache.put("a", 4);
        assert_eq!(
            (cache.get(&"a").copied(), cache.get(&"c").copied()),
            (Some(4), Some(3))
        );
    }
}
