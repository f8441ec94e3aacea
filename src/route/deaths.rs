//! When to load a model again whose engine has died, and when to give up.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Deaths within [`WINDOW`] after which a model is not loaded again.
pub(super) const MOST_DEATHS: usize = 3;

/// How long a death counts.
const WINDOW: Duration = Duration::from_mins(1);

/// Pause before the first new load; it doubles with each death that counts.
const PAUSE: Duration = Duration::from_millis(250);

/// The deaths of one model that still count.
#[derive(Debug, Default)]
pub(super) struct Deaths(VecDeque<Instant>);

impl Deaths {
    /// Counts a death at `now`: how long to wait before loading again, or that it is not worth it.
    pub(super) fn another(&mut self, now: Instant) -> Option<Duration> {
        self.0
            .retain(|&death| now.saturating_duration_since(death) < WINDOW);
        self.0.push_back(now);
        if self.0.len() >= MOST_DEATHS {
            return None;
        }
        Some(PAUSE * (1 << (self.0.len() - 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_only_three_deaths_within_a_minute_are_too_many() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut deaths = Deaths::default();
        assert_eq!(deaths.another(at(0)), Some(PAUSE));
        assert_eq!(deaths.another(at(30)), Some(PAUSE * 2));
        assert_eq!(
            deaths.another(at(60)),
            Some(PAUSE * 2),
            "the first is forgotten"
        );
        assert_eq!(deaths.another(at(89)), None);
    }
}
