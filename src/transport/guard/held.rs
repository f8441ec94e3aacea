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
        // Others only look, so there is no need for a swap, which would cost a locked instruction.
        let handed_at = &self.in_flight.body.handed_at;
        let last = handed_at.load(Relaxed);
        handed_at.store(now, Relaxed);
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::sync::Arc;

    use axum::http::{Extensions, HeaderMap};
    use bytes::Bytes;
    use http_body::Body as _;
    use http_body_util::BodyExt as _;

    use super::super::requests::Requests;
    use super::*;
    use crate::generation::{Sink, Trace, TraceContext};
    use crate::telemetry::{Metrics, Transport};

    /// Gives these frames, then ends; an empty place is a wait for the next one.
    struct Frames(VecDeque<Option<Frame<Bytes>>>);

    impl http_body::Body for Frames {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match self.0.pop_front() {
                Some(Some(frame)) => Poll::Ready(Some(Ok(frame))),
                Some(None) => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                None => Poll::Ready(None),
            }
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(7)
        }
    }

    fn data(text: &'static str) -> Frame<Bytes> {
        Frame::data(Bytes::from_static(text.as_bytes()))
    }

    fn held<B: http_body::Body>(body: B, has_body: bool) -> (Held<B>, Arc<Sink>) {
        let sink = Arc::new(Sink::default());
        let mut extensions = Extensions::new();
        extensions.insert(Traced {
            trace: Trace::begin(TraceContext::default(), sink.clone()),
            has_body,
        });
        let requests = Requests::new(Transport::Http2, None);
        (requests.begin().until_end_of(body, &extensions), sink)
    }

    fn told(sink: &Sink) -> (u64, bool, Duration) {
        let told = sink.0.lock().unwrap();
        assert_eq!(told.len(), 1);
        let exchange = &told[0].exchange;
        (exchange.bytes, exchange.is_whole, exchange.stalled)
    }

    #[tokio::test(start_paused = true)]
    async fn the_trace_ends_when_the_body_is_let_go_and_tells_what_was_taken() {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-end", 1.into());
        let frames = [
            Some(data("abc")),
            None,
            Some(data("defg")),
            Some(Frame::trailers(trailers)),
        ];
        let (mut held, sink) = held(Frames(frames.into()), true);
        assert_eq!(held.size_hint().exact(), Some(7));
        assert!(!held.is_end_stream());
        let mut frames = 0;
        while let Some(frame) = held.frame().await {
            frames += 1;
            assert_eq!(frame.unwrap().is_trailers(), frames == 3, "trailers pass");
        }
        assert!(sink.0.lock().unwrap().is_empty(), "not before");
        drop(held);
        assert_eq!(told(&sink), (7, true, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_left_is_not_whole() {
        let (mut left, sink) = held(Frames([Some(data("abc")), Some(data("d"))].into()), true);
        left.frame().await.unwrap().unwrap();
        drop(left);
        assert_eq!(told(&sink), (3, false, Duration::ZERO));
        // Taken at once by its length, and never asked again.
        let (mut one, sink) = held(http_body_util::Full::new(Bytes::from_static(b"one")), true);
        one.frame().await.unwrap().unwrap();
        drop(one);
        assert_eq!(told(&sink), (3, true, Duration::ZERO));
        // Nobody wants the body of an answer to HEAD.
        let (head, sink) = held(Frames([Some(data("abc"))].into()), false);
        drop(head);
        assert_eq!(told(&sink), (0, true, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn only_time_without_room_is_a_stall() {
        let second = Duration::from_secs(1);
        let mut frames = Vec::from(["a", "b", "c", "d"].map(|text| Some(data(text))));
        frames.insert(1, None);
        let (mut body, sink) = held(Frames(frames.into()), true);
        let metrics = Arc::new(Metrics::new([]).unwrap());
        let traffic = metrics.transports.traffic(Transport::Http2).clone();
        let requests = Requests::new(Transport::Http2, Some(traffic));
        body.in_flight = requests.begin();

        body.frame().await.unwrap().unwrap();
        // Its room came back while there was nothing to fill it with.
        tokio::time::advance(second).await;
        body.frame().await.unwrap().unwrap();
        // There was something all the time.
        tokio::time::advance(second).await;
        body.frame().await.unwrap().unwrap();
        // As long as it takes to write.
        tokio::time::advance(Duration::from_micros(A_STALL / 2)).await;
        body.frame().await.unwrap().unwrap();
        // And it never came back.
        tokio::time::advance(3 * second).await;
        drop(body);
        assert_eq!(told(&sink), (4, false, 4 * second));
        let text = metrics.render(&crate::telemetry::Scrape::default());
        let series = "sluicegate_transport_stall_seconds_total{transport=\"h2\"} 4\n";
        assert!(text.contains(series), "{text}");
    }
}
