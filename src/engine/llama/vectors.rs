//! Vectors on the engine thread: a second context on the same weights, computed between decode steps.
//!
//! ```text
//! jobs ── one input at a time, in turn ──► slots, one sequence id each
//! step:  a bounded chunk of their prompts, or the last rows of those that are read
//! ```
//!
//! A model that pools by its last token gives a vector for that row alone: everything before it is
//! read as a prompt is, without outputs, and the last tokens of several inputs share a call. (llama.cpp
//! computes logits for every row that has a vector.) The mean is taken here, in the order of the
//! tokens, so that it does not depend on where a text was cut.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use llama_cpp_2::model::LlamaModel;
use slab::Slab;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::ffi::{Batch, Context, ContextParams, LlamaError, VectorParams};
use super::gguf;
use crate::engine::config::{Embeddings, Pooling, Settings};
use crate::generation::{Failure, Kind};
use crate::telemetry::ModelMetrics;

/// Prompts are cut at multiples of this, as everywhere in this engine: the bits of a row then do not
/// depend on the cuts.
const GRID: u32 = 64;

/// Memory for the logits that llama.cpp computes beside the vectors of one call.
const LOGITS_BYTES: usize = 64 << 20;

/// Calls for which an input that lacks only its last row waits for others.
const PATIENCE: u32 = 4;

/// What becomes of the vectors of a sequence's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pool {
    /// Their mean.
    Mean,
    /// The last one's.
    Last,
    /// The last one's, through the model's head: a probability per class.
    Rank,
}

/// How a model makes vectors.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) pool: Pool,
    pub(super) params: ContextParams,
    /// Whether the context is made at once.
    pub(super) at_load: bool,
}

impl Plan {
    /// How the model makes vectors, or why it makes none. `params` are those of its streams.
    pub(super) fn new(
        settings: &Settings,
        file: &gguf::Vectors,
        params: &ContextParams,
        model: &LlamaModel,
    ) -> Result<Self, &'static str> {
        if settings.embeddings == Embeddings::Off {
            return Err("The configuration switches vectors off for this model.");
        }
        let pool = pool(settings.pooling, file)?;
        if file.is_projected || model.n_embd_out() != model.n_embd() {
            return Err("This model projects its vectors, which is not supported.");
        }
        let context = settings
            .embeddings_context
            .map_or(params.context, u32::from);
        let sequences = settings.embeddings_parallel;
        let rows = match pool {
            Pool::Mean => mean_rows(model.n_vocab(), params.batch).max(sequences),
            Pool::Last | Pool::Rank => sequences,
        };
        Ok(Self {
            pool,
            at_load: settings.embeddings == Embeddings::On,
            params: ContextParams {
                context,
                cells: u64::from(context) * u64::from(sequences),
                sequences,
                // An input's bits then do not depend on its neighbours.
                unified: false,
                vectors: Some(VectorParams {
                    ranks: pool == Pool::Rank,
                    rows,
                }),
                ..params.clone()
            },
        })
    }
}

fn pool(configured: Pooling, file: &gguf::Vectors) -> Result<Pool, &'static str> {
    match (configured, file.pooled) {
        (Pooling::Mean, _) | (Pooling::Auto, gguf::Pooled::Mean) => Ok(Pool::Mean),
        (Pooling::Last, _) | (Pooling::Auto, gguf::Pooled::Unsaid | gguf::Pooled::Last) => {
            Ok(Pool::Last)
        }
        (Pooling::Auto, gguf::Pooled::Rank) if file.has_head => Ok(Pool::Rank),
        (Pooling::Auto, gguf::Pooled::Rank) => {
            Err("This model is marked for ranking, but has no head that could.")
        }
        (Pooling::Auto, gguf::Pooled::First) => {
            Err("This model pools by its first token, which has seen nothing of the text.")
        }
    }
}

/// Rows of a call in which each has a vector, and so logits: a multiple of the grid where it can be.
fn mean_rows(vocabulary: i32, batch: u32) -> u32 {
    let row = usize::try_from(vocabulary).unwrap_or(1).max(1) * size_of::<f32>();
    let rows = u32::try_from(LOGITS_BYTES / row).unwrap_or(u32::MAX);
    (rows / GRID * GRID).clamp(GRID, batch.max(GRID)).min(batch)
}

