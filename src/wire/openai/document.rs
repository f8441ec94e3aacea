//! Whole answers: one JSON document when the stream has ended.

use bytes::{BufMut, BytesMut};

use super::super::logprobs::{self, Columns};
use super::super::mark::Format;
use super::super::{JSON, NDJSON, accept, failure, json};
use super::{Dialect, OpenAi, Served, ended_by, usage};
use crate::generation::{Failure, Finish, Scored, Usage};

/// Gathers all choices and writes them at the end.
pub(super) struct Document {
    dialect: Dialect,
    /// From `{` to before `"choices"`.
    envelope: Box<[u8]>,
    logprobs: bool,
    /// One line of NDJSON, or a document of its own.
    line: bool,
    choices: Vec<Choice>,
    /// The limit that ended them, if one did.
    ended_by: Option<&'static str>,
}

#[derive(Default)]
struct Choice {
    text: String,
    finish: Option<Finish>,
    /// Chat's token objects, written as they came.
    tokens: BytesMut,
    columns: Columns,
}

impl Document {
    pub(super) fn new(answer: &OpenAi, served: &Served<'_>) -> Self {
        let mut envelope = BytesMut::new();
        let object = match answer.dialect {
            Dialect::Chat => "chat.completion",
            Dialect::Completion => "text_completion",
        };
        answer.envelope(object, served, &mut envelope);
        Self {
            dialect: answer.dialect,
            envelope: envelope.to_vec().into(),
            logprobs: answer.logprobs,
            line: answer.format == accept::Format::Lines,
            ended_by: None,
            choices: std::iter::repeat_with(Choice::default)
                .take(answer.choices)
                .collect(),
        }
    }

    fn newline(&self, out: &mut BytesMut) {
        if self.line {
            out.put_u8(b'\n');
        }
    }
}

impl Format for Document {
    fn content_type(&self) -> &'static str {
        if self.line { NDJSON } else { JSON }
    }

    fn ended_by(&mut self, limit: &'static str) {
        self.ended_by = Some(limit);
    }

    fn text(&mut self, choice: u32, text: &str, logprobs: Option<Scored<'_>>, _: &mut BytesMut) {
        let Some(choice) = self.choices.get_mut(choice as usize) else {
            return;
        };
        choice.text.push_str(text);
        match (logprobs, self.dialect) {
            (Some(scored), Dialect::Chat) => {
                if !choice.tokens.is_empty() {
                    choice.tokens.put_u8(b',');
                }
                logprobs::tokens(scored, &mut choice.tokens);
            }
            (Some(scored), Dialect::Completion) => choice.columns.add(scored),
            (None, _) => choice.columns.skip(text),
        }
    }

    fn finish(&mut self, choice: u32, reason: Finish, _: &mut BytesMut) {
        if let Some(choice) = self.choices.get_mut(choice as usize) {
            choice.finish = Some(reason);
        }
    }

    fn end(&mut self, total: Usage, out: &mut BytesMut) {
        out.extend_from_slice(&self.envelope);
        out.extend_from_slice(b"\"choices\":[");
        for (index, choice) in self.choices.iter_mut().enumerate() {
            if index > 0 {
                out.put_u8(b',');
            }
            out.extend_from_slice(b"{\"index\":");
            json::integer(out, index);
            match self.dialect {
                Dialect::Chat => {
                    out.extend_from_slice(b",\"message\":{\"role\":\"assistant\",\"content\":");
                    json::string(out, &choice.text);
                    out.extend_from_slice(b",\"refusal\":null}");
                }
                Dialect::Completion => {
                    out.extend_from_slice(b",\"text\":");
                    json::string(out, &choice.text);
                }
            }
            out.extend_from_slice(b",\"logprobs\":");
            match (self.logprobs, self.dialect) {
                (true, Dialect::Chat) => {
                    out.extend_from_slice(b"{\"content\":[");
                    out.extend_from_slice(&choice.tokens);
                    out.extend_from_slice(b"],\"refusal\":null}");
                }
                (true, Dialect::Completion) => choice.columns.flush(out),
                (false, _) => out.extend_from_slice(b"null"),
            }
            out.extend_from_slice(b",\"finish_reason\":");
            json::string_or_null(out, choice.finish.map(Finish::as_str));
            out.put_u8(b'}');
        }
        out.extend_from_slice(b"],\"usage\":");
        usage(total, out);
        ended_by(self.ended_by, out);
        out.put_u8(b'}');
        self.newline(out);
    }

    fn failed(&mut self, failure: &Failure, out: &mut BytesMut) {
        failure::body(failure, out);
        self.newline(out);
    }
}
