//! Other threads that help the engine thread sample, where many rows of a large vocabulary pay for it.
//!
//! ```text
//!   engine thread                       queue                     threads of the pool
//!   decode; copy some rows' logits,  -> todo: Work, Work, …  ->   choose, push into the ring, wake
//!   lend their samplers with them
//!   sample the other rows
//!   the step's chunk of prompts                              <-   done: Work, Work, …
//!   take back; what nobody has begun is sampled here
//! ```
//!
//! All of a [`Work`] is owned: a copy of the row, because llama.cpp's own is gone with its next call,
//! and the sequence's sampler. So there is nothing to guard but the queue, whose lock is held for a push
//! or a pop. Works and their buffers are used again, so nothing is allocated once they have grown.
//! Threads with nothing to do sleep. What is chosen does not depend on who chooses it.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::super::pin;
use super::{Sampler, Scratch, logprobs};
use crate::engine::ring::{Ring, Slot};
use crate::generation::Failure;

/// Most threads unasked. Each costs a wake-up a step, and copies that the engine thread makes.
const MOST_UNASKED: u32 = 4;
/// Rows that are sampled by the engine thread alone whatever they cost.
const FEW_ROWS: usize = 2;
/// Sampling that takes less than this in all is not worth waking anybody for.
const WORTH_NS: u64 = 200_000;
/// From a row's copy until another thread begins with it, about.
const WAKE_NS: u64 = 20_000;
/// An average remembers about this many steps.
const MEAN_STEPS: u64 = 8;
/// How long a row takes to copy is taken for this much per token of the vocabulary until it has been
/// measured, in tenths of a nanosecond.
const COPY_TENTHS_NS: u64 = 1;

/// How many threads a pool has unasked: on one or two cores none, because the other core is where
/// readers are served; a few on larger machines.
pub(in crate::engine::llama) fn automatic() -> u32 {
    pin::cores().saturating_sub(2).min(MOST_UNASKED)
}

/// Chooses a token from a row of logits and puts it into its outlet, with `alternatives` likeliest ones
/// beside it if log-probabilities are wanted.
///
/// # Errors
/// Why the sequence cannot go on.
pub(in crate::engine::llama) fn emit(
    sampler: &mut Sampler,
    logits: &[f32],
    alternatives: Option<u8>,
    ring: &Ring,
    at: u64,
    scratch: &mut Scratch,
    top: &mut Vec<(u32, f32)>,
) -> Result<u32, Failure> {
    let token = sampler.sample(logits, scratch)?;
    let logprob = match alternatives {
        Some(count) => logprobs(logits, token, usize::from(count), scratch, top),
        None => f32::NAN,
    };
    let pushed = ring.push(Slot { token, logprob, at }, top);
    top.clear();
    if pushed {
        Ok(token)
    } else {
        Err(Failure::internal("a token had no room"))
    }
}

/// A row to be sampled, and then what came of it.
pub(in crate::engine::llama) struct Work {
    /// Whose row it is: the id, and the number of the sequence among those that ever had one.
    pub(in crate::engine::llama) id: u32,
    pub(in crate::engine::llama) admitted: u64,
    /// The sequence's own while the work is out.
    pub(in crate::engine::llama) sampler: Sampler,
    pub(in crate::engine::llama) ring: Option<Arc<Ring>>,
    pub(in crate::engine::llama) alternatives: Option<u8>,
    /// The step's clock reading.
    pub(in crate::engine::llama) at: u64,
    /// The token, which is in the ring by then, or why there is none.
    pub(in crate::engine::llama) outcome: Result<u32, Failure>,
    /// A test asks for a panic.
    #[cfg(test)]
    pub(in crate::engine::llama) panics: bool,
    logits: Vec<f32>,
    took_ns: u64,
}

impl Work {
    fn new() -> Box<Self> {
        Box::new(Self {
            id: 0,
            admitted: 0,
            sampler: Sampler::idle(),
            ring: None,
            alternatives: None,
            at: 0,
            outcome: Ok(0),
            #[cfg(test)]
            panics: false,
            logits: Vec::new(),
            took_ns: 0,
        })
    }

    /// Gives up the sampler of a sequence that is gone.
    pub(in crate::engine::llama) fn forget(&mut self) {
        self.sampler = Sampler::idle();
    }

