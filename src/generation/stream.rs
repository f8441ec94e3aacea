//! The one bounded receiver that carries tokens up, and what it owns.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::task::coop;

use super::shared::Shared;
use super::{
    Burst, Deadlines, Ending, Event, Failure, Finish, Meter, Outcome, Queued, Recorder, RequestId,
    Source, TokenTime, Usage, UsedUp, Watch, WatchGuard, clock,
};

/// Something that is given back by being dropped: a place in a limit, a gauge.
pub type Permit = Box<dyn Any + Send>;

/// Everything a stream is opened with, beside its sources.
pub struct Opening {
    /// The request's id; `cancel` finds the stream by it.
    pub id: RequestId,
    /// Who asked, if that was proved; nobody else may cancel it.
    pub owner: Option<Arc<str>>,
    /// The model's name.
    pub model: Arc<str>,
    /// The name under which its route is counted.
    pub route: &'static str,
    /// When the request was accepted ([`clock::task_micros`]).
    pub accepted_at: u64,
    /// Tokens of the prompt(s). Those that were cached are counted as the sources tell of them.
    pub usage: Usage,
    /// Whether the request's seed alone decides the text.
    pub deterministic: bool,
    /// Bounds on time. `queue` is the engine's business and ignored here.
    pub deadlines: Deadlines,
    /// How long the reader may leave what it was handed without asking for more.
    pub stall_timeout: Duration,
    /// Told how it went.
    pub recorder: Arc<dyn Recorder>,
    /// Given back when the stream ends.
    pub permits: Vec<Permit>,
    /// Charged for every token, and settled when the stream ends.
    pub meter: Option<Arc<dyn Meter>>,
}

/// The receiving end of one request: all of its choices, merged in the order in which they come.
///
/// Whatever ends it (the last token, a failure, a deadline, a drop) frees the sequences, gives back
/// the permits and records the outcome, exactly once.
pub struct TokenStream {
    shared: Arc<Shared>,
    watch: Option<WatchGuard>,
    sources: Vec<Option<Box<dyn Source>>>,
    /// Time of the last token of each choice; 0 before the first.
    last_token: Vec<u64>,
    /// Tokens of each choice that no burst has told of.
    untold: Vec<u32>,
    gaps: Vec<u32>,
    /// Tokens of several choices, to be put in order.
    mixed: Vec<TokenTime>,
    recorder: Arc<dyn Recorder>,
    /// Sources that have not ended.
    open: usize,
    /// Where the next round over the sources starts, so that a fast choice cannot starve another.
    turn: usize,
    finish: Option<Finish>,
    /// The reader was handed a sign of life last, and waits for text all the same.
    is_waiting: bool,
}

/// Gaps gathered before they are handed to the recorder: one call per 64 tokens.
const GAPS_AT_ONCE: usize = 64;

impl TokenStream {
    /// Opens a stream over `sources`, watched by `watch`.
    #[must_use]
    pub fn open(watch: &Arc<Watch>, opening: Opening, sources: Vec<Box<dyn Source>>) -> Self {
        let recorder = opening.recorder.clone();
        let cancels = sources.iter().map(|source| source.canceller());
        let shared = Shared::open(opening, cancels.collect());
        Self {
            watch: Some(watch.enter(shared.clone())),
            shared,
            last_token: vec![0; sources.len()],
            untold: vec![0; sources.len()],
            gaps: Vec::new(),
            mixed: Vec::new(),
            recorder,
            open: sources.len(),
            sources: sources.into_iter().map(Some).collect(),
            turn: 0,
            finish: None,
            is_waiting: false,
        }
    }

    /// The request's id.
    #[must_use]
    pub fn id(&self) -> &RequestId {
        &self.shared.id
    }

    /// Where the request stands in line: the first of its choices, while all of them wait.
    #[must_use]
    pub fn queued(&self) -> Option<Queued> {
        let mut first: Option<Queued> = None;
        for source in self.sources.iter().flatten() {
            let queued = source.queued()?;
            first = Some(first.map_or(queued, |first| first.min(queued)));
        }
        first
    }

