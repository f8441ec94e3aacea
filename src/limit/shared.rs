//! Limits that several nodes share through a Redis or Valkey server.
//!
//! The server keeps one number per limit and decides by its own clock (`scripts/`). A node does not ask
//! it for every request: it holds a slice of each limit that it uses (`lease`), and one task, the
//! `courier`, fetches and returns units in the background. Only a request that finds its slice
//! empty waits for the server, and only for a few milliseconds. When the server is away, each node goes
//! on with its share of every limit. No request fails because of the server.
//!
//! Keys in the server are digests: names of callers do not belong into other people's monitoring, are of
//! any length, and may hold any character. Who knows a name can still find its key.

pub mod config;
mod breaker;
mod courier;
mod lease;
mod link;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ring::digest;
use tokio::sync::Notify;
use tokio::time;
use tokio_util::sync::CancellationToken;

use self::config::Redis;
use self::lease::{Budget, Lease};
use super::quota::Quota;
use super::{At, Bound, Cell, Clock, Key, Left};
use crate::generation::BoxFuture;

/// Leases kept at most while the server is away and nothing can be given back to it. Beyond, what an
/// account that is gone still held is forgotten.
const MOST_LEFT_BEHIND: usize = 65_536;

/// The limits that this node shares with others.
pub struct Shared(Arc<Inner>);

struct Inner {
    redis: Redis,
    /// By name and size: a caller whose class has changed has another limit under the same name.
    leases: Mutex<HashMap<(String, Budget), Arc<Held>>>,
    /// Leases that the courier is to look after; each at most once.
    due: Mutex<Vec<Arc<Held>>>,
    wake: Notify,
    is_up: AtomicBool,
    /// A request has waited in vain, and nothing was heard since: no other waits, nor this one again for
    /// its next limit.
    is_late: AtomicBool,
    /// Nodes seen at the server when it was last asked; none until then.
    nodes: AtomicU32,
    failures: AtomicU64,
    alone: AtomicU64,
}

/// A lease, and of a quota the node's own count of it.
struct Held {
    lease: Lease,
    own: Option<Quota>,
}

/// How it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether the server answers.
    pub is_up: bool,
    /// Nodes among which limits are divided while it does not.
    pub nodes: u32,
    /// Times that it did not answer in time, or not well.
    pub failures: u64,
    /// Requests decided without it.
    pub alone: u64,
}

impl Shared {
    /// Nothing is connected until [`Self::keep`] runs.
    #[must_use]
    pub fn new(redis: &Redis) -> Self {
        Self(Arc::new(Inner {
            redis: redis.clone(),
            leases: Mutex::default(),
            due: Mutex::default(),
            wake: Notify::new(),
            // The first requests may wait for the connection.
            is_up: AtomicBool::new(true),
            is_late: AtomicBool::new(false),
            nodes: AtomicU32::new(0),
            failures: AtomicU64::new(0),
            alone: AtomicU64::new(0),
        }))
    }

    /// Speaks with the server until `stop`, and then gives everything back. To be run once, in a task.
    pub fn keep(&self, stop: CancellationToken) -> impl Future<Output = ()> + Send + 'static {
        courier::run(self.0.clone(), stop)
    }

    /// A cell of which the other nodes take, too. `own` is the node's own count of a quota, which is
    /// kept beside. `None`: this kind of limit is not shared.
    #[must_use]
    pub fn cell(
        &self,
        key: Key<'_>,
        bound: Bound,
        own: Option<Quota>,
        clock: &Clock,
    ) -> Option<Box<dyn Cell>> {
        let budget = Budget::of(bound)?;
        let name = name(key);
        let held = {
            let mut leases = self.0.leases();
            let held = leases.entry((name.clone(), budget)).or_insert_with(|| {
                let lease = Lease::new(name, budget, clock);
                Arc::new(Held { lease, own })
            });
            held.clone()
        };
        let inner = self.0.clone();
        Some(Box::new(Leased { held, inner }))
    }

    /// The same to look at, if the node holds a lease of it.
    #[must_use]
    pub fn peek(&self, key: Key<'_>, bound: Bound) -> Option<Box<dyn Cell>> {
        let found = (name(key), Budget::of(bound)?);
        let held = self.0.leases().get(&found)?.clone();
        let inner = self.0.clone();
        Some(Box::new(Leased { held, inner }))
    }

    /// How it goes.
    #[must_use]
    pub fn health(&self) -> Health {
        Health {
            is_up: self.0.is_up.load(Relaxed),
            nodes: self.0.nodes(),
            failures: self.0.failures.load(Relaxed),
            alone: self.0.alone.load(Relaxed),
        }
    }
}

impl Inner {
    /// Puts a lease on the courier's list.
    fn ask(&self, held: &Arc<Held>) {
        if !held.lease.is_due.swap(true, Relaxed) {
            let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
            due.push(held.clone());
            drop(due);
            self.wake.notify_one();
        }
    }

    fn nodes(&self) -> u32 {
        let configured = self.redis.nodes.map(std::num::NonZeroU32::get);
        configured
            .unwrap_or_else(|| self.nodes.load(Relaxed))
            .max(1)
    }

