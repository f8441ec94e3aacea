//! JSON-RPC 2.0 at `POST /rpc`.
//!
//! The methods are those of [`METHODS`]; the fields of `chat` and `complete` are those of OpenAI's
//! bodies, by name. With `"stream": true` the reply is NDJSON: `token` notifications that carry the
//! call's id, then the response object. A batch in which any call streams is answered as lines, in the
//! order in which things happen; any other batch as an array.
//!
//! A streamed call with `"resume": true` first gets a `stream` notification with the stream's id, where
//! the server keeps streams. After a lost connection, `resume` gives the lines that did not arrive, with the
//! ids that they had, and then its own response.
//!
//! Every reply that can be written is sent with HTTP status 200: clients of this protocol look for
//! errors inside. Notifications get no answer, so those that would only produce one are dropped while
//! reading; `cancel` is carried out.

mod answer;
mod parse;

use std::sync::Arc;

use bytes::{BufMut, BytesMut};

use super::openai::{Embeddings, Rerank};
use super::tokenize::{Detokenize, Tokenize};
use super::{Call, JSON, NDJSON, failure};
use crate::generation::{Caller, Failure, Queued, RequestId};

pub use parse::parse;

/// Every method, in the order of the `OpenRPC` document.
pub const METHODS: [&str; 11] = [
    "chat",
    "complete",
    "models",
    "tokenize",
    "detokenize",
    "embeddings",
    "rerank",
    "cancel",
    "resume",
    "bind",
    "ping",
];

/// The `OpenRPC` 1.3 document, for `GET /rpc/openrpc.json`.
pub const OPENRPC: &str = include_str!("openrpc.json");

/// Codes of JSON-RPC 2.0, section 5.1, that are about the protocol and not about a failure's kind.
mod code {
    pub(super) const PARSE: i32 = -32700;
    pub(super) const INVALID_REQUEST: i32 = -32600;
    pub(super) const METHOD_NOT_FOUND: i32 = -32601;
}

/// What came in one body.
pub struct Incoming {
    /// The calls to carry out, at once or one by one. None if the body held only notifications
    /// without effect.
    pub items: Vec<Item>,
    /// How the replies are put together.
    pub framing: Framing,
}

/// How replies are put together into one HTTP body. If no reply is written at all, because all items were
/// notifications, the answer is status 204 without a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// The one reply.
    Single,
    /// A JSON array: `[`, replies with commas between them, `]`.
    Array,
    /// One object a line, as things happen; each reply brings its newline.
    Lines,
}

impl Framing {
    /// The `content-type` of the body.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Single | Self::Array => JSON,
            Self::Lines => NDJSON,
        }
    }

    /// What stands before the first reply, between two, and after the last.
    #[must_use]
    pub fn around(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Single | Self::Lines => ("", "", ""),
            Self::Array => ("[", ",", "]"),
        }
    }
}

/// One call of a body.
pub struct Item {
    /// Writes the reply.
    pub reply: Reply,
    /// What to do, or why not.
    pub work: Result<Method, Fault>,
    /// Whether the stream that answers it should outlive its connection: see [`Reply::stream`].
    pub resumable: bool,
}

/// What a call asks for.
pub enum Method {
    /// Continue a conversation. The call's answer writes the reply.
    Chat(Call),
    /// Continue a text. The call's answer writes the reply.
    Complete(Call),
    /// List the models: reply with [`super::models::write_list`].
    Models,
    /// Reply with [`super::tokenize::write_tokens`].
    Tokenize(Tokenize),
    /// Reply with [`super::tokenize::write_content`].
    Detokenize(Detokenize),
    /// Reply with [`super::openai::write_embeddings`].
    Embeddings(Embeddings),
    /// Reply with [`super::openai::write_ranking`].
    Rerank(Rerank),
    /// Cancel what runs: reply with [`write_cancelled`].
    Cancel(Target),
    /// Go on with a stream: its lines, then reply with [`write_resumed`].
    Resume(Resume),
    /// Bind a token to the connection: reply with [`super::bind::write`].
    Bind,
    /// Reply with [`write_pong`].
    Ping,
}

/// What to cancel.
pub enum Target {
    /// This caller's requests with this `x-request-id`.
    Request(RequestId, Caller),
    /// The stream with this id, if this caller may.
    Stream(String, Caller),
}

