//! The last minutes, sampled all the time at a rate that follows what goes on.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::config::Config;
use super::{ProfileError, Samples, capture};

/// One look: then the rate is decided on anew.
const WINDOW: Duration = Duration::from_secs(10);

/// How many are kept: five minutes.
const WINDOWS: usize = 30;

/// Different stacks of one window: less than a megabyte.
const STACKS: usize = 1000;

/// After something went wrong.
const PAUSE: Duration = Duration::from_mins(1);

/// The most samples for each second of CPU time: as many as the kernel's clock gives.
const FASTEST: u32 = 250;

/// How many times as many while the SLO burns.
const BURNING: f64 = 10.0;

/// A burn rate from which on it does.
const BURN: f64 = 2.0;

/// The part of all cores from which on CPU is short.
const SHORT: f64 = 0.9;

/// Keeps the last minutes. Dropping it ends its thread.
pub struct Recent {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// Something in `state` has changed.
    changed: Condvar,
    /// Ends the window that runs.
    interrupt: AtomicBool,
    /// Samples for each second of CPU time now; 0 while nothing is sampled.
    rate: AtomicU32,
    /// How many times faster than allowed bad requests come; 1 is just allowed.
    burn: Box<dyn Fn() -> f64 + Send + Sync>,
}

struct State {
    config: Config,
    /// What operators turned the detail to.
    detail: f64,
    is_closing: bool,
    /// Whoever wants a profile of their own comes first.
    guests: usize,
    kept: VecDeque<Arc<Samples>>,
}

impl Recent {
    /// Begins, if it is enabled.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(config: &Config, burn: Box<dyn Fn() -> f64 + Send + Sync>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                config: config.clone(),
                detail: 1.0,
                is_closing: false,
                guests: 0,
                kept: VecDeque::new(),
            }),
            changed: Condvar::new(),
            interrupt: AtomicBool::new(false),
            rate: AtomicU32::new(0),
            burn,
        });
        let running = shared.clone();
        let thread = thread::Builder::new()
            .name("profile".to_owned())
            .spawn(move || running.run())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// From now on so.
    pub fn set(&self, config: &Config) {
        self.change(|state| {
            state.config = config.clone();
            if !config.enabled {
                state.kept.clear();
            }
        });
    }

    /// So many times the configured rate.
    pub fn set_detail(&self, detail: f64) {
        self.change(|state| state.detail = detail);
    }

    /// Samples for each second of CPU time now.
    #[must_use]
    pub fn rate(&self) -> u32 {
        self.shared.rate.load(Relaxed)
    }

    /// What is kept; nothing if it is not enabled.
    #[must_use]
    pub fn kept(&self) -> Option<Vec<Arc<Samples>>> {
        let state = self.shared.lock();
        let kept = state.kept.iter().cloned().collect();
        state.config.enabled.then_some(kept)
    }

    /// Samples for `time`, or until `stop`; what is kept has a gap there. Blocks.
    ///
    /// # Errors
    /// Somebody else does, or the system has none.
    pub fn capture(
        &self,
        time: Duration,
        frequency: u32,
        stop: &AtomicBool,
    ) -> Result<Samples, ProfileError> {
        let mut is_first = false;
        self.change(|state| {
            is_first = state.guests == 0;
            state.guests += 1;
        });
        let samples = if is_first {
            self.capture_first(time, frequency, stop)
        } else {
            Err(ProfileError::Busy)
        };
        self.change(|state| state.guests -= 1);
        samples
    }

    /// Once the window that runs has ended.
    fn capture_first(
        &self,
        time: Duration,
        frequency: u32,
        stop: &AtomicBool,
    ) -> Result<Samples, ProfileError> {
        let mut state = self.shared.lock();
        while self.rate() > 0 {
            let waited = self.shared.changed.wait_timeout(state, WINDOW);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        capture(time, frequency, super::STACKS, stop)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.lock());
        self.shared.interrupt.store(true, Relaxed);
        self.shared.changed.notify_all();
    }
}