    /// Samples the row, hands the token to its reader and notes the outcome. A panic ends this sequence
    /// alone.
    fn run(&mut self, desk: &mut Desk) {
        let begin = Instant::now();
        let done = catch_unwind(AssertUnwindSafe(|| self.sample(desk)));
        self.outcome = done.unwrap_or_else(|_| {
            // Whatever was half done to them is forgotten; the sampler ends with its sequence.
            *desk = Desk::default();
            Err(Failure::internal("sampling panicked"))
        });
        self.took_ns = nanos(begin);
    }

    fn sample(&mut self, desk: &mut Desk) -> Result<u32, Failure> {
        #[cfg(test)]
        assert!(!std::mem::take(&mut self.panics), "as asked");
        let Some(ring) = &self.ring else {
            return Err(Failure::internal("a row has no outlet"));
        };
        let token = emit(
            &mut self.sampler,
            &self.logits,
            self.alternatives,
            ring,
            self.at,
            &mut desk.scratch,
            &mut desk.top,
        )?;
        ring.wake();
        Ok(token)
    }
}

/// What a thread needs to sample.
#[derive(Default)]
struct Desk {
    scratch: Scratch,
    top: Vec<(u32, f32)>,
}

/// The threads and what is between them and the engine thread, which owns this.
pub(in crate::engine::llama) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    #[expect(
        clippy::vec_box,
        reason = "works move between the lists; a box is one word"
    )]
    spare: Vec<Box<Work>>,
    desk: Desk,
    /// Works handed over and not taken back.
    out: usize,
    costs: Costs,
    /// A test wants every row shared out, however few and cheap.
    #[cfg(test)]
    pub(in crate::engine::llama) always: bool,
}

impl Pool {
    /// Starts so many threads, or as many as the system lets us; none are right, too. `vocabulary` is
    /// the length of a row.
    pub(in crate::engine::llama) fn start(model: &str, threads: u32, vocabulary: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let start = |_| {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name(format!("sample-{model}"))
                .spawn(move || shared.serve())
                .inspect_err(|error| tracing::warn!(%error, "a sampler thread did not start"))
                .ok()
        };
        let threads = (0..threads).map_while(start).collect();
        Self {
            threads,
            shared,
            spare: Vec::new(),
            desk: Desk::default(),
            out: 0,
            costs: Costs::new(vocabulary),
            #[cfg(test)]
            always: false,
        }
    }

    /// How many of a step's rows to hand over.
    pub(in crate::engine::llama) fn share(&mut self, rows: usize) -> usize {
        self.costs.settle();
        #[cfg(test)]
        if self.always {
            return rows.div_ceil(2);
        }
        self.costs.share(rows, self.threads.len())
    }

    /// Hands over a row. `describe` fills in whose it is and lends the sampler.
    pub(in crate::engine::llama) fn hand_over(
        &mut self,
        logits: &[f32],
        describe: impl FnOnce(&mut Work),
    ) {
        let begin = Instant::now();
        let mut work = self.spare.pop().unwrap_or_else(Work::new);
        work.logits.clear();
        work.logits.extend_from_slice(logits);
        describe(&mut work);
        self.costs.copied(nanos(begin));
        self.out += 1;
        let mut queue = self.shared.lock();
        queue.todo.push_back(work);
        let sleeps = queue.sleepers > 0;
        drop(queue);
        if sleeps {
            self.shared.todo.notify_one();
        }
    }

    /// A work that is done; if `all`, until the last has come back, waiting for the others and doing
    /// here what nobody has begun.
    pub(in crate::engine::llama) fn take_back(&mut self, all: bool) -> Option<Box<Work>> {
        if self.out == 0 {
            return None;
        }
        let mut queue = self.shared.lock();
        loop {
            if let Some(work) = queue.done.pop() {
                drop(queue);
                return Some(self.came_back(work));
            }
            if !all {
                return None;
            }
            if let Some(mut work) = queue.todo.pop_front() {
                drop(queue);
                work.run(&mut self.desk);
                return Some(self.came_back(work));
            }
            queue.is_awaited = true;
            queue = wait(&self.shared.done, queue);
            queue.is_awaited = false;
        }
    }

    fn came_back(&mut self, work: Box<Work>) -> Box<Work> {
        self.out -= 1;
        self.costs.sampled(1, work.took_ns);
        work
    }

    /// Keeps a work for the next row. Its sampler is the one that it had before it was lent another.
    pub(in crate::engine::llama) fn keep(&mut self, mut work: Box<Work>) {
        work.ring = None;
        self.spare.push(work);
    }

