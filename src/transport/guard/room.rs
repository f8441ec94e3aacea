//! What the kernel may hold of a connection that carries token streams only.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use crate::transport::outq::SendQueue;

/// What the kernel may hold of a connection that carries token streams only.
pub(super) struct Room {
    /// Of one stream.
    share: usize,
    /// At most so many bytes are unacknowledged: what was when the kernel was asked last, and all that was
    /// written since. So a reader who keeps up costs one system call in `share` bytes.
    pub(super) under_way: usize,
    alarm: Option<Pin<Box<Sleep>>>,
    wait: Duration,
}

/// Acknowledgements wake nobody: they are looked for after about a round trip, and ever more rarely.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LAST_LOOK: Duration = Duration::from_millis(500);

impl Room {
    pub(super) fn new(share: usize) -> Self {
        Self {
            share,
            under_way: 0,
            alarm: None,
            wait: FIRST_LOOK,
        }
    }

    /// Ready when more may be written for so many streams; 0 means that there is no bound.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        streams: usize,
        socket: &impl SendQueue,
    ) -> Poll<()> {
        let most = self.share.saturating_mul(streams);
        while streams > 0 && self.under_way > most {
            let queue = socket.queue();
            self.under_way = queue.unacknowledged;
            // Of what is not even sent the kernel takes no more by itself, and says when it does.
            if queue.unacknowledged <= most || queue.unsent > most / 2 {
                break;
            }
            let alarm = self
                .alarm
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(self.wait)));
            ready!(alarm.as_mut().poll(cx));
            self.wait = (self.wait * 2).min(LAST_LOOK);
            alarm.as_mut().reset(Instant::now() + self.wait);
        }
        if self.alarm.take().is_some() {
            // Whoever was told to wait relies on being woken, although it may write on before: hyper then
            // gathers no more, and would never ask again.
            cx.waker().wake_by_ref();
        }
        self.wait = FIRST_LOOK;
        Poll::Ready(())
    }
}
