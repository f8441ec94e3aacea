//! One generation as asked for: parsed, bounded, and free of any dialect.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Caller;

/// `x-request-id`: the caller's own when it is printable ASCII of at most 128 bytes, else ours.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// The longest id taken from a caller, in bytes.
    pub const MAX_LEN: usize = 128;

    /// Takes a caller's id if it is short printable ASCII; `None` otherwise.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fit = !text.is_empty()
            && text.len() <= Self::MAX_LEN
            && text.bytes().all(|b| b.is_ascii_graphic());
        fit.then(|| Self(text.into()))
    }

    /// A fresh random id (UUID v4).
    #[must_use]
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string().into())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How urgent a request is, relative to others that wait for the same model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Takes what others leave; may be set aside for them.
    Background,
    /// As most.
    #[default]
    Normal,
    /// Somebody is waiting for it.
    Interactive,
}

/// Who speaks in a chat message, as the template is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role(pub String);

/// One chat message, with its content flattened to text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, …
    pub role: Role,
    /// The text; parts of type `text` are joined.
    pub content: String,
    /// The speaker's name, for templates that use it.
    pub name: Option<String>,
}

/// What the model is to continue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// A conversation, rendered through the model's chat template.
    Chat(Vec<Message>),
    /// Raw text. Special tokens in it are plain text.
    Text(String),
    /// Token ids, checked against the vocabulary by the engine.
    Tokens(Vec<u32>),
}

/// One generation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Identifies the request in headers, logs and `cancel`.
    pub id: RequestId,
    /// Who asks.
    pub caller: Caller,
    /// The model's name as asked; empty means the default model.
    pub model: String,
    /// One input a prompt; never empty. Choices are numbered `prompt * n + i`.
    pub inputs: Vec<Input>,
    /// Choices per prompt, at least 1.
    pub n: u32,
    /// Most tokens to generate per choice; `None` means up to the context's end.
    pub max_tokens: Option<u32>,
    /// Strings that end the text and are not part of it; never empty strings.
    pub stop: Vec<String>,
    /// How to choose tokens; absent fields take the model's defaults.
    pub sampling: Sampling,
    /// Log-probabilities wanted: `Some(k)` reports each token's and the `k` likeliest.
    pub logprobs: Option<u8>,
    /// Adapters to compute with, beside the one that `model` may name.
    pub adapters: Vec<UseAdapter>,
    /// How urgent it is.
    pub class: Class,
    /// The caller's share of the engine relative to others'; at least 1.
    pub weight: u16,
    /// What every choice must match; `None` lets the model say what it likes.
    #[serde(skip)]
    pub constraint: Option<Constraint>,
    /// How long the caller is willing to wait; absent fields take the server's.
    pub deadlines: Deadlines,
}

impl Request {
    /// One choice of one input for nobody in particular, with the defaults of the default model.
    #[must_use]
    pub fn new(input: Input) -> Self {
        Self {
            id: RequestId::random(),
            caller: Caller::default(),
            model: String::new(),
            inputs: vec![input],
            n: 1,
            max_tokens: None,
            stop: Vec::new(),
            sampling: Sampling::default(),
            logprobs: None,
            adapters: Vec::new(),
            class: Class::default(),
            weight: 1,
            constraint: None,
            deadlines: Deadlines::default(),
        }
    }

    /// Choices in all.
    #[must_use]
    pub fn choices(&self) -> usize {
        self.inputs.len() * self.n as usize
    }
}

/// What a generation must match, and who asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Constraint {
    /// The field of the request that asks for it, for failures to name.
    pub field: &'static str,
    /// What is to be matched.
    pub grammar: Grammar,
}

/// A language that a generation must belong to, as text, unread.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// A JSON value that validates against a schema.
    JsonSchema {
        /// The schema, as JSON.
        schema: String,
        /// Refuse a schema with keywords that cannot be followed; otherwise they are ignored.
        strict: bool,
    },
    /// A regular expression that matches the whole text.
    Regex(String),
    /// A grammar in llguidance's variant of Lark.
    Lark(String),
    /// A grammar in GBNF, as llama.cpp reads it.
    Gbnf(String),
}

/// One adapter as a request asks for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UseAdapter {
    /// Which one.
    pub adapter: AdapterRef,
    /// How strongly it changes the model; absent takes the adapter's own.
    pub scale: Option<f32>,
}

/// How a request says which adapter it means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdapterRef {
    /// By its name.
    Name(String),
    /// By the number under which the model lists it.
    Id(u32),
}

/// How long each part of a request may take. `None` means no bound (or, in a request, the server's).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadlines {
    /// In the waiting queue.
    pub queue: Option<Duration>,
    /// From acceptance to the first token.
    pub first_token: Option<Duration>,
    /// Between two tokens.
    pub gap: Option<Duration>,
    /// From acceptance to the end.
    pub total: Option<Duration>,
}

