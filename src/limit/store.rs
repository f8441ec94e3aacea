//! Where the cells of a running gateway live: quotas in a ledger that outlives the process, and what
//! several nodes share at their server.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::cell::Tokens;
use super::config::Limits;
use super::places::Places;
use super::quota::{Ledger, Period, Quota};
use super::requests::Requests;
use super::shared::Shared;
use super::{Bound, Cell, Clock, Key, Limit, Store};
use crate::telemetry::LimitLoad;

/// The file in the state directory.
const FILE: &str = "quotas.json";

/// Makes the cells.
pub struct Kept {
    ledger: Arc<Ledger>,
    /// Where quotas are kept, if there are any.
    file: Option<PathBuf>,
    shared: Option<Shared>,
}

impl Kept {
    /// Reads what was used before, if any quota is set: from `limits.quota_file`, or in `state`.
    #[must_use]
    pub fn open(limits: &Limits, state: Option<&Path>, clock: &Clock) -> Self {
        let file = limits.quota_file.clone();
        let kept = Self {
            ledger: Arc::new(Ledger::open(None, clock)),
            file: file.or_else(|| Some(state?.join(FILE))),
            shared: limits.redis.as_ref().map(Shared::new),
        };
        kept.remember(limits);
        kept
    }

    /// Reads what was used before, if a quota is set now. Reads a file.
    pub fn remember(&self, limits: &Limits) {
        if !limits.has_quotas() {
            return;
        }
        if let Some(file) = &self.file {
            self.ledger.remember(file.clone());
        } else {
            tracing::warn!(
                "no state directory is known (server.state_dir): quotas are forgotten at the end"
            );
        }
    }

    /// Writes the ledger and speaks with the server until `stop`, and then for the last time. To be run
    /// once, in a task.
    pub fn keep(&self, stop: CancellationToken) -> impl Future<Output = ()> + Send + 'static {
        let writing = self.ledger.clone().keep(stop.clone());
        let sharing = self.shared.as_ref().map(|shared| shared.keep(stop));
        async move {
            let sharing = async move {
                if let Some(sharing) = sharing {
                    sharing.await;
                }
            };
            tokio::join!(writing, sharing);
        }
    }

    /// How it goes.
    #[must_use]
    pub fn load(&self) -> LimitLoad {
        let shared = self.shared.as_ref().map(Shared::health);
        LimitLoad {
            redis_up: shared.is_some_and(|health| health.is_up),
            nodes: shared.map_or(1, |health| health.nodes),
            redis_failures: shared.map_or(0, |health| health.failures),
            alone: shared.map_or(0, |health| health.alone),
            quota_failures: self.ledger.failures(),
        }
    }
}

impl Kept {
    /// A cell of this node alone.
    fn own(
        key: Key<'_>,
        bound: Bound,
        clock: &Clock,
        quota: impl FnOnce(Period, u64) -> Quota,
    ) -> Box<dyn Cell> {
        match bound {
            Bound::Rate { per_minute, burst } if key.limit == Limit::RequestsPerMinute => {
                Box::new(Requests::new(per_minute, burst, clock))
            }
            Bound::Rate { per_minute, burst } => Box::new(Tokens::new(per_minute, burst)),
            Bound::Places(most) => Box::new(Places::new(most)),
            Bound::Quota { period, most } => Box::new(quota(period, most)),
        }
    }
}

impl Store for Kept {
    fn cell(&self, key: Key<'_>, bound: Bound, clock: &Clock) -> Box<dyn Cell> {
        if let Some(shared) = &self.shared {
            let own = match bound {
                Bound::Quota { period, most } => Some(self.ledger.quota(key, period, most)),
                Bound::Rate { .. } | Bound::Places(_) => None,
            };
            if let Some(cell) = shared.cell(key, bound, own, clock) {
                return cell;
            }
        }
        let quota = |period, most| self.ledger.quota(key, period, most);
        Self::own(key, bound, clock, quota)
    }

    fn peek(&self, key: Key<'_>, bound: Bound, clock: &Clock) -> Box<dyn Cell> {
        let shared = self.shared.as_ref();
        if let Some(cell) = shared.and_then(|shared| shared.peek(key, bound)) {
            return cell;
        }
        // A rate that nobody holds is forgotten here, and so as good as new.
        let quota = |period, most| self.ledger.peek(key, period, most);
        Self::own(key, bound, clock, quota)
    }
}
