//! Exact tokens at exact times, with faults on demand.
//!
//! A real engine in the release binary: tests, demos and load tests need no model for what is not
//! about models. It has no thread: a source computes the tokens that are due when it is asked, so a
//! million a second cost nothing but their delivery. It still keeps the contract of an outlet: a
//! reader that stays away longer than a ring of tokens finds the script paused, not run ahead.
//!
//! The script comes from the configuration, and a request can change it through the model's name:
//! `scripted?tokens=100&pace=20ms&fail_at=7`.

mod play;
mod slots;
mod vectors;

use std::pin::Pin;
use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Relaxed},
};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use self::play::{Play, changed};
use self::slots::{Slot, Slots};
use super::config::Script;
use super::history::History;
use super::text::{Flow, TextAssembler};
use super::{Card, Engine, EngineView, Gauges, Layout, Started, TokenizeOptions};
use crate::generation::{
    BoxFuture, Burst, Cancel, EmbedRequest, Failure, Finish, Happened, Input, Kind, Moment, Queued,
    Request, RerankRequest, Scores, Source, Usage, Vectors, clock,
};
use crate::telemetry::ModelLoad;

/// Most tokens a script may play.
const MAX_TOKENS: u32 = Script::MAX_TOKENS;

/// Longer than any request is let run.
const NEVER: Duration = Duration::from_hours(24 * 365);

/// Bytes are the vocabulary: token `b` of a prompt is the byte `b`.
const VOCABULARY: u32 = 256;

/// A model that plays a script.
pub struct ScriptedEngine {
    card: Card,
    script: Script,
    ring: u32,
    counters: Arc<Counters>,
    /// Where the script plays for so many at a time only.
    slots: Option<Arc<Slots>>,
    /// Cancelled when a script makes the engine die.
    death: CancellationToken,
}

#[derive(Debug, Default)]
struct Counters {
    running: AtomicU32,
    pauses: AtomicU64,
}

impl ScriptedEngine {
    /// A model called `name`. `ring` is how many tokens may be due before the script waits for the
    /// reader.
    #[must_use]
    pub fn new(name: &str, script: Script, ring: usize) -> Self {
        Self {
            card: Card {
                name: name.into(),
                created: clock::unix_seconds(),
                context: MAX_TOKENS,
                vocabulary: VOCABULARY,
                context_trained: None,
                parameters: None,
                bytes: None,
                parent: None,
                deterministic: true,
            },
            slots: script
                .slots
                .map(|slots| Slots::new(slots.get(), script.waiting)),
            script,
            ring: u32::try_from(ring).unwrap_or(u32::MAX),
            counters: Arc::default(),
            death: CancellationToken::new(),
        }
    }

    /// The script, with the changes that a model's name asks for.
    fn script(&self, model: &str) -> Result<Script, Failure> {
        match model.split_once('?') {
            Some((_, changes)) => changed(&self.script, changes),
            None => Ok(self.script.clone()),
        }
    }

    async fn vectors(&self, request: &EmbedRequest) -> Result<Vectors, Failure> {
        let play = Play::new(self.script(&request.model)?, None);
        let (mut numbers, mut tokens) = (Vec::new(), 0);
        for (at, input) in request.inputs.iter().enumerate() {
            let place = |failure: Failure| failure.with_param(format!("input[{at}]"));
            // Tokens are bytes here.
            let bytes: Vec<u8> = bytes_of(input)
                .map_err(place)?
                .into_iter()
                .map(|token| u8::try_from(token).unwrap_or(u8::MAX))
                .collect();
            tokens += bytes.len();
            vectors::push(&bytes, &mut numbers);
        }
        vectors::play(&play).await?;
        Vectors::finish(numbers, vectors::WIDTH, read(tokens), request)
    }

