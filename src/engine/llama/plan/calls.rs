//! The two calls of a step: rows for the streams, then a chunk of prompts.

use std::cmp::Reverse;

use super::room::Room;
use super::{Class, GRID, Grow, Plan, Planner, Row, Run, Running, Stage, State, aged};

/// Every so many prefill calls, the prompt that was served longest ago goes first, whatever came since.
/// So a long prompt has a part of the engine while short ones keep arriving, and of `n` prompts each
/// is served within `n` times as many calls.
pub(super) const TURN: u32 = 4;

/// The chunk beside running streams before anything was measured.
const FIRST_CHUNK: u32 = 2 * GRID;

/// A prompt with what decides on its place: class, deadline, tenant's time, what is left, when it was
/// served last. `at` is its position in `State::running`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Prompt {
    level: Reverse<Class>,
    due_us: u64,
    time: u64,
    left: u32,
    served_us: u64,
    at: u32,
}

impl Planner {
    /// Rows for streams that have room, of one adapter group. Whoever was served longest ago comes
    /// first; drafts are cut before a stream is left out.
    pub(super) fn decode(&mut self, state: &State<'_>, room: &mut Room, out: &mut Plan) {
        let parked = out.park.map(|park| park.id);
        let can = |sequence: &Running, room: &Room| {
            sequence.decodes()
                && Some(sequence.id) != parked
                && (sequence.used < sequence.cells || !room.is_full())
        };
        let runnable = state.running.iter().filter(|sequence| can(sequence, room));
        let Some(group) = self.next_group(runnable, state.limits.max_step_us) else {
            return;
        };
        out.decode_adapter = group;
        self.order.clear();
        for (at, sequence) in (0..).zip(state.running) {
            if sequence.adapter == group && can(sequence, room) {
                self.order.push(at);
            }
        }
        let limit = state.limits.decode_rows.max(1) as usize;
        let count = self.order.len();
        if count > limit || room.left() < u64::from(GRID) * count as u64 {
            self.order
                .sort_unstable_by_key(|&at| (state.running[at as usize].served_us, at));
            self.order.truncate(limit);
        }
        let mut spare = u16::try_from(limit - self.order.len()).unwrap_or(u16::MAX);
        for &at in &self.order {
            let sequence = &state.running[at as usize];
            let cells = promise(sequence, state.limits.pooled, room);
            if cells > sequence.cells {
                let id = sequence.id;
                out.grow.push(Grow { id, cells });
            }
            let usable = u16::try_from(cells.saturating_sub(sequence.used)).unwrap_or(u16::MAX);
            let Some(most_drafts) = usable.checked_sub(1) else {
                continue;
            };
            let drafts = sequence.rows.saturating_sub(1).min(spare).min(most_drafts);
            spare -= drafts;
            out.decode.push(Row {
                id: sequence.id,
                tenant: sequence.tenant,
                rows: 1 + drafts,
            });
        }
        out.decode.sort_unstable_by_key(|row| row.id);
        out.grow.sort_unstable_by_key(|grow| grow.id);
    }

