//! Figures that somebody else keeps, as they are read at a scrape.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::limits::LimitLoad;
use super::transports::TicketLoad;
use crate::telemetry::steps::Steps;
use crate::telemetry::trace::TraceLoad;

/// What is read at the moment of a scrape.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    /// Streams that have not ended.
    pub streams_open: usize,
    /// Streams that can be resumed.
    pub streams_kept: usize,
    /// [`crate::telemetry::Logs::dropped`].
    pub log_lines_dropped: u64,
    /// Tickets of TLS.
    pub tickets: TicketLoad,
    /// Shared and kept limits.
    pub limits: LimitLoad,
    /// [`crate::telemetry::Tracer::load`].
    pub traces: TraceLoad,
    /// Models that have been ready. Those that are not configured have no series.
    pub models: Vec<ModelScrape>,
}

/// One model at the moment of a scrape.
#[derive(Clone, Debug)]
pub struct ModelScrape {
    /// Its configured name.
    pub name: Arc<str>,
    /// Whether it takes requests.
    pub is_ready: bool,
    /// What it is.
    pub info: ModelInfo,
    /// What moves in it; nothing while it is not ready.
    pub load: ModelLoad,
}

/// What is fixed about a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelInfo {
    /// Tokens a sequence may hold.
    pub context: u32,
    /// Parameters, when known.
    pub parameters: Option<u64>,
    /// Size of the weights, when known.
    pub bytes: Option<u64>,
}

/// What moves in a model, as its engine has it at the moment of a scrape.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct ModelLoad {
    /// Sequences in prefill or decode.
    pub running: u32,
    /// Requests in the waiting line.
    pub waiting: u32,
    /// Running sequences out of the batch because their reader is behind.
    pub paused: u32,
    /// Times that a sequence was paused since the model was loaded.
    pub pauses: u64,
    /// Draft tokens tried since the model was loaded.
    pub drafted: u64,
    /// Those of them that were right.
    pub accepted_drafts: u64,
    /// Sequences set aside, with their K/V in host memory.
    pub parked: u32,
    /// Times that a sequence was set aside since the model was loaded.
    pub parks: u64,
    /// Times that a sequence was moved beside the others that run, since the model was loaded.
    pub moves: u64,
    /// KV cells that hold nothing but cached prefixes.
    pub kv_idle: u64,
    /// Bytes of cached prefixes in host memory.
    pub prefix_bytes: u64,
    /// Prompt tokens found in the cache of prefixes since the model was loaded.
    pub prefix_hits: u64,
    /// Prompt tokens looked up in it: those of every sequence that began where prefixes are kept.
    pub prefix_queries: u64,
    /// What the engine's steps took.
    pub steps: Steps,
    /// KV cells in use.
    pub kv_used: u64,
    /// KV cells in all.
    pub kv_capacity: u64,
    /// Threads of the last decode step; 0 before the first, and where none compute.
    pub threads_decode: u32,
    /// Threads of the last chunk of prompts.
    pub threads_prefill: u32,
}
