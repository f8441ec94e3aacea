//! What of a stream is seen and done from outside its task: by the watch, and by whoever looks.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use atomic_waker::AtomicWaker;

use super::live::{Live, Stage};
use super::{
    Cancel, Deadlines, Failure, Finish, Kind, Meter, Moment, Opening, Outcome, Permit, Record,
    Recorder, RequestId, Timeline, Usage, Waits, clock,
};

/// A reader that leaves what it was handed for longer than this is noted: a quarter of a second is what a
/// person sees.
const STALL_US: u64 = 250_000;

/// What a stream holds until it ends.
struct Ledger {
    recorder: Arc<dyn Recorder>,
    cancels: Vec<Arc<dyn Cancel>>,
    permits: Vec<Permit>,
}

/// What the watch may see of a stream, and do to it, from outside its task.
pub(super) struct Shared {
    pub(super) id: RequestId,
    pub(super) owner: Option<Arc<str>>,
    model: Arc<str>,
    route: &'static str,
    pub(super) accepted_at: u64,
    usage: Usage,
    pub(super) deterministic: bool,
    deadlines: Deadlines,
    stall_timeout: Duration,
    pub(super) waker: AtomicWaker,
    pub(super) cut: OnceLock<Failure>,
    /// When the reader was last handed something and has not come back since; 0 while it waits.
    pub(super) handed_at: AtomicU64,
    /// When the reader last came back for more.
    pub(super) asked_at: AtomicU64,
    /// How long it had left what it was handed by then, in all, and how often that was long.
    stalled_us: AtomicU64,
    stalls: AtomicU32,
    pub(super) first_at: AtomicU64,
    pub(super) last_at: AtomicU64,
    pub(super) tokens: AtomicU32,
    pub(super) cached: AtomicU32,
    pub(super) max_gap: AtomicU32,
    /// Taken once a burst, by the stream alone while nobody ends it from outside.
    timeline: Mutex<Timeline>,
    pub(super) meter: Option<Arc<dyn Meter>>,
    ledger: Mutex<Option<Ledger>>,
}

impl Shared {
    /// What is shared of a stream that opens now.
    pub(super) fn open(opening: Opening, cancels: Vec<Arc<dyn Cancel>>) -> Arc<Self> {
        Arc::new(Self {
            id: opening.id,
            owner: opening.owner,
            model: opening.model,
            route: opening.route,
            accepted_at: opening.accepted_at,
            usage: opening.usage,
            deterministic: opening.deterministic,
            deadlines: opening.deadlines,
            stall_timeout: opening.stall_timeout,
            waker: AtomicWaker::new(),
            cut: OnceLock::new(),
            handed_at: AtomicU64::new(0),
            asked_at: AtomicU64::new(0),
            stalled_us: AtomicU64::new(0),
            stalls: AtomicU32::new(0),
            first_at: AtomicU64::new(0),
            last_at: AtomicU64::new(0),
            tokens: AtomicU32::new(0),
            cached: AtomicU32::new(opening.usage.cached_tokens),
            max_gap: AtomicU32::new(0),
            timeline: Mutex::default(),
            meter: opening.meter,
            ledger: Mutex::new(Some(Ledger {
                recorder: opening.recorder,
                cancels,
                permits: opening.permits,
            })),
        })
    }

    pub(super) fn timeline(&self) -> MutexGuard<'_, Timeline> {
        self.timeline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn usage(&self) -> Usage {
        Usage {
            completion_tokens: self.tokens.load(Relaxed),
            cached_tokens: self.cached.load(Relaxed),
            ..self.usage
        }
    }

    /// The reader comes at `now` for more than it was handed before.
    pub(super) fn came_back(&self, handed: u64, now: u64) {
        let away = now.saturating_sub(handed);
        // Only the stream writes these, until it is ended.
        let stalled = self.stalled_us.load(Relaxed).saturating_add(away);
        self.stalled_us.store(stalled, Relaxed);
        if away > STALL_US {
            self.stalls.fetch_add(1, Relaxed);
            self.timeline().moment(handed, Moment::Stalled(away));
        }
    }

    /// The failure that is due at `now`, if any.
    pub(super) fn overdue(&self, now: u64) -> Option<Failure> {
        let since = |at: u64| Duration::from_micros(now.saturating_sub(at));
        let passed = |at: u64, bound: Option<Duration>| bound.is_some_and(|b| since(at) > b);
        if passed(self.accepted_at, self.deadlines.total) {
            return Some(deadline("the whole request", self.deadlines.total));
        }
        let handed = self.handed_at.load(Relaxed);
        if handed != 0 {
            return (since(handed) > self.stall_timeout).then(|| {
                let limit = humantime::format_duration(self.stall_timeout);
                Failure::new(
                    Kind::Stalled,
                    format!("The reader made no room for more text within {limit}."),
                )
                .with_code("reader_stalled")
            });
        }
        if self.first_at.load(Relaxed) == 0 {
            return passed(self.accepted_at, self.deadlines.first_token)
                .then(|| deadline("the first token", self.deadlines.first_token));
        }
        // A reader who was away has not waited meanwhile, and a paused sequence needs a moment.
        let waiting_since = self.last_at.load(Relaxed).max(self.asked_at.load(Relaxed));
        passed(waiting_since, self.deadlines.gap)
            .then(|| deadline("the next token", self.deadlines.gap))
    }

