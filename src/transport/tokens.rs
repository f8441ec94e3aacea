//! A token stream as the body of a response.
//!
//! The body is asked for a frame only when the connection has room for one, and only then takes
//! tokens off the rings: this is where pressure on the socket becomes pressure on the engine.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use tokio::time::{Instant, Sleep};
use tokio_stream::Stream;

use super::pace::{Pace, Pacer};
use crate::generation::{Burst, Failure, TokenStream, clock};
use crate::wire::{Answer, Encoder, Refusal};

/// First size of a body's buffer. Frames are cut off its front; a stream of single tokens allocates
/// once in about twenty of them, and an idle stream holds no more than this.
const BUFFER: usize = 4 * 1024;

/// Largest frame. What a send queue has taken it cannot give back or split (HTTP/2 counts whole frames
/// against the window), so this is what a stopped reader can pull beyond its window.
pub(super) const MAX_FRAME: usize = 8 * 1024;

/// Tokens that are encoded together: as SSE they fill one frame, and the buffer that they are written to
/// stays as small as that while the frame waits for the socket.
const BURST: usize = 28;

/// Marks a response, among its extensions, whose body is made of tokens as they come.
#[derive(Clone)]
pub(super) struct Streamed;

/// A stream of frames: one per burst, or a few where a burst is large.
pub(super) struct TokenBody {
    stream: TokenStream,
    burst: Burst,
    /// Whether `burst` holds events that were not encoded yet.
    primed: bool,
    encoder: Box<dyn Encoder>,
    answer: Box<dyn Answer>,
    out: BytesMut,
    pacer: Pacer,
    /// Until when what is in `out` waits for more.
    held_until: Option<Instant>,
    /// Whether bursts go out as they are, for somebody else to cut into frames.
    is_whole: bool,
    keep_alive: Duration,
    quiet_since: Instant,
    /// How often a place in line is told, and when next; never once the stream has begun.
    notice: Option<(Duration, Instant)>,
    /// One timer for all: a frame that is held, a place in line, a sign of life. Tokens that go at once do not touch it.
    alarm: Option<Pin<Box<Sleep>>>,
}

/// What is known after the first wait.
#[expect(
    clippy::large_enum_variant,
    reason = "it lives for one statement; a box would cost every request an allocation"
)]
pub(super) enum First {
    /// Something to send, or long silence: the answer can begin.
    Begins(TokenBody),
    /// The first thing that happened is a failure; `Bytes` is the whole answer.
    Refused(Refusal, Bytes, Failure),
}

impl TokenBody {
    pub(super) fn new(
        stream: TokenStream,
        encoder: Box<dyn Encoder>,
        answer: Box<dyn Answer>,
        pace: Pace,
        keep_alive: Duration,
    ) -> Self {
        Self {
            stream,
            burst: Burst::with_limit(BURST),
            primed: false,
            encoder,
            answer,
            out: BytesMut::new(),
            pacer: Pacer::new(pace),
            held_until: None,
            is_whole: false,
            keep_alive,
            quiet_since: Instant::now(),
            notice: None,
            alarm: None,
        }
    }

    /// Tells the place in line from now on, so often, for as long as there is one.
    pub(super) fn noticing(mut self, every: Option<Duration>) -> Self {
        self.notice = every.map(|every| (every, Instant::now() + every));
        self
    }

    /// Gives whole bursts from now on, which begin and end between two events. Cutting them into frames is
    /// then somebody else's work, who tells of each: see [`TokenBody::handed`].
    pub(super) fn whole(mut self) -> Self {
        self.is_whole = true;
        self
    }

    /// The connection is another one from now on.
    pub(super) fn set_pace(&mut self, pace: Pace) {
        self.pacer = Pacer::new(pace);
    }

    /// Notes that the connection was handed a frame of `len` bytes, made of whole bursts or of none.
    pub(super) fn handed(&mut self, len: usize) {
        self.stream.handed();
        self.pacer.sent(len, Instant::now());
    }

    /// Ends the stream; see [`TokenStream::cut`].
    pub(super) fn cut(&self, failure: Failure) {
        self.stream.cut(failure);
    }

