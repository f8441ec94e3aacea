//! Keeps the ids that decode together: what a split layout's ubatches are made of.
//!
//! llama.cpp puts only rows of consecutive ids into one ubatch, so that every hole between the ids that
//! decode costs one run more through all weights. Ids are given lowest first; when a low one ends, the
//! highest sequence that decodes takes its place by a copy of its state, bit by bit, where that pays
//! (`dense/decide.rs`). One whose reader is behind changes places with it, once for each pause.

mod decide;
#[cfg(test)]
mod tests;

use std::sync::atomic::Ordering::Relaxed;

use self::decide::{Decision, Id, Move, Prices, decide, runs};
use super::ffi::LlamaError;
use super::sequence::{GRID, Sequence, count};
use super::worker::{Slot, Worker};
use crate::generation::clock;

/// Nanoseconds of copying 1024 bytes of a state before any copy was measured: a gigabyte a second, less
/// than memory gives, so that the first copy is not one too many.
const COPY_NS: u64 = 1024;

/// Calls that a time is the least of: the others were slow by chance.
const FEW: usize = 8;

/// Calls after which a measurement is forgotten: other calls and other neighbours cost something else.
const FORGET: u64 = 4096;

/// What is remembered from step to step.
pub(super) struct Dense {
    /// Decode calls so far.
    calls: u64,
    /// The last ones, and those before the last move or moves.
    now: Calls,
    before: Calls,
    /// What a run more was measured to cost in calls of so many sequences, and when.
    learned: Vec<(u64, u64)>,
    /// Nanoseconds of copying 1024 bytes of a state, as measured lately.
    copy_ns: u64,
    /// What the holes that are there have cost so far.
    lost_us: u64,
    /// What this step has spent on a move.
    pub(super) spent_us: u64,
    /// A state could not be copied: it is not tried again.
    failed: bool,
    /// Scratch: all ids as they are.
    ids: Vec<Id>,
}

impl Default for Dense {
    fn default() -> Self {
        Self {
            calls: 0,
            now: Calls::default(),
            before: Calls::default(),
            learned: Vec::new(),
            copy_ns: COPY_NS,
            lost_us: 0,
            spent_us: 0,
            failed: false,
            ids: Vec::new(),
        }
    }
}

impl Dense {
    /// Takes in a decode call of sequences with these ids, which are in order.
    pub(super) fn measured(&mut self, ids: impl Iterator<Item = u32>, us: u64) {
        let (mut rows, mut runs, mut next) = (0, 0, None);
        for id in ids {
            rows += 1;
            runs += u64::from(next != Some(id));
            next = Some(id + 1);
        }
        self.calls += 1;
        if (rows, runs) != (self.now.rows, self.now.runs) {
            // Calls are compared with those right before them: contexts grow, and cost more.
            if rows != self.now.rows {
                self.before = Calls::default();
            } else if self.before.count == 0 || self.now.count >= FEW {
                self.before = self.now;
            }
            self.now = Calls {
                rows,
                runs,
                ..Calls::default()
            };
        }
        self.now.measured(us);
        if self.now.count == FEW && self.before.count > 0 {
            self.learn();
        }
    }

    /// Compares the calls before a move with those after it.
    fn learn(&mut self) {
        let Calls { rows, runs, .. } = self.now;
        let Some(fewer) = self
            .before
            .runs
            .checked_sub(runs)
            .filter(|&fewer| fewer > 0)
        else {
            return;
        };
        if self.learned.len() <= rows {
            self.learned.resize(rows + 1, (0, 0));
        }
        let saved_us = self.before.us().saturating_sub(self.now.us());
        self.learned[rows] = (saved_us / fewer, self.calls);
    }

    /// What one run more costs in a call of so many sequences in so many runs, which takes `decode_us`.
    /// It can be nothing: some matrix kernels are slower with a few rows than with one.
    fn run_us(&self, rows: usize, runs: u64, decode_us: u64) -> u64 {
        match self.learned.get(rows) {
            Some(&(us, at)) if at > 0 && self.calls - at < FORGET => us,
            // As much as a row, where rows cost most. Where weights do it is more.
            _ => decode_us / (rows as u64 + runs).max(1),
        }
    }

    /// Takes in a copy. A lone slow one must not make all that follow look too dear, or there would be
    /// none to learn better from.
    fn copied(&mut self, bytes: usize, us: u64) {
        let kib = (bytes as u64 / 1024).max(1);
        let ns = (us.saturating_mul(1000) / kib).clamp(1, self.copy_ns.saturating_mul(4));
        self.copy_ns = (self.copy_ns.saturating_mul(3).saturating_add(ns) / 4).max(1);
    }
}

/// Calls of equally many sequences in equally many runs, one after the other.
#[derive(Clone, Copy, Default)]
struct Calls {
    rows: usize,
    runs: u64,
    count: usize,
    /// What the last ones took.
    us: [u64; FEW],
}

impl Calls {
    fn measured(&mut self, us: u64) {
        self.us[self.count % FEW] = us;
        self.count += 1;
    }

    /// The shortest of the last ones.
    fn us(&self) -> u64 {
        let known = &self.us[..self.count.min(FEW)];
        known.iter().min().copied().unwrap_or(0)
    }
}

