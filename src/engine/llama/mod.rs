//! A GGUF model in this process, through llama.cpp.
//!
//! [`LlamaEngine`] is the async side: it renders templates, tokenizes, checks and prices a request,
//! and hands its sequences to the engine thread (`worker.rs`) through a bounded channel. Tokens come
//! back through one ring per sequence (`engine/ring.rs`), read by a `LlamaSource`.

mod adapters;
pub mod bare;
mod cache;
mod calls;
mod cells;
pub mod canary;
mod context;
mod dense;
mod embed;
mod crew;
mod ffi;
mod gguf;
mod inspect;
mod job;
mod kept;
mod layout;
mod line;
pub mod grammar;
mod load;
mod load_error;
mod pages;
mod places;
mod plan;
mod prefix;
mod pin;
pub mod sampling;
mod sequence;
mod shared;
mod shift;
mod shim;
mod source;
mod speculate;
mod steps;
mod template;
mod vectors;
mod threads;
mod vocab;
mod waiting;
mod weights;
mod worker;

use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use self::adapters::{AdapterSet, Adapters};
use self::crew::Threads;
use self::embed::Embedder;
use self::job::{Counters, Job};
use self::places::{Payer, Place, Places};
use self::plan::TenantId;
use self::prefix::{Key, Root, chain};
use self::sampling::{Breakers, Sampler};
use self::shared::{PIECES_INLINE, Shared, TOKENIZE_INLINE, Use, heavy};
use self::source::LlamaSource;
use super::config::{Adapter, Settings};
use super::ring::{Bell, Ring};
use super::{AdapterCard, Card, Engine, EngineView, Gauges, Loading, Started, TokenizeOptions};
use crate::generation::ranges::OutOfRange;
use crate::generation::{
    BoxFuture, Caller, Deadlines, EmbedRequest, Failure, Input, Kind, Request, RerankRequest,
    Sampling, Scores, Source, Usage, Vectors, clock,
};
use crate::telemetry::{ModelLoad, ModelMetrics};

