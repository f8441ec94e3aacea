//! Entries of the ledger: one of each caller, organization and model that has a quota.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::{Key, Scope};
use super::calendar::Period;
use super::counter::Counter;
use super::file::Used;

/// The scope of the entry that callers beyond the most share.
const REST: &str = "rest";

/// Who has used how much.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) configured: HashMap<Name, Arc<Counts>>,
    pub(super) callers: HashMap<Name, Arc<Counts>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Name {
    pub(super) scope: Box<str>,
    pub(super) name: Box<str>,
}

/// What one caller, organization or model has used: one counter per unit and period.
#[derive(Debug, Default)]
pub(super) struct Counts {
    requests_day: Counter,
    requests_month: Counter,
    tokens_day: Counter,
    tokens_month: Counter,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Requests,
    Tokens,
}

impl Entries {
    /// Where an entry is or would be, and under which name.
    pub(super) fn place(
        &mut self,
        name: Name,
        most: usize,
    ) -> (&mut HashMap<Name, Arc<Counts>>, Name) {
        let mut configured = [Scope::Organization, Scope::Model].into_iter();
        if configured.any(|scope| scope.as_str() == &*name.scope) {
            return (&mut self.configured, name);
        }
        let has_room = self.callers.len() < most || self.callers.contains_key(&name);
        let rest = || Name {
            scope: REST.into(),
            name: "".into(),
        };
        let name = if has_room { name } else { rest() };
        (&mut self.callers, name)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&Name, &Arc<Counts>)> {
        self.configured.iter().chain(&self.callers)
    }
}

impl Name {
    pub(super) fn of(key: Key<'_>) -> Self {
        Self {
            scope: key.scope.as_str().into(),
            name: match key.model {
                Some(model) => format!("{} on {model}", key.name).into(),
                None => key.name.into(),
            },
        }
    }
}

impl Counts {
    pub(super) fn of(&self, unit: Unit, period: Period) -> &Counter {
        match (unit, period) {
            (Unit::Requests, Period::Day) => &self.requests_day,
            (Unit::Requests, Period::Month) => &self.requests_month,
            (Unit::Tokens, Period::Day) => &self.tokens_day,
            (Unit::Tokens, Period::Month) => &self.tokens_month,
        }
    }

    pub(super) fn is_current(&self, now: u64) -> bool {
        [Period::Day, Period::Month].into_iter().any(|period| {
            let used = |unit| self.of(unit, period).used(period, now).0;
            used(Unit::Requests) > 0 || used(Unit::Tokens) > 0
        })
    }

    pub(super) fn used(&self) -> Vec<Used> {
        let mut found: Vec<Used> = Vec::new();
        for period in [Period::Day, Period::Month] {
            for unit in [Unit::Requests, Unit::Tokens] {
                let (index, used) = self.of(unit, period).kept();
                if used == 0 {
                    continue;
                }
                let text = period.text(index);
                let (requests, tokens) = match unit {
                    Unit::Requests => (used, 0),
                    Unit::Tokens => (0, used),
                };
                match found.iter_mut().find(|known| known.period == text) {
                    Some(known) => {
                        known.requests += requests;
                        known.tokens += tokens;
                    }
                    None => found.push(Used {
                        period: text,
                        requests,
                        tokens,
                    }),
                }
            }
        }
        found
    }
}
