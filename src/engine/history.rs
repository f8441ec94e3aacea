//! What happened to one sequence beside its tokens, written by one thread and read by any.
//!
//! Only atomics, and no allocation: the engine's thread writes a word for what is rare. The first moments
//! are kept for good, and of the others the newest.

use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use crate::generation::{Happened, Moment};

/// Moments kept for good: the start of a sequence.
const FIRST: u32 = 4;

/// Moments kept after those: fourteen pauses with their ends.
const NEWEST: u32 = 28;

/// Bits of a word that say what happened; the others say when.
const KIND_BITS: u32 = 3;

/// The moments of one sequence. One writer.
#[derive(Debug, Default)]
pub(crate) struct History {
    words: [AtomicU64; (FIRST + NEWEST) as usize],
    moments: AtomicU32,
    pauses: AtomicU32,
    preemptions: AtomicU32,
}

impl History {
    /// Something happened. A moment that no engine has is not noted.
    pub(crate) fn note(&self, at: u64, moment: Moment) {
        let Some(kind) = kind_of(moment) else { return };
        let add = |sum: &AtomicU32| sum.store(sum.load(Relaxed).saturating_add(1), Relaxed);
        match moment {
            Moment::Paused => add(&self.pauses),
            Moment::Preempted => add(&self.preemptions),
            _ => {}
        }
        let count = self.moments.load(Relaxed);
        self.words[place(count)].store(at << KIND_BITS | u64::from(kind), Relaxed);
        self.moments.store(count.saturating_add(1), Release);
    }

    /// Tells the moments that are kept, oldest first, but for the first `seen`. One that is written
    /// meanwhile may stand in the place of the oldest.
    pub(crate) fn tell(&self, seen: u32, tell: &mut dyn FnMut(u64, Moment)) -> Happened {
        let count = self.moments.load(Acquire);
        let newest = count.saturating_sub(NEWEST).max(FIRST);
        let kept = (seen..count.min(FIRST)).chain(seen.max(newest)..count);
        for index in kept {
            let word = self.words[place(index)].load(Relaxed);
            if let Some(moment) = u8::try_from(word % (1 << KIND_BITS)).ok().and_then(of_kind) {
                tell(word >> KIND_BITS, moment);
            }
        }
        Happened {
            moments: count,
            pauses: self.pauses.load(Relaxed),
            preemptions: self.preemptions.load(Relaxed),
        }
    }
}

/// Where the moment of this number is kept.
fn place(index: u32) -> usize {
    let place = match index.checked_sub(FIRST) {
        Some(later) => FIRST + later % NEWEST,
        None => index,
    };
    place as usize
}

/// The number of a moment, where a number says all of it.
pub(crate) fn kind_of(moment: Moment) -> Option<u8> {
    match moment {
        Moment::Admitted => Some(0),
        Moment::Prefilled => Some(1),
        Moment::Paused => Some(2),
        Moment::Resumed => Some(3),
        Moment::Preempted => Some(4),
        // That is its reader's doing, and its stream sees it.
        Moment::Stalled(_) => None,
    }
}

/// The moment of a number.
pub(crate) fn of_kind(kind: u8) -> Option<Moment> {
    match kind {
        0 => Some(Moment::Admitted),
        1 => Some(Moment::Prefilled),
        2 => Some(Moment::Paused),
        3 => Some(Moment::Resumed),
        4 => Some(Moment::Preempted),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told(history: &History, seen: u32) -> (Vec<(u64, Moment)>, Happened) {
        let mut told = Vec::new();
        let happened = history.tell(seen, &mut |at, moment| told.push((at, moment)));
        (told, happened)
    }

    proptest! {
        #[test]
        fn the_first_and_the_newest_are_told_and_all_are_counted(
            kinds in proptest::collection::vec(0..5_u8, 0..200),
            seen in 0..210_usize,
        ) {
            let history = History::default();
            let all: Vec<_> = (1..).zip(kinds.iter().filter_map(|&kind| of_kind(kind))).collect();
            for &(at, moment) in &all {
                history.note(at, moment);
            }
            let (first, newest) = (FIRST as usize, NEWEST as usize);
            let is_kept = |index: usize| index < first || index + newest >= all.len();
            let expected: Vec<_> = (seen..all.len()).filter(|&i| is_kept(i)).map(|i| all[i]).collect();
            let (told, happened) = told(&history, u32::try_from(seen).unwrap());
            prop_assert_eq!(told, expected);
            prop_assert_eq!(happened.moments as usize, all.len());
            let of = |wanted: Moment| all.iter().filter(|(_, moment)| *moment == wanted).count();
            prop_assert_eq!(happened.pauses as usize, of(Moment::Paused));
            prop_assert_eq!(happened.preemptions as usize, of(Moment::Preempted));
        }
    }

    #[test]
    fn a_reader_beside_the_writer_sees_only_what_was_written() {
        let history = History::default();
        std::thread::scope(|threads| {
            threads.spawn(|| {
                for at in 1..=20_000_u64 {
                    let moment = if at % 2 == 0 {
                        Moment::Paused
                    } else {
                        Moment::Resumed
                    };
                    history.note(at, moment);
                }
            });
            let mut seen = 0;
            while seen < 20_000 {
                let happened = history.tell(seen, &mut |at, moment| {
                    assert_eq!(moment == Moment::Paused, at % 2 == 0);
                    assert!(at > u64::from(seen).saturating_sub(1));
                });
                seen = happened.moments;
                std::thread::yield_now();
            }
        });
    }

    #[test]
    fn a_stall_is_not_an_engine_s_to_note() {
        let history = History::default();
        history.note(1, Moment::Stalled(1));
        assert_eq!(told(&history, 0), (Vec::new(), Happened::default()));
    }
}
