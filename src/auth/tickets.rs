//! The tickets with which clients resume: in memory, bounded, each good for one connection.
//!
//! Taking a ticket and marking it spent happen under one lock; that is what makes early data
//! at-most-once per ticket within this process. A process that does not know a ticket does a full
//! handshake. Spent tickets stay known for the rest of a ticket's life, to tell a replay from an
//! old ticket.

use std::collections::hash_map::Entry as Slot;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::binding::Lineage;

/// rustls's ids are 32 random bytes; anything else was not issued here.
type Id = [u8; 32];

/// Largest session that is kept, in bytes. About 110 are usual; with a client's certificate chain in it,
/// a few thousand. With the number of tickets this bounds their memory; a client whose session does
/// not fit makes a full handshake each time.
const MAX_SESSION: usize = 8 << 10;

/// Expired entries dropped per call at most. More than one, so that the store shrinks while it is used,
/// and few, so that no handshake pays for a crowd.
const PRUNE: usize = 8;

/// A lineage and when its full handshake was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Its name.
    pub lineage: Lineage,
    /// When it began.
    pub since: Instant,
}

/// What a ticket was worth.
#[derive(PartialEq, Eq)]
pub enum Taken {
    /// It was live and is now spent: its lineage, and the session for rustls.
    Fresh(Origin, Vec<u8>),
    /// It has been taken before.
    Spent,
    /// Its lineage is older than resumption may make it; it is spent now.
    TooOld,
    /// Never issued here, expired, or pushed out.
    Unknown,
}

/// Bounds of the store.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tickets known at once, live and spent together.
    pub capacity: usize,
    /// From issue to the last moment a ticket is taken.
    pub lifetime: Duration,
    /// From a lineage's full handshake to the last resumption of it.
    pub lineage: Duration,
}

/// What happened so far, and how many tickets wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tickets handed out.
    pub issued: u64,
    /// Tickets that resumed, or could have.
    pub redeemed: u64,
    /// Spent tickets that were shown again.
    pub spent: u64,
    /// Tickets shown that are not known.
    pub unknown: u64,
    /// Tickets shown whose lineage was too old.
    pub too_old: u64,
    /// Live tickets pushed out by newer ones before they expired.
    pub evicted: u64,
    /// Spent tickets pushed out before they expired: shown again, they count as unknown. They are
    /// not accepted either way.
    pub forgotten: u64,
    /// Tickets that could be redeemed now.
    pub live: usize,
}

/// Every ticket of this process.
pub struct Tickets {
    limits: Limits,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// `None` marks a spent ticket.
    entries: HashMap<Id, Option<Live>>,
    /// Every entry once, the oldest first; all live equally long.
    order: VecDeque<(Instant, Id)>,
    counts: Counts,
}

struct Live {
    session: Zeroizing<Vec<u8>>,
    origin: Origin,
    issued: Instant,
}

