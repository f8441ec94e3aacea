//! Request ids that were served from early data, so that none is served twice.
//!
//! Ids are unique per caller, not in the world: two strangers may both number from one, and nobody
//! may block another's ids by guessing them. So an id counts within its caller's identity, or, for
//! a caller without one, within the TLS lineage, the only thing that connects the requests of
//! somebody anonymous; a copy of a flight always has the lineage of the original.
//!
//! An entry outlives every ticket with which its flight could be sent again. When the store is full,
//! nothing is forgotten: the newcomer is not served early, it waits for the handshake instead.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ring::digest;

use super::binding::Lineage;

/// Expired entries dropped per call at most, so that no request pays for a crowd.
const PRUNE: usize = 8;

/// Half a digest: forging another's id takes a second preimage of 128 bits.
type Name = [u8; 16];

/// Whose id it is.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    /// A caller who is known.
    Identity(&'a str),
    /// Anybody on this lineage.
    Lineage(Lineage),
}

/// What is known of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing; if it was to be recorded, it now is.
    Never,
    /// It was served early before.
    Before,
    /// Nothing, and there is no room to record it.
    NoRoom,
}

/// The ids.
pub struct Replay {
    capacity: usize,
    lifetime: Duration,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    expiry: HashMap<Name, Instant>,
    /// In the order of expiry: all live equally long. An id that came back after it had expired is
    /// here twice, until the first is pruned.
    order: VecDeque<(Instant, Name)>,
}

impl Replay {
    /// Remembers at most `capacity` ids, each for `lifetime`.
    #[must_use]
    pub fn new(capacity: usize, lifetime: Duration) -> Self {
        Self {
            capacity,
            lifetime,
            inner: Mutex::default(),
        }
    }

    /// Records an id that is about to be served early, unless it was before.
    pub fn record(&self, scope: Scope<'_>, id: &str, now: Instant) -> Seen {
        let name = name(scope, id);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.prune(now);
        if inner.knows(&name, now) {
            return Seen::Before;
        }
        if inner.order.len() >= self.capacity {
            return Seen::NoRoom;
        }
        let expiry = now + self.lifetime;
        inner.expiry.insert(name, expiry);
        inner.order.push_back((expiry, name));
        Seen::Never
    }

    /// Looks an id up and records nothing: for requests that nobody else can repeat.
    pub fn look(&self, scope: Scope<'_>, id: &str, now: Instant) -> Seen {
        let name = name(scope, id);
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.knows(&name, now) {
            Seen::Before
        } else {
            Seen::Never
        }
    }

    /// Ids in memory.
    #[must_use]
    pub fn len(&self) -> usize {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.order.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Inner {
    fn knows(&self, name: &Name, now: Instant) -> bool {
        self.expiry.get(name).is_some_and(|expiry| now < *expiry)
    }

    fn prune(&mut self, now: Instant) {
        for _ in 0..PRUNE {
            match self.order.front() {
                Some((expiry, _)) if *expiry <= now => {}
                _ => return,
            }
            let Some((expiry, name)) = self.order.pop_front() else {
                return;
            };
            if self.expiry.get(&name) == Some(&expiry) {
                self.expiry.remove(&name);
            }
        }
    }
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay")
            .field("capacity", &self.capacity)
            .field("lifetime", &self.lifetime)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

fn name(scope: Scope<'_>, id: &str) -> Name {
    let mut context = digest::Context::new(&digest::SHA256);
    match scope {
        Scope::Identity(identity) => {
            context.update(b"i");
            // The length, so that nothing moves between name and id.
            context.update(&identity.len().to_be_bytes());
            context.update(identity.as_bytes());
        }
        Scope::Lineage(lineage) => {
            context.update(b"l");
            context.update(&lineage.0);
        }
    }
    context.update(id.as_bytes());
    let mut name = Name::default();
    for (to, byte) in name.iter_mut().zip(context.finish().as_ref()) {
        *to = *byte;
    }
    name
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIFE: Duration = Duration::from_secs(100);
    const ALICE: Scope<'_> = Scope::Identity("alice");

    #[test]
    fn an_id_is_served_once_in_its_life() {
        let (replay, start) = (Replay::new(10, LIFE), Instant::now());
        assert_eq!(replay.look(ALICE, "1", start), Seen::Never);
        assert_eq!(replay.record(ALICE, "1", start), Seen::Never);
        let last = start + Duration::from_millis(99_999);
        assert_eq!(replay.record(ALICE, "1", last), Seen::Before);
        assert_eq!(replay.look(ALICE, "1", last), Seen::Before);
        assert_eq!(replay.look(ALICE, "1", start + LIFE), Seen::Never);
        assert_eq!(replay.record(ALICE, "1", start + LIFE), Seen::Never);
        assert_eq!(replay.len(), 1);
    }

    #[test]
    fn callers_do_not_share_their_ids() {
        let (replay, now) = (Replay::new(10, LIFE), Instant::now());
        let scopes = [
            ALICE,
            Scope::Identity("bob"),
            Scope::Identity(""),
            Scope::Lineage(Lineage([1; 16])),
            Scope::Lineage(Lineage([2; 16])),
        ];
        for scope in scopes {
            assert_eq!(replay.record(scope, "1", now), Seen::Never, "{scope:?}");
        }
        let moved = replay.record(Scope::Identity("alic"), "e1", now);
        assert_eq!(moved, Seen::Never);
    }

    #[test]
    fn a_full_store_takes_nothing_in_and_forgets_nothing() {
        let (replay, now) = (Replay::new(2, LIFE), Instant::now());
        for (id, expected) in [("1", Seen::Never), ("2", Seen::Never), ("3", Seen::NoRoom)] {
            assert_eq!(replay.record(ALICE, id, now), expected);
        }
        assert_eq!(replay.record(ALICE, "1", now), Seen::Before);
        assert_eq!(replay.look(ALICE, "3", now), Seen::Never);
        assert_eq!(replay.record(ALICE, "3", now + LIFE), Seen::Never);
    }

    #[test]
    fn of_many_threads_with_one_id_one_is_first() {
        let (replay, now) = (Replay::new(10, LIFE), Instant::now());
        let first: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| replay.record(ALICE, "1", now) == Seen::Never))
                .collect();
            threads
                .into_iter()
                .map(|thread| usize::from(thread.join().unwrap()))
                .sum()
        });
        assert_eq!(first, 1);
    }

    proptest! {
        /// Against a list of all that was ever recorded.
        #[test]
        fn it_behaves_like_a_list(
            steps in proptest::collection::vec((0_u8..30, any::<bool>(), 0_u64..20), 1..300),
            capacity in 0_usize..24,
        ) {
            let (replay, mut now) = (Replay::new(capacity, LIFE), Instant::now());
            let mut list: Vec<(u8, Instant)> = Vec::new();
            for (number, record, seconds) in steps {
                now += Duration::from_secs(seconds);
                list.retain(|(_, expiry)| now < *expiry);
                let known = list.iter().any(|(known, _)| *known == number);
                let id = number.to_string();
                if !record {
                    let expected = if known { Seen::Before } else { Seen::Never };
                    prop_assert_eq!(replay.look(ALICE, &id, now), expected);
                    continue;
                }
                let expected = if known {
                    Seen::Before
                } else if list.len() == capacity {
                    Seen::NoRoom
                } else {
                    list.push((number, now + LIFE));
                    Seen::Never
                };
                prop_assert_eq!(replay.record(ALICE, &id, now), expected);
                prop_assert!(replay.len() <= capacity);
            }
        }
    }
}
