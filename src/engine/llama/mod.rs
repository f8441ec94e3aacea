//! A GGUF model in this process, through llama.cpp.
//!
//! [`LlamaEngine`] is the async side: it renders templates, tokenizes, checks and prices a request,
//! and hands its sequences to the engine thread (`worker.rs`) through a bounded channel. Tokens come
//! back through one ring per sequence (`engine/ring.rs`), read by a `LlamaSource`.

mod adapters;
pub mod bare;
mod ffi;
mod gguf;
mod load;
pub mod sampling;
mod schedule;
mod source;
mod template;
mod vocab;
mod worker;

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use self::adapters::Adapters;
use self::sampling::{Breakers, Sampler};
use self::source::LlamaSource;
use self::template::ChatTemplate;
use self::vocab::{Guards, Vocabulary};
use self::worker::{Counters, Job, Place};
use super::config::{Adapter, Settings};
use super::ring::{Bell, Ring};
use super::{AdapterCard, Card, Engine, Gauges, Loading, Started, TokenizeOptions};
use crate::generation::ranges::OutOfRange;
use crate::generation::{
    BoxFuture, Failure, Input, Kind, Message, Request, Sampling, Source, Usage,
};
use crate::telemetry::ModelMetrics;

pub use self::adapters::AdapterError;
pub use self::gguf::GgufError;
pub use self::load::{LoadError, Weights};

/// The demo model, a GGUF of 4.7 MB; `demo/README.md` tells how it was made.
pub const DEMO: &[u8] = include_bytes!("demo/sluicegate-demo-q8_0.gguf");

/// How the demo model is run. It is at its best with little randomness. (Quantized K/V would be 1.6 times
/// as fast, because ggml has no vector code for half-precision heads of 32; but then a seed would no
/// longer give the same text beside other streams.)
#[must_use]
pub fn demo_settings() -> Settings {
    let mut settings = Settings::default();
    settings.context = NonZeroU32::new(2048);
    settings.sampling.temperature = Some(0.3);
    settings
}

/// Checks a file and its chat template without loading it.
///
/// # Errors
/// What [`LlamaEngine::load`] would find.
pub fn inspect(path: &std::path::Path, settings: &Settings) -> Result<(), LoadError> {
    load::inspect(path, settings)
}

/// When to come back after a full queue. A guess that suits small models and large ones alike.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Text up to this many bytes is tokenized where it is, longer text on the blocking pool. llama.cpp
/// tokenizes about 5 MB/s: 2 KiB hold a runtime thread for less than half a millisecond.
const TOKENIZE_INLINE: usize = 2 * 1024;

/// Token lists up to this long become bytes where they are, longer ones on the blocking pool.
const PIECES_INLINE: usize = 4096;

/// Who may use the blocking pool now, all models together: about as many as there are cores. The pool
/// has hundreds of threads, and a flood of long texts would take all of them from everybody else.
static HEAVY: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Arc::new(Semaphore::new(cores))
});

/// Runs `work` on the blocking pool, when its turn has come. Once begun it is finished, and keeps its
/// turn until then, whether or not anybody still waits for it.
async fn heavy<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    let turn = HEAVY.clone().acquire_owned().await;
    let turn = turn.map_err(Failure::internal)?;
    let done = tokio::task::spawn_blocking(move || {
        let done = work();
        drop(turn);
        done
    });
    done.await.map_err(Failure::internal)
}

/// A running model.
pub struct LlamaEngine {
    shared: Arc<Shared>,
    adapters: Arc<Adapters>,
    inbox: SyncSender<Vec<Job>>,
    thread: Thread,
    bell: Bell,
    join: Mutex<Option<JoinHandle<()>>>,
    counters: Arc<Counters>,
    stopping: Arc<AtomicBool>,
    abort: Arc<AtomicBool>,
    kv_capacity: u64,
    /// Sequences that may be accepted at once: running and waiting.
    places: u32,
    ring: u32,
}

