//! quinn behind the `quic` traits of the `h3` crate.
//!
//! Our own, because requests need three things beside those traits: whether a stream came before the
//! handshake had ended, its priority, and a notice of `STOP_SENDING` while nothing is being written. They
//! are left in a [`Slot`] when a stream is accepted, for the task that serves its request. And what is
//! read passes [`Frames`] first; the streams themselves are in `streams`.

use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Buf;
use h3::error::Code;
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming as StreamError};
use quinn::VarInt;

use self::streams::{Both, Order, connection_error, lost, to_varint};
pub(super) use self::streams::{Reader, Writer};
use super::frames::Frames;

mod streams;

type Pending<T> = Pin<Box<dyn Future<Output = T> + Send + Sync>>;

/// What a request's task knows about its stream and may do to it, beside what `h3` offers.
pub(super) struct Control {
    /// Whether the stream began before the handshake had ended.
    pub(super) early: bool,
    /// Ends when the peer wants no more of the answer (a code), or has acknowledged all (none).
    pub(super) stopped: Pending<Result<Option<VarInt>, quinn::StoppedError>>,
    /// Shared with the stream's halves.
    pub(super) shared: Arc<Shared>,
}

/// What the halves of a stream and its request's task have in common.
#[derive(Default)]
pub(super) struct Shared {
    urgency: AtomicU8,
    /// 0, or one more than the code with which a dropped stream is reset.
    refused: AtomicU64,
}

impl Shared {
    pub(super) fn prioritize(&self, urgency: u8) {
        self.urgency.store(urgency, Relaxed);
    }

    /// Resets the stream with this code when it is dropped; without, what was written is sent.
    pub(super) fn refuse(&self, code: Code) {
        self.refused.store(code.value() + 1, Relaxed);
    }

    fn refusal(&self) -> Option<u64> {
        self.refused.load(Relaxed).checked_sub(1)
    }
}

/// The stream that was accepted last. `h3` hands a stream on in the same poll that accepted it, or
/// rejects it, so there is never more than one of interest.
pub(super) type Slot = Arc<Mutex<Option<Control>>>;

/// A connection.
pub(super) struct Connection {
    quic: quinn::Connection,
    accept_bi:
        Option<Pending<Result<(quinn::SendStream, quinn::RecvStream), quinn::ConnectionError>>>,
    accept_uni: Option<Pending<Result<quinn::RecvStream, quinn::ConnectionError>>>,
    opener: Opener,
    slot: Slot,
    frame_bound: usize,
}

impl Connection {
    /// `frame_bound`: most bytes of a frame that has to be whole to be understood.
    pub(super) fn new(connection: quinn::Connection, frame_bound: usize) -> (Self, Slot) {
        let slot = Slot::default();
        let backend = Self {
            opener: Opener::new(connection.clone(), frame_bound),
            quic: connection,
            accept_bi: None,
            accept_uni: None,
            slot: slot.clone(),
            frame_bound,
        };
        (backend, slot)
    }
}

/// Polls the future in this slot, put there by `begin` when the last one has ended.
fn poll_slot<T>(
    slot: &mut Option<Pending<T>>,
    cx: &mut Context<'_>,
    begin: impl FnOnce() -> Pending<T>,
) -> Poll<T> {
    let done = ready!(slot.get_or_insert_with(begin).as_mut().poll(cx));
    *slot = None;
    Poll::Ready(done)
}

impl<B: Buf> quic::Connection<B> for Connection {
    type RecvStream = Reader;
    type OpenStreams = Opener;

    fn poll_accept_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Reader, ConnectionErrorIncoming>> {
        let connection = &self.quic;
        let begin = || -> Pending<_> {
            let connection = connection.clone();
            Box::pin(async move { connection.accept_uni().await })
        };
        let accepted = ready!(poll_slot(&mut self.accept_uni, cx, begin));
        let frames = Frames::of_unidirectional(self.frame_bound);
        Poll::Ready(match accepted {
            Ok(stream) => Ok(Reader::new(stream, frames, Arc::default())),
            Err(error) => Err(connection_error(error)),
        })
    }

    fn poll_accept_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Both<B>, ConnectionErrorIncoming>> {
        let connection = &self.quic;
        let begin = || -> Pending<_> {
            let connection = connection.clone();
            Box::pin(async move { connection.accept_bi().await })
        };
        let accepted = ready!(poll_slot(&mut self.accept_bi, cx, begin));
        let (send, recv) = match accepted {
            Ok(stream) => stream,
            Err(error) => return Poll::Ready(Err(connection_error(error))),
        };
        let shared = Arc::<Shared>::default();
        let control = Control {
            early: recv.is_0rtt(),
            stopped: Box::pin(send.stopped()),
            shared: shared.clone(),
        };
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(control);
        let frames = Frames::of_request(self.frame_bound);
        Poll::Ready(Ok(Both {
            send: Writer::new(send, Order::Answer(shared.clone())),
            recv: Reader::new(recv, frames, shared),
        }))
    }

    fn opener(&self) -> Opener {
        Opener::new(self.quic.clone(), self.frame_bound)
    }
}

/// Opens streams of our own: the control stream and QPACK's.
pub(super) struct Opener {
    connection: quinn::Connection,
    open_bi:
        Option<Pending<Result<(quinn::SendStream, quinn::RecvStream), quinn::ConnectionError>>>,
    open_uni: Option<Pending<Result<quinn::SendStream, quinn::ConnectionError>>>,
    frame_bound: usize,
}

impl Opener {
    fn new(connection: quinn::Connection, frame_bound: usize) -> Self {
        Self {
            connection,
            open_bi: None,
            open_uni: None,
            frame_bound,
        }
    }
}

impl<B: Buf> quic::OpenStreams<B> for Opener {
    type BidiStream = Both<B>;
    type SendStream = Writer<B>;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Both<B>, StreamError>> {
        let connection = &self.connection;
        let begin = || -> Pending<_> {
            let connection = connection.clone();
            Box::pin(async move { connection.open_bi().await })
        };
        let opened = ready!(poll_slot(&mut self.open_bi, cx, begin));
        let (send, recv) = opened.map_err(lost)?;
        let shared = Arc::<Shared>::default();
        let frames = Frames::of_request(self.frame_bound);
        Poll::Ready(Ok(Both {
            send: Writer::new(send, Order::Answer(shared.clone())),
            recv: Reader::new(recv, frames, shared),
        }))
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<Writer<B>, StreamError>> {
        let connection = &self.connection;
        let begin = || -> Pending<_> {
            let connection = connection.clone();
            Box::pin(async move { connection.open_uni().await })
        };
        let opened = ready!(poll_slot(&mut self.open_uni, cx, begin));
        Poll::Ready(Ok(Writer::new(opened.map_err(lost)?, Order::Control)))
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.connection.close(to_varint(code.value()), reason);
    }
}

impl<B: Buf> quic::OpenStreams<B> for Connection {
    type BidiStream = Both<B>;
    type SendStream = Writer<B>;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Both<B>, StreamError>> {
        self.opener.poll_open_bidi(cx)
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<Writer<B>, StreamError>> {
        self.opener.poll_open_send(cx)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.quic.close(to_varint(code.value()), reason);
    }
}
