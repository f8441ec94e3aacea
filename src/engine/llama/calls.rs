//! The two calls of a step: rows of those who decode, then a chunk of prompts.

use std::sync::atomic::Ordering::Relaxed;

use super::ffi::LlamaError;
use super::plan::{Plan, Row};
use super::sampling::pool::{Work, emit};
use super::sequence::{GRID, Sequence, count};
#[cfg(test)]
use super::speculate::Costs;
use super::speculate::{Chance, Speculation, Wanted};
use super::threads::Phase;
use super::worker::{Slot as Held, Worker};
use crate::engine::ring::End;
use crate::generation::{Failure, Finish, Kind, Moment, chain, clock};

/// Calls that may fail one after the other before the engine gives itself up: its context is not to be
/// trusted any more, and a new one serves everybody better.
const MOST_FAILED_CALLS: u32 = 3;

impl Worker {
    /// One row for every sequence that is planned to decode, and one for each of its drafts; false if
    /// there was none.
    pub(super) fn decode(&mut self, plan: &Plan) -> bool {
        self.batch.clear();
        self.rows.clear();
        for &Row { id, rows, .. } in &plan.decode {
            let Some(sequence) = (self.slots.get_mut(id as usize)).and_then(Held::sequence_mut)
            else {
                continue;
            };
            if sequence.is_in_prefill() {
                continue;
            }
            sequence
                .drafts
                .truncate(usize::from(rows).saturating_sub(1));
            let most = sequence.position + 1 + count(sequence.drafts.len());
            if self.limits.pooled && most > count(sequence.pages.len()) * GRID {
                continue;
            }
            let first = self
                .batch
                .push(sequence.next(), sequence.position, id, true);
            for (&draft, position) in sequence.drafts.iter().zip(sequence.position + 1..) {
                self.batch.push(draft, position, id, true);
            }
            self.rows.push((id, first));
        }
        if self.rows.is_empty() {
            return false;
        }
        let began_us = clock::micros();
        let done = self.compute(Phase::Decode);
        let at = clock::micros();
        let took_us = at.saturating_sub(began_us);
        match done {
            Ok(()) => {
                // Drafts are a part of what a step of decoding takes.
                let drafts_us = std::mem::take(&mut self.drafts_us);
                self.rates.decoded(took_us + drafts_us);
                self.row_ns = took_us.saturating_mul(1000) / (self.batch.len() as u64).max(1);
                self.costs.measured(self.batch.len(), took_us);
                let counters = &self.setup.counters;
                counters.steps.decoded(self.batch.len(), took_us);
                let ids = self.rows.iter().map(|&(id, _)| id);
                self.dense.measured(ids, took_us);
                self.planner.decoded(plan, took_us + drafts_us);
                let (sequences, drafted) = (self.rows.len(), self.batch.len() - self.rows.len());
                self.share_rows(at);
                let rows = self.rows.len();
                let right = self.setup.counters.accepted_drafts.load(Relaxed);
                let sampling_us = self.sample_rows(at);
                let right = self.setup.counters.accepted_drafts.load(Relaxed) - right;
                self.setup.pool.sampled(rows, sampling_us);
                let step_us = drafts_us + took_us + sampling_us;
                self.trials.took(sequences as u64 + right, drafted, step_us);
                self.collect(false);
            }
            Err(error) => self.failed(&error),
        }
        true
    }