/// What tokenizing needs, shared with the blocking pool.
struct Shared {
    card: Card,
    vocabulary: Arc<Vocabulary>,
    template: ChatTemplate,
    sampling: Sampling,
    /// DRY's breakers for the texts that were asked for last; finding them reads the whole
    /// vocabulary.
    breakers: Mutex<Option<(Vec<String>, Arc<Breakers>)>>,
}

impl LlamaEngine {
    /// Loads a model and starts its thread. Blocks for as long as the loading takes.
    ///
    /// # Errors
    /// [`LoadError`] says what is wrong with the file, or what llama.cpp could not do with it.
    pub fn load(
        name: &str,
        weights: &Weights,
        settings: &Settings,
        process: &super::config::Process,
        ring: usize,
        metrics: &Arc<ModelMetrics>,
        loading: &Arc<Loading>,
    ) -> Result<Arc<Self>, LoadError> {
        load::load(name, weights, settings, process, ring, metrics, loading)
    }

    /// Checks a request and turns it into jobs and their sources.
    async fn prepare(&self, request: &Request) -> Result<Started, Failure> {
        let accepted = Instant::now();
        let settings = request.sampling.over(&self.shared.sampling);
        settings.check().map_err(invalid_sampling)?;
        let adapters = self.adapters.choose(&request.model, &request.adapters)?;
        // Before any work is done for it: a request that finds no place costs nothing.
        let mut places = self.places(request.choices())?.into_iter();
        let prompts = self.prompts(&request.inputs).await?;
        let seed = settings
            .seed
            .unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
        let breakers = self.breakers(&settings).await?;
        // A bound that no clock can show is none.
        let queue_deadline =
            (request.deadlines.queue).and_then(|bound| Some((accepted.checked_add(bound)?, bound)));

        let mut jobs = Vec::with_capacity(places.len());
        let mut sources: Vec<Box<dyn Source>> = Vec::with_capacity(places.len());
        let mut prompt_tokens = 0u32;
        for prompt in prompts {
            let len = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
            prompt_tokens = prompt_tokens.saturating_add(len);
            let room = self.shared.card.context.saturating_sub(len);
            let budget = request.max_tokens.unwrap_or(room).min(room);
            for repeat in 0..request.n {
                let Some(place) = places.next() else { break };
                let ring = Ring::new(self.ring, request.logprobs.unwrap_or(0), self.bell.clone());
                let choice = u32::try_from(sources.len()).unwrap_or(u32::MAX);
                sources.push(Box::new(LlamaSource::new(
                    ring.clone(),
                    self.shared.vocabulary.clone(),
                    choice,
                    &request.stop,
                    request.logprobs.is_some(),
                )));
                let mut sampler = Sampler::new(
                    &settings,
                    seed.wrapping_add(u64::from(repeat)),
                    self.shared.vocabulary.len(),
                    &self.shared.vocabulary.eog,
                    &self.shared.vocabulary.suppressed,
                    breakers.clone(),
                )
                .map_err(invalid_sampling)?;
                sampler.accept_prompt(&prompt);
                jobs.push(Job {
                    prompt: prompt.clone(),
                    budget,
                    sampler,
                    logprobs: request.logprobs,
                    adapters: adapters.clone(),
                    ring,
                    accepted,
                    queue_deadline,
                    place: Some(place),
                });
            }
        }
        self.submit(jobs)?;
        Ok(Started {
            usage: Usage {
                prompt_tokens,
                ..Usage::default()
            },
            sources,
        })
    }

    /// A place for each choice, or none. Whoever drops them gives them back.
    fn places(&self, choices: usize) -> Result<Vec<Place>, Failure> {
        let count = u32::try_from(choices).unwrap_or(u32::MAX);
        if count > self.places {
            // Not a matter of load: it would be refused however long the caller waited.
            let most = self.places;
            return Err(Failure::invalid(
                "n",
                format!(
                    "This model serves at most {most} choices at once; this request is for {count}."
                ),
            ));
        }
        Place::take(&self.counters, count, self.places).ok_or_else(|| {
            Failure::new(
                Kind::Overloaded,
                "All sequences of this model are busy and its waiting line is full.",
            )
            .with_code("queue_full")
            .with_retry_after(RETRY_AFTER)
        })
    }

