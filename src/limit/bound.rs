//! What a limit is: a bound, whose it is, and the cell that keeps it.

use std::time::Duration;

use super::quota::Period;
use super::{At, Clock, Limit, Scope};
use crate::generation::BoxFuture;

/// One limit of one account: so many units, which come back with time.
pub trait Cell: Send + Sync {
    /// Takes `n` units, all or none.
    ///
    /// # Errors
    /// How long until they would be granted if nobody else took any.
    fn take(&self, n: u64, at: At) -> Result<(), Duration>;

    /// Takes `n` units that have been used already, whether or not they are there. Whether at least one
    /// is left.
    fn charge(&self, n: u64, at: At) -> bool;

    /// Gives `n` units back that were taken and not used.
    fn give(&self, n: u64, at: At);

    /// What is left.
    fn left(&self, at: At) -> Left;

    /// Whether it is as good as new: forgetting it would grant nobody anything.
    fn is_idle(&self, at: At) -> bool;

    /// Asks elsewhere for `n` more units, where that is possible: after [`Cell::take`] refused, before it
    /// is asked once more. Bounded in time, and without an error: whoever cannot be reached grants nothing.
    fn refill(&self, n: u64) -> Option<BoxFuture<'_, ()>> {
        let _ = n;
        None
    }

    /// A cell of the same limit with another bound, which goes on where this one is. `None`: whoever made
    /// this one remembers, and is to be asked for the new one.
    fn heir(&self, bound: Bound, clock: &Clock) -> Option<Box<dyn Cell>> {
        let _ = (bound, clock);
        None
    }
}

/// What of a rate was used up when `old` said this, in a cell that is as good as new.
pub(super) fn inherit<C: Cell>(new: C, old: Left, at: At) -> C {
    let window = old.window.as_nanos();
    if window > 0 && !old.reset.is_zero() {
        let used = old.reset.as_nanos().saturating_mul(u128::from(old.limit)) / window;
        new.charge(u64::try_from(used).unwrap_or(u64::MAX), at);
    }
    new
}

/// What is left in a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// Units when nothing is used.
    pub limit: u64,
    /// Units that would be granted now.
    pub remaining: u64,
    /// Until all of them are back.
    pub reset: Duration,
    /// In which time so many come back.
    pub window: Duration,
}

/// How much of something may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// So many a minute, and so many at once. Both at least 1.
    Rate {
        /// A minute's.
        per_minute: u64,
        /// At once.
        burst: u64,
    },
    /// So many at once.
    Places(u32),
    /// So many in a period of the calendar.
    Quota {
        /// Which period.
        period: Period,
        /// How many.
        most: u64,
    },
}

/// Which limit of whom: the same on every node and after every restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key<'a> {
    /// Whose kind of limit.
    pub scope: Scope,
    /// Which organization or caller (`key:…`, an address), or which model.
    pub name: &'a str,
    /// For [`Scope::CallerOnModel`], the model.
    pub model: Option<&'a str>,
    /// What is limited.
    pub limit: Limit,
}

/// Makes the cells of accounts.
pub trait Store: Send + Sync {
    /// A cell for this key. Asked once for every account that is made, again when an account was idle
    /// for long; a store that remembers goes on where it was.
    fn cell(&self, key: Key<'_>, bound: Bound, clock: &Clock) -> Box<dyn Cell>;

    /// The same for looking at what is left: it leaves nothing behind in the store, and nothing is taken
    /// from it.
    fn peek(&self, key: Key<'_>, bound: Bound, clock: &Clock) -> Box<dyn Cell>;
}
