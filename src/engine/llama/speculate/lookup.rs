//! Prompt look-up: what followed the last time that the sequence ended like this.
//!
//! ```text
//! tokens   a b c d e f … a b c            the last three hash to a slot
//! heads    slot -> the last position after such a three
//! earlier  position -> the one before it with the same slot
//! ```
//!
//! The chains of a compressor: a token costs one hash and two words; a search follows one chain for a
//! bounded number of steps and compares backwards.

/// Tokens that must be the same for a match. Two are the same by chance too often.
pub(crate) const LEAST: usize = 3;

/// Longest match that is told apart from a longer one.
pub(crate) const LONGEST: usize = 32;

/// Earlier places that one search looks at.
const DEPTH: usize = 32;

/// The end of a chain. No position is 0: a place lies behind its tokens.
const NONE: u32 = 0;

/// Where a sequence has been at these words before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Match {
    /// The position of the token that followed.
    pub(crate) next: usize,
    /// Tokens before it that are the same, [`LEAST`] to [`LONGEST`].
    pub(crate) length: usize,
}

/// The tokens of one sequence, and where each three of them stood before.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    tokens: Vec<u32>,
    heads: Vec<u32>,
    earlier: Vec<u32>,
}

impl Index {
    /// Tokens so far.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Appends tokens.
    pub(crate) fn extend(&mut self, tokens: &[u32]) {
        for &token in tokens {
            self.enter(self.tokens.len());
            self.tokens.push(token);
        }
    }

    /// Where the sequence was when its last tokens were the same as now: the longest match, and of
    /// equally long ones the latest.
    pub(crate) fn find(&self) -> Option<Match> {
        let end = self.tokens.len();
        let slot = self.slot(end)?;
        let mut place = self.heads.get(slot).copied().unwrap_or(NONE);
        let mut best: Option<Match> = None;
        for _ in 0..DEPTH {
            if place == NONE {
                break;
            }
            let next = place as usize;
            let length = self.common(next, end);
            if length >= LEAST && best.is_none_or(|best| best.length < length) {
                best = Some(Match { next, length });
                if length == LONGEST {
                    break;
                }
            }
            place = self.earlier.get(next).copied().unwrap_or(NONE);
        }
        best
    }

    /// Appends the `most` tokens that followed a match to `out`. Where the match reaches the end, what
    /// repeats goes on repeating.
    pub(crate) fn follow(&self, found: Match, most: usize, out: &mut Vec<u32>) {
        let first = out.len();
        for at in found.next..found.next + most {
            let token = match at.checked_sub(self.tokens.len()) {
                None => self.tokens.get(at),
                Some(beyond) => out.get(first + beyond),
            };
            let Some(&token) = token else { return };
            out.push(token);
        }
    }

    /// Equal tokens before two places, up to [`LONGEST`].
    fn common(&self, a: usize, b: usize) -> usize {
        let (a, b) = (&self.tokens[..a], &self.tokens[..b]);
        let pairs = a.iter().rev().zip(b.iter().rev()).take(LONGEST);
        pairs.take_while(|(a, b)| a == b).count()
    }

    /// The slot of the tokens before a place.
    fn slot(&self, place: usize) -> Option<usize> {
        let last = self.tokens.get(place.checked_sub(LEAST)?..place)?;
        let mut hash: u64 = 0;
        for &token in last {
            hash = (hash ^ u64::from(token)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            hash ^= hash >> 32;
        }
        let mask = self.heads.len().checked_sub(1)?;
        // Truncating is what is wanted: the low bits are well mixed.
        #[expect(clippy::cast_possible_truncation, reason = "only low bits are wanted")]
        Some(hash as usize & mask)
    }

    /// Enters a place, which another token is about to follow. Twice as many slots whenever there are
    /// more places than slots.
    fn enter(&mut self, place: usize) {
        if place >= self.heads.len() {
            let slots = (place + 1).next_power_of_two().max(64);
            self.heads.clear();
            self.heads.resize(slots, NONE);
            self.earlier.clear();
            for place in 0..place {
                self.link(place);
            }
        }
        self.link(place);
    }

    fn link(&mut self, place: usize) {
        let mut before = NONE;
        if let Some(slot) = self.slot(place)
            && let Some(head) = self.heads.get_mut(slot)
        {
            before = std::mem::replace(head, u32::try_from(place).unwrap_or(NONE));
        }
        self.earlier.push(before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The longest match, the latest of equals, by looking everywhere.
    fn naive(tokens: &[u32]) -> Option<Match> {
        let end = tokens.len();
        let mut best: Option<Match> = None;
        for next in (1..end).rev() {
            let length = (0..next.min(LONGEST))
                .take_while(|back| tokens[next - 1 - back] == tokens[end - 1 - back])
                .count();
            if length >= LEAST && best.is_none_or(|best| best.length < length) {
                best = Some(Match { next, length });
            }
        }
        best
    }

    fn of(tokens: &[u32]) -> Index {
        let mut index = Index::default();
        index.extend(tokens);
        index
    }

    #[test]
    fn what_followed_the_longest_match_is_proposed() {
        let tokens = [9, 1, 2, 3, 7, 7, 5, 1, 2, 3, 8, 8, 9, 1, 2, 3];
        let index = of(&tokens);
        let found = index.find().unwrap();
        assert_eq!(found, Match { next: 4, length: 4 });
        let mut out = Vec::new();
        index.follow(found, 3, &mut out);
        assert_eq!(out, [7, 7, 5]);
        assert_eq!(of(&[1, 2, 3, 4]).find(), None);
        assert_eq!(of(&[]).find(), None);
    }

    #[test]
    fn what_repeats_goes_on_repeating() {
        let index = of(&[1, 2, 1, 2, 1, 2]);
        let mut out = vec![77];
        index.follow(index.find().unwrap(), 5, &mut out);
        assert_eq!(out, [77, 1, 2, 1, 2, 1]);
    }

    #[test]
    fn memory_is_a_few_words_a_token() {
        let tokens: Vec<u32> = (0..100_000).collect();
        let index = of(&tokens);
        assert!(index.heads.len() <= 2 * tokens.len());
        assert_eq!(index.earlier.len(), tokens.len());
    }

    proptest! {
        /// With chains shorter than the bound, a search finds what looking everywhere finds.
        #[test]
        fn short_texts_are_searched_as_by_looking_everywhere(
            tokens in proptest::collection::vec(0u32..3, 0..=DEPTH),
            cut in 0usize..=DEPTH,
        ) {
            let (head, tail) = tokens.split_at(cut.min(tokens.len()));
            let mut index = of(head);
            index.extend(tail);
            prop_assert_eq!(index.find(), naive(&tokens));
        }

        #[test]
        fn whatever_is_found_is_there(
            tokens in proptest::collection::vec(0u32..12, 0..400), most in 0usize..40,
        ) {
            let index = of(&tokens);
            prop_assert_eq!(index.len(), tokens.len());
            let found = index.find();
            prop_assert_eq!(found.is_some(), naive(&tokens).is_some());
            if let Some(Match { next, length }) = found {
                prop_assert!(next < tokens.len());
                prop_assert_eq!(&tokens[next - length..next], &tokens[tokens.len() - length..]);
                let mut out = Vec::new();
                index.follow(Match { next, length }, most, &mut out);
                let mut all = tokens.clone();
                for at in 0..most {
                    all.push(all[next + at]);
                }
                prop_assert_eq!(&out[..], &all[tokens.len()..]);
            }
        }
    }
}