    async fn scores(&self, request: &RerankRequest) -> Result<Scores, Failure> {
        let play = Play::new(self.script(&request.model)?, None);
        let query = request.query.as_bytes();
        let documents = request.documents.iter();
        let scores = documents
            .clone()
            .map(|document| vectors::score(query, document.as_bytes()))
            .collect();
        let tokens = documents.map(|document| query.len() + document.len()).sum();
        vectors::play(&play).await?;
        Scores::finish(scores, read(tokens))
    }

    fn play(&self, request: &Request) -> Result<Started, Failure> {
        if !self.is_alive() {
            return Err(dead());
        }
        let script = self.script(&request.model)?;
        if request.logprobs.is_some() {
            return Err(Failure::invalid(
                "logprobs",
                "A scripted model has no log-probabilities.",
            ));
        }
        if let Some(constraint) = &request.constraint {
            return Err(Failure::invalid(
                constraint.field,
                "A scripted model says what its script says: it follows no schema or grammar.",
            ));
        }
        if !request.adapters.is_empty() {
            return Err(super::no_adapters());
        }
        let mut prompt_tokens = 0u32;
        for input in &request.inputs {
            let tokens = bytes_of(input)?.len();
            prompt_tokens = prompt_tokens.saturating_add(u32::try_from(tokens).unwrap_or(u32::MAX));
        }
        let mut slots = match &self.slots {
            Some(slots) => slots
                .take(request.choices(), &request.deadlines)?
                .into_iter(),
            None => Vec::new().into_iter(),
        };
        let script = Arc::new(Play::new(script, request.max_tokens));
        let started = Instant::now();
        let sources = (0..request.choices()).map(|choice| {
            let running = Running::new(&self.counters, slots.next());
            if self.slots.is_none() {
                running.note(started, Moment::Admitted);
            }
            Box::new(ScriptedSource {
                play: script.clone(),
                choice: u32::try_from(choice).unwrap_or(u32::MAX),
                next: 0,
                base: started,
                is_waiting: self.slots.is_some(),
                queue: request.deadlines.queue,
                ring: self.ring,
                text: TextAssembler::new(&request.stop),
                sleep: None,
                running,
                death: self.death.clone(),
                died: Box::pin(self.death.clone().cancelled_owned()),
            }) as Box<dyn Source>
        });
        Ok(Started {
            usage: Usage {
                prompt_tokens,
                ..Usage::default()
            },
            sources: sources.collect(),
        })
    }
}

impl Engine for ScriptedEngine {
    fn card(&self) -> &Card {
        &self.card
    }

    fn start<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Started, Failure>> {
        Box::pin(std::future::ready(self.play(request)))
    }

    fn tokenize<'a>(
        &'a self,
        input: &'a Input,
        _: TokenizeOptions,
    ) -> BoxFuture<'a, Result<Vec<u32>, Failure>> {
        Box::pin(std::future::ready(bytes_of(input)))
    }

    fn pieces<'a>(&'a self, tokens: &'a [u32]) -> BoxFuture<'a, Result<Vec<Vec<u8>>, Failure>> {
        let piece = |&token: &u32| match u8::try_from(token) {
            Ok(byte) => Ok(vec![byte]),
            Err(_) => Err(outside(token)),
        };
        Box::pin(std::future::ready(tokens.iter().map(piece).collect()))
    }

    fn embed<'a>(&'a self, request: &'a EmbedRequest) -> BoxFuture<'a, Result<Vectors, Failure>> {
        Box::pin(self.vectors(request))
    }

    fn rerank<'a>(&'a self, request: &'a RerankRequest) -> BoxFuture<'a, Result<Scores, Failure>> {
        Box::pin(self.scores(request))
    }

    fn is_alive(&self) -> bool {
        !self.death.is_cancelled()
    }

    fn gauges(&self) -> Gauges {
        let waiting = self.slots.as_ref().map_or(0, |slots| slots.waiting());
        let waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
        let load = ModelLoad {
            running: self.counters.running.load(Relaxed).saturating_sub(waiting),
            waiting,
            pauses: self.counters.pauses.load(Relaxed),
            ..ModelLoad::default()
        };
        let layout = Layout::default();
        Gauges { load, layout }
    }

    fn inspect(&self) -> BoxFuture<'_, Result<EngineView, Failure>> {
        // There are no steps: figures are all that a script has.
        let load = self.gauges().load;
        let view = EngineView {
            more_sequences: load.running,
            more_in_line: load.waiting,
            load,
            ..EngineView::default()
        };
        Box::pin(std::future::ready(Ok(view)))
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

