//! What a node holds of one shared limit: a slice of it, as a number.
//!
//! Requests take from the number and streams are charged to it, with one atomic operation each. The
//! courier fetches more before it is used up, and takes back what lies unused. While the server is away
//! the node takes from its own share of the limit instead: the limit divided by the number of nodes.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::super::cell::Tokens;
use super::super::quota::Period;
use super::super::{At, Bound, Cell as _, Clock, Left};
use super::link::Reply;

/// How long what the server said last about an empty limit is believed. Other nodes may have given
/// something back since.
const BELIEVED: u64 = 250_000_000;

/// After which an unused slice goes back, in nanoseconds.
const IDLE: u64 = 2_000_000_000;

const MINUTE: u64 = 60_000_000_000;

/// The part of a limit that one node may hold, at the most.
const PART: u64 = 10;

/// The part of a quota that it holds when it may choose.
const QUOTA_PART: u64 = 1_000;

/// What is shared of one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Budget {
    Rate { per_minute: u64, burst: u64 },
    Quota { period: Period, most: u64 },
}

impl Budget {
    /// What can be shared of a limit: not places, which are a node's own.
    pub(super) fn of(bound: Bound) -> Option<Self> {
        match bound {
            Bound::Rate { per_minute, burst } => Some(Self::Rate { per_minute, burst }),
            Bound::Quota { period, most } => Some(Self::Quota { period, most }),
            Bound::Places(_) => None,
        }
    }

    /// Units when nothing is used.
    fn most(self) -> u64 {
        match self {
            Self::Rate { burst, .. } => burst,
            Self::Quota { most, .. } => most,
        }
    }

    /// What a node fetches at once: a second's worth, at most a tenth, at least one.
    fn slice(self) -> u64 {
        let slice = match self {
            Self::Rate { per_minute, burst } => (per_minute / 60).min(burst / PART),
            Self::Quota { most, .. } => most / QUOTA_PART,
        };
        slice.max(1)
    }
}

/// One node's part of one limit.
pub(super) struct Lease {
    pub(super) name: String,
    pub(super) budget: Budget,
    pub(super) clock: Clock,
    /// Units that are here; below zero, units that were used and not asked for.
    balance: AtomicI64,
    /// When it was used last, in nanoseconds of the limiter's clock.
    used_at: AtomicU64,
    /// The most that one request needed lately: so much is worth keeping.
    largest: AtomicU64,
    /// Whether it is in the courier's list.
    pub(super) is_due: AtomicBool,
    /// The day or month that the balance is of.
    index: AtomicU64,
    /// For a rate: the whole limit in this process, from which the node takes its units times the number
    /// of nodes.
    alone: Tokens,
    slow: Mutex<Slow>,
    /// The courier has spoken with the server, or given up.
    pub(super) told: Notify,
}

/// What only the slow paths need.
#[derive(Default)]
struct Slow {
    /// Units that requests wait for, and the least of them.
    waiting: u64,
    least: Option<u64>,
    /// What the server had left, and when.
    heard: Option<(u64, u64)>,
    /// Units used of which the server does not know; below zero, to be given back to it.
    owed: i64,
    /// Of it, what was sent to the server and not answered, and its number: it may have arrived all the
    /// same. Until that is known it is sent again as it was, and nothing else is settled.
    unconfirmed: Option<(u64, i64)>,
    /// Units that the node took without the server in this period: nothing is known of the others' use.
    taken_alone: u64,
    /// Of a rate: what everybody had used when the server came back, if they did as this node.
    used_meanwhile: u64,
}

/// What to ask the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    /// Used already; below zero, given back.
    pub(super) settle: i64,
    /// Of what is settled: the server does not settle it twice.
    pub(super) number: u64,
    /// Less is of no use.
    pub(super) need: u64,
    /// The most.
    pub(super) want: u64,
    /// Of a quota: which period.
    pub(super) index: u16,
    /// Used by everybody as far as this node knows: of a quota, for a server that has forgotten it; of a
    /// rate, when it was away.
    pub(super) known: u64,
}

impl Lease {
    pub(super) fn new(name: String, budget: Budget, clock: &Clock) -> Self {
        let alone = match budget {
            Budget::Rate { per_minute, burst } => Tokens::new(per_minute, burst),
            Budget::Quota { .. } => Tokens::new(1, 1),
        };
        let lease = Self {
            name,
            budget,
            clock: clock.clone(),
            balance: AtomicI64::new(0),
            used_at: AtomicU64::new(0),
            largest: AtomicU64::new(0),
            is_due: AtomicBool::new(false),
            index: AtomicU64::new(0),
            alone,
            slow: Mutex::default(),
            told: Notify::new(),
        };
        let at = clock.at();
        lease.used_at.store(at.nanos, Relaxed);
        lease.enter_period(at);
        lease
    }

