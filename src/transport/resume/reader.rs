//! The body of a resumable answer: what the log holds, then what comes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use tokio_stream::Stream;

use super::super::pace::Pace;
use super::super::tokens::MAX_FRAME;
use super::{Entry, Keeper, More, State, Streams};

/// Reads a stream from some event on. Dropped before the end, it leaves the stream to a keeper.
pub(in crate::transport) struct Reader {
    streams: Arc<Streams>,
    entry: Arc<Entry>,
    turn: u64,
    /// The last event in `rest` and what was handed out.
    after: u64,
    /// What is still to be handed out, frame by frame.
    rest: Bytes,
    ids: bool,
    is_over: bool,
}

/// Why a reader ends before its stream: another one reads on. Ends its connection (HTTP/1.1) or resets its
/// stream, so that what was cut off never looks whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream is read on over another connection")]
pub(in crate::transport) struct TakenOver;

impl Reader {
    pub(super) fn new(
        streams: Arc<Streams>,
        entry: Arc<Entry>,
        turn: u64,
        after: u64,
        ids: bool,
    ) -> Self {
        Self {
            streams,
            entry,
            turn,
            after,
            rest: Bytes::new(),
            ids,
            is_over: false,
        }
    }

    /// The stream's id.
    pub(in crate::transport) fn id(&self) -> &str {
        &self.entry.id
    }

    /// The stream's content type.
    pub(in crate::transport) fn content_type(&self) -> &'static str {
        self.entry.content_type
    }

    /// Whether nothing is left to read.
    pub(in crate::transport) fn is_at_end(&self) -> bool {
        let state = self.entry.lock();
        state.ended_at.is_some() && state.log.newest() == self.after
    }

    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, TakenOver>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let entry = self.entry.clone();
        let mut state = entry.lock();
        if state.turn != self.turn {
            self.is_over = true;
            return Poll::Ready(Some(Err(TakenOver)));
        }
        if self.rest.is_empty() && state.log.newest() == self.after {
            // Everything was handed out, so that something old may go for what comes.
            state.log.make_room();
            let more = state.poll_more(cx);
            if more.is_pending() {
                state.wait(cx);
            }
            match ready!(more) {
                More::Events => {}
                More::KeepAlive(bytes) => return Poll::Ready(Some(Ok(state.hand(bytes)))),
                More::End => {
                    self.is_over = true;
                    return Poll::Ready(None);
                }
            }
        }
        if self.rest.is_empty() {
            self.gather(&state);
        }
        let frame = self.rest.split_to(self.rest.len().min(MAX_FRAME));
        if self.rest.is_empty() {
            state.given = state.given.max(self.after);
        }
        Poll::Ready(Some(Ok(state.hand(frame))))
    }

    /// Takes what waits in the log: one piece as it is, several small ones together.
    fn gather(&mut self, state: &State) {
        let events = self.entry.events;
        let mut pieces = state.log.after(self.after);
        let Some((first, piece)) = pieces.next() else {
            return;
        };
        let mut number = first + events.count(&piece);
        let mut next = pieces.next();
        if next.is_none() && !self.ids {
            self.rest = piece;
        } else {
            let mut joined = BytesMut::with_capacity(MAX_FRAME);
            let mut write = |bytes: &[u8], first: u64| {
                if self.ids {
                    events.with_ids(bytes, first, &mut joined);
                } else {
                    joined.extend_from_slice(bytes);
                }
                joined.len()
            };
            let mut len = write(&piece, first);
            while let Some((first, piece)) = next
                && len + piece.len() <= MAX_FRAME
            {
                len = write(&piece, first);
                number = first + events.count(&piece);
                next = pieces.next();
            }
            self.rest = joined.freeze();
        }
        drop(pieces);
        self.after = number - 1;
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let turn = {
            let mut state = self.entry.lock();
            if state.turn != self.turn {
                return;
            }
            state.is_read = false;
            // What was deleted has nobody to come back to it.
            if state.is_gone {
                return;
            }
            state.pass_turn(Pace::default())
        };
        Keeper::start(self.streams.clone(), self.entry.clone(), turn);
    }
}

impl Stream for Reader {
    type Item = Result<Bytes, TakenOver>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_bytes(cx)
    }
}

impl Body for Reader {
    type Data = Bytes;
    type Error = TakenOver;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, TakenOver>>> {
        self.poll_bytes(cx)
            .map(|bytes| bytes.map(|bytes| bytes.map(Frame::data)))
    }
}
