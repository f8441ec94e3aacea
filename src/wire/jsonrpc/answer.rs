//! Replies to `chat` and `complete`.
//!
//! ```text
//! {"jsonrpc":"2.0","method":"queued","params":{"id":7,"position":3,"estimate_ms":1200}}⏎   while it waits
//! {"jsonrpc":"2.0","method":"token","params":{"id":7,"index":0,"text":"Hi"}}⏎      one a token, when streamed
//! {"jsonrpc":"2.0","id":7,"result":{"request_id":…,"model":…,"choices":[…],"usage":{…},…}}
//! ```
//!
//! A streamed result does not repeat the text: it has gone out already, and keeping it would make the
//! memory of a stream grow with its length.

use bytes::{BufMut, BytesMut};

use super::super::mark::{Format, Unmarked};
use super::super::openai::{self, Wanted};
use super::super::{Answer, Encoder, Head, JSON, NDJSON, Refusal, json, logprobs};
use super::Reply;
use crate::generation::{Failure, Finish, Queued, RequestId, Scored, Usage};

/// How one call is answered.
pub(super) struct Rpc {
    reply: Reply,
    streamed: bool,
    request: RequestId,
    choices: usize,
    n: usize,
    logprobs: bool,
    echo: Box<[String]>,
}

impl Rpc {
    pub(super) fn new(wanted: &Wanted, reply: Reply, head: &Head<'_>) -> Self {
        Self {
            reply,
            streamed: wanted.stream == Some(true),
            request: head.id.clone(),
            choices: wanted.request.choices(),
            n: wanted.request.n as usize,
            logprobs: wanted.request.logprobs.is_some(),
            echo: wanted.echo.clone(),
        }
    }
}

impl Answer for Rpc {
    fn streamed(&self) -> bool {
        self.streamed
    }

    fn encoder(&self, model: &str, _deterministic: bool) -> Box<dyn Encoder> {
        let format = Tokens::new(self, model);
        let echo = self.echo.clone();
        Box::new(Unmarked::new(format, self.choices, echo, self.n))
    }

    fn refuse(&self, failure: &Failure, out: &mut BytesMut) -> Refusal {
        self.reply.failure(failure, out);
        Refusal {
            status: 200,
            content_type: content_type(&self.reply),
        }
    }
}

fn content_type(reply: &Reply) -> &'static str {
    if reply.line { NDJSON } else { JSON }
}

struct Tokens {
    reply: Reply,
    streamed: bool,
    /// From the beginning of a notification to its index.
    head: Box<[u8]>,
    /// The first members of the result, formatted once.
    result: Box<[u8]>,
    logprobs: bool,
    choices: Vec<Choice>,
    /// The limit that ended them, if one did.
    ended_by: Option<&'static str>,
}

/// What is known of a choice for the result; text and log-probabilities only when nothing is streamed.
#[derive(Default)]
struct Choice {
    text: String,
    logprobs: BytesMut,
    finish: Option<Finish>,
}

impl Tokens {
    fn new(answer: &Rpc, model: &str) -> Self {
        let mut head =
            BytesMut::from(&b"{\"jsonrpc\":\"2.0\",\"method\":\"token\",\"params\":{\"id\":"[..]);
        head.extend_from_slice(answer.reply.id.as_deref().unwrap_or("null").as_bytes());
        head.extend_from_slice(b",\"index\":");
        let mut result = BytesMut::from(&b"{\"request_id\":"[..]);
        json::string(&mut result, answer.request.as_str());
        result.extend_from_slice(b",\"model\":");
        json::string(&mut result, model);
        Self {
            reply: answer.reply.clone(),
            streamed: answer.streamed,
            head: head.to_vec().into(),
            result: result.to_vec().into(),
            logprobs: answer.logprobs,
            ended_by: None,
            choices: std::iter::repeat_with(Choice::default)
                .take(answer.choices)
                .collect(),
        }
    }

    fn result(&self, total: Usage, out: &mut BytesMut) {
        out.extend_from_slice(&self.result);
        out.extend_from_slice(b",\"choices\":[");
        for (index, choice) in self.choices.iter().enumerate() {
            out.extend_from_slice(if index == 0 {
                b"{\"index\":"
            } else {
                b",{\"index\":"
            });
            json::integer(out, index);
            self.text_of(choice, out);
            if self.logprobs && !self.streamed {
                out.extend_from_slice(b",\"logprobs\":[");
                out.extend_from_slice(&choice.logprobs);
                out.put_u8(b']');
            }
            finish_of(choice, out);
            out.put_u8(b'}');
        }
        out.put_u8(b']');
        if let Some(first) = self.choices.first() {
            self.text_of(first, out);
            finish_of(first, out);
        }
        out.extend_from_slice(b",\"usage\":");
        openai::usage(total, out);
        openai::ended_by(self.ended_by, out);
        out.put_u8(b'}');
    }

    fn text_of(&self, choice: &Choice, out: &mut BytesMut) {
        if !self.streamed {
            out.extend_from_slice(b",\"text\":");
            json::string(out, &choice.text);
        }
    }
}

fn finish_of(choice: &Choice, out: &mut BytesMut) {
    out.extend_from_slice(b",\"finish_reason\":");
    json::string_or_null(out, choice.finish.map(Finish::as_str));
}

impl Format for Tokens {
    fn content_type(&self) -> &'static str {
        content_type(&self.reply)
    }

    fn ended_by(&mut self, limit: &'static str) {
        self.ended_by = Some(limit);
    }

    fn text(&mut self, choice: u32, text: &str, logprobs: Option<Scored<'_>>, out: &mut BytesMut) {
        if self.streamed {
            out.reserve(self.head.len() + text.len() + 40);
            out.extend_from_slice(&self.head);
            json::integer(out, choice);
            out.extend_from_slice(b",\"text\":\"");
            json::text(out, text);
            if let Some(scored) = logprobs {
                out.extend_from_slice(b"\",\"logprobs\":[");
                logprobs::tokens(scored, out);
                out.extend_from_slice(b"]}}\n");
            } else {
                out.extend_from_slice(b"\"}}\n");
            }
        } else if let Some(choice) = self.choices.get_mut(choice as usize) {
            choice.text.push_str(text);
            if let Some(scored) = logprobs {
                if !choice.logprobs.is_empty() {
                    choice.logprobs.put_u8(b',');
                }
                logprobs::tokens(scored, &mut choice.logprobs);
            }
        }
    }

    fn queued(&mut self, queued: Queued, out: &mut BytesMut) {
        if self.streamed {
            self.reply.queued(queued, out);
        }
    }

    fn finish(&mut self, choice: u32, reason: Finish, _: &mut BytesMut) {
        if let Some(choice) = self.choices.get_mut(choice as usize) {
            choice.finish = Some(reason);
        }
    }

    fn end(&mut self, total: Usage, out: &mut BytesMut) {
        self.reply.result(out, |out| self.result(total, out));
    }

    fn failed(&mut self, failure: &Failure, out: &mut BytesMut) {
        self.reply.failure(failure, out);
    }
}
