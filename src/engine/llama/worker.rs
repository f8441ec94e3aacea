//! The engine thread: one per model, owner of its context, batch and KV cells.
//!
//! ```text
//! loop {
//!   inbox, cancellations, queue deadlines       new work arrives tokenized, checked and priced
//!   shift full contexts                         where that is wanted         (`shift.rs`)
//!   close a hole between the ids that decode    where that pays              (`dense.rs`)
//!   plan                                        one pure function decides all of what follows
//!   evict, park, start                          cells change hands (`cells.rs`)
//!   call 1: a row per decoding sequence -> sample -> push; wake readers once   (`calls.rs`)
//!   cancellations again
//!   call 2: one bounded chunk of prompts -> sample the last row of a finished prompt; wake;
//!           or, in turn, one of texts whose vectors are wanted              (`vectors.rs`)
//!   take back what other threads sample meanwhile                     (`sampling/pool.rs`)
//!   keep what ended sequences computed, where it delays nobody
//!   show the engine to whoever looks                                  (`inspect.rs`)
//!   nothing to do: park until a request, a cancellation or a reader unparks us
//! }
//! ```
//!
//! It never tokenizes, formats, waits for a reader or takes a lock that a request holds. A sequence
//! whose ring is full leaves the batch with its cells kept, and returns when its reader has caught up.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::adapters::AdapterSet;
use super::cache::Cache;
use super::crew::Crew;
use super::dense::Dense;
use super::ffi::{Batch, Context};
use super::job::{Counters, Job};
use super::kept::Kept;
use super::layout::Chooser;
use super::line::Line;
use super::pages::{IdleCells, Pages};
use super::plan::{Limits, Plan, Planner, Rates, Running, Stage, State, TenantId, Waiting};
use super::prefix::Key;
use super::sampling::Scratch;
use super::sampling::pool::Pool;
use super::sequence::{GRID, Sequence, count};
use super::speculate::{Costs, DraftModel, Trials, Wanted};
use super::vectors::Vectors;
use crate::engine::drain::Drain;
use crate::generation::{Moment, clock};

/// Longest sleep of an idle engine. It is woken by unpark; this only bounds the harm of a lost one.
const IDLE: Duration = Duration::from_secs(1);

/// Plans in one step at most: what a plan starts takes part in the calls of the next one.
const MOST_PLANS: usize = 3;

/// What the thread keeps for as long as it lives.
pub(super) struct Setup {
    pub(super) crew: Crew,
    pub(super) inbox: Receiver<Vec<Job>>,
    /// What computes vectors, in a model that has them.
    pub(super) vectors: Option<Vectors>,
    pub(super) counters: Arc<Counters>,
    pub(super) stopping: Arc<AtomicBool>,
    /// Raised when a sequence was cancelled.
    pub(super) cancelled: Arc<AtomicBool>,
    /// Threads that help sampling.
    pub(super) pool: Pool,
    /// For each token, whether it ends a generation.
    pub(super) eog: Arc<[bool]>,
    /// Cached prefixes in host memory.
    pub(super) cache: Cache,
    pub(super) layout: Chooser,
    /// Sequences that may be accepted at once.
    pub(super) places: u32,
    /// Host memory for parked sequences, in bytes.
    pub(super) park_memory: u64,
    /// How long a paused sequence keeps its cells.
    pub(super) pause_spill: Duration,
    /// How many cells of a pool may hold what is only kept.
    pub(super) idle_cells: IdleCells,
    /// Whether drafts are looked for.
    pub(super) speculates: bool,
    /// The model that makes drafts, where there is one.
    pub(super) draft_model: Option<DraftModel>,
}

/// Runs the engine on a context until it is told to stop, every handle is gone, or another layout of the
/// KV cache would be better; then what it was set up with comes back.
pub(super) fn run(mut setup: Setup, context: Context, limits: Limits) -> Option<Setup> {
    if let Some(model) = &mut setup.draft_model {
        model.forget_all();
    }
    *(setup.counters.layout.lock()).unwrap_or_else(PoisonError::into_inner) = setup.layout.shown();
    let pages = Pages::new(if limits.pooled {
        u32::try_from(limits.cells / u64::from(GRID)).unwrap_or(u32::MAX)
    } else {
        0
    });
    let mut worker = Worker {
        batch: Batch::with_capacity(limits.batch as usize),
        slots: (0..limits.ids).map(|_| Slot::Free).collect(),
        waiting: Line::default(),
        drain: Drain::default(),
        line_order: Vec::new(),
        tell_at_us: 0,
        next_deadline: None,
        planner: Planner::default(),
        plan: Plan::default(),
        running_view: Vec::new(),
        waiting_view: Vec::new(),
        rates: Rates::default(),
        costs: Costs::default(),
        trials: Trials::default(),
        dense: Dense::default(),
        wanted: Vec::new(),
        drafts_us: 0,
        row_ns: 0,
        rows: Vec::new(),
        scratch: Scratch::default(),
        top: Vec::new(),
        pages,
        kept: Vec::new(),
        parked_bytes: 0,
        copied_us: 0,
        admissions: 0,
        tokens: Vec::new(),
        failed_calls: 0,
        setup,
        context,
        limits,
    };
    loop {
        match worker.step() {
            Step::Next => {}
            Step::End => {
                // What is on its way to the disk still gets there.
                worker.save_all_ended();
                return None;
            }
            Step::Layout => return Some(worker.setup),
        }
    }
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// With another one to follow.
    Next,
    /// With the engine.
    End,
    /// With nothing to do, and another layout wanted.
    Layout,
}

