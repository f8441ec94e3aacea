//! The bytes of a streamed answer, across connections.
//!
//! A server that keeps its streams tells an id with the answer. When the connection is lost, the rest is
//! asked for by that id and by the number of whole events that were given out, so that none is missing and
//! none comes twice. Half an event is forgotten: the server sends it again.
//!
//! Such a server also goes on when its reader leaves, so who leaves before the end says so.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::HeaderName;

use super::connection::Inner;
use super::error::Error;
use super::exchange::{Answer, Body, Request};

const STREAM_ID: HeaderName = HeaderName::from_static("x-stream-id");

/// How often a stream is asked for again before an event comes of it. With the waits between, half a
/// minute: less than servers keep a stream.
const ATTEMPTS: u32 = 8;

/// The wait before the second attempt, doubled for each further one up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(8);

/// Bytes of a stream.
#[derive(Debug)]
pub(super) struct Feed {
    body: Body,
    /// If the server keeps it.
    kept: Option<Kept>,
    has_ended: bool,
}

/// What comes of a stream.
#[derive(Debug, PartialEq)]
pub(super) enum Fed {
    Bytes(Bytes),
    /// The next bytes begin a new event, the one after those that were given out. What is there of another
    /// is to be forgotten.
    Anew,
}

/// A stream that the server keeps.
struct Kept {
    client: Arc<Inner>,
    id: String,
    content_type: String,
    /// Attempts that may be made one after another.
    most: u32,
    /// Attempts since the last event.
    attempts: u32,
    /// Events that were there when it was last resumed.
    at: u64,
    under_way: Option<Pin<Box<Asking>>>,
    /// Why it has to be resumed: what is told if it cannot be.
    lost: Option<Error>,
}

/// A request for the rest.
type Asking = dyn Future<Output = Result<Answer, Error>> + Send + Sync;

impl Feed {
    /// The body of an answer. `resume`: whether it is to be picked up when its connection is lost.
    pub(super) fn new(answer: Answer, client: &Arc<Inner>, resume: bool) -> Self {
        let id = answer.header(&STREAM_ID).map(ToOwned::to_owned);
        let kept = id.map(|id| Kept {
            client: Arc::clone(client),
            id,
            content_type: answer.content_type(),
            most: if resume { ATTEMPTS } else { 0 },
            attempts: 0,
            at: 0,
            under_way: None,
            lost: None,
        });
        Self {
            body: answer.body,
            kept,
            has_ended: false,
        }
    }

    /// The server has said all that there is to say.
    pub(super) fn end(&mut self) {
        self.has_ended = true;
    }

    /// What comes next. `given`: events that were given out so far.
    ///
    /// # Errors
    /// The connection is lost, and so is the stream.
    pub(super) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
        given: u64,
    ) -> Poll<Result<Fed, Error>> {
        loop {
            if let Some(kept) = &mut self.kept
                && kept.under_way.is_some()
            {
                if let Some(body) = ready!(kept.poll(context, given))? {
                    self.body = body;
                    return Poll::Ready(Ok(Fed::Anew));
                }
                continue;
            }
            let error = match ready!(self.body.poll_chunk(context)) {
                Some(Ok(bytes)) => return Poll::Ready(Ok(Fed::Bytes(bytes))),
                Some(Err(error)) => error,
                None => Error::Truncated,
            };
            match &mut self.kept {
                Some(kept) if error.is_loss() => kept.begin(error, given)?,
                _ => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        if let Some(kept) = self.kept.take_if(|_| !self.has_ended) {
            let path = kept.client.endpoint().path(&format!("streams/{}", kept.id));
            kept.client.say(Request::delete(path));
        }
    }
}

impl Kept {
    /// Asks again, after a wait from the second time on.
    fn begin(&mut self, error: Error, given: u64) -> Result<(), Error> {
        if given > self.at {
            (self.at, self.attempts) = (given, 0);
        }
        if self.attempts >= self.most {
            return Err(self.lost.take().unwrap_or(error));
        }
        let wait = match self.attempts {
            0 => Duration::ZERO,
            n => (FIRST_WAIT * 2_u32.saturating_pow(n - 1)).min(LONGEST_WAIT),
        };
        self.attempts += 1;
        self.lost.get_or_insert(error);
        let path = format!("streams/{}?after={given}", self.id);
        let path = self.client.endpoint().path(&path);
        let client = Arc::clone(&self.client);
        self.under_way = Some(Box::pin(async move {
            tokio::time::sleep(wait).await;
            // The stream has its format already.
            client
                .send(&Request::get(path, "*/*"))
                .await?
                .accepted()
                .await
        }));
        Ok(())
    }

    /// The body that goes on, or nothing if it is asked for once more.
    fn poll(&mut self, context: &mut Context<'_>, given: u64) -> Poll<Result<Option<Body>, Error>> {
        let Some(under_way) = &mut self.under_way else {
            return Poll::Ready(Ok(None));
        };
        let ended = ready!(under_way.as_mut().poll(context));
        self.under_way = None;
        Poll::Ready(match ended {
            Ok(answer) if answer.content_type() == self.content_type => {
                self.lost = None;
                Ok(Some(answer.body))
            }
            Err(error) if error.is_loss() => self.begin(error, given).map(|()| None),
            // It is not there any more, or not ours.
            Ok(_) | Err(_) => Err(self.lost.take().unwrap_or(Error::Truncated)),
        })
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept")
            .field("attempts", &self.attempts)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}