    /// Whether the request's seed alone decides the text.
    #[must_use]
    pub fn is_deterministic(&self) -> bool {
        self.shared.deterministic
    }

    /// Tokens so far.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.shared.usage()
    }

    /// Replaces the contents of `burst` by what is ready. `Ready(false)` means that the stream is
    /// over and the burst is empty; the burst before it ended in [`Event::End`] or
    /// [`Event::Failed`].
    pub fn poll_burst(&mut self, cx: &mut Context<'_>, burst: &mut Burst) -> Poll<bool> {
        burst.clear();
        if self.watch.is_none() {
            return Poll::Ready(false);
        }
        // A source that always has more must not keep its task from yielding to others.
        let budget = ready!(coop::poll_proceed(cx));
        self.shared.waker.register(cx.waker());
        if let Some(failure) = self.shared.cut.get() {
            burst.failed(failure.clone());
            let failure = failure.clone();
            self.close(failure.kind.outcome(), Some(&failure));
            return Poll::Ready(true);
        }
        // Only this task writes what it tells of itself here: loads and stores do, a locked instruction
        // takes as long as ten of them.
        let handed = self.shared.handed_at.load(Relaxed);
        if handed != 0 {
            self.shared.handed_at.store(0, Relaxed);
            let now = clock::task_micros();
            self.shared.came_back(handed, now);
            if !std::mem::take(&mut self.is_waiting) {
                self.shared.asked_at.store(now, Relaxed);
            }
        }
        loop {
            self.fill(cx, burst);
            if burst.times.is_empty() && burst.is_empty() {
                return Poll::Pending;
            }
            let used_up = self.count(burst, 0);
            if let Some(used_up) = used_up
                && self.open > 0
                && burst.failure().is_none()
            {
                self.end_early(used_up, burst);
            }
            if self.open == 0 {
                burst.end(self.usage());
                self.close(Outcome::Ok, None);
            } else if burst.failure().is_some() {
                // A stream that was cut is told why, not how its source took it.
                if let Some(cut) = self.shared.cut.get() {
                    burst.replace_failure(cut.clone());
                }
                let Some(failure) = burst.failure().cloned() else {
                    continue;
                };
                self.close(failure.kind.outcome(), Some(&failure));
            } else if burst.is_empty() {
                // Tokens that are not text yet. Ask again: the sources may have more.
                burst.clear();
                continue;
            } else {
                self.shared.handed_at.store(clock::task_micros(), Relaxed);
            }
            burst.usage = self.usage();
            burst.counts.extend_from_slice(&self.untold);
            self.untold.fill(0);
            budget.made_progress();
            return Poll::Ready(true);
        }
    }

    /// Notes that the transport was handed something beside a burst: a keep-alive, the rest of a large
    /// one. Until it comes back it counts as not reading.
    pub fn handed(&self) {
        self.shared.handed_at.store(clock::task_micros(), Relaxed);
    }

    /// The same for a sign of life while there is no text: the wait for the next token goes on.
    pub fn handed_nothing(&mut self) {
        self.is_waiting = true;
        self.handed();
    }

    /// Ends the stream with this failure: everything is freed and recorded at once, and whoever polls it
    /// is told. Without effect on one that has ended.
    pub fn cut(&self, failure: Failure) {
        self.shared.cut(failure);
    }

    /// Waits for the next burst; see [`TokenStream::poll_burst`].
    pub async fn burst(&mut self, burst: &mut Burst) -> bool {
        std::future::poll_fn(|cx| self.poll_burst(cx, burst)).await
    }

    fn fill(&mut self, cx: &mut Context<'_>, burst: &mut Burst) {
        let count = self.sources.len();
        for step in 0..count {
            if burst.room() == 0 {
                // More may be ready in the sources that were not asked: come back for them.
                self.turn = (self.turn + step) % count;
                return;
            }
            let slot = (self.turn + step) % count;
            let Some(source) = &mut self.sources[slot] else {
                continue;
            };
            let seen = burst.len();
            if source.poll_fill(cx, burst).is_ready() {
                match burst.ended_since(seen) {
                    Some(Event::Finish { reason, .. }) => {
                        self.finish.get_or_insert(reason);
                        self.sources[slot] = None;
                        self.open -= 1;
                    }
                    Some(_) => return,
                    None => {}
                }
            }
        }
    }

    /// Nobody pays for more tokens: ends what is still open.
    fn end_early(&mut self, used_up: UsedUp, burst: &mut Burst) {
        let counted = burst.times.len();
        match used_up.end {
            Ending::Failed(failure) => burst.failed(failure),
            Ending::Length => {
                // Dropped with this, they free what they hold in their engine.
                for mut source in self.sources.iter_mut().filter_map(Option::take) {
                    source.end_here(burst);
                }
                if burst.failure().is_none() {
                    self.open = 0;
                    self.finish.get_or_insert(Finish::Length);
                    burst.ended_by = Some(used_up.limit);
                }
            }
        }
        // Tokens whose text had been on its way: they are told, so they are charged.
        let _ = self.count(burst, counted);
    }

    /// Counts and charges the tokens of `burst` after the first `from`.
    fn count(&mut self, burst: &Burst, from: usize) -> Option<UsedUp> {
        let shared = &self.shared;
        if burst.cached > 0 && from == 0 {
            shared.cached.fetch_add(burst.cached, Relaxed);
        }
        let times = &burst.times[from..];
        let last = times.last()?.at;
        if shared.first_at.load(Relaxed) == 0 {
            let first = times[0].at;
            shared.first_at.store(first, Relaxed);
            self.recorder.first_token(Duration::from_micros(
                first.saturating_sub(shared.accepted_at),
            ));
        }
        shared.last_at.store(last, Relaxed);
        let tokens = u32::try_from(times.len()).unwrap_or(u32::MAX);
        let so_far = shared.tokens.load(Relaxed);
        shared.tokens.store(so_far.wrapping_add(tokens), Relaxed);
        let mut max_gap = shared.max_gap.load(Relaxed);
        for &TokenTime { choice, at, .. } in times {
            let Some(last) = self.last_token.get_mut(choice as usize) else {
                continue;
            };
            self.untold[choice as usize] += 1;
            if *last != 0 {
                let gap = u32::try_from(at.saturating_sub(*last)).unwrap_or(u32::MAX);
                max_gap = max_gap.max(gap);
                self.gaps.push(gap);
            }
            *last = at;
        }
        shared.max_gap.store(max_gap, Relaxed);
        let mut timeline = shared.timeline();
        let times = if self.last_token.len() == 1 {
            times
        } else {
            // Each choice was asked in turn, and may have told of several steps.
            self.mixed.clear();
            self.mixed.extend_from_slice(times);
            self.mixed.sort_by_key(|token| token.at);
            &self.mixed
        };
        for &TokenTime { choice, bytes, at } in times {
            timeline.token(at, choice, bytes.into());
        }
        drop(timeline);
        if self.gaps.len() >= GAPS_AT_ONCE {
            self.recorder.gaps(&self.gaps);
            self.gaps.clear();
        }
        let meter = self.shared.meter.as_ref();
        meter.and_then(|meter| meter.charge(tokens).err())
    }

    fn close(&mut self, outcome: Outcome, failure: Option<&Failure>) {
        if !self.gaps.is_empty() {
            self.recorder.gaps(&self.gaps);
            self.gaps.clear();
        }
        self.shared.close(outcome, self.finish, failure);
        self.sources.clear();
        self.watch = None;
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        if self.watch.is_some() {
            // A stream that was cut while nobody polled it is already closed; this is then a no-op.
            let outcome = if std::thread::panicking() {
                Outcome::Internal
            } else {
                Outcome::ClientGone
            };
            self.close(outcome, None);
        }
    }
}