    fn submit(&self, jobs: Vec<Job>) -> Result<(), Failure> {
        let stopped = || Failure::new(Kind::NotReady, "The model has been stopped.");
        if self.stopping.load(Relaxed) {
            return Err(stopped());
        }
        match self.inbox.try_send(jobs) {
            Ok(()) => {
                self.thread.unpark();
                Ok(())
            }
            // The channel has room for every place, so this cannot be reached by load alone.
            Err(TrySendError::Full(_)) => {
                Err(Failure::new(Kind::Overloaded, "The model's inbox is full.")
                    .with_retry_after(RETRY_AFTER))
            }
            Err(TrySendError::Disconnected(_)) => Err(stopped()),
        }
    }

    /// The tokens of every input, each non-empty and short enough to leave room for one token.
    async fn prompts(&self, inputs: &[Input]) -> Result<Vec<Arc<[u32]>>, Failure> {
        let mut prompts = Vec::with_capacity(inputs.len());
        for input in inputs {
            let options = TokenizeOptions {
                add_special: true,
                parse_special: false,
            };
            if let Input::Text(text) = input {
                self.shared.can_fit(text.len())?;
            }
            let tokens = self.tokens(input, options, Use::Generate).await?;
            if tokens.is_empty() {
                return Err(Failure::invalid("prompt", "The prompt has no tokens."));
            }
            let (len, context) = (tokens.len(), self.shared.card.context);
            if len >= context as usize {
                return Err(Failure::new(
                    Kind::ContextExceeded,
                    format!(
                        "The prompt has {len} tokens; this model's context holds {context}, \
                         of which at least one is for the answer."
                    ),
                ));
            }
            prompts.push(tokens.into());
        }
        Ok(prompts)
    }

    async fn tokens(
        &self,
        input: &Input,
        options: TokenizeOptions,
        purpose: Use,
    ) -> Result<Vec<u32>, Failure> {
        let size = match input {
            Input::Tokens(tokens) => return self.shared.checked(tokens),
            Input::Text(text) => text.len(),
            Input::Chat(messages) => messages.iter().map(|m| m.content.len() + 16).sum(),
        };
        if size <= TOKENIZE_INLINE {
            return self.shared.tokenize(input, options, purpose);
        }
        let (shared, input) = (self.shared.clone(), input.clone());
        heavy(move || shared.tokenize(&input, options, purpose)).await?
    }

    async fn token_bytes(&self, tokens: &[u32]) -> Result<Vec<Vec<u8>>, Failure> {
        if tokens.len() <= PIECES_INLINE {
            return self.shared.pieces(tokens);
        }
        let (shared, tokens) = (self.shared.clone(), tokens.to_vec());
        heavy(move || shared.pieces(&tokens)).await?
    }

    /// The breakers of DRY, if it is on.
    async fn breakers(&self, settings: &Sampling) -> Result<Arc<Breakers>, Failure> {
        let Some(dry) = settings.dry.as_ref().filter(|dry| dry.multiplier > 0.0) else {
            return Ok(Arc::default());
        };
        let (shared, texts) = (self.shared.clone(), dry.sequence_breakers.clone());
        heavy(move || shared.breakers(texts)).await
    }
}

/// What text is tokenized for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// To be continued: it must fit the context.
    Generate,
    /// To be looked at.
    Show,
}

fn invalid_sampling(error: OutOfRange) -> Failure {
    Failure::invalid(error.field, error.message)
}

