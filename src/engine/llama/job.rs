//! One sequence as it is handed to the engine thread, and what that tells about itself.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::adapters::AdapterSet;
use super::inspect::Watchers;
use super::places::Place;
use super::prefix::{Key, Root};
use super::sampling::Sampler;
use super::steps::StepCounters;
use crate::engine::Layout;
use crate::engine::drain::Forecast;
use crate::engine::ring::{End, Ring};
use crate::generation::{Class, Failure, Kind, RequestId};

/// What the engine tells about itself, for metrics. Written by the engine thread, read by anybody.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Sequences accepted and not ended: running, parked and waiting.
    pub(super) accepted: AtomicU32,
    /// Sequences with KV cells.
    pub(super) running: AtomicU32,
    /// Sequences that stood in line after the last plan: there was no room for them.
    pub(super) standing: AtomicU32,
    /// Running sequences out of the batch because their reader is behind.
    pub(super) paused: AtomicU32,
    /// Sequences whose K/V waits in host memory.
    pub(super) parked: AtomicU32,
    /// How often a sequence has left the batch for its reader.
    pub(super) pauses: AtomicU64,
    /// How often a sequence has been parked.
    pub(super) parks: AtomicU64,
    /// How often a sequence has been moved to a lower id.
    pub(super) moves: AtomicU64,
    /// A test asks for moves wherever they save a run.
    #[cfg(test)]
    pub(super) moves_always: std::sync::atomic::AtomicBool,
    /// Microseconds from one start out of the line to the next, 0 before that is known, and from a start
    /// to the first token.
    pub(super) each_us: AtomicU64,
    pub(super) lead_us: AtomicU64,
    /// KV cells holding tokens of running sequences.
    pub(super) kv_used: AtomicU64,
    /// KV cells holding only cached prefixes.
    pub(super) kv_idle: AtomicU64,
    /// Bytes of cached prefixes in host memory.
    pub(super) prefix_bytes: AtomicU64,
    /// Prompt tokens that were found in the cache.
    pub(super) prefix_hits: AtomicU64,
    /// Prompt tokens that were looked up in it.
    pub(super) prefix_queries: AtomicU64,
    /// What steps took.
    pub(super) steps: StepCounters,
    /// Who wants to look at the engine.
    pub(super) watchers: Watchers,
    /// How the KV cache is laid out. Locked for the time of a copy, and written when that changes.
    pub(super) layout: Mutex<Layout>,
    /// Draft tokens tried, and those that were right.
    pub(super) drafted: AtomicU64,
    pub(super) accepted_drafts: AtomicU64,
    /// A test asks for drafts wherever there is a match.
    #[cfg(test)]
    pub(super) drafts_always: std::sync::atomic::AtomicBool,
    /// A test asks the draft model to fail.
    #[cfg(test)]
    pub(super) draft_model_fails: std::sync::atomic::AtomicBool,
    /// A test asks the engine thread to panic.
    #[cfg(test)]
    pub(super) panics: std::sync::atomic::AtomicBool,
    /// A test asks for rows to be shared out whatever they cost; how many were; and for a panic in the
    /// next one.
    #[cfg(test)]
    pub(super) shares_rows: std::sync::atomic::AtomicBool,
    #[cfg(test)]
    pub(super) shared_rows: AtomicU64,
    #[cfg(test)]
    pub(super) sampling_panics: std::sync::atomic::AtomicBool,
}

impl Counters {
    /// Sequences accepted that do not run.
    pub(super) fn waiting(&self) -> u32 {
        let running = self.running.load(Relaxed);
        self.accepted.load(Relaxed).saturating_sub(running)
    }

    /// What is expected of the waiting line.
    pub(super) fn forecast(&self) -> Forecast {
        let each_us = self.each_us.load(Relaxed);
        Forecast {
            each: (each_us > 0).then(|| Duration::from_micros(each_us)),
            lead: Duration::from_micros(self.lead_us.load(Relaxed)),
        }
    }
}

/// One sequence as it is handed to the engine.
pub(super) struct Job {
    /// The request, and which of its choices it is.
    pub(super) request: RequestId,
    pub(super) choice: u32,
    /// The prompt; at least one token, fewer than a sequence's cells.
    pub(super) prompt: Arc<[u32]>,
    /// What the names of its cached blocks begin with.
    pub(super) root: Root,
    /// The names of the prompt's whole blocks.
    pub(super) keys: Vec<Key>,
    /// Most tokens to generate.
    pub(super) budget: u32,
    /// Most tokens to hold at once: prompt and budget, or, where a full context is shifted, all of it.
    pub(super) most: u32,
    pub(super) sampler: Sampler,
    /// Likeliest tokens to report beside each one; `None` for no log-probabilities.
    pub(super) logprobs: Option<u8>,
    /// What it is computed with; a call computes one set only.
    pub(super) adapters: Option<Arc<AdapterSet>>,
    pub(super) ring: Arc<Ring>,
    /// Whom the engine's time is charged to.
    pub(super) tenant: u64,
    /// Its share of the engine relative to others'; at least 1.
    pub(super) weight: u16,
    pub(super) class: Class,
    /// Whether cached prompt tokens are told: of several choices of one prompt, only the first's are.
    pub(super) tells_cached: bool,
    /// Give up when not admitted by then.
    pub(super) queue_deadline: Option<(Instant, Duration)>,
    /// When its first token is due, in microseconds of the engine's clock.
    pub(super) first_token_due_us: Option<u64>,
    /// Held until the sequence ends.
    pub(super) place: Option<Place>,
}

impl Job {
    /// Sets the end that its reader will see. Its place is free before: who has seen the end may come
    /// with the next request at once.
    pub(super) fn end(&mut self, end: End) {
        self.place = None;
        self.ring.end(end);
    }

    pub(super) fn fail(&mut self, failure: Failure) {
        self.end(End::Failed(failure));
        self.ring.wake();
    }
}

impl Drop for Job {
    /// Whatever takes a job away, its reader learns of an end. The first end stands, so this is for
    /// the ways out that set none: a panic of the engine thread, or its stop.
    fn drop(&mut self) {
        self.fail(if std::thread::panicking() {
            Failure::internal("the engine thread panicked")
        } else {
            Failure::new(
                Kind::Draining,
                "The model was stopped before the generation was complete.",
            )
        });
    }
}
