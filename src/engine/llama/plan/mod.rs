//! The planner of one engine step: from the state of all sequences to the calls of the step.
//!
//! [`Planner::plan`] is a function: no clock, no thread, no llama.cpp. Times are microseconds that the
//! caller gives. A plan is applied in the order of its fields:
//!
//! ```text
//! park     a state leaves for host memory, its id is free, the sequence goes back in line
//! start    a waiting sequence gets an id and its promise of cells; its cached prefix is pinned
//! evict    so many cells are taken from the prefix cache
//! grow     a running sequence gets a larger promise
//! decode   call 1: rows of one adapter
//! prefill  call 2: prompt runs of one adapter
//! ```
//!
//! The calls serve what runs now, less what is parked. A started sequence takes part from the next
//! plan on; a caller that is in a hurry applies the first four and plans again.
//!
//! Cells on a pooled layout are promised before they are used, and promises never exceed the cells, so
//! that `llama_decode` never finds the cache full. Two calls a step, because on a CPU one mixed call
//! costs nearly twice as much, and because a stream then never waits longer than one chunk for a long
//! prompt beside it.

mod admit;
mod calls;
#[cfg(test)]
mod fairness;
#[cfg(test)]
mod overload;
#[cfg(test)]
mod random;
mod room;
#[cfg(test)]
mod shares;
#[cfg(test)]
mod simulator;
mod tenants;
#[cfg(test)]
mod tests;

pub(super) use self::admit::due_us;
use self::room::Room;
use self::tenants::Tenants;
pub(super) use crate::generation::Class;

/// Prompts are cut at multiples of this many tokens: the grid on which prefixes are shared, and the
/// row count from which a CPU's matrix kernels run at full speed.
pub(super) const GRID: u32 = 64;

/// Who pays for a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TenantId(pub(super) u64);

/// What does not change from step to step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Sequences at once.
    pub(super) ids: u32,
    /// KV cells in all.
    pub(super) cells: u64,
    /// Most rows of a decode call.
    pub(super) decode_rows: u32,
    /// Most rows of a prefill call.
    pub(super) batch: u32,
    /// How long a step may take while streams run.
    pub(super) max_step_us: u64,
    /// One prompt per prefill call (unified layouts, where a prompt's bits depend on its batch).
    pub(super) one_prompt_per_call: bool,
    /// A prompt's last run begins on its last grid line, so that its bits do not depend on how much
    /// of it was cached.
    pub(super) cut_last: bool,
    /// All sequences share the cells. Otherwise every id has cells of its own, and never too few.
    pub(super) pooled: bool,
    /// Pooled: what running sequences may ever need, in percent of the cells. At 100 nobody is ever
    /// parked for want of cells; above, more run at once, and some may be.
    pub(super) overcommit_percent: u32,
}

/// What a running sequence does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its prompt is being computed; `done < total`.
    Prefill {
        /// Prompt tokens in the KV cache.
        done: u32,
        /// Prompt tokens in all.
        total: u32,
    },
    /// One token after the other.
    Decode,
}

/// A sequence with an id.
#[derive(Clone, Copy, Debug)]
pub(super) struct Running {
    pub(super) id: u32,
    pub(super) tenant: TenantId,
    /// The tenant's share of the engine relative to others'; at least 1.
    pub(super) weight: u16,
    pub(super) class: Class,
    /// The `LoRA` group. One call holds one group.
    pub(super) adapter: u16,
    pub(super) stage: Stage,
    /// Its outlet has room for what a row may yield.
    pub(super) ready: bool,
    /// Waits for another running sequence that computes its prefix: no prefill now.
    pub(super) follows: bool,
    /// Private cells that hold a token.
    pub(super) used: u32,
    /// Private cells promised to it, used ones among them. In prefill they cover the prompt.
    pub(super) cells: u32,
    /// Most private cells it may ever use.
    pub(super) cells_full: u32,
    /// When its first token is due.
    pub(super) deadline_us: Option<u64>,
    /// When it got its id.
    pub(super) admitted_us: u64,
    /// When it was last in a call; `admitted_us` before.
    pub(super) served_us: u64,
    /// Since when it is not ready.
    pub(super) paused_since_us: Option<u64>,
    /// Decode rows wanted: 1 and its drafts.
    pub(super) rows: u16,
}

