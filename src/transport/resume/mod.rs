//! Streams that outlive their connection (`stream.resume`).
//!
//! A resumable answer's body is a `Reader` over an entry here. The entry owns what makes the stream go
//! on, and a log of the newest events; whoever reads polls through it. When the reader is dropped before
//! the end, its connection is lost, and a keeper takes its place: it polls the stream into the log, so that
//! the generation goes on, until the log is full, the stream ends or `stream.resume_time` is over. A full
//! log is not polled, and that is felt as any reader who stops: the ring fills, the sequence leaves the
//! batch, the stall time-out runs.
//!
//! ```text
//!            GET …?after=N           reader dropped             time over, or end + time
//! reader A ───────────────> reader B ───────────────> keeper ───────────────> forgotten
//!    │  ends with an error      ^                       │
//!    v                          └───────────────────────┘ GET …?after=N
//! ```
//!
//! At any time one of them has the turn; the others end when they next look. Bounds: `resume_streams`
//! entries, one keeper for each at most, and `resume_bytes` and one burst for each log.

mod log;
mod paths;
mod reader;

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::log::Log;
pub(super) use self::paths::{cancel, follow, wants_ids};
pub(super) use self::reader::{Reader, TakenOver};
use super::pace::Pace;
use super::tokens::TokenBody;
use crate::gateway::settings::Stream;
use crate::generation::{Caller, Failure, Kind};
use crate::wire::events::Events;

/// Random bytes of an id: 192 bits that nobody guesses.
const ID_BYTES: usize = 24;

/// The streams that can be resumed.
pub struct Streams {
    entries: Mutex<HashMap<Arc<str>, Arc<Entry>>>,
    most: usize,
    /// Bytes of each stream's log.
    bytes: usize,
    /// How long a stream goes on without a reader, and is kept after its end.
    time: Duration,
    keepers: TaskTracker,
    closing: CancellationToken,
    runtime: Handle,
}

/// How a new stream is to be kept.
pub(super) struct Asked {
    /// Only they may resume it; without an identity, whoever knows the id.
    pub(super) owner: Option<Arc<str>>,
    /// Whether its events carry their numbers, where the format has a place for them.
    pub(super) ids: bool,
    /// Whether it is lines of JSON-RPC.
    pub(super) is_rpc: bool,
}

impl Streams {
    /// Room for streams as the settings say; `None` if they are not to be kept.
    ///
    /// # Panics
    /// Outside a tokio runtime, on which keepers will run.
    #[must_use]
    pub fn new(settings: &Stream) -> Option<Arc<Self>> {
        settings.resume.then(|| {
            Arc::new(Self {
                entries: Mutex::default(),
                most: settings.resume_streams.get() as usize,
                bytes: settings.resume_bytes,
                time: settings.resume_time,
                keepers: TaskTracker::new(),
                closing: CancellationToken::new(),
                runtime: Handle::current(),
            })
        })
    }

    /// Streams that can be resumed now, ended ones included.
    #[must_use]
    pub fn count(&self) -> usize {
        lock(&self.entries).len()
    }

    /// Forgets what nobody reads and waits for the keepers. Streams that run without a reader are cut.
    pub async fn close(&self) {
        self.closing.cancel();
        self.keepers.close();
        self.keepers.wait().await;
    }

    /// Keeps a stream that is about to be answered; `first` are whole events of the same format that go
    /// before it, made from its id. Gives the body back if there is no room.
    pub(super) fn keep(
        self: &Arc<Self>,
        body: TokenBody,
        asked: Asked,
        first: impl FnOnce(&str) -> Bytes,
    ) -> Result<Reader, Box<TokenBody>> {
        let content_type = body.content_type();
        let (Some(events), Some(id)) = (Events::of(content_type), random_id()) else {
            return Err(Box::new(body));
        };
        let mut entries = lock(&self.entries);
        if entries.len() >= self.most && !make_room(&mut entries) {
            return Err(Box::new(body));
        }
        let Slot::Vacant(slot) = entries.entry(id.clone()) else {
            return Err(Box::new(body));
        };
        let mut log = Log::new(events, self.bytes);
        log.push(first(&id));
        let entry = Arc::new(Entry {
            id,
            owner: asked.owner,
            content_type,
            events,
            ids: asked.ids,
            is_rpc: asked.is_rpc,
            state: Mutex::new(State {
                body: Some(body.whole()),
                log,
                turn: 0,
                is_read: true,
                given: 0,
                ended_at: None,
                is_gone: false,
                waiting: None,
            }),
        });
        slot.insert(entry.clone());
        drop(entries);
        Ok(Reader::new(self.clone(), entry, 0, 0, asked.ids))
    }

