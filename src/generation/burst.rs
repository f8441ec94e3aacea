//! The events that are ready now, in one reusable buffer.
//!
//! A stream's task clears one `Burst`, lets its sources fill it and hands it to an encoder. Text of
//! all events lies in one string, so a token costs no allocation once the buffers have grown.

use super::{Failure, Finish, Usage};

/// One thing to tell the reader, in order.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// More text of a choice: whole characters, never empty unless log-probabilities come with it.
    Text {
        /// Which choice.
        choice: u32,
        /// The text.
        text: &'a str,
        /// Log-probabilities of the tokens behind the text, when asked for.
        logprobs: Scored<'a>,
    },
    /// A choice ended well.
    Finish {
        /// Which choice.
        choice: u32,
        /// Why.
        reason: Finish,
    },
    /// All choices ended well; the last event of a good stream.
    End(Usage),
    /// The stream broke; the last event of a bad one.
    Failed(&'a Failure),
}

/// The log-probability of one token.
#[derive(Clone, Copy, Debug)]
pub struct TokenLogprob<'a> {
    /// Token id.
    pub token: u32,
    /// The token's bytes; possibly not UTF-8.
    pub bytes: &'a [u8],
    /// Natural logarithm of its probability before sampling filters.
    pub logprob: f32,
    burst: &'a Burst,
    top: (u32, u32),
}

impl<'a> TokenLogprob<'a> {
    /// The likeliest tokens at this position, likeliest first.
    #[must_use]
    pub fn top(&self) -> impl ExactSizeIterator<Item = TokenLogprob<'a>> + use<'a> {
        self.burst.entries(&self.burst.alternatives, self.top)
    }
}

/// The log-probabilities that belong to one text event.
#[derive(Clone, Copy, Debug)]
pub struct Scored<'a> {
    burst: &'a Burst,
    range: (u32, u32),
}

impl<'a> Scored<'a> {
    /// The tokens, in order.
    #[must_use]
    pub fn iter(self) -> impl ExactSizeIterator<Item = TokenLogprob<'a>> + use<'a> {
        self.burst.entries(&self.burst.scored, self.range)
    }

    /// Whether no log-probabilities came with the text.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.range.0 == self.range.1
    }
}

#[derive(Debug)]
struct ScoredEntry {
    token: u32,
    bytes: (u32, u32),
    logprob: f32,
    top: (u32, u32),
}

/// A token as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenTime {
    /// Which choice it is of.
    pub choice: u32,
    /// Bytes of its text, shown or not; 255 stands for more, too.
    pub bytes: u8,
    /// When it was generated.
    pub at: u64,
}

#[derive(Debug)]
enum Entry {
    Text {
        choice: u32,
        text: (u32, u32),
        scored: (u32, u32),
    },
    Finish {
        choice: u32,
        reason: Finish,
    },
    End(Usage),
    Failed(Failure),
}

/// A reusable buffer of events. Bounded by [`Burst::room`].
#[derive(Debug)]
pub struct Burst {
    limit: usize,
    text: String,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    scored: Vec<ScoredEntry>,
    alternatives: Vec<ScoredEntry>,
    pub(super) times: Vec<TokenTime>,
    pub(super) cached: u32,
    pub(super) usage: Usage,
    pub(super) counts: Vec<u32>,
    pub(super) ended_by: Option<&'static str>,
}

impl Burst {
    /// Tokens a burst takes before it must be written: about 16 KiB of SSE chunks of 250 bytes. With
    /// log-probabilities it is more; transports cut what they send into frames.
    pub const DEFAULT_LIMIT: usize = 64;

    /// An empty burst that takes [`Burst::DEFAULT_LIMIT`] tokens.
    #[must_use]
    pub fn new() -> Self {
        Self::with_limit(Self::DEFAULT_LIMIT)
    }

