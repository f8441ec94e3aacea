//! What one organization, caller or model may use, and what of it a request takes: all or nothing.

use std::sync::Arc;
use std::time::Duration;

use super::{At, Bound, Cell, Clock, Key, Left, Limit, Scope, Store};

/// What one request takes, or gives back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    pub(super) streams: u64,
    pub(super) queued: u64,
    pub(super) requests: u64,
    pub(super) input: u64,
    pub(super) output: u64,
}

impl Cost {
    fn of(&self, limit: Limit) -> u64 {
        match limit {
            Limit::Streams => self.streams,
            Limit::Queued => self.queued,
            Limit::RequestsPerMinute | Limit::RequestsPerDay | Limit::RequestsPerMonth => {
                self.requests
            }
            Limit::TokensPerMinute | Limit::TokensPerDay | Limit::TokensPerMonth => {
                self.input.saturating_add(self.output)
            }
            Limit::InputTokensPerMinute => self.input,
            Limit::OutputTokensPerMinute => self.output,
        }
    }
}

/// Which limits an account has.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) scope: Scope,
    pub(super) bounds: Vec<(Limit, Bound)>,
}

/// The cells of one organization, caller or model.
pub(super) struct Account {
    pub(super) scope: Scope,
    terms: Arc<Terms>,
    cells: Box<[Slot]>,
}

struct Slot {
    limit: Limit,
    bound: Bound,
    cell: Arc<dyn Cell>,
}

/// A limit that has too little left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Short {
    pub(super) scope: Scope,
    pub(super) limit: Limit,
    pub(super) bound: Bound,
    /// Until there would be enough.
    pub(super) wait: Duration,
}

impl Account {
    /// An account with these limits. If it takes the place of an `old` one, as much of them is used.
    pub(super) fn new(
        old: Option<&Self>,
        terms: &Arc<Terms>,
        name: &str,
        model: Option<&str>,
        store: &dyn Store,
        clock: &Clock,
    ) -> Self {
        let cells = terms.bounds.iter().map(|&(limit, bound)| {
            let key = Key {
                scope: terms.scope,
                name,
                model,
                limit,
            };
            let old = old.and_then(|old| old.cells.iter().find(|slot| slot.limit == limit));
            let heir = old.and_then(|old| {
                if old.bound == bound {
                    return Some(old.cell.clone());
                }
                old.cell.heir(bound, clock).map(Arc::from)
            });
            Slot {
                limit,
                bound,
                cell: heir.unwrap_or_else(|| store.cell(key, bound, clock).into()),
            }
        });
        Self {
            scope: terms.scope,
            terms: terms.clone(),
            cells: cells.collect(),
        }
    }

    /// Whether these are its limits.
    pub(super) fn is_on(&self, terms: &Arc<Terms>) -> bool {
        Arc::ptr_eq(&self.terms, terms)
    }

    /// Each cell that this costs something, with how much.
    fn costing(&self, cost: Cost) -> impl DoubleEndedIterator<Item = (&Slot, u64)> {
        let cells = self
            .cells
            .iter()
            .map(move |slot| (slot, cost.of(slot.limit)));
        cells.filter(|&(_, units)| units > 0)
    }

    /// Gives back what was taken at `taken` and not used.
    pub(super) fn give(&self, cost: Cost, taken: At, at: At) {
        for (slot, units) in self.costing(cost).rev() {
            // What was taken of a day that is over is given back to nobody: today's use is today's.
            let is_over = matches!(slot.bound, Bound::Quota { period, .. }
                if period.index(taken.unix) != period.index(at.unix));
            if !is_over {
                slot.cell.give(units, at);
            }
        }
    }

    /// Takes what has been used already. The first limit that has nothing left.
    pub(super) fn charge(&self, cost: Cost, at: At) -> Option<Short> {
        let mut short = None;
        for (slot, units) in self.costing(cost) {
            if !slot.cell.charge(units, at) && short.is_none() {
                short = Some(Short {
                    scope: self.scope,
                    limit: slot.limit,
                    bound: slot.bound,
                    wait: slot.cell.left(at).reset,
                });
            }
        }
        short
    }

