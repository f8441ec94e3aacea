//! The trace that a request belongs to: carried from its first byte to its last, told when nobody holds it
//! any more.
//!
//! Whoever works on a request holds its [`Trace`] and tells it what there is to tell. The last one to let go
//! of it ends it, whatever ended the request, so no trace is told twice or before its time.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Failure, Record, RequestId, Timeline, clock};

/// Names a trace and our part of it (W3C Trace Context, section 3.2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// All parts of the trace have it in common; never zero.
    pub trace_id: u128,
    /// Our part: the request, from its first byte to its last; never zero.
    pub span_id: u64,
    /// The caller's part, if the caller has one.
    pub parent: Option<u64>,
    /// Whether the caller keeps their part.
    pub is_sampled: bool,
    /// What other systems want handed on, as it came.
    pub state: Option<Box<str>>,
    /// The caller wants every detail of this one.
    pub is_debug: bool,
}

impl TraceContext {
    /// The trace's name as it is written everywhere: lower-case hexadecimal digits.
    #[must_use]
    pub fn trace_hex(&self) -> impl fmt::Display + use<> {
        Hex::<32>(self.trace_id)
    }

    /// The name of our part.
    #[must_use]
    pub fn span_hex(&self) -> impl fmt::Display + use<> {
        Hex::<16>(self.span_id.into())
    }
}

struct Hex<const DIGITS: usize>(u128);

impl<const DIGITS: usize> fmt::Display for Hex<DIGITS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:0DIGITS$x}", self.0)
    }
}

/// How a request came and how its answer went, as its transport saw it.
#[derive(Clone, Debug, Default)]
pub struct Exchange {
    /// The method of HTTP.
    pub method: &'static str,
    /// The path as routes name it, never as the caller wrote it.
    pub route: &'static str,
    /// `h1`, `h2`, `h3`, `sluice`.
    pub transport: &'static str,
    /// The request's id.
    pub id: Option<RequestId>,
    /// The status of the answer; 0 before there was one.
    pub status: u16,
    /// Bytes of the answer's body that the transport took.
    pub bytes: u64,
    /// Whether the body was taken to its end.
    pub is_whole: bool,
    /// How long the body had more to give while the connection had no room for it.
    pub stalled: Duration,
}

/// One piece of work that a request asked for; a JSON-RPC batch asks for several.
#[derive(Debug)]
pub struct Work {
    /// The name under which the route is counted.
    pub route: &'static str,
    /// The model's name, as it is counted.
    pub model: Arc<str>,
    /// When it was accepted, as [`clock::task_micros`].
    pub accepted_at: u64,
    /// How it went.
    pub record: Record,
    /// When its tokens came.
    pub timeline: Timeline,
    /// What went wrong.
    pub failure: Option<Failure>,
}

/// Everything about one request, once it is over.
#[derive(Debug)]
pub struct Told {
    /// Its names.
    pub context: TraceContext,
    /// When it began, as [`clock::task_micros`].
    pub began_at: u64,
    /// When it ended.
    pub ended_at: u64,
    /// How it came and went.
    pub exchange: Exchange,
    /// What was done for it.
    pub works: Vec<Work>,
}

/// Is told of requests that are over. Telemetry implements it; it must not wait.
pub trait TraceSink: Send + Sync {
    /// A request is over.
    fn told(&self, told: Told);
}

/// The trace of one request. Clones are the same trace.
#[derive(Clone, Default)]
pub struct Trace(Option<Arc<Inner>>);

struct Inner {
    context: TraceContext,
    began_at: AtomicU64,
    is_debug: AtomicBool,
    sink: Arc<dyn TraceSink>,
    so_far: Mutex<(Exchange, Vec<Work>)>,
}

impl Trace {
    /// A request begins now.
    #[must_use]
    pub fn begin(context: TraceContext, sink: Arc<dyn TraceSink>) -> Self {
        Self(Some(Arc::new(Inner {
            began_at: AtomicU64::new(clock::task_micros()),
            is_debug: AtomicBool::new(context.is_debug),
            context,
            sink,
            so_far: Mutex::default(),
        })))
    }

    /// No trace: nothing is told.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Its names, if there is one.
    #[must_use]
    pub fn context(&self) -> Option<&TraceContext> {
        Some(&self.0.as_ref()?.context)
    }

    /// The request had begun before it was known to be one: at this [`clock::task_micros`].
    pub fn began_at(&self, at: u64) {
        if let Some(inner) = &self.0 {
            inner.began_at.fetch_min(at, Relaxed);
        }
    }

    /// The caller wants every detail of this one, and may.
    pub fn mark_debug(&self) {
        if let Some(inner) = &self.0 {
            inner.is_debug.store(true, Relaxed);
        }
    }

    /// Tells how the request came, or how its answer goes.
    pub fn exchange(&self, tell: impl FnOnce(&mut Exchange)) {
        if let Some(inner) = &self.0 {
            tell(&mut inner.lock().0);
        }
    }

    /// Tells of work that is over.
    pub fn work(&self, work: Work) {
        if let Some(inner) = &self.0 {
            inner.lock().1.push(work);
        }
    }
}

impl Inner {
    fn lock(&self) -> std::sync::MutexGuard<'_, (Exchange, Vec<Work>)> {
        self.so_far.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let so_far = self.so_far.get_mut();
        let (exchange, works) = std::mem::take(so_far.unwrap_or_else(PoisonError::into_inner));
        let is_debug = *self.is_debug.get_mut();
        self.sink.told(Told {
            context: TraceContext {
                is_debug,
                ..std::mem::take(&mut self.context)
            },
            began_at: *self.began_at.get_mut(),
            ended_at: clock::task_micros(),
            exchange,
            works,
        });
    }
}

impl PartialEq for Trace {
    /// Whether they are the same trace.
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        }
    }
}

impl Eq for Trace {}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.context().fmt(f)
    }
}

/// Keeps what it is told, for tests.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct Sink(pub(crate) Mutex<Vec<Told>>);

#[cfg(test)]
impl TraceSink for Sink {
    fn told(&self, told: Told) {
        self.0.lock().unwrap().push(told);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_with_the_first_byte_and_may_be_marked_later() {
        let sink = Arc::new(Sink::default());
        let trace = Trace::begin(TraceContext::default(), sink.clone());
        trace.began_at(u64::MAX);
        drop(trace);
        let trace = Trace::begin(TraceContext::default(), sink.clone());
        trace.began_at(1);
        trace.mark_debug();
        drop(trace);
        let told = sink.0.lock().unwrap();
        assert!(told[0].began_at <= told[0].ended_at, "never later");
        assert!(!told[0].context.is_debug);
        assert_eq!((told[1].began_at, told[1].context.is_debug), (1, true));
    }

    #[test]
    fn it_is_told_once_when_the_last_holder_lets_go() {
        let sink = Arc::new(Sink::default());
        let context = TraceContext {
            trace_id: 7,
            ..TraceContext::default()
        };
        let trace = Trace::begin(context, sink.clone());
        let other = trace.clone();
        trace.exchange(|exchange| exchange.status = 200);
        drop(trace);
        assert!(sink.0.lock().unwrap().is_empty());
        other.exchange(|exchange| exchange.is_whole = true);
        drop(other);
        let told = sink.0.lock().unwrap();
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].context.trace_id, 7);
        assert_eq!(
            (told[0].exchange.status, told[0].exchange.is_whole),
            (200, true)
        );
    }
}
