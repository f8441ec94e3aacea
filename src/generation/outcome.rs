//! How a request ended, and who is told.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Timeline;

/// The one end of a request (DESIGN, promise 1). Counted exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Everything asked for was handed to the transport.
    Ok,
    /// The caller left or cancelled before the end.
    ClientGone,
    /// The reader stopped reading for too long.
    Stalled,
    /// A deadline passed.
    Deadline,
    /// Refused or ended for want of capacity: queue full, draining, not ready.
    Shed,
    /// Refused by a limit of the caller, or for want of a right.
    Limited,
    /// The request itself was wrong.
    Invalid,
    /// A remote server failed.
    Upstream,
    /// A failure on our side.
    Internal,
}

impl Outcome {
    /// Every outcome, in the order of the enum; for registering metrics.
    pub const ALL: [Self; 9] = [
        Self::Ok,
        Self::ClientGone,
        Self::Stalled,
        Self::Deadline,
        Self::Shed,
        Self::Limited,
        Self::Invalid,
        Self::Upstream,
        Self::Internal,
    ];

    /// The label value in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ClientGone => "client_gone",
            Self::Stalled => "stalled",
            Self::Deadline => "deadline",
            Self::Shed => "shed",
            Self::Limited => "limited",
            Self::Invalid => "invalid",
            Self::Upstream => "upstream",
            Self::Internal => "internal",
        }
    }
}

/// Why one choice ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// End of generation by the model, or a stop string.
    Stop,
    /// `max_tokens` or the context is used up.
    Length,
}

impl Finish {
    /// OpenAI's `finish_reason`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// Tokens counted for one request, over all of its choices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt(s).
    pub prompt_tokens: u32,
    /// Tokens of the prompt(s) whose K/V was reused instead of computed.
    pub cached_tokens: u32,
    /// Tokens generated, including those that rendered as no text.
    pub completion_tokens: u32,
}

/// What is known of a request once it has ended.
#[derive(Clone, Debug)]
pub struct Record {
    /// How it ended.
    pub outcome: Outcome,
    /// Why the first choice ended, when the outcome is `ok`.
    pub finish: Option<Finish>,
    /// Tokens in and out.
    pub usage: Usage,
    /// From acceptance to the first token, if one came.
    pub time_to_first_token: Option<Duration>,
    /// From acceptance to the end.
    pub duration: Duration,
    /// The longest wait between two tokens, in microseconds.
    pub max_gap_us: u32,
    /// What it waited for.
    pub waits: Waits,
}

/// What a request waited for, and whom it kept waiting. Of several choices, the first to get there counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// From acceptance to the end of the waiting line, if it got there.
    pub queue: Option<Duration>,
    /// From there until all of its prompt was read, if it was.
    pub prefill: Option<Duration>,
    /// How long its reader left it with what it was handed, in all.
    pub stalled: Duration,
    /// How often that was long enough to be told ([`super::Moment::Stalled`]).
    pub stalls: u32,
    /// How often a sequence of it left the batch because the reader was behind.
    pub pauses: u32,
    /// How often a sequence of it was set aside for others.
    pub preemptions: u32,
}

/// Receives what a stream has to tell. Telemetry implements it; a stream calls it off the token path.
pub trait Recorder: Send + Sync {
    /// Gaps between consecutive tokens in microseconds, up to a few hundred at a time.
    fn gaps(&self, micros: &[u32]);
    /// The first token came this long after the request was accepted.
    fn first_token(&self, after: Duration);
    /// The request ended. Called exactly once; `failure` is present for every outcome but `ok` and
    /// `client_gone`, and `timeline` has the times of its tokens.
    fn ended(&self, record: &Record, failure: Option<&super::Failure>, timeline: Timeline);
}
