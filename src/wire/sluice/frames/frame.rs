//! The frames: their numbers, and what is in each.
//!
//! Numbers are in groups with room: `00..0f` carry a request and its answer, `10..1f` are the events of
//! a generation, `20..3f` are kept for later versions, and what needs two bytes or more (`40` and above)
//! is for anybody's experiments. Whoever does not know a number skips the frame.

use bytes::{BufMut, BytesMut};

use super::logprobs::Scores;
use super::varint;
use crate::telemetry::{Limit, Scope};

/// Most bytes of a payload.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// The types of frames, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Bytes of a body. Both ways.
    Data = 0x00,
    /// The head of a request. Client to server, first.
    Request = 0x01,
    /// Asks for the rest of an answer, in place of REQUEST.
    Resume = 0x02,
    /// The head of an answer. Server to client, first.
    Response = 0x03,
    /// All went well; the last frame of an answer.
    End = 0x04,
    /// It did not; the last frame of an answer.
    Error = 0x05,
    /// A sign of life. Both ways; never answered.
    Ping = 0x06,
    /// Text.
    Tokens = 0x10,
    /// Log-probabilities of the text before it.
    Logprobs = 0x11,
    /// How far the prompt is.
    Progress = 0x12,
    /// Tokens in all.
    Usage = 0x13,
}

impl Kind {
    /// The type with this number, if there is one.
    #[must_use]
    pub fn of(number: u64) -> Option<Self> {
        Some(match number {
            0x00 => Self::Data,
            0x01 => Self::Request,
            0x02 => Self::Resume,
            0x03 => Self::Response,
            0x04 => Self::End,
            0x05 => Self::Error,
            0x06 => Self::Ping,
            0x10 => Self::Tokens,
            0x11 => Self::Logprobs,
            0x12 => Self::Progress,
            0x13 => Self::Usage,
            _ => return None,
        })
    }

    /// The name in the protocol's description.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Data => "DATA",
            Self::Request => "REQUEST",
            Self::Resume => "RESUME",
            Self::Response => "RESPONSE",
            Self::End => "END",
            Self::Error => "ERROR",
            Self::Ping => "PING",
            Self::Tokens => "TOKENS",
            Self::Logprobs => "LOGPROBS",
            Self::Progress => "PROGRESS",
            Self::Usage => "USAGE",
        }
    }

    /// Whether nothing comes after it.
    #[must_use]
    pub fn is_last(self) -> bool {
        matches!(self, Self::End | Self::Error)
    }

    /// Whether it is numbered, so that a resumed stream can go on behind it: what a generation says.
    /// Heads, bodies and signs of life are not.
    #[must_use]
    pub fn is_event(self) -> bool {
        match self {
            Self::Tokens
            | Self::Logprobs
            | Self::Progress
            | Self::Usage
            | Self::End
            | Self::Error => true,
            Self::Data | Self::Request | Self::Resume | Self::Response | Self::Ping => false,
        }
    }
}

