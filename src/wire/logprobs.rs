//! Log-probabilities in the two shapes that OpenAI's API has: a list of objects for chat, four parallel
//! arrays for completions.

use bytes::{BufMut, BytesMut};

use super::json;
use crate::generation::{Scored, TokenLogprob};

/// Appends chat's token objects, separated by commas, without the brackets around them
/// (OpenAI's `ChatCompletionTokenLogprob`).
pub(super) fn tokens(scored: Scored<'_>, out: &mut BytesMut) {
    for (index, token) in scored.iter().enumerate() {
        if index > 0 {
            out.put_u8(b',');
        }
        entry(&token, out);
        out.extend_from_slice(b",\"top_logprobs\":[");
        for (index, likely) in token.top().enumerate() {
            if index > 0 {
                out.put_u8(b',');
            }
            entry(&likely, out);
            out.put_u8(b'}');
        }
        out.extend_from_slice(b"]}");
    }
}

/// `{"token":…,"logprob":…,"bytes":[…]`, left open.
fn entry(token: &TokenLogprob<'_>, out: &mut BytesMut) {
    out.extend_from_slice(b"{\"token\":");
    lossy(token.bytes, out);
    out.extend_from_slice(b",\"logprob\":");
    json::logprob(out, token.logprob);
    out.extend_from_slice(b",\"bytes\":");
    json::integers(out, token.bytes.iter().copied());
}

/// A token's bytes as a string; what is not UTF-8 by itself becomes U+FFFD, as in OpenAI's API.
fn lossy(bytes: &[u8], out: &mut BytesMut) {
    out.put_u8(b'"');
    for chunk in bytes.utf8_chunks() {
        json::text(out, chunk.valid());
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    out.put_u8(b'"');
}

/// The four arrays of the old completions format, gathered for one chunk or one document.
#[derive(Default)]
pub(super) struct Columns {
    tokens: BytesMut,
    logprobs: BytesMut,
    top: BytesMut,
    offsets: BytesMut,
    /// Characters of the choice before the next token; goes on from chunk to chunk.
    offset: usize,
}

impl Columns {
    /// Moves the next offset behind text that came without log-probabilities.
    pub(super) fn skip(&mut self, text: &str) {
        self.offset += text.chars().count();
    }

    /// Takes in more tokens.
    pub(super) fn add(&mut self, scored: Scored<'_>) {
        for token in scored.iter() {
            for column in [
                &mut self.tokens,
                &mut self.logprobs,
                &mut self.top,
                &mut self.offsets,
            ] {
                if !column.is_empty() {
                    column.put_u8(b',');
                }
            }
            lossy(token.bytes, &mut self.tokens);
            json::logprob(&mut self.logprobs, token.logprob);
            self.top.put_u8(b'{');
            for (index, likely) in token.top().enumerate() {
                if index > 0 {
                    self.top.put_u8(b',');
                }
                lossy(likely.bytes, &mut self.top);
                self.top.put_u8(b':');
                json::logprob(&mut self.top, likely.logprob);
            }
            self.top.put_u8(b'}');
            json::integer(&mut self.offsets, self.offset);
            // Every byte that does not continue a character begins one, also when the character is
            // spread over tokens.
            self.offset += token.bytes.iter().filter(|&&b| b & 0xc0 != 0x80).count();
        }
    }

    /// Appends the object of what was taken in since the last call.
    pub(super) fn flush(&mut self, out: &mut BytesMut) {
        let columns = [
            (&b"{\"tokens\":["[..], &mut self.tokens),
            (b"],\"token_logprobs\":[", &mut self.logprobs),
            (b"],\"top_logprobs\":[", &mut self.top),
            (b"],\"text_offset\":[", &mut self.offsets),
        ];
        for (before, column) in columns {
            out.extend_from_slice(before);
            out.extend_from_slice(column);
            column.clear();
        }
        out.extend_from_slice(b"]}");
    }
}