impl Tickets {
    /// An empty store.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            inner: Mutex::default(),
        }
    }

    /// Keeps a ticket. `false`: it is not kept and must not be handed out.
    pub fn put(&self, id: &[u8], session: Vec<u8>, origin: Origin, now: Instant) -> bool {
        let session = Zeroizing::new(session);
        let Ok(id) = Id::try_from(id) else {
            return false;
        };
        if session.len() > MAX_SESSION || self.limits.capacity == 0 {
            return false;
        }
        let mut inner = self.lock();
        inner.prune(now, self.limits.lifetime);
        if inner.order.len() >= self.limits.capacity {
            inner.push_out();
        }
        let Slot::Vacant(slot) = inner.entries.entry(id) else {
            return false;
        };
        slot.insert(Some(Live {
            session,
            origin,
            issued: now,
        }));
        inner.order.push_back((now, id));
        inner.counts.issued += 1;
        inner.counts.live += 1;
        true
    }

    /// Takes a ticket, once.
    pub fn take(&self, id: &[u8], now: Instant) -> Taken {
        let mut inner = self.lock();
        inner.prune(now, self.limits.lifetime);
        let inner = &mut *inner;
        let known = Id::try_from(id)
            .ok()
            .and_then(|id| inner.entries.get_mut(&id));
        let Some(entry) = known else {
            inner.counts.unknown += 1;
            return Taken::Unknown;
        };
        let Some(mut live) = entry.take() else {
            inner.counts.spent += 1;
            return Taken::Spent;
        };
        inner.counts.live -= 1;
        let age = |since| now.saturating_duration_since(since);
        if age(live.issued) > self.limits.lifetime {
            inner.counts.unknown += 1;
            return Taken::Unknown;
        }
        if age(live.origin.since) > self.limits.lineage {
            inner.counts.too_old += 1;
            return Taken::TooOld;
        }
        inner.counts.redeemed += 1;
        Taken::Fresh(live.origin, std::mem::take(&mut *live.session))
    }

    /// What happened so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn prune(&mut self, now: Instant, lifetime: Duration) {
        for _ in 0..PRUNE {
            match self.order.front() {
                Some((issued, _)) if now.saturating_duration_since(*issued) > lifetime => {}
                _ => return,
            }
            let _ = self.drop_oldest();
        }
    }

    fn push_out(&mut self) {
        match self.drop_oldest() {
            Some(true) => self.counts.evicted += 1,
            Some(false) => self.counts.forgotten += 1,
            None => {}
        }
    }

    /// Drops the oldest entry and says whether it was live.
    fn drop_oldest(&mut self) -> Option<bool> {
        let (_, id) = self.order.pop_front()?;
        let live = self.entries.remove(&id)?.is_some();
        self.counts.live -= usize::from(live);
        Some(live)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets")
            .field("limits", &self.limits)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fresh(origin, _) => f.debug_tuple("Fresh").field(origin).finish(),
            Self::Spent => f.write_str("Spent"),
            Self::TooOld => f.write_str("TooOld"),
            Self::Unknown => f.write_str("Unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIFE: Duration = Duration::from_secs(100);
    const LINEAGE: Duration = Duration::from_secs(150);

    fn store(capacity: usize) -> Tickets {
        Tickets::new(Limits {
            capacity,
            lifetime: LIFE,
            lineage: LINEAGE,
        })
    }

    fn id(number: u8) -> [u8; 32] {
        [number; 32]
    }

    fn origin(since: Instant) -> Origin {
        Origin {
            lineage: Lineage([5; 16]),
            since,
        }
    }

    #[test]
    fn a_ticket_is_taken_once_and_then_known_as_spent_for_its_life() {
        let (store, start) = (store(10), Instant::now());
        assert!(store.put(&id(1), vec![42], origin(start), start));
        let later = start + LIFE / 2;
        let fresh = Taken::Fresh(origin(start), vec![42]);
        assert_eq!(store.take(&id(1), later), fresh);
        assert_eq!(store.take(&id(1), later), Taken::Spent);
        assert_eq!(store.take(&id(1), start + LIFE), Taken::Spent);
        let end = start + LIFE + Duration::from_secs(1);
        assert_eq!(store.take(&id(1), end), Taken::Unknown);
        let counts = store.counts();
        assert_eq!(
            (counts.issued, counts.redeemed, counts.spent, counts.unknown),
            (1, 1, 2, 1)
        );
    }

    #[test]
    fn what_was_never_issued_is_unknown() {
        let (store, now) = (store(10), Instant::now());
        for id in [&id(1)[..], b"", &[0; 31], &[0; 4096]] {
            assert_eq!(store.take(id, now), Taken::Unknown);
        }
        assert_eq!(store.counts().unknown, 4);
        assert!(!store.put(&[0; 31], vec![], origin(now), now));
        assert!(!store.put(&id(1), vec![0; MAX_SESSION + 1], origin(now), now));
        assert_eq!(store.counts().issued, 0);
    }

    #[test]
    fn an_old_lineage_is_not_resumed() {
        let (store, start) = (store(10), Instant::now());
        let issued = start + Duration::from_secs(149);
        for number in [1, 2] {
            assert!(store.put(&id(number), vec![], origin(start), issued));
        }
        let still = store.take(&id(1), start + LINEAGE);
        assert_eq!(still, Taken::Fresh(origin(start), vec![]));
        let after = start + LINEAGE + Duration::from_secs(1);
        assert_eq!(store.take(&id(2), after), Taken::TooOld);
        assert_eq!(store.take(&id(2), after), Taken::Spent);
        assert_eq!(store.counts().too_old, 1);
    }

    #[test]
    fn a_full_store_drops_the_oldest_and_says_so() {
        let (store, now) = (store(3), Instant::now());
        for number in 1..=3 {
            assert!(store.put(&id(number), vec![number], origin(now), now));
        }
        store.take(&id(1), now);
        for number in 4..=5 {
            assert!(store.put(&id(number), vec![number], origin(now), now));
        }
        let counts = store.counts();
        assert_eq!((counts.forgotten, counts.evicted, counts.live), (1, 1, 3));
        // No longer known as spent, and all the same not accepted.
        assert_eq!(store.take(&id(1), now), Taken::Unknown);
        assert_eq!(store.take(&id(2), now), Taken::Unknown);
        assert!(matches!(store.take(&id(3), now), Taken::Fresh(..)));
    }

    #[test]
    fn a_store_without_room_issues_nothing() {
        let (store, now) = (store(0), Instant::now());
        assert!(!store.put(&id(1), vec![], origin(now), now));
    }

    #[test]
    fn one_ticket_shown_by_many_threads_is_redeemed_once() {
        let (store, now) = (store(10), Instant::now());
        store.put(&id(1), vec![], origin(now), now);
        let fresh: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| matches!(store.take(&id(1), now), Taken::Fresh(..))))
                .collect();
            threads
                .into_iter()
                .map(|thread| usize::from(thread.join().unwrap()))
                .sum()
        });
        assert_eq!((fresh, store.counts().spent), (1, 7));
    }

    #[test]
    fn nothing_secret_is_printed() {
        let (store, now) = (store(10), Instant::now());
        store.put(&id(1), b"mastersecret".to_vec(), origin(now), now);
        let secret = format!("{:?}", b"mastersecret");
        let inside = secret.trim_matches(['[', ']']);
        let taken = store.take(&id(1), now);
        assert!(!format!("{store:?} {taken:?}").contains(inside));
    }

    proptest! {
        /// Against a list of all that ever happened.
        #[test]
        fn it_behaves_like_a_list_without_bounds(
            steps in proptest::collection::vec((0_u8..12, any::<bool>(), 0_u64..40), 1..200),
            // Up to what one call prunes: beyond, a spent ticket may be known for longer than it must.
            capacity in 1_usize..=PRUNE,
        ) {
            let (store, mut now) = (store(capacity), Instant::now());
            // id, issued, spent; those pushed out are removed.
            let mut list: Vec<(u8, Instant, bool)> = Vec::new();
            for (number, put, seconds) in steps {
                now += Duration::from_secs(seconds);
                list.retain(|(_, issued, _)| now - *issued <= LIFE);
                let place = list.iter().position(|(known, ..)| *known == number);
                if put {
                    // rustls never repeats an id while it is known.
                    if place.is_some() { continue; }
                    if list.len() == capacity { list.remove(0); }
                    list.push((number, now, false));
                    prop_assert!(store.put(&id(number), vec![number], origin(now), now));
                } else {
                    let expected = match place {
                        None => Taken::Unknown,
                        Some(place) if list[place].2 => Taken::Spent,
                        Some(place) => {
                            list[place].2 = true;
                            Taken::Fresh(origin(list[place].1), vec![number])
                        }
                    };
                    prop_assert_eq!(store.take(&id(number), now), expected);
                }
                prop_assert!(store.counts().live <= capacity);
            }
        }
    }
}