    /// Notes what rows have cost that the engine thread sampled by itself.
    pub(in crate::engine::llama) fn sampled(&mut self, rows: usize, took_us: u64) {
        self.costs.sampled(rows as u64, took_us * 1000);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.todo.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What rows cost lately, and what follows for how they are shared out.
#[derive(Debug)]
struct Costs {
    /// Averages, in nanoseconds.
    row: u64,
    copy: u64,
    /// Rows since the averages were last brought up to date, and what they took.
    rows: u64,
    rows_took: u64,
}

impl Costs {
    fn new(vocabulary: usize) -> Self {
        Self {
            row: 0,
            copy: vocabulary as u64 * COPY_TENTHS_NS / 10,
            rows: 0,
            rows_took: 0,
        }
    }

    fn sampled(&mut self, rows: u64, took: u64) {
        self.rows += rows;
        self.rows_took += took;
    }

    fn copied(&mut self, took: u64) {
        self.copy = mean(self.copy, took);
    }

    fn settle(&mut self) {
        if let Some(took) = self.rows_took.checked_div(self.rows) {
            self.row = if self.row == 0 {
                took
            } else {
                mean(self.row, took)
            };
        }
        (self.rows, self.rows_took) = (0, 0);
    }

    /// How many of so many rows to hand to so many threads, that all end at about the same time: the
    /// engine thread copies those and samples the rest.
    fn share(&self, rows: usize, threads: usize) -> usize {
        if threads == 0 || rows <= FEW_ROWS {
            return 0;
        }
        let all = self.row * rows as u64;
        // A copy that takes half as long as sampling leaves nothing to be won.
        if all < WORTH_NS || self.row < 2 * self.copy {
            return 0;
        }
        let each = self.row + self.row / threads as u64 - self.copy;
        let share = all.saturating_sub(WAKE_NS) / each.max(1);
        usize::try_from(share).unwrap_or(rows).min(rows)
    }
}

fn mean(mean: u64, new: u64) -> u64 {
    (mean * (MEAN_STEPS - 1) + new) / MEAN_STEPS
}

fn nanos(begin: Instant) -> u64 {
    u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Between the engine thread and the pool's.
#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Rung for a thread of the pool.
    todo: Condvar,
    /// Rung for the engine thread.
    done: Condvar,
}

#[derive(Default)]
struct Queue {
    todo: VecDeque<Box<Work>>,
    #[expect(
        clippy::vec_box,
        reason = "works move between the lists; a box is one word"
    )]
    done: Vec<Box<Work>>,
    /// Threads of the pool that sleep.
    sleepers: u32,
    /// Whether the engine thread sleeps.
    is_awaited: bool,
    is_over: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of a thread of the pool.
    fn serve(&self) {
        let mut desk = Desk::default();
        let mut queue = self.lock();
        while !queue.is_over {
            let Some(mut work) = queue.todo.pop_front() else {
                queue.sleepers += 1;
                queue = wait(&self.todo, queue);
                queue.sleepers -= 1;
                continue;
            };
            drop(queue);
            work.run(&mut desk);
            queue = self.lock();
            queue.done.push(work);
            if queue.is_awaited {
                self.done.notify_one();
            }
        }
    }
}

