//! Limits that several nodes share through a real Redis server: exact while it answers, and without a
//! failing request while it does not.

mod away;
mod exact;
mod gateways;
mod scripts;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluicegate::limit::quota::Ledger;
use sluicegate::limit::shared::config::{Redis as Config, Url};
use sluicegate::limit::shared::{Health, Shared};
use sluicegate::limit::{Bound, Cell, Clock, Key, Limit, Scope};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::Redis;

/// The longest that anything here may take. Nothing waits for it unless it is broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node without a gateway: what it shares, and its courier.
struct Node {
    shared: Arc<Shared>,
    ledger: Ledger,
    clock: Clock,
    stop: CancellationToken,
    courier: JoinHandle<()>,
}

impl Node {
    /// A node that waits long for the server, so that a slow machine does not make it go on alone.
    fn patient(redis: &Redis) -> Self {
        Self::new(&config(&redis.url(), Duration::from_secs(1)))
    }

    /// A node that waits as long as it would in earnest.
    fn hasty(url: &str) -> Self {
        Self::new(&config(url, Duration::from_millis(5)))
    }

    fn new(config: &Config) -> Self {
        let (shared, clock) = (Arc::new(Shared::new(config)), Clock::real());
        let stop = CancellationToken::new();
        Self {
            courier: tokio::spawn(shared.keep(stop.clone())),
            ledger: Ledger::open(None, &clock),
            shared,
            clock,
            stop,
        }
    }

    fn cell(&self, name: &str, bound: Bound) -> Cells<'_> {
        let limit = match bound {
            Bound::Quota { .. } => Limit::TokensPerDay,
            _ => Limit::TokensPerMinute,
        };
        let key = Key {
            scope: Scope::Caller,
            name,
            model: None,
            limit,
        };
        let own = if let Bound::Quota { period, most } = bound {
            Some(self.ledger.quota(key, period, most))
        } else {
            None
        };
        let cell = self.shared.cell(key, bound, own, &self.clock);
        Cells {
            cell: cell.expect("rates and quotas are shared"),
            clock: &self.clock,
        }
    }

    fn health(&self) -> Health {
        self.shared.health()
    }

    async fn leave(self) {
        self.stop.cancel();
        self.courier.await.unwrap();
    }
}

/// A cell with the clock that it goes by.
struct Cells<'a> {
    cell: Box<dyn Cell>,
    clock: &'a Clock,
}

impl Cells<'_> {
    /// As the limiter does it.
    async fn take(&self, n: u64) -> Result<(), Duration> {
        if self.cell.take(n, self.clock.at()).is_ok() {
            return Ok(());
        }
        if let Some(refill) = self.cell.refill(n) {
            refill.await;
        }
        self.cell.take(n, self.clock.at())
    }

    fn left(&self) -> u64 {
        self.cell.left(self.clock.at()).remaining
    }

    /// Takes `n` at a time until nothing is left for a while; how often that went well. Meanwhile slices
    /// may come that were under way.
    async fn drain(&self, n: u64) -> u64 {
        let (mut taken, mut refusals) = (0, 0);
        while refusals < 3 {
            if self.take(n).await.is_ok() {
                taken += 1;
                continue;
            }
            refusals += 1;
            // What the server said is not believed for longer.
            tokio::time::sleep(Duration::from_millis(260)).await;
        }
        taken
    }
}

fn config(url: &str, timeout: Duration) -> Config {
    Config {
        url: Url::parse(url).unwrap(),
        timeout,
        nodes: None,
        prefix: "test".to_owned(),
    }
}

fn nodes(count: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(count)
}

/// So many at once, and next to nothing comes back.
fn once(burst: u64) -> Bound {
    Bound::Rate {
        per_minute: 1,
        burst,
    }
}

/// Looks until it is so.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what} takes too long");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    start.elapsed()
}
