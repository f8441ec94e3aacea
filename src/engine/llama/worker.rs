//! The engine thread: one per model, owner of its context, batch and KV cells.
//!
//! ```text
//! loop {
//!   inbox, cancellations, queue deadlines       new work arrives tokenized, checked and priced
//!   admit while a sequence id and its cells are free
//!   call 1: one row per decoding sequence whose ring has room -> sample -> push; wake readers once
//!   call 2: one bounded chunk of prompts -> sample the last row of a finished prompt; wake
//!   nothing to do: park until a request, a cancellation or a reader unparks us
//! }
//! ```
//!
//! It never tokenizes, formats, waits for a reader or takes a lock that a request holds. A sequence
//! whose ring is full leaves the batch with its cells kept, and returns when its reader has caught up.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Relaxed, SeqCst},
};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use super::adapters::AdapterSet;
use super::ffi::{Batch, Context, LlamaError};
use super::sampling::{Sampler, Scratch, logprobs};
use super::schedule::{self, Cells, Prefill, Run};
use crate::engine::ring::{End, Ring, Slot};
use crate::generation::{Failure, Finish, Kind, clock};
use crate::telemetry::ModelMetrics;

/// Longest sleep of an idle engine. It is woken by unpark; this only bounds the harm of a lost one.
const IDLE: Duration = Duration::from_secs(1);

/// What the engine tells about itself, for metrics. Written by the engine thread, read by anybody.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Sequences accepted and not ended: running and waiting.
    pub(super) accepted: AtomicU32,
    /// Sequences with KV cells.
    pub(super) running: AtomicU32,
    /// Running sequences out of the batch because their reader is behind.
    pub(super) paused: AtomicU32,
    /// How often a sequence has left the batch for its reader.
    pub(super) pauses: AtomicU64,
    /// KV cells holding tokens.
    pub(super) kv_used: AtomicU64,
}

/// A place among the accepted sequences, given back when the sequence ends.
pub(super) struct Place(Arc<Counters>);

impl Place {
    /// Takes `count` places, all or none, if no more than `limit` are then taken.
    pub(super) fn take(counters: &Arc<Counters>, count: u32, limit: u32) -> Option<Vec<Self>> {
        counters
            .accepted
            .try_update(AcqRel, Relaxed, |taken| {
                taken.checked_add(count).filter(|&sum| sum <= limit)
            })
            .ok()?;
        Some((0..count).map(|_| Self(counters.clone())).collect())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.accepted.fetch_sub(1, AcqRel);
    }
}

/// One sequence as it is handed to the engine.
pub(super) struct Job {
    /// The prompt; at least one token, fewer than a sequence's cells.
    pub(super) prompt: Arc<[u32]>,
    /// Most tokens to generate; prompt and these fit a sequence's cells.
    pub(super) budget: u32,
    pub(super) sampler: Sampler,
    /// Likeliest tokens to report beside each one; `None` for no log-probabilities.
    pub(super) logprobs: Option<u8>,
    /// What it is computed with; a call computes one set only.
    pub(super) adapters: Option<Arc<AdapterSet>>,
    pub(super) ring: Arc<Ring>,
    /// When its request was accepted.
    pub(super) accepted: Instant,
    /// Give up when not admitted by then.
    pub(super) queue_deadline: Option<(Instant, Duration)>,
    /// Held until the sequence ends.
    pub(super) place: Option<Place>,
}

impl Job {
    fn cells(&self) -> u32 {
        u32::try_from(self.prompt.len())
            .unwrap_or(u32::MAX)
            .saturating_add(self.budget)
    }

    /// Sets the end that its reader will see. Its place is free before: who has seen the end may come
    /// with the next request at once.
    fn end(&mut self, end: End) {
        self.place = None;
        self.ring.end(end);
    }

    fn fail(&mut self, failure: Failure) {
        self.end(End::Failed(failure));
        self.ring.wake();
    }
}

impl Drop for Job {
    /// Whatever takes a job away, its reader learns of an end. The first end stands, so this is for
    /// the ways out that set none: a panic of the engine thread, or its stop.
    fn drop(&mut self) {
        self.fail(if std::thread::panicking() {
            Failure::internal("the engine thread panicked")
        } else {
            Failure::new(
                Kind::Draining,
                "The model was stopped before the generation was complete.",
            )
        });
    }
}

/// A job with cells.
struct Sequence {
    job: Job,
    /// Prompt tokens computed.
    prefilled: u32,
    /// Tokens in the KV cache.
    position: u32,
    generated: u32,
    /// The token that the next row computes.
    next: u32,
    paused: bool,
    cells: u32,
}