    /// The answer's content type.
    pub(super) fn content_type(&self) -> &'static str {
        self.encoder.content_type()
    }

    /// Waits for the first events, so that a failure can still choose the status. A streamed answer
    /// begins anyway after one keep-alive interval, since idle limits of clients and proxies would cut a
    /// long silence, or when there is a place in line to tell.
    pub(super) async fn first(mut self) -> First {
        if self.answer.streamed() {
            loop {
                let wait = self.stream.burst(&mut self.burst);
                let due = self.quiet_since + self.keep_alive;
                let until = self.notice.map_or(due, |(_, at)| at.min(due));
                if tokio::time::timeout_at(until, wait).await.is_ok() {
                    self.primed = true;
                    break;
                }
                let now = Instant::now();
                if self.tell_place(now) || now >= due {
                    self.stream.handed_nothing();
                    break;
                }
            }
        } else {
            // One document: everything is gathered before anything is sent.
            let mut document = BytesMut::new();
            while self.stream.burst(&mut self.burst).await {
                if self.burst.failure().is_some() {
                    break;
                }
                self.encoder.encode(&self.burst, &mut document);
            }
            self.out = document;
        }
        match self.burst.failure().cloned() {
            Some(failure) if self.burst.tokens() == 0 || !self.answer.streamed() => {
                let mut out = BytesMut::new();
                let refusal = self.answer.refuse(&failure, &mut out);
                First::Refused(refusal, out.freeze(), failure)
            }
            _ => First::Begins(self),
        }
    }

    /// The gathered document of an answer that is not streamed.
    pub(super) fn into_document(self) -> Bytes {
        self.out.freeze()
    }

    pub(super) fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if !self.out.is_empty() && self.held_until.is_none() {
            self.stream.handed();
            return Poll::Ready(Some(self.frame()));
        }
        loop {
            if !std::mem::take(&mut self.primed) {
                match self.stream.poll_burst(cx, &mut self.burst) {
                    Poll::Ready(true) => {}
                    Poll::Ready(false) if self.out.is_empty() => return Poll::Ready(None),
                    Poll::Ready(false) => return Poll::Ready(Some(self.frame())),
                    Poll::Pending => {
                        return match self.held_until {
                            Some(until) => self.poll_held(cx, until),
                            None => self.poll_keep_alive(cx),
                        };
                    }
                }
            }
            self.notice = None;
            if self.out.capacity() == 0 {
                self.out.reserve(BUFFER);
            }
            match self.burst.failure() {
                Some(failure) if !self.answer.streamed() => {
                    self.answer.refuse(failure, &mut self.out);
                }
                _ => self.encoder.encode(&self.burst, &mut self.out),
            }
            if self.out.is_empty() {
                continue;
            }
            let first = self.burst.times().first();
            let waited = first.map_or(0, |first| clock::task_micros().saturating_sub(first.at));
            let waited = Duration::from_micros(waited);
            self.held_until = self.pacer.hold(self.out.len(), waited, Instant::now());
            if self.held_until.is_none() {
                return Poll::Ready(Some(self.frame()));
            }
        }
    }

    /// Cuts one frame off what is encoded.
    fn frame(&mut self) -> Bytes {
        self.quiet_since = Instant::now();
        self.held_until = None;
        if self.is_whole {
            return self.out.split().freeze();
        }
        let len = self.out.len().min(MAX_FRAME);
        self.pacer.sent(len, self.quiet_since);
        self.out.split_to(len).freeze()
    }

    /// Nothing more has come yet: sends what is held once its time is over.
    fn poll_held(&mut self, cx: &mut Context<'_>, until: Instant) -> Poll<Option<Bytes>> {
        let alarm = self
            .alarm
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if alarm.deadline() != until {
            alarm.as_mut().reset(until);
        }
        ready!(alarm.as_mut().poll(cx));
        self.stream.handed();
        Poll::Ready(Some(self.frame()))
    }

    /// Sends a sign of life when nothing has gone out for a while. One timer per stream, moved only
    /// when it rings: tokens do not touch it.
    fn poll_keep_alive(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            let due = self.due();
            let alarm = self
                .alarm
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
            if alarm.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            if !self.tell_place(now) && self.quiet_since + self.keep_alive <= now {
                self.quiet_since = now;
                self.encoder.keep_alive(&mut self.out);
            }
            let frame = (!self.out.is_empty()).then(|| self.frame());
            let due = self.due();
            if let Some(alarm) = &mut self.alarm {
                alarm.as_mut().reset(due);
            }
            if frame.is_some() {
                self.stream.handed_nothing();
                return Poll::Ready(frame);
            }
        }
    }

    /// When something may be sent though there is no text.
    fn due(&self) -> Instant {
        let sign_of_life = self.quiet_since + self.keep_alive;
        self.notice
            .map_or(sign_of_life, |(_, at)| at.min(sign_of_life))
    }

    /// Writes the place in line if it is time to tell it and there is one; whether it did.
    fn tell_place(&mut self, now: Instant) -> bool {
        let Some((every, at)) = self.notice else {
            return false;
        };
        if now < at {
            return false;
        }
        self.notice = Some((every, now + every));
        let Some(queued) = self.stream.queued() else {
            return false;
        };
        self.encoder.queued(queued, &mut self.out);
        if self.out.is_empty() {
            // The format has no place for it.
            self.notice = None;
        }
        !self.out.is_empty()
    }
}

impl Stream for TokenBody {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.poll_bytes(cx)
    }
}

impl Body for TokenBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.poll_bytes(cx)
            .map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
