//! Where a request stands that waits for its turn.

use std::time::Duration;

/// A place in line, as it was seen lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Queued {
    /// Among all who wait for the same model, in the order in which they are likely to be served; the
    /// next one has 1.
    pub position: u32,
    /// How long it is likely to wait, where that is known.
    pub estimate: Option<Duration>,
}
