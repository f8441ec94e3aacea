//! quinn behind the `quic` traits of the `h3` crate.
//!
//! Our own, because requests need three things beside those traits: whether a stream came before the
//! handshake had ended, its priority, and a notice of `STOP_SENDING` while nothing is being written. They
//! are left in a [`Slot`] when a stream is accepted, for the task that serves its request. And what is
//! read passes [`Frames`] first.

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h3::error::Code;
use h3::quic::{
    self, ConnectionErrorIncoming, StreamErrorIncoming as StreamError, StreamId, WriteBuf,
};
use quinn::VarInt;

use super::frames::{FrameError, Frames};
use crate::transport::quic::priority;

#[cfg(test)]
mod tests;

/// Most bytes that one read takes from quinn.
const READ: usize = 16 * 1024;

/// Reads without anything to hand on, after which others get a turn.
const READS_IN_A_ROW: usize = 32;

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

/// What is read of a stream.
pub(super) struct Reader {
    stream: quinn::RecvStream,
    /// Read and not handed on yet.
    chunk: Bytes,
    frames: Frames,
    shared: Arc<Shared>,
}

impl Reader {
    fn new(stream: quinn::RecvStream, frames: Frames, shared: Arc<Shared>) -> Self {
        Self {
            stream,
            chunk: Bytes::new(),
            frames,
            shared,
        }
    }

    /// The peer broke a rule of framing: nothing more is read, and the stream is reset in the end.
    fn broken(&mut self, error: FrameError) -> StreamError {
        let code = match error {
            FrameError::TooLarge(_) => Code::H3_EXCESSIVE_LOAD,
            FrameError::Truncated => Code::H3_REQUEST_INCOMPLETE,
        };
        self.shared.refuse(code);
        let _ = self.stream.stop(to_varint(code.value()));
        StreamError::Unknown(Box::new(error))
    }
}

impl quic::RecvStream for Reader {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        for _ in 0..READS_IN_A_ROW {
            match self.frames.next(&mut self.chunk) {
                Ok(Some(piece)) => return Poll::Ready(Ok(Some(piece))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(self.broken(error))),
            }
            // Costs nothing to begin anew: quinn keeps the waker by stream, not by future.
            let read = pin!(self.stream.read_chunk(READ, true)).poll(cx);
            match ready!(read) {
                Ok(Some(chunk)) => self.chunk = chunk.bytes,
                Ok(None) => {
                    return Poll::Ready(match self.frames.end() {
                        Ok(()) => Ok(None),
                        Err(error) => Err(self.broken(error)),
                    });
                }
                Err(error) => return Poll::Ready(Err(read_error(error))),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn stop_sending(&mut self, code: u64) {
        let _ = self.stream.stop(to_varint(code));
    }

    fn recv_id(&self) -> StreamId {
        to_stream_id(self.stream.id())
    }
}

/// In which order a stream's data goes out.
enum Order {
    Control,
    Answer(Arc<Shared>),
}

/// What is written to a stream.
pub(super) struct Writer<B: Buf> {
    stream: quinn::SendStream,
    order: Order,
    /// What quinn was told last.
    told: i32,
    sent: u64,
    pending: Bytes,
    body: std::marker::PhantomData<fn(B)>,
}

impl<B: Buf> Writer<B> {
    fn new(stream: quinn::SendStream, order: Order) -> Self {
        Self {
            stream,
            order,
            told: 0,
            sent: 0,
            pending: Bytes::new(),
            body: std::marker::PhantomData,
        }
    }

