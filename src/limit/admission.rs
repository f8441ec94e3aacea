//! What one admitted request holds, from its admission to the end of its stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::account::{Account, Accounts, Cost, Short};
use super::config::WhenDry;
use super::estimate::Estimate;
use super::limiter::Work;
use super::{At, Clock, refusal};
use crate::generation::{Class, Ending, Meter, UsedUp};
use crate::telemetry::Metrics;

/// A request that may begin. Dropped, it gives everything back that it reserved and did not use; the
/// request itself stays counted.
pub struct Admission {
    hold: Arc<Hold>,
    weight: u16,
    most_urgent: Option<Class>,
}

impl Admission {
    pub(super) fn new(hold: Hold, weight: u16, most_urgent: Option<Class>) -> Self {
        Self {
            hold: Arc::new(hold),
            weight,
            most_urgent,
        }
    }

    /// The caller's share of the engine relative to others'.
    #[must_use]
    pub fn weight(&self) -> u16 {
        self.weight
    }

    /// How urgent the request may be that asks for `class`.
    #[must_use]
    pub fn urgency(&self, class: Class) -> Class {
        self.most_urgent.map_or(class, |most| class.min(most))
    }

    /// The engine is about to work on it: from now on the estimate of its prompts is charged, also to
    /// whoever leaves before their real length is known.
    pub fn begins(&self) {
        self.hold.has_begun.store(true, Relaxed);
    }

    /// The engine refused it, or failed: the prompts are given back.
    pub fn came_to_nothing(&self) {
        self.hold.has_begun.store(false, Relaxed);
    }

    /// The prompts turned out to have so many tokens: they are charged, instead of the estimate.
    pub fn began(&self, prompt_tokens: u32) {
        self.hold.began(u64::from(prompt_tokens));
    }

    /// What the stream is charged to from now on.
    #[must_use]
    pub fn into_meter(self) -> Arc<dyn Meter> {
        self.hold
    }
}

/// What was taken at admission.
pub(super) struct Reserved {
    pub(super) accounts: Accounts,
    pub(super) cost: Cost,
    /// When.
    pub(super) at: At,
    pub(super) text_bytes: u64,
    pub(super) work: Work,
}

/// What is held of it now.
pub(super) struct Hold {
    reserved: Reserved,
    /// Prompt tokens that are charged.
    input: AtomicU64,
    /// Generated tokens that are paid for and were not delivered yet.
    left: AtomicU64,
    delivered: AtomicU64,
    /// Whether the engine took the request, and nobody has given it up before its first token.
    has_begun: AtomicBool,
    /// Whether it still has a place among those that wait.
    is_queued: AtomicBool,
    is_over: AtomicBool,
    estimate: Option<Arc<Estimate>>,
    when_dry: WhenDry,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl Hold {
    pub(super) fn new(
        reserved: Reserved,
        estimate: Option<Arc<Estimate>>,
        when_dry: WhenDry,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        let cost = reserved.cost;
        Self {
            reserved,
            input: AtomicU64::new(cost.input),
            left: AtomicU64::new(cost.output),
            delivered: AtomicU64::new(0),
            has_begun: AtomicBool::new(false),
            is_queued: AtomicBool::new(cost.queued > 0),
            is_over: AtomicBool::new(false),
            estimate,
            when_dry,
            clock,
            metrics,
        }
    }

    fn accounts(&self) -> impl Iterator<Item = &Arc<Account>> {
        self.reserved.accounts.iter().flatten()
    }

    fn give(&self, cost: Cost, at: At) {
        // The innermost first, as it was taken last.
        for account in self.reserved.accounts.iter().rev().flatten() {
            account.give(cost, self.reserved.at, at);
        }
    }

    fn charge_all(&self, cost: Cost, at: At) -> Option<Short> {
        // All of them, also after one that is short.
        self.accounts()
            .map(|account| account.charge(cost, at))
            .fold(None, Option::or)
    }

    fn began(&self, tokens: u64) {
        self.has_begun.store(true, Relaxed);
        let estimated = self.input.swap(tokens, Relaxed);
        let at = self.clock.at();
        let input = |input| Cost {
            input,
            ..Cost::default()
        };
        if tokens > estimated {
            // That they are short now is found out with the first token that is not reserved.
            let _ = self.charge_all(input(tokens - estimated), at);
        } else {
            self.give(input(estimated - tokens), at);
        }
        if let Some(estimate) = &self.estimate {
            estimate.learn_input(self.reserved.text_bytes, tokens);
        }
    }

    /// It waits no more.
    fn leave_line(&self) {
        if self.is_queued.load(Relaxed) && self.is_queued.swap(false, Relaxed) {
            let cost = Cost {
                queued: 1,
                ..Cost::default()
            };
            self.give(cost, self.clock.at());
        }
    }

    fn learn(&self) {
        // An answer that was bounded says nothing about those that are not.
        if let Work::Generate {
            choices,
            max_tokens: None,
        } = self.reserved.work
            && let Some(estimate) = &self.estimate
        {
            let delivered = self.delivered.load(Relaxed);
            // Who was sent away or left before the first token had no answer of any length.
            if delivered > 0 {
                estimate.learn_output(delivered / u64::from(choices.max(1)));
            }
        }
    }
}

impl Meter for Hold {
    fn charge(&self, tokens: u32) -> Result<(), UsedUp> {
        self.leave_line();
        let tokens = u64::from(tokens);
        self.delivered.fetch_add(tokens, Relaxed);
        let reserved = self
            .left
            .fetch_update(Relaxed, Relaxed, |left| Some(left.saturating_sub(tokens)));
        let (Ok(reserved) | Err(reserved)) = reserved;
        let beyond = tokens.saturating_sub(reserved);
        if beyond == 0 {
            return Ok(());
        }
        let cost = Cost {
            output: beyond,
            ..Cost::default()
        };
        let Some(short) = self.charge_all(cost, self.clock.at()) else {
            return Ok(());
        };
        self.metrics.limits.ran_dry(short.scope, short.limit);
        Err(UsedUp {
            limit: short.limit.of(short.scope),
            end: match self.when_dry {
                WhenDry::Length => Ending::Length,
                WhenDry::Error => Ending::Failed(refusal::dry(&short)),
            },
        })
    }

    fn forgive(&self) {
        self.has_begun.store(false, Relaxed);
    }

    fn settle(&self) {
        if self.is_over.swap(true, Relaxed) {
            return;
        }
        let has_begun = self.has_begun.load(Relaxed);
        let unused = Cost {
            streams: self.reserved.cost.streams,
            queued: u64::from(self.is_queued.swap(false, Relaxed)),
            requests: 0,
            // Nothing was computed for one that never began.
            input: if has_begun {
                0
            } else {
                self.input.load(Relaxed)
            },
            output: self.left.swap(0, Relaxed),
        };
        self.give(unused, self.clock.at());
        if has_begun {
            self.learn();
            if self.accounts().next().is_some() {
                let input = self.input.load(Relaxed);
                let output = self.delivered.load(Relaxed);
                self.metrics.limits.charged(input, output);
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.settle();
    }
}