impl Running {
    fn decodes(&self) -> bool {
        self.stage == Stage::Decode && self.ready
    }

    fn pause(&self) -> Option<u64> {
        self.paused_since_us
            .filter(|_| self.stage == Stage::Decode && !self.ready)
    }
}

/// A sequence in line for an id. One whose reader is behind is not in line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    /// The caller's handle.
    pub(super) index: u32,
    pub(super) tenant: TenantId,
    pub(super) weight: u16,
    pub(super) class: Class,
    /// Private cells to start with: all of the prompt (and, if it was parked, of what it generated)
    /// that is not cached in cells, and some headroom.
    pub(super) cells_now: u32,
    /// Most private cells it may ever use; with `pins`, no more than there are.
    pub(super) cells_full: u32,
    /// Idle cells of the prefix cache that it would share, and that stop being idle.
    pub(super) pins: u32,
    /// Prompt tokens still to compute.
    pub(super) prompt: u32,
    /// When it came into line.
    pub(super) arrived_us: u64,
    /// When its first token is due.
    pub(super) deadline_us: Option<u64>,
    /// It was parked before.
    pub(super) resumed: bool,
}

/// What calls cost, as measured lately; 0 is unknown.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rates {
    /// Microseconds of a whole decode call.
    pub(super) decode_us: u64,
    /// Nanoseconds of one row of a prefill call.
    pub(super) prefill_row_ns: u64,
}

impl Rates {
    /// Takes in a decode call.
    pub(super) fn decoded(&mut self, us: u64) {
        self.decode_us = average(self.decode_us, us);
    }

    /// Takes in a prefill call of `rows` rows.
    pub(super) fn prefilled(&mut self, rows: u32, us: u64) {
        let row_ns = us.saturating_mul(1000) / u64::from(rows.max(1));
        self.prefill_row_ns = average(self.prefill_row_ns, row_ns);
    }
}

/// Moves an average an eighth of the way down, and half the way up: rows take longer the longer a
/// prompt gets, and a step that is too long is felt, one that is too short is not.
fn average(old: u64, new: u64) -> u64 {
    match old {
        0 => new.max(1),
        _ if new > old => old + (new - old) / 2,
        _ => (old - old / 8 + new / 8).max(1),
    }
}

/// Everything that a plan depends on, but for the planner's memory of who was served.
#[derive(Clone, Copy, Debug)]
pub(super) struct State<'a> {
    pub(super) now_us: u64,
    pub(super) limits: &'a Limits,
    pub(super) rates: Rates,
    /// Sorted by id.
    pub(super) running: &'a [Running],
    /// Of each tenant and class those who are due first, in that order: at least one.
    pub(super) waiting: &'a [Waiting],
    /// Pooled: cells that only the prefix cache holds.
    pub(super) idle_cells: u64,
    /// Pooled: cells of cached prefixes that running sequences use, nobody's private ones.
    pub(super) shared_cells: u64,
    /// Park what has been paused for so long.
    pub(super) spill_after_us: Option<u64>,
    /// Host memory has room for one more state.
    pub(super) parked_room: bool,
}

/// A sequence that loses its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Park {
    pub(super) id: u32,
    /// Its state goes to host memory. False is the last resort, when that is full and nothing else
    /// can move: the state is dropped, and its tokens are computed again later. Never at 100 percent
    /// of overcommitment.
    pub(super) keep: bool,
}

/// A waiting sequence that gets an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// [`Waiting::index`].
    pub(super) index: u32,
    pub(super) id: u32,
}

/// A larger promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grow {
    pub(super) id: u32,
    /// The new [`Running::cells`].
    pub(super) cells: u32,
}

/// Rows of one sequence in the decode call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: u32,
    pub(super) tenant: TenantId,
    /// 1 and as many drafts as there is room for.
    pub(super) rows: u16,
}

/// A run of prompt tokens of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) id: u32,
    pub(super) tenant: TenantId,
    /// First prompt token of the run.
    pub(super) from: u32,
    /// One past the last.
    pub(super) to: u32,
}

