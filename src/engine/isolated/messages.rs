//! What the two processes say to each other in JSON.
//!
//! The child believes its parent. The parent believes nothing: what it reads here is bounded, and text
//! that could reach a terminal is made plain.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::frame::Malformed;
use crate::engine::child::one_line;
use crate::engine::config::{Numa, Process, Settings};
use crate::engine::{AdapterCard, Card, Gauges, Layout, TokenizeOptions};
use crate::generation::{
    Constraint, EmbedRequest, Failure, Grammar, Input, Kind, Request, RerankRequest, chain,
};

/// Longest text that the parent takes from a failure, in bytes.
const TEXT: usize = 4096;

/// Most different codes of failures and names of layouts that are kept for ever; there are about twenty.
const CODES: usize = 64;

/// What the child is to be.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) name: String,
    pub(super) path: PathBuf,
    settings: Settings,
    /// Sizes of `settings` again: as JSON they are rounded.
    prefix_cache: u64,
    prefix_cache_disk: Option<u64>,
    park_memory: u64,
    numa: Numa,
    max_step: Duration,
    pub(super) ring: usize,
    /// When the parent's clock was zero (`super::clock_zero`).
    pub(super) clock_zero: i64,
}

impl Hello {
    pub(super) fn new(
        name: &str,
        path: PathBuf,
        settings: &Settings,
        process: &Process,
        ring: usize,
    ) -> Self {
        Self {
            name: name.to_owned(),
            path,
            prefix_cache: settings.prefix_cache.as_u64(),
            prefix_cache_disk: settings.prefix_cache_disk.map(|size| size.as_u64()),
            park_memory: settings.park_memory.as_u64(),
            settings: settings.clone(),
            numa: process.numa,
            max_step: process.max_step,
            ring,
            clock_zero: super::clock_zero(),
        }
    }

    /// The settings as the parent has them. The child is itself the process in which a file is tried.
    pub(super) fn settings(&self) -> Settings {
        let mut settings = self.settings.clone();
        settings.prefix_cache = ByteSize(self.prefix_cache);
        settings.prefix_cache_disk = self.prefix_cache_disk.map(ByteSize);
        settings.park_memory = ByteSize(self.park_memory);
        settings.trusted = true;
        settings
    }

    pub(super) fn process(&self) -> Process {
        Process {
            numa: self.numa,
            max_step: self.max_step,
            ..Process::default()
        }
    }
}

/// What is fixed about the model that the child has loaded.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Loaded {
    context: u32,
    vocabulary: u32,
    context_trained: Option<u32>,
    parameters: Option<u64>,
    bytes: Option<u64>,
    deterministic: bool,
    pub(super) adapters: Vec<AdapterCard>,
}

impl Loaded {
    pub(super) fn of(card: &Card, adapters: Vec<AdapterCard>) -> Self {
        Self {
            context: card.context,
            vocabulary: card.vocabulary,
            context_trained: card.context_trained,
            parameters: card.parameters,
            bytes: card.bytes,
            deterministic: card.deterministic,
            adapters,
        }
    }

    pub(super) fn card(&self, name: &str) -> Card {
        Card {
            name: name.into(),
            created: crate::generation::clock::unix_seconds(),
            context: self.context,
            vocabulary: self.vocabulary,
            context_trained: self.context_trained,
            parameters: self.parameters,
            bytes: self.bytes,
            parent: None,
            deterministic: self.deterministic,
        }
    }
}

/// What moves, on its way.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Moving {
    gauges: Gauges,
    layout: String,
    reason: String,
}

impl Moving {
    pub(super) fn of(gauges: &Gauges) -> Self {
        Self {
            gauges: *gauges,
            layout: gauges.layout.name.to_owned(),
            reason: gauges.layout.reason.to_owned(),
        }
    }

    pub(super) fn into_gauges(self) -> Gauges {
        Gauges {
            layout: Layout {
                name: keep(&self.layout).unwrap_or_default(),
                reason: keep(&self.reason).unwrap_or_default(),
            },
            load: self.gauges.load,
        }
    }
}