    /// The adapter group of the next decode call. Groups take turns; a turn lasts for the group's part
    /// of `max_step_us` by its number of streams, so that a switch is paid for by several calls where
    /// calls are short, and nobody waits for much more than a step.
    fn next_group<'a>(
        &self,
        runnable: impl Iterator<Item = &'a Running>,
        max_step_us: u64,
    ) -> Option<u16> {
        let (mut all, mut own) = (0, 0);
        let mut next: Option<(bool, u16)> = None;
        for sequence in runnable {
            all += 1;
            if sequence.adapter == self.group {
                own += 1;
            } else {
                // Upwards, then from the lowest again.
                let key = (sequence.adapter < self.group, sequence.adapter);
                next = Some(next.map_or(key, |next| next.min(key)));
            }
        }
        match next {
            Some((_, group)) if own == 0 || self.group_us * all >= max_step_us * own => Some(group),
            _ => (own > 0).then_some(self.group),
        }
    }

    /// A chunk of prompts of one adapter, most urgent first. A run ends on the grid or with its prompt.
    pub(super) fn prefill(&mut self, state: &State<'_>, out: &mut Plan) {
        self.order_prompts(state, out);
        let Some(first) = self.prompts.first() else {
            return;
        };
        let adapter = state.running[first.at as usize].adapter;
        out.prefill_adapter = adapter;
        let mut left = chunk(state, !out.decode.is_empty());
        let mut tails: Option<bool> = None;
        for prompt in &self.prompts {
            let sequence = &state.running[prompt.at as usize];
            let Stage::Prefill { done, total } = sequence.stage else {
                continue;
            };
            let to = run_end(done, total, left, state.limits.cut_last);
            if sequence.adapter != adapter || to <= done {
                continue;
            }
            // llama.cpp cuts a call of several sequences into equal parts, and computes attention in
            // another way from a grid line's worth of rows on: a short run beside a long one would
            // cut that one off the grid.
            let is_tail = to - done < GRID;
            if state.limits.cut_last && *tails.get_or_insert(is_tail) != is_tail {
                continue;
            }
            left -= to - done;
            out.prefill.push(Run {
                id: sequence.id,
                tenant: sequence.tenant,
                from: done,
                to,
            });
            if state.limits.one_prompt_per_call || left == 0 {
                break;
            }
        }
        out.prefill.sort_unstable_by_key(|run| run.id);
    }

    fn order_prompts(&mut self, state: &State<'_>, out: &Plan) {
        let parked = out.park.map(|park| park.id);
        self.prompts.clear();
        for (at, sequence) in (0..).zip(state.running) {
            let Stage::Prefill { done, total } = sequence.stage else {
                continue;
            };
            if sequence.follows || Some(sequence.id) == parked || done >= total {
                continue;
            }
            let waited = state.now_us.saturating_sub(sequence.served_us);
            self.prompts.push(Prompt {
                level: Reverse(aged(sequence.class, waited)),
                due_us: sequence.deadline_us.unwrap_or(u64::MAX),
                time: self.tenants.of_running(at as usize).time(),
                left: total - done,
                served_us: sequence.served_us,
                at,
            });
        }
        self.prompts.sort_unstable();
        if self.prefill_calls % TURN == TURN - 1
            && let Some((longest, _)) = self
                .prompts
                .iter()
                .enumerate()
                .min_by_key(|(_, prompt)| (prompt.served_us, prompt.at))
        {
            self.prompts[..=longest].rotate_right(1);
        }
    }
}

/// The cells that a stream has for its next row and its drafts. The cache is evicted for a row, not
/// for a draft.
fn promise(sequence: &Running, pooled: bool, room: &mut Room) -> u32 {
    let row = sequence.used + 1;
    let full = sequence.cells_full.max(row);
    if !pooled {
        return full;
    }
    let wish = (sequence.used + u32::from(sequence.rows.max(1))).min(full);
    if wish <= sequence.cells {
        return sequence.cells;
    }
    let whole = wish.next_multiple_of(GRID).min(full);
    sequence.cells + room.take(whole - sequence.cells, row > sequence.cells)
}

/// Most rows of the prefill call: what fits beside the decode call, on the grid, at least one line.
fn chunk(state: &State<'_>, beside_streams: bool) -> u32 {
    let batch = state.limits.batch.max(GRID);
    if !beside_streams {
        return batch;
    }
    let rates = state.rates;
    if rates.decode_us == 0 || rates.prefill_row_ns == 0 {
        return FIRST_CHUNK.min(batch);
    }
    let slack_us = state.limits.max_step_us.saturating_sub(rates.decode_us);
    let rows = slack_us.saturating_mul(1000) / rates.prefill_row_ns;
    let rows = u32::try_from(rows).unwrap_or(u32::MAX);
    (rows - rows % GRID).clamp(GRID, batch)
}

/// Where a run from `done` ends if it may have `left` rows: with the prompt, or on the grid.
fn run_end(done: u32, total: u32, left: u32, cut_last: bool) -> u32 {
    let last_line = (total - 1) / GRID * GRID;
    let end = if cut_last && done < last_line {
        last_line
    } else {
        total
    };
    let to = done.saturating_add(left);
    if to >= end { end } else { to - to % GRID }
}
