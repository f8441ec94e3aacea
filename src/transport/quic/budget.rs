//! What one connection may have unsent or unacknowledged: so much for each open stream.
//!
//! quinn bounds that per connection only (`send_window`), so the bound moves as streams begin and end.
//! A stream that its reader keeps shut holds nothing of it: quinn takes only what the peer has room for.

use std::sync::{Arc, Mutex, PoisonError};

/// The send window of one connection.
pub(crate) struct SendBudget {
    connection: quinn::Connection,
    per_stream: u64,
    open: Mutex<u64>,
}

impl SendBudget {
    pub(super) fn new(connection: quinn::Connection, per_stream: usize) -> Arc<Self> {
        Arc::new(Self {
            connection,
            per_stream: u64::try_from(per_stream).unwrap_or(u64::MAX),
            open: Mutex::new(0),
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
    #[test]
    fn the_window_is_so_much_for_each_stream_and_never_nothing() {
        assert_eq!(super::window(65_536, 0), 65_536);
        assert_eq!(super::window(65_536, 1), 65_536);
        assert_eq!(super::window(65_536, 100), 6_553_600);
        assert_eq!(super::window(u64::MAX, 2), u64::MAX);
    }
}
