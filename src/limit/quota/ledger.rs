//! Who has used how much of a quota today and this month, kept over restarts.
//!
//! Counting never waits: counters are atomic words, and a task of its own writes what has changed to
//! the file, at most once a second, off the runtime's threads. A crash loses at most that second. When
//! the file cannot be written, counting goes on in memory, and a log line and a metric say so.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use super::super::{At, Cell, Clock, Key, Left, Limit};
use super::calendar::Period;
use super::counter::Counter;
use super::entries::{Counts, Entries, Name, Unit};
use super::file::{Line, Place};

/// Most entries of callers, of about 200 bytes each in memory and in the file. Only who has a quota has
/// one, and those of a month that is over go. Callers beyond share one entry. Organizations and models are
/// as many as the configuration names, and always have their own.
const MOST: usize = 65_536;

/// Between two writes at the least: what a crash may lose.
const PACE: Duration = Duration::from_secs(1);

/// Every quota's use.
pub struct Ledger {
    entries: Mutex<Entries>,
    most: usize,
    signal: Arc<Signal>,
    place: OnceLock<Mutex<Place>>,
    failures: AtomicU64,
    /// Whether the last write failed: only the first of a row is logged.
    is_failing: AtomicBool,
    clock: Clock,
}

/// Something was counted that is not in the file.
#[derive(Debug, Default)]
struct Signal {
    changed: AtomicBool,
    wake: Notify,
}

impl Signal {
    fn set(&self) {
        if !self.changed.load(Ordering::Relaxed) && !self.changed.swap(true, Ordering::Relaxed) {
            self.wake.notify_one();
        }
    }
}

/// A quota of somebody: so many of something in a day or a month.
#[derive(Clone, Debug)]
pub struct Quota {
    counts: Arc<Counts>,
    signal: Arc<Signal>,
    unit: Unit,
    period: Period,
    most: u64,
}

impl Ledger {
    /// Reads what was used before from the file at `path`, if there is one; without a path everything
    /// is forgotten at the end. Never fails: what cannot be read or written costs a log line.
    #[must_use]
    pub fn open(path: Option<PathBuf>, clock: &Clock) -> Self {
        Self::with(path, MOST, clock)
    }

    fn with(path: Option<PathBuf>, most: usize, clock: &Clock) -> Self {
        let ledger = Self {
            entries: Mutex::default(),
            most,
            signal: Arc::default(),
            place: OnceLock::new(),
            failures: AtomicU64::new(0),
            is_failing: AtomicBool::new(false),
            clock: clock.clone(),
        };
        if let Some(path) = path {
            ledger.remember(path);
        }
        ledger
    }

    /// From now on nothing is forgotten at the end: what was used before is read from the file at `path`,
    /// and added to what was used since. Once there is a file it stays.
    pub fn remember(&self, path: PathBuf) {
        let place = self.place.get_or_init(|| Mutex::new(Place::new(path)));
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        self.absorb_or_warn(&mut place);
    }

    /// The quota of somebody, with what was used of it.
    #[must_use]
    pub fn quota(&self, key: Key<'_>, period: Period, most: u64) -> Quota {
        self.quota_of(self.counts(Name::of(key)), key.limit, period, most)
    }

    /// The same to look at: nobody gets an entry here.
    #[must_use]
    pub fn peek(&self, key: Key<'_>, period: Period, most: u64) -> Quota {
        let mut entries = self.lock();
        let (of, name) = entries.place(Name::of(key), self.most);
        let counts = of.get(&name).cloned().unwrap_or_default();
        drop(entries);
        self.quota_of(counts, key.limit, period, most)
    }

    fn quota_of(&self, counts: Arc<Counts>, limit: Limit, period: Period, most: u64) -> Quota {
        Quota {
            counts,
            signal: self.signal.clone(),
            unit: match limit {
                Limit::RequestsPerMinute | Limit::RequestsPerDay | Limit::RequestsPerMonth => {
                    Unit::Requests
                }
                _ => Unit::Tokens,
            },
            period,
            most,
        }
    }

