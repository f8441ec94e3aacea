//! Streams of chunk objects, over SSE or one a line.
//!
//! ```text
//! data: {"id":…,…,"choices":[{"index":0,"delta":{"content":"text"},"logprobs":null,"finish_reason":null}]}⏎⏎
//! ╰────────── head ───────────────────╯ ╰───── open ─────╯    ╰────────────── close ───────────────────────╯
//! ```
//!
//! Head, open and close are formatted once for the stream; a token costs three copies, one small integer
//! and its escaped text. No `id:` lines are ever written: SDKs mishandle comments after one.

use bytes::BytesMut;

use super::super::logprobs::{self, Columns};
use super::super::mark::Format;
use super::super::{EVENT_STREAM, failure, json};
use super::{Dialect, OpenAi, Served, ended_by, usage};
use crate::generation::{Failure, Finish, Queued, Scored, Usage};

/// Writes chunk objects.
pub(super) struct Chunks {
    dialect: Dialect,
    content_type: &'static str,
    /// Through `"choices":[{"index":`.
    head: Box<[u8]>,
    /// Length of the head without `{"index":`.
    envelope: usize,
    /// From the index to the text.
    open: &'static [u8],
    /// From the text to the end of the frame, when there are no log-probabilities.
    close: Box<[u8]>,
    /// From the last `]` of the choices to the end of the frame.
    tail: Box<[u8]>,
    include_usage: bool,
    /// The limit that ends the choices, if one does.
    ended_by: Option<&'static str>,
    /// One per choice for completions with log-probabilities.
    columns: Vec<Columns>,
}

/// What a frame of each framing begins and ends with.
fn framing(content_type: &str) -> (&'static [u8], &'static [u8]) {
    if content_type == EVENT_STREAM {
        (b"data: ", b"\n\n")
    } else {
        (b"", b"\n")
    }
}

impl Chunks {
    pub(super) fn new(answer: &OpenAi, served: &Served<'_>, content_type: &'static str) -> Self {
        let (before, after) = framing(content_type);
        let mut head = BytesMut::from(before);
        let (object, open, close_text): (_, &[u8], &[u8]) = match answer.dialect {
            Dialect::Chat => (
                "chat.completion.chunk",
                b",\"delta\":{\"content\":\"",
                b"\"}",
            ),
            Dialect::Completion => ("text_completion", b",\"text\":\"", b"\""),
        };
        answer.envelope(object, served, &mut head);
        head.extend_from_slice(b"\"choices\":[");
        let envelope = head.len();
        head.extend_from_slice(b"{\"index\":");

        let nulls: &[u8] = if answer.include_usage {
            b",\"usage\":null}"
        } else {
            b"}"
        };
        let tail = [nulls, after].concat();
        let close = [
            close_text,
            b",\"logprobs\":null,\"finish_reason\":null}]",
            &tail,
        ]
        .concat();
        let scored = answer.logprobs && answer.dialect == Dialect::Completion;
        let columns = if scored { answer.choices } else { 0 };
        Self {
            dialect: answer.dialect,
            content_type,
            head: head.to_vec().into(),
            envelope,
            open,
            close: close.into(),
            tail: tail.into(),
            include_usage: answer.include_usage,
            ended_by: None,
            columns: std::iter::repeat_with(Columns::default)
                .take(columns)
                .collect(),
        }
    }

    fn start(&self, choice: u32, out: &mut BytesMut) {
        out.extend_from_slice(&self.head);
        json::integer(out, choice);
    }

    /// The end of a text chunk with log-probabilities.
    fn scored(&mut self, choice: u32, scored: Scored<'_>, out: &mut BytesMut) {
        match self.dialect {
            Dialect::Chat => {
                out.extend_from_slice(b"\"},\"logprobs\":{\"content\":[");
                logprobs::tokens(scored, out);
                out.extend_from_slice(b"],\"refusal\":null}");
            }
            Dialect::Completion => {
                out.extend_from_slice(b"\",\"logprobs\":");
                match self.columns.get_mut(choice as usize) {
                    Some(columns) => {
                        columns.add(scored);
                        columns.flush(out);
                    }
                    None => out.extend_from_slice(b"null"),
                }
            }
        }
        out.extend_from_slice(b",\"finish_reason\":null}]");
        out.extend_from_slice(&self.tail);
    }
}

