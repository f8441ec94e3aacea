//! The streams of a connection, as `h3` reads and writes them.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h3::error::Code;
use h3::quic::{
    self, ConnectionErrorIncoming, StreamErrorIncoming as StreamError, StreamId, WriteBuf,
};
use quinn::VarInt;

use super::Shared;
use crate::transport::quic::h3::frames::{FrameError, Frames};
use crate::transport::quic::priority;

#[cfg(test)]
mod tests;

/// Most bytes that one read takes from quinn.
const READ: usize = 16 * 1024;

/// Reads without anything to hand on, after which others get a turn.
const READS_IN_A_ROW: usize = 32;

/// What is read of a stream.
pub(in super::super) struct Reader {
    stream: quinn::RecvStream,
    /// Read and not handed on yet.
    chunk: Bytes,
    frames: Frames,
    shared: Arc<Shared>,
}

impl Reader {
    pub(super) fn new(stream: quinn::RecvStream, frames: Frames, shared: Arc<Shared>) -> Self {
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
pub(super) enum Order {
    Control,
    Answer(Arc<Shared>),
}

/// What is written to a stream.
pub(in super::super) struct Writer<B: Buf> {
    stream: quinn::SendStream,
    order: Order,
    /// What quinn was told last.
    told: i32,
    sent: u64,
    pending: Bytes,
    body: std::marker::PhantomData<fn(B)>,
}

impl<B: Buf> Writer<B> {
    pub(super) fn new(stream: quinn::SendStream, order: Order) -> Self {
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
pub(in super::super) struct Both<B: Buf> {
    pub(super) send: Writer<B>,
    pub(super) recv: Reader,
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

pub(super) fn to_varint(code: u64) -> VarInt {
    VarInt::from_u64(code).unwrap_or(VarInt::MAX)
}

#[expect(clippy::expect_used, reason = "both numbers have 62 bits")]
fn to_stream_id(id: quinn::StreamId) -> StreamId {
    StreamId::try_from(u64::from(id)).expect("an id of QUIC is an id of HTTP/3")
}

pub(super) fn connection_error(error: quinn::ConnectionError) -> ConnectionErrorIncoming {
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

pub(super) fn lost(error: quinn::ConnectionError) -> StreamError {
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
