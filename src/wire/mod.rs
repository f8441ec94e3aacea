//! Dialects: bytes to a request, events to bytes. Pure: no sockets, no tasks, no clocks.
//!
//! A dialect is one folder or file here. Its parser turns a body and a [`Head`] into a [`Call`]: the
//! [`Request`] for the gateway, and the [`Answer`] that knows how the reply is to be dressed. Once
//! the gateway has found the model, the answer gives an [`Encoder`], which appends bytes for every
//! burst. What is constant in a stream is formatted once, when the encoder is made; per token only
//! the escaped text is written.
//!
//! * [`openai`]: chat completions and completions over SSE, NDJSON, bare text and whole documents.
//! * [`jsonrpc`]: JSON-RPC 2.0 with streamed tokens.
//! * [`sluice`]: the frames of our own protocol on QUIC, which are a format of `openai` as well.
//! * [`tokenize`], [`models`] and [`bind`]: the plain endpoints beside them.
//! * [`events`]: where one event of a streamed answer ends, for readers who come back.
//! * [`failure`]: the only table from a failure's kind to status codes.

mod accept;
pub mod bind;
pub mod events;
pub mod failure;
mod json;
pub mod jsonrpc;
mod logprobs;
mod mark;
pub mod models;
pub mod openai;
mod read;
pub mod sluice;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod tokenize;

use bytes::BytesMut;

use crate::generation::{Burst, Caller, Deadlines, Failure, Queued, Request, RequestId};

/// Whole JSON documents, errors among them.
pub const JSON: &str = "application/json";
/// Server-sent events (WHATWG HTML, section 9.2).
pub const EVENT_STREAM: &str = "text/event-stream";
/// One JSON object a line.
pub const NDJSON: &str = "application/x-ndjson";
/// Bare text.
pub const TEXT: &str = "text/plain; charset=utf-8";

/// What is known of a call before its body is read.
#[derive(Clone, Debug)]
pub struct Head<'a> {
    /// Identifies the request; becomes part of the ids in the answer.
    pub id: RequestId,
    /// Who asks.
    pub caller: Caller,
    /// The value of the `Accept` header; empty if there was none. Several headers are joined by commas.
    pub accept: &'a str,
    /// How long the caller is willing to wait (`x-request-timeout`).
    pub deadlines: Deadlines,
    /// When the call came, in seconds since 1970; `created` in answers.
    pub created: u64,
    /// Bounds on what a body may ask for.
    pub limits: Limits,
}

/// Bounds on what a body may ask for, beside its size, which the transport caps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Nesting of arrays and objects. Values above 127 have no effect: the parser stops there.
    pub json_depth: usize,
    /// Choices of one request: prompts times `n`.
    pub choices: u32,
    /// Calls in one JSON-RPC batch.
    pub batch: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // A chat body needs five; tool schemas, which clients send even when none is used, a few more.
            json_depth: 32,
            // Every choice is a sequence in the engine.
            choices: 16,
            batch: 32,
        }
    }
}

/// A parsed request, and how to answer it.
pub struct Call {
    /// What to generate.
    pub request: Request,
    /// Dresses the answer.
    pub answer: Box<dyn Answer>,
}

/// How one call is answered: as a stream or whole, in which format, and how a failure looks.
pub trait Answer: Send + Sync {
    /// Whether bytes go out as they come. Otherwise the encoder gives one document with the burst that
    /// ends the stream, and the transport should hold its status until then: when that burst holds
    /// a failure, use [`Answer::refuse`] instead of what was encoded.
    fn streamed(&self) -> bool;

    /// The encoder of the answer. `model` is the name under which the request is served; `deterministic`
    /// is whether its seed alone decides the text, for dialects that have a place to say so.
    fn encoder(&self, model: &str, deterministic: bool) -> Box<dyn Encoder>;

    /// Appends the complete answer of a call that failed before anything of it was sent.
    fn refuse(&self, failure: &Failure, out: &mut BytesMut) -> Refusal;
}

/// What goes into the head of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The `content-type` of what was appended.
    pub content_type: &'static str,
}

/// Writes one answer in one format.
///
/// A transport calls [`Encoder::encode`] for every burst and sends what was appended. A format that
/// answers with one document appends nothing until the burst that ends the stream.
pub trait Encoder: Send {
    /// The `content-type` of the answer.
    fn content_type(&self) -> &'static str;

    /// Appends the bytes for all events of `burst`.
    fn encode(&mut self, burst: &Burst, out: &mut BytesMut);

    /// Appends what keeps a silent connection open; nothing if the format has no such thing.
    fn keep_alive(&mut self, out: &mut BytesMut);

    /// Appends where in line the request stands, in a way that nobody takes for text; nothing if the
    /// format has no such thing. Only before the first burst.
    fn queued(&mut self, queued: Queued, out: &mut BytesMut);
}
