//! KV cells of one step: what is promised, what is free, what the prefix cache must give.

use super::{State, Waiting};

/// Cells that a plan may still give away.
#[derive(Debug)]
pub(super) struct Room {
    /// Neither promised nor held by the cache. Without pooling there is always enough.
    free: u64,
    /// Held by the cache alone.
    idle: u64,
    /// What the plan has taken of `idle`.
    evicted: u64,
    /// What all that run may ever need, with the prefixes they share.
    committed: u64,
    capacity: u64,
    /// What `committed` may reach by new sequences.
    ceiling: u64,
    pooled: bool,
    /// Nobody runs.
    empty: bool,
}

impl Room {
    pub(super) fn of(state: &State<'_>) -> Self {
        let limits = state.limits;
        let mut promised = 0;
        let mut committed = state.shared_cells;
        for sequence in state.running {
            promised += u64::from(sequence.cells);
            committed += u64::from(sequence.cells_full.max(sequence.cells));
        }
        let held = promised + state.shared_cells + state.idle_cells;
        let percent = if state.parked_room {
            u64::from(limits.overcommit_percent.max(100))
        } else {
            100
        };
        Self {
            free: limits.cells.saturating_sub(held),
            idle: state.idle_cells,
            evicted: 0,
            committed,
            capacity: limits.cells,
            ceiling: limits.cells.saturating_mul(percent) / 100,
            pooled: limits.pooled,
            empty: state.running.is_empty(),
        }
    }

    /// Whether a running sequence can get another cell.
    pub(super) fn is_full(&self) -> bool {
        self.pooled && self.free + self.idle == 0
    }

    /// Cells that can still be had.
    pub(super) fn left(&self) -> u64 {
        if self.pooled {
            self.free + self.idle
        } else {
            u64::MAX
        }
    }

    /// Up to `count` cells; idle ones are evicted for them only if `evict`.
    pub(super) fn take(&mut self, count: u32, evict: bool) -> u32 {
        if !self.pooled {
            return count;
        }
        let wanted = u64::from(count);
        let free = wanted.min(self.free);
        self.free -= free;
        let idle = if evict {
            (wanted - free).min(self.idle)
        } else {
            0
        };
        self.idle -= idle;
        self.evicted += idle;
        u32::try_from(free + idle).unwrap_or(count)
    }

    /// Takes a promise back within the plan.
    pub(super) fn give_back(&mut self, cells: u32) {
        if self.pooled {
            self.free += u64::from(cells);
        }
    }

    /// Notes that a sequence that may need `full` cells does not run any more.
    pub(super) fn leave(&mut self, full: u32) {
        self.committed = self.committed.saturating_sub(u64::from(full));
    }

    /// Whether the cached prefix of a sequence is still there; the plan may have given it away.
    pub(super) fn has_prefix(&self, sequence: &Waiting) -> bool {
        !self.pooled || u64::from(sequence.pins) <= self.idle
    }

    /// Takes what a sequence needs to start, or nothing. Its prefix is there.
    pub(super) fn start(&mut self, sequence: &Waiting) -> bool {
        if !self.pooled {
            return true;
        }
        let pins = u64::from(sequence.pins);
        let now = sequence.cells_now.min(sequence.cells_full);
        let full = self.committed + u64::from(sequence.cells_full) + pins;
        // What was parked for want of cells would come back only to be parked again.
        let ceiling = if sequence.resumed {
            self.capacity
        } else {
            self.ceiling
        };
        let fits = u64::from(now) + pins <= self.free + self.idle;
        if !fits || (full > ceiling && !self.empty) {
            return false;
        }
        self.idle -= pins;
        self.take(now, true);
        self.committed = full;
        self.empty = false;
        true
    }

    /// Idle cells that the plan has given away.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }
}
