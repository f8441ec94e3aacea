//! Who a stream is charged to, as far as it needs to know.

use super::Failure;

/// Told of every token of a stream, and when there will be no more.
pub trait Meter: Send + Sync {
    /// So many tokens were delivered now. Called once per burst.
    ///
    /// # Errors
    /// Nobody pays for the next one: the stream ends after these.
    fn charge(&self, tokens: u32) -> Result<(), UsedUp>;

    /// The server gave the request up before its first token: nobody pays for its prompt. Called before
    /// [`Meter::settle`], if at all.
    fn forgive(&self);

    /// The stream is over: gives back what was reserved and not delivered. Called once, from any thread.
    fn settle(&self);
}

/// A limit has no tokens left.
#[derive(Clone, Debug)]
pub struct UsedUp {
    /// Which one: `caller.tokens_per_minute`.
    pub limit: &'static str,
    /// How the stream is to end.
    pub end: Ending,
}

/// How a stream ends for which nobody pays any more.
#[derive(Clone, Debug)]
pub enum Ending {
    /// As if every open choice had reached its `max_tokens`.
    Length,
    /// With this failure.
    Failed(Failure),
}
