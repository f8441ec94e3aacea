//! A script as one request plays it, with the changes that the request's model name asks for.

use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::super::config::{FailKind, Script};
use super::MAX_TOKENS;
use crate::generation::{Failure, Finish, Kind};

/// The text of a script that has none.
const WORDS: &str =
    "The gate opens a little, the water runs, and word by word the stream goes on. ";

/// A script as one request plays it.
#[derive(Debug)]
pub(super) struct Play {
    pub(super) text: Box<[u8]>,
    pub(super) tokens: u32,
    /// What ends the text when all tokens are played.
    pub(super) finish: Finish,
    pub(super) token_bytes: usize,
    pub(super) first: Duration,
    pub(super) pace: Duration,
    pub(super) stall: Option<(u32, Duration)>,
    pub(super) fail: Option<(u32, Kind)>,
    pub(super) die: Option<u32>,
}

impl Play {
    pub(super) fn new(script: Script, max_tokens: Option<u32>) -> Self {
        let own = script.tokens.get();
        let tokens = max_tokens.map_or(own, |most| most.min(own));
        Self {
            text: script
                .text
                .filter(|text| !text.is_empty())
                .unwrap_or_else(|| WORDS.into())
                .into_bytes()
                .into(),
            tokens,
            finish: if tokens < own {
                Finish::Length
            } else {
                Finish::Stop
            },
            token_bytes: usize::try_from(script.token_bytes.get()).unwrap_or(usize::MAX),
            first: script.first,
            pace: script.pace,
            stall: script.stall_at.zip(script.stall),
            fail: script
                .fail_at
                .map(|at| (at, script.fail_kind.unwrap_or(FailKind::Internal).into())),
            die: script.die_at,
        }
    }

    /// When token `index` is due, counted from the start.
    pub(super) fn due(&self, index: u32) -> Duration {
        let stall = match self.stall {
            Some((at, stall)) if index >= at => stall,
            _ => Duration::ZERO,
        };
        let paced = self.pace.saturating_mul(index);
        self.first.saturating_add(paced).saturating_add(stall)
    }

    /// Hands the bytes of token `index` to `take`, in at most a few slices: the text repeats.
    pub(super) fn bytes(&self, index: u32, mut take: impl FnMut(&[u8])) {
        let len = self.text.len();
        let mut at = (index as usize).wrapping_mul(self.token_bytes) % len;
        let mut left = self.token_bytes;
        while left > 0 {
            let slice = &self.text[at..len.min(at + left)];
            take(slice);
            left -= slice.len();
            at = 0;
        }
    }
}

/// The script with the changes that a request's model name asks for.
pub(super) fn changed(script: &Script, changes: &str) -> Result<Script, Failure> {
    let mut script = script.clone();
    for change in changes.split('&').filter(|change| !change.is_empty()) {
        let (key, value) = change.split_once('=').unwrap_or((change, ""));
        let bad = |what: &str| {
            Failure::invalid(
                "model",
                format!("In the model's script, {key}={value} is not {what}."),
            )
        };
        let count = || {
            let number = value.replace('_', "").parse::<u32>().ok();
            number
                .filter(|&n| n <= MAX_TOKENS)
                .ok_or_else(|| bad("a count"))
        };
        let positive = || count()?.try_into().map_err(|_| bad("a count above zero"));
        let time = || {
            let time = humantime::parse_duration(value).ok();
            time.filter(|&time| time <= Script::MAX_TIME)
                .ok_or_else(|| bad("a duration of at most a day"))
        };
        match key {
            "tokens" => script.tokens = positive()?,
            "size" | "token_bytes" => {
                script.token_bytes = positive()?;
                if script.token_bytes.get() > Script::MAX_TOKEN_BYTES {
                    return Err(bad("a count of at most 4096"));
                }
            }
            "first" => script.first = time()?,
            "pace" => script.pace = time()?,
            "stall_at" => script.stall_at = Some(count()?),
            "stall" => script.stall = Some(time()?),
            "fail_at" => script.fail_at = Some(count()?),
            "die_at" => script.die_at = Some(count()?),
            "fail_kind" => {
                let name = serde::de::value::StrDeserializer::<serde::de::value::Error>::new(value);
                let kind =
                    serde::Deserialize::deserialize(name).map_err(|_| bad("a kind of failure"))?;
                script.fail_kind = Some(kind);
            }
            "text" => {
                script.text = Some(percent_decode_str(value).decode_utf8_lossy().into_owned());
            }
            _ => {
                return Err(Failure::invalid(
                    "model",
                    format!("A scripted model has no setting called {key:?}."),
                ));
            }
        }
    }
    Ok(script)
}
