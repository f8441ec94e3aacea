//! One wrapper around every format: strips the byte-order mark at the head of each choice's text.
//!
//! Models and upstreams that were fed files begin their answer with U+FEFF now and then, and readers
//! take it for text or, at the head of an SSE stream, lose the first event. The wrapper works on whole
//! characters: text reaches it only after bytes were put together, so a mark whose three bytes came in
//! three writes is one character here. A U+FEFF anywhere else is text and stays.

use bytes::BytesMut;

use super::Encoder;
use crate::generation::{Burst, Event, Failure, Finish, Queued, Scored, Usage};

const MARK: char = '\u{feff}';

/// What a format has to write; [`Unmarked`] makes an [`Encoder`] of it.
pub(super) trait Format: Send {
    /// The `content-type` of the answer.
    fn content_type(&self) -> &'static str;

    /// Called before the events of each burst.
    fn burst_begins(&mut self, _burst: &Burst, _out: &mut BytesMut) {}

    /// Called after them.
    fn burst_ends(&mut self, _out: &mut BytesMut) {}

    /// Called before the end of choices that a limit of their caller ends.
    fn ended_by(&mut self, _limit: &'static str) {}

    /// Called once for each choice, before anything else of it.
    fn begin(&mut self, _choice: u32, _out: &mut BytesMut) {}

    /// More text of a choice. Empty only if log-probabilities come with it.
    fn text(&mut self, choice: u32, text: &str, logprobs: Option<Scored<'_>>, out: &mut BytesMut);

    /// A choice ended well.
    fn finish(&mut self, choice: u32, reason: Finish, out: &mut BytesMut);

    /// The stream ended well.
    fn end(&mut self, usage: Usage, out: &mut BytesMut);

    /// The stream broke.
    fn failed(&mut self, failure: &Failure, out: &mut BytesMut);

    /// Keeps a silent connection open.
    fn keep_alive(&mut self, _out: &mut BytesMut) {}

    /// Tells where in line the request stands, before anything else of it.
    fn queued(&mut self, _queued: Queued, _out: &mut BytesMut) {}
}

/// How far a choice has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing was written.
    Fresh,
    /// Begun, but no text yet.
    Head,
    /// Past its first character.
    Body,
}

/// An encoder from a format.
pub(super) struct Unmarked<F> {
    format: F,
    stages: Box<[Stage]>,
    /// Texts written before the first text of a choice, one per prompt (`echo`); else empty.
    echo: Box<[String]>,
    /// Choices per prompt.
    n: usize,
}

impl<F: Format> Unmarked<F> {
    /// Wraps a format for a stream of `choices` choices. The `echo` prompts, if any, are repeated, each
    /// before the `n` choices that continue it.
    pub(super) fn new(format: F, choices: usize, echo: Box<[String]>, n: usize) -> Self {
        Self {
            format,
            stages: vec![Stage::Fresh; choices].into(),
            echo,
            n: n.max(1),
        }
    }

    #[cold]
    fn begin(&mut self, choice: u32, out: &mut BytesMut) -> Stage {
        self.format.begin(choice, out);
        let at = choice as usize;
        let mut stage = Stage::Head;
        if let Some(prompt) = self.echo.get(at / self.n)
            && !prompt.is_empty()
        {
            stage = Stage::Body;
            let text = prompt.strip_prefix(MARK).unwrap_or(prompt);
            if !text.is_empty() {
                self.format.text(choice, text, None, out);
            }
        }
        if let Some(known) = self.stages.get_mut(at) {
            *known = stage;
        }
        stage
    }

    fn text(&mut self, choice: u32, text: &str, logprobs: Scored<'_>, out: &mut BytesMut) {
        let mut rest = text;
        let stage = self.stages.get(choice as usize).copied();
        if let Some(mut stage @ (Stage::Fresh | Stage::Head)) = stage {
            if stage == Stage::Fresh {
                stage = self.begin(choice, out);
            }
            if stage == Stage::Head && !text.is_empty() {
                rest = text.strip_prefix(MARK).unwrap_or(text);
                self.stages[choice as usize] = Stage::Body;
            }
        }
        let logprobs = (!logprobs.is_empty()).then_some(logprobs);
        if !rest.is_empty() || logprobs.is_some() {
            self.format.text(choice, rest, logprobs, out);
        }
    }
}

impl<F: Format> Encoder for Unmarked<F> {
    fn content_type(&self) -> &'static str {
        self.format.content_type()
    }

    fn encode(&mut self, burst: &Burst, out: &mut BytesMut) {
        self.format.burst_begins(burst, out);
        if let Some(limit) = burst.ended_by() {
            self.format.ended_by(limit);
        }
        for event in burst.events() {
            match event {
                Event::Text {
                    choice,
                    text,
                    logprobs,
                } => self.text(choice, text, logprobs, out),
                Event::Finish { choice, reason } => {
                    if self.stages.get(choice as usize) == Some(&Stage::Fresh) {
                        self.begin(choice, out);
                    }
                    self.format.finish(choice, reason, out);
                }
                Event::End(usage) => self.format.end(usage, out),
                Event::Failed(failure) => self.format.failed(failure, out),
            }
        }
        self.format.burst_ends(out);
    }

    fn keep_alive(&mut self, out: &mut BytesMut) {
        self.format.keep_alive(out);
    }

    fn queued(&mut self, queued: Queued, out: &mut BytesMut) {
        self.format.queued(queued, out);
    }
}
