//! Where tokens come from.
//!
//! An [`Engine`] turns a [`Request`] into [`Source`]s. `llama/` runs a GGUF model in this process,
//! `isolated/` in a process of its own; `scripted.rs` plays exact tokens at exact times. Nothing above this folder knows which is which.

mod child;
pub mod config;
mod drain;
mod history;
pub mod isolated;
pub mod llama;
mod ring;
pub mod scripted;
mod text;
mod view;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use crate::generation::{
    BoxFuture, EmbedRequest, Failure, Input, Request, RerankRequest, Scores, Source, Usage, Vectors,
};
use crate::telemetry::{ModelLoad, ModelMetrics};

pub use self::view::{EngineView, KvView, RecentCalls, SequenceState, SequenceView, WaitingView};

/// One ready model.
pub trait Engine: Send + Sync {
    /// What is fixed about the model.
    fn card(&self) -> &Card;

    /// Accepts a request: tokenizes it, takes a place in the waiting line, and returns one source per
    /// choice at once. Waiting, prefill and decode happen behind the sources.
    ///
    /// # Errors
    /// `Overloaded` when the line is full, `ContextExceeded` when the prompt cannot fit, `Invalid`
    /// for what this model cannot do.
    fn start<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Started, Failure>>;

    /// The tokens of an input, as generation would see them.
    fn tokenize<'a>(
        &'a self,
        input: &'a Input,
        options: TokenizeOptions,
    ) -> BoxFuture<'a, Result<Vec<u32>, Failure>>;

    /// The bytes of each token, in order; possibly not UTF-8 one by one.
    ///
    /// # Errors
    /// `Invalid` for an id outside the vocabulary.
    fn pieces<'a>(&'a self, tokens: &'a [u32]) -> BoxFuture<'a, Result<Vec<Vec<u8>>, Failure>>;

    /// The adapters that requests may name, oldest first.
    fn adapters(&self) -> Vec<AdapterCard> {
        Vec::new()
    }

    /// Loads an adapter for the requests to come. Streams go on meanwhile.
    ///
    /// # Errors
    /// `Invalid` says what is wrong with the file, or that the name is taken.
    fn add_adapter(&self, _: config::Adapter) -> BoxFuture<'_, Result<AdapterCard, Failure>> {
        Box::pin(std::future::ready(Err(no_adapters())))
    }

    /// Takes an adapter from the requests to come; those that began with it end with it.
    ///
    /// # Errors
    /// `NotFound` names the adapters that there are.
    fn remove_adapter(&self, _name: &str) -> Result<AdapterCard, Failure> {
        Err(no_adapters())
    }
    /// The vectors of some texts. Dropping the future cancels: what is not computed by then never is.
    ///
    /// # Errors
    /// `Invalid` for what this model cannot do, `ContextExceeded` for an input that is too long,
    /// `Overloaded` when too many are waiting.
    fn embed<'a>(&'a self, request: &'a EmbedRequest) -> BoxFuture<'a, Result<Vectors, Failure>>;

    /// How well some documents answer a query. Dropping the future cancels.
    ///
    /// # Errors
    /// As [`Engine::embed`].
    fn rerank<'a>(&'a self, request: &'a RerankRequest) -> BoxFuture<'a, Result<Scores, Failure>>;

    /// False once the engine has ended although nobody stopped it: it will never answer again.
    fn is_alive(&self) -> bool;

    /// What moves: for metrics and the models list. Cheap, never waits for the engine.
    fn gauges(&self) -> Gauges;

    /// What it is doing now, sequence by sequence. Answered between two steps, which it does not delay.
    ///
    /// # Errors
    /// `NotReady` when no step has ended within a second, `Overloaded` when too many look at once.
    fn inspect(&self) -> BoxFuture<'_, Result<EngineView, Failure>>;

    /// Stops taking work, fails what is left with `Draining`, and waits for the threads to end.
    fn stop(&self) -> BoxFuture<'_, ()>;
}

fn no_adapters() -> Failure {
    Failure::invalid("lora", "This model takes no adapters.")
}

/// A request under way.
pub struct Started {
    /// Prompt tokens. Which of them were cached is known when a sequence is admitted; its source
    /// tells ([`crate::generation::Burst::cached`]).
    pub usage: Usage,
    /// One per choice, in order.
    pub sources: Vec<Box<dyn Source>>,
}

/// How to tokenize text for the tokenizing endpoints.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenizeOptions {
    /// Add what the model expects around a prompt (BOS).
    pub add_special: bool,
    /// Let special-token texts in the input become those tokens.
    pub parse_special: bool,
}

/// What is fixed about a loaded model.
#[derive(Clone, Debug)]
pub struct Card {
    /// Its name in requests.
    pub name: Arc<str>,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
    /// Tokens a sequence may hold, prompt and completion together.
    pub context: u32,
    /// Vocabulary size.
    pub vocabulary: u32,
    /// What the model was trained for at most, when known.
    pub context_trained: Option<u32>,
    /// Parameters, when known.
    pub parameters: Option<u64>,
    /// Size of the weights in bytes, when known.
    pub bytes: Option<u64>,
    /// The model that this is an adapter of, if it is one.
    pub parent: Option<Arc<str>>,
    /// Whether a request's seed alone decides its text, whoever else is served.
    pub deterministic: bool,
}