    /// Goes on with a stream behind event `after`; whoever read it before is cut off.
    pub(super) fn resume(
        self: &Arc<Self>,
        id: &str,
        caller: &Caller,
        after: u64,
        ids: bool,
        pace: Pace,
    ) -> Result<Reader, Failure> {
        let entry = self.find(id, caller)?;
        let ids = ids || entry.ids;
        let turn = {
            let mut state = entry.lock();
            if state.is_gone {
                return Err(unknown());
            }
            let newest = state.log.newest();
            if after > newest {
                return Err(Failure::invalid(
                    "after",
                    format!("The stream has only {newest} events so far."),
                ));
            }
            let oldest = state.log.oldest();
            if after + 1 < oldest {
                return Err(Failure::new(
                    Kind::Gone,
                    format!("Events before number {oldest} are not kept any more."),
                )
                .with_param("after")
                .with_code("events_gone"));
            }
            state.is_read = true;
            state.pass_turn(pace)
        };
        Ok(Reader::new(self.clone(), entry, turn, after, ids))
    }

    /// [`Streams::resume`] for lines of JSON-RPC, which alone can go on among others.
    pub(super) fn resume_rpc(
        self: &Arc<Self>,
        id: &str,
        caller: &Caller,
        after: u64,
        pace: Pace,
    ) -> Result<Reader, Failure> {
        if !self.find(id, caller)?.is_rpc {
            return Err(Failure::invalid(
                "stream",
                "This stream is not JSON-RPC's; GET /v1/streams/{id} gives it.",
            ));
        }
        self.resume(id, caller, after, false, pace)
    }

    /// Ends a stream and forgets it; whether it was running.
    pub(super) fn cancel(&self, id: &str, caller: &Caller) -> Result<bool, Failure> {
        let entry = self.find(id, caller)?;
        let mut state = entry.lock();
        if std::mem::replace(&mut state.is_gone, true) {
            return Err(unknown());
        }
        let was_running = state.body.is_some();
        if let Some(body) = &state.body {
            body.cut(Failure::new(
                Kind::Cancelled,
                "The request was cancelled by its stream's id.",
            ));
        }
        // A reader finds out why when it next asks; a keeper has nothing more to do.
        let body = if state.is_read {
            None
        } else {
            state.pass_turn(Pace::default());
            state.body.take()
        };
        drop(state);
        drop(body);
        lock(&self.entries).remove(id);
        Ok(was_running)
    }

    /// One answer for an id that nobody has and for one that is another's.
    fn find(&self, id: &str, caller: &Caller) -> Result<Arc<Entry>, Failure> {
        let entry = lock(&self.entries).get(id).cloned();
        entry
            .filter(|entry| entry.owner == caller.identity)
            .ok_or_else(unknown)
    }

    /// Forgets the stream, if the turn is still this one: what runs is dropped, as by a caller who left.
    fn forget(&self, entry: &Entry, turn: u64) {
        let body = {
            let mut state = entry.lock();
            if state.turn != turn || std::mem::replace(&mut state.is_gone, true) {
                return;
            }
            state.body.take()
        };
        lock(&self.entries).remove(&entry.id);
        // Its end is recorded and logged: under no lock.
        drop(body);
    }
}

/// What an id is answered with that cannot be resumed.
pub(super) fn unknown() -> Failure {
    Failure::new(
        Kind::NotFound,
        "There is no such stream, or it is kept no longer.",
    )
    .with_code("stream_not_found")
}

fn random_id() -> Option<Arc<str>> {
    let mut bytes = [0; ID_BYTES];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(URL_SAFE_NO_PAD.encode(bytes).into())
}

/// Takes the place of the stream that ended first of those that were handed out whole. Streams that run,
/// and ends that nobody was given, keep theirs.
fn make_room(entries: &mut HashMap<Arc<str>, Arc<Entry>>) -> bool {
    let oldest = entries
        .values()
        .filter_map(|entry| {
            // Who holds the lock is at work on a stream that runs.
            let state = entry.state.try_lock().ok()?;
            let is_done = !state.is_read && state.given == state.log.newest();
            let ended_at = state.ended_at.filter(|_| is_done)?;
            Some((ended_at, entry.clone()))
        })
        .min_by_key(|(ended_at, _)| *ended_at);
    let Some((_, entry)) = oldest else {
        return false;
    };
    let mut state = entry.lock();
    // Somebody may have come back for it this moment.
    if state.is_read {
        return false;
    }
    state.is_gone = true;
    state.pass_turn(Pace::default());
    drop(state);
    entries.remove(&entry.id).is_some()
}

