//! The story of a request, on one page: admit, route, start, guard the stream.
//!
//! The gateway knows no HTTP, no dialect and no model file. Every transport calls the same few
//! functions, in the order in which they stand here.

mod callers;
mod limits;
pub mod settings;
mod vectors;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use self::settings::Patience;
use crate::auth::Callers;
use crate::engine::{Card, Engine, TokenizeOptions};
use crate::generation::{
    self, Caller, Failure, Input, Kind, Opening, Request, RequestId, Scopes, TokenStream, Trace,
    Watch, clock,
};
use crate::limit::Limiter;
use crate::limit::config::Limits;
use crate::route::Registry;
use crate::telemetry::{Metrics, RequestRecorder, Route};

/// When to come back to a server that is shutting down: by then another has taken over.
const DRAIN_RETRY_AFTER: Duration = Duration::from_secs(5);

/// When to come back after all streams were taken.
const FULL_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Where the process stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Serving.
    Open,
    /// Told to stop: not ready any more, but new work is still taken while balancers notice.
    Leaving,
    /// New work is refused; streams run on to the drain's deadline.
    Closed,
    /// The deadline has passed: what is not a stream yet will not become one.
    Over,
}

/// What a gateway is put together from.
pub struct Parts {
    /// Finds the engine of a model.
    pub registry: Arc<Registry>,
    /// Keeps deadlines. [`Watch::run`] must be driven for that.
    pub watch: Arc<Watch>,
    /// Where requests are counted.
    pub metrics: Arc<Metrics>,
    /// Who is believed now; replaced by [`Gateway::set_callers`].
    pub callers: ArcSwap<Callers>,
    /// How much each caller may use. [`Limiter::run`] must be driven, for idle ones to be forgotten.
    pub limiter: Arc<Limiter>,
}

/// Takes requests, gives streams.
pub struct Gateway {
    parts: Parts,
    streams: Arc<Semaphore>,
    most_streams: u32,
    patience: ArcSwap<Patience>,
    /// Told after the callers were replaced.
    callers_changed: Notify,
    phase: AtomicU8,
    /// Cancelled with [`Phase::Over`], for what is no stream that could be cut.
    over: CancellationToken,
}

