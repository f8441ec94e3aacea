//! What requests are prepared with, off the engine thread: templates, tokens, DRY's breakers.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use tokio::sync::{Semaphore, oneshot};

use super::grammar::Grammars;
use super::sampling::Breakers;
use super::template::ChatTemplate;
use super::vocab::{self, Guards, Vocabulary};
use crate::engine::{Card, TokenizeOptions};
use crate::generation::{Failure, Input, Kind, Message, Sampling};

/// Text up to this many bytes is tokenized where it is, longer text on a thread of its own. llama.cpp
/// tokenizes about 5 MB/s: 2 KiB hold a runtime thread for less than half a millisecond, and take less
/// than 1 MB of its stack.
pub(super) const TOKENIZE_INLINE: usize = 2 * 1024;

/// Token lists up to this long become bytes where they are, longer ones on a thread of their own.
pub(super) const PIECES_INLINE: usize = 4096;

/// Who may tokenize on a thread of its own now, all models together: about as many as there are cores,
/// so that a flood of long texts takes no more than that.
static HEAVY: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Arc::new(Semaphore::new(cores))
});

/// Runs `work` on a thread with a deep stack, when its turn has come. Once begun it is finished, and
/// keeps its turn until then, whether or not anybody still waits for it.
pub(super) async fn heavy<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let turn = HEAVY.clone().acquire_owned().await;
    let turn = turn.map_err(Failure::internal)?;
    let (done, outcome) = oneshot::channel();
    // Not the blocking pool: the depth of its stacks is not ours to say.
    std::thread::Builder::new()
        .name("tokenize".to_owned())
        .stack_size(vocab::TOKENIZER_STACK)
        .spawn(move || {
            let _turn = turn;
            let _ = done.send(work());
        })
        .map_err(Failure::internal)?;
    outcome.await.map_err(Failure::internal)
}

/// What tokenizing needs, shared with the threads that do it.
pub(super) struct Shared {
    pub(super) card: Card,
    pub(super) vocabulary: Arc<Vocabulary>,
    pub(super) template: ChatTemplate,
    pub(super) sampling: Sampling,
    /// Names the weights and the K/V types: what cached blocks of other models must not be taken for.
    pub(super) model_id: Box<[u8]>,
    /// DRY's breakers for the texts that were asked for last; finding them reads the whole
    /// vocabulary.
    pub(super) breakers: Mutex<Option<(Vec<String>, Arc<Breakers>)>>,
    pub(super) grammars: Grammars,
}

/// What text is tokenized for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// To be continued: it must fit the context.
    Generate,
    /// To be looked at.
    Show,
}

impl Shared {
    pub(super) fn breakers(&self, texts: Vec<String>) -> Result<Arc<Breakers>, Failure> {
        let last = || self.breakers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, breakers)) = &*last()
            && *known == texts
        {
            return Ok(breakers.clone());
        }
        let breakers = self.vocabulary.breakers(&texts);
        let breakers = Arc::new(breakers.map_err(Failure::internal)?);
        *last() = Some((texts, breakers.clone()));
        Ok(breakers)
    }

    /// Refuses a text that is too long whatever its tokens turn out to be: finding them takes time in
    /// proportion to its length.
    pub(super) fn can_fit(&self, bytes: usize) -> Result<(), Failure> {
        let context = self.card.context;
        match self.vocabulary.most_bytes(context) {
            Some(most) if bytes > most => Err(Failure::new(
                Kind::ContextExceeded,
                format!(
                    "The prompt has {bytes} bytes; this model's context of {context} tokens holds at \
                     most {most}."
                ),
            )),
            _ => Ok(()),
        }
    }

    pub(super) fn pieces(&self, tokens: &[u32]) -> Result<Vec<Vec<u8>>, Failure> {
        let tokens = self.checked(tokens)?;
        let bytes = |&token: &u32| match self.vocabulary.piece(token) {
            // Shown, a control token is nothing; asked for by its id, it is its text.
            [] => self.vocabulary.special_text(Some(token)).into_bytes(),
            piece => piece.to_vec(),
        };
        Ok(tokens.iter().map(bytes).collect())
    }

    pub(super) fn tokenize(
        &self,
        input: &Input,
        options: TokenizeOptions,
        purpose: Use,
    ) -> Result<Vec<u32>, Failure> {
        match input {
            Input::Tokens(tokens) => self.checked(tokens),
            Input::Text(text) => self
                .vocabulary
                .tokenize(text, options.add_special, options.parse_special)
                .map_err(Failure::internal),
            Input::Chat(messages) => self.tokenize_chat(messages, purpose),
        }
    }

    /// Renders the conversation and tokenizes it. Control tokens come from the template alone: their
    /// texts inside a message stay text.
    pub(super) fn tokenize_chat(
        &self,
        messages: &[Message],
        purpose: Use,
    ) -> Result<Vec<u32>, Failure> {
        let texts: Vec<_> = messages
            .iter()
            .flat_map(|m| [&*m.content, &*m.role.0, m.name.as_deref().unwrap_or("")])
            .collect();
        let guards = Guards::absent_from(&texts).ok_or_else(|| {
            Failure::invalid(
                "messages",
                "The messages contain nearly all Unicode noncharacters.",
            )
        })?;
        let guard = |text: &str| self.vocabulary.guard(text, guards).into_owned();
        let guarded: Vec<_> = messages
            .iter()
            .map(|message| Message {
                role: crate::generation::Role(guard(&message.role.0)),
                content: guard(&message.content),
                name: message.name.as_deref().map(guard),
            })
            .collect();
        let rendered = self.template.render(&guarded).map_err(|error| {
            Failure::invalid(
                "messages",
                format!("The model's chat template does not take these messages: {error}."),
            )
        })?;
        let segments = guards.segments(&rendered);
        if purpose == Use::Generate {
            self.can_fit(segments.iter().map(|(text, _)| text.len()).sum())?;
        }
        let tokens = self.vocabulary.tokenize_segments(&segments, true);
        tokens.map_err(Failure::internal)
    }

    pub(super) fn checked(&self, tokens: &[u32]) -> Result<Vec<u32>, Failure> {
        match tokens
            .iter()
            .find(|&&t| t as usize >= self.vocabulary.len())
        {
            None => Ok(tokens.to_vec()),
            Some(token) => Err(Failure::invalid(
                "prompt",
                format!(
                    "Token {token} is outside the vocabulary of {} tokens.",
                    self.vocabulary.len()
                ),
            )),
        }
    }
}
