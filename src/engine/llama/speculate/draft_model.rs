//! A draft model: a small model of the same vocabulary that says what may follow, for all sequences at once.
//!
//! ```text
//! call 0      what each sequence has that the draft model has not read; its last row gives a draft
//! call 1..k   the draft before, for every sequence that wants another one
//! ```
//!
//! It has a context of its own, split by the same sequence ids, and takes the likeliest token each time. It
//! only guesses: what its cells hold is noted beside them, and a sequence that is not the one noted is
//! read anew. So whoever ends, is set aside or moves need not tell it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_sys_2 as sys;

use super::worth::{Costs, MOST};
use crate::engine::llama::crew::Crew;
use crate::engine::llama::ffi::{Batch, Context, ContextParams, LlamaError};
use crate::engine::llama::sequence::{Sequence, count};
use crate::engine::llama::threads::Phase;
use crate::engine::llama::worker::Slot;
use crate::generation::clock;

/// Tokens that are read whatever it costs: what a sequence gains in a step, drafts included.
const FEW: u32 = 1 + MOST as u32;

/// Least tokens of a prompt that are read in a step.
const LEAST_READ: u32 = 16;

/// The part of the longest step that reading prompts may take.
const READING_PART: u64 = 4;

/// What a sequence asks for.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine::llama) struct Wanted {
    pub(in crate::engine::llama) id: u32,
    /// At most so many drafts.
    pub(in crate::engine::llama) most: u16,
}

/// What the cells of one id hold.
#[derive(Debug, Default)]
struct Held {
    /// Whose they are, by its number; 0 for nobody's.
    admitted: u64,
    /// Tokens that the sequence had left out then.
    left_out: u32,
    /// Tokens of the sequence that are computed.
    known: u32,
    /// Drafts that are computed behind those.
    guessed: Vec<u32>,
}

impl Held {
    /// Tokens of a sequence that are computed, drafts aside: none of another one, and its head alone if
    /// more was left out since.
    fn known_of(&self, sequence: &Sequence) -> u32 {
        if self.admitted != sequence.admitted {
            0
        } else if self.left_out != sequence.left_out {
            self.known.min(sequence.head())
        } else {
            self.known
        }
    }
}

/// A sequence that is being drafted for.
#[derive(Clone, Copy, Debug)]
struct Guess {
    id: u32,
    most: u16,
    /// Where the next draft goes.
    position: u32,
    /// The row that gives it.
    row: usize,
}

/// A small model with its context. Made and used on the engine thread.
pub(in crate::engine::llama) struct DraftModel {
    context: Context,
    crew: Crew,
    batch: Batch,
    /// By sequence id.
    held: Vec<Held>,
    guesses: Vec<Guess>,
    /// What its calls cost, by rows.
    costs: Costs,
    /// Tokens that both models know.
    vocabulary: usize,
    /// Most time for prompts in a step, in microseconds.
    reading_us: u64,
    /// Whether each sequence is read at once, as if it cost nothing.
    #[cfg(test)]
    pub(in crate::engine::llama) always: bool,
    /// Whether its next call fails.
    #[cfg(test)]
    pub(in crate::engine::llama) fails: bool,
}

impl DraftModel {
    /// A context for sequences as those of `params`, which are the target's.
    ///
    /// # Errors
    /// llama.cpp makes no such context, or it cannot take back what it has computed.
    pub(in crate::engine::llama) fn new(
        model: Arc<LlamaModel>,
        params: &ContextParams,
        mut crew: Crew,
        abort: Arc<AtomicBool>,
        vocabulary: usize,
        max_step_us: u64,
    ) -> Result<Self, LlamaError> {
        let params = ContextParams {
            cells: u64::from(params.context) * u64::from(params.sequences),
            unified: false,
            flash_attention: sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
            type_k: sys::GGML_TYPE_F16,
            type_v: sys::GGML_TYPE_F16,
            vectors: None,
            ..params.clone()
        };
        let vocabulary = vocabulary.min(usize::try_from(model.n_vocab()).unwrap_or(0));
        let mut context = Context::new(model, &params, abort)?;
        let mut batch = Batch::with_capacity(context.max_rows() as usize);
        for position in 0..2 {
            batch.push(0, position, 0, true);
        }
        context.decode(&mut batch)?;
        if !context.truncate(0, 1) {
            return Err(LlamaError::Bounds("its state cannot be cut"));
        }
        context.forget(0);
        let began = clock::micros();
        crew.calibrate(&mut context)?;
        let mut costs = Costs::default();
        costs.measured(1, clock::micros().saturating_sub(began));
        Ok(Self {
            context,
            crew,
            batch,
            held: (0..params.sequences).map(|_| Held::default()).collect(),
            guesses: Vec::new(),
            costs,
            vocabulary,
            reading_us: max_step_us / READING_PART,
            #[cfg(test)]
            always: false,
            #[cfg(test)]
            fails: false,
        })
    }