/// One frame. JSON is left as it came; see [`super::super::head`] and [`super::super::fault`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Frame<'a> {
    /// Bytes of a body; where one frame of them ends says nothing.
    Data(&'a [u8]),
    /// The head of a request, as JSON.
    Request(&'a [u8]),
    /// Asks for the events after the first `after` of a stream.
    Resume {
        /// Events that the client has.
        after: u64,
        /// The stream's id.
        id: &'a str,
        /// Headers, as a JSON object; empty if there are none.
        headers: &'a [u8],
    },
    /// The head of an answer, as JSON.
    Response(&'a [u8]),
    /// The end, with why each choice ended.
    End(Reasons<'a>),
    /// A failure, as JSON.
    Error(&'a [u8]),
    /// A sign of life.
    Ping,
    /// Text of one choice.
    Tokens {
        /// Which choice.
        choice: u32,
        /// Tokens counted for this choice since its last such frame.
        count: u32,
        /// The text: whole characters, possibly none.
        text: &'a str,
    },
    /// Log-probabilities of the text that came before.
    Logprobs {
        /// Which choice.
        choice: u32,
        /// The tokens.
        tokens: Scores<'a>,
    },
    /// How far the prompt is; the newest counts.
    Progress {
        /// Tokens of the prompts.
        prompt_tokens: u32,
        /// Of these, tokens that need not be computed.
        cached_tokens: u32,
    },
    /// Tokens in all.
    Usage {
        /// Tokens of the prompts.
        prompt_tokens: u32,
        /// Of these, tokens that were not computed.
        cached_tokens: u32,
        /// Tokens generated.
        completion_tokens: u32,
    },
}

/// Why each choice ended, in their order; empty where there are no choices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reasons<'a>(&'a [u8]);

impl<'a> Reasons<'a> {
    /// The end of generation, or a stop string.
    pub const STOP: u8 = 1;
    /// `max_tokens` or the context is used up; what a limit of the caller ended has a reason of its own,
    /// [`Reasons::limited`].
    pub const LENGTH: u8 = 2;

    /// The first of the reasons that name a limit of the caller: one for each, scope by scope.
    pub const LIMITED: u8 = 16;

    /// The reason that says that a limit of this name (`caller.tokens_per_minute`) ended the choice.
    #[must_use]
    pub fn limited(limit: &str) -> Option<u8> {
        let number = limits().position(|name| name == limit)?;
        u8::try_from(number).ok()?.checked_add(Self::LIMITED)
    }

    /// The limit that a reason names.
    #[must_use]
    pub fn limit(reason: u64) -> Option<&'static str> {
        let number = reason.checked_sub(Self::LIMITED.into())?;
        limits().nth(usize::try_from(number).ok()?)
    }

    /// Reasons from their numbers, each below 64, so that each is its own varint.
    #[must_use]
    pub fn new(numbers: &'a [u8]) -> Option<Self> {
        numbers
            .iter()
            .all(|&number| number < 64)
            .then_some(Self(numbers))
    }

    /// The numbers. One that is not known means that the choice ended in some newer way.
    pub fn iter(self) -> impl Iterator<Item = u64> {
        let mut rest = self.0;
        std::iter::from_fn(move || varint::read(&mut rest))
    }

    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut rest = bytes;
        while !rest.is_empty() {
            varint::read(&mut rest)?;
        }
        Some(Self(bytes))
    }
}

fn limits() -> impl Iterator<Item = &'static str> {
    let scopes = Scope::ALL.into_iter();
    scopes.flat_map(|scope| Limit::ALL.map(|limit| limit.of(scope)))
}

impl<'a> Frame<'a> {
    /// Its type.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Data(_) => Kind::Data,
            Self::Request(_) => Kind::Request,
            Self::Resume { .. } => Kind::Resume,
            Self::Response(_) => Kind::Response,
            Self::End(_) => Kind::End,
            Self::Error(_) => Kind::Error,
            Self::Ping => Kind::Ping,
            Self::Tokens { .. } => Kind::Tokens,
            Self::Logprobs { .. } => Kind::Logprobs,
            Self::Progress { .. } => Kind::Progress,
            Self::Usage { .. } => Kind::Usage,
        }
    }

    /// Appends the frame. A payload above [`MAX_PAYLOAD`] is the caller's to avoid: every reader
    /// refuses it.
    pub fn encode(&self, out: &mut BytesMut) {
        let length = self.payload_len();
        debug_assert!(
            length <= MAX_PAYLOAD,
            "{} of {length} bytes",
            self.kind().name()
        );
        out.reserve(2 + 8 + length);
        header(out, self.kind(), length);
        match *self {
            Self::Data(bytes)
            | Self::Request(bytes)
            | Self::Response(bytes)
            | Self::Error(bytes)
            | Self::End(Reasons(bytes)) => out.put_slice(bytes),
            Self::Resume { after, id, headers } => {
                varint::write(out, after);
                varint::write(out, id.len() as u64);
                out.put_slice(id.as_bytes());
                out.put_slice(headers);
            }
            Self::Ping => {}
            Self::Tokens {
                choice,
                count,
                text,
            } => {
                varint::write(out, choice.into());
                varint::write(out, count.into());
                out.put_slice(text.as_bytes());
            }
            Self::Logprobs { choice, tokens } => {
                varint::write(out, choice.into());
                out.put_slice(tokens.0);
            }
            Self::Progress {
                prompt_tokens,
                cached_tokens,
            } => {
                varint::write(out, prompt_tokens.into());
                varint::write(out, cached_tokens.into());
            }
            Self::Usage {
                prompt_tokens,
                cached_tokens,
                completion_tokens,
            } => {
                varint::write(out, prompt_tokens.into());
                varint::write(out, cached_tokens.into());
                varint::write(out, completion_tokens.into());
            }
        }
    }

    fn payload_len(&self) -> usize {
        let number = |value: u32| varint::len(value.into());
        match *self {
            Self::Data(bytes)
            | Self::Request(bytes)
            | Self::Response(bytes)
            | Self::Error(bytes)
            | Self::End(Reasons(bytes)) => bytes.len(),
            Self::Resume { after, id, headers } => {
                varint::len(after) + varint::len(id.len() as u64) + id.len() + headers.len()
            }
            Self::Ping => 0,
            Self::Tokens {
                choice,
                count,
                text,
            } => number(choice) + number(count) + text.len(),
            Self::Logprobs { choice, tokens } => number(choice) + tokens.0.len(),
            Self::Progress {
                prompt_tokens,
                cached_tokens,
            } => number(prompt_tokens) + number(cached_tokens),
            Self::Usage {
                prompt_tokens,
                cached_tokens,
                completion_tokens,
            } => number(prompt_tokens) + number(cached_tokens) + number(completion_tokens),
        }
    }

    /// Reads a whole payload; `None` if it is not what its type says.
    pub(super) fn parse(kind: Kind, mut payload: &'a [u8]) -> Option<Self> {
        let number = |payload: &mut &[u8]| u32::try_from(varint::read(payload)?).ok();
        Some(match kind {
            Kind::Data => Self::Data(payload),
            Kind::Request => Self::Request(payload),
            Kind::Response => Self::Response(payload),
            Kind::Error => Self::Error(payload),
            Kind::End => Self::End(Reasons::parse(payload)?),
            // What a newer version may put in it is not for us.
            Kind::Ping => Self::Ping,
            Kind::Resume => {
                let after = varint::read(&mut payload)?;
                let length = usize::try_from(varint::read(&mut payload)?).ok()?;
                let (id, headers) = payload.split_at_checked(length)?;
                Self::Resume {
                    after,
                    id: std::str::from_utf8(id).ok()?,
                    headers,
                }
            }
            Kind::Tokens => Self::Tokens {
                choice: number(&mut payload)?,
                count: number(&mut payload)?,
                text: std::str::from_utf8(payload).ok()?,
            },
            Kind::Logprobs => Self::Logprobs {
                choice: number(&mut payload)?,
                tokens: Scores::parse(payload)?,
            },
            // Newer versions may append numbers to these two.
            Kind::Progress => Self::Progress {
                prompt_tokens: number(&mut payload)?,
                cached_tokens: number(&mut payload)?,
            },
            Kind::Usage => Self::Usage {
                prompt_tokens: number(&mut payload)?,
                cached_tokens: number(&mut payload)?,
                completion_tokens: number(&mut payload)?,
            },
        })
    }
}

/// Appends what comes before a payload of `length` bytes.
pub fn header(out: &mut impl BufMut, kind: Kind, length: usize) {
    varint::write(out, kind as u64);
    varint::write(out, length as u64);
}