    /// What can be told of it at `now`.
    pub(super) fn live(&self, now: u64) -> Live {
        let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let story = ledger.as_ref().map(|ledger| ledger.story(|_, _| {}));
        drop(ledger);
        let (has_ended, story) = (story.is_none(), story.unwrap_or_default());
        let usage = self.usage();
        let tokens = usage.completion_tokens;
        let handed = self.handed_at.load(Relaxed);
        let away = if handed == 0 {
            0
        } else {
            now.saturating_sub(handed)
        };
        let since = |at: u64| now.saturating_sub(at);
        let told = |at: &AtomicU64| Some(at.load(Relaxed)).filter(|&at| at != 0);
        let (first, last) = (told(&self.first_at), told(&self.last_at));
        let begun = story.admitted.or(first);
        let span = first
            .zip(last)
            .map_or(0, |(first, last)| last.saturating_sub(first));
        let per_second =
            f64::from(tokens.saturating_sub(1)) / Duration::from_micros(span).as_secs_f64();
        Live {
            id: self.id.clone(),
            owner: self.owner.clone(),
            model: self.model.clone(),
            route: self.route,
            stage: if has_ended {
                Stage::Ended
            } else if handed != 0 {
                Stage::Sending
            } else if begun.is_none() {
                Stage::Waiting
            } else if first.is_none() && story.prefilled.is_none() {
                Stage::Prefill
            } else {
                Stage::Decode
            },
            is_paused: story.is_paused,
            age_us: since(self.accepted_at),
            queue_us: begun.unwrap_or(now).saturating_sub(self.accepted_at),
            first_token_us: first.map(|first| first.saturating_sub(self.accepted_at)),
            last_token_us: last.map(since),
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens,
            tokens,
            tokens_per_second: (span > 0).then_some(per_second),
            max_gap_us: self.max_gap.load(Relaxed),
            stalled_us: self.stalled_us.load(Relaxed).saturating_add(away),
            pauses: story.pauses,
            preemptions: story.preemptions,
        }
    }

    /// Ends the stream from outside: everything is freed and recorded at once, and the reader is
    /// told when it next asks.
    pub(super) fn cut(&self, failure: Failure) {
        let outcome = failure.kind.outcome();
        if self.cut.set(failure).is_ok() {
            self.close(outcome, None, self.cut.get());
            self.waker.wake();
        }
    }

    pub(super) fn close(
        &self,
        outcome: Outcome,
        finish: Option<Finish>,
        failure: Option<&Failure>,
    ) {
        let ledger = self
            .ledger
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(ledger) = ledger else { return };
        if let Some(meter) = &self.meter {
            let is_our_doing = matches!(outcome, Outcome::Shed | Outcome::Deadline);
            if is_our_doing && self.tokens.load(Relaxed) == 0 {
                meter.forgive();
            }
            meter.settle();
        }
        for cancel in &ledger.cancels {
            cancel.cancel();
        }
        let now = clock::task_micros();
        let handed = self.handed_at.load(Relaxed);
        if handed != 0 {
            self.came_back(handed, now);
        }
        let mut timeline = std::mem::take(&mut *self.timeline());
        let story = ledger.story(|at, moment| timeline.moment(at, moment));
        let first = self.first_at.load(Relaxed);
        let record = Record {
            outcome,
            finish: finish.filter(|_| outcome == Outcome::Ok),
            usage: self.usage(),
            time_to_first_token: (first != 0)
                .then(|| Duration::from_micros(first.saturating_sub(self.accepted_at))),
            duration: Duration::from_micros(now.saturating_sub(self.accepted_at)),
            max_gap_us: self.max_gap.load(Relaxed),
            waits: self.waits(&story),
        };
        ledger.recorder.ended(&record, failure, timeline);
        drop(ledger.permits);
    }

    fn waits(&self, story: &Story) -> Waits {
        let between = |from: u64, to: u64| Duration::from_micros(to.saturating_sub(from));
        let begun = story.admitted;
        Waits {
            queue: begun.map(|at| between(self.accepted_at, at)),
            prefill: begun
                .zip(story.prefilled)
                .map(|(from, to)| between(from, to)),
            stalled: Duration::from_micros(self.stalled_us.load(Relaxed)),
            stalls: self.stalls.load(Relaxed),
            pauses: story.pauses,
            preemptions: story.preemptions,
        }
    }
}

/// What happened to the choices of a stream, put together.
#[derive(Debug, Default)]
struct Story {
    /// When the first of them left the line.
    admitted: Option<u64>,
    /// When the first of them had its prompt read.
    prefilled: Option<u64>,
    /// Whether one of them is out of the batch.
    is_paused: bool,
    pauses: u32,
    preemptions: u32,
}

impl Ledger {
    /// What happened so far; each moment is also told.
    fn story(&self, mut tell: impl FnMut(u64, Moment)) -> Story {
        let mut story = Story::default();
        let earliest = |known: &mut Option<u64>, at: u64| {
            *known = Some(known.map_or(at, |known| known.min(at)));
        };
        for cancel in &self.cancels {
            let mut is_paused = false;
            let happened = cancel.moments(0, &mut |at, moment| {
                match moment {
                    Moment::Admitted => earliest(&mut story.admitted, at),
                    Moment::Prefilled => earliest(&mut story.prefilled, at),
                    Moment::Paused | Moment::Preempted => is_paused = true,
                    Moment::Resumed => is_paused = false,
                    Moment::Stalled(_) => {}
                }
                tell(at, moment);
            });
            story.is_paused |= is_paused;
            story.pauses += happened.pauses;
            story.preemptions += happened.preemptions;
        }
        story
    }
}

fn deadline(what: &str, bound: Option<Duration>) -> Failure {
    let bound = humantime::format_duration(bound.unwrap_or_default());
    Failure::new(
        Kind::Deadline,
        format!("The deadline of {bound} for {what} passed."),
    )
    .with_code("deadline_exceeded")
}
