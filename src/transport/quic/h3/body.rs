//! A request's body, read from its stream when the handler asks and not before: that is what holds the
//! client's upload back.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h3::error::Code;
use h3::server::RequestStream;
use http_body::{Frame, SizeHint};

use super::backend::Reader;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// The receiving half of a request's stream.
pub(super) struct RequestBody {
    stream: RequestStream<Reader, Bytes>,
    state: State,
    /// What is still to come of what `content-length` announced.
    announced: Option<u64>,
}

#[derive(PartialEq)]
enum State {
    Data,
    Trailers,
    End,
}

impl RequestBody {
    pub(super) fn new(stream: RequestStream<Reader, Bytes>, announced: Option<u64>) -> Self {
        Self {
            stream,
            state: State::Data,
            announced,
        }
    }

    /// RFC 9114, section 4.1.2: a body that differs from its `content-length` is malformed.
    fn malformed(&mut self) -> Error {
        self.state = State::End;
        self.stream.stop_sending(Code::H3_MESSAGE_ERROR);
        "the body is not as long as content-length says".into()
    }

    fn count(&mut self, bytes: usize) -> Result<(), Error> {
        let Some(left) = &mut self.announced else {
            return Ok(());
        };
        match left.checked_sub(bytes as u64) {
            Some(rest) => *left = rest,
            None => return Err(self.malformed()),
        }
        Ok(())
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.state == State::Data {
            match ready!(self.stream.poll_recv_data(cx)) {
                Ok(Some(mut data)) => {
                    let data = data.copy_to_bytes(data.remaining());
                    let counted = self.count(data.len());
                    return Poll::Ready(Some(counted.map(|()| Frame::data(data))));
                }
                Ok(None) if self.announced.is_some_and(|left| left > 0) => {
                    return Poll::Ready(Some(Err(self.malformed())));
                }
                Ok(None) => self.state = State::Trailers,
                Err(error) => {
                    self.state = State::End;
                    return Poll::Ready(Some(Err(error.into())));
                }
            }
        }
        if self.state == State::Trailers {
            let trailers = ready!(self.stream.poll_recv_trailers(cx));
            self.state = State::End;
            match trailers {
                Ok(Some(trailers)) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.state == State::End
    }

    fn size_hint(&self) -> SizeHint {
        match self.announced {
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if self.state != State::End {
            // An answer may be whole before the request is (RFC 9114, section 4.1).
            self.stream.stop_sending(Code::H3_NO_ERROR);
        }
    }
}
