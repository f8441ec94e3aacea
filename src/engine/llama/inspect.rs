//! Shows the engine to whoever looks, between two steps and without making anybody wait.

use std::sync::atomic::{
    AtomicBool,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::LlamaEngine;
use super::sequence::{GRID, Sequence, count};
use super::worker::{Slot, Worker};
use crate::engine::view::{
    EngineView, KvView, RecentCalls, SequenceState, SequenceView, WaitingView,
};
use crate::engine::{Engine, Gauges};
use crate::generation::{Failure, Kind, clock};

/// Who may wait for a look at once. More are refused.
const MOST_WATCHERS: usize = 16;

/// How long a look may take: a call that is under way is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Those who want to look.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    /// Whether there is anybody: all that a step looks at.
    are_there: AtomicBool,
    waiting: Mutex<Vec<oneshot::Sender<EngineView>>>,
}

impl Watchers {
    /// Waits for a look, if there are not too many who do.
    fn join(&self) -> Option<oneshot::Receiver<EngineView>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|other| !other.is_closed());
        if waiting.len() >= MOST_WATCHERS {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        waiting.push(sender);
        self.are_there.store(true, SeqCst);
        Some(receiver)
    }

    /// Those who wait, if there are any and none is joining them now: who joins wakes the engine after
    /// that.
    fn take(&self) -> Vec<oneshot::Sender<EngineView>> {
        if !self.are_there.load(SeqCst) {
            return Vec::new();
        }
        let mut waiting = match self.waiting.try_lock() {
            Ok(waiting) => waiting,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Vec::new(),
        };
        self.are_there.store(false, SeqCst);
        std::mem::take(&mut waiting)
    }
}

impl LlamaEngine {
    pub(super) async fn look(&self) -> Result<EngineView, Failure> {
        if self.stopping.load(Relaxed) {
            return Err(Failure::new(Kind::NotReady, "The model has been stopped."));
        }
        let receiver = self.counters.watchers.join().ok_or_else(|| {
            Failure::new(Kind::Overloaded, "Too many look at this model already.")
                .with_retry_after(PATIENCE)
        })?;
        self.thread.unpark();
        let view = tokio::time::timeout(PATIENCE, receiver).await;
        let Ok(Ok(mut view)) = view else {
            return Err(Failure::new(
                Kind::NotReady,
                "The engine has not come to the end of a step within a second.",
            )
            .with_retry_after(PATIENCE));
        };
        let Gauges { load, layout } = self.gauges();
        view.load = load;
        if let Some(kv) = &mut view.kv {
            layout.name.clone_into(&mut kv.layout);
        }
        Ok(view)
    }
}

impl Worker {
    /// Shows the engine to those who wait for it.
    pub(super) fn show(&self) {
        let mut watchers = self.setup.counters.watchers.take();
        if let Some(last) = watchers.pop() {
            let view = self.view();
            for watcher in watchers {
                let _ = watcher.send(view.clone());
            }
            let _ = last.send(view);
        }
    }

    fn view(&self) -> EngineView {
        let now_us = clock::micros();
        let running = self.slots.iter().filter_map(Slot::sequence).count();
        let sequences = (0..).zip(&self.slots);
        let sequences = sequences.filter_map(|(id, slot)| Some((id, slot.sequence()?)));
        let sequences: Vec<_> = sequences
            .take(EngineView::MOST)
            .map(|(id, sequence)| self.view_of(id, sequence, now_us))
            .collect();
        let in_line = self.waiting.iter().count();
        let line = self.waiting.iter().take(EngineView::MOST);
        let mut line: Vec<_> = line.map(|sequence| sequence.in_line(now_us)).collect();
        line.sort_by_key(|waiting| waiting.place.wrapping_sub(1));
        EngineView {
            kv: Some(self.view_of_cells()),
            recent: RecentCalls {
                decode_us: self.rates.decode_us,
                prefill_token_ns: self.rates.prefill_row_ns,
            },
            more_sequences: count(running.saturating_sub(sequences.len())),
            sequences,
            more_in_line: count(in_line.saturating_sub(line.len())),
            line,
            ..EngineView::default()
        }
    }

    fn view_of(&self, id: u32, sequence: &Sequence, now_us: u64) -> SequenceView {
        let (cells, shared_cells) = if self.limits.pooled {
            let held = count(sequence.pages.len());
            let private = self.pages.private(&sequence.pages);
            (held * GRID, (held - private) * GRID)
        } else {
            (self.cells_of_an_id(), 0)
        };
        let job = &sequence.job;
        SequenceView {
            request: job.request.clone(),
            choice: job.choice,
            tenant: short(job.tenant),
            class: job.class,
            id,
            state: if sequence.paused_since_us.is_some() {
                SequenceState::Paused
            } else if sequence.follows {
                SequenceState::Follows
            } else if sequence.is_in_prefill() {
                SequenceState::Prefill
            } else {
                SequenceState::Decode
            },
            cells,
            shared_cells,
            computed: sequence.position,
            prompt_tokens: sequence.prompt_len(),
            cached_tokens: sequence.cached,
            generated: sequence.generated_len(),
            admitted_us: now_us.saturating_sub(sequence.admitted_us),
            served_us: now_us.saturating_sub(sequence.served_us),
        }
    }

    fn view_of_cells(&self) -> KvView {
        let capacity = self.limits.cells;
        let cells = |pages: u32| u64::from(pages) * u64::from(GRID);
        let mut prefixes: Vec<u32>;
        let (running, kept) = if self.limits.pooled {
            prefixes = (self.kept.iter())
                .map(|kept| count(kept.keys.len()) * GRID)
                .collect();
            let idle = self.pages.idle();
            let held = self.pages.total() - self.pages.free() - idle;
            (cells(held), cells(idle))
        } else {
            let of_ended = |slot: &Slot| match slot {
                Slot::Ended { keys } => Some(count(keys.len()) * GRID),
                Slot::Free | Slot::Busy(_) => None,
            };
            prefixes = self.slots.iter().filter_map(of_ended).collect();
            let busy = self.slots.iter().filter_map(Slot::sequence).count() as u64;
            let kept = prefixes.iter().map(|&kept| u64::from(kept)).sum();
            (busy * u64::from(self.cells_of_an_id()), kept)
        };
        prefixes.sort_unstable_by(|a, b| b.cmp(a));
        prefixes.truncate(EngineView::MOST);
        KvView {
            layout: String::new(),
            capacity,
            running,
            kept,
            free: capacity.saturating_sub(running + kept),
            prefixes,
        }
    }

    /// Cells of each id of a split cache.
    fn cells_of_an_id(&self) -> u32 {
        let each = self.limits.cells / u64::from(self.limits.ids.max(1));
        u32::try_from(each).unwrap_or(u32::MAX)
    }
}

impl Sequence {
    fn in_line(&self, now_us: u64) -> WaitingView {
        WaitingView {
            request: self.job.request.clone(),
            choice: self.job.choice,
            tenant: short(self.job.tenant),
            class: self.job.class,
            place: self.job.ring.queued().map_or(0, |queued| queued.position),
            prompt_tokens: self.prompt_len(),
            generated: self.generated_len(),
            is_parked: self.parked.is_some(),
            waited_us: now_us.saturating_sub(self.arrived_us),
        }
    }
}

/// A tenant's number for people: half of it tells them apart.
fn short(tenant: u64) -> u32 {
    u32::try_from(tenant >> 32).unwrap_or(u32::MAX)
}
