//! A model's name to a ready engine.
//!
//! The set of models is fixed by the configuration; each of them is loading, ready, failed or dead. A
//! lookup takes a read lock for a few nanoseconds, once per request.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::engine::{Engine, Loading, Plan};
use crate::generation::{Burst, Event, Failure, Input, Kind, Request, Sampling, chain};
use crate::telemetry::{Metrics, ModelMetrics};

/// How long a one-token generation may take before a model counts as broken.
const PROBE_TIMEOUT: Duration = Duration::from_mins(2);

/// Where one model stands.
#[derive(Clone)]
enum State {
    Loading,
    Ready(Arc<dyn Engine>),
    Failed(Arc<str>),
    /// It was ready, and its engine ended although nobody stopped it.
    Dead,
}

struct Entry {
    plan: Plan,
    loading: Arc<Loading>,
    state: RwLock<State>,
}

/// All configured models, in the order of the configuration. The first one is the default.
pub struct Registry {
    entries: Vec<Entry>,
}

impl Registry {
    /// A registry whose models are all still to be loaded.
    #[must_use]
    pub fn new(plans: Vec<Plan>) -> Arc<Self> {
        let entries = plans.into_iter().map(|plan| Entry {
            plan,
            loading: Arc::default(),
            state: RwLock::new(State::Loading),
        });
        Arc::new(Self {
            entries: entries.collect(),
        })
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
                Ok(engine) => State::Ready(engine),
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
    /// `NotFound` names the models that there are; `NotReady` while the model loads, if that failed, or
    /// if its engine has died.
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
            State::Dead => Err(Failure::new(
                Kind::NotReady,
                format!(
                    "The engine of {:?} stopped unexpectedly.",
                    entry.plan.name()
                ),
            )
            .with_code("model_failed")),
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
            State::Loading | State::Failed(_) | State::Dead => None,
        });
        engines.collect()
    }

    /// Each model that is not ready, with the reason.
    #[must_use]
    pub fn not_ready(&self) -> Vec<(String, String)> {
        let reasons = self.entries.iter().filter_map(|entry| {
            let reason = match entry.state() {
                State::Ready(_) => return None,
                State::Loading => match entry.loading.percent() {
                    0 => "loading".to_owned(),
                    percent => format!("loading, {percent} %"),
                },
                State::Failed(reason) => reason.to_string(),
                State::Dead => "the engine stopped unexpectedly".to_owned(),
            };
            Some((entry.plan.name().to_owned(), reason))
        });
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

    fn entry(&self, name: &str) -> Option<&Entry> {
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
                if let State::Ready(_) = self.set(State::Dead) {
                    let model = self.plan.name();
                    tracing::error!(model, "the engine stopped unexpectedly");
                }
                State::Dead
            }
            state => state,
        }
    }

    /// Sets the state; returns the one before.
    fn set(&self, state: State) -> State {
        let mut current = self.state.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, state)
    }
}

async fn load(entry: &Entry, metrics: Arc<ModelMetrics>) -> Result<Arc<dyn Engine>, String> {
    let stopped = || Err("loading was stopped".to_owned());
    if entry.loading.is_stopped() {
        return stopped();
    }
    let (plan, loading) = (entry.plan.clone(), entry.loading.clone());
    let engine = tokio::task::spawn_blocking(move || plan.load(&metrics, &loading))
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
    match tokio::time::timeout(PROBE_TIMEOUT, probe(&*engine)).await {
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
    let request = Request {
        max_tokens: Some(1),
        sampling: Sampling {
            temperature: Some(0.0),
            ..Sampling::default()
        },
        ..Request::new(Input::Text("Hello".into()))
    };
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
