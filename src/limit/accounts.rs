//! The accounts of callers, as many as there is room for.
//!
//! Who calls is not known beforehand, so these are made on demand, once a caller was authenticated, and
//! forgotten when forgetting grants nobody anything. Where there is no room for one more, newcomers
//! share one account per kind: a flood of addresses gains nothing and costs no memory.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::At;
use super::account::{Account, Terms};

/// Maps that are locked one by one: two callers rarely wait for each other.
const SHARDS: usize = 16;

/// The accounts of callers.
pub(super) struct Callers {
    shards: [Mutex<HashMap<u128, Entry>>; SHARDS],
    /// Two random keys of 64 bits each: nobody can choose a name that meets another's account.
    hashers: [RandomState; 2],
    most: AtomicUsize,
    all: AtomicUsize,
    anonymous: AtomicUsize,
}

struct Entry {
    account: Arc<Account>,
    is_anonymous: bool,
}

impl Entry {
    fn on(
        &mut self,
        terms: &Arc<Terms>,
        make: impl FnOnce(Option<&Account>) -> Account,
    ) -> Arc<Account> {
        if !self.account.is_on(terms) {
            self.account = Arc::new(make(Some(&self.account)));
        }
        self.account.clone()
    }
}

impl Callers {
    pub(super) fn new(most: usize) -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            hashers: std::array::from_fn(|_| RandomState::new()),
            most: AtomicUsize::new(most),
            all: AtomicUsize::new(0),
            anonymous: AtomicUsize::new(0),
        }
    }

    /// What a name is known by.
    pub(super) fn key(&self, name: impl Hash) -> u128 {
        let [high, low] = self.hashers.each_ref().map(|hasher| hasher.hash_one(&name));
        u128::from(high) << 64 | u128::from(low)
    }

    /// From now on there is room for so many. Those beyond stay until they are idle.
    pub(super) fn make_room(&self, most: usize) {
        self.most.store(most, Relaxed);
    }

    /// The account of `key` on `terms`, if there is one; one on others is made anew, from itself.
    pub(super) fn find(
        &self,
        key: u128,
        terms: &Arc<Terms>,
        make: impl FnOnce(Option<&Account>) -> Account,
    ) -> Option<Arc<Account>> {
        let mut shard = self.shard(key);
        Some(shard.get_mut(&key)?.on(terms, make))
    }

    /// The account of `key` on `terms`, made if there is none, or if it was on others. `None` if there is
    /// no room for it.
    pub(super) fn open(
        &self,
        key: u128,
        is_anonymous: bool,
        terms: &Arc<Terms>,
        make: impl FnOnce(Option<&Account>) -> Account,
    ) -> Option<Arc<Account>> {
        let mut shard = self.shard(key);
        if let Some(entry) = shard.get_mut(&key) {
            return Some(entry.on(terms, make));
        }
        if is_anonymous && !enter(&self.anonymous, self.most_anonymous()) {
            return None;
        }
        if !enter(&self.all, self.most.load(Relaxed)) {
            if is_anonymous {
                self.anonymous.fetch_sub(1, Relaxed);
            }
            return None;
        }
        let account = Arc::new(make(None));
        let entry = Entry {
            account: account.clone(),
            is_anonymous,
        };
        shard.insert(key, entry);
        Some(account)
    }

    /// Whether one more account would be opened.
    pub(super) fn has_room(&self, is_anonymous: bool) -> bool {
        let is_open = !is_anonymous || self.anonymous.load(Relaxed) < self.most_anonymous();
        is_open && self.all.load(Relaxed) < self.most.load(Relaxed)
    }

    /// Those of whom nothing is known but an address must leave room for the others.
    fn most_anonymous(&self) -> usize {
        (self.most.load(Relaxed) / 2).max(1)
    }

    /// Forgets the accounts that are idle and that no request is charged to. Takes milliseconds with
    /// many: not for a thread that carries streams.
    pub(super) fn sweep(&self, at: At) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|_, entry| {
                // A request clones the account under this lock, so none can begin meanwhile.
                let is_kept = Arc::strong_count(&entry.account) > 1 || !entry.account.is_idle(at);
                if !is_kept {
                    self.all.fetch_sub(1, Relaxed);
                    self.anonymous
                        .fetch_sub(usize::from(entry.is_anonymous), Relaxed);
                }
                is_kept
            });
            shard.shrink_to_fit();
        }
    }

    pub(super) fn count(&self) -> usize {
        self.all.load(Relaxed)
    }

    fn shard(&self, key: u128) -> MutexGuard<'_, HashMap<u128, Entry>> {
        let index = usize::from(key.to_le_bytes()[0]) % SHARDS;
        self.shards[index]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts one more unless there are `most`.
