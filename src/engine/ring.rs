//! The outlet of one sequence: a fixed ring of tokens between the engine thread and one reader.
//!
//! ```text
//!   engine thread                ring (capacity x stride words)              reader's task
//!   push(token, logprob, at) -> [token|logprob][at][top 1]..[top k] ... -> pop()
//!   room() == 0: set `paused`,   tail ->                       <- head     below low water: clear
//!   leave the batch                                                        `paused`, unpark engine
//!   wake() once per step     -> AtomicWaker
//! ```
//!
//! Only atomics: no lock, no allocation per token, no unsafe. One producer and one consumer.

use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, SeqCst},
};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::thread::Thread;
use std::time::Duration;

use atomic_waker::AtomicWaker;

use super::history::History;
use crate::generation::{Cancel, Failure, Finish, Happened, Moment, Queued};

/// How a sequence ended, as the engine saw it.
#[derive(Clone, Debug)]
pub(crate) enum End {
    /// End of generation, or a budget used up.
    Finish(Finish),
    /// It broke.
    Failed(Failure),
}

/// One token as the engine pushed it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Slot {
    pub(crate) token: u32,
    /// NaN unless log-probabilities were asked for.
    pub(crate) logprob: f32,
    /// [`crate::generation::clock`] microseconds of the decode step.
    pub(crate) at: u64,
}

/// A line of its own for each side's counter, so that the two threads do not share it.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Lonely<T>(T);

/// How a reader reaches the engine thread.
#[derive(Clone, Debug)]
pub(crate) struct Bell {
    thread: Thread,
    /// Whether a ring was cancelled since the engine last looked.
    rung: Arc<AtomicBool>,
}

impl Bell {
    /// A bell that wakes `thread`.
    pub(crate) fn new(thread: Thread, rung: Arc<AtomicBool>) -> Self {
        Self { thread, rung }
    }

    fn ring(&self) {
        self.rung.store(true, SeqCst);
        self.thread.unpark();
    }
}

/// The outlet of one sequence.
#[derive(Debug)]
pub(crate) struct Ring {
    words: Box<[AtomicU64]>,
    /// Tokens it holds; a power of two.
    capacity: u32,
    /// Words per token: the token, its time, and the alternatives.
    stride: usize,
    tail: Lonely<AtomicU32>,
    head: Lonely<AtomicU32>,
    /// Set by the engine when it found the ring full; cleared by the reader at low water.
    paused: AtomicBool,
    cancelled: AtomicBool,
    end: OnceLock<End>,
    /// Prompt tokens that the engine did not have to compute.
    cached: AtomicU32,
    /// Its place in line, and the milliseconds that it is likely to wait; 0 while it does not.
    queued: AtomicU64,
    /// What else happened to it.
    history: History,
    reader: AtomicWaker,
    engine: Bell,
}

impl Ring {
    /// A ring of `capacity` tokens (rounded up to a power of two) with `alternatives` likeliest
    /// tokens each, filled by the thread that `engine` wakes.
    pub(crate) fn new(capacity: u32, alternatives: u8, engine: Bell) -> Arc<Self> {
        let capacity = capacity.max(2).next_power_of_two();
        let stride = 2 + usize::from(alternatives);
        Arc::new(Self {
            words: (0..capacity as usize * stride)
                .map(|_| AtomicU64::new(0))
                .collect(),
            capacity,
            stride,
            tail: Lonely::default(),
            head: Lonely::default(),
            paused: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
            end: OnceLock::new(),
            cached: AtomicU32::new(0),
            queued: AtomicU64::new(0),
            history: History::default(),
            reader: AtomicWaker::new(),
            engine,
        })
    }

    // === the engine's side ===

    /// Tokens that fit now.
    pub(crate) fn room(&self) -> u32 {
        self.capacity - self.len()
    }

    /// Notes how many prompt tokens need not be computed.
    pub(crate) fn set_cached(&self, tokens: u32) {
        self.cached.store(tokens, Relaxed);
    }

    /// Notes where in line the sequence stands; `None` when it does not any more.
    pub(crate) fn set_queued(&self, queued: Option<Queued>) {
        let word = queued.map_or(0, |queued| {
            let estimate = queued.estimate.map_or(u32::MAX, |estimate| {
                u32::try_from(estimate.as_millis()).map_or(u32::MAX - 1, |ms| ms.min(u32::MAX - 1))
            });
            u64::from(queued.position) << 32 | u64::from(estimate)
        });
        self.queued.store(word, Relaxed);
    }