impl Worker {
    /// Moves one sequence, if a hole between the ids that decode costs more than that. For the time
    /// between two steps, when no row is under way.
    pub(super) fn close_ranks(&mut self) {
        self.dense.spent_us = 0;
        let decoding = self
            .slots
            .iter()
            .map(|slot| slot.sequence().is_some_and(decodes));
        let rows = decoding.clone().filter(|&decodes| decodes).count();
        let runs = runs(decoding);
        if self.limits.pooled || self.dense.failed || runs < 2 {
            self.dense.lost_us = 0;
            return;
        }
        self.view_ids();
        let decode_us = self.rates.decode_us;
        let prices = Prices {
            run_us: self.dense.run_us(rows, runs, decode_us),
            decode_us,
            copy_ns: self.dense.copy_ns,
            max_step_us: self.limits.max_step_us,
            lost_us: self.dense.lost_us,
        };
        #[cfg(test)]
        let prices = if self.setup.counters.moves_always.load(Relaxed) {
            Prices {
                copy_ns: 0,
                run_us: 1,
                ..prices
            }
        } else {
            prices
        };
        let Decision { loses_us, step } = decide(&mut self.dense.ids, &prices);
        match step {
            None if loses_us == 0 => self.dense.lost_us = 0,
            None => self.dense.lost_us = self.dense.lost_us.saturating_add(loses_us),
            Some(step) => {
                self.dense.lost_us = self.dense.lost_us.saturating_sub(step.us);
                let began_us = clock::micros();
                if let Err(error) = self.move_to(step) {
                    tracing::warn!(%error, "a sequence could not be moved to another id");
                    self.dense.failed = true;
                }
                self.dense.spent_us = clock::micros().saturating_sub(began_us);
            }
        }
    }

    /// Notes what each id is to the others.
    fn view_ids(&mut self) {
        self.dense.ids.clear();
        let bytes_per_token = self.bytes_per_token();
        // Who waits gets the lowest ids in this very step, and closes holes by coming.
        let mut coming = self.coming();
        for slot in &self.slots {
            let state = |sequence: &Sequence| u64::from(sequence.position) * bytes_per_token;
            let id = match slot {
                Slot::Free | Slot::Ended { .. } if coming > 0 => {
                    coming -= 1;
                    Id::Stays
                }
                Slot::Free => Id::Free { bytes: 0 },
                Slot::Ended { keys } => Id::Free {
                    bytes: keys.len() as u64 * u64::from(GRID) * bytes_per_token,
                },
                Slot::Busy(sequence) if decodes(sequence) => Id::Decodes {
                    left: sequence.job.budget.saturating_sub(sequence.generated_len()),
                    bytes: state(sequence),
                },
                Slot::Busy(sequence) if sequence.is_in_prefill() => Id::Stays,
                Slot::Busy(sequence) if sequence.stepped_aside == sequence.paused_since_us => {
                    Id::Blocks
                }
                Slot::Busy(sequence) => Id::Rests {
                    bytes: state(sequence),
                },
            };
            self.dense.ids.push(id);
        }
    }

    /// Bytes of the state of a token. Where states are kept whole nobody knows but llama.cpp, and only
    /// for one sequence at a time: the highest that decodes, which is the one to be moved.
    fn bytes_per_token(&self) -> u64 {
        let known = self.setup.cache.bytes_per_token();
        if known > 0 {
            return known;
        }
        let mut highest = (0..count(self.slots.len())).rev();
        let highest = highest.find(|&id| self.sequence(id).is_some_and(decodes));
        let asked = highest.and_then(|id| Some((id, self.sequence(id)?.position)));
        asked.map_or(0, |(id, position)| {
            self.context.state_size(id) as u64 / u64::from(position.max(1))
        })
    }

    /// Moves a sequence to a lower id. Who rests there takes the id that becomes free.
    fn move_to(&mut self, step: Move) -> Result<(), LlamaError> {
        let Move { from, to, .. } = step;
        self.save(to);
        let rests = self.sequence(to).is_some();
        let (mut moving, mut resting) = (Vec::new(), Vec::new());
        let began_us = clock::micros();
        self.context.state_read(from, &mut moving)?;
        if rests {
            self.context.state_read(to, &mut resting)?;
        }
        if let Err(error) = self.context.state_write(to, &moving) {
            // The id is empty now. Who moved is still where it was.
            if rests {
                self.put_back(to, &resting, to);
            }
            return Err(error);
        }
        if rests {
            self.put_back(from, &resting, to);
        } else {
            self.context.forget(from);
        }
        let took_us = clock::micros().saturating_sub(began_us);
        self.dense.copied(moving.len() + resting.len(), took_us);
        self.slots.swap(from as usize, to as usize);
        if let Some(sequence) = self.sequence_mut(from) {
            sequence.stepped_aside = sequence.paused_since_us;
        }
        self.setup.counters.moves.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Puts a state that was read a moment ago into an id. `owner` has the sequence; what of it is lost
    /// is computed again.
    fn put_back(&mut self, id: u32, state: &[u8], owner: u32) {
        if let Err(error) = self.context.state_write(id, state)
            && let Some(sequence) = self.sequence_mut(owner)
        {
            tracing::warn!(%error, "a paused sequence was not taken back");
            sequence.position = 0;
            self.dense.failed = true;
        }
    }
}

/// Whether a sequence has a row in every decode call.
fn decodes(sequence: &Sequence) -> bool {
    let is_paused = sequence.paused_since_us.is_some() && sequence.job.ring.is_paused();
    !sequence.is_in_prefill() && !is_paused
}
