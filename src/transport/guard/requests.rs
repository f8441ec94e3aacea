//! The requests under way on one connection: how many, since when idle, which of them finds no room.

use std::pin::Pin;
use std::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use atomic_waker::AtomicWaker;
use bytes::Buf;
use http_body::{Frame, SizeHint};
use slab::Slab;

use crate::generation::clock;
use crate::transport::pace::SmallFrames;

/// How often a connection of many streams is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The requests under way on one connection, from their headers to the end of their answers' bodies.
#[derive(Default)]
pub(in crate::transport) struct Requests {
    open: Mutex<Slab<Arc<Body>>>,
    /// When the last one ended ([`clock::task_micros`]); 0 while any is under way.
    idle_since: AtomicU64,
    /// How many there are, and how many of them are answered by token streams.
    count: AtomicUsize,
    streams: AtomicUsize,
    /// How many there have been.
    pub(super) begun: AtomicU64,
    /// Bytes of an HTTP/1.1 stream that were handed out since hyper last had nothing to write.
    ahead: AtomicUsize,
    /// The stream that waits for that.
    waits: AtomicWaker,
}

/// From here on an HTTP/1.1 stream is asked for no more until it is written. hyper's own bound is that of
/// request heads, several times as much, and ten thousand slow readers make it felt.
pub(in crate::transport) const AHEAD: usize = 4 * 1024;

/// One request.
#[derive(Default)]
struct Body {
    /// When the connection was last handed a frame and has not come back since; 0 while it waits for one.
    handed_at: AtomicU64,
}

impl Requests {
    pub(in crate::transport) fn new() -> Arc<Self> {
        Arc::new(Self {
            idle_since: AtomicU64::new(clock::task_micros()),
            ..Self::default()
        })
    }

    /// Counts a request until the guard is dropped.
    pub(in crate::transport) fn begin(self: &Arc<Self>) -> InFlight {
        let body = Arc::<Body>::default();
        let mut open = self.lock();
        self.idle_since.store(0, SeqCst);
        self.count.fetch_add(1, Relaxed);
        self.begun.fetch_add(1, Relaxed);
        InFlight {
            key: open.insert(body.clone()),
            body,
            requests: self.clone(),
            is_stream: false,
            is_alone: false,
            counted_by: None,
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
    requests: Arc<Requests>,
    key: usize,
    body: Arc<Body>,
    is_stream: bool,
    /// It is a stream that has its connection for itself.
    is_alone: bool,
    /// Where a document's bytes are counted on HTTP/2.
    counted_by: Option<Arc<SmallFrames>>,
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

    /// Keeps the request until `body` is done with.
    pub(in crate::transport) fn until_end_of<B>(self, body: B) -> Held<B> {
        Held {
            body,
            in_flight: self,
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
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

/// A body that keeps its request among those under way, and notes when it was last asked.
pub(in crate::transport) struct Held<B> {
    body: B,
    in_flight: InFlight,
}

impl<B: http_body::Body + Unpin> http_body::Body for Held<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let is_alone = self.in_flight.is_alone;
        if is_alone && self.in_flight.requests.ahead.load(Relaxed) >= AHEAD {
            // The same task flushes, so nothing can come between this and the look above.
            self.in_flight.requests.waits.register(cx.waker());
            return Poll::Pending;
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            if is_alone {
                let ahead = &self.in_flight.requests.ahead;
                ahead.fetch_add(data.remaining(), Relaxed);
            } else if let Some(small_frames) = &self.in_flight.counted_by {
                small_frames.sent_of_document(data.remaining());
            }
        }
        let handed = if polled.is_ready() {
            clock::task_micros()
        } else {
            0
        };
        self.in_flight.body.handed_at.store(handed, Relaxed);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