    /// Notes what happened to the sequence, for whoever asks.
    pub(crate) fn note(&self, at: u64, moment: Moment) {
        self.history.note(at, moment);
    }

    /// Whether a token fits. If not, the ring is marked as paused until the reader has caught up.
    pub(crate) fn has_room(&self) -> bool {
        if self.len() < self.capacity {
            return true;
        }
        // The order matters: mark first, look again second. A reader that drains between the two
        // either sees the mark or is seen here.
        self.paused.store(true, SeqCst);
        if self.len() <= self.low_water() {
            self.paused.store(false, SeqCst);
            return true;
        }
        false
    }

    /// Whether the reader still has to catch up after [`Ring::has_room`] said no.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(SeqCst)
    }

    /// Adds a token. The caller has asked [`Ring::has_room`]; a token too many would be lost, so it
    /// is refused with `false`.
    pub(crate) fn push(&self, slot: Slot, top: &[(u32, f32)]) -> bool {
        let tail = self.tail.0.load(Relaxed);
        if tail.wrapping_sub(self.head.0.load(Acquire)) >= self.capacity {
            return false;
        }
        let words = self.words_at(tail);
        words[0].store(pack(slot.token, slot.logprob), Relaxed);
        words[1].store(slot.at, Relaxed);
        for (rank, word) in words[2..].iter().enumerate() {
            let (token, logprob) = top.get(rank).copied().unwrap_or((0, f32::NAN));
            word.store(pack(token, logprob), Relaxed);
        }
        self.tail.0.store(tail.wrapping_add(1), SeqCst);
        true
    }

    /// No token will follow. The first end stands.
    pub(crate) fn end(&self, end: End) {
        let _ = self.end.set(end);
    }

    /// Wakes the reader if it waits. Once per step, after all pushes.
    pub(crate) fn wake(&self) {
        self.reader.wake();
    }

    /// Whether the reader has gone.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(SeqCst)
    }

    // === the reader's side ===

    /// Asks to be woken by the next [`Ring::wake`].
    pub(crate) fn register(&self, waker: &Waker) {
        self.reader.register(waker);
    }

    /// How the sequence ended, if it has. Ask before [`Ring::pop`]: an end that was seen before an
    /// empty ring is the end.
    pub(crate) fn ended(&self) -> Option<&End> {
        self.end.get()
    }

    /// Prompt tokens that were not computed; final once there is a token or an end.
    pub(crate) fn cached(&self) -> u32 {
        self.cached.load(Relaxed)
    }

    /// Where in line the sequence stands, if it does.
    pub(crate) fn queued(&self) -> Option<Queued> {
        let word = self.queued.load(Relaxed);
        #[expect(clippy::cast_possible_truncation, reason = "the two halves of a word")]
        let (position, estimate) = ((word >> 32) as u32, word as u32);
        (position > 0).then(|| Queued {
            position,
            estimate: (estimate != u32::MAX).then(|| Duration::from_millis(estimate.into())),
        })
    }

    /// Takes the oldest token; its alternatives replace the contents of `top`.
    pub(crate) fn pop(&self, top: &mut Vec<(u32, f32)>) -> Option<Slot> {
        let head = self.head.0.load(Relaxed);
        if head == self.tail.0.load(Acquire) {
            return None;
        }
        let words = self.words_at(head);
        let (token, logprob) = unpack(words[0].load(Relaxed));
        let slot = Slot {
            token,
            logprob,
            at: words[1].load(Relaxed),
        };
        top.clear();
        for word in &words[2..] {
            let (token, logprob) = unpack(word.load(Relaxed));
            if logprob.is_nan() {
                break;
            }
            top.push((token, logprob));
        }
        self.head.0.store(head.wrapping_add(1), SeqCst);
        Some(slot)
    }

    /// Lets the engine take the sequence up again if it waits for this reader and the reader has
    /// drained to low water. Call after a round of [`Ring::pop`].
    pub(crate) fn release(&self) {
        if self.paused.load(SeqCst)
            && self.len() <= self.low_water()
            && self.paused.swap(false, SeqCst)
        {
            self.engine.thread.unpark();
        }
    }

    fn len(&self) -> u32 {
        self.tail
            .0
            .load(SeqCst)
            .wrapping_sub(self.head.0.load(SeqCst))
    }

    /// A quarter: late enough to batch the resumes, early enough that a reader never runs dry.
    fn low_water(&self) -> u32 {
        self.capacity / 4
    }

    fn words_at(&self, position: u32) -> &[AtomicU64] {
        let at = (position & (self.capacity - 1)) as usize * self.stride;
        &self.words[at..at + self.stride]
    }
}