/// Inputs whose vectors belong together.
pub(super) struct Job {
    /// Tokens of each, at least one and at most the context's.
    pub(super) inputs: Vec<Vec<u32>>,
    /// Gets all vectors, one after the other. Closed when nobody waits any more.
    pub(super) reply: oneshot::Sender<Result<Vec<f32>, Failure>>,
    /// When its request was accepted.
    pub(super) accepted: Instant,
    /// Give up when not begun by then.
    pub(super) queue_deadline: Option<(Instant, Duration)>,
    /// Held until it ends.
    pub(super) place: OwnedSemaphorePermit,
}

/// A job under way.
struct Running {
    job: Job,
    vectors: Vec<f32>,
    begun: usize,
    ended: usize,
}

impl Running {
    fn end(self, result: Result<Vec<f32>, Failure>) {
        // Who has the answer may come with the next request at once.
        drop(self.job.place);
        let _ = self.job.reply.send(result);
    }
}

/// One input with its cells.
struct Slot {
    /// Which of the jobs, and which of its inputs.
    job: usize,
    input: usize,
    done: u32,
    len: u32,
    /// Of the vectors so far, where their mean is wanted.
    sum: Vec<f64>,
}

/// Part of an input in a call.
#[derive(Clone, Copy)]
struct Run {
    slot: usize,
    from: u32,
    to: u32,
    /// The first of its rows.
    row: usize,
}

/// Everything about vectors that lives on the engine thread.
pub(super) struct Vectors {
    plan: Plan,
    model: Arc<LlamaModel>,
    abort: Arc<AtomicBool>,
    metrics: Arc<ModelMetrics>,
    inbox: Receiver<Job>,
    context: Option<Context>,
    /// Prompt rows per call while streams run.
    chunk: u32,
    batch: Batch,
    jobs: Slab<Running>,
    /// Jobs with inputs still to begin, in turn.
    queue: VecDeque<usize>,
    slots: Vec<Option<Slot>>,
    runs: Vec<Run>,
    /// Who comes first in the next chunk.
    turn: usize,
    /// Calls since an input began to wait for its last row.
    waited: u32,
    took_turn: bool,
}

impl Vectors {
    /// On the engine thread. `chunk` is how many prompt rows a call may have while streams run.
    ///
    /// # Errors
    /// The context was to be made at once, and could not be.
    pub(super) fn new(
        plan: Plan,
        model: Arc<LlamaModel>,
        abort: Arc<AtomicBool>,
        metrics: Arc<ModelMetrics>,
        inbox: Receiver<Job>,
        chunk: u32,
    ) -> Result<Self, LlamaError> {
        let mut vectors = Self {
            batch: Batch::with_capacity(plan.params.batch as usize),
            slots: (0..plan.params.sequences).map(|_| None).collect(),
            plan,
            model,
            abort,
            metrics,
            inbox,
            context: None,
            chunk,
            jobs: Slab::new(),
            queue: VecDeque::new(),
            runs: Vec::new(),
            turn: 0,
            waited: 0,
            took_turn: false,
        };
        if vectors.plan.at_load {
            vectors.make_context()?;
        }
        Ok(vectors)
    }

    /// Whether the one bounded call of this step beside the decode rows is for vectors. While there is
    /// work, every second one is; the others are for prompts.
    pub(super) fn takes_turn(&mut self) -> bool {
        self.take_jobs();
        self.took_turn = !self.jobs.is_empty() && !self.took_turn;
        self.took_turn
    }

    /// One bounded call, if there is anything to compute.
    pub(super) fn step(&mut self, streams_run: bool) -> bool {
        self.take_jobs();
        if self.jobs.is_empty() {
            return false;
        }
        self.drop_jobs();
        self.begin();
        if self.slots.iter().all(Option::is_none) {
            return false;
        }
        if let Err(error) = self.make_context() {
            let failure = Failure::internal(error.to_string());
            for running in std::mem::take(&mut self.jobs) {
                running.1.end(Err(failure.clone()));
            }
            self.queue.clear();
            self.slots.fill_with(|| None);
            return true;
        }
        let chunk = if streams_run { self.chunk } else { u32::MAX };
        if self.plan.pool == Pool::Mean {
            self.read(chunk, true);
        } else if self.finals_are_due() {
            self.give_last_rows();
        } else {
            self.read(chunk, false);
        }
        true
    }

    fn make_context(&mut self) -> Result<(), LlamaError> {
        if self.context.is_none() {
            let abort = self.abort.clone();
            let context = Context::new(self.model.clone(), &self.plan.params, abort)?;
            self.context = Some(context);
        }
        Ok(())
    }