/// What is in the cells of one sequence id.
pub(super) enum Slot {
    /// Nothing.
    Free,
    /// A sequence that runs.
    Busy(Box<Sequence>),
    /// What an ended sequence computed, until it has been kept elsewhere or its cells are needed.
    Ended {
        /// The names of its blocks, as far as they are computed.
        keys: Vec<Key>,
    },
}

impl Slot {
    pub(super) fn sequence(&self) -> Option<&Sequence> {
        match self {
            Self::Busy(sequence) => Some(sequence),
            Self::Free | Self::Ended { .. } => None,
        }
    }

    pub(super) fn sequence_mut(&mut self) -> Option<&mut Sequence> {
        match self {
            Self::Busy(sequence) => Some(sequence),
            Self::Free | Self::Ended { .. } => None,
        }
    }
}

pub(super) struct Worker {
    // Dropped first: whatever else takes time to go, readers learn at once that nothing will follow.
    /// Sequences by id.
    pub(super) slots: Vec<Slot>,
    /// Sequences in line.
    pub(super) waiting: Line<Box<Sequence>>,
    /// How fast they start.
    pub(super) drain: Drain,
    /// The order in which they are likely to start, and when they are told next.
    pub(super) line_order: Vec<u32>,
    pub(super) tell_at_us: u64,
    pub(super) setup: Setup,
    pub(super) context: Context,
    pub(super) limits: Limits,
    pub(super) batch: Batch,
    /// No sequence in `waiting` has a queue deadline before this.
    pub(super) next_deadline: Option<Instant>,
    pub(super) planner: Planner,
    pub(super) plan: Plan,
    pub(super) running_view: Vec<Running>,
    pub(super) waiting_view: Vec<Waiting>,
    pub(super) rates: Rates,
    /// What decode calls cost by their rows.
    pub(super) costs: Costs,
    /// Whether steps with drafts are faster than steps without.
    pub(super) trials: Trials,
    /// How ids are kept together.
    pub(super) dense: Dense,
    /// Who asks the draft model in this step, and what it took to answer, in microseconds.
    pub(super) wanted: Vec<Wanted>,
    pub(super) drafts_us: u64,
    /// Nanoseconds of one row of the last decode call; 0 before the first.
    pub(super) row_ns: u64,
    /// Ids of the rows of a call whose logits are wanted, with their first row.
    pub(super) rows: Vec<(u32, usize)>,
    pub(super) scratch: Scratch,
    pub(super) top: Vec<(u32, f32)>,
    /// The account of a pooled cache; empty for a split one.
    pub(super) pages: Pages,
    /// Prefixes kept in the cells of a pooled cache.
    pub(super) kept: Vec<Kept>,
    pub(super) parked_bytes: u64,
    /// Microseconds for which states were copied in this step.
    pub(super) copied_us: u64,
    /// Sequences given an id so far.
    pub(super) admissions: u64,
    /// A sequence's tokens in one piece, when they are wanted so.
    pub(super) tokens: Vec<u32>,
    /// Calls that failed one after the other.
    pub(super) failed_calls: u32,
}