/// Which lines to repeat, and from where to go on.
pub struct Resume {
    /// The stream's id.
    pub stream: String,
    /// How many whole lines of it have arrived.
    pub after: u64,
    /// Who asks.
    pub caller: Caller,
}

/// Why a call cannot be carried out, with the code that the protocol has for it.
#[derive(Clone, Debug)]
pub struct Fault {
    code: i32,
    failure: Failure,
}

impl Fault {
    /// The failure, for the log.
    #[must_use]
    pub fn failure(&self) -> &Failure {
        &self.failure
    }
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        Self {
            code: failure::codes(failure.kind).rpc,
            failure,
        }
    }
}

/// Writes the reply to one call.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The call's id as it was written; `None` for a notification.
    id: Option<Arc<str>>,
    /// Whether a newline follows.
    line: bool,
}

impl Reply {
    /// A reply to a call whose id is not known: for what goes wrong before a body is read.
    #[must_use]
    pub fn unknown() -> Self {
        Self {
            id: Some("null".into()),
            line: false,
        }
    }

    /// Whether the call wants no reply; then nothing is ever written.
    #[must_use]
    pub fn is_notification(&self) -> bool {
        self.id.is_none()
    }

    /// Appends a reply whose `result` is what `write` appends.
    pub fn result(&self, out: &mut BytesMut, write: impl FnOnce(&mut BytesMut)) {
        self.response(out, b",\"result\":", write);
    }

    /// Appends a reply with an error.
    pub fn failure(&self, failure: &Failure, out: &mut BytesMut) {
        self.error(failure::codes(failure.kind).rpc, failure, out);
    }

    /// Appends a reply with the fault of an item.
    pub fn fault(&self, fault: &Fault, out: &mut BytesMut) {
        self.error(fault.code, &fault.failure, out);
    }

    /// Appends the notification that goes before a stream that can be resumed, and is its first line.
    pub fn stream(&self, stream: &str, out: &mut BytesMut) {
        let Some(id) = &self.id else { return };
        out.extend_from_slice(b"{\"jsonrpc\":\"2.0\",\"method\":\"stream\",\"params\":{\"id\":");
        out.extend_from_slice(id.as_bytes());
        out.extend_from_slice(b",\"stream\":");
        super::json::string(out, stream);
        out.extend_from_slice(b"}}\n");
    }

    /// Appends the notification of a call's place in line.
    fn queued(&self, queued: Queued, out: &mut BytesMut) {
        let Some(id) = &self.id else { return };
        out.extend_from_slice(b"{\"jsonrpc\":\"2.0\",\"method\":\"queued\",\"params\":{\"id\":");
        out.extend_from_slice(id.as_bytes());
        out.extend_from_slice(b",\"position\":");
        super::json::integer(out, queued.position);
        if let Some(estimate) = queued.estimate {
            out.extend_from_slice(b",\"estimate_ms\":");
            let ms = u64::try_from(estimate.as_millis()).unwrap_or(u64::MAX);
            super::json::integer(out, ms);
        }
        out.extend_from_slice(b"}}\n");
    }

    fn error(&self, code: i32, failure: &Failure, out: &mut BytesMut) {
        self.response(out, b",\"error\":", |out| {
            failure::rpc_error(failure, code, out);
        });
    }

    fn response(&self, out: &mut BytesMut, key: &[u8], write: impl FnOnce(&mut BytesMut)) {
        let Some(id) = &self.id else { return };
        out.extend_from_slice(b"{\"jsonrpc\":\"2.0\",\"id\":");
        out.extend_from_slice(id.as_bytes());
        out.extend_from_slice(key);
        write(out);
        out.put_u8(b'}');
        if self.line {
            out.put_u8(b'\n');
        }
    }
}

/// Appends the result of `cancel`: `{"cancelled":N}`, the number of requests that were running.
pub fn write_cancelled(count: usize, out: &mut BytesMut) {
    out.extend_from_slice(b"{\"cancelled\":");
    super::json::integer(out, count);
    out.put_u8(b'}');
}

/// Appends the result of `resume`: `{"stream":…}`, after the last of the stream's lines.
pub fn write_resumed(stream: &str, out: &mut BytesMut) {
    out.extend_from_slice(b"{\"stream\":");
    super::json::string(out, stream);
    out.put_u8(b'}');
}

/// Appends the result of `ping`: `"pong"`.
pub fn write_pong(out: &mut BytesMut) {
    out.extend_from_slice(b"\"pong\"");
}

#[cfg(test)]
mod tests;