    /// Looks for what may follow in every sequence that could decode now, where that is wanted and
    /// wrong rows can be taken back.
    pub(super) fn draft(&mut self) {
        if !self.setup.speculates || self.setup.cache.is_whole() {
            return;
        }
        #[cfg(test)]
        if self.setup.counters.drafts_always.load(Relaxed) {
            self.costs = Costs::free();
            if let Some(model) = &mut self.setup.draft_model {
                model.always = true;
                model.fails = self.setup.counters.draft_model_fails.load(Relaxed);
            }
        }
        let decodes = |sequence: &Sequence| {
            let has_begun = !sequence.is_in_prefill() && !sequence.generated.is_empty();
            has_begun && sequence.paused_since_us.is_none()
        };
        let began_us = clock::micros();
        let running = self.slots.iter().filter_map(Held::sequence);
        let streams = running.filter(|sequence| decodes(sequence)).count();
        let mut rows = streams;
        let pays = self.trials.allows(streams);
        #[cfg(test)]
        let pays = pays || self.setup.counters.drafts_always.load(Relaxed);
        let model = self.setup.draft_model.as_ref();
        let model = model.map(|model| (model, model.price(streams), self.costs.each(streams)));
        self.wanted.clear();
        for (id, slot) in (0..).zip(&mut self.slots) {
            let Some(sequence) = slot.sequence_mut() else {
                continue;
            };
            sequence.drafts.clear();
            // Each row may yield a token, which must find room, and be within what was asked for.
            let left = sequence.job.budget.saturating_sub(sequence.generated_len());
            let cells = sequence.job.most.saturating_sub(sequence.position);
            let most = left.min(cells).min(sequence.job.ring.room());
            if !pays || !decodes(sequence) || most < 2 {
                continue;
            }
            let suited = model.filter(|(model, _, own_us)| model.suits(id, sequence, *own_us));
            let chance = Chance {
                most: most - 1,
                rows,
                streams,
                costs: &self.costs,
                model: suited.map(|(_, price, _)| price),
            };
            let speculation = sequence
                .speculation
                .get_or_insert_with(|| Box::new(Speculation::new(&self.costs)));
            let wanted = speculation.draft(
                &sequence.job.prompt,
                &sequence.generated,
                sequence.job.sampler.guide_mut(),
                &chance,
                &mut sequence.drafts,
            );
            rows += sequence.drafts.len();
            if let Some(most) = wanted {
                rows += usize::from(most);
                self.wanted.push(Wanted { id, most });
            }
        }
        self.ask_draft_model();
        self.drafts_us = clock::micros().saturating_sub(began_us);
    }

    fn ask_draft_model(&mut self) {
        let Some(model) = &mut self.setup.draft_model else {
            return;
        };
        if self.wanted.is_empty() {
            return;
        }
        if let Err(error) = model.draft(&self.wanted, &mut self.slots) {
            // It only guesses: the streams go on without.
            if !matches!(error, LlamaError::Aborted) {
                tracing::error!(
                    error = chain(&error),
                    "the draft model fails, and is not used any more"
                );
            }
            self.setup.draft_model = None;
        }
    }

    /// The planned chunk of prompts; false if there was none.
    pub(super) fn prefill(&mut self, plan: &Plan) -> bool {
        self.batch.clear();
        self.rows.clear();
        for run in &plan.prefill {
            let Some(sequence) = self.slots.get(run.id as usize).and_then(Held::sequence) else {
                continue;
            };
            let lacks_cells = self.limits.pooled && run.to > count(sequence.pages.len()) * GRID;
            if sequence.position != run.from || run.to > sequence.target() || lacks_cells {
                continue;
            }
            // What was generated before its state was lost has been sampled.
            let last = (sequence.generated.is_empty()).then(|| sequence.target() - 1);
            let mut row = 0;
            for position in run.from..run.to {
                let token = sequence.token(position);
                row = self
                    .batch
                    .push(token, position, run.id, Some(position) == last);
            }
            self.rows.push((run.id, row));
        }
        if self.rows.is_empty() {
            return false;
        }
        let began_us = clock::micros();
        let done = self.compute(Phase::Prefill);
        let ended_us = clock::micros();
        if let Err(error) = done {
            self.failed(&error);
            return true;
        }
        let took_us = ended_us.saturating_sub(began_us);
        let rows = count(self.batch.len());
        self.rates.prefilled(rows, took_us);
        let counters = &self.setup.counters;
        counters.steps.prefilled(self.batch.len(), took_us);
        self.planner.prefilled(plan, took_us);
        for run in &plan.prefill {
            let Some(sequence) = self.sequence_mut(run.id) else {
                continue;
            };
            if sequence.position == run.from {
                sequence.position = run.to;
                sequence.served_us = ended_us;
                self.keep_checkpoint(run.id);
            }
        }
        let slots = &self.slots;
        self.rows.retain(|&(id, _)| {
            let sequence = slots.get(id as usize).and_then(Held::sequence);
            sequence.is_some_and(|s| !s.is_in_prefill() && s.generated.is_empty())
        });
        for &(id, _) in &self.rows {
            if let Some(sequence) = self.sequence(id) {
                sequence.job.ring.note(ended_us, Moment::Prefilled);
                self.took_lead(ended_us.saturating_sub(sequence.admitted_us));
            }
        }
        self.sample_rows(ended_us);
        true
    }

