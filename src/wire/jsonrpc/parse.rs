//! From a body to calls: envelopes, ids, batches (JSON-RPC 2.0, sections 4 to 6).

use std::sync::Arc;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::super::openai::{self, Wanted};
use super::super::{Call, Head, read, tokenize};
use super::answer::Rpc;
use super::{
    Detokenize, Embeddings, Fault, Framing, Incoming, Item, Method, Reply, Rerank, Resume, Target,
    Tokenize, code,
};
use crate::generation::{Failure, Kind, RequestId};

/// Longest id, in bytes of JSON: every token of a stream carries it.
const MAX_ID_BYTES: usize = 256;

/// Reads the body of `POST /rpc`. Never fails as a whole: what is wrong becomes an item with a fault.
#[must_use]
pub fn parse(body: &[u8], head: &Head<'_>) -> Incoming {
    let text = match read::text(body, head.limits.json_depth).and_then(|text| {
        // One pass over the syntax of the whole, so that later errors are about one call only.
        read::typed::<serde::de::IgnoredAny>(text).map(|_| text)
    }) {
        Ok(text) => text,
        Err(failure) => {
            return refused(Fault {
                code: code::PARSE,
                failure,
            });
        }
    };
    if !text.trim_start().starts_with('[') {
        let call = Parsed::read(text, head);
        let framing = if call.streams() {
            Framing::Lines
        } else {
            Framing::Single
        };
        let items = call.item(framing, head).into_iter().collect();
        return Incoming { items, framing };
    }
    let calls: Vec<&RawValue> = match serde_json::from_str(text) {
        Ok(calls) => calls,
        Err(error) => return refused(invalid_request(error.to_string())),
    };
    if calls.is_empty() {
        return refused(invalid_request("A batch must hold at least one call."));
    }
    if calls.len() > head.limits.batch {
        let most = head.limits.batch;
        return refused(invalid_request(format!("A batch may hold {most} calls.")));
    }
    let calls: Vec<Parsed> = calls
        .into_iter()
        .map(|call| Parsed::read(call.get(), head))
        .collect();
    let framing = if calls.iter().any(Parsed::streams) {
        Framing::Lines
    } else {
        Framing::Array
    };
    Incoming {
        items: calls
            .into_iter()
            .filter_map(|call| call.item(framing, head))
            .collect(),
        framing,
    }
}

fn refused(fault: Fault) -> Incoming {
    Incoming {
        items: vec![Item {
            reply: Reply::unknown(),
            work: Err(fault),
            resumable: false,
        }],
        framing: Framing::Single,
    }
}

fn invalid_request(message: impl Into<std::borrow::Cow<'static, str>>) -> Fault {
    Fault {
        code: code::INVALID_REQUEST,
        failure: Failure::new(Kind::Invalid, message),
    }
}

/// A request object, all of its members unread.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(default, borrow, deserialize_with = "present")]
    jsonrpc: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    method: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    params: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    id: Option<&'a RawValue>,
}

/// Tells `null` from an absent member.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// One call, read but for what depends on its neighbours.
struct Parsed {
    id: Option<Arc<str>>,
    work: Result<Work, Fault>,
}

enum Work {
    Chat(Wanted, Keep),
    Complete(Wanted, Keep),
    Models,
    Tokenize(Tokenize),
    Detokenize(Detokenize),
    Embeddings(Embeddings),
    Rerank(Rerank),
    Cancel(Target),
    Resume(Resume),
    Bind,
    Ping,
}

/// Whether a call asks for a stream that outlives its connection.
type Keep = bool;

