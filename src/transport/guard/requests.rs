//! The requests under way on one connection: how many, since when idle, which of them finds no room.

use std::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atomic_waker::AtomicWaker;
use axum::http::Extensions;
use slab::Slab;

use super::held::Held;
use crate::generation::clock;
use crate::telemetry::{Traffic, Transport};
use crate::transport::pace::SmallFrames;
use crate::transport::traced::{Arrived, Traced};

/// How often a connection of many streams is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The requests under way on one connection, from their headers to the end of their answers' bodies.
pub(in crate::transport) struct Requests {
    /// What the connection speaks.
    pub(super) transport: Transport,
    /// Where that is counted, if it is.
    pub(super) traffic: Option<Arc<Traffic>>,
    /// When the first byte of the next request came ([`clock::task_micros`]), where bytes tell that; else 0.
    first_byte: AtomicU64,
    open: Mutex<Slab<Arc<Body>>>,
    /// When the last one ended ([`clock::task_micros`]); 0 while any is under way.
    idle_since: AtomicU64,
    /// How many there are, and how many of them are answered by token streams.
    count: AtomicUsize,
    streams: AtomicUsize,
    /// How many there have been.
    pub(super) begun: AtomicU64,
    /// Bytes of an HTTP/1.1 stream that were handed out since hyper last had nothing to write.
    pub(super) ahead: AtomicUsize,
    /// The stream that waits for that.
    pub(super) waits: AtomicWaker,
}

/// From here on an HTTP/1.1 stream is asked for no more until it is written. hyper's own bound is that of
/// request heads, several times as much, and ten thousand slow readers make it felt.
pub(in crate::transport) const AHEAD: usize = 4 * 1024;

/// One request.
#[derive(Default)]
pub(super) struct Body {
    /// When the connection was last handed a frame and has not come back since; 0 while it waits for one.
    pub(super) handed_at: AtomicU64,
}

impl Requests {
    /// None yet, on a connection that speaks `transport`.
    pub(in crate::transport) fn new(
        transport: Transport,
        traffic: Option<Arc<Traffic>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            transport,
            traffic,
            first_byte: AtomicU64::new(0),
            open: Mutex::default(),
            idle_since: AtomicU64::new(clock::task_micros()),
            count: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            begun: AtomicU64::new(0),
            ahead: AtomicUsize::new(0),
            waits: AtomicWaker::new(),
        })
    }

    /// Counts a request until the guard is dropped.
    pub(in crate::transport) fn begin(self: &Arc<Self>) -> InFlight {
        let body = Arc::<Body>::default();
        let mut open = self.lock();
        self.idle_since.store(0, SeqCst);
        self.count.fetch_add(1, Relaxed);
        self.begun.fetch_add(1, Relaxed);
        if let Some(traffic) = &self.traffic {
            traffic.request_began();
        }
        let came_at = match self.first_byte.swap(0, Relaxed) {
            0 => clock::task_micros(),
            at => at,
        };
        InFlight {
            came_at,
            key: open.insert(body.clone()),
            body,
            requests: self.clone(),
            is_stream: false,
            is_alone: false,
            counted_by: None,
        }
    }

    /// Bytes came on a connection that has one request at a time: if none is under way, they begin the next.
    pub(super) fn bytes_came(&self) {
        if !self.any() && self.first_byte.load(Relaxed) == 0 {
            self.first_byte.store(clock::task_micros(), Relaxed);
        }
    }

    /// hyper has written all that it had, and may have more.
    pub(super) fn flushed(&self) {
        if self.ahead.swap(0, Relaxed) >= AHEAD {
            self.waits.wake();
        }
    }

    /// How many are answered by token streams; 0 if others are under way, too, which shall be as fast as
    /// the kernel makes them.
    pub(super) fn streams_alone(&self) -> usize {
        let streams = self.streams.load(Relaxed);
        if streams == self.count.load(Relaxed) {
            streams
        } else {
            0
        }
    }

    /// Whether any is under way.
    pub(super) fn any(&self) -> bool {
        self.idle_since.load(SeqCst) == 0
    }

    /// How long there has been none.
    pub(in crate::transport) fn idle_for(&self) -> Duration {
        match self.idle_since.load(SeqCst) {
            0 => Duration::ZERO,
            since => Duration::from_micros(clock::task_micros().saturating_sub(since)),
        }
    }

    /// How long the answer that has waited longest has found no room on the connection.
    pub(in crate::transport) fn longest_stall(&self) -> Duration {
        let oldest = self
            .lock()
            .iter()
            .map(|(_, body)| body.handed_at.load(Relaxed))
            .filter(|&at| at != 0)
            .min();
        oldest.map_or(Duration::ZERO, |at| {
            Duration::from_micros(clock::task_micros().saturating_sub(at))
        })
    }

    /// Returns once there has been none for as long as `timeout`.
    pub(in crate::transport) async fn until_idle(&self, timeout: Duration) {
        while self.idle_for() < timeout {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Returns once one of them has found no room for as long as `timeout`: its reader keeps its window
    /// shut, which nothing else on the connection would show.
    pub(in crate::transport) async fn until_stalled(&self, timeout: Duration) {
        while self.longest_stall() < timeout {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slab<Arc<Body>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps one request among those under way.
pub(in crate::transport) struct InFlight {
    pub(super) requests: Arc<Requests>,
    key: usize,
    /// When it began ([`clock::task_micros`]).
    came_at: u64,
    pub(super) body: Arc<Body>,
    is_stream: bool,
    /// It is a stream that has its connection for itself.
    pub(super) is_alone: bool,
    /// Where a document's bytes are counted on HTTP/2.
    pub(super) counted_by: Option<Arc<SmallFrames>>,
}

impl InFlight {
    /// It is answered by a token stream; on HTTP/1.1 by nothing else meanwhile.
    pub(in crate::transport) fn streams(&mut self, is_alone: bool) {
        self.is_stream = true;
        self.is_alone = is_alone;
        self.requests.streams.fetch_add(1, Relaxed);
    }

    /// It is answered by a document, which an HTTP/2 peer confirms as it does streams.
    pub(in crate::transport) fn counted_by(&mut self, small_frames: Arc<SmallFrames>) {
        self.counted_by = Some(small_frames);
    }

    /// How the request came.
    pub(in crate::transport) fn arrived(&self) -> Arrived {
        Arrived {
            transport: self.requests.transport,
            at: self.came_at,
        }
    }

    /// Keeps the request until the answer's body is done with, and its trace, if there is one among the
    /// answer's extensions.
    pub(in crate::transport) fn until_end_of<B>(self, body: B, answer: &Extensions) -> Held<B>
    where
        B: http_body::Body,
    {
        Held::new(body, self, answer.get::<Traced>().cloned())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(traffic) = &self.requests.traffic {
            traffic.request_ended();
        }
        let mut open = self.requests.lock();
        open.remove(self.key);
        self.requests.count.fetch_sub(1, Relaxed);
        if self.is_stream {
            self.requests.streams.fetch_sub(1, Relaxed);
        }
        if open.is_empty() {
            self.requests.idle_since.store(clock::task_micros(), SeqCst);
        }
    }
}
