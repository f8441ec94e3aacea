//! `sluice/1`: each request is a stream of the QUIC connection, whose halves carry frames.

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use hyper::StatusCode;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use quinn::{ReadError, RecvStream, VarInt, WriteError};

use super::error::Error;
use super::exchange::Request;
use crate::generation::Kind as FailureKind;
use crate::wire::failure::codes;
use crate::wire::sluice::FRAMES;
use crate::wire::sluice::fault::Fault;
use crate::wire::sluice::frames::{Decoder, Frame, Kind, header};
use crate::wire::sluice::head::{Headers, RequestHead, ResponseHead};

/// Most bytes of a body in one DATA frame.
const DATA: usize = 16 * 1024;

/// Most bytes that one read takes from quinn.
const READ: usize = 16 * 1024;

/// What a server is told whose answer is no longer wanted.
const CANCELLED: VarInt = VarInt::from_u32(codes(FailureKind::Cancelled).quic);

/// The body of an answer.
pub(super) struct Body {
    stream: RecvStream,
    decoder: Decoder,
    /// Bytes that were read and not decoded yet.
    unread: Bytes,
    scratch: Box<[u8]>,
    /// The answer is frames itself, and is given out as such.
    is_frames: bool,
    /// END, ERROR or FIN was seen.
    has_ended: bool,
}

/// Sends a request and reads the head of its answer.
pub(super) async fn send(
    connection: &quinn::Connection,
    request: &Request,
) -> Result<(StatusCode, HeaderMap, Body), Error> {
    let (mut send, recv) = connection.open_bi().await.map_err(Error::quic)?;
    let mut body = Body {
        stream: recv,
        decoder: Decoder::new(),
        unread: Bytes::new(),
        scratch: vec![0; READ].into(),
        is_frames: false,
        has_ended: false,
    };
    match send.write_all_chunks(&mut frames(request)).await {
        Ok(()) => {
            // Fails only if the server wants no more, and then there is an answer all the same.
            let _ = send.finish();
        }
        Err(WriteError::Stopped(_)) => {}
        Err(error) => return Err(Error::quic(error)),
    }
    let head = std::future::poll_fn(|context| body.poll_head(context)).await?;
    let status = StatusCode::from_u16(head.status).map_err(|error| Error::Request(error.into()))?;
    let mut headers = HeaderMap::new();
    for (name, value) in head.headers.0 {
        // What cannot be a header has nothing to say here.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.append(name, value);
        }
    }
    body.is_frames = headers
        .get(hyper::header::CONTENT_TYPE)
        .is_some_and(|content_type| content_type == FRAMES);
    Ok((status, headers, body))
}

/// The frames of a request: REQUEST, and DATA for its body.
fn frames(request: &Request) -> Vec<Bytes> {
    let headers = request.headers.iter().filter_map(|(name, value)| {
        let value = value.to_str().ok()?.to_owned();
        Some((name.as_str().to_owned(), value))
    });
    let head = RequestHead {
        method: request.method.as_str().to_owned(),
        path: request.path.clone(),
        headers: Headers(headers.collect()),
    };
    // Strings and lists always serialize.
    let json = serde_json::to_vec(&head).unwrap_or_default();
    let mut own = BytesMut::new();
    Frame::Request(&json).encode(&mut own);
    let mut frames = vec![own.split().freeze()];
    let mut body = request.body.clone();
    while !body.is_empty() {
        let piece = body.split_to(body.len().min(DATA));
        header(&mut own, Kind::Data, piece.len());
        frames.extend([own.split().freeze(), piece]);
    }
    frames
}

impl Body {
    pub(super) fn poll_chunk(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Error>>> {
        loop {
            if self.has_ended {
                return Poll::Ready(None);
            }
            if self.is_frames && !self.unread.is_empty() {
                return Poll::Ready(Some(Ok(std::mem::take(&mut self.unread))));
            }
            match self.take_data() {
                Ok(None) => {}
                found => {
                    self.has_ended |= found.is_err();
                    return Poll::Ready(found.transpose());
                }
            }
            if self.has_ended {
                continue;
            }
            match ready!(self.poll_read(context)) {
                Ok(true) => {}
                Ok(false) => {
                    self.has_ended = true;
                    // Frames tell themselves whether they are whole.
                    let end = (!self.is_frames).then_some(Err(Error::Truncated));
                    return Poll::Ready(end);
                }
                Err(error) => {
                    self.has_ended = true;
                    return Poll::Ready(Some(Err(Error::quic(error))));
                }
            }
        }
    }

    /// The next bytes of the body among those that were read.
    fn take_data(&mut self) -> Result<Option<Bytes>, Error> {
        while !self.unread.is_empty() {
            let mut input = &self.unread[..];
            let data = match self.decoder.next(&mut input)? {
                Some(Frame::Data(piece)) => Some(self.unread.slice_ref(piece)),
                Some(Frame::Error(json)) => return Err(reported(json)),
                Some(Frame::End(_)) => {
                    self.has_ended = true;
                    None
                }
                _ => None,
            };
            let taken = self.unread.len() - input.len();
            self.unread.advance(taken);
            if data.is_some() || self.has_ended {
                return Ok(data);
            }
        }
        Ok(None)
    }

    fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<Result<ResponseHead, Error>> {
        loop {
            let mut input = &self.unread[..];
            let head = match self.decoder.next(&mut input)? {
                Some(Frame::Response(json)) => Some(
                    serde_json::from_slice(json).map_err(|source| Error::malformed(json, source)),
                ),
                Some(Frame::Error(json)) => Some(Err(reported(json))),
                _ => None,
            };
            let taken = self.unread.len() - input.len();
            self.unread.advance(taken);
            if let Some(head) = head {
                return Poll::Ready(head);
            }
            if self.unread.is_empty() && !ready!(self.poll_read(context)).map_err(Error::quic)? {
                return Poll::Ready(Err(Error::Truncated));
            }
        }
    }

    /// Reads more; false at the end of the stream.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, ReadError>> {
        let read = ready!(self.stream.poll_read(context, &mut self.scratch))?;
        self.unread = Bytes::copy_from_slice(&self.scratch[..read]);
        Poll::Ready(Ok(read > 0))
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        // After the end it has no effect.
        let _ = self.stream.stop(CANCELLED);
    }
}

/// The ERROR frame of an answer that is frames, as JSON.
pub(super) fn error_in(body: &[u8]) -> Option<Bytes> {
    let (mut decoder, mut input) = (Decoder::new(), body);
    while let Some(frame) = decoder.next(&mut input).ok()? {
        if let Frame::Error(json) = frame {
            return Some(Bytes::copy_from_slice(json));
        }
    }
    None
}

/// What an ERROR frame says.
pub(super) fn reported(json: &[u8]) -> Error {
    match serde_json::from_slice::<Fault>(json) {
        Ok(fault) => Error::Reported {
            message: fault.message,
        },
        Err(source) => Error::malformed(json, source),
    }
}
