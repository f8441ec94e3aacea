//! What one connection may have unsent or unacknowledged: so much for each open stream.
//!
//! quinn bounds that per connection only (`send_window`), so the bound moves as streams begin and end.
//! A stream that its reader keeps shut holds nothing of it: quinn takes only what the peer has room for.
//!
//! Where all streams together want more than the bound, quinn wakes those that wait in the order of a
//! stack: who has waited longest is the last to find what became free, and finds nothing, again and again.
//! So whoever is woken before it has waited twice as long as is usual lets the others go first, once.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

/// The send window of one connection.
pub(crate) struct SendBudget {
    connection: quinn::Connection,
    per_stream: u64,
    open: Mutex<u64>,
    /// How long writes that had to wait have waited of late, in microseconds.
    usual_wait: AtomicU64,
}

impl SendBudget {
    pub(super) fn new(connection: quinn::Connection, per_stream: usize) -> Arc<Self> {
        Arc::new(Self {
            connection,
            per_stream: u64::try_from(per_stream).unwrap_or(u64::MAX),
            open: Mutex::new(0),
            usual_wait: AtomicU64::new(0),
        })
    }

    /// Makes room for one more stream until the share is dropped.
    pub(crate) fn stream(self: &Arc<Self>) -> Share {
        self.change(|open| open + 1);
        Share(self.clone())
    }

    fn change(&self, change: impl FnOnce(u64) -> u64) {
        // Held while the window is set, so that windows follow one another as counts do.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        *open = change(*open);
        self.connection
            .set_send_window(window(self.per_stream, *open));
    }
}

/// One stream's part.
pub(crate) struct Share(Arc<SendBudget>);

impl Share {
    /// Carries out a write that waits for room, in its turn.
    pub(crate) async fn write<F: Future>(&self, write: F) -> F::Output {
        in_turn(&self.0.usual_wait, write).await
    }
}

/// See [`Share::write`].
async fn in_turn<F: Future>(usual_wait: &AtomicU64, write: F) -> F::Output {
    let mut write = pin!(write);
    let mut waits_since = None::<Instant>;
    let mut has_yielded = false;
    poll_fn(|cx| {
        let usual = Duration::from_micros(usual_wait.load(Relaxed));
        if waits_since.is_some_and(|since| !has_yielded && since.elapsed() < 2 * usual) {
            has_yielded = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        has_yielded = false;
        let polled = write.as_mut().poll(cx);
        let Some(since) = waits_since else {
            if polled.is_pending() {
                waits_since = Some(Instant::now());
            }
            return polled;
        };
        if polled.is_ready() {
            let waited = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
            let usual = usual_wait.load(Relaxed);
            // Racing writers lose a sample at the most.
            usual_wait.store(usual - usual / 8 + waited / 8, Relaxed);
        }
        polled
    })
    .await
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.change(|open| open.saturating_sub(1));
    }
}

/// The window for so many open streams: never shut, because control streams need it as well.
fn window(per_stream: u64, open: u64) -> u64 {
    per_stream.saturating_mul(open.max(1))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::task::Waker;

    use tokio::task::LocalSet;

    use super::in_turn;
    use std::sync::atomic::AtomicU64;

    /// Room for so many writes, and a stack of those who wait for it, as in quinn.
    #[derive(Default)]
    struct Room {
        free: u32,
        waiting: Vec<Waker>,
    }

    /// What the writers of a connection get in 2,000 rounds, of which each has room for three writes.
    async fn served(writers: usize, is_fair: bool) -> Vec<u32> {
        let room = Rc::<RefCell<Room>>::default();
        let counts = Rc::new(RefCell::new(vec![0; writers]));
        let usual_wait = Rc::<AtomicU64>::default();
        let local = LocalSet::new();
        for writer in 0..writers {
            let (room, counts) = (room.clone(), counts.clone());
            let usual_wait = usual_wait.clone();
            local.spawn_local(async move {
                loop {
                    let write = std::future::poll_fn(|cx| {
                        let mut room = room.borrow_mut();
                        if room.free > 0 {
                            room.free -= 1;
                            return super::Poll::Ready(());
                        }
                        room.waiting.push(cx.waker().clone());
                        super::Poll::Pending
                    });
                    if is_fair {
                        in_turn(&usual_wait, write).await;
                    } else {
                        write.await;
                    }
                    counts.borrow_mut()[writer] += 1;
                }
            });
        }
        let rounds = async {
            for _ in 0..2000 {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                let mut woken = {
                    let mut room = room.borrow_mut();
                    room.free = 3;
                    std::mem::take(&mut room.waiting)
                };
                while let Some(waker) = woken.pop() {
                    waker.wake();
                }
            }
        };
        local.run_until(rounds).await;
        counts.take()
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_starves_where_all_want_more_than_there_is() {
        let least = |counts: Vec<u32>| *counts.iter().min().unwrap();
        assert_eq!(least(served(20, false).await), 0, "a stack is not fair");
        assert!(least(served(20, true).await) > 0);
    }

    #[test]
    fn the_window_is_so_much_for_each_stream_and_never_nothing() {
        assert_eq!(super::window(65_536, 0), 65_536);
        assert_eq!(super::window(65_536, 1), 65_536);
        assert_eq!(super::window(65_536, 100), 6_553_600);
        assert_eq!(super::window(u64::MAX, 2), u64::MAX);
    }
}