impl Gateway {
    /// A gateway made of these parts.
    #[must_use]
    pub fn new(parts: Parts, patience: Patience, limits: &Limits) -> Arc<Self> {
        let most_streams = limits.max_streams.get();
        let permits = usize::try_from(most_streams).unwrap_or(usize::MAX);
        Arc::new(Self {
            callers_changed: Notify::new(),
            parts,
            streams: Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS))),
            most_streams,
            patience: ArcSwap::from_pointee(patience),
            phase: AtomicU8::new(0),
            over: CancellationToken::new(),
        })
    }

    /// What holds for streams that begin now.
    #[must_use]
    pub fn patience(&self) -> Guard<Arc<Patience>> {
        self.patience.load()
    }

    /// From now on streams begin with this.
    pub fn set_patience(&self, patience: Patience) {
        self.patience.store(Arc::new(patience));
    }

    /// Starts a generation.
    ///
    /// # Errors
    /// Every refusal, already counted: draining, too many streams, an unknown or unready model, a
    /// request that the model cannot serve, a full waiting line.
    pub async fn generate(&self, request: Request, route: Route) -> Result<TokenStream, Failure> {
        // Counts the request however it ends; dropped untold, as a caller who left.
        let trace = &request.caller.trace;
        let recorder = Arc::new(self.recorder(&request.model, route, &request.id, trace));
        let result = self.start(request, route, recorder.clone()).await;
        if let Err(failure) = &result {
            recorder.refused(failure);
        }
        result
    }

    async fn start(
        &self,
        mut request: Request,
        route: Route,
        recorder: Arc<RequestRecorder>,
    ) -> Result<TokenStream, Failure> {
        let accepted_at = clock::task_micros();
        let permit = self.admit(&request.caller, Scopes::GENERATE, &request.model)?;
        let engine = self.parts.registry.engine(&request.model)?;
        let admission = self.limit(&request, engine.card().context).await?;
        request.weight = admission.weight();
        request.class = admission.urgency(request.class);
        request.deadlines = request
            .deadlines
            .tightest((&self.patience().deadlines).into());
        let started = within(&request.deadlines, engine.start(&request)).await?;
        if self.phase() == Phase::Over {
            return Err(draining());
        }
        admission.began(started.usage.prompt_tokens);
        recorder.handed_over();
        let opening = Opening {
            id: request.id,
            owner: request.caller.identity.clone(),
            model: engine.card().name.clone(),
            route: route.as_str(),
            accepted_at,
            usage: started.usage,
            deterministic: engine.card().deterministic,
            deadlines: request.deadlines,
            stall_timeout: self.patience().stall_timeout,
            recorder,
            permits: vec![Box::new(permit)],
            meter: Some(admission.into_meter()),
        };
        let stream = TokenStream::open(&self.parts.watch, opening, started.sources);
        // Whoever lost their key while it was prepared is not among those whose streams were ended.
        if let Some(ended) = self.ended(&request.caller) {
            stream.cut(ended);
        }
        Ok(stream)
    }

    /// What counts a request that needs no stream. It must be told how the request ended; dropped
    /// untold, it counts a caller who left.
    #[must_use]
    pub fn recorder(
        &self,
        model: &str,
        route: Route,
        id: &RequestId,
        trace: &Trace,
    ) -> RequestRecorder {
        let name = self
            .parts
            .registry
            .configured_name(model)
            .unwrap_or_default();
        let model = self.parts.metrics.model(name).clone();
        RequestRecorder::new(model, route, id.clone(), trace.clone())
    }

    /// A place for a stream, for a caller who may have it.
    fn admit(
        &self,
        caller: &Caller,
        scope: Scopes,
        model: &str,
    ) -> Result<OwnedSemaphorePermit, Failure> {
        if self.is_closed() {
            return Err(draining().with_retry_after(DRAIN_RETRY_AFTER));
        }
        self.permit(caller, scope, model)?;
        self.streams.clone().try_acquire_owned().map_err(|_| {
            Failure::new(Kind::Overloaded, "All streams of this server are taken.")
                .with_code("too_many_streams")
                .with_retry_after(FULL_RETRY_AFTER)
        })
    }

    /// Cancels the caller's open streams with this request id; returns how many there were.
    #[must_use]
    pub fn cancel(&self, id: &RequestId, caller: &Caller) -> usize {
        let failure = Failure::new(Kind::Cancelled, "The request was cancelled by its id.");
        self.parts
            .watch
            .cancel(id, caller.identity.as_deref(), &failure)
    }

    /// The models that have been ready and that the caller may use, each with its adapters behind it, and
    /// with why it cannot be used now, if so.
    #[must_use]
    pub fn models(&self, caller: &Caller) -> Vec<(Card, Option<String>)> {
        let mut cards = self.parts.registry.cards();
        cards.retain(|(card, _)| self.may_use(caller, &card.name));
        cards
    }

    /// The name under which a request for `model` is served; empty means the default model.
    #[must_use]
    pub fn served_name(&self, model: &str) -> String {
        if model.is_empty() {
            self.parts
                .registry
                .names()
                .next()
                .unwrap_or_default()
                .to_owned()
        } else {
            model.to_owned()
        }
    }

    /// The tokens of an input, as the model sees them.
    ///
    /// # Errors
    /// As [`Gateway::generate`], but for what concerns streams.
    pub async fn tokenize(
        &self,
        caller: &Caller,
        model: &str,
        input: &Input,
        options: TokenizeOptions,
    ) -> Result<Vec<u32>, Failure> {
        let engine = self.engine(caller, model)?;
        let _admission = self.limit_count(caller, model).await?;
        engine.tokenize(input, options).await
    }

    /// The text of some tokens, token by token.
    ///
    /// # Errors
    /// As [`Gateway::pieces`] and [`Gateway::tokenize`].
    pub async fn detokenize(
        &self,
        caller: &Caller,
        model: &str,
        tokens: &[u32],
    ) -> Result<Vec<Vec<u8>>, Failure> {
        self.engine(caller, model)?;
        let _admission = self.limit_count(caller, model).await?;
        self.pieces(caller, model, tokens).await
    }

    /// The bytes of each token, as a part of an answer that is counted already.
    ///
    /// # Errors
    /// `Invalid` for an id outside the vocabulary, and for want of a right or a model.
    pub async fn pieces(
        &self,
        caller: &Caller,
        model: &str,
        tokens: &[u32],
    ) -> Result<Vec<Vec<u8>>, Failure> {
        self.engine(caller, model)?.pieces(tokens).await
    }

    fn engine(&self, caller: &Caller, model: &str) -> Result<Arc<dyn Engine>, Failure> {
        if self.is_closed() {
            return Err(draining().with_retry_after(DRAIN_RETRY_AFTER));
        }
        self.permit(caller, Scopes::GENERATE, model)?;
        self.parts.registry.engine(model)
    }

    /// Whether a balancer should send work here; if not, why.
    ///
    /// # Errors
    /// One line per reason.
    pub fn readiness(&self) -> Result<(), Vec<String>> {
        let mut reasons = Vec::new();
        if self.phase() != Phase::Open {
            reasons.push("draining".to_owned());
        }
        for (model, reason) in self.parts.registry.not_ready() {
            reasons.push(format!("model {model}: {reason}"));
        }
        if reasons.is_empty() {
            Ok(())
        } else {
            Err(reasons)
        }
    }

    /// Open streams.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.parts.watch.open_streams()
    }

    /// The current phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.phase.load(SeqCst) {
            0 => Phase::Open,
            1 => Phase::Leaving,
            2 => Phase::Closed,
            _ => Phase::Over,
        }
    }

    /// Whether new work is refused.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.phase(), Phase::Closed | Phase::Over)
    }

    /// Goes on to a later phase.
    pub fn enter(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, SeqCst);
        if phase == Phase::Over {
            self.over.cancel();
        }
    }

    /// Ends the open streams with an error and lets no more begin; returns how many there were.
    pub fn end_streams(&self) -> usize {
        self.enter(Phase::Over);
        self.parts.watch.cut_all(&draining())
    }

    /// Waits up to `timeout` for the open streams to end, then ends the rest with an error; returns
    /// how many those were.
    pub async fn finish_streams(&self, timeout: Duration) -> usize {
        // Every request holds a permit from its admission to the end of its stream.
        let all = self.streams.acquire_many(self.most_streams);
        if tokio::time::timeout(timeout, all).await.is_ok() {
            return 0;
        }
        self.end_streams()
    }
}

/// Bounds the time until a request is accepted by its engine, which tokenizes it first; the rest of
/// its deadlines are the watch's.
async fn within<T>(
    deadlines: &generation::Deadlines,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let bounds = [deadlines.queue, deadlines.first_token, deadlines.total];
    let Some(bound) = bounds.into_iter().flatten().min() else {
        return work.await;
    };
    tokio::time::timeout(bound, work).await.unwrap_or_else(|_| {
        let bound = humantime::format_duration(bound);
        Err(Failure::new(
            Kind::Deadline,
            format!("The request could not be prepared within {bound}."),
        ))
    })
}

fn draining() -> Failure {
    Failure::new(Kind::Draining, "The server is shutting down.").with_code("server_draining")
}