impl Shared {
    fn breakers(&self, texts: Vec<String>) -> Arc<Breakers> {
        let last = || self.breakers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, breakers)) = &*last()
            && *known == texts
        {
            return breakers.clone();
        }
        let breakers = Arc::new(self.vocabulary.breakers(&texts));
        *last() = Some((texts, breakers.clone()));
        breakers
    }

    /// Refuses a text that is too long whatever its tokens turn out to be: finding them takes time in
    /// proportion to its length.
    fn can_fit(&self, bytes: usize) -> Result<(), Failure> {
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

    fn pieces(&self, tokens: &[u32]) -> Result<Vec<Vec<u8>>, Failure> {
        let tokens = self.checked(tokens)?;
        let bytes = |&token: &u32| match self.vocabulary.piece(token) {
            // Shown, a control token is nothing; asked for by its id, it is its text.
            [] => self.vocabulary.special_text(Some(token)).into_bytes(),
            piece => piece.to_vec(),
        };
        Ok(tokens.iter().map(bytes).collect())
    }

    fn tokenize(
        &self,
        input: &Input,
        options: TokenizeOptions,
        purpose: Use,
    ) -> Result<Vec<u32>, Failure> {
        match input {
            Input::Tokens(tokens) => self.checked(tokens),
            Input::Text(text) => {
                Ok(self
                    .vocabulary
                    .tokenize(text, options.add_special, options.parse_special))
            }
            Input::Chat(messages) => self.tokenize_chat(messages, purpose),
        }
    }

    /// Renders the conversation and tokenizes it. Control tokens come from the template alone: their
    /// texts inside a message stay text.
    fn tokenize_chat(&self, messages: &[Message], purpose: Use) -> Result<Vec<u32>, Failure> {
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
        Ok(self.vocabulary.tokenize_segments(&segments, true))
    }

    fn checked(&self, tokens: &[u32]) -> Result<Vec<u32>, Failure> {
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

impl Engine for LlamaEngine {
    fn card(&self) -> &Card {
        &self.shared.card
    }

    fn start<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Started, Failure>> {
        Box::pin(self.prepare(request))
    }

    fn tokenize<'a>(
        &'a self,
        input: &'a Input,
        options: TokenizeOptions,
    ) -> BoxFuture<'a, Result<Vec<u32>, Failure>> {
        Box::pin(self.tokens(input, options, Use::Show))
    }

    fn pieces<'a>(&'a self, tokens: &'a [u32]) -> BoxFuture<'a, Result<Vec<Vec<u8>>, Failure>> {
        Box::pin(self.token_bytes(tokens))
    }

    fn adapters(&self) -> Vec<AdapterCard> {
        self.adapters.cards()
    }

    fn add_adapter(&self, adapter: Adapter) -> BoxFuture<'_, Result<AdapterCard, Failure>> {
        let adapters = self.adapters.clone();
        Box::pin(async move {
            let added = tokio::task::spawn_blocking(move || adapters.add(&adapter)).await;
            Ok(added.map_err(Failure::internal)??)
        })
    }

    fn remove_adapter(&self, name: &str) -> Result<AdapterCard, Failure> {
        self.adapters.remove(name)
    }

    fn is_alive(&self) -> bool {
        let join = self.join.lock().unwrap_or_else(PoisonError::into_inner);
        self.stopping.load(Relaxed) || join.as_ref().is_none_or(|join| !join.is_finished())
    }

    fn gauges(&self) -> Gauges {
        let running = self.counters.running.load(Relaxed);
        Gauges {
            running,
            waiting: self.counters.accepted.load(Relaxed).saturating_sub(running),
            paused: self.counters.paused.load(Relaxed),
            pauses: self.counters.pauses.load(Relaxed),
            kv_used: self.counters.kv_used.load(Relaxed),
            kv_capacity: self.kv_capacity,
        }
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        self.stopping.store(true, Relaxed);
        self.abort.store(true, Relaxed);
        self.thread.unpark();
        let join = self
            .join
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        Box::pin(async move {
            if let Some(join) = join {
                // Joining blocks for at most one aborted call.
                let _ = tokio::task::spawn_blocking(move || join.join()).await;
            }
        })
    }
}

impl Drop for LlamaEngine {
    fn drop(&mut self) {
        self.stopping.store(true, Relaxed);
        self.abort.store(true, Relaxed);
        self.thread.unpark();
    }
}

/// Threads to compute with when the configuration names none: one core is left for everything else,
/// because ggml's threads spin at every barrier and collapse when one of them is descheduled.
fn default_threads() -> NonZeroU32 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = u32::try_from(cores.saturating_sub(1)).unwrap_or(1);
    NonZeroU32::new(threads).unwrap_or(NonZeroU32::MIN)
}

#[cfg(test)]
mod tests;
