//! The request body of both endpoints, field by field, and its way into a [`Request`].
//!
//! One struct serves both: fields of the other endpoint are ignored, as all unknown ones are.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::read::{Bounded, OneOrMany, Unserved};
use super::super::{Head, read};
use super::constraint::{self, Choices, ResponseFormat, Structured};
use super::fields::{
    self, Biases, Breakers, Logprobs, MAX_PROMPTS, MAX_STOPS, MAX_TOP_LOGPROBS, Prompts, Seed,
    not_served,
};
use crate::generation::ranges::MAX_ADAPTERS;
use crate::generation::{Failure, Input, Message, Request, Role};

/// Most messages of one conversation.
const MAX_MESSAGES: usize = 4096;
/// Most parts of one message.
const MAX_PARTS: usize = 256;

/// What a body asks for, and what its answer needs to know.
pub(in crate::wire) struct Wanted {
    /// What to generate.
    pub(in crate::wire) request: Request,
    /// The body's `stream`, if it was there.
    pub(in crate::wire) stream: Option<bool>,
    /// `stream_options.include_usage`.
    pub(in crate::wire) include_usage: bool,
    /// With `echo`, the prompts.
    pub(in crate::wire) echo: Box<[String]>,
}

/// Every field that is read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Body {
    pub(super) model: Option<String>,
    pub(super) messages: Option<Bounded<ChatMessage, MAX_MESSAGES>>,
    pub(super) prompt: Option<Prompts<MAX_PROMPTS>>,
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    pub(super) n: Option<i64>,
    pub(super) best_of: Option<i64>,
    pub(super) echo: Option<bool>,
    pub(super) max_tokens: Option<i64>,
    pub(super) max_completion_tokens: Option<i64>,
    pub(super) n_predict: Option<i64>,
    pub(super) stop: Option<OneOrMany<String, MAX_STOPS>>,
    pub(super) logprobs: Option<Logprobs>,
    pub(super) top_logprobs: Option<i64>,
    // Sampling.
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
    pub(super) top_k: Option<i64>,
    pub(super) min_p: Option<f64>,
    pub(super) typical_p: Option<f64>,
    pub(super) repeat_penalty: Option<f64>,
    pub(super) repeat_last_n: Option<i64>,
    pub(super) presence_penalty: Option<f64>,
    pub(super) frequency_penalty: Option<f64>,
    pub(super) dry_multiplier: Option<f64>,
    pub(super) dry_base: Option<f64>,
    pub(super) dry_allowed_length: Option<i64>,
    pub(super) dry_penalty_last_n: Option<i64>,
    pub(super) dry_sequence_breakers: Option<Breakers>,
    pub(super) xtc_probability: Option<f64>,
    pub(super) xtc_threshold: Option<f64>,
    pub(super) mirostat: Option<i64>,
    pub(super) mirostat_tau: Option<f64>,
    pub(super) mirostat_eta: Option<f64>,
    pub(super) logit_bias: Option<Biases>,
    pub(super) seed: Option<Seed>,
    pub(super) ignore_eos: Option<bool>,
    pub(super) lora: Option<Bounded<Lora, MAX_ADAPTERS>>,
    pub(super) service_tier: Option<String>,
    // What the answer must look like.
    pub(super) response_format: Option<ResponseFormat>,
    pub(super) grammar: Option<String>,
    pub(super) grammar_lazy: Option<bool>,
    pub(super) json_schema: Option<Box<RawValue>>,
    pub(super) guided_json: Option<Box<RawValue>>,
    pub(super) guided_regex: Option<String>,
    pub(super) guided_grammar: Option<String>,
    pub(super) guided_choice: Option<Choices>,
    pub(super) structured_outputs: Option<Structured>,
    // Refused when they ask for anything: silence would be an answer that breaks a promise.
    pub(super) tools: Option<Unserved>,
    pub(super) tool_choice: Option<Unserved>,
    pub(super) functions: Option<Unserved>,
    pub(super) audio: Option<Unserved>,
    pub(super) web_search_options: Option<Unserved>,
    pub(super) suffix: Option<Unserved>,
    pub(super) modalities: Option<Bounded<String, 8>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct StreamOptions {
    include_usage: Option<bool>,
    /// Random padding against traffic analysis: we never send any, whatever is asked.
    #[serde(rename = "include_obfuscation")]
    _obfuscation: Option<bool>,
}

