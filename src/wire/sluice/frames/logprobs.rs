//! The payload of LOGPROBS behind its choice: tokens with their log-probabilities.
//!
//! ```text
//! token := entry, top count (varint), that many entries
//! entry := token id (varint), log-probability (f32, big endian), length (varint), bytes of the token
//! ```

use bytes::{Buf, BufMut};

use super::varint;

/// Bytes of one token that are told; longer ones are cut. So 21 entries fit a frame.
const MOST_BYTES: usize = 2048;

/// One token and how likely it was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score<'a> {
    /// Token id.
    pub token: u32,
    /// Natural logarithm of its probability before sampling filters.
    pub logprob: f32,
    /// The token's bytes; possibly not UTF-8.
    pub bytes: &'a [u8],
}

/// The tokens of one LOGPROBS frame. Made by reading one, so they are known to be well formed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores<'a>(pub(super) &'a [u8]);

impl<'a> Scores<'a> {
    /// Reads the tokens; `None` if they are not well formed.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut rest = bytes;
        while !rest.is_empty() {
            token(&mut rest)?;
        }
        Some(Self(bytes))
    }

    /// Each token that was chosen, with the likeliest at its position, likeliest first.
    pub fn iter(self) -> impl Iterator<Item = (Score<'a>, Top<'a>)> {
        let mut rest = self.0;
        std::iter::from_fn(move || token(&mut rest))
    }
}

/// The likeliest tokens at one position.
#[derive(Clone, Debug, PartialEq)]
pub struct Top<'a>(&'a [u8]);

impl<'a> Iterator for Top<'a> {
    type Item = Score<'a>;

    fn next(&mut self) -> Option<Score<'a>> {
        entry(&mut self.0)
    }
}

/// Appends one token and the likeliest at its position.
pub fn write<'s>(
    out: &mut impl BufMut,
    chosen: Score<'_>,
    top: impl ExactSizeIterator<Item = Score<'s>>,
) {
    put(out, chosen);
    varint::write(out, top.len() as u64);
    for score in top {
        put(out, score);
    }
}

fn put(out: &mut impl BufMut, score: Score<'_>) {
    varint::write(out, score.token.into());
    out.put_f32(score.logprob);
    let bytes = &score.bytes[..score.bytes.len().min(MOST_BYTES)];
    varint::write(out, bytes.len() as u64);
    out.put_slice(bytes);
}

fn token<'a>(rest: &mut &'a [u8]) -> Option<(Score<'a>, Top<'a>)> {
    let chosen = entry(rest)?;
    let count = varint::read(rest)?;
    let start = *rest;
    // Ends with the input at the latest: an entry is never empty.
    for _ in 0..count {
        entry(rest)?;
    }
    Some((chosen, Top(&start[..start.len() - rest.len()])))
}

fn entry<'a>(rest: &mut &'a [u8]) -> Option<Score<'a>> {
    let token = u32::try_from(varint::read(rest)?).ok()?;
    let logprob = rest.try_get_f32().ok()?;
    let length = usize::try_from(varint::read(rest)?).ok()?;
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(Score {
        token,
        logprob,
        bytes,
    })
}