fn wait<'a>(bell: &Condvar, queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
    bell.wait(queue).unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::engine::ring::Bell;
    use crate::generation::Sampling;

    const VOCABULARY: usize = 500;

    fn logits(seed: usize) -> Vec<f32> {
        (0..VOCABULARY)
            .map(|id| {
                f32::from(u16::try_from((id * 7919 + seed * 104_729) % 4_001).unwrap()) / 500.0
            })
            .collect()
    }

    fn sampler(seed: u64) -> Sampler {
        let settings = Sampling::default();
        Sampler::new(&settings, seed, VOCABULARY, &[], &[], Arc::default()).unwrap()
    }

    fn ring() -> Arc<Ring> {
        let bell = Bell::new(std::thread::current(), Arc::new(AtomicBool::new(false)));
        Ring::new(64, 2, bell)
    }

    #[test]
    fn every_row_comes_back_once_with_the_token_that_is_in_its_ring() {
        for threads in [0, 1, 3] {
            let mut pool = Pool::start("m", threads, VOCABULARY);
            let mut samplers: Vec<Sampler> = (0..8).map(sampler).collect();
            let mut alone: Vec<Sampler> = (0..8).map(sampler).collect();
            let rings: Vec<_> = samplers.iter().map(|_| ring()).collect();
            let mut scratch = Scratch::default();
            for step in 0..50 {
                for (id, sampler) in (0..).zip(&mut samplers) {
                    pool.hand_over(&logits(id as usize), |work| {
                        (work.id, work.at, work.alternatives) = (id, step, Some(2));
                        work.ring = Some(rings[id as usize].clone());
                        std::mem::swap(&mut work.sampler, sampler);
                    });
                }
                let mut seen = 0;
                while let Some(mut work) = pool.take_back(true) {
                    let id = work.id as usize;
                    std::mem::swap(&mut work.sampler, &mut samplers[id]);
                    let token = *work.outcome.as_ref().unwrap();
                    assert_eq!(alone[id].sample(&logits(id), &mut scratch), Ok(token));
                    let mut top = Vec::new();
                    let slot = rings[id].pop(&mut top).unwrap();
                    assert_eq!((slot.token, slot.at, top.len()), (token, step, 2));
                    assert!(rings[id].pop(&mut top).is_none());
                    pool.keep(work);
                    seen += 1;
                }
                assert_eq!((seen, pool.out, pool.spare.len()), (8, 0, 8));
            }
        }
    }

    #[test]
    fn a_step_allocates_nothing_once_everything_has_grown() {
        let mut pool = Pool::start("m", 0, VOCABULARY);
        let (mut sampler, ring, row) = (sampler(1), ring(), logits(1));
        let mut top = Vec::with_capacity(2);
        let mut step = || {
            for _ in 0..4 {
                pool.hand_over(&row, |work| {
                    (work.ring, work.alternatives) = (Some(ring.clone()), Some(2));
                    std::mem::swap(&mut work.sampler, &mut sampler);
                });
                let mut work = pool.take_back(true).unwrap();
                std::mem::swap(&mut work.sampler, &mut sampler);
                pool.keep(work);
                ring.pop(&mut top).unwrap();
            }
        };
        for _ in 0..64 {
            step();
        }
        assert_eq!(allocation_counter::measure(step).count_total, 0);
    }

    #[test]
    fn a_panic_fails_its_row_and_the_thread_goes_on() {
        let mut pool = Pool::start("m", 1, VOCABULARY);
        for panics in [true, false, true, false] {
            let (mut sampler, ring) = (sampler(1), ring());
            pool.hand_over(&logits(1), |work| {
                (work.panics, work.ring) = (panics, Some(ring.clone()));
                std::mem::swap(&mut work.sampler, &mut sampler);
            });
            // Not by the engine thread: it waits until the row has come back by itself.
            let mut work = loop {
                match pool.take_back(false) {
                    Some(work) => break work,
                    None => std::thread::yield_now(),
                }
            };
            assert_eq!(work.outcome.is_err(), panics);
            work.forget();
            pool.keep(work);
        }
        assert_eq!(pool.threads.iter().filter(|t| !t.is_finished()).count(), 1);
    }

    #[test]
    fn rows_are_shared_out_only_where_that_pays() {
        let share = |row: u64, copy: u64, rows, threads| {
            let mut costs = Costs::new(VOCABULARY);
            (costs.row, costs.copy) = (row, copy);
            costs.share(rows, threads)
        };
        // The default chain over 2k tokens, and over 152k: a copy costs most of what it saves.
        assert_eq!(share(1_800, 100, 64, 4), 0);
        assert_eq!(share(19_000, 13_000, 64, 4), 0);
        assert_eq!(share(1_000_000, 13_000, 2, 4), 0);
        assert_eq!(share(1_000_000, 13_000, 16, 0), 0);
        assert_eq!(share(1_000_000, 13_000, 16, 1), 8);
        assert_eq!(share(1_000_000, 13_000, 16, 3), 12);
        assert!((6..=9).contains(&share(58_000, 13_000, 16, 1)));
        for rows in 3..300 {
            for threads in 1..8 {
                assert!(share(60_000, 5_000, rows, threads) < rows);
            }
        }
    }

    #[test]
    fn averages_follow_what_is_measured() {
        let mut costs = Costs::new(VOCABULARY);
        costs.settle();
        assert_eq!(costs.row, 0);
        costs.sampled(10, 1_000_000);
        costs.settle();
        assert_eq!(costs.row, 100_000);
        for _ in 0..60 {
            costs.sampled(4, 8_000);
            costs.sampled(1, 2_000);
            costs.settle();
        }
        assert!(costs.row < 2_100, "{costs:?}");
    }
}