fn dead() -> Failure {
    Failure::internal("the script says that the engine dies here")
}

/// The usage of a request that only reads.
fn read(tokens: usize) -> Usage {
    Usage {
        prompt_tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
        ..Usage::default()
    }
}

fn bytes_of(input: &Input) -> Result<Vec<u32>, Failure> {
    let widen = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    match input {
        Input::Text(text) => Ok(widen(text)),
        Input::Chat(messages) => Ok(messages.iter().flat_map(|m| widen(&m.content)).collect()),
        Input::Tokens(tokens) => match tokens.iter().find(|&&token| token >= VOCABULARY) {
            Some(&token) => Err(outside(token)),
            None => Ok(tokens.clone()),
        },
    }
}

fn outside(token: u32) -> Failure {
    Failure::invalid(
        "prompt",
        format!("Token {token} is outside the vocabulary of {VOCABULARY} tokens."),
    )
}

/// Counts a source as running until it ends or is cancelled, whichever is first.
struct Running {
    counters: Arc<Counters>,
    ended: AtomicBool,
    /// Given back with the end.
    slot: Mutex<Option<Slot>>,
    history: History,
}

impl Running {
    fn new(counters: &Arc<Counters>, slot: Option<Slot>) -> Arc<Self> {
        counters.running.fetch_add(1, Relaxed);
        Arc::new(Self {
            counters: counters.clone(),
            ended: AtomicBool::new(false),
            slot: Mutex::new(slot),
            history: History::default(),
        })
    }

    /// Ready when it is this one's turn, or it will never be.
    fn poll_begun(&self, cx: &Context<'_>) -> Poll<()> {
        let slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        slot.as_ref()
            .map_or(Poll::Ready(()), |slot| slot.poll_begun(cx))
    }

    fn note(&self, at: Instant, moment: Moment) {
        self.history.note(clock::micros_of(at.into_std()), moment);
    }

    fn queued(&self) -> Option<Queued> {
        let slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        slot.as_ref()?.queued()
    }
}

impl Cancel for Running {
    fn cancel(&self) {
        if !self.ended.swap(true, AcqRel) {
            self.counters.running.fetch_sub(1, Relaxed);
            let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
            drop(slot.take());
        }
    }

    fn moments(&self, seen: u32, tell: &mut dyn FnMut(u64, Moment)) -> Happened {
        self.history.tell(seen, tell)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel();
    }
}