impl Deadlines {
    /// The tighter of each pair.
    #[must_use]
    pub fn tightest(self, other: Self) -> Self {
        fn min(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
            match (a, b) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            }
        }
        Self {
            queue: min(self.queue, other.queue),
            first_token: min(self.first_token, other.first_token),
            gap: min(self.gap, other.gap),
            total: min(self.total, other.total),
        }
    }
}

/// How tokens are chosen. Every field is optional: a request's value, else the model's default from
/// the configuration, else the built-in default that is named beside the field.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Softens (`> 1`) or sharpens (`< 1`) the distribution; 0 is greedy. Range 0..=5; default 0.8.
    pub temperature: Option<f32>,
    /// Keep the `k` likeliest; 0 keeps all. Default 40.
    pub top_k: Option<u32>,
    /// Keep the smallest set whose probability reaches this. Range 0..=1; default 0.95.
    pub top_p: Option<f32>,
    /// Keep tokens at least this likely relative to the likeliest. Range 0..=1; default 0.05.
    pub min_p: Option<f32>,
    /// Locally typical sampling (arXiv 2202.00666); 1 is off. Default 1.
    pub typical_p: Option<f32>,
    /// Divides (multiplies, when negative) the logit of tokens seen lately; 1 is off. Default 1.
    pub repeat_penalty: Option<f32>,
    /// Subtracted once from the logit of every token seen lately. Range -2..=2; default 0.
    pub presence_penalty: Option<f32>,
    /// Subtracted per occurrence. Range -2..=2; default 0.
    pub frequency_penalty: Option<f32>,
    /// How many of the last tokens count as "lately"; 0 switches penalties off. Default 64.
    pub repeat_last_n: Option<u32>,
    /// DRY: exponential penalty on the token that would extend a verbatim repetition.
    pub dry: Option<Dry>,
    /// XTC: now and then exclude the likeliest tokens.
    pub xtc: Option<Xtc>,
    /// Mirostat 2 (arXiv 2007.14966); replaces `top_k`, `top_p`, `min_p`, typical and XTC when present.
    pub mirostat: Option<Mirostat>,
    /// Added to the logits of these token ids. Range -100..=100; -100 bans the token.
    #[serde(default)]
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the random numbers; absent means a fresh one per request.
    pub seed: Option<u64>,
    /// Mask every end-of-generation token. Default false.
    pub ignore_eos: Option<bool>,
}

impl Sampling {
    /// This request's choices over the model's defaults.
    #[must_use]
    pub fn over(&self, defaults: &Self) -> Self {
        Self {
            temperature: self.temperature.or(defaults.temperature),
            top_k: self.top_k.or(defaults.top_k),
            top_p: self.top_p.or(defaults.top_p),
            min_p: self.min_p.or(defaults.min_p),
            typical_p: self.typical_p.or(defaults.typical_p),
            repeat_penalty: self.repeat_penalty.or(defaults.repeat_penalty),
            presence_penalty: self.presence_penalty.or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.or(defaults.frequency_penalty),
            repeat_last_n: self.repeat_last_n.or(defaults.repeat_last_n),
            dry: self.dry.clone().or_else(|| defaults.dry.clone()),
            xtc: self.xtc.or(defaults.xtc),
            mirostat: self.mirostat.or(defaults.mirostat),
            logit_bias: if self.logit_bias.is_empty() {
                defaults.logit_bias.clone()
            } else {
                self.logit_bias.clone()
            },
            seed: self.seed.or(defaults.seed),
            ignore_eos: self.ignore_eos.or(defaults.ignore_eos),
        }
    }
}

/// DRY's settings, with llama.cpp's names and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dry {
    /// Strength; 0 is off.
    pub multiplier: f32,
    /// Growth per repeated token.
    pub base: f32,
    /// Repetitions up to this many tokens are free.
    pub allowed_length: u32,
    /// How many of the last tokens are searched.
    pub penalty_last_n: u32,
    /// Texts across which no repetition is counted.
    pub sequence_breakers: Vec<String>,
}

impl Default for Dry {
    fn default() -> Self {
        Self {
            multiplier: 0.0,
            base: 1.75,
            allowed_length: 2,
            penalty_last_n: 1024,
            sequence_breakers: ["\n", ":", "\"", "*"].map(String::from).to_vec(),
        }
    }
}

/// XTC's settings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Xtc {
    /// Chance that a step is affected, 0..=1.
    pub probability: f32,
    /// Tokens above this probability are excluded, but for the least likely of them. Above 0.5 has
    /// no effect.
    pub threshold: f32,
}

/// Mirostat 2's settings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirostat {
    /// Target surprise in bits. Commonly 5.
    pub tau: f32,
    /// Learning rate. Commonly 0.1.
    pub eta: f32,
}
