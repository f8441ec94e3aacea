//! OpenAI's chat completions and completions, streamed and whole.
//!
//! Shapes follow OpenAI's `openapi.yaml`. Ours alone are three more formats on the same paths, chosen
//! by the `Accept` header: `application/x-ndjson` (the objects of the SSE frames, one a line),
//! `text/plain` (the text and nothing else; one choice only) and `application/vnd.sluice.frames`.
//!
//! `vectors.rs` has the two endpoints beside them that are answered with one document: embeddings, and
//! the ranking of documents that OpenAI does not have.
//!
//! What differs from OpenAI: no `obfuscation` is ever sent (the flag is accepted), `best_of` must equal
//! `n`, and what needs tools or media is refused with the name of the field.

mod body;
mod chunks;
mod constraint;
mod document;
mod fields;
mod text;
mod vectors;

use bytes::BytesMut;

use super::accept::{self, Format};
use super::mark::Unmarked;
use super::{
    Answer, Call, EVENT_STREAM, Encoder, Head, NDJSON, Refusal, failure, json, read, sluice,
};
use crate::generation::{Failure, RequestId, Usage};

pub(super) use body::{Wanted, chat, completion, count};
pub use fields::{MAX_STOP_BYTES, MAX_STOPS, MAX_TOP_LOGPROBS};
pub use vectors::{
    Embeddings, Rerank, parse_embeddings, parse_rerank, write_embeddings, write_ranking,
};
pub(super) use vectors::{embeddings, rerank};

/// `system_fingerprint`: the same seed gives the same text only under the same one.
const FINGERPRINT: &str = concat!("sluicegate-", env!("CARGO_PKG_VERSION"));

/// The same where the seed alone decides: not who else is served, nor what is cached.
const DETERMINISTIC: &str = concat!("sluicegate-", env!("CARGO_PKG_VERSION"), "-deterministic");

/// What an answer says about who gives it.
struct Served<'m> {
    model: &'m str,
    deterministic: bool,
}

/// Reads the body of `POST /v1/chat/completions`.
///
/// # Errors
/// `Invalid`, naming the field at fault.
pub fn parse_chat(body: &[u8], head: &Head<'_>) -> Result<Call, Failure> {
    let json = read::text(body, head.limits.json_depth)?;
    call(chat(json, head)?, head, Dialect::Chat)
}

/// Reads the body of `POST /v1/completions`.
///
/// # Errors
/// `Invalid`, naming the field at fault.
pub fn parse_completion(body: &[u8], head: &Head<'_>) -> Result<Call, Failure> {
    let json = read::text(body, head.limits.json_depth)?;
    call(completion(json, head)?, head, Dialect::Completion)
}

fn call(wanted: Wanted, head: &Head<'_>, dialect: Dialect) -> Result<Call, Failure> {
    let (format, streamed) = accept::choose(head.accept, wanted.stream);
    let request = wanted.request;
    if format == Format::Text && request.choices() > 1 {
        return Err(Failure::invalid(
            if request.n > 1 { "n" } else { "prompt" },
            "Bare text (Accept: text/plain) holds one choice only.",
        ));
    }
    let answer = OpenAi {
        dialect,
        format,
        streamed,
        id: request.id.clone(),
        created: head.created,
        choices: request.choices(),
        n: request.n as usize,
        include_usage: wanted.include_usage,
        logprobs: request.logprobs.is_some(),
        echo: wanted.echo,
    };
    Ok(Call {
        request,
        answer: Box::new(answer),
    })
}

/// Appends the complete answer of a call to these endpoints that could not be read, in the format that
/// its `Accept` header asks for.
pub fn refuse(accept: &str, failure: &Failure, out: &mut BytesMut) -> Refusal {
    match accept::choose(accept, None).0 {
        Format::Frames => sluice::fault::refuse(failure, out),
        _ => failure::refuse(failure, out),
    }
}

/// Which of the two endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    Chat,
    Completion,
}

impl Dialect {
    fn id_prefix(self) -> &'static str {
        match self {
            Self::Chat => "chatcmpl-",
            Self::Completion => "cmpl-",
        }
    }
}

/// How one call to these endpoints is answered.
struct OpenAi {
    dialect: Dialect,
    format: Format,
    streamed: bool,
    id: RequestId,
    created: u64,
    choices: usize,
    n: usize,
    include_usage: bool,
    logprobs: bool,
    echo: Box<[String]>,
}

impl OpenAi {
    /// The fields that every object of the answer begins with, from `{` to before `"choices"`.
    fn envelope(&self, object: &str, served: &Served<'_>, out: &mut BytesMut) {
        out.extend_from_slice(b"{\"id\":\"");
        json::text(out, self.dialect.id_prefix());
        json::text(out, self.id.as_str());
        out.extend_from_slice(b"\",\"object\":");
        json::string(out, object);
        out.extend_from_slice(b",\"created\":");
        json::integer(out, self.created);
        out.extend_from_slice(b",\"model\":");
        json::string(out, served.model);
        out.extend_from_slice(b",\"system_fingerprint\":");
        json::string(
            out,
            if served.deterministic {
                DETERMINISTIC
            } else {
                FINGERPRINT
            },
        );
        out.extend_from_slice(b",");
    }

    fn unmarked<F: super::mark::Format + 'static>(&self, format: F) -> Box<dyn Encoder> {
        let echo = self.echo.clone();
        Box::new(Unmarked::new(format, self.choices, echo, self.n))
    }
}

impl Answer for OpenAi {
    fn streamed(&self) -> bool {
        self.streamed
    }

    fn encoder(&self, model: &str, deterministic: bool) -> Box<dyn Encoder> {
        let model = &Served {
            model,
            deterministic,
        };
        match (self.format, self.streamed) {
            (Format::Text, _) => self.unmarked(text::Bare),
            (Format::Frames, _) => self.unmarked(sluice::format::Frames::new(self.choices)),
            (Format::Events, _) => self.unmarked(chunks::Chunks::new(self, model, EVENT_STREAM)),
            (Format::Lines, true) => self.unmarked(chunks::Chunks::new(self, model, NDJSON)),
            (Format::Lines | Format::Document, _) => {
                self.unmarked(document::Document::new(self, model))
            }
        }
    }

    fn refuse(&self, failure: &Failure, out: &mut BytesMut) -> Refusal {
        match self.format {
            Format::Frames => sluice::fault::refuse(failure, out),
            _ => failure::refuse(failure, out),
        }
    }
}

/// Appends OpenAI's usage object.
pub(super) fn usage(usage: Usage, out: &mut BytesMut) {
    let total = u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens);
    out.extend_from_slice(b"{\"prompt_tokens\":");
    json::integer(out, usage.prompt_tokens);
    out.extend_from_slice(b",\"completion_tokens\":");
    json::integer(out, usage.completion_tokens);
    out.extend_from_slice(b",\"total_tokens\":");
    json::integer(out, total);
    out.extend_from_slice(b",\"prompt_tokens_details\":{\"cached_tokens\":");
    json::integer(out, usage.cached_tokens);
    out.extend_from_slice(b"},\"completion_tokens_details\":{\"reasoning_tokens\":0}}");
}

/// Appends which limit of the caller ended the answer, if one did: a field of ours, which SDKs pass by.
pub(super) fn ended_by(limit: Option<&'static str>, out: &mut BytesMut) {
    if let Some(limit) = limit {
        out.extend_from_slice(b",\"ended_by\":");
        json::string(out, limit);
    }
}

#[cfg(test)]
mod tests;