    /// Every limit with what is left of it.
    pub(super) fn left(&self, at: At) -> impl Iterator<Item = (Limit, Left)> {
        self.cells
            .iter()
            .map(move |slot| (slot.limit, slot.cell.left(at)))
    }

    /// Whether forgetting it would grant nobody anything.
    pub(super) fn is_idle(&self, at: At) -> bool {
        self.cells.iter().all(|slot| slot.cell.is_idle(at))
    }
}

/// The accounts that one request is charged to, outermost first.
pub(super) type Accounts = [Option<Arc<Account>>; Scope::ALL.len()];

/// Takes `cost` from every account or from none, also if the future is dropped.
pub(super) async fn take(accounts: &Accounts, cost: Cost, clock: &Clock) -> Result<(), Short> {
    let mut taken = Taken {
        accounts,
        cost,
        cells: 0,
        clock,
    };
    for (account, slot, units) in all(accounts, cost) {
        let mut took = slot.cell.take(units, clock.at());
        if took.is_err()
            && let Some(refill) = slot.cell.refill(units)
        {
            refill.await;
            took = slot.cell.take(units, clock.at());
        }
        took.map_err(|wait| Short {
            scope: account.scope,
            limit: slot.limit,
            bound: slot.bound,
            wait,
        })?;
        taken.cells += 1;
    }
    taken.cells = 0;
    Ok(())
}

fn all(accounts: &Accounts, cost: Cost) -> impl Iterator<Item = (&Arc<Account>, &Slot, u64)> {
    let accounts = accounts.iter().flatten();
    accounts.flat_map(move |account| {
        let cells = account.costing(cost);
        cells.map(move |(slot, units)| (account, slot, units))
    })
}

/// Gives back what was taken so far, last first, unless it was everything.
struct Taken<'a> {
    accounts: &'a Accounts,
    cost: Cost,
    /// How many cells were taken from, in their order.
    cells: usize,
    clock: &'a Clock,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if self.cells == 0 {
            return;
        }
        let at = self.clock.at();
        for back in (0..self.cells).rev() {
            if let Some((_, slot, units)) = all(self.accounts, self.cost).nth(back) {
                slot.cell.give(units, at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::super::places::Places;
    use super::*;
    use crate::generation::BoxFuture;

    /// Has nothing, and never hears whether there is more.
    struct Silent;

    impl Cell for Silent {
        fn take(&self, _: u64, _: At) -> Result<(), Duration> {
            Err(Duration::ZERO)
        }

        fn charge(&self, _: u64, _: At) -> bool {
            false
        }

        fn give(&self, _: u64, _: At) {
            panic!("nothing was taken");
        }

        fn left(&self, _: At) -> Left {
            Left {
                limit: 1,
                remaining: 0,
                reset: Duration::ZERO,
                window: Duration::ZERO,
            }
        }

        fn is_idle(&self, _: At) -> bool {
            true
        }

        fn refill(&self, _: u64) -> Option<BoxFuture<'_, ()>> {
            Some(Box::pin(std::future::pending()))
        }
    }

    #[test]
    fn who_leaves_while_a_limit_is_asked_for_gives_back_what_was_taken_before() {
        let account = |limit, cell: Arc<dyn Cell>| {
            let slot = Slot {
                limit,
                bound: Bound::Places(1),
                cell,
            };
            let scope = Scope::Caller;
            let bounds = vec![(limit, slot.bound)];
            Some(Arc::new(Account {
                scope,
                terms: Arc::new(Terms { scope, bounds }),
                cells: Box::new([slot]),
            }))
        };
        let places = account(Limit::Streams, Arc::new(Places::new(1)));
        let silent = account(Limit::TokensPerMinute, Arc::new(Silent));
        let (accounts, clock) = ([places, silent, None, None], Clock::fake(0));
        let cost = Cost {
            streams: 1,
            output: 1,
            ..Cost::default()
        };
        let is_free = || accounts[0].as_ref().unwrap().is_idle(clock.at());
        let mut taking = Box::pin(take(&accounts, cost, &clock));
        let polled = taking
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending() && !is_free());
        drop(taking);
        assert!(is_free());
    }
}