    /// Computes the rows of the batch, with the adapters of its sequences, which are the same for all.
    fn compute(&mut self, phase: Phase) -> Result<(), LlamaError> {
        let first = self
            .rows
            .first()
            .and_then(|&(id, _)| self.slots.get(id as usize));
        let adapters = first
            .and_then(Held::sequence)
            .and_then(|first| first.job.adapters.as_ref());
        self.context.set_adapters(adapters);
        let crew = &mut self.setup.crew;
        crew.compute(phase, &mut self.context, &mut self.batch)
    }

    /// Hands some rows of the last call to the pool, where that pays: then they are none of `rows`.
    fn share_rows(&mut self, at: u64) {
        let Self {
            setup,
            context,
            slots,
            rows,
            ..
        } = self;
        #[cfg(test)]
        {
            setup.pool.always = setup.counters.shares_rows.load(Relaxed);
        }
        let mut share = setup.pool.share(rows.len());
        if share == 0 {
            return;
        }
        rows.retain(|&(id, row)| {
            let sequence = slots.get_mut(id as usize).and_then(Held::sequence_mut);
            // What follows a right draft is in another row.
            let Some(sequence) = sequence.filter(|s| share > 0 && s.drafts.is_empty()) else {
                return true;
            };
            let Some(logits) = context.logits(row) else {
                return true;
            };
            share -= 1;
            setup.pool.hand_over(logits, |work| {
                let job = &mut sequence.job;
                (work.id, work.admitted, work.at) = (id, sequence.admitted, at);
                (work.ring, work.alternatives) = (Some(job.ring.clone()), job.logprobs);
                std::mem::swap(&mut work.sampler, &mut job.sampler);
                #[cfg(test)]
                {
                    let counters = &setup.counters;
                    counters.shared_rows.fetch_add(1, Relaxed);
                    work.panics = counters.sampling_panics.swap(false, Relaxed);
                }
            });
            false
        });
    }

    /// Takes back what the pool has sampled; all of it, waiting if need be, or what is ready. The tokens
    /// are with their readers already.
    pub(super) fn collect(&mut self, all: bool) {
        while let Some(mut work) = self.setup.pool.take_back(all) {
            self.take_back(&mut work);
            self.setup.pool.keep(work);
        }
    }

    fn take_back(&mut self, work: &mut Work) {
        let sequence = (self.slots.get_mut(work.id as usize)).and_then(Held::sequence_mut);
        let Some(sequence) = sequence.filter(|s| s.admitted == work.admitted) else {
            // Cancelled meanwhile.
            work.forget();
            return;
        };
        std::mem::swap(&mut work.sampler, &mut sequence.job.sampler);
        sequence.served_us = work.at;
        let end = match &work.outcome {
            Ok(token) => took(sequence, *token, &self.setup.eog),
            Err(failure) => Some(End::Failed(failure.clone())),
        };
        if let Some(end) = end {
            let sound = matches!(end, End::Finish(_));
            sequence.job.end(end);
            sequence.job.ring.wake();
            self.release(work.id, sound);
        }
    }

    /// Chooses the next tokens of every sequence of the last call, which ended at `at`, pushes them, and
    /// wakes the readers once. Returns the microseconds that this took.
    fn sample_rows(&mut self, at: u64) -> u64 {
        self.failed_calls = 0;
        for index in 0..self.rows.len() {
            let (id, row) = self.rows[index];
            let end = self.sample(id, row, at);
            if let Some(sequence) = self.sequence_mut(id)
                && let Some(end) = end
            {
                sequence.job.end(end);
            }
        }
        let chosen_at = clock::micros();
        for index in 0..self.rows.len() {
            let (id, _) = self.rows[index];
            let Some(sequence) = self.sequence(id) else {
                continue;
            };
            sequence.job.ring.wake();
            let sound = match sequence.job.ring.ended() {
                None => continue,
                Some(End::Finish(_)) => true,
                Some(End::Failed(_)) => false,
            };
            self.release(id, sound);
        }
        let sample_us = chosen_at.saturating_sub(at);
        let emit_us = clock::micros().saturating_sub(chosen_at);
        self.setup.counters.steps.sampled(sample_us, emit_us);
        sample_us + emit_us
    }