    fn take_jobs(&mut self) {
        while let Ok(job) = self.inbox.try_recv() {
            let running = Running {
                vectors: Vec::new(),
                begun: 0,
                ended: 0,
                job,
            };
            self.queue.push_back(self.jobs.insert(running));
        }
    }

    /// Ends the jobs that nobody waits for any more, and those that have waited too long to begin.
    fn drop_jobs(&mut self) {
        let now = Instant::now();
        let late = |running: &Running| match running.job.queue_deadline {
            Some((deadline, bound)) if running.begun == 0 && now >= deadline => Some(bound),
            _ => None,
        };
        let ended: Vec<_> = self
            .jobs
            .iter()
            .filter(|(_, running)| running.job.reply.is_closed() || late(running).is_some())
            .map(|(key, running)| (key, late(running)))
            .collect();
        for (key, late) in ended {
            let bound = humantime::format_duration(late.unwrap_or_default());
            self.fail(
                key,
                Failure::new(
                    Kind::Deadline,
                    format!("The request waited longer than {bound} for its turn."),
                )
                .with_code("queue_timeout")
                .with_retry_after(super::RETRY_AFTER),
            );
        }
    }

    /// Gives free slots to inputs, one of each job in turn.
    fn begin(&mut self) {
        for id in 0..self.slots.len() {
            if self.slots[id].is_some() {
                continue;
            }
            let Some(key) = self.queue.pop_front() else {
                return;
            };
            let Some(running) = self.jobs.get_mut(key) else {
                continue;
            };
            if running.begun == 0 {
                self.metrics.queued(running.job.accepted.elapsed());
            }
            let input = running.begun;
            running.begun += 1;
            if running.begun < running.job.inputs.len() {
                self.queue.push_back(key);
            }
            self.slots[id] = Some(Slot {
                job: key,
                input,
                done: 0,
                len: count(running.job.inputs[input].len()),
                sum: Vec::new(),
            });
        }
    }

    /// Whether inputs that lack only their last row get it now: when all others do, when enough do, or
    /// when they have waited.
    fn finals_are_due(&mut self) -> bool {
        let (mut ready, mut active) = (0, 0);
        for slot in self.slots.iter().flatten() {
            active += 1;
            ready += usize::from(slot.done + 1 == slot.len);
        }
        if ready == 0 {
            self.waited = 0;
            return false;
        }
        self.waited += 1;
        ready == active || ready * 2 >= self.slots.len() || self.waited > PATIENCE
    }

    /// One chunk of the inputs' tokens: with their vectors, or all but the last of each without.
    fn read(&mut self, chunk: u32, with_vectors: bool) {
        let Some(context) = &mut self.context else {
            return;
        };
        let mut left = chunk.min(context.max_rows());
        if let (true, Some(vectors)) = (with_vectors, self.plan.params.vectors) {
            left = left.min(vectors.rows);
        }
        self.runs.clear();
        let slots = self.slots.len();
        let first = self.turn;
        for id in (0..slots).map(|at| (first + at) % slots) {
            let Some(slot) = &self.slots[id] else {
                continue;
            };
            let end = slot.len - u32::from(!with_vectors);
            let mut to = end.min(slot.done.saturating_add(left));
            if to < end {
                to = to / GRID * GRID;
            }
            if to > slot.done {
                left -= to - slot.done;
                self.turn = (id + 1) % slots;
                self.runs.push(Run {
                    slot: id,
                    from: slot.done,
                    to,
                    row: 0,
                });
            }
        }
        self.call_each_length(with_vectors);
    }

    /// The last rows of all inputs that lack only these.
    fn give_last_rows(&mut self) {
        self.waited = 0;
        self.runs.clear();
        for (id, slot) in self.slots.iter().enumerate() {
            if let Some(slot) = slot
                && slot.done + 1 == slot.len
            {
                self.runs.push(Run {
                    slot: id,
                    from: slot.done,
                    to: slot.len,
                    row: 0,
                });
            }
        }
        self.call_each_length(true);
    }

    /// Computes `runs`, those of one length together. (llama.cpp cuts runs of different lengths until all
    /// pieces are equally long. Off the grid, such cuts would move the bits of a vector with what happens
    /// to be computed beside it.)
    fn call_each_length(&mut self, with_vectors: bool) {
        self.runs
            .sort_unstable_by_key(|run| (run.to - run.from, run.slot));
        let mut from = 0;
        while let Some(first) = self.runs.get(from) {
            let len = first.to - first.from;
            let same = self.runs[from..].iter();
            let to = from + same.take_while(|run| run.to - run.from == len).count();
            self.call(from..to, with_vectors);
            from = to;
        }
    }