    /// Forgets whose its cells are: the numbers of sequences begin anew.
    pub(in crate::engine::llama) fn forget_all(&mut self) {
        for held in &mut self.held {
            held.admitted = 0;
        }
    }

    /// Microseconds that a draft costs where so many sequences want one.
    pub(in crate::engine::llama) fn price(&self, sequences: usize) -> f32 {
        #[cfg(test)]
        if self.always {
            return 0.0;
        }
        let call = self.costs.of(sequences).unwrap_or(0.0);
        #[expect(clippy::cast_precision_loss, reason = "a price need not be exact")]
        let each = call / sequences.max(1) as f32;
        each
    }

    /// Whether a sequence may be drafted for: it has been read, or has taken as long already as reading
    /// it would, at `token_us` for each of its own. So nobody pays for reading more than twice what the
    /// best would be, however long it goes on.
    pub(in crate::engine::llama) fn suits(
        &self,
        id: u32,
        sequence: &Sequence,
        token_us: f32,
    ) -> bool {
        let Some(held) = self.held.get(id as usize) else {
            return false;
        };
        let known = held.known_of(sequence);
        let missing = length(sequence).saturating_sub(known);
        #[cfg(test)]
        if self.always {
            return true;
        }
        let rows = self.readable();
        let call = self.costs.of(rows as usize).unwrap_or(0.0);
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let (cost, spent) = (
            call * missing as f32 / rows as f32,
            token_us * sequence.generated_len() as f32,
        );
        missing <= FEW || cost <= spent
    }

    /// Puts drafts into the sequences that want some. Of one that it has still much to read of, it reads
    /// a part.
    ///
    /// # Errors
    /// A call failed; the model is of no more use.
    pub(in crate::engine::llama) fn draft(
        &mut self,
        wanted: &[Wanted],
        slots: &mut [Slot],
    ) -> Result<(), LlamaError> {
        self.read(wanted, slots)?;
        while !self.guesses.is_empty() {
            let began = clock::micros();
            self.take(slots)?;
            self.batch.clear();
            for guess in &mut self.guesses {
                let sequence = slots.get(guess.id as usize).and_then(Slot::sequence);
                let Some(&last) = sequence.and_then(|sequence| sequence.drafts.last()) else {
                    continue;
                };
                let Some(held) = self.held.get_mut(guess.id as usize) else {
                    continue;
                };
                held.guessed.push(last);
                guess.row = self.batch.push(last, guess.position, guess.id, true);
                guess.position += 1;
            }
            if self.batch.len() == 0 {
                break;
            }
            self.compute(Phase::Decode)?;
            let us = clock::micros().saturating_sub(began);
            self.costs.measured(self.batch.len(), us);
        }
        Ok(())
    }

    /// Reads what the sequences have that the cells have not; notes those of which nothing is left.
    fn read(&mut self, wanted: &[Wanted], slots: &[Slot]) -> Result<(), LlamaError> {
        let began = clock::micros();
        self.batch.clear();
        self.guesses.clear();
        let mut room = self.context.max_rows();
        let mut long = self.readable();
        for many in [false, true] {
            for &Wanted { id, most } in wanted {
                let Some(sequence) = slots.get(id as usize).and_then(Slot::sequence) else {
                    continue;
                };
                let length = length(sequence);
                let known = self.settle(id, sequence);
                let missing = length.saturating_sub(known);
                if missing == 0 || (missing > FEW) != many {
                    continue;
                }
                let rows = missing.min(room).min(if many { long } else { room });
                let end = known + rows;
                // What the model does not know it cannot read.
                let reads = |position| (sequence.token(position) as usize) < self.vocabulary;
                if rows == 0 || !(known..end).all(reads) {
                    continue;
                }
                let mut row = 0;
                for position in known..end {
                    let token = sequence.token(position);
                    row = self.batch.push(token, position, id, position + 1 == length);
                }
                room -= rows;
                if many {
                    long -= rows;
                }
                if let Some(held) = self.held.get_mut(id as usize) {
                    held.known = end;
                }
                if end == length {
                    self.guesses.push(Guess {
                        id,
                        most,
                        position: length,
                        row,
                    });
                }
            }
        }
        if self.batch.len() == 0 {
            return Ok(());
        }
        let reads = self.batch.len() > wanted.len() * 2;
        self.compute(if reads { Phase::Prefill } else { Phase::Decode })?;
        if let Some(guess) = self.guesses.first() {
            // Waits where the call is still under way.
            let _ = self.context.logits(guess.row);
        }
        let us = clock::micros().saturating_sub(began);
        self.costs.measured(self.batch.len(), us);
        Ok(())
    }