impl Format for Chunks {
    fn content_type(&self) -> &'static str {
        self.content_type
    }

    fn ended_by(&mut self, limit: &'static str) {
        self.ended_by = Some(limit);
    }

    fn begin(&mut self, choice: u32, out: &mut BytesMut) {
        if self.dialect == Dialect::Chat {
            self.start(choice, out);
            out.extend_from_slice(
                b",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]",
            );
            out.extend_from_slice(&self.tail);
        }
    }

    fn text(&mut self, choice: u32, text: &str, logprobs: Option<Scored<'_>>, out: &mut BytesMut) {
        // 20 bytes for the index; what escaping adds is found while writing.
        out.reserve(self.head.len() + 20 + self.open.len() + text.len() + self.close.len());
        self.start(choice, out);
        out.extend_from_slice(self.open);
        json::text(out, text);
        if let Some(scored) = logprobs {
            self.scored(choice, scored, out);
        } else {
            out.extend_from_slice(&self.close);
            if let Some(columns) = self.columns.get_mut(choice as usize) {
                columns.skip(text);
            }
        }
    }

    fn finish(&mut self, choice: u32, reason: Finish, out: &mut BytesMut) {
        self.start(choice, out);
        out.extend_from_slice(match self.dialect {
            Dialect::Chat => b",\"delta\":{}",
            Dialect::Completion => b",\"text\":\"\"",
        });
        out.extend_from_slice(b",\"logprobs\":null,\"finish_reason\":");
        json::string(out, reason.as_str());
        out.extend_from_slice(b"}]");
        ended_by(self.ended_by, out);
        out.extend_from_slice(&self.tail);
    }

    fn end(&mut self, total: Usage, out: &mut BytesMut) {
        let (_, after) = framing(self.content_type);
        if self.include_usage {
            out.extend_from_slice(&self.head[..self.envelope]);
            out.extend_from_slice(b"],\"usage\":");
            usage(total, out);
            out.extend_from_slice(b"}");
            out.extend_from_slice(after);
        }
        self.done(out);
    }

    fn failed(&mut self, failure: &Failure, out: &mut BytesMut) {
        let (before, after) = framing(self.content_type);
        out.extend_from_slice(before);
        failure::body(failure, out);
        out.extend_from_slice(after);
        // After an error, too: user interfaces wait for it, and SDKs have raised by then.
        self.done(out);
    }

    fn keep_alive(&mut self, out: &mut BytesMut) {
        // NDJSON has no comments.
        if self.content_type == EVENT_STREAM {
            out.extend_from_slice(b": keep-alive\n\n");
        }
    }

    fn queued(&mut self, queued: Queued, out: &mut BytesMut) {
        // As with a keep-alive: a comment, and nothing where there are none.
        if self.content_type == EVENT_STREAM {
            out.extend_from_slice(b": queued position=");
            json::integer(out, queued.position);
            if let Some(estimate) = queued.estimate {
                // Tenths of a second: it is no more exact than that.
                let tenths = estimate.as_millis().div_ceil(100);
                out.extend_from_slice(b" estimate=");
                json::integer(out, u64::try_from(tenths / 10).unwrap_or(u64::MAX));
                out.extend_from_slice(&[b'.', b"0123456789"[(tenths % 10) as usize], b's']);
            }
            out.extend_from_slice(b"\n\n");
        }
    }
}

impl Chunks {
    fn done(&self, out: &mut BytesMut) {
        if self.content_type == EVENT_STREAM {
            out.extend_from_slice(b"data: [DONE]\n\n");
        }
    }
}