pub use self::adapters::AdapterError;
pub use self::gguf::GgufError;
pub use self::load::{LoadError, Weights};
pub use self::speculate::DraftError;

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
    /// The way to its vectors, or why there is none.
    embedder: Result<Embedder, &'static str>,
    /// Numbers of one vector.
    vector_width: i32,
    kv_capacity: u64,
    #[cfg(test)]
    pooled: bool,
    threads: Arc<Threads>,
    /// Whether a full context is shifted where more tokens are asked for.
    shifts: bool,
    /// For sequences accepted at once: running and waiting.
    places: Places,
    ring: u32,
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
        let mut settings = request.sampling.over(&self.shared.sampling);
        if request.constraint.is_some() {
            // A text that is whole has to end, whatever else was wished.
            settings.ignore_eos = None;
        }
        settings.check().map_err(invalid_sampling)?;
        let adapters = self.adapters.choose(&request.model, &request.adapters)?;
        // Before any work is done for it: a request that finds no place costs nothing.
        let payer = payer(request);
        let mut places = self
            .places(payer, &request.deadlines, request.choices())?
            .into_iter();
        let prompts = self.prompts(&request.inputs).await?;
        let seed = settings
            .seed
            .unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
        let breakers = self.breakers(&settings).await?;
        let guide = match &request.constraint {
            Some(constraint) => Some(self.shared.grammars.guide(constraint).await?),
            None => None,
        };
        // A bound that no clock can show is none.
        let queue_deadline =
            (request.deadlines.queue).and_then(|bound| Some((accepted.checked_add(bound)?, bound)));

        let first_token_due_us = (request.deadlines.first_token)
            .and_then(|bound| u64::try_from(bound.as_micros()).ok())
            .map(|bound| clock::micros().saturating_add(bound));
        let root = self.root(
            &request.caller,
            &AdapterSet::cache_key_of(adapters.as_ref()),
        );
        let mut jobs = Vec::with_capacity(places.len());
        let mut sources: Vec<Box<dyn Source>> = Vec::with_capacity(places.len());
        let mut prompt_tokens = 0u32;
        for prompt in prompts {
            let len = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
            prompt_tokens = prompt_tokens.saturating_add(len);
            let context = self.shared.card.context;
            let space = context.saturating_sub(len);
            let budget = match request.max_tokens {
                Some(most) if self.shifts => most,
                most => most.unwrap_or(space).min(space),
            };
            let mut chained: Vec<Key> = Vec::new();
            chain(&root, &prompt, &mut chained);
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
                if let Some(guide) = &guide {
                    sampler.follow(guide.copy());
                }
                jobs.push(Job {
                    request: request.id.clone(),
                    choice,
                    prompt: prompt.clone(),
                    root,
                    keys: chained.clone(),
                    budget,
                    most: len.saturating_add(budget).min(context),
                    sampler,
                    logprobs: request.logprobs,
                    adapters: adapters.clone(),
                    ring,
                    tenant: payer.tenant.0,
                    weight: payer.weight,
                    class: payer.class,
                    tells_cached: repeat == 0,
                    queue_deadline,
                    first_token_due_us,
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

    #[cfg(test)]
    fn is_pooled(&self) -> bool {
        self.pooled
    }

    /// What the names of a caller's cached blocks begin with: all that their K/V depends on beside the
    /// tokens, and who may see how long they took.
    fn root(&self, caller: &Caller, adapters: &[u8]) -> Root {
        let identity = caller.identity.as_deref().map(str::as_bytes);
        // An empty identity is not the same as none.
        let (known, identity) = (identity.is_some(), identity.unwrap_or_default());
        Root::new(&[
            &*self.shared.model_id,
            adapters,
            &[u8::from(known)],
            identity,
        ])
    }

    /// A place for each choice, or none. Whoever drops them gives them back.
    fn places(
        &self,
        payer: Payer,
        deadlines: &Deadlines,
        choices: usize,
    ) -> Result<Vec<Place>, Failure> {
        let count = u32::try_from(choices).unwrap_or(u32::MAX);
        if count > self.places.limit() {
            // Not a matter of load: it would be refused however long the caller waited.
            let most = self.places.limit();
            return Err(Failure::invalid(
                "n",
                format!(
                    "This model serves at most {most} choices at once; this request is for {count}."
                ),
            ));
        }
        let forecast = self.counters.forecast();
        if self.counters.waiting() > 0 {
            forecast.check(self.places.ahead(payer), deadlines)?;
        }
        self.places.take(payer, count).ok_or_else(|| {
            Failure::new(
                Kind::Overloaded,
                "All sequences of this model are busy and its waiting line is full.",
            )
            .with_code("queue_full")
            .with_retry_after(forecast.retry_after(self.counters.waiting()))
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
        heavy(move || shared.breakers(texts)).await?
    }
}

/// Random in each process: two tenants in one number would share their turn, and nobody can choose a name
/// that has another's.
static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Whom the engine's time is charged to: who the caller is known to be, or else where it calls from. The
/// keys of one organization are tenants of their own: what they may use together is a matter of limits.
fn payer(request: &Request) -> Payer {
    let caller = &request.caller;
    let mut hasher = KEYS.build_hasher();
    match (&caller.identity, caller.address.map(|it| it.to_canonical())) {
        (Some(identity), _) => identity.hash(&mut hasher),
        // A network of one subscriber, who may choose among 2^64 addresses.
        (None, Some(IpAddr::V6(address))) => (address.to_bits() >> 64).hash(&mut hasher),
        (None, address) => address.hash(&mut hasher),
    }
    Payer {
        tenant: TenantId(hasher.finish()),
        weight: request.weight.max(1),
        class: request.class,
    }
}

fn invalid_sampling(error: OutOfRange) -> Failure {
    Failure::invalid(error.field, error.message)
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

    fn embed<'a>(&'a self, request: &'a EmbedRequest) -> BoxFuture<'a, Result<Vectors, Failure>> {
        Box::pin(self.embed_inputs(request))
    }

    fn rerank<'a>(&'a self, request: &'a RerankRequest) -> BoxFuture<'a, Result<Scores, Failure>> {
        Box::pin(self.rank(request))
    }

    fn is_alive(&self) -> bool {
        let join = self.join.lock().unwrap_or_else(PoisonError::into_inner);
        self.stopping.load(Relaxed) || join.as_ref().is_none_or(|join| !join.is_finished())
    }

    fn gauges(&self) -> Gauges {
        let counters = &self.counters;
        let load = ModelLoad {
            running: counters.running.load(Relaxed),
            waiting: counters.waiting(),
            paused: counters.paused.load(Relaxed),
            pauses: counters.pauses.load(Relaxed),
            drafted: counters.drafted.load(Relaxed),
            accepted_drafts: counters.accepted_drafts.load(Relaxed),
            parked: counters.parked.load(Relaxed),
            parks: counters.parks.load(Relaxed),
            moves: counters.moves.load(Relaxed),
            kv_idle: counters.kv_idle.load(Relaxed),
            prefix_bytes: counters.prefix_bytes.load(Relaxed),
            prefix_hits: counters.prefix_hits.load(Relaxed),
            prefix_queries: counters.prefix_queries.load(Relaxed),
            steps: counters.steps.read(),
            kv_used: counters.kv_used.load(Relaxed),
            kv_capacity: self.kv_capacity,
            threads_decode: self.threads.decode.load(Relaxed),
            threads_prefill: self.threads.prefill.load(Relaxed),
        };
        let layout = *(counters.layout.lock()).unwrap_or_else(PoisonError::into_inner);
        Gauges { load, layout }
    }

    fn inspect(&self) -> BoxFuture<'_, Result<EngineView, Failure>> {
        Box::pin(self.look())
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

#[cfg(test)]
mod tests;
