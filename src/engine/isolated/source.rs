//! One choice as the parent sees it: frames out of its connection, events into the burst.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use tokio::net::UnixStream;

use super::answers;
use super::burst::Checked;
use super::frame::{Body, Inbox, Kind, Malformed};
use super::keeper::Link;
use crate::engine::history::History;
use crate::generation::{Burst, Cancel, Failure, Finish, Happened, Moment, Queued, Source, clock};

/// Most text of one round: no count of tokens bounds what a child writes that does not keep to them.
const TEXT: usize = 64 * 1024;

/// Reads one choice's connection.
pub(super) struct IsolatedSource {
    wire: Arc<Wire>,
    link: Arc<Link>,
    inbox: Inbox,
    choice: u32,
    /// Tokens of the first frame in the inbox that are counted already.
    counted: usize,
    /// Prompt tokens that it may still call cached.
    uncached: u32,
    last_at: u64,
    /// When the last thing happened that the child told of.
    moment_at: u64,
    queued: Option<Queued>,
}

/// A connection that anybody may end.
struct Wire {
    stream: UnixStream,
    cancelled: AtomicBool,
    /// What the child told of the sequence.
    history: History,
}

impl Cancel for Wire {
    fn cancel(&self) {
        if !self.cancelled.swap(true, Relaxed) {
            // The child reads the end of it, and writes no more.
            let _ = rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Both);
        }
    }

    fn moments(&self, seen: u32, tell: &mut dyn FnMut(u64, Moment)) -> Happened {
        self.history.tell(seen, tell)
    }
}

/// What a look into the inbox came to.
#[derive(PartialEq, Eq)]
enum Took {
    Nothing,
    /// Nothing for the burst.
    Place,
    Something,
    End,
}

impl IsolatedSource {
    pub(super) fn new(
        link: Arc<Link>,
        stream: UnixStream,
        inbox: Inbox,
        choice: u32,
        prompt_tokens: u32,
    ) -> Self {
        Self {
            wire: Arc::new(Wire {
                stream,
                cancelled: AtomicBool::new(false),
                history: History::default(),
            }),
            link,
            inbox,
            choice,
            counted: 0,
            uncached: prompt_tokens,
            last_at: 0,
            moment_at: 0,
            queued: None,
        }
    }

    /// Moves the first frame of the inbox into `burst`, as far as there is room.
    fn take(&mut self, burst: &mut Burst) -> Result<Took, Malformed> {
        let Some((kind, body)) = self.inbox.peek()? else {
            return Ok(Took::Nothing);
        };
        match kind {
            Kind::Burst => self.queued = None,
            Kind::Queued => {
                self.queued = answers::queued(Body(body))?;
                self.inbox.skip();
                return Ok(Took::Place);
            }
            Kind::Moments => {
                let now = clock::micros();
                for moment in answers::moments(Body(body))? {
                    let (at, moment) = moment?;
                    self.moment_at = at.min(now).max(self.moment_at).max(1);
                    self.wire.history.note(self.moment_at, moment);
                }
                self.inbox.skip();
                return Ok(Took::Place);
            }
            _ => return Err(Malformed("something else than a burst")),
        }
        let frame = Checked::read(body)?;
        let now = clock::micros();
        for (at, bytes) in frame.times().skip(self.counted).take(burst.room()) {
            // A token cannot come from the future, nor before the one before it.
            self.last_at = at.min(now).max(self.last_at).max(1);
            burst.token(self.choice, self.last_at, bytes);
            self.counted += 1;
        }
        if self.counted < frame.times().len() {
            return Ok(Took::Something);
        }
        let cached = frame.cached.min(self.uncached);
        self.uncached -= cached;
        burst.cached(cached);
        let ended = frame.add_to(burst, self.choice);
        self.inbox.skip();
        self.counted = 0;
        Ok(if ended { Took::End } else { Took::Something })
    }

    /// Waits for bytes and reads some.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.wire.stream.poll_read_ready(cx))?;
            let stream = &self.wire.stream;
            match self.inbox.fill(|space| stream.try_read(space)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn broke(&self, error: &io::Error) -> Failure {
        if self.wire.cancelled.load(Relaxed) {
            return Failure::new(
                crate::generation::Kind::Cancelled,
                "The request was cancelled.",
            );
        }
        self.link.gone(error)
    }
}

impl Source for IsolatedSource {
    fn poll_fill(&mut self, cx: &mut Context<'_>, burst: &mut Burst) -> Poll<()> {
        let before = burst.buffer().len();
        let mut moved = false;
        loop {
            match self.take(burst) {
                Ok(Took::Nothing) if moved => return Poll::Ready(()),
                Ok(Took::Nothing) => {}
                Ok(Took::Place) => continue,
                Ok(Took::Something) => {
                    moved = true;
                    if burst.room() == 0 || burst.buffer().len() - before > TEXT {
                        return Poll::Ready(());
                    }
                    continue;
                }
                Ok(Took::End) => return Poll::Ready(()),
                Err(malformed) => {
                    burst.failed(self.link.condemn(malformed));
                    return Poll::Ready(());
                }
            }
            if let Err(error) = ready!(self.poll_read(cx)) {
                burst.failed(self.broke(&error));
                return Poll::Ready(());
            }
        }
    }

    /// What the child holds back is with the child, and is lost with it.
    fn end_here(&mut self, burst: &mut Burst) {
        // A frame whose tokens are counted in part is told as a whole.
        let mut has_ended = false;
        if self.counted > 0
            && let Ok(Some((_, body))) = self.inbox.peek()
            && let Ok(frame) = Checked::read(body)
        {
            for (at, bytes) in frame.times().skip(self.counted) {
                burst.token(self.choice, at.max(self.last_at), bytes);
            }
            has_ended = frame.add_to(burst, self.choice);
        }
        if !has_ended {
            burst.finish(self.choice, Finish::Length);
        }
    }

    fn queued(&self) -> Option<Queued> {
        self.queued
    }

    fn canceller(&self) -> Arc<dyn Cancel> {
        self.wire.clone()
    }
}

impl Drop for IsolatedSource {
    /// The canceller may outlive the source, and with it the connection.
    fn drop(&mut self) {
        self.wire.cancel();
    }
}
