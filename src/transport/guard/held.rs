//! An answer's body on its way: what keeps its request among those under way, and its trace.

use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use http_body::{Frame, SizeHint};

use super::requests::{AHEAD, InFlight};
use crate::generation::clock;
use crate::transport::traced::Traced;

/// A connection that comes back for the next frame within this time had room for it: it was busy writing.
const A_STALL: u64 = 1_000;

/// So much of the time without room is gathered, in microseconds, before others are told.
const TELL: u64 = 100_000;

/// A body that keeps its request among those under way, notes when it was last asked, and tells its trace at
/// the end how it went.
///
/// The clock is read once for each frame, as it always was; all else is this body's own numbers.
pub(in crate::transport) struct Held<B: http_body::Body> {
    body: B,
    /// Bytes of data that were handed out.
    handed: u64,
    is_over: bool,
    /// How long there was more to hand out, but no room, in microseconds.
    stalled: u64,
    /// What of that was not counted for the transport yet.
    untold: u64,
    in_flight: InFlight,
    /// Goes last: the trace ends with it.
    traced: Option<Traced>,
}

impl<B: http_body::Body> Held<B> {
    pub(super) fn new(body: B, in_flight: InFlight, traced: Option<Traced>) -> Self {
        Self {
            body,
            handed: 0,
            is_over: false,
            stalled: 0,
            untold: 0,
            in_flight,
            traced,
        }
    }

    /// The next frame was there when the connection came for it, which was so long after it had taken the
    /// last one.
    fn waited(&mut self, micros: u64) {
        if micros < A_STALL {
            return;
        }
        self.stalled += micros;
        self.untold += micros;
        if self.untold >= TELL {
            self.tell_stalls();
        }
    }

    fn tell_stalls(&mut self) {
        let time = Duration::from_micros(std::mem::take(&mut self.untold));
        if let Some(traffic) = &self.in_flight.requests.traffic
            && !time.is_zero()
        {
            traffic.stalled(time);
        }
    }
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
        let now = if polled.is_ready() {
            clock::task_micros()
        } else {
            0
        };
        let last = self.in_flight.body.handed_at.swap(now, Relaxed);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if last != 0 {
                    self.waited(now.saturating_sub(last));
                }
                let len = frame.data_ref().map_or(0, Buf::remaining);
                self.handed += len as u64;
                if is_alone {
                    self.in_flight.requests.ahead.fetch_add(len, Relaxed);
                } else if let Some(small_frames) = &self.in_flight.counted_by {
                    small_frames.sent_of_document(len);
                }
            }
            Poll::Ready(None) => self.is_over = true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B: http_body::Body> Drop for Held<B> {
    fn drop(&mut self) {
        let has_no_body = self.traced.as_ref().is_some_and(|traced| !traced.has_body);
        let is_whole = self.is_over || has_no_body || self.body.is_end_stream();
        let last = self.in_flight.body.handed_at.load(Relaxed);
        if !is_whole && last != 0 {
            // Nobody came back for more.
            self.waited(clock::task_micros().saturating_sub(last));
        }
        self.tell_stalls();
        if let Some(traced) = &self.traced {
            traced.trace.exchange(|exchange| {
                exchange.bytes = self.handed;
                exchange.is_whole = is_whole;
                exchange.stalled = Duration::from_micros(self.stalled);
            });
        }
    }
}
