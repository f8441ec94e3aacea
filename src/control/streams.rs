//! Every stream as it runs: who reads it, how far it is, and what it waits for.

use std::sync::Arc;

use serde::Serialize;

use crate::generation::{Failure, Kind, Live, RequestId, Stage, Watch};

/// Streams in one answer, unless another number is asked for.
const USUALLY: usize = 1000;

/// Which streams are looked at.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Those of this model.
    pub model: Option<String>,
    /// Those of this caller.
    pub caller: Option<String>,
    /// So many, the oldest ones.
    pub limit: Option<usize>,
}

/// The oldest of the streams that are wanted.
#[derive(Debug, Serialize)]
pub struct List {
    /// How many are wanted in all.
    total: usize,
    streams: Vec<Stream>,
}

#[derive(Debug, Serialize)]
struct Stream {
    id: String,
    /// Absent where nobody was asked.
    caller: Option<Arc<str>>,
    model: Arc<str>,
    route: &'static str,
    state: Stage,
    /// Whether a sequence is out of the batch, for its reader or for others.
    paused: bool,
    age_seconds: f64,
    queue_seconds: f64,
    first_token_seconds: Option<f64>,
    since_last_token_seconds: Option<f64>,
    prompt_tokens: u32,
    cached_tokens: u32,
    tokens: u32,
    tokens_per_second: Option<f64>,
    longest_gap_seconds: f64,
    stalled_seconds: f64,
    pauses: u32,
    preemptions: u32,
}

impl From<Live> for Stream {
    fn from(live: Live) -> Self {
        Self {
            id: live.id.to_string(),
            caller: live.owner,
            model: live.model,
            route: live.route,
            state: live.stage,
            paused: live.is_paused,
            age_seconds: seconds(live.age_us),
            queue_seconds: seconds(live.queue_us),
            first_token_seconds: live.first_token_us.map(seconds),
            since_last_token_seconds: live.last_token_us.map(seconds),
            prompt_tokens: live.prompt_tokens,
            cached_tokens: live.cached_tokens,
            tokens: live.tokens,
            tokens_per_second: live.tokens_per_second,
            longest_gap_seconds: seconds(live.max_gap_us.into()),
            stalled_seconds: seconds(live.stalled_us),
            pauses: live.pauses,
            preemptions: live.preemptions,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact for two centuries")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// The streams that are wanted, oldest first.
#[must_use]
pub fn list(watch: &Watch, wanted: &Wanted) -> List {
    let is = |name: &Option<String>, has: Option<&str>| {
        name.as_deref().is_none_or(|name| has == Some(name))
    };
    let mut streams = watch.list();
    streams.retain(|live| {
        is(&wanted.model, Some(&live.model)) && is(&wanted.caller, live.owner.as_deref())
    });
    let total = streams.len();
    streams.sort_by_key(|live| std::cmp::Reverse(live.age_us));
    streams.truncate(wanted.limit.unwrap_or(USUALLY));
    List {
        total,
        streams: streams.into_iter().map(Stream::from).collect(),
    }
}

/// Ends the streams with this request id, whoever's they are; returns how many there were.
///
/// # Errors
/// `NotFound` if there are none.
pub fn cancel(watch: &Watch, id: &RequestId) -> Result<usize, Failure> {
    let failure = Failure::new(Kind::Cancelled, "An operator ended this stream.");
    let mut owners: Vec<_> = watch
        .list()
        .into_iter()
        .filter(|live| live.id == *id)
        .map(|live| live.owner)
        .collect();
    owners.sort();
    owners.dedup();
    let ended = owners
        .iter()
        .map(|owner| watch.cancel(id, owner.as_deref(), &failure))
        .sum();
    if ended == 0 {
        return Err(Failure::new(
            Kind::NotFound,
            "No open stream has this request id.",
        ));
    }
    tracing::info!(request_id = %id, streams = ended, "an operator ended a stream");
    Ok(ended)
}
