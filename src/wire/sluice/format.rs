//! The format `application/vnd.sluice.frames`: a generation's events as frames.
//!
//! Text of one choice that is ready at the same time becomes one frame, so a reader that lags gets few
//! and large ones. A token that comes alone costs two copies and five bytes.

use bytes::BytesMut;

use super::super::mark::Format;
use super::frames::{Frame, Reasons, Score, Scores, logprobs};
use super::{FRAMES, fault};
use crate::generation::{Burst, Failure, Finish, Scored, TokenLogprob, Usage};

/// Bytes of text, or of log-probabilities, that one frame gathers.
const GATHERED: usize = 16 * 1024;

/// Writes the events of one generation.
pub(in crate::wire) struct Frames {
    /// Text that is to go into the next TOKENS frame, of this choice.
    text: String,
    choice: u32,
    /// LOGPROBS for that text.
    scores: BytesMut,
    /// Tokens of each choice that no TOKENS frame has counted yet.
    uncounted: Box<[u32]>,
    reasons: Box<[u8]>,
    /// The reason of choices that a limit ends.
    limited: Option<u8>,
    /// Prompt and cached tokens that were told.
    told: Option<(u32, u32)>,
}

impl Frames {
    pub(in crate::wire) fn new(choices: usize) -> Self {
        Self {
            text: String::new(),
            choice: 0,
            scores: BytesMut::new(),
            uncounted: vec![0; choices].into(),
            reasons: vec![0; choices].into(),
            limited: None,
            told: None,
        }
    }

    fn gather(&mut self, choice: u32, text: &str, out: &mut BytesMut) {
        if choice != self.choice || self.text.len() + text.len() > GATHERED {
            self.flush(out);
            self.choice = choice;
        }
        self.text.push_str(text);
    }

    /// Writes what is gathered.
    fn flush(&mut self, out: &mut BytesMut) {
        let choice = self.choice;
        if !self.text.is_empty() {
            let count = self.take_count(choice);
            let text = &self.text;
            Frame::Tokens {
                choice,
                count,
                text,
            }
            .encode(out);
            self.text.clear();
        }
        if !self.scores.is_empty()
            && let Some(tokens) = Scores::parse(&self.scores)
        {
            Frame::Logprobs { choice, tokens }.encode(out);
            self.scores.clear();
        }
    }

    fn take_count(&mut self, choice: u32) -> u32 {
        let count = self.uncounted.get_mut(choice as usize);
        count.map_or(0, std::mem::take)
    }
}

fn score<'a>(token: &TokenLogprob<'a>) -> Score<'a> {
    Score {
        token: token.token,
        logprob: token.logprob,
        bytes: token.bytes,
    }
}

impl Format for Frames {
    fn content_type(&self) -> &'static str {
        FRAMES
    }

    fn burst_begins(&mut self, burst: &Burst, out: &mut BytesMut) {
        for (uncounted, count) in self.uncounted.iter_mut().zip(burst.counts()) {
            *uncounted += count;
        }
        let usage = burst.usage();
        let now = (usage.prompt_tokens, usage.cached_tokens);
        if usage.completion_tokens > 0 && self.told != Some(now) {
            self.told = Some(now);
            Frame::Progress {
                prompt_tokens: now.0,
                cached_tokens: now.1,
            }
            .encode(out);
        }
    }

    fn ended_by(&mut self, limit: &'static str) {
        self.limited = Reasons::limited(limit);
    }

    fn text(&mut self, choice: u32, text: &str, logprobs: Option<Scored<'_>>, out: &mut BytesMut) {
        let mut rest = text;
        // Only a prompt that is echoed is this long.
        while rest.len() > GATHERED {
            let (piece, after) = rest.split_at(rest.floor_char_boundary(GATHERED));
            self.gather(choice, piece, out);
            rest = after;
        }
        self.gather(choice, rest, out);
        for token in logprobs.into_iter().flat_map(Scored::iter) {
            logprobs::write(
                &mut self.scores,
                score(&token),
                token.top().map(|t| score(&t)),
            );
            if self.scores.len() > GATHERED {
                self.flush(out);
            }
        }
    }

    fn burst_ends(&mut self, out: &mut BytesMut) {
        self.flush(out);
    }

    fn finish(&mut self, choice: u32, reason: Finish, out: &mut BytesMut) {
        self.flush(out);
        let count = self.take_count(choice);
        if count > 0 {
            // Tokens that never became text: with these the counts add up to the usage.
            let text = "";
            Frame::Tokens {
                choice,
                count,
                text,
            }
            .encode(out);
        }
        if let Some(slot) = self.reasons.get_mut(choice as usize) {
            *slot = match reason {
                Finish::Stop => Reasons::STOP,
                Finish::Length => self.limited.unwrap_or(Reasons::LENGTH),
            };
        }
    }

    fn end(&mut self, usage: Usage, out: &mut BytesMut) {
        self.flush(out);
        Frame::Usage {
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens,
            completion_tokens: usage.completion_tokens,
        }
        .encode(out);
        Frame::End(Reasons::new(&self.reasons).unwrap_or_default()).encode(out);
    }

    fn failed(&mut self, failure: &Failure, out: &mut BytesMut) {
        self.flush(out);
        fault::write(failure, out);
    }

    fn keep_alive(&mut self, out: &mut BytesMut) {
        Frame::Ping.encode(out);
    }
}