fn enter(count: &AtomicUsize, most: usize) -> bool {
    let entered = count.fetch_update(Relaxed, Relaxed, |count| {
        (count < most).then_some(count + 1)
    });
    entered.is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::account::Terms;
    use super::super::config::Limits;
    use super::super::{Bound, Clock, Kept, Limit, Scope};
    use super::*;
    use std::time::Duration;

    fn terms() -> Arc<Terms> {
        let (per_minute, burst) = (60, 60);
        let rate = Bound::Rate { per_minute, burst };
        Arc::new(Terms {
            scope: Scope::Caller,
            bounds: vec![(Limit::RequestsPerMinute, rate)],
        })
    }

    /// Makes accounts.
    fn on(terms: &Arc<Terms>, clock: &Clock) -> impl Fn(Option<&Account>) -> Account {
        let store = Kept::open(&Limits::default(), None, clock);
        move |old| Account::new(old, terms, "x", None, &store, clock)
    }

    #[test]
    fn a_flood_of_addresses_leaves_room_for_known_callers() {
        let (clock, callers, terms) = (Clock::fake(0), Callers::new(100), terms());
        let make = on(&terms, &clock);
        let opened = (0..100_000)
            .filter(|number| {
                let key = callers.key(("address", number));
                callers.open(key, true, &terms, &make).is_some()
            })
            .count();
        assert_eq!((opened, callers.count()), (50, 50));
        for name in 0..60 {
            let key = callers.key(("key", name));
            let opened = callers.open(key, false, &terms, &make).is_some();
            assert_eq!(opened, name < 50);
        }
        assert_eq!(callers.count(), 100);
    }

    #[test]
    fn idle_accounts_are_forgotten_and_used_ones_are_not() {
        let (clock, callers, terms) = (Clock::fake(0), Callers::new(1000), terms());
        let make = on(&terms, &clock);
        let find = |name| callers.find(callers.key(name), &terms, &make).unwrap();
        for name in 0..900 {
            let is_anonymous = name % 2 == 0;
            callers.open(callers.key(name), is_anonymous, &terms, &make);
        }
        let held = find(7);
        let spent = find(8);
        let cost = super::super::account::Cost {
            requests: 1,
            ..Default::default()
        };
        spent.charge(cost, clock.at());
        drop(spent);
        callers.sweep(clock.at());
        assert_eq!(callers.count(), 2);
        assert!(Arc::ptr_eq(&held, &find(7)));
        drop(held);
        clock.advance(Duration::from_secs(1));
        callers.sweep(clock.at());
        assert_eq!(callers.count(), 0);
        let memory: usize = callers
            .shards
            .iter()
            .map(|shard| shard.lock().unwrap().capacity())
            .sum();
        assert_eq!(memory, 0, "the maps shrink");
        assert_eq!(callers.anonymous.load(Relaxed), 0);
    }

    #[test]
    fn one_name_has_one_account() {
        let (clock, callers, terms) = (Clock::fake(0), Callers::new(10), terms());
        let make = on(&terms, &clock);
        let open = |name| callers.open(callers.key(name), false, &terms, &make);
        assert!(Arc::ptr_eq(&open("a").unwrap(), &open("a").unwrap()));
        assert!(!Arc::ptr_eq(&open("a").unwrap(), &open("b").unwrap()));
    }
}
