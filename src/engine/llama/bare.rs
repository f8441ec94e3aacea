//! The bare batched decode loop: what the machine gives when nothing but the model is computed.
//!
//! The yardstick of `benches/decode.rs` and `examples/bare.rs`. One row for each of `rows` sequences per step, no sampling,
//! no rings, no readers; the engine's own figure is stated as a share of this one.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::ffi::{Batch, Context};
use super::load::{self, LoadError, Weights};
use crate::engine::config::{Process, Settings};

/// A model and a context that decodes `rows` sequences at once.
pub struct BareLoop {
    context: Context,
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
        let (model, _) = load::map(weights, settings, &Process::default(), &Arc::default())?;
        let model = Arc::new(model);
        let params = load::context_params(settings, &model);
        Ok(Self {
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
        self.context.decode(&mut self.batch)?;
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

    /// Tokens per step.
    #[must_use]
    pub fn rows(&self) -> u32 {
        self.rows
    }
}