impl Drop for Recent {
    fn drop(&mut self) {
        self.change(|state| state.is_closing = true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the profile's thread panicked");
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut is_short = false;
        while let Some(rate) = self.next(is_short) {
            let (start, cpu) = (Instant::now(), cpu_time());
            let samples = capture(WINDOW, rate, STACKS, &self.interrupt);
            let cores = thread::available_parallelism().map_or(1, usize::from);
            is_short = is_cpu_short(cpu_time().saturating_sub(cpu), start.elapsed(), cores);
            let mut state = self.lock();
            self.rate.store(0, Relaxed);
            self.changed.notify_all();
            match samples {
                Ok(samples) if state.config.enabled => {
                    if state.kept.len() >= WINDOWS {
                        state.kept.pop_front();
                    }
                    state.kept.push_back(Arc::new(samples));
                }
                Ok(_) => {}
                Err(error) => {
                    if !matches!(error, ProfileError::Busy) {
                        tracing::warn!(%error, "nothing is sampled");
                    }
                    let waited = self.changed.wait_timeout(state, PAUSE);
                    drop(waited.unwrap_or_else(PoisonError::into_inner));
                }
            }
        }
    }

    /// Waits until something is to be sampled, and says how fast. Nothing at the end.
    fn next(&self, is_short: bool) -> Option<u32> {
        let mut state = self.lock();
        loop {
            if state.is_closing {
                return None;
            }
            self.interrupt.store(false, Relaxed);
            if state.config.enabled && state.guests == 0 {
                let is_burning = (self.burn)() > BURN;
                let rate = rate(state.config.rate, state.detail, is_burning, is_short);
                self.rate.store(rate, Relaxed);
                return Some(rate);
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// More while requests miss what was promised for them; least where sampling would take from them what
/// they need most.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to what fits"
)]
fn rate(configured: u32, detail: f64, is_burning: bool, is_short: bool) -> u32 {
    if is_short {
        return 1;
    }
    let more = if is_burning { BURNING } else { 1.0 };
    let rate = (f64::from(configured) * detail * more).round();
    rate.clamp(1.0, f64::from(FASTEST)) as u32
}

fn is_cpu_short(used: Duration, time: Duration, cores: usize) -> bool {
    let cores = u32::try_from(cores).unwrap_or(u32::MAX);
    // Of a window that was ended early, little can be said.
    time >= WINDOW / 2 && used.as_secs_f64() > SHORT * f64::from(cores) * time.as_secs_f64()
}

/// What this process has used of all cores.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_what_goes_on_within_bounds() {
        assert_eq!(rate(10, 1.0, false, false), 10);
        assert_eq!(rate(10, 1.0, true, false), 100);
        assert_eq!(rate(10, 16.0, true, false), FASTEST);
        assert_eq!(rate(10, 0.25, false, false), 3);
        assert_eq!(rate(1, 0.25, false, false), 1);
        assert_eq!(rate(250, 16.0, true, true), 1);
    }

    #[test]
    fn the_next_window_is_sampled_as_everything_wants_it_now() {
        let burn = Arc::new(AtomicU32::new(0));
        let burning = burn.clone();
        let shared = Shared {
            state: Mutex::new(State {
                config: Config {
                    enabled: true,
                    rate: 10,
                },
                detail: 1.0,
                is_closing: false,
                guests: 0,
                kept: VecDeque::new(),
            }),
            changed: Condvar::new(),
            interrupt: AtomicBool::new(true),
            rate: AtomicU32::new(0),
            burn: Box::new(move || burning.load(Relaxed).into()),
        };
        assert_eq!(shared.next(false), Some(10));
        assert!(!shared.interrupt.load(Relaxed), "what was changed is known");
        assert_eq!(shared.rate.load(Relaxed), 10);
        shared.lock().detail = 2.0;
        assert_eq!(shared.next(false), Some(20));
        burn.store(3, Relaxed);
        assert_eq!(shared.next(false), Some(200));
        assert_eq!(shared.next(true), Some(1));
        shared.lock().is_closing = true;
        assert_eq!(shared.next(false), None);
    }

    #[test]
    fn cpu_is_short_when_nine_tenths_of_all_cores_are_used() {
        let seconds = Duration::from_secs;
        assert!(is_cpu_short(seconds(19), WINDOW, 2));
        assert!(!is_cpu_short(seconds(17), WINDOW, 2));
        assert!(!is_cpu_short(seconds(1), seconds(1), 1), "too short a time");
    }

    #[test]
    fn nothing_is_kept_unless_it_is_enabled_and_the_end_waits_for_nobody() {
        let config = Config {
            enabled: true,
            ..Config::default()
        };
        let recent = Recent::start(&config, Box::new(|| 0.0)).unwrap();
        assert!(recent.kept().is_some());
        recent.set(&Config::default());
        assert!(recent.kept().is_none());
        recent.set(&config);
        let start = Instant::now();
        drop(recent);
        assert!(start.elapsed() < WINDOW, "the window was ended early");
    }
}
