//! The scripted engine's settings: exact tokens at exact times.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::Deserialize;

use super::ModelError;
use crate::generation::Kind;

/// `[models.script]`: what the scripted engine plays.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    /// Repeated as often as needed; absent repeats one sentence.
    pub text: Option<String>,
    /// Tokens per choice, unless the request asks for fewer; at most 100 million.
    pub tokens: NonZeroU32,
    /// Bytes of text per token, at most 4096.
    pub token_bytes: NonZeroU32,
    /// From the start to the first token; like every time here, at most a day.
    #[serde(with = "humantime_serde")]
    pub first: Duration,
    /// Between two tokens.
    #[serde(with = "humantime_serde")]
    pub pace: Duration,
    /// Pause once before this token, counted from 0; goes with `stall`.
    pub stall_at: Option<u32>,
    /// How long that pause is.
    #[serde(with = "humantime_serde")]
    pub stall: Option<Duration>,
    /// Fail instead of giving this token, counted from 0.
    pub fail_at: Option<u32>,
    /// What that failure is; absent is `internal`.
    pub fail_kind: Option<FailKind>,
    /// Play for so many at a time only; the rest wait in line. Absent: for everybody at once.
    pub slots: Option<NonZeroU32>,
    /// Places in that line; 0 refuses who cannot play at once.
    pub waiting: u32,
    /// The whole engine dies instead of giving this token, counted from 0.
    pub die_at: Option<u32>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            text: None,
            tokens: const { NonZeroU32::new(64).unwrap() },
            token_bytes: const { NonZeroU32::new(4).unwrap() },
            first: Duration::ZERO,
            pace: Duration::ZERO,
            stall_at: None,
            stall: None,
            fail_at: None,
            fail_kind: None,
            slots: None,
            waiting: 64,
            die_at: None,
        }
    }
}

impl Script {
    /// Most tokens, and the last one that anything can be said about.
    pub(in crate::engine) const MAX_TOKENS: u32 = 100_000_000;
    /// Most bytes of text per token: what a source makes at once stays small.
    pub(in crate::engine) const MAX_TOKEN_BYTES: u32 = 4096;
    /// Most places in line.
    const MAX_WAITING: u32 = 65_536;
    /// Longest time of any kind.
    pub(in crate::engine) const MAX_TIME: Duration = Duration::from_hours(24);

    /// Whether the script can be played.
    pub(super) fn check(&self) -> Result<(), ModelError> {
        let times = [
            ("first", Some(self.first)),
            ("pace", Some(self.pace)),
            ("stall", self.stall),
        ];
        for (key, time) in times {
            if time.is_some_and(|time| time > Self::MAX_TIME) {
                return Err(ModelError::ScriptBound { key, most: "1 day" });
            }
        }
        if self.tokens.get() > Self::MAX_TOKENS {
            return Err(ModelError::ScriptBound {
                key: "tokens",
                most: "100000000",
            });
        }
        if self.token_bytes.get() > Self::MAX_TOKEN_BYTES {
            return Err(ModelError::ScriptBound {
                key: "token_bytes",
                most: "4096",
            });
        }
        if self.waiting > Self::MAX_WAITING {
            return Err(ModelError::ScriptBound {
                key: "waiting",
                most: "65536",
            });
        }
        if self.stall_at.is_some() != self.stall.is_some() {
            return Err(ModelError::HalfStall);
        }
        if self.fail_kind.is_some() && self.fail_at.is_none() {
            return Err(ModelError::FailKindAlone);
        }
        if self.text.as_ref().is_some_and(String::is_empty) {
            return Err(ModelError::EmptyText);
        }
        Ok(())
    }
}

/// The failures that a script can play.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailKind {
    /// A defect on our side.
    Internal,
    /// A remote server failed.
    Upstream,
    /// No capacity.
    Overloaded,
    /// A deadline passed.
    Deadline,
    /// Not loaded yet.
    NotReady,
}

impl From<FailKind> for Kind {
    fn from(kind: FailKind) -> Self {
        match kind {
            FailKind::Internal => Self::Internal,
            FailKind::Upstream => Self::Upstream,
            FailKind::Overloaded => Self::Overloaded,
            FailKind::Deadline => Self::Deadline,
            FailKind::NotReady => Self::NotReady,
        }
    }
}