    /// Chooses and pushes the next token of a sequence, and one more for each draft that was right; the
    /// end of the sequence, if this is it.
    fn sample(&mut self, id: u32, first: usize, at: u64) -> Option<End> {
        let Self {
            setup,
            context,
            slots,
            scratch,
            top,
            costs,
            ..
        } = self;
        let sequence = slots.get_mut(id as usize)?.sequence_mut()?;
        sequence.served_us = at;
        let mut drafts = std::mem::take(&mut sequence.drafts);
        let mut right = 0;
        let end = loop {
            let Some(logits) = context.logits(first + right) else {
                break Some(End::Failed(Failure::internal("a row has no logits")));
            };
            let job = &mut sequence.job;
            let (wanted, ring) = (job.logprobs, &job.ring);
            let token = match emit(&mut job.sampler, logits, wanted, ring, at, scratch, top) {
                Ok(token) => token,
                Err(failure) => break Some(End::Failed(failure)),
            };
            if let Some(end) = took(sequence, token, &setup.eog) {
                break Some(end);
            }
            match drafts.get(right) {
                Some(&draft) if draft == token => right += 1,
                _ => break None,
            }
        };
        if !drafts.is_empty() {
            // The cells of drafts that were wrong hold what never was.
            let position = sequence.position;
            context.truncate(id, position);
            let counters = &setup.counters;
            counters.drafted.fetch_add(drafts.len() as u64, Relaxed);
            counters.accepted_drafts.fetch_add(right as u64, Relaxed);
            if let Some(speculation) = &mut sequence.speculation {
                speculation.verified(costs, drafts.len(), right);
            }
            drafts.clear();
        }
        sequence.drafts = drafts;
        end
    }

    /// Where states are kept whole: keeps this one if it is at the last grid line of its prompt.
    fn keep_checkpoint(&mut self, id: u32) {
        if !self.setup.cache.is_whole() {
            return;
        }
        let Held::Busy(sequence) = &self.slots[id as usize] else {
            return;
        };
        let keys = sequence.sharable();
        if !keys.is_empty() && keys.len() * GRID as usize == sequence.position as usize {
            let from = count(keys.len()) - 1;
            if self.setup.cache.saved(keys) <= from {
                self.setup
                    .cache
                    .save(&mut self.context, id, keys, from, false);
            }
        }
    }

    /// After a call that failed: ends its sequences, unless nothing was changed and there is another
    /// way. Their neighbours in other calls go on.
    fn failed(&mut self, error: &LlamaError) {
        if matches!(error, LlamaError::NoRoom) && self.evict_all() {
            // Nothing was computed, and there is more room now: the next step tries again.
            return;
        }
        self.failed_calls += 1;
        let failure = match error {
            LlamaError::Aborted => Failure::new(Kind::Draining, "The model was stopped."),
            error => Failure::internal(error.to_string()),
        };
        for index in 0..self.rows.len() {
            let (id, _) = self.rows[index];
            if let Some(sequence) = self.sequence_mut(id) {
                sequence.job.fail(failure.clone());
            }
            self.release(id, false);
        }
    }

    /// Ends everything if calls do nothing but fail; whether they do.
    pub(super) fn gives_up(&mut self) -> bool {
        if self.failed_calls < MOST_FAILED_CALLS && !self.context.is_broken() {
            return false;
        }
        tracing::error!(failed = self.failed_calls, "calls fail; the engine ends");
        let failure = Failure::internal("the engine gave up after failed calls");
        let running = self.slots.iter_mut().filter_map(Held::sequence_mut);
        for sequence in running.chain(self.waiting.iter_mut().map(|sequence| &mut **sequence)) {
            sequence.job.fail(failure.clone());
        }
        true
    }
}

/// Notes the token that a sequence was given; its end, if this is it.
fn took(sequence: &mut Sequence, token: u32, eog: &[bool]) -> Option<End> {
    // A decode row computed the token before; the prompt's last row counted itself.
    if !sequence.generated.is_empty() {
        sequence.position += 1;
    }
    sequence.generated.push(token);
    if eog.get(token as usize) == Some(&true) || sequence.job.sampler.is_complete() {
        Some(End::Finish(Finish::Stop))
    } else if sequence.generated_len() >= sequence.job.budget {
        Some(End::Finish(Finish::Length))
    } else {
        None
    }
}
