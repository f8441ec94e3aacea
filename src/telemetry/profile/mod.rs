//! Where the time goes: stacks of the threads that run, taken while serving.
//!
//! On Linux on x86-64 and aarch64; elsewhere there is none.

pub mod config;
mod pprof;
mod recent;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod sample;
#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
#[path = "no_sample.rs"]
mod sample;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

pub use self::recent::Recent;
use self::sample::{Sample, Sampling};

/// Between two looks at what was sampled, and at whether to go on.
const LOOK: Duration = Duration::from_millis(50);

/// Different stacks of one profile; what exceeds them is counted without a stack.
const STACKS: usize = 50_000;

/// What stands for a stack that was not kept.
const OTHER: &str = "[other]";

/// Stacks, with how often each was seen.
#[derive(Clone, Debug)]
pub struct Profile {
    /// When it began.
    pub began: SystemTime,
    /// How long it took.
    pub time: Duration,
    /// Samples for each second of CPU time.
    pub frequency: u32,
    /// Samples for which there was no room.
    pub lost: u64,
    /// From the thread's name inwards, as indices into `names`.
    stacks: HashMap<Box<[u32]>, u64>,
    names: Vec<String>,
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// There is one timer in a process, and it is taken.
    #[error("another profile is being taken")]
    Busy,
    /// Nothing can be sampled.
    #[error("the system takes no samples")]
    System(#[from] io::Error),
    /// No drawing.
    #[error("the flame graph could not be drawn")]
    Drawing(#[source] io::Error),
}

/// What was sampled, as addresses: cheap to take and to keep.
pub struct Samples {
    began: SystemTime,
    time: Duration,
    frequency: u32,
    lost: u64,
    /// By thread, from the innermost outwards.
    stacks: HashMap<(i32, Vec<usize>), u64>,
    /// Threads come and go: whoever was seen is asked for its name at once.
    threads: HashMap<i32, String>,
    /// Different stacks that are kept apart.
    most: usize,
    unkept: u64,
}

/// Samples for `time`, or until `stop`; `most` different stacks are kept apart. Blocks.
///
/// # Errors
/// Another profile is being taken, or the system has none.
pub fn capture(
    time: Duration,
    frequency: u32,
    most: usize,
    stop: &AtomicBool,
) -> Result<Samples, ProfileError> {
    let start = Instant::now();
    let mut samples = Samples {
        began: SystemTime::now(),
        time,
        frequency,
        lost: 0,
        stacks: HashMap::new(),
        threads: HashMap::new(),
        most,
        unkept: 0,
    };
    let sampling = Sampling::start(frequency)?.ok_or(ProfileError::Busy)?;
    loop {
        let left = time.saturating_sub(start.elapsed());
        if left.is_zero() || stop.load(Relaxed) {
            break;
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "on a thread that may block: its own, or one of the blocking pool"
        )]
        thread::sleep(left.min(LOOK));
        sampling.drain(|sample| samples.add(sample));
    }
    samples.lost = sampling.lost();
    samples.time = start.elapsed();
    Ok(samples)
}

impl Samples {
    fn add(&mut self, sample: Sample) {
        let Sample { thread, addresses } = sample;
        self.threads.entry(thread).or_insert_with(|| {
            let name = std::fs::read_to_string(format!("/proc/self/task/{thread}/comm"));
            name.map_or_else(|_| "[ended]".to_owned(), |name| name.trim_end().to_owned())
        });
        let key = (thread, addresses);
        if self.stacks.len() >= self.most && !self.stacks.contains_key(&key) {
            self.unkept += 1;
            return;
        }
        *self.stacks.entry(key).or_default() += 1;
    }
}

/// Addresses become names. Reads the symbols of the binary and its libraries: tenths of a second.
#[must_use]
pub fn resolve(all: &[Arc<Samples>]) -> Profile {
    let mut functions: HashMap<usize, Vec<String>> = HashMap::new();
    let mut names = Names::default();
    let mut stacks: HashMap<Box<[u32]>, u64> = HashMap::new();
    let frequencies = all.iter().map(|samples| samples.frequency);
    let fastest = frequencies.max().unwrap_or(1);
    for samples in all {
        // Of fewer samples in the same time, each stands for more.
        let weight = u64::from((fastest + samples.frequency / 2) / samples.frequency.max(1));
        for ((thread, addresses), count) in &samples.stacks {
            let thread = samples.threads.get(thread).map_or("", String::as_str);
            let mut stack = vec![names.index(thread)];
            for (depth, &address) in addresses.iter().enumerate().rev() {
                // A return address may be the next function's first; the innermost is no return address.
                let address = if depth == 0 { address + 1 } else { address };
                let inlined = functions
                    .entry(address)
                    .or_insert_with(|| functions_at(address));
                stack.extend(inlined.iter().rev().map(|name| names.index(name)));
            }
            *stacks.entry(stack.into()).or_default() += count * weight;
        }
        if samples.unkept > 0 {
            let other = [names.index(OTHER)];
            *stacks.entry(other.into()).or_default() += samples.unkept * weight;
        }
    }
    // It keeps the files mapped.
    backtrace::clear_symbol_cache();
    let began = all.iter().map(|samples| samples.began).min();
    Profile {
        began: began.unwrap_or_else(SystemTime::now),
        time: all.iter().map(|samples| samples.time).sum(),
        frequency: fastest,
        lost: all.iter().map(|samples| samples.lost).sum(),
        stacks,
        names: names.all,
    }
}

/// The functions at an address: with what was inlined there, innermost first.
fn functions_at(address: usize) -> Vec<String> {
    let mut found = Vec::new();
    backtrace::resolve(std::ptr::without_provenance_mut(address), |symbol| {
        found.extend(symbol.name().map(|name| format!("{name:#}")));
    });
    if found.is_empty() {
        found.push("[unknown]".to_owned());
    }
    found
}

/// Each name once.
#[derive(Default)]
struct Names {
    all: Vec<String>,
    indices: HashMap<String, u32>,
}

impl Names {
    fn index(&mut self, name: &str) -> u32 {
        if let Some(&index) = self.indices.get(name) {
            return index;
        }
        let index = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        self.all.push(name.to_owned());
        self.indices.insert(name.to_owned(), index);
        index
    }
}

impl Profile {
    /// Samples in all.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.stacks.values().sum()
    }