/// One stream.
struct Entry {
    id: Arc<str>,
    owner: Option<Arc<str>>,
    content_type: &'static str,
    events: Events,
    ids: bool,
    is_rpc: bool,
    /// Held for one frame by who has the turn; others come rarely.
    state: Mutex<State>,
}

impl Entry {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// A keeper's work: everything that comes goes into the log. Ready with whether the stream has ended;
    /// if not, the keeper's turn is over.
    fn poll_keep(&self, turn: u64, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            let mut state = self.lock();
            if state.turn != turn {
                return Poll::Ready(false);
            }
            if state.ended_at.is_some() {
                return Poll::Ready(true);
            }
            let more = if state.log.is_full() {
                if let Some(body) = &mut state.body {
                    body.handed(0);
                }
                Poll::Pending
            } else {
                state.poll_more(cx)
            };
            if more.is_pending() {
                state.wait(cx);
                return Poll::Pending;
            }
        }
    }

    /// Ready when the turn is over.
    fn poll_turn(&self, turn: u64, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.turn != turn {
            return Poll::Ready(());
        }
        state.wait(cx);
        Poll::Pending
    }
}

struct State {
    /// What makes events; `None` once it has ended.
    body: Option<TokenBody>,
    log: Log,
    /// Whose turn it is: counts readers and keepers.
    turn: u64,
    /// Whether a reader has the turn.
    is_read: bool,
    /// The newest event that was handed out.
    given: u64,
    ended_at: Option<Instant>,
    /// Whether it was taken out of the store.
    is_gone: bool,
    /// Wakes who has the turn.
    waiting: Option<Waker>,
}

/// What polling the body gave.
enum More {
    /// Events, in the log.
    Events,
    /// Bytes that mean nothing.
    KeepAlive(Bytes),
    /// Nothing more will come.
    End,
}

impl State {
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<More> {
        let polled = match &mut self.body {
            Some(body) => std::task::ready!(body.poll_bytes(cx)),
            None => None,
        };
        let Some(bytes) = polled else {
            self.body = None;
            self.ended_at.get_or_insert_with(Instant::now);
            return Poll::Ready(More::End);
        };
        Poll::Ready(if self.log.push(bytes.clone()) {
            More::Events
        } else {
            More::KeepAlive(bytes)
        })
    }

    /// Ends the turn of whoever has it; gives the number of the next, whose connection is this one.
    fn pass_turn(&mut self, pace: Pace) -> u64 {
        self.turn += 1;
        if let Some(body) = &mut self.body {
            body.set_pace(pace);
        }
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
        self.turn
    }

    /// Notes that the reader's connection is handed a frame. What comes out of the log asks nothing of the
    /// engine, and that is the reader's doing, who may take it slowly.
    fn hand(&mut self, frame: Bytes) -> Bytes {
        if let Some(body) = &mut self.body {
            body.handed(frame.len());
        }
        frame
    }

    fn wait(&mut self, cx: &Context<'_>) {
        match &mut self.waiting {
            Some(waiting) => waiting.clone_from(cx.waker()),
            None => self.waiting = Some(cx.waker().clone()),
        }
    }
}

/// A stream without a reader. Forgets it when dropped, unless its turn is over.
struct Keeper {
    streams: Arc<Streams>,
    entry: Arc<Entry>,
    turn: u64,
}

impl Keeper {
    /// Begins the turn that follows a reader's.
    fn start(streams: Arc<Streams>, entry: Arc<Entry>, turn: u64) {
        let keeper = Self {
            streams,
            entry,
            turn,
        };
        if keeper.streams.closing.is_cancelled() || std::thread::panicking() {
            return;
        }
        let keepers = keeper.streams.keepers.clone();
        let runtime = keeper.streams.runtime.clone();
        keepers.spawn_on(keeper.run(), &runtime);
    }

    async fn run(self) {
        let Self {
            streams,
            entry,
            turn,
        } = &self;
        let kept = async {
            let keeping = std::future::poll_fn(|cx| entry.poll_keep(*turn, cx));
            let ended = tokio::time::timeout(streams.time, keeping).await;
            if ended != Ok(true) {
                return;
            }
            let ended_at = entry.lock().ended_at.unwrap_or_else(Instant::now);
            let turn_over = std::future::poll_fn(|cx| entry.poll_turn(*turn, cx));
            let _ = tokio::time::timeout_at(ended_at + streams.time, turn_over).await;
        };
        tokio::select! {
            biased;
            () = streams.closing.cancelled() => {}
            () = kept => {}
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.streams.forget(&self.entry, self.turn);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
