//! A line of things that come out so much later than they went in, in the same order.

use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, sleep_until};

/// The end where things go in.
#[derive(Debug)]
pub(super) struct Entry<T> {
    delay: Duration,
    line: mpsc::Sender<(Instant, T)>,
}

/// The end where they come out.
#[derive(Debug)]
pub(super) struct Exit<T> {
    line: mpsc::Receiver<(Instant, T)>,
}

/// A line with room for so many things.
pub(super) fn line<T>(delay: Duration, room: usize) -> (Entry<T>, Exit<T>) {
    let (sender, receiver) = mpsc::channel(room);
    (
        Entry {
            delay,
            line: sender,
        },
        Exit { line: receiver },
    )
}

impl<T> Entry<T> {
    /// Puts something in if there is room; whether there was.
    pub(super) fn offer(&self, thing: T) -> bool {
        self.line
            .try_send((Instant::now() + self.delay, thing))
            .is_ok()
    }

    /// Waits for room; whether anybody is left at the other end.
    pub(super) async fn put(&self, thing: T) -> bool {
        let due = Instant::now() + self.delay;
        self.line.send((due, thing)).await.is_ok()
    }
}

impl<T> Exit<T> {
    /// The next thing, when its time has come; `None` when no more can come.
    pub(super) async fn take(&mut self) -> Option<T> {
        let (due, thing) = self.line.recv().await?;
        // Most are due by the time that the one before has gone out.
        if due > Instant::now() {
            sleep_until(due).await;
        }
        Some(thing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn things_come_out_in_order_and_late_by_the_delay() {
        let (entry, mut exit) = line(Duration::from_millis(20), 8);
        let begin = Instant::now();
        assert!(entry.offer(1) && entry.offer(2));
        tokio::time::advance(Duration::from_millis(5)).await;
        assert!(entry.put(3).await);
        drop(entry);
        let mut seen = Vec::new();
        while let Some(thing) = exit.take().await {
            seen.push((thing, begin.elapsed().as_millis()));
        }
        assert_eq!(seen, [(1, 20), (2, 20), (3, 25)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_line_takes_no_more() {
        let (entry, exit) = line(Duration::from_millis(20), 1);
        assert!(entry.offer(1) && !entry.offer(2));
        drop(exit);
        assert!(!entry.put(3).await);
    }
}