    /// Whether nobody has said how many nodes there are, so that one is assumed.
    fn is_guess(&self) -> bool {
        self.redis.nodes.is_none() && self.nodes.load(Relaxed) == 0
    }

    fn is_up(&self) -> bool {
        self.is_up.load(Relaxed)
    }

    fn leases(&self) -> MutexGuard<'_, HashMap<(String, Budget), Arc<Held>>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn left_by_own(&self, at: At) -> Option<Left> {
        self.own.as_ref().map(|own| own.left(at))
    }

    fn used_by_own(&self, at: At) -> u64 {
        let left = self.left_by_own(at);
        left.map_or(0, |left| left.limit.saturating_sub(left.remaining))
    }
}

/// A cell of an account, over a lease that it may have in common with other accounts.
struct Leased {
    held: Arc<Held>,
    inner: Arc<Inner>,
}

impl Leased {
    /// Counts in the node's own ledger what was taken.
    fn took(&self, n: u64, at: At) {
        if let Some(own) = &self.held.own {
            own.charge(n, at);
        }
    }

    fn take_alone(&self, n: u64, at: At) -> Result<(), Duration> {
        self.inner.alone.fetch_add(1, Relaxed);
        let (nodes, own) = (u64::from(self.inner.nodes()), self.held.left_by_own(at));
        self.held.lease.take_alone(n, nodes, own, at)
    }

    /// Fetches more in the background, unless the server has said that there is none.
    fn fetch(&self, at: At) {
        if self.inner.is_up() && !self.held.lease.is_known_to_lack(1, at) {
            self.inner.ask(&self.held);
        }
    }

    /// Waits until `n` units are here, or are known not to be there, or the time is up.
    async fn fetched(&self, n: u64) {
        let lease = &self.held.lease;
        let has_answer = async {
            while self.inner.is_up() {
                let mut told = std::pin::pin!(lease.told.notified());
                // Before asking, so that no answer is missed.
                told.as_mut().enable();
                lease.wait_for(n);
                self.inner.ask(&self.held);
                told.await;
                let at = lease.clock.at();
                if lease.has(n) || lease.is_known_to_lack(n, at) {
                    return true;
                }
                if !lease.was_answered(at) {
                    return false;
                }
            }
            false
        };
        let is_late = &self.inner.is_late;
        let patience = if is_late.load(Relaxed) {
            Duration::ZERO
        } else {
            self.inner.redis.timeout
        };
        let answer = time::timeout(patience, has_answer).await;
        if answer.is_err() {
            is_late.store(true, Relaxed);
        }
        if answer.unwrap_or(false) || lease.has(n) || !self.inner.is_up() {
            return;
        }
        if self.take_alone(n, lease.clock.at()).is_ok() {
            lease.lend(n);
        }
    }
}

impl Cell for Leased {
    fn take(&self, n: u64, at: At) -> Result<(), Duration> {
        let lease = &self.held.lease;
        match lease.draw(n, at) {
            Some(is_low) => {
                if is_low {
                    self.fetch(at);
                }
            }
            None if self.inner.is_up() => {
                return Err(lease.until(n, self.held.left_by_own(at), at));
            }
            None => self.take_alone(n, at)?,
        }
        self.took(n, at);
        Ok(())
    }

    fn charge(&self, n: u64, at: At) -> bool {
        let lease = &self.held.lease;
        self.took(n, at);
        let is_low = lease.charge(n, at);
        if !self.inner.is_up() {
            let own = self.held.left_by_own(at);
            return lease.charge_alone(u64::from(self.inner.nodes()), own, at);
        }
        if is_low {
            self.fetch(at);
            return lease.has(1) || !lease.is_known_to_lack(1, at);
        }
        true
    }

    fn give(&self, n: u64, at: At) {
        if let Some(own) = &self.held.own {
            own.give(n, at);
        }
        if self.held.lease.put(n) && self.inner.is_up() {
            self.inner.ask(&self.held);
        }
    }

    fn left(&self, at: At) -> Left {
        self.held.lease.left(self.held.left_by_own(at), at)
    }

    fn is_idle(&self, at: At) -> bool {
        self.held.lease.is_idle(self.inner.is_up(), at)
    }

    fn refill(&self, n: u64) -> Option<BoxFuture<'_, ()>> {
        let lease = &self.held.lease;
        if !self.inner.is_up() || lease.is_known_to_lack(n, lease.clock.at()) {
            return None;
        }
        Some(Box::pin(self.fetched(n)))
    }
}

/// Half a digest of a limit's name, in hexadecimal digits.
fn name(key: Key<'_>) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    let scope = key.scope.as_str();
    for part in [
        scope,
        key.limit.as_str(),
        key.name,
        key.model.unwrap_or_default(),
    ] {
        // The length, so that nothing moves from one part to the next.
        context.update(&part.len().to_be_bytes());
        context.update(part.as_bytes());
    }
    let mut text = String::with_capacity(32);
    for byte in context.finish().as_ref().iter().take(16) {
        use fmt::Write as _;
        let _ = write!(text, "{byte:02x}");
    }
    text
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("redis", &self.0.redis)
            .field("health", &self.health())
            .finish_non_exhaustive()
    }
}
