//! A model's name to a ready engine.
//!
//! The set of models is fixed by the configuration; each of them is loading, ready, failed, restarting
//! or quarantined. A lookup takes a read lock for a few nanoseconds, once per request. An engine that
//! dies is replaced off the request path ([`Registry::keep`]).

mod deaths;
#[cfg(test)]
mod tests;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument, Span, info_span};

use self::deaths::{Deaths, MOST_DEATHS};
use crate::engine::{Card, Engine, Loading, Plan};
use crate::generation::{Burst, Event, Failure, Input, Kind, Request, Sampling, chain};
use crate::telemetry::{Metrics, ModelMetrics, PROCESS};

/// How long a one-token generation may take before a model counts as broken.
const PROBE_TIMEOUT: Duration = Duration::from_mins(2);

/// How often the engines are looked at. A request that meets a dead one tells of it at once.
const LOOK: Duration = Duration::from_millis(250);

/// Where one model stands.
#[derive(Clone)]
enum State {
    Loading,
    Ready(Arc<dyn Engine>),
    Failed(Arc<str>),
    /// Its engine ended although nobody stopped it; it is being loaded again.
    Restarting,
    /// It ended too often.
    Quarantined(Arc<str>),
}

struct Entry {
    plan: Plan,
    loading: Arc<Loading>,
    state: RwLock<State>,
    /// What was fixed about it when it was last ready.
    card: RwLock<Option<Card>>,
    /// Its engine was found dead.
    died: Notify,
}

/// All configured models, in the order of the configuration. The first one is the default.
pub struct Registry {
    entries: Vec<Arc<Entry>>,
}

impl Registry {
    /// A registry whose models are all still to be loaded.
    #[must_use]
    pub fn new(plans: Vec<Plan>) -> Arc<Self> {
        let entries = plans.into_iter().map(|plan| {
            Arc::new(Entry {
                plan,
                loading: Arc::default(),
                state: RwLock::new(State::Loading),
                card: RwLock::default(),
                died: Notify::new(),
            })
        });
        Arc::new(Self {
            entries: entries.collect(),
        })
    }

    /// Loads again, with a growing pause, whichever model's engine dies; takes one out of service whose
    /// engine does so three times within a minute. Never returns.
    pub async fn keep(&self, metrics: &Metrics) {
        let mut keepers = JoinSet::new();
        for entry in &self.entries {
            let metrics = metrics.model(entry.plan.name()).clone();
            keepers.spawn(keep(entry.clone(), metrics));
        }
        while keepers.join_next().await.is_some() {}
        // Without a model there is nothing to keep.
        std::future::pending::<()>().await;
    }

    /// Loads every model, one after the other, and proves each with a one-token generation. Returns
    /// the first failure after having tried them all.
    ///
    /// # Errors
    /// A sentence that names the model and what is wrong with it.
    pub async fn load(&self, metrics: &Metrics) -> Result<(), String> {
        let mut first = Ok(());
        for entry in &self.entries {
            let name = entry.plan.name();
            let loaded = load(entry, metrics.model(name).clone()).await;
            let state = match loaded {
                Ok(engine) => entry.ready(engine),
                Err(reason) => {
                    let message = format!("model {name:?}: {reason}");
                    if entry.loading.is_stopped() {
                        tracing::info!(model = name, "loading was stopped");
                    } else {
                        tracing::error!(model = name, reason, "the model did not load");
                    }
                    if first.is_ok() {
                        first = Err(message);
                    }
                    State::Failed(reason.into())
                }
            };
            entry.set(state);
        }
        first
    }

    /// The engine that serves `name`; the default model's if `name` is empty. What follows a `?` in
    /// the name of a scripted model, or a `:` in another's (an adapter), is for the engine.
    ///
    /// # Errors
    /// `NotFound` names the models that there are; `NotReady` while the model loads, if that failed, while
    /// a dead engine is replaced, or if that happened too often.
    pub fn engine(&self, name: &str) -> Result<Arc<dyn Engine>, Failure> {
        let entry = self.entry(name).ok_or_else(|| self.unknown(name))?;
        match entry.state() {
            State::Ready(engine) => Ok(engine),
            State::Loading => Err(Failure::new(
                Kind::NotReady,
                format!("The model {:?} is still loading.", entry.plan.name()),
            )
            .with_code("model_loading")
            .with_retry_after(Duration::from_secs(2))),
            State::Failed(_) => Err(Failure::new(
                Kind::NotReady,
                format!("The model {:?} could not be loaded.", entry.plan.name()),
            )
            .with_code("model_failed")),
            State::Restarting => Err(Failure::new(
                Kind::NotReady,
                format!(
                    "The engine of {:?} stopped unexpectedly and is being restarted.",
                    entry.plan.name()
                ),
            )
            .with_code("model_restarting")
            .with_retry_after(Duration::from_secs(2))),
            State::Quarantined(_) => Err(Failure::new(
                Kind::NotReady,
                format!(
                    "The model {:?} is out of service: its engine stopped unexpectedly too often.",
                    entry.plan.name()
                ),
            )
            .with_code("model_quarantined")),
        }
    }

