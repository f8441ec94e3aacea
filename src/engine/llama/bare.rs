//! The bare batched decode loop: what the machine gives when nothing but the model is computed.
//!
//! The yardstick of `benches/decode.rs`. One row for each of `rows` sequences per step, no sampling,
//! no rings, no readers; the engine's own figure is stated as a share of this one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::crew::{Crew, Threads};
use super::ffi::{Batch, Context};
use super::load::{self, LoadError, Weights};
use super::threads::Phase;
use crate::engine::config::{Process, Settings};

/// A model and a context that decodes `rows` sequences at once.
pub struct BareLoop {
    context: Context,
    crew: Crew,
    threads: Arc<Threads>,
    batch: Batch,
    rows: u32,
    position: u32,
    last: u32,
}

impl BareLoop {
    /// Loads the weights and makes a context for `settings.parallel` sequences. Sequences begin at
    /// position 0 and are started over when their context is full.
    ///
    /// # Errors
    /// As loading an engine.
    pub fn new(weights: &Weights, settings: &Settings) -> Result<Self, LoadError> {
        let (model, _) = load::map(weights, settings, &Process::default(), &Arc::default())?;
        let model = Arc::new(model);
        let params = load::context_params(settings, &model);
        let threads = Arc::new(Threads::default());
        let crew = Crew::new(
            params.threads,
            params.threads_prefill,
            false,
            threads.clone(),
        );
        Ok(Self {
            crew,
            threads,
            context: Context::new(model, &params, Arc::new(AtomicBool::new(false)))?,
            batch: Batch::with_capacity(params.batch as usize),
            rows: params.sequences,
            position: 0,
            last: params.context - 1,
        })
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
