//! The waiting line of a script that plays for a few at a time (`slots`): first come, first served.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use tokio::time::Instant;

use crate::engine::drain::{Drain, Forecast};
use crate::generation::{Deadlines, Failure, Kind, Queued, clock};

/// Who plays and who waits.
#[derive(Debug)]
pub(super) struct Slots {
    most: usize,
    /// Places in line.
    most_waiting: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    playing: usize,
    line: VecDeque<Arc<Turn>>,
    drain: Drain,
}

impl State {
    /// Lets as many begin as may.
    fn begin(&mut self, most: usize) {
        let mut begun = 0;
        while self.playing < most
            && let Some(next) = self.line.pop_front()
        {
            self.playing += 1;
            begun += 1;
            next.has_begun.store(true, SeqCst);
            next.waker.wake();
        }
        let now_us = clock::micros_of(Instant::now().into_std());
        let standing = u32::try_from(self.line.len()).unwrap_or(u32::MAX);
        self.drain.look(now_us, begun, standing);
    }

    fn forecast(&self) -> Forecast {
        Forecast::measured(&self.drain)
    }
}

#[derive(Debug, Default)]
struct Turn {
    has_begun: AtomicBool,
    waker: AtomicWaker,
}

impl Slots {
    pub(super) fn new(most: u32, most_waiting: u32) -> Arc<Self> {
        let size = |count| usize::try_from(count).unwrap_or(usize::MAX);
        Arc::new(Self {
            most: size(most),
            most_waiting: size(most_waiting),
            state: Mutex::default(),
        })
    }

    /// Takes `count` places, playing or in line, all or none.
    pub(super) fn take(
        self: &Arc<Self>,
        count: usize,
        deadlines: &Deadlines,
    ) -> Result<Vec<Slot>, Failure> {
        let mut state = self.lock();
        let places = self.most.saturating_add(self.most_waiting);
        if count > places {
            return Err(Failure::invalid(
                "n",
                format!("This model serves at most {places} choices at once."),
            ));
        }
        if state.playing >= self.most {
            state.forecast().check(state.line.len() as u64, deadlines)?;
        }
        if state.playing + state.line.len() + count > places {
            let waiting = u32::try_from(state.line.len()).unwrap_or(u32::MAX);
            return Err(Failure::new(
                Kind::Overloaded,
                "All slots of this script are taken and its waiting line is full.",
            )
            .with_code("queue_full")
            .with_retry_after(state.forecast().retry_after(waiting)));
        }
        let turns: Vec<_> = (0..count).map(|_| Arc::new(Turn::default())).collect();
        state.line.extend(turns.iter().cloned());
        state.begin(self.most);
        drop(state);
        let slot = |turn| Slot {
            slots: self.clone(),
            turn,
        };
        Ok(turns.into_iter().map(slot).collect())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who waits.
    pub(super) fn waiting(&self) -> usize {
        self.lock().line.len()
    }
}

/// A place, given back by being dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    turn: Arc<Turn>,
}

impl Slot {
    /// Ready when it is this one's turn.
    pub(super) fn poll_begun(&self, cx: &Context<'_>) -> Poll<()> {
        self.turn.waker.register(cx.waker());
        if self.turn.has_begun.load(SeqCst) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Where it stands in line, if it does.
    pub(super) fn queued(&self) -> Option<Queued> {
        if self.turn.has_begun.load(SeqCst) {
            return None;
        }
        let state = self.slots.lock();
        let mut line = state.line.iter();
        let ahead = line.position(|turn| Arc::ptr_eq(turn, &self.turn))?;
        Some(Queued {
            position: u32::try_from(ahead).unwrap_or(u32::MAX).saturating_add(1),
            estimate: state.forecast().wait(ahead as u64),
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.slots.lock();
        if self.turn.has_begun.load(SeqCst) {
            state.playing -= 1;
            state.begin(self.slots.most);
        } else {
            state.line.retain(|turn| !Arc::ptr_eq(turn, &self.turn));
        }
    }
}