struct ScriptedSource {
    play: Arc<Play>,
    choice: u32,
    next: u32,
    /// The start, moved later by every pause.
    base: Instant,
    /// It may not be its turn yet.
    is_waiting: bool,
    /// How long it may wait for that.
    queue: Option<Duration>,
    ring: u32,
    text: TextAssembler,
    sleep: Option<Pin<Box<Sleep>>>,
    running: Arc<Running>,
    /// Ends every stream of the engine.
    death: CancellationToken,
    died: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl ScriptedSource {
    /// When token `index` is due. A time that no clock can show is as good as never.
    fn due(&self, index: u32) -> Instant {
        let due = self.play.due(index);
        self.base
            .checked_add(due)
            .unwrap_or_else(|| self.base + NEVER)
    }

    /// Waits for its turn, from which the script's times count. Ready with a failure when that takes too
    /// long.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if self.running.poll_begun(cx).is_ready() {
            self.is_waiting = false;
            self.base = Instant::now();
            self.running.note(self.base, Moment::Admitted);
            self.sleep = None;
            return Poll::Ready(Ok(()));
        }
        let Some(bound) = self.queue else {
            return Poll::Pending;
        };
        let Some(until) = self.base.checked_add(bound) else {
            return Poll::Pending;
        };
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        ready!(sleep.as_mut().poll(cx));
        self.running.cancel();
        let bound = humantime::format_duration(bound);
        Poll::Ready(Err(Failure::new(
            Kind::Deadline,
            format!("The request waited longer than {bound} for a free slot."),
        )
        .with_code("queue_timeout")))
    }

    /// A reader that was away while more than a ring of tokens came due: the script waited for it.
    fn hold_back(&mut self, now: Instant) {
        if self.play.pace.is_zero() {
            return;
        }
        let full = self.due(self.next.saturating_add(self.ring));
        let late = now.saturating_duration_since(full);
        if !late.is_zero() {
            self.base += late;
            self.running.note(full, Moment::Paused);
            self.running.note(now, Moment::Resumed);
            self.running.counters.pauses.fetch_add(1, Relaxed);
        }
    }

    fn token(&mut self, burst: &mut Burst, at: u64) -> Flow {
        burst.token(self.choice, at, self.play.token_bytes);
        let from = burst.buffer().len();
        let mut flow = Flow::Goes;
        let (play, text) = (&self.play, &mut self.text);
        play.bytes(self.next, |bytes| {
            if flow == Flow::Goes {
                flow = text.push(bytes, burst.buffer());
            }
        });
        self.next += 1;
        burst.text(self.choice, from, burst.scored_mark());
        flow
    }

    fn end(&mut self, burst: &mut Burst, reason: Finish) {
        let from = burst.buffer().len();
        self.text.finish(burst.buffer());
        burst.text(self.choice, from, burst.scored_mark());
        burst.finish(self.choice, reason);
    }
}

impl Source for ScriptedSource {
    fn poll_fill(&mut self, cx: &mut Context<'_>, burst: &mut Burst) -> Poll<()> {
        if self.died.as_mut().poll(cx).is_ready() {
            burst.failed(dead());
            return Poll::Ready(());
        }
        if self.is_waiting
            && let Err(failure) = ready!(self.poll_turn(cx))
        {
            burst.failed(failure);
            return Poll::Ready(());
        }
        if let Some(sleep) = &mut self.sleep {
            ready!(sleep.as_mut().poll(cx));
        }
        let now = Instant::now();
        self.hold_back(now);
        let mut took = false;
        while burst.room() > 0 {
            if let Some((at, kind)) = self.play.fail
                && self.next >= at
                && self.due(self.next) <= now
            {
                burst.failed(Failure::new(kind, "The script says that this fails here."));
                return Poll::Ready(());
            }
            if self.play.die.is_some_and(|at| self.next >= at) && self.due(self.next) <= now {
                self.death.cancel();
                burst.failed(dead());
                return Poll::Ready(());
            }
            if self.next >= self.play.tokens {
                self.end(burst, self.play.finish);
                return Poll::Ready(());
            }
            let due = self.due(self.next);
            if due > now {
                if took {
                    break;
                }
                // The task is woken at the time of the token itself: nothing is due before it.
                let sleep = self
                    .sleep
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
                sleep.as_mut().reset(due);
                ready!(sleep.as_mut().poll(cx));
            }
            took = true;
            // Without a pace, all tokens are due at the start; they are made now.
            let at = if self.play.pace.is_zero() { now } else { due };
            if self.next == 0 {
                self.running.note(due, Moment::Prefilled);
            }
            if self.token(burst, clock::micros_of(at.into_std())) == Flow::Stopped {
                burst.finish(self.choice, Finish::Stop);
                return Poll::Ready(());
            }
        }
        Poll::Ready(())
    }

    fn end_here(&mut self, burst: &mut Burst) {
        self.end(burst, Finish::Length);
    }

    fn queued(&self) -> Option<Queued> {
        self.is_waiting.then(|| self.running.queued())?
    }

    fn canceller(&self) -> Arc<dyn Cancel> {
        self.running.clone()
    }
}

#[cfg(test)]
mod tests;
