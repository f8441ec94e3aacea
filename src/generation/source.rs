//! What a stream reads from: one choice of one request, and the handle that reaches it from elsewhere.

use std::sync::Arc;
use std::task::{Context, Poll};

use super::{Burst, Moment, Queued};

/// One choice of one request, as an engine produces it.
pub trait Source: Send {
    /// Moves what is ready into `burst`, at most [`Burst::room`] tokens of it.
    ///
    /// `Pending` means that nothing was added and the task will be woken. After a source has added
    /// its `finish` or a failure it is not polled again.
    fn poll_fill(&mut self, cx: &mut Context<'_>, burst: &mut Burst) -> Poll<()>;

    /// Ends the choice where it is: adds the text that was held back, and its `finish` with
    /// [`super::Finish::Length`]. It is not polled again.
    fn end_here(&mut self, burst: &mut Burst);

    /// Where it stands in line, while it waits for its turn and where that is known.
    fn queued(&self) -> Option<Queued> {
        None
    }

    /// A handle that stops the work behind this source from any thread.
    fn canceller(&self) -> Arc<dyn Cancel>;
}

/// Stops the work behind one source. Idempotent, and never blocks.
pub trait Cancel: Send + Sync {
    /// Frees what the source holds in its engine, at its next step.
    fn cancel(&self);

    /// Tells what has happened to the source beside its tokens, oldest first, but for the first `seen`
    /// things; and how much there was of it in all. Whatever is not kept any more is only counted.
    fn moments(&self, _seen: u32, _tell: &mut dyn FnMut(u64, Moment)) -> Happened {
        Happened::default()
    }
}

/// How much has happened to one source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Happened {
    /// Moments in all.
    pub moments: u32,
    /// Of these, [`Moment::Paused`].
    pub pauses: u32,
    /// Of these, [`Moment::Preempted`].
    pub preemptions: u32,
}
