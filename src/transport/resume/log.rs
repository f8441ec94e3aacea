//! The newest events of one stream, numbered from 1, as the bytes that were or will be sent.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::wire::events::Events;

/// Keeps encoded pieces as they are: a reference each, no copy.
pub(super) struct Log {
    events: Events,
    pieces: VecDeque<Piece>,
    /// The number that the next event gets.
    next: u64,
    /// What the pieces weigh together, their places in the log included.
    weight: usize,
    /// What they may weigh; the last one may go beyond it.
    most: usize,
}

/// One or more whole events.
struct Piece {
    /// The number of its first event.
    first: u64,
    bytes: Bytes,
}

impl Piece {
    fn weight(&self) -> usize {
        size_of::<Self>() + self.bytes.len()
    }
}

impl Log {
    pub(super) fn new(events: Events, most: usize) -> Self {
        Self {
            events,
            pieces: VecDeque::new(),
            next: 1,
            weight: 0,
            most,
        }
    }

    /// Adds whole events. Bytes without any (a keep-alive) are not kept; then this is false.
    pub(super) fn push(&mut self, bytes: Bytes) -> bool {
        let count = self.events.count(&bytes);
        if count == 0 {
            return false;
        }
        let piece = Piece {
            first: self.next,
            bytes,
        };
        self.next += count;
        self.weight += piece.weight();
        self.pieces.push_back(piece);
        true
    }

    /// Leaves out the oldest events beyond half of what there is room for, but never the newest piece.
    ///
    /// Half: what was handed out may be lost on the way, and when the connection is, the other half is
    /// for what comes while nobody reads.
    pub(super) fn make_room(&mut self) {
        while self.weight > self.most / 2
            && self.pieces.len() > 1
            && let Some(piece) = self.pieces.pop_front()
        {
            self.weight -= piece.weight();
        }
    }

    /// Whether nothing more should be added while nobody reads.
    pub(super) fn is_full(&self) -> bool {
        self.weight >= self.most
    }

    /// The number of the newest event; 0 before the first.
    pub(super) fn newest(&self) -> u64 {
        self.next - 1
    }

    /// The number of the oldest event that is kept, or of the next one if none is.
    pub(super) fn oldest(&self) -> u64 {
        self.pieces.front().map_or(self.next, |piece| piece.first)
    }

    /// What comes after event `number`, which is not older than what is kept: each piece with the number
    /// of its first event.
    pub(super) fn after(&self, number: u64) -> impl Iterator<Item = (u64, Bytes)> {
        let beyond = self.pieces.partition_point(|piece| piece.first <= number);
        // The piece before those may hold more than the last event that was seen.
        let from = beyond.saturating_sub(1);
        self.pieces.range(from..).filter_map(move |piece| {
            let seen = (number + 1).saturating_sub(piece.first);
            let at = self.events.skip(&piece.bytes, seen);
            (at < piece.bytes.len()).then(|| (piece.first + seen, piece.bytes.slice(at..)))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn joined(log: &Log, after: u64) -> Vec<u8> {
        let pieces: Vec<_> = log.after(after).map(|(_, bytes)| bytes).collect();
        pieces.concat()
    }

    #[test]
    fn keep_alives_are_not_kept() {
        let mut log = Log::new(Events::Blocks, 1000);
        assert!(!log.push(Bytes::from_static(b": keep-alive\n\n")));
        assert!(log.push(Bytes::from_static(b"data: a\n\n")));
        assert_eq!((log.oldest(), log.newest()), (1, 1));
    }

    #[test]
    fn the_newest_piece_stays_however_large_it_is() {
        let mut log = Log::new(Events::Lines, 100);
        log.push(Bytes::from_static(b"a\n"));
        log.push(Bytes::from(vec![b'\n'; 500]));
        log.make_room();
        assert!(log.is_full());
        assert_eq!((log.oldest(), log.newest()), (2, 501));
        assert_eq!(joined(&log, 500), b"\n");
        assert_eq!(joined(&log, 501), b"");
    }

    #[test]
    fn half_of_the_room_is_for_what_was_handed_out() {
        let mut log = Log::new(Events::Lines, 1000);
        for _ in 0..100 {
            log.make_room();
            log.push(Bytes::from_static(b"ab\n"));
        }
        log.make_room();
        let kept = usize::try_from(log.newest() - log.oldest() + 1).unwrap();
        assert_eq!(kept, 500 / (size_of::<Piece>() + 3));
        assert!(!log.is_full());
    }

    proptest! {
        #[test]
        fn whatever_was_seen_the_rest_follows_exactly(
            pieces in proptest::collection::vec(proptest::collection::vec("[a-z]{0,5}", 1..5), 1..12),
            most in 1..400_usize,
            evict in any::<bool>(),
        ) {
            let mut log = Log::new(Events::Lines, most);
            let mut lines = Vec::new();
            for piece in &pieces {
                lines.extend(piece.iter().map(|line| format!("{line}\n")));
                let bytes = lines[lines.len() - piece.len()..].concat();
                log.push(Bytes::from(bytes));
                if evict {
                    log.make_room();
                    prop_assert!(log.weight <= most / 2 || log.pieces.len() == 1);
                }
            }
            prop_assert_eq!(log.newest(), lines.len() as u64);
            prop_assert!(evict || log.oldest() == 1);
            for seen in log.oldest() - 1..=log.newest() {
                let rest = lines[usize::try_from(seen).unwrap()..].concat();
                prop_assert_eq!(joined(&log, seen), rest.as_bytes());
                let first = log.after(seen).next().map(|(number, _)| number);
                prop_assert_eq!(first, (seen < log.newest()).then_some(seen + 1));
            }
        }
    }
}
