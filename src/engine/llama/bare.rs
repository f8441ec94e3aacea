//! Parts of the engine by themselves, for benches: the model without the rest, and the rest without
//! the model.
//!
//! [`BareLoop`] is the yardstick of `benches/decode.rs` and `examples/bare.rs`: one row for each of `rows`
//! sequences per step, no sampling, no rings, no readers; the engine's own figure is stated as a share of this
//! one. [`BareOutlet`] is what happens to a row of logits after that (`benches/sampling.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::crew::{Crew, Threads};
use super::ffi::{Batch, Context};
use super::load::{self, LoadError, Weights};
use super::sampling::pool::emit;
use super::sampling::{Sampler, Scratch};
use super::threads::Phase;
use crate::engine::config::{Process, Settings};
use crate::engine::ring::{Bell, Ring};
use crate::generation::Failure;

/// A model and a context that decodes `rows` sequences at once.
pub struct BareLoop {
    context: Context,
    crew: Crew,
    threads: Arc<Threads>,
    batch: Batch,
    rows: u32,
    position: u32,
    last: u32,
    /// Rows that one call computes at most.
    most: u32,
}

impl BareLoop {
    /// Loads the weights and makes a context for `settings.parallel` sequences. Sequences begin at
    /// position 0 and are started over when their context is full.
    ///
    /// # Errors
    /// As loading an engine.
    pub fn new(weights: &Weights, settings: &Settings) -> Result<Self, LoadError> {
        let (model, _, _) = load::map(weights, settings, &Process::default(), &Arc::default())?;
        let model = Arc::new(model);
        let params = super::context::context_params(settings, &model);
        let threads = Arc::new(Threads::default());
        let crew = Crew::new(params.threads, params.threads_prefill, threads.clone());
        Ok(Self {
            crew,
            threads,
            context: Context::new(model, &params, Arc::new(AtomicBool::new(false)))?,
            batch: Batch::with_capacity(params.batch as usize),
            rows: params.sequences,
            position: 0,
            last: params.context - 1,
            most: params.batch,
        })
    }

    /// Reads a prompt of so many tokens into every sequence, one after the other, from where they are.
    ///
    /// # Errors
    /// llama.cpp failed, or the context is too small.
    pub fn read(&mut self, tokens: u32) -> Result<(), LoadError> {
        let end = self.position + tokens;
        for sequence in 0..self.rows {
            let mut position = self.position;
            while position < end {
                self.batch.clear();
                for position in position..end.min(position + self.most) {
                    let token = 100 + (position + sequence) % 1000;
                    self.batch
                        .push(token, position, sequence, position + 1 == end);
                }
                self.context.decode(&mut self.batch)?;
                position += self.most;
            }
            let _ = self.context.logits(self.batch.len() - 1);
        }
        self.position = end;
        Ok(())
    }

    /// Decodes one token for every sequence.
    ///
    /// # Errors
    /// llama.cpp failed.
    pub fn step(&mut self) -> Result<(), LoadError> {
        if self.position == self.last {
            self.restart();
        }
        self.batch.clear();
        for sequence in 0..self.rows {
            // Any token will do: the computation is the same for all of them.
            let token = 100 + (self.position + sequence) % 1000;
            self.batch.push(token, self.position, sequence, true);
        }
        let (context, batch) = (&mut self.context, &mut self.batch);
        self.crew.compute(Phase::Decode, context, batch)?;
        // Where the computation is asynchronous, this waits for it, as sampling would.
        let _ = self.context.logits(self.batch.len() - 1);
        self.position += 1;
        Ok(())
    }

    /// Starts every sequence over: attention costs more with each position.
    pub fn restart(&mut self) {
        self.position = 0;
        for sequence in 0..self.rows {
            self.context.forget(sequence);
        }
    }

    /// Threads of the last step.
    #[must_use]
    pub fn threads(&self) -> u32 {
        self.threads.decode.load(Relaxed)
    }

    /// Tokens per step.
    #[must_use]
    pub fn rows(&self) -> u32 {
        self.rows
    }
}

/// A sequence's way from logits to its reader, with a reader that takes every token at once.
pub struct BareOutlet {
    ring: Arc<Ring>,
    scratch: Scratch,
    top: Vec<(u32, f32)>,
    alternatives: Option<u8>,
    at: u64,
}

impl BareOutlet {
    /// With log-probabilities and so many likeliest tokens beside each, if any are wanted.
    #[must_use]
    pub fn new(alternatives: Option<u8>) -> Self {
        let bell = Bell::new(std::thread::current(), Arc::new(AtomicBool::new(false)));
        Self {
            ring: Ring::new(64, alternatives.unwrap_or(0), bell),
            scratch: Scratch::default(),
            top: Vec::new(),
            alternatives,
            at: 0,
        }
    }

    /// Chooses a token, pushes it, wakes the reader and takes it.
    ///
    /// # Errors
    /// As sampling.
    pub fn emit(&mut self, sampler: &mut Sampler, logits: &[f32]) -> Result<u32, Failure> {
        self.at += 1;
        let (scratch, top) = (&mut self.scratch, &mut self.top);
        let wanted = self.alternatives;
        let token = emit(sampler, logits, wanted, &self.ring, self.at, scratch, top)?;
        self.ring.wake();
        let _ = self.ring.pop(&mut self.top);
        self.top.clear();
        Ok(token)
    }
}
