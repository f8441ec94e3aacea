//! Whether drafts pay in the end: tokens per time of steps with them, against steps without.
//!
//! `worth.rs` decides by what calls of so many rows have cost. That is not the whole of it: calls whose
//! rows change have their graphs built anew, sequences with several rows get runs of their own, and rows
//! are sampled. All of that is in the time of a step. So where drafts are made, some steps go without, now
//! and then, and what was faster goes on. Drafts that lose are looked at again after ever longer times.

/// Steps of a window. A trial is so many of them, with drafts and without in turn: contexts grow, and
/// what the machine does beside changes.
const WINDOW: u32 = 32;
const WINDOWS: usize = 8;

/// Steps between two trials: at first and after a change of mind, and at most.
const REST: (u32, u32) = (512, 4096);

/// Steps with drafts must be faster by so much to go on, and by so much to begin again: less is chance,
/// and no drafts are less work.
const BETTER: (f64, f64) = (1.02, 1.06);

/// Steps with drafts that a trial must have seen, of 128: fewer say nothing about them, and cost nothing.
const ENOUGH: u32 = 32;

/// A step that takes so many times the usual counts for no more.
const CLIP: f64 = 4.0;

/// Numbers of streams told apart, by powers of two: what pays for one need not pay for eight.
const SIZES: usize = 10;

/// A trial for each number of streams.
#[derive(Debug, Default)]
pub(crate) struct Trials {
    sizes: [Trial; SIZES],
    /// Streams of the step under way.
    streams: usize,
}

impl Trials {
    /// Whether to make drafts in the step that begins, for so many streams.
    pub(crate) fn allows(&mut self, streams: usize) -> bool {
        self.streams = streams;
        self.size().allows()
    }

    /// Takes in the step: its tokens, the drafts among its rows, and how long drafts, call and sampling
    /// took.
    pub(crate) fn took(&mut self, tokens: u64, drafted: usize, us: u64) {
        if tokens > 0 {
            self.size().took(tokens, drafted, us);
        }
    }

    fn size(&mut self) -> &mut Trial {
        let at = self.streams.max(1).ilog2() as usize;
        &mut self.sizes[at.min(SIZES - 1)]
    }
}

#[derive(Clone, Copy, Debug)]
struct Trial {
    /// What was found to be faster.
    with: bool,
    /// Steps until the next trial: those with drafts, where they are made at all.
    left: u32,
    rest: u32,
    /// The window under way; the first one is with drafts.
    window: Option<usize>,
    steps: u32,
    sums: [Sum; WINDOWS],
    /// Steps of the trial in which drafts were made.
    made: u32,
    /// What a step takes, in microseconds; 0 before the first.
    usual: f64,
}

impl Default for Trial {
    fn default() -> Self {
        Self {
            with: true,
            // A little, so that calls of all sizes have been made.
            left: 2 * WINDOW,
            rest: REST.0,
            window: None,
            steps: 0,
            sums: [Sum::default(); WINDOWS],
            made: 0,
            usual: 0.0,
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    tokens: f64,
    us: f64,
}

impl Trial {
    fn allows(&self) -> bool {
        self.window.map_or(self.with, |window| window % 2 == 0)
    }

    #[expect(clippy::cast_precision_loss, reason = "three digits count")]
    fn took(&mut self, tokens: u64, drafted: usize, us: u64) {
        let mut us = us as f64;
        if self.usual == 0.0 {
            self.usual = us;
        }
        us = us.min(self.usual * CLIP);
        self.usual += (us - self.usual) / 16.0;
        let Some(window) = self.window else {
            // Where nothing is drafted there is nothing to find out.
            if drafted > 0 || !self.with {
                self.left = self.left.saturating_sub(1);
            }
            if self.left == 0 {
                (self.window, self.steps, self.made) = (Some(0), 0, 0);
                self.sums = [Sum::default(); WINDOWS];
            }
            return;
        };
        self.steps += 1;
        self.made += u32::from(drafted > 0);
        // The first one is as the one before has left caches and graphs.
        if self.steps > 1 {
            let sum = &mut self.sums[window];
            sum.tokens += tokens as f64;
            sum.us += us;
        }
        if self.steps <= WINDOW {
            return;
        }
        self.steps = 0;
        self.window = Some(window + 1).filter(|&next| next < WINDOWS);
        if self.window.is_none() {
            self.decide();
        }
    }

    fn decide(&mut self) {
        if self.made < ENOUGH {
            (self.with, self.rest, self.left) = (true, REST.0, 2 * WINDOW);
            return;
        }
        let rate = |first: usize| {
            let sums = self.sums.iter().skip(first).step_by(2);
            let (tokens, us) = sums.fold((0.0, 0.0), |(t, u), s| (t + s.tokens, u + s.us));
            tokens / f64::max(us, 1.0)
        };
        let better = if self.with { BETTER.0 } else { BETTER.1 };
        let with = rate(0) >= rate(1) * better;
        self.rest = if with == self.with {
            (self.rest * 2).min(REST.1)
        } else {
            REST.0
        };
        self.with = with;
        self.left = self.rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps of `streams` streams, in which drafts bring `more` tokens and cost `cost` of the time.
    /// The share of steps with drafts.
    fn run(trials: &mut Trials, steps: u32, streams: usize, more: u64, cost: f64) -> f64 {
        let mut made = 0;
        for step in 0..steps {
            let noise = 1.0 + f64::from(step * 7919 % 97) / 970.0;
            let slow = if step % 101 == 0 { 50.0 } else { 1.0 };
            let with = trials.allows(streams);
            let (tokens, us) = if with {
                (streams as u64 + more, 1000.0 * (1.0 + cost))
            } else {
                (streams as u64, 1000.0)
            };
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a positive time"
            )]
            trials.took(tokens, usize::from(with), (us * noise * slow) as u64);
            made += u32::from(with);
        }
        f64::from(made) / f64::from(steps)
    }

    #[test]
    fn drafts_that_pay_go_on() {
        let mut trials = Trials::default();
        assert!(run(&mut trials, 100_000, 8, 4, 0.2) > 0.95);
    }

    #[test]
    fn drafts_that_lose_are_given_up_and_seldom_tried_again() {
        let mut trials = Trials::default();
        run(&mut trials, 400, 8, 1, 0.4);
        assert!(run(&mut trials, 50_000, 8, 1, 0.4) < 0.04);
    }

    #[test]
    fn each_number_of_streams_is_judged_alone_and_anew_when_things_change() {
        let mut trials = Trials::default();
        run(&mut trials, 5000, 8, 1, 0.4);
        assert!(run(&mut trials, 5000, 1, 3, 0.3) > 0.9, "one stream");
        assert!(run(&mut trials, 100, 8, 3, 0.1) < 0.1, "not yet");
        run(&mut trials, 20_000, 8, 3, 0.1);
        assert!(run(&mut trials, 20_000, 8, 3, 0.1) > 0.9);
    }

    #[test]
    fn text_that_gives_no_drafts_does_not_speak_against_them() {
        let mut trials = Trials::default();
        run(&mut trials, 5000, 8, 1, 0.4);
        // Plain text for longer than the longest rest; then text that copies.
        for _ in 0..6000 {
            trials.allows(8);
            trials.took(8, 0, 1000);
        }
        assert!(run(&mut trials, 1000, 8, 4, 0.2) > 0.8);
    }

    #[test]
    fn where_nothing_is_drafted_nothing_is_tried() {
        let mut trials = Trials::default();
        for _ in 0..10_000 {
            assert!(trials.allows(4));
            trials.took(4, 0, 1000);
        }
    }
}