    /// Writes what changes until `stop`, and then once more. To be run once, in a task.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) {
        while stop
            .run_until_cancelled(self.signal.wake.notified())
            .await
            .is_some()
        {
            let began = Instant::now();
            self.clone().save().await;
            // A large file on a slow disk is written less often: a tenth of the time at most.
            let pause = PACE.max(began.elapsed().saturating_mul(10));
            if stop.run_until_cancelled(time::sleep(pause)).await.is_none() {
                break;
            }
        }
        self.save().await;
    }

    /// Times that the file could not be written since the start.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    async fn save(self: Arc<Self>) {
        let saving = tokio::task::spawn_blocking(move || self.save_now());
        if saving.await.is_err() {
            tracing::error!("writing quotas panicked");
        }
    }

    /// One write, if anything has changed.
    fn save_now(&self) {
        let Some(place) = self.place.get() else {
            self.signal.changed.store(false, Ordering::Relaxed);
            self.prune();
            return;
        };
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.signal.changed.swap(false, Ordering::Relaxed) {
            return;
        }
        self.prune();
        // Another process may have had the file until now.
        if !self.absorb_or_warn(&mut place) {
            self.signal.set();
            return;
        }
        match place.write(self.lines()) {
            Ok(()) => {
                if self.is_failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(file = %place.path().display(), "quotas are written again");
                }
            }
            Err(error) => {
                self.failed(&place, &error);
                self.signal.set();
            }
        }
    }

    /// Takes the file over, unless that was done before. Says whether it may be written.
    fn absorb_or_warn(&self, place: &mut Place) -> bool {
        match place.open() {
            Ok(lines) => {
                self.absorb(lines.unwrap_or_default());
                true
            }
            Err(error) => {
                self.failed(place, &error);
                false
            }
        }
    }

    fn failed(&self, place: &Place, error: &std::io::Error) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        if !self.is_failing.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                file = %place.path().display(), %error,
                "quotas are not written; a restart would forget what is used now"
            );
        }
    }

    fn absorb(&self, lines: Vec<Line>) {
        for line in lines {
            let counts = self.counts(Name {
                scope: line.scope.into(),
                name: line.name.into(),
            });
            for used in line.used {
                for period in [Period::Day, Period::Month] {
                    if let Some(index) = period.parse(&used.period) {
                        counts
                            .of(Unit::Requests, period)
                            .raise(index, used.requests);
                        counts.of(Unit::Tokens, period).raise(index, used.tokens);
                    }
                }
            }
        }
    }

    fn lines(&self) -> Vec<Line> {
        let entries: Vec<_> = {
            let entries = self.lock();
            entries
                .all()
                .map(|(name, counts)| (name.clone(), counts.clone()))
                .collect()
        };
        let mut lines: Vec<_> = entries
            .into_iter()
            .map(|(name, counts)| Line {
                scope: name.scope.into(),
                name: name.name.into(),
                used: counts.used(),
            })
            .filter(|line| !line.used.is_empty())
            .collect();
        lines.sort_by(|a, b| (&a.scope, &a.name).cmp(&(&b.scope, &b.name)));
        lines
    }

    fn counts(&self, name: Name) -> Arc<Counts> {
        let mut entries = self.lock();
        let (of, name) = entries.place(name, self.most);
        of.entry(name).or_default().clone()
    }

    /// Drops who has used nothing this month and is not here.
    fn prune(&self) {
        let now = self.clock.at().unix;
        let mut entries = self.lock();
        let Entries {
            configured,
            callers,
        } = &mut *entries;
        for entries in [configured, callers] {
            entries.retain(|_, counts| Arc::strong_count(counts) > 1 || counts.is_current(now));
            if entries.capacity() > 64 + 4 * entries.len() {
                entries.shrink_to_fit();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Quota {
    fn counter(&self) -> &Counter {
        self.counts.of(self.unit, self.period)
    }
}

impl Cell for Quota {
    fn take(&self, n: u64, at: At) -> Result<(), Duration> {
        let taken = self.counter().take(self.period, at.unix, n, self.most);
        if taken.is_ok() {
            self.signal.set();
        }
        taken
    }

    fn charge(&self, n: u64, at: At) -> bool {
        let used = self.counter().add(self.period, at.unix, n);
        self.signal.set();
        used < self.most
    }

    /// What was taken before midnight and is given back after it makes the new day's use less, as far
    /// as there is any.
    fn give(&self, n: u64, at: At) {
        self.counter().give_back(self.period, at.unix, n);
        self.signal.set();
    }

    fn left(&self, at: At) -> Left {
        let (used, reset) = self.counter().used(self.period, at.unix);
        Left {
            limit: self.most,
            remaining: self.most.saturating_sub(used),
            reset,
            window: self.period.length(at.unix),
        }
    }

    /// The ledger remembers.
    fn is_idle(&self, _: At) -> bool {
        true
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger")
            .field("entries", &self.lock().all().count())
            .field("failures", &self.failures())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
