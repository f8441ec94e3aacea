//! The limiter's two times: one that only goes forward, and the calendar's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use governor::clock::FakeRelativeClock;
use governor::nanos::Nanos;

use crate::generation::clock::unix_seconds;

/// A moment, by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Nanoseconds since the limiter began; never goes back.
    pub nanos: u64,
    /// Seconds since 1970; may jump.
    pub unix: u64,
}

/// Tells the time: the process's, or a test's.
#[derive(Clone, Debug)]
pub struct Clock(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Real(Instant),
    Fake {
        clock: FakeRelativeClock,
        unix: Arc<AtomicU64>,
    },
}

impl Clock {
    /// The process's clock.
    #[must_use]
    pub fn real() -> Self {
        Self(Kind::Real(Instant::now()))
    }

    /// A clock that stands still until somebody turns it; the calendar begins at `unix`.
    #[must_use]
    pub fn fake(unix: u64) -> Self {
        Self(Kind::Fake {
            clock: FakeRelativeClock::default(),
            unix: Arc::new(AtomicU64::new(unix)),
        })
    }

    /// Turns a fake clock on. The process's own cannot be turned.
    pub fn advance(&self, by: Duration) {
        if let Kind::Fake { clock, unix } = &self.0 {
            clock.advance(by);
            unix.fetch_add(by.as_secs(), Relaxed);
        }
    }

    /// Sets the calendar of a fake clock, as an operator may set a machine's.
    pub fn set_calendar(&self, to: u64) {
        if let Kind::Fake { unix, .. } = &self.0 {
            unix.store(to, Relaxed);
        }
    }

    /// Now.
    #[must_use]
    pub fn at(&self) -> At {
        let unix = match &self.0 {
            Kind::Real(_) => unix_seconds(),
            Kind::Fake { unix, .. } => unix.load(Relaxed),
        };
        At {
            nanos: governor::clock::Clock::now(self).as_u64(),
            unix,
        }
    }
}

impl governor::clock::Clock for Clock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        match &self.0 {
            Kind::Real(epoch) => {
                Nanos::new(u64::try_from(epoch.elapsed().as_nanos()).unwrap_or(u64::MAX))
            }
            Kind::Fake { clock, .. } => clock.now(),
        }
    }
}