impl Worker {
    fn step(&mut self) -> Step {
        let began_us = clock::micros();
        if !self.take_work() || self.gives_up() {
            return Step::End;
        }
        #[cfg(test)]
        assert!(!self.setup.counters.panics.load(Relaxed), "as asked");
        self.make_room();
        self.drop_cancelled();
        self.setup.cache.poll();
        self.shift_full();
        self.close_ranks();
        self.draft();
        self.copied_us = self.dense.spent_us;
        // Whatever is done takes the plan out of `self`: it is read while everything else changes.
        let mut plan = std::mem::take(&mut self.plan);
        let mut started = 0;
        for _ in 0..MOST_PLANS {
            self.make_plan(&mut plan);
            self.change_hands(&plan);
            started += plan.start.len();
            if plan.start.is_empty() {
                break;
            }
        }
        self.look_at_line(started, plan.start.len());
        self.tell_places();
        let decoded = self.decode(&plan);
        if decoded {
            self.drop_cancelled();
        }
        // Beside decoding streams one bounded call a step: prompts and vectors take turns.
        let vectors = self.setup.vectors.as_mut();
        let vectors_first = decoded && vectors.is_some_and(Vectors::takes_turn);
        let prefilled = !vectors_first && self.prefill(&plan);
        let embedded = !(decoded && prefilled)
            && (self.setup.vectors.as_mut()).is_some_and(|vectors| vectors.step(decoded));
        self.collect(true);
        let saved = self.save_ended(!(decoded || prefilled || embedded));
        self.publish();
        if decoded || prefilled || embedded {
            let took_us = clock::micros().saturating_sub(began_us);
            self.setup.counters.steps.step(took_us);
        }
        self.show();
        let is_idle = plan.is_idle() && !saved && !embedded && self.copied_us == 0;
        self.plan = plan;
        if is_idle {
            if self.is_empty() && self.setup.layout.changes() {
                self.evict_all();
                return Step::Layout;
            }
            let until = self.next_deadline.map_or(IDLE, |deadline| {
                deadline.saturating_duration_since(Instant::now()).min(IDLE)
            });
            std::thread::park_timeout(until);
        }
        Step::Next
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

    /// Shows the planner where everything stands, and lets it decide.
    fn make_plan(&mut self, plan: &mut Plan) {
        let now_us = clock::micros();
        self.look_for_leaders();
        self.view_running(now_us);
        self.view_waiting();
        let page = u64::from(GRID);
        let state = State {
            now_us,
            limits: &self.limits,
            // What a move took is not there for prompts.
            rates: Rates {
                decode_us: self.rates.decode_us + self.dense.spent_us,
                ..self.rates
            },
            running: &self.running_view,
            waiting: &self.waiting_view,
            idle_cells: u64::from(self.pages.idle()) * page,
            shared_cells: u64::from(self.pages.shared()) * page,
            spill_after_us: Some(
                u64::try_from(self.setup.pause_spill.as_micros()).unwrap_or(u64::MAX),
            ),
            parked_room: self.setup.park_memory > 0
                && self.parked_bytes + self.largest_state() <= self.setup.park_memory,
        };
        self.planner.plan(&state, plan);
    }

    fn view_running(&mut self, now_us: u64) {
        self.running_view.clear();
        let limits = self.limits;
        for id in 0..count(self.slots.len()) {
            let ready = self.is_ready(id, now_us);
            let Some(sequence) = self.sequence(id) else {
                continue;
            };
            let pages = &sequence.pages;
            let private = self.pages.private(pages) * GRID;
            let shared = count(pages.len()) * GRID - private;
            let computed = pages.get(..sequence.blocks() as usize).unwrap_or(pages);
            let shared_used = (count(computed.len()) - self.pages.private(computed)) * GRID;
            let stage = if sequence.is_in_prefill() {
                Stage::Prefill {
                    done: sequence.position,
                    total: sequence.target(),
                }
            } else {
                Stage::Decode
            };
            let full = (sequence.job.most)
                .next_multiple_of(GRID)
                .saturating_sub(shared);
            let view = Running {
                id,
                tenant: TenantId(sequence.job.tenant),
                weight: sequence.job.weight,
                class: sequence.job.class.max(sequence.lent_class),
                adapter: AdapterSet::group_of(sequence.job.adapters.as_ref()),
                stage,
                ready,
                follows: sequence.follows,
                used: sequence.position.saturating_sub(shared_used),
                cells: if limits.pooled { private } else { full },
                cells_full: full,
                deadline_us: sequence.job.first_token_due_us,
                admitted_us: sequence.admitted_us,
                served_us: sequence.served_us,
                paused_since_us: sequence.paused_since_us,
                rows: 1 + u16::try_from(sequence.drafts.len()).unwrap_or(0),
            };
            self.running_view.push(view);
        }
    }

    /// Whether a sequence's outlet has room for a token. Notes when it leaves or rejoins the batch.
    fn is_ready(&mut self, id: u32, now_us: u64) -> bool {
        let counters = self.setup.counters.clone();
        let Some(sequence) = self.sequence_mut(id) else {
            return false;
        };
        let ring = &sequence.job.ring;
        if sequence.is_in_prefill() {
            return true;
        }
        if sequence.paused_since_us.is_some() && ring.is_paused() {
            return false;
        }
        let has_room = ring.has_room();
        if has_room && sequence.paused_since_us.take().is_some() {
            ring.note(now_us, Moment::Resumed);
            counters.paused.fetch_sub(1, Relaxed);
        } else if !has_room {
            sequence.paused_since_us = Some(now_us);
            ring.note(now_us, Moment::Paused);
            counters.paused.fetch_add(1, Relaxed);
            counters.pauses.fetch_add(1, Relaxed);
        }
        has_room
    }

    /// Host memory that parking the longest running sequence takes.
    fn largest_state(&self) -> u64 {
        let longest = self.slots.iter().filter_map(Slot::sequence);
        let longest = longest.map(|sequence| sequence.position).max();
        u64::from(longest.unwrap_or(0)) * self.setup.cache.bytes_per_token()
    }

    pub(super) fn publish(&self) {
        let counters = &self.setup.counters;
        let used = self.slots.iter().filter_map(Slot::sequence);
        let used = used.map(|sequence| u64::from(sequence.position)).sum();
        counters.kv_used.store(used, Relaxed);
        let idle = u64::from(self.pages.idle() * GRID);
        counters.kv_idle.store(idle, Relaxed);
        counters
            .prefix_bytes
            .store(self.setup.cache.usage().bytes, Relaxed);
    }
}