impl Cancel for Ring {
    fn cancel(&self) {
        if !self.cancelled.swap(true, SeqCst) && self.end.get().is_none() {
            self.engine.ring();
        }
    }

    fn moments(&self, seen: u32, tell: &mut dyn FnMut(u64, Moment)) -> Happened {
        self.history.tell(seen, tell)
    }
}

fn pack(token: u32, logprob: f32) -> u64 {
    u64::from(token) << 32 | u64::from(logprob.to_bits())
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves of a word")]
fn unpack(word: u64) -> (u32, f32) {
    ((word >> 32) as u32, f32::from_bits(word as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bell() -> Bell {
        Bell::new(std::thread::current(), Arc::default())
    }

    fn slot(token: u32) -> Slot {
        Slot {
            token,
            logprob: -0.25,
            at: u64::from(token) + 1,
        }
    }

    #[test]
    fn a_full_ring_pauses_and_resumes_at_low_water() {
        let ring = Ring::new(8, 0, bell());
        let mut top = Vec::new();
        for token in 0..8 {
            assert!(ring.has_room());
            assert!(ring.push(slot(token), &[]));
        }
        assert!(!ring.has_room());
        assert!(ring.is_paused());
        for _ in 0..5 {
            ring.pop(&mut top);
            ring.release();
            assert!(ring.is_paused(), "above low water");
        }
        ring.pop(&mut top);
        ring.release();
        assert!(!ring.is_paused());
        assert!(ring.has_room());
    }

    #[test]
    fn a_cancellation_rings_the_bell_once_and_not_after_the_end() {
        let bell = bell();
        let has_rung = || bell.rung.swap(false, SeqCst);
        let ring = Ring::new(4, 0, bell.clone());
        ring.cancel();
        assert!(has_rung() && ring.is_cancelled());
        ring.cancel();
        assert!(!has_rung());
        let ended = Ring::new(4, 0, bell.clone());
        ended.end(End::Finish(Finish::Stop));
        ended.cancel();
        assert!(!has_rung());
    }

    #[test]
    fn a_place_in_line_is_read_as_it_was_written() {
        let ring = Ring::new(4, 0, bell());
        assert_eq!(ring.queued(), None);
        let of = |position, estimate| Some(Queued { position, estimate });
        for place in [
            of(1, None),
            of(7, Some(Duration::ZERO)),
            of(u32::MAX, Some(Duration::from_millis(1500))),
            None,
        ] {
            ring.set_queued(place);
            assert_eq!(ring.queued(), place);
        }
    }

    #[test]
    fn alternatives_travel_with_their_token() {
        let ring = Ring::new(4, 3, bell());
        ring.push(slot(7), &[(7, -0.25), (9, -2.0)]);
        let mut top = vec![(1, 1.0)];
        assert_eq!(ring.pop(&mut top), Some(slot(7)));
        assert_eq!(top, [(7, -0.25), (9, -2.0)]);
    }

    #[test]
    fn two_threads_lose_and_reorder_nothing() {
        const COUNT: u32 = 200_000;
        let ring = Ring::new(16, 0, bell());
        let producer = ring.clone();
        let thread = std::thread::spawn(move || {
            for token in 0..COUNT {
                while !producer.push(slot(token), &[]) {
                    std::thread::yield_now();
                }
            }
            producer.end(End::Finish(Finish::Length));
        });
        let mut top = Vec::new();
        let mut expected = 0;
        loop {
            let ended = ring.ended().is_some();
            match ring.pop(&mut top) {
                Some(found) => {
                    assert_eq!(found, slot(expected));
                    expected += 1;
                }
                None if ended => break,
                None => std::thread::yield_now(),
            }
        }
        assert_eq!(expected, COUNT);
        thread.join().expect("the producer ends");
    }

    proptest! {
        #[test]
        fn any_order_of_pushes_and_pops_is_a_queue(steps in prop::collection::vec(any::<bool>(), 0..200)) {
            let ring = Ring::new(8, 1, bell());
            let mut model = std::collections::VecDeque::new();
            let mut top = Vec::new();
            let mut next = 0;
            for push in steps {
                if push {
                    let fits = ring.has_room();
                    prop_assert_eq!(fits, model.len() < 8);
                    if fits {
                        prop_assert!(ring.push(slot(next), &[(next, 0.0)]));
                        model.push_back(next);
                        next += 1;
                    }
                } else {
                    prop_assert_eq!(ring.pop(&mut top).map(|s| s.token), model.pop_front());
                    ring.release();
                    prop_assert!(!ring.is_paused() || model.len() > 2);
                }
            }
        }
    }
}