/// What is asked of the engine, as it is sent.
#[derive(Debug, Serialize)]
pub(super) enum CallRef<'a> {
    Generate {
        request: &'a Request,
        constraint: Option<(&'static str, &'a Grammar)>,
    },
    Tokenize {
        input: &'a Input,
        add_special: bool,
        parse_special: bool,
    },
    Pieces(&'a [u32]),
    Embed(&'a EmbedRequest),
    Rerank(&'a RerankRequest),
    Inspect,
}

impl<'a> CallRef<'a> {
    pub(super) fn generate(request: &'a Request) -> Self {
        let constraint = request.constraint.as_ref();
        Self::Generate {
            request,
            constraint: constraint.map(|constraint| (constraint.field, &constraint.grammar)),
        }
    }

    pub(super) fn tokenize(input: &'a Input, options: TokenizeOptions) -> Self {
        Self::Tokenize {
            input,
            add_special: options.add_special,
            parse_special: options.parse_special,
        }
    }
}

/// What is asked of the engine, as it is read.
#[derive(Debug, Deserialize)]
pub(super) enum Call {
    Generate {
        request: Box<Request>,
        constraint: Option<(String, Grammar)>,
    },
    Tokenize {
        input: Input,
        add_special: bool,
        parse_special: bool,
    },
    Pieces(Vec<u32>),
    Embed(EmbedRequest),
    Rerank(RerankRequest),
    Inspect,
}

/// The request with its constraint, which travels beside it.
pub(super) fn whole(request: Request, constraint: Option<(String, Grammar)>) -> Request {
    let constraint = constraint.map(|(field, grammar)| Constraint {
        field: keep(&field).unwrap_or("response_format"),
        grammar,
    });
    Request {
        constraint,
        ..request
    }
}

/// A failure on its way.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Told {
    kind: Kind,
    message: String,
    param: Option<String>,
    code: Option<String>,
    retry_after: Option<Duration>,
    /// The private causes, for the parent's log.
    source: Option<String>,
}

impl Told {
    pub(super) fn of(failure: &Failure) -> Self {
        Self {
            kind: failure.kind,
            message: failure.message.clone().into_owned(),
            param: failure.param.as_ref().map(ToString::to_string),
            code: failure.code.map(str::to_owned),
            retry_after: failure.retry_after,
            source: std::error::Error::source(failure).map(chain),
        }
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        // Strings, numbers and a name: there is nothing in it that has no JSON.
        serde_json::to_vec(self).unwrap_or_default()
    }

    pub(super) fn from_json(bytes: &[u8]) -> Result<Self, Malformed> {
        serde_json::from_slice(bytes).map_err(|_| Malformed("a failure that cannot be read"))
    }

    pub(super) fn into_failure(self) -> Failure {
        let mut failure = Failure::new(self.kind, cut(self.message));
        failure.param = self.param.map(|param| cut(param).into());
        failure.code = self.code.and_then(|code| keep(&code));
        failure.retry_after = self.retry_after;
        match self.source {
            Some(source) => failure.with_source(plain(source.as_bytes())),
            None => failure,
        }
    }
}

/// A text for logs: one line without control characters, and not too long.
pub(super) fn plain(text: &[u8]) -> String {
    one_line(&text[..text.len().min(TEXT)])
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT));
    text
}

/// A short text for as long as the process lives: each is kept once, and only so many.
fn keep(name: &str) -> Option<&'static str> {
    static KEPT: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = kept.get(name) {
        return Some(known);
    }
    let is_plain = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
    if kept.len() >= CODES || name.len() > 200 || !name.bytes().all(is_plain) {
        return None;
    }
    let name: &'static str = Box::leak(name.into());
    kept.insert(name);
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_arrives_as_it_was_sent() {
        let sent = Failure::invalid("n", "Too many.")
            .with_code("queue_full")
            .with_retry_after(Duration::from_millis(1500))
            .with_source("a cause");
        let told = Told::from_json(&Told::of(&sent).to_json()).unwrap();
        let came = told.into_failure();
        assert_eq!(came.kind, sent.kind);
        assert_eq!(came.message, sent.message);
        assert_eq!(came.param, sent.param);
        assert_eq!(came.code, sent.code);
        assert_eq!(came.retry_after, sent.retry_after);
        assert_eq!(chain(&came), "Too many: a cause");
    }

    #[test]
    fn a_failure_cannot_grow_or_reach_a_terminal() {
        let long = Told {
            kind: Kind::Internal,
            message: "é".repeat(10_000),
            param: None,
            code: Some("x".repeat(201)),
            retry_after: None,
            source: Some("a\u{1b}[2J\nb".into()),
        };
        let failure = long.into_failure();
        assert_eq!(failure.message.len(), TEXT);
        assert_eq!(failure.code, None);
        assert!(chain(&failure).ends_with("a[2J; b"), "{}", chain(&failure));
    }

    #[test]
    fn settings_arrive_to_the_byte() {
        let mut settings = Settings::default();
        settings.prefix_cache = ByteSize(1_234_567);
        settings.park_memory = ByteSize(7_654_321);
        settings.pause_spill = Duration::from_millis(1500);
        settings.trusted = true;
        let hello = Hello::new("m", "m.gguf".into(), &settings, &Process::default(), 64);
        let sent = serde_json::to_string(&hello).unwrap();
        let came: Hello = serde_json::from_str(&sent).unwrap();
        assert_eq!(came.settings(), settings);
    }

    #[test]
    fn a_request_arrives_whole() {
        let mut request = Request::new(Input::Text("é\u{0}".into()));
        request.sampling.temperature = Some(0.1);
        request.sampling.seed = Some(u64::MAX);
        request.deadlines.queue = Some(Duration::from_micros(1));
        request.caller.address = Some([127, 0, 0, 1].into());
        request.constraint = Some(Constraint {
            field: "guided_regex",
            grammar: Grammar::Regex("a+".into()),
        });
        let sent = serde_json::to_vec(&CallRef::generate(&request)).unwrap();
        let Call::Generate {
            request: came,
            constraint,
        } = serde_json::from_slice(&sent).unwrap()
        else {
            panic!("another call");
        };
        let came = whole(*came, constraint);
        assert_eq!(format!("{came:?}"), format!("{request:?}"));
    }
}