    /// One line a stack, the outermost first: `thread;main;f 12`. As flame graphs are made of.
    #[must_use]
    pub fn folded(&self) -> String {
        let mut lines: Vec<String> = self
            .stacks
            .iter()
            .map(|(stack, count)| {
                let names = stack.iter().map(|&index| {
                    // What separates stacks and counts cannot be in a name.
                    self.name(index).replace(';', ":").replace('\n', " ")
                });
                let mut line = names.collect::<Vec<_>>().join(";");
                // Writing to a text never fails.
                let _ = write!(line, " {count}");
                line
            })
            .collect();
        lines.sort_unstable();
        lines.push(String::new());
        lines.join("\n")
    }

    /// A flame graph.
    ///
    /// # Errors
    /// There is nothing to draw.
    pub fn svg(&self) -> Result<Vec<u8>, ProfileError> {
        let folded = self.folded();
        let mut options = inferno::flamegraph::Options::default();
        "sluicegate: CPU time".clone_into(&mut options.title);
        options.subtitle = Some(format!(
            "{} samples in {:.1?}, {} a second of CPU time",
            self.samples(),
            self.time,
            self.frequency
        ));
        let nothing = "[idle] 1";
        let lines = folded.lines().chain(folded.is_empty().then_some(nothing));
        let mut out = Vec::new();
        inferno::flamegraph::from_lines(&mut options, lines, &mut out)
            .map_err(|error| ProfileError::Drawing(io::Error::other(error)))?;
        Ok(out)
    }

    /// Google's `profile.proto`, as `go tool pprof` reads it.
    #[must_use]
    pub fn pprof(&self) -> Vec<u8> {
        pprof::encode(self)
    }

    fn name(&self, index: u32) -> &str {
        let name = self.names.get(usize::try_from(index).unwrap_or(usize::MAX));
        name.map_or("", String::as_str)
    }
}

#[cfg(test)]
mod tests;
