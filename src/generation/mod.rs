//! The shared nouns: what a request is, what comes back, and how it ends.
//!
//! Floor 0 of the house: everything above speaks in these types, and nothing here knows a socket, a
//! dialect, a model file or a metric name.
//!
//! * [`Request`]: one generation, parsed and bounded, whoever asked and in whatever dialect.
//! * [`Burst`]: the events that are ready now, in one reusable buffer; an encoder walks it.
//! * [`Source`]: one choice of one request, as an engine produces it.
//! * [`TokenStream`]: the receiver that carries bursts up. It owns permits, outcome and cancellation.
//! * [`EmbedRequest`] and [`RerankRequest`]: texts to vectors, documents to scores.
//! * [`Failure`]: one fact that went wrong, fit to be dressed by any dialect.
//! * [`Watch`]: deadlines and stalled readers, for streams that nobody polls.

mod burst;
mod caller;
pub mod clock;
mod failure;
mod live;
mod meter;
mod outcome;
mod queued;
pub mod ranges;
mod request;
mod shared;
mod source;
mod stream;
mod timeline;
mod trace;
pub mod vectors;
mod watch;

use std::pin::Pin;

pub use burst::{Burst, Event, Scored, TokenLogprob, TokenTime};
pub use caller::{Caller, Rights, Scopes};
pub use failure::{Failure, Kind, chain};
pub use live::{Live, Stage};
pub use meter::{Ending, Meter, UsedUp};
pub use outcome::{Finish, Outcome, Record, Recorder, Usage, Waits};
pub use queued::Queued;
pub use request::{
    AdapterRef, Class, Constraint, Deadlines, Dry, Grammar, Input, Message, Mirostat, Request,
    RequestId, Role, Sampling, UseAdapter, Xtc,
};
pub use source::{Cancel, Happened, Source};
pub use stream::{Opening, Permit, TokenStream};
pub use timeline::{Gap, Moment, Timeline};
#[cfg(test)]
pub(crate) use trace::Sink;
pub use trace::{Exchange, Told, Trace, TraceContext, TraceSink, Work};
pub use vectors::{EmbedRequest, RerankRequest, Scores, Vectors};
pub use watch::{Watch, WatchGuard};

/// A boxed future, for the few traits that must be object safe.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