impl Parsed {
    fn read(json: &str, head: &Head<'_>) -> Self {
        let null = || Some("null".into());
        let envelope = match serde_json::from_str::<Envelope<'_>>(json) {
            Ok(envelope) if json.trim_start().starts_with('{') => envelope,
            Ok(_) | Err(_) => {
                return Self {
                    id: null(),
                    work: Err(invalid_request(
                        "A call must be an object with the members jsonrpc, method and, where given, params and id, each once.",
                    )),
                };
            }
        };
        let id = match envelope.id.map(RawValue::get) {
            None => Ok(None),
            Some(id) if id.len() > MAX_ID_BYTES => Err("The id is too long."),
            Some(id) if id.starts_with(['{', '[', 't', 'f']) => {
                Err("The id must be a string, a number or null.")
            }
            Some(id) => Ok(Some(Arc::from(id))),
        };
        match (id, method_and_params(&envelope)) {
            (Err(message), _) => Self {
                id: null(),
                work: Err(invalid_request(message)),
            },
            // Not even a notification: what is no request at all is answered.
            (Ok(id), Err(message)) => Self {
                id: id.or_else(null),
                work: Err(invalid_request(message)),
            },
            (Ok(id), Ok((method, params))) => Self {
                id,
                work: work(&method, params, head),
            },
        }
    }

    fn streams(&self) -> bool {
        match &self.work {
            Ok(Work::Chat(wanted, _) | Work::Complete(wanted, _)) => {
                self.id.is_some() && wanted.stream == Some(true)
            }
            Ok(Work::Resume(_)) => self.id.is_some(),
            _ => false,
        }
    }

    /// The item to carry out; `None` for a notification that would have no effect.
    fn item(self, framing: Framing, head: &Head<'_>) -> Option<Item> {
        if self.id.is_none() && !matches!(self.work, Ok(Work::Cancel(_))) {
            return None;
        }
        let reply = Reply {
            id: self.id,
            line: framing == Framing::Lines,
        };
        let resumable = match &self.work {
            Ok(Work::Chat(wanted, keep) | Work::Complete(wanted, keep)) => {
                *keep && wanted.stream == Some(true)
            }
            _ => false,
        };
        let call = |wanted: Wanted| {
            let answer = Rpc::new(&wanted, reply.clone(), head);
            Call {
                request: wanted.request,
                answer: Box::new(answer),
            }
        };
        let work = self.work.map(|work| match work {
            Work::Chat(wanted, _) => Method::Chat(call(wanted)),
            Work::Complete(wanted, _) => Method::Complete(call(wanted)),
            Work::Models => Method::Models,
            Work::Tokenize(tokenize) => Method::Tokenize(tokenize),
            Work::Detokenize(detokenize) => Method::Detokenize(detokenize),
            Work::Embeddings(embeddings) => Method::Embeddings(embeddings),
            Work::Rerank(rerank) => Method::Rerank(rerank),
            Work::Cancel(target) => Method::Cancel(target),
            Work::Resume(resume) => Method::Resume(resume),
            Work::Bind => Method::Bind,
            Work::Ping => Method::Ping,
        });
        Some(Item {
            reply,
            work,
            resumable,
        })
    }
}

/// The method's name and the text of its params, if the rest of the envelope is right.
fn method_and_params<'a>(envelope: &Envelope<'a>) -> Result<(String, &'a str), &'static str> {
    let version = envelope.jsonrpc.and_then(text_of);
    if version.as_deref() != Some("2.0") {
        return Err("jsonrpc must be \"2.0\".");
    }
    let method = envelope
        .method
        .and_then(text_of)
        .ok_or("method must be a string.")?;
    let params = envelope.params.map_or("{}", RawValue::get);
    if params.starts_with(['{', '[']) {
        Ok((method, params))
    } else {
        Err("params must be an object.")
    }
}

fn text_of(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

#[derive(Deserialize)]
struct CancelParams {
    id: Option<String>,
    stream: Option<String>,
}

#[derive(Deserialize)]
struct ResumeParams {
    stream: Option<String>,
    after: Option<u64>,
}

#[derive(Deserialize)]
struct KeepParams {
    resume: Option<bool>,
}

/// What only this dialect reads of the params of `chat` and `complete`.
fn keep(params: &str) -> Result<Keep, Failure> {
    Ok(read::object::<KeepParams>(params)?.resume == Some(true))
}

fn work(method: &str, params: &str, head: &Head<'_>) -> Result<Work, Fault> {
    if !super::METHODS.contains(&method) {
        return Err(Fault {
            code: code::METHOD_NOT_FOUND,
            failure: Failure::new(Kind::NotFound, "There is no such method.")
                .with_code("method_not_found"),
        });
    }
    let params = match params.strip_prefix('[') {
        None => params,
        // No parameters by position are the same as none by name.
        Some(rest) if rest.trim_start() == "]" => "{}",
        Some(_) => {
            return Err(Failure::invalid(
                "params",
                "Parameters are taken by name only: params must be an object.",
            )
            .into());
        }
    };
    Ok(match method {
        "chat" => Work::Chat(openai::chat(params, head)?, keep(params)?),
        "complete" => Work::Complete(openai::completion(params, head)?, keep(params)?),
        "tokenize" => Work::Tokenize(tokenize::tokenize(params)?),
        "detokenize" => Work::Detokenize(tokenize::detokenize(params)?),
        "embeddings" => Work::Embeddings(openai::embeddings(params, head)?),
        "rerank" => Work::Rerank(openai::rerank(params, head)?),
        "cancel" => {
            let given = read::object::<CancelParams>(params)?;
            if let (Some(stream), None) = (given.stream, &given.id) {
                return Ok(Work::Cancel(Target::Stream(stream, head.caller.clone())));
            }
            let id = given.id.as_deref().and_then(RequestId::parse);
            let id = id.ok_or_else(|| {
                Failure::invalid(
                    "id",
                    "id must be the x-request-id of a running request; stream, in its place, the id of a stream.",
                )
            })?;
            Work::Cancel(Target::Request(id, head.caller.clone()))
        }
        "resume" => {
            let given = read::object::<ResumeParams>(params)?;
            let stream = given
                .stream
                .ok_or_else(|| Failure::invalid("stream", "stream must be the id of a stream."))?;
            Work::Resume(Resume {
                stream,
                after: given.after.unwrap_or(0),
                caller: head.caller.clone(),
            })
        }
        "models" => Work::Models,
        "bind" => Work::Bind,
        _ => Work::Ping,
    })
}
