//! When the server is not asked: after a few failures in a row, and then for a growing while.

use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row after which the node goes on alone.
const FAILURES: u32 = 3;

/// Before the first look whether the server is back, and the longest between two. With a fifth more of
/// jitter this leaves time to be in step again within five seconds.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(2);

/// Closed while the server answers.
#[derive(Debug)]
pub(super) struct Breaker {
    failures: u32,
    /// When to look next, if it is open.
    probe: Option<(Instant, Duration)>,
}

impl Breaker {
    pub(super) fn new() -> Self {
        Self {
            failures: 0,
            probe: None,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.probe.is_some()
    }

    /// When to look whether the server is back.
    pub(super) fn probe_at(&self) -> Option<Instant> {
        self.probe.map(|(at, _)| at)
    }

    /// The server has answered. Whether it was away.
    pub(super) fn answered(&mut self) -> bool {
        self.failures = 0;
        self.probe.take().is_some()
    }

    /// The server has not answered, or not well. Whether it is away from now on. `random` spreads the
    /// looks of many nodes.
    pub(super) fn failed(&mut self, now: Instant, random: u8) -> bool {
        self.failures = self.failures.saturating_add(1);
        if self.failures < FAILURES {
            return false;
        }
        let was_open = self.is_open();
        let pause = self
            .probe
            .map_or(FIRST, |(_, pause)| (pause * 2).min(LONGEST));
        // From four to six fifths of the pause.
        let jittered = pause * (4 * 255 + 2 * u32::from(random)) / (5 * 255);
        self.probe = Some((now + jittered, pause));
        !was_open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_a_few_failures_in_a_row_and_looks_ever_less_often() {
        let (mut breaker, mut now) = (Breaker::new(), Instant::now());
        assert!(!breaker.failed(now, 0) && !breaker.failed(now, 0));
        assert!(!breaker.answered());
        assert!(!breaker.failed(now, 0) && !breaker.failed(now, 0) && !breaker.is_open());
        assert!(breaker.failed(now, 0) && breaker.is_open());
        for (random, millis) in [
            (255, 80),
            (0, 240),
            (0, 320),
            (0, 640),
            (255, 1280),
            (0, 2400),
        ] {
            let at = breaker.probe_at().unwrap();
            assert_eq!(at - now, Duration::from_millis(millis));
            now = at;
            assert!(!breaker.failed(now, random));
        }
        assert!(breaker.answered() && !breaker.is_open());
    }
}
