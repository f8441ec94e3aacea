//! `[stream]`, `[deadlines]` and `[drain]`: how long, and how much of it.

use std::num::NonZeroU32;
use std::time::Duration;

use bytesize::ByteSize;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::generation;

/// `[stream]`: the path of tokens from the engine to one reader.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stream {
    /// How long a reader may leave what it was handed without asking for more.
    #[serde(deserialize_with = "timeout")]
    pub stall_timeout: Duration,
    /// How long a stream stays silent before a keep-alive goes out.
    #[serde(deserialize_with = "timeout")]
    pub keep_alive: Duration,
    /// How often a stream that waits for its turn is told its place in line; `"off"` in the file is
    /// `None` here. The first time begins the answer.
    #[serde(deserialize_with = "timeout_or_off")]
    pub queue_notice: Option<Duration>,
    /// Tokens between engine and reader per sequence: a power of two, 8..=4096. A full ring takes
    /// the sequence out of the batch.
    #[serde(deserialize_with = "ring")]
    pub ring: usize,
    /// Bytes of one stream that may be unsent or unacknowledged on our side of a connection,
    /// 64 KiB..=16 MiB; past it nothing more is asked of the engine. A stream gets as many in each
    /// round trip at the most.
    #[serde(deserialize_with = "send_budget")]
    pub send_budget: usize,
    /// Whether streams can be resumed when their connection is lost.
    pub resume: bool,
    /// How long a stream goes on without a reader, and is kept after its end.
    #[serde(deserialize_with = "timeout")]
    pub resume_time: Duration,
    /// Bytes of a stream's newest events that are kept. Half of them is for what was handed out, the rest
    /// for what comes while nobody reads; then the sequence pauses.
    #[serde(deserialize_with = "resume_bytes")]
    pub resume_bytes: usize,
    /// Streams kept at once, ended ones included. One more cannot be resumed.
    pub resume_streams: NonZeroU32,
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            stall_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(10),
            queue_notice: Some(Duration::from_secs(2)),
            ring: 64,
            send_budget: 64 << 10,
            resume: false,
            resume_time: Duration::from_mins(1),
            resume_bytes: 1 << 20,
            resume_streams: const { NonZeroU32::new(256).unwrap() },
        }
    }
}

/// What holds for the streams that begin from now on, and may be changed while serving.
#[derive(Clone, Debug, PartialEq)]
pub struct Patience {
    /// Bounds on the time of a request.
    pub deadlines: Deadlines,
    /// [`Stream::stall_timeout`].
    pub stall_timeout: Duration,
    /// [`Stream::keep_alive`].
    pub keep_alive: Duration,
    /// [`Stream::queue_notice`].
    pub queue_notice: Option<Duration>,
}

impl Patience {
    /// What these sections say.
    #[must_use]
    pub fn new(stream: &Stream, deadlines: &Deadlines) -> Self {
        Self {
            deadlines: deadlines.clone(),
            stall_timeout: stream.stall_timeout,
            keep_alive: stream.keep_alive,
            queue_notice: stream.queue_notice,
        }
    }
}

/// `[deadlines]`: the server's bounds on one request; a request may ask for tighter ones. `"off"`
/// in the file is `None` here.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Deadlines {
    /// In the waiting queue.
    #[serde(deserialize_with = "timeout_or_off")]
    pub queue: Option<Duration>,
    /// From acceptance to the first token.
    #[serde(deserialize_with = "timeout_or_off")]
    pub first_token: Option<Duration>,
    /// Between two tokens.
    #[serde(deserialize_with = "timeout_or_off")]
    pub gap: Option<Duration>,
    /// From acceptance to the end.
    #[serde(deserialize_with = "timeout_or_off")]
    pub total: Option<Duration>,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            queue: Some(Duration::from_secs(30)),
            first_token: Some(Duration::from_mins(2)),
            gap: Some(Duration::from_mins(1)),
            total: Some(Duration::from_mins(30)),
        }
    }
}

impl From<&Deadlines> for generation::Deadlines {
    fn from(deadlines: &Deadlines) -> Self {
        Self {
            queue: deadlines.queue,
            first_token: deadlines.first_token,
            gap: deadlines.gap,
            total: deadlines.total,
        }
    }
}

/// `[drain]`: what happens between the signal to stop and the exit.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Drain {
    /// How long running streams may go on. Zero ends them at once.
    #[serde(deserialize_with = "at_most_a_year")]
    pub timeout: Duration,
    /// From "not ready" to refusing new work, for load balancers to notice.
    #[serde(deserialize_with = "at_most_a_year")]
    pub lag: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(25),
            lag: Duration::from_secs(1),
        }
    }
}

/// Longer than anything that is waited for, and short enough to be added to any clock.
pub(crate) const LONGEST: Duration = Duration::from_hours(365 * 24);

/// A duration that can pass: above zero, at most a year.
pub(crate) fn timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let duration: Duration = humantime_serde::deserialize(deserializer)?;
    if duration.is_zero() || duration > LONGEST {
        return Err(D::Error::custom(
            "must be longer than zero and at most a year",
        ));
    }
    Ok(duration)
}

pub(crate) fn at_most_a_year<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Duration, D::Error> {
    let duration: Duration = humantime_serde::deserialize(deserializer)?;
    if duration > LONGEST {
        return Err(D::Error::custom("must be at most a year"));
    }
    Ok(duration)
}

/// A time that can pass, or "off".
pub(crate) fn timeout_or_off<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text == "off" {
        return Ok(None);
    }
    match humantime::parse_duration(&text) {
        Ok(duration) if !duration.is_zero() && duration <= LONGEST => Ok(Some(duration)),
        _ => Err(D::Error::custom(format_args!(
            "{text:?} is no duration; write one longer than zero, like \"30s\", or \"off\""
        ))),
    }
}

/// A few bursts at the least; at most what one stream may sensibly cost.
fn resume_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let size = ByteSize::deserialize(deserializer)?;
    if !(16 << 10..=1 << 30).contains(&size.0) {
        return Err(D::Error::custom(format_args!(
            "{size} is out of range; must be between 16KiB and 1GiB"
        )));
    }
    usize::try_from(size.0).map_err(D::Error::custom)
}

fn ring<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let ring = usize::deserialize(deserializer)?;
    if !(8..=4096).contains(&ring) || !ring.is_power_of_two() {
        return Err(D::Error::custom(format_args!(
            "{ring} does not fit; must be a power of two between 8 and 4096"
        )));
    }
    Ok(ring)
}

fn send_budget<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let size = ByteSize::deserialize(deserializer)?;
    let (least, most) = (ByteSize::kib(64), ByteSize::mib(16));
    if !(least..=most).contains(&size) {
        return Err(D::Error::custom(format_args!(
            "{size} is out of range; must be between {least} and {most}"
        )));
    }
    usize::try_from(size.0).map_err(D::Error::custom)
}