/// One step, to be applied in the order of the fields. Its buffers are used again and again.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    /// At most one: each costs a copy of its state.
    pub(super) park: Option<Park>,
    /// In order of urgency.
    pub(super) start: Vec<Start>,
    /// Idle cells to take from the prefix cache.
    pub(super) evict_cells: u64,
    /// Sorted by id.
    pub(super) grow: Vec<Grow>,
    /// Sorted by id.
    pub(super) decode: Vec<Row>,
    /// Of all rows of the decode call.
    pub(super) decode_adapter: u16,
    /// Sorted by id.
    pub(super) prefill: Vec<Run>,
    /// Of all runs of the prefill call.
    pub(super) prefill_adapter: u16,
}

impl Plan {
    /// Whether there is nothing to do until something happens.
    pub(super) fn is_idle(&self) -> bool {
        self.park.is_none()
            && self.start.is_empty()
            && self.decode.is_empty()
            && self.prefill.is_empty()
    }

    fn clear(&mut self) {
        self.park = None;
        self.start.clear();
        self.evict_cells = 0;
        self.grow.clear();
        self.decode.clear();
        self.prefill.clear();
    }
}

/// What is remembered between steps: who was served how much, and whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Planner {
    tenants: Tenants,
    /// The adapter group of the last decode call, and for how long it has had its turn.
    group: u16,
    group_us: u64,
    prefill_calls: u32,
    /// Scratch: positions in `State::running`, in the order of a call.
    order: Vec<u32>,
    /// Scratch: prompts in order of urgency.
    prompts: Vec<calls::Prompt>,
    /// Scratch: the waiting line.
    line: Vec<admit::InLine>,
}

impl Planner {
    /// Plans one step.
    pub(super) fn plan(&mut self, state: &State<'_>, out: &mut Plan) {
        out.clear();
        self.tenants.settle(state);
        let mut room = Room::of(state);
        let stuck = admit::stuck(state, &room);
        if state.parked_room {
            // A stream that cannot go on comes before one that has stopped anyway.
            let victim = stuck.and_then(|stuck| admit::victim_for_cells(state, stuck));
            if let Some(at) = victim.or_else(|| admit::spilled(state)) {
                admit::park(state, at, true, &mut room, out);
            }
        }
        self.decode(state, &mut room, out);
        self.admit(state, &mut room, out);
        self.prefill(state, out);
        if let Some(stuck) = stuck
            && out.is_idle()
            && let Some(at) = admit::last_resort(state, stuck)
        {
            admit::park(state, at, state.parked_room, &mut room, out);
        }
        out.evict_cells = room.evicted();
    }

    /// Charges the tenants of a decode call, which took `us`.
    pub(super) fn decoded(&mut self, plan: &Plan, us: u64) {
        if plan.decode_adapter != self.group {
            self.group = plan.decode_adapter;
            self.group_us = 0;
        }
        self.group_us += us;
        let total: u64 = plan.decode.iter().map(|row| u64::from(row.rows)).sum();
        for row in &plan.decode {
            self.tenants
                .charge(row.tenant, us, u64::from(row.rows), total);
        }
    }

    /// Charges the tenants of a prefill call, which took `us`.
    pub(super) fn prefilled(&mut self, plan: &Plan, us: u64) {
        self.prefill_calls = self.prefill_calls.wrapping_add(1);
        let rows = |run: &Run| u64::from(run.to - run.from);
        let total = plan.prefill.iter().map(rows).sum();
        for run in &plan.prefill {
            self.tenants.charge(run.tenant, us, rows(run), total);
        }
    }

    /// Charges a tenant for work outside the two calls: embeddings, copies of states.
    pub(super) fn charge(&mut self, tenant: TenantId, us: u64) {
        self.tenants.charge(tenant, us, 1, 1);
    }
}

/// A class rises by one for this long a wait.
const AGING_US: u64 = 2_000_000;

/// The class of what has waited for `waited_us`.
fn aged(class: Class, waited_us: u64) -> Class {
    match (class as u64).saturating_add(waited_us / AGING_US) {
        0 => Class::Background,
        1 => Class::Normal,
        _ => Class::Interactive,
    }
}