impl Sequence {
    /// Only sequences of one group share a call.
    fn group(&self) -> u16 {
        AdapterSet::group_of(self.job.adapters.as_ref())
    }

    fn prompt_len(&self) -> u32 {
        u32::try_from(self.job.prompt.len()).unwrap_or(u32::MAX)
    }
}

/// What the thread is run with.
pub(super) struct Setup {
    pub(super) context: Context,
    pub(super) inbox: Receiver<Vec<Job>>,
    pub(super) counters: Arc<Counters>,
    pub(super) metrics: Arc<ModelMetrics>,
    pub(super) stopping: Arc<AtomicBool>,
    /// Raised when a sequence was cancelled.
    pub(super) cancelled: Arc<AtomicBool>,
    pub(super) cells: u64,
    pub(super) sequences: u32,
    /// Most rows of one decode call.
    pub(super) decode_rows: u32,
    /// Prompt tokens per step while others decode.
    pub(super) prefill_chunk: u32,
    /// Prompt tokens per step otherwise; the context's batch size.
    pub(super) batch: u32,
    /// One prompt per prefill call.
    pub(super) one_prompt_per_call: bool,
    /// For each token, whether it ends a generation.
    pub(super) eog: Arc<[bool]>,
}

/// Runs the engine until it is told to stop or every handle is gone.
pub(super) fn run(setup: Setup) {
    let slots = (0..setup.sequences).map(|_| None).collect();
    let mut worker = Worker {
        batch: Batch::with_capacity(setup.batch as usize),
        cells: Cells::new(setup.cells),
        slots,
        waiting: VecDeque::new(),
        next_deadline: None,
        rows: Vec::new(),
        prefills: Vec::new(),
        runs: Vec::new(),
        scratch: Scratch::default(),
        top: Vec::new(),
        decode_turn: 0,
        prefill_turn: 0,
        group: 0,
        setup,
    };
    while worker.step() {}
}

struct Worker {
    setup: Setup,
    batch: Batch,
    cells: Cells,
    /// Sequences by id.
    slots: Vec<Option<Sequence>>,
    waiting: VecDeque<Job>,
    /// No job in `waiting` has a queue deadline before this.
    next_deadline: Option<Instant>,
    /// Ids of the rows of a decode call, or of the finished prompts of a prefill call, with their row.
    rows: Vec<(u32, usize)>,
    prefills: Vec<Prefill>,
    runs: Vec<Run>,
    scratch: Scratch,
    top: Vec<(u32, f32)>,
    decode_turn: u32,
    prefill_turn: u32,
    /// The group that this step computes.
    group: u16,
}

impl Worker {
    /// One step; false when the engine is to end.
    fn step(&mut self) -> bool {
        if !self.take_work() {
            return false;
        }
        self.drop_cancelled();
        self.admit();
        self.choose_group();
        let decoded = self.decode();
        let prefilled = self.prefill(decoded);
        self.publish();
        if !decoded && !prefilled {
            let until = self.next_deadline.map_or(IDLE, |deadline| {
                deadline.saturating_duration_since(Instant::now()).min(IDLE)
            });
            std::thread::park_timeout(until);
        }
        true
    }