    /// Takes from what is here. `Some`: it did, and whether more should be fetched.
    pub(super) fn draw(&self, n: u64, at: At) -> Option<bool> {
        self.enter_period(at);
        let before = self.balance.fetch_update(Relaxed, Relaxed, |here| {
            (here >= signed(n)).then(|| here - signed(n))
        });
        self.used_at.store(at.nanos, Relaxed);
        Some(self.is_low(before.ok()? - signed(n)))
    }

    /// Takes what was used already, whether or not it is here. Whether more should be fetched.
    pub(super) fn charge(&self, n: u64, at: At) -> bool {
        self.enter_period(at);
        self.used_at.store(at.nanos, Relaxed);
        let before = self.balance.fetch_sub(signed(n), Relaxed);
        self.is_low(before.saturating_sub(signed(n)))
    }

    /// Puts back what was not used. Whether it is more than should lie here.
    pub(super) fn put(&self, n: u64) -> bool {
        let before = self.balance.fetch_add(signed(n), Relaxed);
        before.saturating_add(signed(n)) > signed(2 * self.keeps())
    }

    /// Takes from the node's own share, where the server is away. `own` is what is left of a quota by the
    /// node's own ledger.
    pub(super) fn take_alone(
        &self,
        n: u64,
        nodes: u64,
        own: Option<Left>,
        at: At,
    ) -> Result<(), Duration> {
        if let Budget::Quota { most, .. } = self.budget {
            let mut slow = self.slow();
            let left = slow.left_of_quota(most, own);
            let sum = slow.taken_alone.saturating_add(n);
            // As everywhere, one request that is larger than a fresh quota.
            let is_fresh = slow.taken_alone == 0 && left == most;
            if sum.saturating_mul(nodes) > left && !is_fresh {
                return Err(own.map_or(Duration::from_secs(1), |left| left.reset));
            }
            slow.taken_alone = sum;
            slow.owed = slow.owed.saturating_add(signed(n));
            return Ok(());
        }
        self.alone.take(n.saturating_mul(nodes), at)
    }

    /// Turns a debt into a charge to the node's own share. Whether anything of it is left.
    pub(super) fn charge_alone(&self, nodes: u64, own: Option<Left>, at: At) -> bool {
        let debt = self
            .balance
            .fetch_update(Relaxed, Relaxed, |here| (here < 0).then_some(0));
        let Ok(debt) = debt else {
            return true;
        };
        let debt = debt.unsigned_abs();
        if let Budget::Quota { most, .. } = self.budget {
            let mut slow = self.slow();
            slow.taken_alone = slow.taken_alone.saturating_add(debt);
            slow.owed = slow.owed.saturating_add(signed(debt));
            return slow.taken_alone.saturating_mul(nodes) < slow.left_of_quota(most, own);
        }
        self.alone.charge(debt.saturating_mul(nodes), at)
    }

    /// Units granted by the node itself, to be reported as used as soon as the server answers again.
    pub(super) fn lend(&self, n: u64) {
        self.balance.fetch_add(signed(n), Relaxed);
        if matches!(self.budget, Budget::Rate { .. }) {
            let mut slow = self.slow();
            slow.owed = slow.owed.saturating_add(signed(n));
        }
    }

    /// Whether `n` units are here.
    pub(super) fn has(&self, n: u64) -> bool {
        self.balance.load(Relaxed) >= signed(n)
    }

    /// Whether the server has answered just now.
    pub(super) fn was_answered(&self, at: At) -> bool {
        let heard = self.slow().heard;
        heard.is_some_and(|(_, when)| at.nanos.saturating_sub(when) < BELIEVED)
    }

    /// A request waits for `n` units.
    pub(super) fn wait_for(&self, n: u64) {
        self.largest.fetch_max(n, Relaxed);
        let mut slow = self.slow();
        slow.waiting = slow.waiting.saturating_add(n);
        slow.least = Some(slow.least.map_or(n, |least| least.min(n)));
    }

    /// Whether the server has said so lately that there is too little that it need not be asked.
    pub(super) fn is_known_to_lack(&self, n: u64, at: At) -> bool {
        let heard = self.slow().heard;
        let is_fresh = heard.is_some_and(|(_, when)| at.nanos.saturating_sub(when) < BELIEVED);
        is_fresh && n <= self.budget.most() && self.within_reach(heard, at) < signed(n)
    }

