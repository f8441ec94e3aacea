//! Loads a draft model that fits its target: the same ids must mean the same tokens.

use std::path::Path;
use std::sync::Arc;

use llama_cpp_2::model::LlamaModel;

use crate::engine::Loading;
use crate::engine::config::{Process, Settings};
use crate::engine::llama::ffi::LlamaError;
use crate::engine::llama::load::{self, LoadError, Weights};
use crate::engine::llama::vocab::Vocabulary;

/// Ids that one of the two may have more: models of one family are padded to different sizes.
const PADDING: usize = 1024;

/// Why a model cannot draft for another one.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    /// Its file cannot be loaded.
    #[error(transparent)]
    Load(Box<LoadError>),
    /// One has far more tokens.
    #[error("its vocabulary has {draft} tokens, and that of the model {target}")]
    Size {
        /// Tokens of the draft model.
        draft: usize,
        /// Tokens of the model.
        target: usize,
    },
    /// An id means something else.
    #[error("token {token} is {draft:?} there, and {target:?} in the model")]
    Token {
        /// The id.
        token: u32,
        /// Its text in the draft model.
        draft: String,
        /// Its text in the model.
        target: String,
    },
    /// Other tokens end a text.
    #[error("other tokens end a text there than in the model")]
    Ends,
    /// The model takes no drafts.
    #[error("the state of the model cannot be cut, so that nothing can be computed on a guess")]
    Whole,
    /// No context can be made of it.
    #[error("{0}")]
    Context(String),
}

impl From<LoadError> for DraftError {
    fn from(error: LoadError) -> Self {
        Self::Load(Box::new(error))
    }
}

impl From<LlamaError> for DraftError {
    fn from(error: LlamaError) -> Self {
        Self::Context(error.to_string())
    }
}

/// Loads the model that is to make drafts, if there is to be one: checked and tried as any other.
pub(in crate::engine::llama) fn load(
    settings: &Settings,
    process: &Process,
    loading: &Arc<Loading>,
    vocabulary: &Vocabulary,
) -> Result<Option<Arc<LlamaModel>>, LoadError> {
    let Some(path) = &settings.draft_model else {
        return Ok(None);
    };
    let mapped = load::map(&Weights::File(path.clone()), settings, process, loading);
    let (model, summary, _) = mapped.map_err(|source| match source {
        LoadError::Stopped => LoadError::Stopped,
        source => no_draft(path, source),
    })?;
    let model = Arc::new(model);
    let own = Vocabulary::new(model.clone(), &summary.tokenizer);
    check(&own, vocabulary).map_err(|source| no_draft(path, source))?;
    tracing::info!(
        path = %path.display(),
        architecture = summary.architecture.as_str(),
        weights = summary.weights.as_str(),
        "draft model loaded"
    );
    Ok(Some(model))
}

/// Why there is no draft model.
pub(in crate::engine::llama) fn no_draft(path: &Path, source: impl Into<DraftError>) -> LoadError {
    LoadError::Draft {
        path: path.display().to_string(),
        source: source.into(),
    }
}

/// Compares two vocabularies; the first difference, if there is one.
fn check(draft: &Vocabulary, target: &Vocabulary) -> Result<(), DraftError> {
    let sizes = (draft.len(), target.len());
    if sizes.0.abs_diff(sizes.1) > PADDING {
        let (draft, target) = sizes;
        return Err(DraftError::Size { draft, target });
    }
    let common = u32::try_from(sizes.0.min(sizes.1)).unwrap_or(u32::MAX);
    for token in 0..common {
        let texts = [draft, target].map(|vocabulary| vocabulary.special_text(Some(token)));
        if texts[0] != texts[1] || draft.piece(token) != target.piece(token) {
            let [draft, target] = texts;
            return Err(DraftError::Token {
                token,
                draft,
                target,
            });
        }
    }
    let ends = |vocabulary: &Vocabulary| {
        let mut ends = vocabulary.eog.clone();
        ends.retain(|&token| token < common);
        ends
    };
    if ends(draft) != ends(target) {
        return Err(DraftError::Ends);
    }
    Ok(())
}