    /// The configured name that a request's `name` means, for labels; `None` for an unknown one.
    #[must_use]
    pub fn configured_name(&self, name: &str) -> Option<&str> {
        self.entry(name).map(|entry| entry.plan.name())
    }

    /// Configured names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.plan.name())
    }

    /// The engines that are ready, in order.
    #[must_use]
    pub fn ready(&self) -> Vec<Arc<dyn Engine>> {
        let engines = self.entries.iter().filter_map(|entry| match entry.state() {
            State::Ready(engine) => Some(engine),
            _ => None,
        });
        engines.collect()
    }

    /// The models that have been ready, in order, each with the engine that serves it now, if one does.
    #[must_use]
    pub fn models(&self) -> Vec<(Card, Option<Arc<dyn Engine>>)> {
        let models = self.entries.iter().filter_map(|entry| {
            let card = entry.card.read().unwrap_or_else(PoisonError::into_inner);
            let engine = match entry.state() {
                State::Ready(engine) => Some(engine),
                _ => None,
            };
            Some((card.clone()?, engine))
        });
        models.collect()
    }

    /// The models that have been ready, in order, each with why it is not so now.
    #[must_use]
    pub fn cards(&self) -> Vec<(Card, Option<String>)> {
        let mut cards = Vec::new();
        for entry in &self.entries {
            let reason = entry.reason();
            let card = entry.card.read().unwrap_or_else(PoisonError::into_inner);
            let Some(card) = card.clone() else {
                continue;
            };
            let adapters = match entry.state() {
                State::Ready(engine) => engine.adapters(),
                _ => Vec::new(),
            };
            cards.push((card.clone(), reason));
            cards.extend(
                adapters
                    .iter()
                    .map(|adapter| (card.with_adapter(adapter), None)),
            );
        }
        cards
    }

    /// Each model that is not ready, with the reason.
    #[must_use]
    pub fn not_ready(&self) -> Vec<(String, String)> {
        let reasons = self
            .entries
            .iter()
            .filter_map(|entry| Some((entry.plan.name().to_owned(), entry.reason()?)));
        reasons.collect()
    }

    /// Ends what is being loaded, stops every engine and waits for its threads.
    pub async fn stop(&self) {
        for entry in &self.entries {
            entry.loading.stop();
        }
        for engine in self.ready() {
            engine.stop().await;
        }
    }

    fn entry(&self, name: &str) -> Option<&Arc<Entry>> {
        if name.is_empty() {
            return self.entries.first();
        }
        let is = |wanted: &str| {
            self.entries
                .iter()
                .find(|entry| entry.plan.name() == wanted)
        };
        is(name).or_else(|| {
            if let Some((base, _)) = name.split_once(':') {
                return is(base).filter(|entry| !entry.plan.is_scripted());
            }
            let (base, _) = name.split_once('?')?;
            is(base).filter(|entry| entry.plan.is_scripted())
        })
    }

    fn unknown(&self, name: &str) -> Failure {
        let names: Vec<_> = self.names().collect();
        let shown: String = name.chars().take(100).collect();
        Failure::new(
            Kind::NotFound,
            format!(
                "The model {shown:?} does not exist; there is {}.",
                names.join(", ")
            ),
        )
        .with_param("model")
        .with_code("model_not_found")
    }
}

impl Entry {
    /// Where the model stands. An engine that has died is noticed here, and reported once.
    fn state(&self) -> State {
        let state = self
            .state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match state {
            State::Ready(engine) if !engine.is_alive() => {
                if let State::Ready(_) = self.set(State::Restarting) {
                    let model = self.plan.name();
                    tracing::error!(model, "the engine stopped unexpectedly");
                    self.died.notify_one();
                }
                State::Restarting
            }
            state => state,
        }
    }

    /// Why the model is not ready, for operators.
    fn reason(&self) -> Option<String> {
        match self.state() {
            State::Ready(_) => None,
            State::Loading => Some(match self.loading.percent() {
                0 => "loading".to_owned(),
                percent => format!("loading, {percent} %"),
            }),
            State::Failed(reason) => Some(reason.to_string()),
            State::Restarting => {
                Some("the engine stopped unexpectedly and is being restarted".to_owned())
            }
            State::Quarantined(reason) => Some(format!("quarantined: {reason}")),
        }
    }