    /// An empty burst that takes `limit` tokens (at least one).
    #[must_use]
    pub fn with_limit(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            text: String::new(),
            bytes: Vec::new(),
            entries: Vec::new(),
            scored: Vec::new(),
            alternatives: Vec::new(),
            times: Vec::new(),
            cached: 0,
            usage: Usage::default(),
            counts: Vec::new(),
            ended_by: None,
        }
    }

    /// Forgets all events; keeps the memory.
    pub fn clear(&mut self) {
        self.text.clear();
        self.bytes.clear();
        self.entries.clear();
        self.scored.clear();
        self.alternatives.clear();
        self.times.clear();
        self.cached = 0;
        self.usage = Usage::default();
        self.counts.clear();
        self.ended_by = None;
    }

    /// Tokens that may still be added.
    #[must_use]
    pub fn room(&self) -> usize {
        self.limit.saturating_sub(self.times.len())
    }

    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Tokens counted in this burst.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.times.len()
    }

    /// Each token counted in this burst.
    #[must_use]
    pub fn times(&self) -> &[TokenTime] {
        &self.times
    }

    /// Prompt tokens counted in this burst as cached.
    #[must_use]
    pub fn cached_tokens(&self) -> u32 {
        self.cached
    }

    /// Tokens of the whole stream so far, these among them, as a [`super::TokenStream`] counts them.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Tokens of each choice since the burst before, as a [`super::TokenStream`] counts them: also those
    /// whose text is still held back, which alone make no burst.
    #[must_use]
    pub fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// The limit of the caller that ended the choices which end in this burst, if one did.
    #[must_use]
    pub fn ended_by(&self) -> Option<&'static str> {
        self.ended_by
    }

    /// The events, in order.
    pub fn events(&self) -> impl Iterator<Item = Event<'_>> {
        self.entries.iter().map(|entry| match entry {
            Entry::Text {
                choice,
                text,
                scored,
            } => Event::Text {
                choice: *choice,
                text: &self.text[text.0 as usize..text.1 as usize],
                logprobs: Scored {
                    burst: self,
                    range: *scored,
                },
            },
            Entry::Finish { choice, reason } => Event::Finish {
                choice: *choice,
                reason: *reason,
            },
            Entry::End(usage) => Event::End(*usage),
            Entry::Failed(failure) => Event::Failed(failure),
        })
    }

    fn entries<'a>(
        &'a self,
        list: &'a [ScoredEntry],
        range: (u32, u32),
    ) -> impl ExactSizeIterator<Item = TokenLogprob<'a>> + use<'a> {
        list[range.0 as usize..range.1 as usize]
            .iter()
            .map(move |entry| TokenLogprob {
                token: entry.token,
                bytes: &self.bytes[entry.bytes.0 as usize..entry.bytes.1 as usize],
                logprob: entry.logprob,
                burst: self,
                top: entry.top,
            })
    }

    // === what sources write ===

    /// Counts one token of a choice, generated at `at` (see [`super::clock`]), of so many bytes, whether
    /// or not text comes of it now.
    pub fn token(&mut self, choice: u32, at: u64, bytes: usize) {
        let bytes = u8::try_from(bytes).unwrap_or(u8::MAX);
        self.times.push(TokenTime { choice, bytes, at });
    }

    /// Counts prompt tokens whose K/V was not computed for this request, because an earlier or a
    /// running one had done so.
    pub fn cached(&mut self, tokens: u32) {
        self.cached = self.cached.saturating_add(tokens);
    }

    /// The text buffer, to append to; then call [`Burst::text`] with the length it had before.
    pub fn buffer(&mut self) -> &mut String {
        &mut self.text
    }

    /// Where the next log-probability will be; pass it to [`Burst::text`].
    #[must_use]
    pub fn scored_mark(&self) -> usize {
        self.scored.len()
    }

    /// Adds a text event of everything appended to the buffer since it was `from` bytes long, with
    /// the log-probabilities added since `scored_mark`. Does nothing if both are empty.
    pub fn text(&mut self, choice: u32, from: usize, scored_mark: usize) {
        let text = (index(from), index(self.text.len()));
        let scored = (index(scored_mark), index(self.scored.len()));
        if text.0 < text.1 || scored.0 < scored.1 {
            self.entries.push(Entry::Text {
                choice,
                text,
                scored,
            });
        }
    }

    /// Adds one token's log-probability and its `top` alternatives. `bytes_of` gives a token's bytes.
    pub fn logprob<'b>(
        &mut self,
        token: u32,
        logprob: f32,
        top: &[(u32, f32)],
        bytes_of: impl Fn(u32) -> &'b [u8],
    ) {
        let from = index(self.alternatives.len());
        for &(token, logprob) in top {
            let bytes = self.push_bytes(bytes_of(token));
            self.alternatives.push(ScoredEntry {
                token,
                bytes,
                logprob,
                top: (0, 0),
            });
        }
        let bytes = self.push_bytes(bytes_of(token));
        self.scored.push(ScoredEntry {
            token,
            bytes,
            logprob,
            top: (from, index(self.alternatives.len())),
        });
    }

    fn push_bytes(&mut self, bytes: &[u8]) -> (u32, u32) {
        let from = index(self.bytes.len());
        self.bytes.extend_from_slice(bytes);
        (from, index(self.bytes.len()))
    }

    /// A choice ended well.
    pub fn finish(&mut self, choice: u32, reason: Finish) {
        self.entries.push(Entry::Finish { choice, reason });
    }

    /// The stream broke.
    pub fn failed(&mut self, failure: Failure) {
        self.entries.push(Entry::Failed(failure));
    }

    /// Events so far.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The end of a choice, or of the stream, among the events after the first `seen`.
    pub(super) fn ended_since(&self, seen: usize) -> Option<Event<'_>> {
        self.events()
            .skip(seen)
            .find(|event| !matches!(event, Event::Text { .. }))
    }

    /// The failure in this burst, if there is one.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        self.entries.iter().rev().find_map(|entry| match entry {
            Entry::Failed(failure) => Some(failure),
            _ => None,
        })
    }

    /// Puts another failure in the place of the one in this burst.
    pub(super) fn replace_failure(&mut self, by: Failure) {
        for entry in &mut self.entries {
            if matches!(entry, Entry::Failed(_)) {
                *entry = Entry::Failed(by);
                return;
            }
        }
    }

    pub(super) fn end(&mut self, usage: Usage) {
        self.entries.push(Entry::End(usage));
    }
}

