//! Deadlines, stalled readers and cancellation by id, for streams whether or not anybody polls them.
//!
//! A stream whose reader has stopped is not polled, so it cannot time itself out. One `Watch` holds
//! every open stream and sweeps them at a coarse tick; opening and closing a stream takes its lock,
//! tokens never do.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use slab::Slab;
use tokio::sync::Notify;

use super::shared::Shared;
use super::{Failure, Live, RequestId, clock};

/// How often open streams are looked at: the error of every deadline, and 40 sweeps a second of a
/// few nanoseconds per stream.
const TICK: Duration = Duration::from_millis(25);

/// Every open stream.
#[derive(Default)]
pub struct Watch {
    streams: Mutex<Slab<Arc<Shared>>>,
    /// Signalled when the first stream opens and when the last one closes.
    changed: Notify,
}

/// Keeps one stream in the watch; dropping it takes the stream out.
pub struct WatchGuard {
    watch: Arc<Watch>,
    key: usize,
    shared: Arc<Shared>,
}

impl Watch {
    /// A watch over no streams. Something must drive [`Watch::run`].
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    pub(super) fn enter(self: &Arc<Self>, shared: Arc<Shared>) -> WatchGuard {
        let mut streams = self.lock();
        if streams.is_empty() {
            self.changed.notify_waiters();
        }
        WatchGuard {
            key: streams.insert(shared.clone()),
            watch: self.clone(),
            shared,
        }
    }

    /// Open streams.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.lock().len()
    }

    /// Every open stream as it is now, in no order. The lock is held for a copy of as many pointers.
    #[must_use]
    pub fn list(&self) -> Vec<Live> {
        let streams: Vec<_> = self
            .lock()
            .iter()
            .map(|(_, shared)| shared.clone())
            .collect();
        let now = clock::task_micros();
        streams.iter().map(|shared| shared.live(now)).collect()
    }

    /// Cancels every open stream with this request id whose caller is `owner`; returns how many there were.
    /// Ids are chosen by callers, so one caller may guess another's.
    pub fn cancel(&self, id: &RequestId, owner: Option<&str>, failure: &Failure) -> usize {
        self.cut_where(|shared| {
            let is_theirs = shared.id == *id && shared.owner.as_deref() == owner;
            is_theirs.then(|| failure.clone())
        })
    }

    /// Ends every open stream of each owner for whom there is a verdict; returns how many there were. It is
    /// asked under a lock, once a stream.
    pub fn cut_owners(&self, verdict: impl Fn(&str) -> Option<Failure>) -> usize {
        self.cut_where(|shared| verdict(shared.owner.as_deref()?))
    }

    /// Ends every open stream with this failure; returns how many there were.
    pub fn cut_all(&self, failure: &Failure) -> usize {
        self.cut_where(|_| Some(failure.clone()))
    }

    /// Waits until no stream is open.
    pub async fn idle(&self) {
        self.until(Slab::is_empty).await;
    }

    /// Sweeps for ever. Sleeps without a timer while no stream is open.
    pub async fn run(&self) {
        loop {
            self.until(|streams| !streams.is_empty()).await;
            tokio::time::sleep(TICK).await;
            let now = clock::task_micros();
            self.cut_where(|shared| shared.overdue(now));
        }
    }

    async fn until(&self, reached: impl Fn(&Slab<Arc<Shared>>) -> bool) {
        loop {
            let changed = self.changed.notified();
            if reached(&self.lock()) {
                return;
            }
            changed.await;
        }
    }

    /// Ends the streams that have a verdict. They leave the watch at once: nobody may ever poll them
    /// again, and they hold nothing any more.
    fn cut_where(&self, verdict: impl Fn(&Shared) -> Option<Failure>) -> usize {
        let mut due = Vec::new();
        let mut streams = self.lock();
        streams.retain(|_, shared| match verdict(shared) {
            None => true,
            Some(failure) => {
                due.push((shared.clone(), failure));
                false
            }
        });
        let is_empty = streams.is_empty();
        // Closing a stream gives back permits and logs: not under the lock.
        drop(streams);
        let count = due.len();
        for (shared, failure) in due {
            shared.cut(failure);
        }
        if is_empty && count > 0 {
            self.changed.notify_waiters();
        }
        count
    }

    fn lock(&self) -> MutexGuard<'_, Slab<Arc<Shared>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for WatchGuard {
    fn drop(&mut self) {
        let mut streams = self.watch.lock();
        // A stream that was cut is out already, and its key may be another's by now.
        if streams
            .get(self.key)
            .is_some_and(|shared| Arc::ptr_eq(shared, &self.shared))
        {
            streams.remove(self.key);
            if streams.is_empty() {
                self.watch.changed.notify_waiters();
            }
        }
    }
}