impl Card {
    /// The model with one of its adapters, as a model of its own.
    #[must_use]
    pub fn with_adapter(&self, adapter: &AdapterCard) -> Self {
        Self {
            name: format!("{}:{}", self.name, adapter.name).into(),
            created: adapter.created,
            parent: Some(self.name.clone()),
            ..self.clone()
        }
    }
}

/// What is fixed about a loaded adapter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AdapterCard {
    /// Its number among the model's; never given twice.
    pub id: u32,
    /// Its name in requests, behind the model's and a colon.
    pub name: Arc<str>,
    /// The file it was read from.
    pub path: PathBuf,
    /// Its scale where a request gives none.
    pub scale: f32,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
    /// The largest rank among its matrices.
    pub rank: u64,
    /// How many of the model's matrices it changes.
    pub matrices: usize,
    /// Its size in bytes.
    pub bytes: u64,
    /// BLAKE3 of its contents, in hexadecimal digits.
    pub hash: Arc<str>,
}

/// How a KV cache is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// `split` or `unified`.
    pub name: &'static str,
    /// Why that one.
    pub reason: &'static str,
}

/// What moves in a model.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Gauges {
    /// Its figures.
    pub load: ModelLoad,
    /// How the KV cache is laid out, and why; empty where there is none.
    #[serde(skip)]
    pub layout: Layout,
}

/// A model's loading, as it is seen and stopped from elsewhere.
#[derive(Debug, Default)]
pub struct Loading {
    stop: AtomicBool,
    percent: AtomicU8,
}

impl Loading {
    /// Ends the loading as soon as it can be ended.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// Whether it was told to end.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// How much of the weights is there, 0 to 100.
    #[must_use]
    pub fn percent(&self) -> u8 {
        self.percent.load(Relaxed)
    }

    /// Notes how far the loading is, 0 to 1; whether it is to go on.
    fn goes_on(&self, done: f32) -> bool {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 to 100, and the cast saturates"
        )]
        self.percent.store((done * 100.0) as u8, Relaxed);
        !self.is_stopped()
    }
}

/// One model as it is to be loaded.
#[derive(Clone, Debug)]
pub struct Plan {
    name: Arc<str>,
    backing: Planned,
    process: config::Process,
    ring: usize,
}

#[derive(Clone, Debug)]
enum Planned {
    Llama {
        weights: llama::Weights,
        settings: Box<config::Settings>,
    },
    Scripted(Box<config::Script>),
}

impl Plan {
    /// What a `[[models]]` entry asks for. `ring` is the tokens between engine and reader.
    #[must_use]
    pub fn configured(model: &config::Model, process: &config::Process, ring: usize) -> Self {
        Self {
            name: model.name.as_str().into(),
            backing: match &model.backing {
                config::Backing::Gguf { path, settings } => Planned::Llama {
                    weights: llama::Weights::File(path.clone()),
                    settings: settings.clone(),
                },
                config::Backing::Scripted(script) => Planned::Scripted(script.clone()),
            },
            process: process.clone(),
            ring,
        }
    }

    /// The name of the model that is compiled into the binary.
    pub const DEMO: &str = "demo";

    /// The model that is compiled into the binary, called `demo`.
    #[must_use]
    pub fn demo(process: &config::Process, ring: usize) -> Self {
        Self {
            name: Self::DEMO.into(),
            backing: Planned::Llama {
                weights: llama::Weights::Embedded(llama::DEMO),
                settings: Box::new(llama::demo_settings()),
            },
            process: process.clone(),
            ring,
        }
    }

    /// The model's name in requests.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether requests may change the model's script through its name.
    #[must_use]
    pub fn is_scripted(&self) -> bool {
        matches!(self.backing, Planned::Scripted(_))
    }

    /// Finds what is wrong with the model as far as that shows without loading it.
    ///
    /// # Errors
    /// As [`Plan::load`].
    pub fn inspect(&self) -> Result<(), llama::LoadError> {
        match &self.backing {
            Planned::Llama {
                weights: llama::Weights::File(path),
                settings,
            } => llama::inspect(path, settings),
            Planned::Llama { .. } | Planned::Scripted(_) => Ok(()),
        }
    }

    /// Loads the model and starts what runs it. Blocks for as long as that takes.
    ///
    /// # Errors
    /// What is wrong with the model, or that `loading` was stopped.
    pub fn load(
        &self,
        metrics: &Arc<ModelMetrics>,
        loading: &Arc<Loading>,
    ) -> Result<Arc<dyn Engine>, llama::LoadError> {
        match &self.backing {
            Planned::Llama {
                weights: llama::Weights::File(path),
                settings,
            } if settings.isolation == config::Isolation::Process => {
                let engine = isolated::IsolatedEngine::load(
                    &self.name,
                    path,
                    settings,
                    &self.process,
                    self.ring,
                    metrics,
                    loading,
                )?;
                Ok(engine)
            }
            Planned::Llama { weights, settings } => {
                let engine = llama::LlamaEngine::load(
                    &self.name,
                    weights,
                    settings,
                    &self.process,
                    self.ring,
                    metrics,
                    loading,
                )?;
                Ok(engine)
            }
            Planned::Scripted(script) => Ok(Arc::new(scripted::ScriptedEngine::new(
                &self.name,
                (**script).clone(),
                self.ring,
            ))),
        }
    }
}