/// One adapter: by the number of the models list's order, as llama-server has it, or by its name.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Lora {
    pub(super) id: Option<i64>,
    pub(super) name: Option<String>,
    pub(super) scale: Option<f64>,
}

/// One message as sent.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::wire) struct ChatMessage {
    role: Option<String>,
    content: Option<OneOrMany<Part, MAX_PARTS>>,
    name: Option<String>,
    tool_calls: Option<Unserved>,
    function_call: Option<Unserved>,
}

/// One part of a message's content.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Part {
    #[serde(rename = "type")]
    kind: Option<String>,
    text: Option<String>,
}

/// Reads a chat body.
pub(in crate::wire) fn chat(json: &str, head: &Head<'_>) -> Result<Wanted, Failure> {
    let mut body: Body = read::object(json)?;
    let inputs = vec![conversation(body.messages.take())?];
    let logprobs = match (body.logprobs, body.top_logprobs) {
        (Some(Logprobs::Count(_)), _) => {
            return Err(Failure::invalid("logprobs", "logprobs must be a boolean."));
        }
        (Some(Logprobs::Flag(true)), top) => Some(top_logprobs("top_logprobs", top.unwrap_or(0))?),
        (_, None | Some(0)) => None,
        (_, Some(_)) => {
            return Err(Failure::invalid(
                "top_logprobs",
                "top_logprobs needs logprobs to be true.",
            ));
        }
    };
    finish(body, head, inputs, logprobs, Box::default())
}

/// Reads a completion body.
pub(in crate::wire) fn completion(json: &str, head: &Head<'_>) -> Result<Wanted, Failure> {
    let mut body: Body = read::object(json)?;
    let inputs = body.prompt.take().map_or(Vec::new(), |prompts| prompts.0);
    let empty = |input: &Input| matches!(input, Input::Tokens(tokens) if tokens.is_empty());
    if inputs.is_empty() || inputs.iter().any(empty) {
        return Err(Failure::invalid(
            "prompt",
            "prompt must be a string, token ids, or a list of either, and not an empty list.",
        ));
    }
    let logprobs = match body.logprobs {
        None | Some(Logprobs::Flag(false)) => None,
        Some(Logprobs::Count(count)) => Some(top_logprobs("logprobs", count)?),
        Some(Logprobs::Flag(true)) => {
            return Err(Failure::invalid("logprobs", "logprobs must be an integer."));
        }
    };
    let echo = if body.echo == Some(true) {
        echo(&inputs, logprobs.is_some())?
    } else {
        Box::default()
    };
    finish(body, head, inputs, logprobs, echo)
}

/// Reads what a chat body would send to the model, for counting.
pub(in crate::wire) fn count(json: &str) -> Result<(String, Input), Failure> {
    let mut body: Body = read::object(json)?;
    fields::unserved(&body)?;
    let input = conversation(body.messages.take())?;
    Ok((body.model.unwrap_or_default(), input))
}

fn finish(
    mut body: Body,
    head: &Head<'_>,
    inputs: Vec<Input>,
    logprobs: Option<u8>,
    echo: Box<[String]>,
) -> Result<Wanted, Failure> {
    fields::unserved(&body)?;
    let most = head.limits.choices.max(1);
    let n = fields::whole("n", body.n, 1..=most)?.unwrap_or(1);
    if inputs.len().saturating_mul(n as usize) > most as usize {
        return Err(Failure::invalid(
            "prompt",
            format!("A request may have {most} choices in all: prompts times n."),
        ));
    }
    if body.best_of.is_some_and(|best| best != i64::from(n)) {
        return Err(Failure::invalid(
            "best_of",
            "best_of other than n is not supported by this server.",
        ));
    }
    let max_tokens = fields::max_tokens(&body)?;
    let sampling = fields::sampling(&mut body)?;
    let constraint = constraint::constraint(&mut body)?;
    let options = body.stream_options.unwrap_or_default();
    Ok(Wanted {
        request: Request {
            id: head.id.clone(),
            caller: head.caller.clone(),
            model: body.model.unwrap_or_default(),
            inputs,
            n,
            max_tokens,
            stop: fields::stops(body.stop)?,
            sampling,
            logprobs,
            adapters: fields::adapters(body.lora)?,
            class: fields::class(body.service_tier.as_deref())?,
            weight: 1,
            constraint,
            deadlines: head.deadlines,
        },
        stream: body.stream,
        include_usage: options.include_usage == Some(true),
        echo,
    })
}

