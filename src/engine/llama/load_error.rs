//! Why a model could not be loaded, in words for whoever configured it.

use std::io;

use super::adapters::AdapterError;
use super::canary::CanaryError;
use super::ffi::LlamaError;
use super::gguf::GgufError;
use super::speculate::DraftError;
use crate::engine::isolated::ChildError;

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be opened or read.
    #[error("cannot read {path}")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The file is not a GGUF that can be run.
    #[error("{path} is not a usable GGUF: {source}")]
    Gguf {
        /// Which file.
        path: String,
        /// What is wrong with it.
        source: GgufError,
    },
    /// It is a model of another kind: an encoder, a diffusion model.
    #[error("{path} is no model that continues text")]
    Kind {
        /// Which file.
        path: String,
    },
    /// llama.cpp refused the model.
    #[error("llama.cpp cannot load {path}: {reason}")]
    Llama {
        /// Which file.
        path: String,
        /// Its own words.
        reason: String,
    },
    /// The process that tried the model did not come back well.
    #[error("{path} cannot be used: {source}")]
    Canary {
        /// Which file.
        path: String,
        /// What became of it.
        source: CanaryError,
    },
    /// The process of its own in which it was to run did not come up.
    #[error(transparent)]
    Isolated(#[from] ChildError),
    /// The process is to end.
    #[error("loading was stopped")]
    Stopped,
    /// One of the model's adapters cannot be used.
    #[error("adapter {name}: {source}")]
    Adapter {
        /// Which one.
        name: String,
        /// Why.
        source: Box<AdapterError>,
    },
    /// The model cannot be drafted for as the settings say.
    #[error("draft_model {path} cannot be used: {source}")]
    Draft {
        /// Which file.
        path: String,
        /// Why.
        source: DraftError,
    },
    /// The model's chat template does not parse.
    #[error("the chat template does not parse: {0}")]
    Template(minijinja::Error),
    /// The engine could not be started.
    #[error("the engine did not start: {0}")]
    Engine(String),
}

impl From<LlamaError> for LoadError {
    fn from(error: LlamaError) -> Self {
        Self::Engine(error.to_string())
    }
}
