//! One clock for token times: microseconds since the process started.
//!
//! Token times travel through rings as one `u64`; an `Instant` has no portable integer form. Zero is
//! kept free to mean "never", so the epoch lies one microsecond before the first reading.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

static EPOCH: OnceLock<Instant> = OnceLock::new();

fn epoch() -> Instant {
    *EPOCH.get_or_init(|| {
        let now = Instant::now();
        now.checked_sub(Duration::from_micros(1)).unwrap_or(now)
    })
}

/// Microseconds from the epoch to `at`; never zero.
#[must_use]
pub fn micros_of(at: Instant) -> u64 {
    let elapsed = at.saturating_duration_since(epoch()).as_micros();
    u64::try_from(elapsed).unwrap_or(u64::MAX).max(1)
}

/// Seconds since 1970, for documents. Durations never come from here: this clock may jump.
#[must_use]
pub fn unix_seconds() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Microseconds from the epoch to now, by the real clock. For engine threads.
#[must_use]
pub fn micros() -> u64 {
    micros_of(Instant::now())
}

/// Microseconds from the epoch to now, by tokio's clock, which tests may pause. For tasks.
#[must_use]
pub fn task_micros() -> u64 {
    micros_of(tokio::time::Instant::now().into_std())
}