fn top_logprobs(name: &'static str, count: i64) -> Result<u8, Failure> {
    if !(0..=MAX_TOP_LOGPROBS).contains(&count) {
        let message = format!("{name} must be between 0 and {MAX_TOP_LOGPROBS}.");
        return Err(Failure::invalid(name, message));
    }
    Ok(u8::try_from(count).unwrap_or(u8::MAX))
}

fn echo(inputs: &[Input], logprobs: bool) -> Result<Box<[String]>, Failure> {
    let refused = |what| {
        Failure::invalid(
            "echo",
            format!("echo with {what} is not supported by this server."),
        )
    };
    if logprobs {
        return Err(refused("logprobs"));
    }
    let text = |input: &Input| match input {
        Input::Text(text) => Ok(text.clone()),
        Input::Chat(_) | Input::Tokens(_) => Err(refused("token prompts")),
    };
    inputs.iter().map(text).collect()
}

/// The messages of a chat body as an input.
pub(in crate::wire) fn conversation(
    messages: Option<Bounded<ChatMessage, MAX_MESSAGES>>,
) -> Result<Input, Failure> {
    let messages = messages.map_or(Vec::new(), |list| list.0);
    if messages.is_empty() {
        return Err(Failure::invalid(
            "messages",
            "messages must hold at least one message.",
        ));
    }
    let numbered = messages.into_iter().enumerate();
    let messages: Result<_, _> = numbered.map(|(at, one)| message(at, one)).collect();
    Ok(Input::Chat(messages?))
}

fn message(at: usize, message: ChatMessage) -> Result<Message, Failure> {
    let asked = |field: &Option<Unserved>| !matches!(field, None | Some(Unserved::Empty));
    if asked(&message.tool_calls) {
        return Err(not_served(format!("messages[{at}].tool_calls")));
    }
    if asked(&message.function_call) {
        return Err(not_served(format!("messages[{at}].function_call")));
    }
    let role = match message.role.as_deref() {
        // The newer name of the same thing; templates know the older.
        Some("developer") => "system".to_owned(),
        Some("system" | "user" | "assistant" | "tool" | "function") => {
            message.role.unwrap_or_default()
        }
        _ => {
            return Err(Failure::invalid(
                format!("messages[{at}].role"),
                "role must be system, developer, user, assistant, tool or function.",
            ));
        }
    };
    let content = match message.content {
        Some(OneOrMany::One(text)) => text,
        Some(OneOrMany::Many(parts)) => join(at, parts)?,
        None if role == "assistant" => String::new(),
        None => {
            return Err(Failure::invalid(
                format!("messages[{at}].content"),
                "content must be a string or an array of parts; only an assistant's may be null.",
            ));
        }
    };
    Ok(Message {
        role: Role(role),
        content,
        name: message.name,
    })
}

/// The texts of all parts, in order.
fn join(at: usize, parts: Vec<Part>) -> Result<String, Failure> {
    let mut content = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        let path = format!("messages[{at}].content[{index}]");
        match (part.kind.as_deref(), part.text) {
            (Some("text"), Some(text)) => content.push_str(&text),
            (Some("text"), None) => {
                return Err(Failure::invalid(
                    format!("{path}.text"),
                    "A part of type text must have a text.",
                ));
            }
            (None, _) => {
                return Err(Failure::invalid(
                    format!("{path}.type"),
                    "Every part must have a type.",
                ));
            }
            (Some(_), _) => {
                return Err(Failure::invalid(
                    format!("{path}.type"),
                    "Only parts of type text are supported by this server.",
                )
                .with_code("unsupported_parameter"));
            }
        }
    }
    Ok(content)
}