    fn take_work(&mut self) -> bool {
        loop {
            if self.setup.stopping.load(Relaxed) {
                return false;
            }
            match self.setup.inbox.try_recv() {
                Ok(jobs) => self.take_jobs(jobs),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Puts jobs in line, but for those that were cancelled on the way here: their bell may have been
    /// heard already, when there was nothing to be found.
    fn take_jobs(&mut self, jobs: Vec<Job>) {
        for job in jobs {
            if job.ring.is_cancelled() {
                continue;
            }
            if let Some((deadline, _)) = job.queue_deadline {
                let next = self.next_deadline.unwrap_or(deadline);
                self.next_deadline = Some(next.min(deadline));
            }
            self.waiting.push_back(job);
        }
    }

    /// Frees what nobody waits for any more, and what has waited too long to be admitted. Looks only
    /// when somebody has cancelled or a deadline has come.
    fn drop_cancelled(&mut self) {
        let cancelled = self.setup.cancelled.swap(false, SeqCst);
        if cancelled {
            for id in 0..self.slots.len() {
                if self.slots[id]
                    .as_ref()
                    .is_some_and(|sequence| sequence.job.ring.is_cancelled())
                {
                    self.free(id);
                }
            }
        }
        let now = Instant::now();
        if !cancelled && self.next_deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        let mut next: Option<Instant> = None;
        self.waiting.retain_mut(|job| {
            if job.ring.is_cancelled() {
                return false;
            }
            let Some((deadline, bound)) = job.queue_deadline else {
                return true;
            };
            if now < deadline {
                next = Some(next.map_or(deadline, |next| next.min(deadline)));
                return true;
            }
            let bound = humantime::format_duration(bound);
            job.fail(
                Failure::new(
                    Kind::Deadline,
                    format!("The request waited longer than {bound} for a free sequence."),
                )
                .with_code("queue_timeout")
                .with_retry_after(super::RETRY_AFTER),
            );
            false
        });
        self.next_deadline = next;
    }

    /// Starts waiting sequences, oldest first, while there are ids and cells for them.
    fn admit(&mut self) {
        while let Some(job) = self.waiting.front() {
            // The lowest free id keeps ids dense, which a split layout computes fastest.
            let Some(id) = self.slots.iter().position(Option::is_none) else {
                return;
            };
            let cells = job.cells();
            if !self.cells.promise(cells) {
                return;
            }
            let Some(job) = self.waiting.pop_front() else {
                return;
            };
            self.setup.counters.running.fetch_add(1, Relaxed);
            self.setup.metrics.queued(job.accepted.elapsed());
            self.slots[id] = Some(Sequence {
                job,
                prefilled: 0,
                position: 0,
                generated: 0,
                next: 0,
                paused: false,
                cells,
            });
        }
    }

    /// Goes on to the next group that has something to compute.
    fn choose_group(&mut self) {
        let ready = self.slots.iter().flatten().filter(|sequence| {
            let ring = &sequence.job.ring;
            sequence.prefilled < sequence.prompt_len() || (!ring.is_paused() && ring.has_room())
        });
        // The next number up, or else the lowest.
        let next = ready.min_by_key(|sequence| {
            let group = sequence.group();
            (group <= self.group, group)
        });
        let Some(next) = next else { return };
        self.group = next.group();
        let adapters = next.job.adapters.clone();
        self.setup.context.set_adapters(adapters.as_ref());
    }

    /// One row for every sequence that decodes and whose reader keeps up; false if there was none.
    fn decode(&mut self) -> bool {
        self.batch.clear();
        self.rows.clear();
        let count = self.slots.len();
        let limit = (self.setup.decode_rows as usize).min(count);
        // More sequences than rows: take turns. Rows of one call are sorted by id.
        let first = if self.decode_turn as usize >= count {
            0
        } else {
            self.decode_turn as usize
        };
        for id in (first..count).chain(0..first) {
            if self.rows.len() == limit {
                break;
            }
            if self.takes_row(id) {
                self.rows.push((index(id), 0));
            }
        }
        let Some(&(last, _)) = self.rows.last() else {
            return false;
        };
        self.decode_turn = if self.rows.len() == limit {
            last + 1
        } else {
            0
        };
        self.rows.sort_unstable();
        for (id, row) in &mut self.rows {
            if let Some(sequence) = &self.slots[*id as usize] {
                *row = self.batch.push(sequence.next, sequence.position, *id, true);
            }
        }
        match self.setup.context.decode(&mut self.batch) {
            Ok(()) => {
                for at in 0..self.rows.len() {
                    let (id, _) = self.rows[at];
                    if let Some(sequence) = &mut self.slots[id as usize] {
                        sequence.position += 1;
                    }
                }
                self.sample_rows();
            }
            Err(error) => self.fail_rows(&error),
        }
        true
    }

    /// Whether a sequence is to decode in this step. Notes when it leaves or rejoins the batch.
    fn takes_row(&mut self, id: usize) -> bool {
        let Some(sequence) = &mut self.slots[id] else {
            return false;
        };
        if sequence.group() != self.group
            || sequence.prefilled < sequence.prompt_len()
            || (sequence.paused && sequence.job.ring.is_paused())
        {
            return false;
        }
        let has_room = sequence.job.ring.has_room();
        if has_room == sequence.paused {
            sequence.paused = !has_room;
            let counters = &self.setup.counters;
            if has_room {
                counters.paused.fetch_sub(1, Relaxed);
            } else {
                counters.paused.fetch_add(1, Relaxed);
                counters.pauses.fetch_add(1, Relaxed);
            }
        }
        has_room
    }

    /// One bounded chunk of prompts; false if no sequence is in prefill.
    fn prefill(&mut self, others_decode: bool) -> bool {
        self.prefills.clear();
        for (id, slot) in self.slots.iter().enumerate() {
            if let Some(sequence) = slot
                && sequence.group() == self.group
                && sequence.prefilled < sequence.prompt_len()
            {
                self.prefills.push(Prefill {
                    id: index(id),
                    done: sequence.prefilled,
                    total: sequence.prompt_len(),
                });
            }
        }
        if self.prefills.is_empty() {
            return false;
        }
        let budget = if others_decode {
            self.setup.prefill_chunk.min(self.setup.batch)
        } else {
            self.setup.batch
        };
        let last_served = schedule::prefill(
            &self.prefills,
            budget,
            self.prefill_turn,
            self.setup.one_prompt_per_call,
            &mut self.runs,
        );
        self.prefill_turn = last_served.map_or(0, |id| id + 1);
        self.batch.clear();
        self.rows.clear();
        for run in &self.runs {
            let Some(sequence) = &self.slots[run.id as usize] else {
                continue;
            };
            let last = sequence.prompt_len() - 1;
            for position in run.from..run.to {
                let token = sequence.job.prompt[position as usize];
                let row = self.batch.push(token, position, run.id, position == last);
                if position == last {
                    self.rows.push((run.id, row));
                }
            }
        }
        if self.batch.is_empty() {
            return false;
        }
        match self.setup.context.decode(&mut self.batch) {
            Ok(()) => {
                for run in &self.runs {
                    if let Some(sequence) = &mut self.slots[run.id as usize] {
                        sequence.prefilled = run.to;
                        sequence.position = run.to;
                    }
                }
                self.sample_rows();
            }
            Err(error) => {
                self.rows.clear();
                self.rows.extend(self.runs.iter().map(|run| (run.id, 0)));
                self.fail_rows(&error);
            }
        }
        true
    }

    /// Chooses the next token of every row of the last call, pushes it, and wakes the readers once.
    fn sample_rows(&mut self) {
        let at = clock::micros();
        for index in 0..self.rows.len() {
            let (id, row) = self.rows[index];
            let end = self.sample(id as usize, row, at);
            if let Some(sequence) = &mut self.slots[id as usize]
                && let Some(end) = end
            {
                sequence.job.end(end);
            }
        }
        for index in 0..self.rows.len() {
            let id = self.rows[index].0 as usize;
            let Some(sequence) = &self.slots[id] else {
                continue;
            };
            sequence.job.ring.wake();
            if sequence.job.ring.ended().is_some() {
                self.free(id);
            }
        }
    }

    /// Chooses and pushes one token; the end of the sequence, if this is it.
    fn sample(&mut self, id: usize, row: usize, at: u64) -> Option<End> {
        let sequence = self.slots[id].as_mut()?;
        let Some(logits) = self.setup.context.logits(row) else {
            return Some(End::Failed(Failure::internal("a row has no logits")));
        };
        let token = match sequence.job.sampler.sample(logits, &mut self.scratch) {
            Ok(token) => token,
            Err(error) => return Some(End::Failed(Failure::internal(error))),
        };
        let logprob = match sequence.job.logprobs {
            Some(count) => {
                let (scratch, top) = (&mut self.scratch, &mut self.top);
                logprobs(logits, token, usize::from(count), scratch, top)
            }
            None => f32::NAN,
        };
        let slot = Slot { token, logprob, at };
        if !sequence.job.ring.push(slot, &self.top) {
            return Some(End::Failed(Failure::internal("a token had no room")));
        }
        self.top.clear();
        sequence.generated += 1;
        sequence.next = token;
        if self.setup.eog.get(token as usize) == Some(&true) {
            Some(End::Finish(Finish::Stop))
        } else if sequence.generated >= sequence.job.budget {
            Some(End::Finish(Finish::Length))
        } else {
            None
        }
    }

    /// Ends every sequence of a failed call. Its neighbours in other calls go on.
    fn fail_rows(&mut self, error: &LlamaError) {
        let failure = match error {
            LlamaError::Aborted => Failure::new(Kind::Draining, "The model was stopped."),
            error => Failure::internal(error.to_string()),
        };
        for index in 0..self.rows.len() {
            let id = self.rows[index].0 as usize;
            if let Some(sequence) = &mut self.slots[id] {
                sequence.job.fail(failure.clone());
            }
            self.free(id);
        }
    }

    fn free(&mut self, id: usize) {
        if let Some(sequence) = self.slots[id].take() {
            self.setup.context.forget(index(id));
            self.cells.give_back(sequence.cells);
            let counters = &self.setup.counters;
            counters.running.fetch_sub(1, Relaxed);
            if sequence.paused {
                counters.paused.fetch_sub(1, Relaxed);
            }
        }
    }

    fn publish(&self) {
        let used = self.slots.iter().flatten().map(|s| u64::from(s.position));
        self.setup.counters.kv_used.store(used.sum(), Relaxed);
    }
}

fn index(id: usize) -> u32 {
    u32::try_from(id).unwrap_or(u32::MAX)
}
