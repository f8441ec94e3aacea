//! What can be told of a stream while it runs.

use std::sync::Arc;

use serde::Serialize;

use super::RequestId;

/// How far a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It waits for its turn.
    Waiting,
    /// Its prompt is read.
    Prefill,
    /// Its next token is awaited.
    Decode,
    /// Its reader has what was last handed to it, and has not come for more.
    Sending,
    /// It is over; its reader has not taken notice yet.
    Ended,
}

/// One stream that has not been taken to its end, as it was at one moment. Times are microseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Live {
    /// The request's id.
    pub id: RequestId,
    /// Who asked, if that was proved.
    pub owner: Option<Arc<str>>,
    /// The model's name.
    pub model: Arc<str>,
    /// The name under which its route is counted.
    pub route: &'static str,
    /// How far it is.
    pub stage: Stage,
    /// Whether a sequence of it is out of the batch: its reader is behind, or others came first.
    pub is_paused: bool,
    /// Since its request was accepted.
    pub age_us: u64,
    /// From then to the end of the waiting line; so far, while it waits.
    pub queue_us: u64,
    /// From acceptance to the first token, if one came.
    pub first_token_us: Option<u64>,
    /// Since the last token, if one came.
    pub last_token_us: Option<u64>,
    /// Tokens of its prompt(s).
    pub prompt_tokens: u32,
    /// Of these, those that were not computed for it.
    pub cached_tokens: u32,
    /// Tokens generated.
    pub tokens: u32,
    /// Tokens a second, from the first to the last.
    pub tokens_per_second: Option<f64>,
    /// The longest wait between two tokens of a choice.
    pub max_gap_us: u32,
    /// How long its reader has left it with what it was handed, in all.
    pub stalled_us: u64,
    /// How often a sequence of it left the batch for its reader.
    pub pauses: u32,
    /// How often a sequence of it was set aside for others.
    pub preemptions: u32,
}
