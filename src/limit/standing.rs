//! Where a caller stands with its limits, for headers to tell.

use super::account::Account;
use super::{At, Left, Limit};

/// What is left of the limits that a caller has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Requests, by the limit that has the fewest left.
    pub requests: Option<Left>,
    /// Tokens, by the limit that has the fewest left.
    pub tokens: Option<Left>,
    /// Every limit that time brings back, by its full name, the outermost scope first.
    pub limits: Vec<(&'static str, Left)>,
}

impl Standing {
    pub(super) fn add(&mut self, account: &Account, at: At) {
        for (limit, left) in account.left(at) {
            let tightest = match limit {
                // How many streams are open at the moment of an answer tells nobody when to ask again.
                Limit::Streams | Limit::Queued => continue,
                Limit::RequestsPerMinute | Limit::RequestsPerDay | Limit::RequestsPerMonth => {
                    &mut self.requests
                }
                _ => &mut self.tokens,
            };
            if tightest.is_none_or(|tightest| left.remaining < tightest.remaining) {
                *tightest = Some(left);
            }
            self.limits.push((limit.of(account.scope), left));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.limits.is_empty()
    }
}
