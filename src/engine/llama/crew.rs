//! Runs llama.cpp calls with as many threads as the governor names, and times them for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Instant;

use super::ffi::{Batch, Context, LlamaError};
use super::threads::{Call, Governor, Limit, Phase};

/// Threads of the last call of each phase, for metrics; 0 before the first.
#[derive(Debug, Default)]
pub(super) struct Threads {
    pub(super) decode: AtomicU32,
    pub(super) prefill: AtomicU32,
}

/// The governor with its clocks. Used on the engine thread.
pub(super) struct Crew {
    governor: Governor,
    begin: Instant,
    threads: Arc<Threads>,
}

impl Crew {
    /// A crew of these sizes, shown in `threads`.
    pub(super) fn new(decode: Limit, prefill: Limit, threads: Arc<Threads>) -> Self {
        Self {
            governor: Governor::new(decode, prefill),
            begin: Instant::now(),
            threads,
        }
    }

    /// Finds out what a row costs, by computing one and forgetting it. The context must be empty and
    /// have computed before: first calls touch memory.
    ///
    /// # Errors
    /// The model computes nothing.
    pub(super) fn calibrate(&mut self, context: &mut Context) -> Result<(), LlamaError> {
        context.set_threads(1);
        let mut batch = Batch::with_capacity(1);
        batch.push(0, 0, 0, true);
        let start = Instant::now();
        let done = context.decode(&mut batch);
        let took = start.elapsed();
        context.forget(0);
        self.governor.calibrate(micros(took));
        done
    }

    /// Computes the rows of `batch`.
    pub(super) fn compute(
        &mut self,
        phase: Phase,
        context: &mut Context,
        batch: &mut Batch,
    ) -> Result<(), LlamaError> {
        let rows = u32::try_from(batch.len()).unwrap_or(u32::MAX);
        let threads = self.governor.threads(phase, rows);
        let shown = match phase {
            Phase::Decode => &self.threads.decode,
            Phase::Prefill => &self.threads.prefill,
        };
        shown.store(threads, Relaxed);
        context.set_threads(threads);
        let start = Instant::now();
        context.decode(batch)?;
        let end = Instant::now();
        self.governor.observe(&Call {
            phase,
            rows,
            at: micros(end - self.begin),
            wall: micros(end - start),
        });
        Ok(())
    }
}

fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