    /// The state of a model that can be used from now on.
    fn ready(&self, engine: Arc<dyn Engine>) -> State {
        let mut card = self.card.write().unwrap_or_else(PoisonError::into_inner);
        *card = Some(engine.card().clone());
        State::Ready(engine)
    }

    /// Sets the state; returns the one before.
    fn set(&self, state: State) -> State {
        let mut current = self.state.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, state)
    }
}

/// Loads one model again as often as its engine dies, until it is quarantined.
async fn keep(entry: Arc<Entry>, metrics: Arc<ModelMetrics>) {
    let model = entry.plan.name();
    let mut deaths = Deaths::default();
    loop {
        tokio::select! {
            () = entry.died.notified() => {}
            () = tokio::time::sleep(LOOK) => {
                entry.state();
                continue;
            }
        }
        loop {
            metrics.engine_died();
            let Some(pause) = deaths.another(Instant::now()) else {
                let reason = format!("its engine stopped {MOST_DEATHS} times within a minute");
                tracing::error!(model, reason, "the model is quarantined");
                entry.set(State::Quarantined(reason.into()));
                return;
            };
            tokio::time::sleep(pause).await;
            let again = info_span!(target: PROCESS, "replace engine", model);
            match load(&entry, metrics.clone()).instrument(again).await {
                Ok(engine) => {
                    metrics.engine_reloaded();
                    tracing::info!(model, "the model was loaded again");
                    let ready = entry.ready(engine);
                    entry.set(ready);
                    break;
                }
                Err(_) if entry.loading.is_stopped() => return,
                // It counts as another death: what cannot be loaded is not tried for ever.
                Err(reason) => tracing::error!(model, reason, "the model did not load again"),
            }
        }
    }
}

async fn load(entry: &Entry, metrics: Arc<ModelMetrics>) -> Result<Arc<dyn Engine>, String> {
    let model = entry.plan.name();
    let span = info_span!(target: PROCESS, "load model", model, otel.status_description = Empty);
    let loaded = load_now(entry, metrics).instrument(span.clone()).await;
    if let Err(reason) = &loaded {
        span.record("otel.status_description", reason);
    }
    loaded
}

async fn load_now(entry: &Entry, metrics: Arc<ModelMetrics>) -> Result<Arc<dyn Engine>, String> {
    let stopped = || Err("loading was stopped".to_owned());
    if entry.loading.is_stopped() {
        return stopped();
    }
    let (plan, loading) = (entry.plan.clone(), entry.loading.clone());
    let span = Span::current();
    let engine =
        tokio::task::spawn_blocking(move || span.in_scope(|| plan.load(&metrics, &loading)))
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| chain(&error))?;
    if entry.loading.is_stopped() {
        // It came too late for `Registry::stop` to see it.
        engine.stop().await;
        return stopped();
    }
    if entry.plan.is_scripted() {
        // A script has nothing that could be broken, and may well be there to play a failure.
        return Ok(engine);
    }
    let probed = probe(&*engine).instrument(info_span!(target: PROCESS, "warm up"));
    match tokio::time::timeout(PROBE_TIMEOUT, probed).await {
        Ok(Ok(())) => Ok(engine),
        Ok(Err(failure)) => Err(format!("a test generation failed: {}", chain(&failure))),
        Err(_) => Err(format!(
            "a test generation took longer than {}",
            humantime::format_duration(PROBE_TIMEOUT)
        )),
    }
}

/// Generates one real token.
async fn probe(engine: &dyn Engine) -> Result<(), Failure> {
    let request = one_token();
    let mut started = engine.start(&request).await?;
    let Some(source) = started.sources.first_mut() else {
        return Err(Failure::internal("the engine started nothing"));
    };
    let mut burst = Burst::new();
    loop {
        burst.clear();
        std::future::poll_fn(|cx| source.poll_fill(cx, &mut burst)).await;
        for event in burst.events() {
            match event {
                Event::Finish { .. } => return Ok(()),
                Event::Failed(failure) => return Err(failure.clone()),
                Event::Text { .. } | Event::End(_) => {}
            }
        }
    }
}

fn one_token() -> Request {
    Request {
        max_tokens: Some(1),
        sampling: Sampling {
            temperature: Some(0.0),
            ..Sampling::default()
        },
        ..Request::new(Input::Text("Hello".into()))
    }
}