    fn prioritize(&mut self) {
        let wanted = match &self.order {
            Order::Control => priority::CONTROL,
            Order::Answer(shared) => priority::order(shared.urgency.load(Relaxed), self.sent),
        };
        if wanted != self.told {
            let _ = self.stream.set_priority(wanted);
            self.told = wanted;
        }
    }
}

impl<B: Buf> quic::SendStream<B> for Writer<B> {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        while !self.pending.is_empty() {
            self.prioritize();
            let chunks = std::slice::from_mut(&mut self.pending);
            let written = pin!(self.stream.write_chunks(chunks)).poll(cx);
            self.sent += ready!(written).map_err(write_error)?.bytes as u64;
        }
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<B>>>(&mut self, data: T) -> Result<(), StreamError> {
        if !self.pending.is_empty() {
            return Err(StreamError::ConnectionErrorIncoming {
                connection_error: ConnectionErrorIncoming::InternalError(
                    "a stream was written to before it was ready".to_owned(),
                ),
            });
        }
        // One copy puts a frame's header and its payload into one write: one lock of the connection and
        // one wake-up of its driver for a token, not two.
        let mut data = data.into();
        self.pending = data.copy_to_bytes(data.remaining());
        Ok(())
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        Poll::Ready(
            self.stream
                .finish()
                .map_err(|error| StreamError::Unknown(Box::new(error))),
        )
    }

    fn reset(&mut self, code: u64) {
        let _ = self.stream.reset(to_varint(code));
    }

    fn send_id(&self) -> StreamId {
        to_stream_id(self.stream.id())
    }
}

impl<B: Buf> Drop for Writer<B> {
    fn drop(&mut self) {
        if let Order::Answer(shared) = &self.order
            && let Some(code) = shared.refusal()
        {
            let _ = self.stream.reset(to_varint(code));
        }
    }
}

/// Both directions of a stream.
pub(super) struct Both<B: Buf> {
    send: Writer<B>,
    recv: Reader,
}

impl<B: Buf> quic::RecvStream for Both<B> {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        self.recv.poll_data(cx)
    }

    fn stop_sending(&mut self, code: u64) {
        self.recv.stop_sending(code);
    }

    fn recv_id(&self) -> StreamId {
        self.recv.recv_id()
    }
}

impl<B: Buf> quic::SendStream<B> for Both<B> {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.send.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<B>>>(&mut self, data: T) -> Result<(), StreamError> {
        self.send.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.send.poll_finish(cx)
    }

    fn reset(&mut self, code: u64) {
        self.send.reset(code);
    }

    fn send_id(&self) -> StreamId {
        self.send.send_id()
    }
}

impl<B: Buf> quic::BidiStream<B> for Both<B> {
    type SendStream = Writer<B>;
    type RecvStream = Reader;

    fn split(self) -> (Writer<B>, Reader) {
        (self.send, self.recv)
    }
}

fn to_varint(code: u64) -> VarInt {
    VarInt::from_u64(code).unwrap_or(VarInt::MAX)
}

#[expect(clippy::expect_used, reason = "both numbers have 62 bits")]
fn to_stream_id(id: quinn::StreamId) -> StreamId {
    StreamId::try_from(u64::from(id)).expect("an id of QUIC is an id of HTTP/3")
}

fn connection_error(error: quinn::ConnectionError) -> ConnectionErrorIncoming {
    match error {
        quinn::ConnectionError::ApplicationClosed(closed) => {
            ConnectionErrorIncoming::ApplicationClose {
                error_code: closed.error_code.into(),
            }
        }
        quinn::ConnectionError::TimedOut => ConnectionErrorIncoming::Timeout,
        error => ConnectionErrorIncoming::Undefined(Arc::new(error)),
    }
}

fn lost(error: quinn::ConnectionError) -> StreamError {
    StreamError::ConnectionErrorIncoming {
        connection_error: connection_error(error),
    }
}

fn write_error(error: quinn::WriteError) -> StreamError {
    match error {
        quinn::WriteError::Stopped(code) => StreamError::StreamTerminated {
            error_code: code.into_inner(),
        },
        quinn::WriteError::ConnectionLost(error) => lost(error),
        error => StreamError::Unknown(Box::new(error)),
    }
}

fn read_error(error: quinn::ReadError) -> StreamError {
    match error {
        quinn::ReadError::Reset(code) => StreamError::StreamTerminated {
            error_code: code.into_inner(),
        },
        quinn::ReadError::ConnectionLost(error) => lost(error),
        error => StreamError::Unknown(Box::new(error)),
    }
}