    /// Brings what is noted of an id's cells in line with the sequence that has the id: drafts that were
    /// right are its tokens, the others go. The tokens of it that are computed, but for the last one:
    /// its row is needed.
    fn settle(&mut self, id: u32, sequence: &Sequence) -> u32 {
        let Some(held) = self.held.get_mut(id as usize) else {
            return 0;
        };
        if held.admitted != sequence.admitted {
            self.context.forget(id);
            held.guessed.clear();
            (held.admitted, held.known) = (sequence.admitted, 0);
            held.left_out = sequence.left_out;
            return 0;
        }
        let last = length(sequence).saturating_sub(1);
        let before = held.known + count(held.guessed.len());
        if held.left_out != sequence.left_out {
            held.known = held.known_of(sequence);
            held.left_out = sequence.left_out;
            held.guessed.clear();
        }
        for &guess in &held.guessed {
            if held.known >= last || sequence.token(held.known) != guess {
                break;
            }
            held.known += 1;
        }
        held.guessed.clear();
        held.known = held.known.min(last);
        if held.known < before && !self.context.truncate(id, held.known) {
            self.context.forget(id);
            held.known = 0;
        }
        held.known
    }

    /// Takes a draft from the last call's row of every sequence, and lets go of those that have enough.
    fn take(&mut self, slots: &mut [Slot]) -> Result<(), LlamaError> {
        let Self {
            context,
            guesses,
            vocabulary,
            ..
        } = self;
        let mut failed = false;
        guesses.retain(|guess| {
            let sequence = (slots.get_mut(guess.id as usize)).and_then(Slot::sequence_mut);
            let Some(sequence) = sequence else {
                return false;
            };
            let Some(logits) = context.logits(guess.row) else {
                failed = true;
                return false;
            };
            let known = logits.get(..*vocabulary).unwrap_or(logits);
            sequence.drafts.push(likeliest(known));
            sequence.drafts.len() < usize::from(guess.most)
        });
        if failed {
            return Err(LlamaError::Bounds("a row has no logits"));
        }
        Ok(())
    }

    fn compute(&mut self, phase: Phase) -> Result<(), LlamaError> {
        #[cfg(test)]
        if self.fails {
            return Err(LlamaError::NoRoom);
        }
        self.crew.compute(phase, &mut self.context, &mut self.batch)
    }

    /// Rows of prompts that a step has time for.
    fn readable(&self) -> u32 {
        let most = self.context.max_rows();
        let mut rows = LEAST_READ.min(most);
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let time = self.reading_us as f32;
        while rows * 2 <= most && (self.costs.of(rows as usize * 2)).is_some_and(|us| us <= time) {
            rows *= 2;
        }
        rows
    }
}

/// Tokens of a sequence that has begun to answer, but for those that it has left out.
fn length(sequence: &Sequence) -> u32 {
    sequence.target() + 1
}

/// The token with the highest logit; of equal ones the first.
fn likeliest(logits: &[f32]) -> u32 {
    let above = |a: f32, &b: &f32| if b > a { b } else { a };
    let highest = logits.iter().fold(f32::NEG_INFINITY, above);
    let at = logits.iter().position(|&logit| logit >= highest);
    count(at.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_highest_is_the_likeliest() {
        assert_eq!(likeliest(&[0.0, 3.0, f32::NAN, 3.0]), 1);
        assert_eq!(likeliest(&[f32::NEG_INFINITY, -1.0]), 1);
        assert_eq!(likeliest(&[f32::NAN]), 0);
        assert_eq!(likeliest(&[]), 0);
    }
}