    /// Computes some of `runs`, which are sorted by their slots.
    fn call(&mut self, runs: std::ops::Range<usize>, with_vectors: bool) {
        let Some(context) = &mut self.context else {
            return;
        };
        self.batch.clear();
        for run in &mut self.runs[runs.clone()] {
            run.row = self.batch.len();
            let Some(slot) = &self.slots[run.slot] else {
                continue;
            };
            let tokens = &self.jobs[slot.job].job.inputs[slot.input];
            for position in run.from..run.to {
                let token = tokens[position as usize];
                self.batch
                    .push(token, position, count(run.slot), with_vectors);
            }
        }
        if self.batch.len() == 0 {
            return;
        }
        context.give_vectors(with_vectors);
        let computed = context.decode(&mut self.batch);
        let is_broken = context.is_broken();
        for at in runs {
            let run = self.runs[at];
            let result = match &computed {
                Ok(()) => self.computed(run, with_vectors),
                Err(LlamaError::Aborted) => {
                    Err(Failure::new(Kind::Draining, "The model was stopped."))
                }
                Err(error) => Err(Failure::internal(error.to_string())),
            };
            if let (Err(failure), Some(slot)) = (result, &self.slots[run.slot]) {
                let job = slot.job;
                self.fail(job, failure);
            }
        }
        if is_broken {
            // The next texts get another one.
            self.context = None;
        }
    }

    /// Takes in what was computed of a run.
    fn computed(&mut self, run: Run, with_vectors: bool) -> Result<(), Failure> {
        // The slot is empty if an earlier run ended its job.
        let (Some(slot), Some(context)) = (&mut self.slots[run.slot], &mut self.context) else {
            return Ok(());
        };
        slot.done = run.to;
        let none = || Failure::internal("a row has no vector");
        let running = &mut self.jobs[slot.job];
        if with_vectors && self.plan.pool == Pool::Mean {
            slot.sum.resize(context.vector_width(), 0.0);
            for row in run.row..run.row + (run.to - run.from) as usize {
                let vector = context.vector(row).ok_or_else(none)?;
                for (sum, &number) in slot.sum.iter_mut().zip(vector) {
                    *sum += f64::from(number);
                }
            }
        }
        if slot.done < slot.len {
            return Ok(());
        }
        let (width, at) = match self.plan.pool {
            Pool::Rank => (1, slot.input),
            _ => (context.vector_width(), slot.input),
        };
        running
            .vectors
            .resize(running.job.inputs.len() * width, 0.0);
        let out = &mut running.vectors[at * width..(at + 1) * width];
        match self.plan.pool {
            Pool::Mean => {
                for (out, sum) in out.iter_mut().zip(&slot.sum) {
                    #[expect(clippy::cast_possible_truncation, reason = "a mean of f32")]
                    {
                        *out = (sum / f64::from(slot.len)) as f32;
                    }
                }
            }
            Pool::Last => out.copy_from_slice(context.vector(run.row).ok_or_else(none)?),
            // The first class is the one that says yes.
            Pool::Rank => {
                let classes = context.classes(count(run.slot)).ok_or_else(none)?;
                out.copy_from_slice(classes.get(..1).ok_or_else(none)?);
            }
        }
        let key = slot.job;
        running.ended += 1;
        let is_over = running.ended == running.job.inputs.len();
        self.free(run.slot);
        if is_over {
            let mut running = self.jobs.remove(key);
            let vectors = std::mem::take(&mut running.vectors);
            running.end(Ok(vectors));
        }
        Ok(())
    }

    /// Ends a job, with what it holds.
    fn fail(&mut self, key: usize, failure: Failure) {
        for id in 0..self.slots.len() {
            if self.slots[id].as_ref().is_some_and(|slot| slot.job == key) {
                self.free(id);
            }
        }
        self.queue.retain(|&queued| queued != key);
        if let Some(running) = self.jobs.try_remove(key) {
            running.end(Err(failure));
        }
    }

    fn free(&mut self, id: usize) {
        self.slots[id] = None;
        if let Some(context) = &mut self.context {
            context.forget(count(id));
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