    /// How long until `n` units could be there.
    pub(super) fn until(&self, n: u64, own: Option<Left>, at: At) -> Duration {
        let lacking = signed(n) - self.within_reach(self.slow().heard, at);
        let wait = match self.budget {
            Budget::Rate { per_minute, .. } => {
                let units = u128::from(lacking.max(0).unsigned_abs());
                let nanos = (units * u128::from(MINUTE)).div_ceil(u128::from(per_minute));
                Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
            }
            Budget::Quota { .. } => own.map_or(Duration::ZERO, |left| left.reset),
        };
        // At once would be too soon: it was refused.
        wait.max(Duration::from_millis(1))
    }

    /// What is left for everybody, as far as is known here.
    pub(super) fn left(&self, own: Option<Left>, at: At) -> Left {
        let limit = self.budget.most();
        let heard = self.slow().heard;
        let within_reach = match (heard, own) {
            (None, Some(own)) => signed(own.remaining),
            (None, None) => signed(limit),
            (heard, _) => self.within_reach(heard, at),
        };
        let remaining = within_reach.clamp(0, signed(limit)).unsigned_abs();
        match (self.budget, own) {
            (Budget::Rate { per_minute, .. }, _)
            | (
                Budget::Quota {
                    most: per_minute, ..
                },
                None,
            ) => {
                let time = |units: u64| {
                    let nanos = u128::from(units) * u128::from(MINUTE) / u128::from(per_minute);
                    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
                };
                Left {
                    limit,
                    remaining,
                    reset: time(limit - remaining),
                    window: time(limit),
                }
            }
            (Budget::Quota { .. }, Some(own)) => Left { remaining, ..own },
        }
    }

    /// Whether it may be forgotten: what is still here goes back by itself.
    pub(super) fn is_idle(&self, is_up: bool, at: At) -> bool {
        self.is_unused(at) && (is_up || self.alone.is_idle(at))
    }

    /// Whether the server is to hear of it although nobody asks.
    pub(super) fn is_unsettled(&self, at: At) -> bool {
        let here = self.balance.load(Relaxed);
        here < 0 || (here > 0 && self.is_unused(at)) || self.slow().is_unsettled()
    }

    /// Whether nothing is lost when it is forgotten.
    pub(super) fn is_settled(&self) -> bool {
        self.balance.load(Relaxed) == 0 && !self.slow().is_unsettled()
    }

    /// What to ask the server. `all`: everything goes back. `number`: higher than of all wishes before.
    pub(super) fn wish(&self, all: bool, number: u64, own_used: u64, at: At) -> Wish {
        self.enter_period(at);
        let mut slow = self.slow();
        let waiting = std::mem::take(&mut slow.waiting);
        let least = slow.least.take();
        let is_leaving = all || (waiting == 0 && self.is_unused(at));
        if is_leaving {
            self.largest.store(0, Relaxed);
        }
        let keeps = if is_leaving { 0 } else { self.keeps() };
        // More than a burst is granted only when nothing is out, so nothing stays here.
        let is_huge = least.is_some_and(|least| least > self.budget.most());
        let most = if is_huge {
            0
        } else {
            (2 * keeps).saturating_add(waiting)
        };
        let stays = if is_huge {
            0
        } else {
            keeps.saturating_add(waiting)
        };
        let mut here = 0;
        let _ = self
            .balance
            .fetch_update(Relaxed, Relaxed, |balance| {
                here = if balance > signed(most) {
                    signed(stays)
                } else {
                    balance.max(0)
                };
                (here != balance).then_some(here)
            })
            .inspect(|before| slow.owed = slow.owed.saturating_add(here - before));
        let here = here.unsigned_abs();
        let (number, settle) = slow.settle(number);
        let known = match (self.budget, slow.heard) {
            (Budget::Rate { .. }, _) => std::mem::take(&mut slow.used_meanwhile),
            (Budget::Quota { most, .. }, Some((free, _))) => most.saturating_sub(free),
            // What is settled, now or next, is in the node's own ledger already.
            (Budget::Quota { .. }, None) => {
                let told = settle.saturating_add(slow.owed);
                own_used.saturating_sub(told.max(0).unsigned_abs())
            }
        };
        Wish {
            settle,
            number,
            need: least.map_or(0, |least| least.saturating_sub(here)),
            want: stays.max(least.unwrap_or(0)).saturating_sub(here),
            index: u16::try_from(self.index.load(Relaxed)).unwrap_or(u16::MAX),
            known,
        }
    }

