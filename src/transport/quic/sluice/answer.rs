//! What a client gets on one stream: the head of an answer, then its events or its body.
//!
//! A body that is frames already goes out as it is. Any other is put into DATA, with an END behind it.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use quinn::SendStream;
use tower_service::Service as _;

use crate::generation::Failure;
use crate::transport::guard::InFlight;
use crate::transport::quic::budget::Share;
use crate::transport::quic::{Error, OF_A_CONNECTION, priority};
use crate::wire::sluice::frames::{Frame, Kind, Reasons, header as frame_header};
use crate::wire::sluice::head::{Headers, ResponseHead};
use crate::wire::sluice::{FRAMES, fault};

/// Most bytes of a body in one DATA frame.
const DATA: usize = 16 * 1024;

/// Why an answer was not written to its end.
pub(super) enum Broken {
    /// The client wants no more of it, or is not there.
    Gone,
    /// The client keeps its window shut.
    Stalled,
    /// The answer itself broke off.
    Answer(Error),
}

/// The sending half of a request's stream.
pub(super) struct Answer<'s> {
    stream: &'s mut SendStream,
    share: &'s Share,
    /// How long the client may take nothing.
    write_timeout: Duration,
    urgency: u8,
    sent: u64,
    /// Frames and beginnings of frames that are ours to write.
    own: BytesMut,
    /// What goes out next, together: at most the head, one DATA frame in two parts, and END.
    waiting: Vec<Bytes>,
}

impl<'s> Answer<'s> {
    pub(super) fn new(
        stream: &'s mut SendStream,
        share: &'s Share,
        write_timeout: Duration,
    ) -> Self {
        Self {
            stream,
            share,
            write_timeout,
            urgency: priority::urgency(&HeaderMap::new()),
            sent: 0,
            own: BytesMut::new(),
            waiting: Vec::new(),
        }
    }

    /// Takes the request's word for how urgent its answer is.
    pub(super) fn prioritize(&mut self, headers: &HeaderMap) {
        self.urgency = priority::urgency(headers);
    }

    /// Says why there is no request to answer.
    pub(super) async fn refuse(mut self, failure: &Failure) -> Result<(), Broken> {
        let mut error = BytesMut::new();
        let refusal = fault::refuse(failure, &mut error);
        let content_type = (header::CONTENT_TYPE.to_string(), FRAMES.to_owned());
        self.head(&ResponseHead {
            status: refusal.status,
            headers: Headers(vec![content_type]),
        });
        self.waiting.push(error.freeze());
        self.flush().await?;
        self.finish()
    }

    /// Asks the router and writes what it answers.
    pub(super) async fn respond(
        mut self,
        mut router: Router,
        request: Request<Body>,
        in_flight: InFlight,
    ) -> Result<(), Broken> {
        let is_head = request.method() == Method::HEAD;
        let response = router.call(request).await;
        let (parts, body) = response.map_err(|e| Broken::Answer(e.into()))?.into_parts();
        let mut body = in_flight.until_end_of(body, &parts.extensions);
        let has_body = !is_head
            && parts.status != StatusCode::NO_CONTENT
            && parts.status != StatusCode::NOT_MODIFIED;
        let is_frames = has_body
            && parts
                .headers
                .get(header::CONTENT_TYPE)
                .is_some_and(|content_type| content_type == FRAMES);
        self.head(&ResponseHead {
            status: parts.status.as_u16(),
            headers: named(&parts.headers),
        });
        while has_body && let Some(piece) = self.next(&mut body).await? {
            if is_frames {
                self.waiting.push(piece);
            } else {
                self.data(piece).await?;
            }
            // The end of a document goes out with it.
            if !body.is_end_stream() {
                self.flush().await?;
            }
        }
        if !is_frames {
            self.frame(&Frame::End(Reasons::default()));
        }
        self.flush().await?;
        self.finish()
    }

    /// The next bytes of the body. What waits is not kept back for them.
    async fn next<B>(&mut self, body: &mut B) -> Result<Option<Bytes>, Broken>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: Into<Error>,
    {
        loop {
            let mut polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut *body).poll_frame(cx))).await;
            if polled.is_pending() {
                self.flush().await?;
                polled = Poll::Ready(poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await);
            }
            let Poll::Ready(Some(frame)) = polled else {
                return Ok(None);
            };
            let frame = frame.map_err(|error| Broken::Answer(error.into()))?;
            // Trailers have no place here.
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
            {
                return Ok(Some(data));
            }
        }
    }

    fn head(&mut self, head: &ResponseHead) {
        let json = serde_json::to_vec(head).unwrap_or_default();
        self.frame(&Frame::Response(&json));
    }

    fn frame(&mut self, frame: &Frame<'_>) {
        frame.encode(&mut self.own);
        self.waiting.push(self.own.split().freeze());
    }

    /// Puts bytes of a body into DATA; all but the last frame goes out.
    async fn data(&mut self, mut bytes: Bytes) -> Result<(), Broken> {
        loop {
            let piece = bytes.split_to(bytes.len().min(DATA));
            frame_header(&mut self.own, Kind::Data, piece.len());
            self.waiting.push(self.own.split().freeze());
            self.waiting.push(piece);
            if bytes.is_empty() {
                return Ok(());
            }
            self.flush().await?;
        }
    }

    /// Writes what waits. Until quinn has taken it, nothing more is asked of the body.
    async fn flush(&mut self) -> Result<(), Broken> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let order = priority::order(self.urgency, self.sent);
        if self.stream.priority().is_ok_and(|now| now != order) {
            // Fails only where the write will.
            let _ = self.stream.set_priority(order);
        }
        self.sent += self
            .waiting
            .iter()
            .map(|bytes| bytes.len() as u64)
            .sum::<u64>();
        let written = self
            .share
            .write(self.stream.write_all_chunks(&mut self.waiting));
        let in_time = tokio::time::timeout(self.write_timeout, written).await;
        self.waiting.clear();
        match in_time {
            Ok(written) => written.map_err(|_| Broken::Gone),
            Err(_) => Err(Broken::Stalled),
        }
    }

    fn finish(self) -> Result<(), Broken> {
        self.stream.finish().map_err(|_| Broken::Gone)
    }
}

/// Headers as RESPONSE has them. What speaks of a connection has no meaning here.
fn named(headers: &HeaderMap) -> Headers {
    let pairs = headers.iter().filter_map(|(name, value)| {
        let is_ours = !OF_A_CONNECTION.contains(&name.as_str());
        let value = value.to_str().ok().filter(|_| is_ours)?;
        Some((name.as_str().to_owned(), value.to_owned()))
    });
    Headers(pairs.collect())
}