impl Default for Burst {
    fn default() -> Self {
        Self::new()
    }
}

/// Positions fit `u32`: a burst holds at most a few hundred tokens.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a burst is far below 4 GiB"
)]
fn index(at: usize) -> u32 {
    at as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_logprobs_come_out_as_they_went_in() {
        let bytes: [&[u8]; 3] = [b"a", b"\xe4", b"c"];
        let mut burst = Burst::with_limit(4);
        burst.token(1, 7, 1);
        let (from, mark) = (burst.buffer().len(), burst.scored_mark());
        burst.buffer().push('a');
        burst.logprob(0, -0.5, &[(0, -0.5), (1, -2.0)], |t| bytes[t as usize]);
        burst.text(1, from, mark);
        burst.finish(1, Finish::Stop);

        assert_eq!(burst.room(), 3);
        let events: Vec<_> = burst.events().collect();
        let Event::Text {
            choice,
            text,
            logprobs,
        } = events[0]
        else {
            panic!("expected text, got {:?}", events[0]);
        };
        assert_eq!((choice, text), (1, "a"));
        let scored: Vec<_> = logprobs.iter().collect();
        assert_eq!(scored.len(), 1);
        let top: Vec<_> = scored[0].top().map(|t| (t.token, t.bytes)).collect();
        assert_eq!(top, [(0, &b"a"[..]), (1, &b"\xe4"[..])]);
        assert!(matches!(events[1], Event::Finish { choice: 1, .. }));
    }

    #[test]
    fn an_empty_text_event_is_not_recorded() {
        let mut burst = Burst::new();
        burst.text(0, 0, 0);
        assert!(burst.is_empty());
    }
}