    /// The server has answered a wish.
    pub(super) fn granted(&self, wish: &Wish, [granted, free, _]: Reply, at: At) {
        let mut slow = self.slow();
        slow.unconfirmed = None;
        // An answer about yesterday is of no use.
        if self.index.load(Relaxed) == u64::from(wish.index) {
            self.balance.fetch_add(granted.max(0), Relaxed);
            let free = free.max(0).unsigned_abs();
            slow.heard = Some((free, at.nanos));
            slow.taken_alone = 0;
            self.alone.set_left(free, at);
        }
        drop(slow);
        self.told.notify_waiters();
    }

    /// The server has not answered: what was to be settled may be, or not.
    pub(super) fn unanswered(&self, wish: &Wish) {
        let mut slow = self.slow();
        if matches!(self.budget, Budget::Rate { .. }) {
            slow.used_meanwhile = slow.used_meanwhile.max(wish.known);
        }
        drop(slow);
        self.told.notify_waiters();
    }

    /// The server is back. Of a rate, what was used meanwhile was within this node's share, and what has
    /// not come back with time yet is used there, too. Of a quota it all counts.
    pub(super) fn resume(&self) {
        if let Budget::Rate { burst, .. } = self.budget {
            let left = self.alone.left(self.clock.at()).remaining;
            let mut slow = self.slow();
            slow.owed = 0;
            slow.unconfirmed = None;
            slow.used_meanwhile = burst.saturating_sub(left);
            let _ = self
                .balance
                .fetch_update(Relaxed, Relaxed, |here| (here < 0).then_some(0));
        }
    }

    /// Begins a new day or month with nothing.
    fn enter_period(&self, at: At) {
        let Budget::Quota { period, .. } = self.budget else {
            return;
        };
        let counted = self.index.load(Relaxed);
        let (index, _) = period.step(u16::try_from(counted).unwrap_or(u16::MAX), at.unix);
        if u64::from(index) == counted {
            return;
        }
        let mut slow = self.slow();
        if self.index.swap(u64::from(index), Relaxed) != u64::from(index) {
            self.balance.store(0, Relaxed);
            slow.heard = None;
            slow.owed = 0;
            slow.unconfirmed = None;
            slow.taken_alone = 0;
        }
    }

    /// Units here, and those that the server had, and those that have come back since.
    fn within_reach(&self, heard: Option<(u64, u64)>, at: At) -> i64 {
        let there = heard.map_or(0, |(free, when)| match self.budget {
            Budget::Rate { per_minute, burst } => {
                let since = u128::from(at.nanos.saturating_sub(when));
                let back = since * u128::from(per_minute) / u128::from(MINUTE);
                free.saturating_add(u64::try_from(back).unwrap_or(u64::MAX))
                    .min(burst)
            }
            Budget::Quota { .. } => free,
        });
        self.balance.load(Relaxed).saturating_add(signed(there))
    }

    /// What lies here while it is used.
    fn keeps(&self) -> u64 {
        let part = self.budget.most() / PART;
        let largest = self.largest.load(Relaxed).min(part);
        self.budget.slice().max(largest)
    }

    fn is_low(&self, here: i64) -> bool {
        here < signed(self.keeps().div_ceil(2))
    }

    fn is_unused(&self, at: At) -> bool {
        at.nanos.saturating_sub(self.used_at.load(Relaxed)) >= IDLE
    }

    fn slow(&self) -> MutexGuard<'_, Slow> {
        self.slow.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slow {
    fn is_unsettled(&self) -> bool {
        self.owed != 0 || self.unconfirmed.is_some()
    }

    /// What to settle now, and its number: what was not confirmed, or else what is owed.
    fn settle(&mut self, number: u64) -> (u64, i64) {
        if self.unconfirmed.is_none() && self.owed != 0 {
            self.unconfirmed = Some((number, std::mem::take(&mut self.owed)));
        }
        self.unconfirmed.unwrap_or((number, 0))
    }

    /// What was left of a quota when the server was last heard, or by the node's own ledger.
    fn left_of_quota(&self, most: u64, own: Option<Left>) -> u64 {
        let heard = self.heard.map(|(free, _)| free);
        heard
            .or(own.map(|left| left.remaining.saturating_add(self.taken_alone).min(most)))
            .unwrap_or(most)
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
