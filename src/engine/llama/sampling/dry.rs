//! DRY ("don't repeat yourself"): the token that would extend a verbatim repetition of the text's
//! end is made less likely, exponentially in the repetition's length.
//!
//! Same numbers as llama.cpp's sampler: a repetition is a suffix of the text that also stands
//! somewhere earlier in the window, it does not reach across a sequence breaker, and the token that
//! followed the earlier place loses `multiplier * base^(length - allowed_length)`.

use std::collections::HashMap;

use super::history::History;
use super::settings::DryPlan;

/// Tails are cut to this many tokens.
const MAX_TAIL: usize = 20;

/// The texts across which no repetition is counted, as token sequences.
///
/// Built once per list of texts and shared; the empty one breaks nowhere.
#[derive(Debug, Default)]
pub struct Breakers {
    /// From the token in which a breaker begins to what must follow it; nothing, when the token
    /// holds the whole breaker.
    tails: HashMap<u32, Vec<Box<[u32]>>>,
}

impl Breakers {
    /// Finds every way in which the texts can begin in a token.
    ///
    /// A token whose bytes contain a text breaks by itself. A token that ends with the beginning of a
    /// text breaks when it is followed by the rest, as `tokenize` (without special tokens, without
    /// added ones) cuts that rest; the rest can begin inside a character.
    ///
    /// `pieces` are the bytes of every token in order of id. Empty texts are skipped. The work grows
    /// with the number and the length of the texts, which [`Sampling::check`] bounds.
    ///
    /// [`Sampling::check`]: crate::generation::Sampling::check
    pub fn new<P: AsRef<[u8]>>(
        texts: &[String],
        pieces: impl IntoIterator<Item = P>,
        mut tokenize: impl FnMut(&[u8]) -> Vec<u32>,
    ) -> Self {
        let texts: Vec<&[u8]> = texts
            .iter()
            .map(String::as_bytes)
            .filter(|text| !text.is_empty())
            .collect();
        // One vocabulary has many tokens that end alike; each rest is cut into tokens once.
        let mut rests: HashMap<&[u8], Box<[u32]>> = HashMap::new();
        let mut breakers = Self::default();
        for (id, piece) in (0_u32..).zip(pieces) {
            let piece = piece.as_ref();
            for &text in &texts {
                if piece.windows(text.len()).any(|window| window == text) {
                    breakers.add(id, &[]);
                    continue;
                }
                for begun in 1..text.len() {
                    let (head, rest) = text.split_at(begun);
                    if piece.ends_with(head) {
                        let tail = rests.entry(rest).or_insert_with(|| {
                            let mut tokens = tokenize(rest);
                            tokens.truncate(MAX_TAIL);
                            tokens.into()
                        });
                        breakers.add(id, tail);
                    }
                }
            }
        }
        breakers
    }

    fn add(&mut self, head: u32, tail: &[u32]) {
        let tails = self.tails.entry(head).or_default();
        if !tails.iter().any(|known| &**known == tail) {
            tails.push(tail.into());
        }
    }

    /// Whether the token alone is a break.
    fn breaks_alone(&self, token: u32) -> bool {
        self.tails
            .get(&token)
            .is_some_and(|tails| tails.iter().any(|tail| tail.is_empty()))
    }

    /// How many tokens stand after the last break of `text`; all of them when there is none.
    fn since_last(&self, text: &[u32]) -> usize {
        if self.tails.is_empty() {
            return text.len();
        }
        for (at, head) in text.iter().enumerate().rev() {
            let Some(tails) = self.tails.get(head) else {
                continue;
            };
            let after = text.get(at + 1..).unwrap_or_default();
            let longest = tails
                .iter()
                .filter(|tail| after.starts_with(tail))
                .map(|tail| tail.len())
                .max();
            if let Some(longest) = longest {
                return after.len() - longest;
            }
        }
        text.len()
    }
}

/// Working memory, kept between steps.
#[derive(Debug, Default)]
pub(super) struct DryScratch {
    /// By distance from the end of the text: how long the text's end repeats there.
    repeats: Vec<usize>,
    /// Tokens that would extend a repetition, with its length.
    extending: Vec<(u32, usize)>,
}

/// Lowers the logits of the tokens that would extend a repetition.
pub(super) fn apply(
    plan: &DryPlan,
    breakers: &Breakers,
    history: &History,
    row: &mut [f32],
    scratch: &mut DryScratch,
) {
    let text = history.last(plan.last_n);
    if text.len() <= plan.allowed_length {
        return;
    }
    let limit = breakers.since_last(text);
    if limit < plan.allowed_length {
        return;
    }
    suffix_repeats(text, &mut scratch.repeats);
    scratch.extending.clear();
    // `back` tokens before the end, the last `repeat` tokens stand once more; the token that came
    // next there is the one that would go on repeating.
    for (repeat, &next) in scratch.repeats.iter().zip(text.iter().rev()) {
        let repeat = (*repeat).min(limit);
        if repeat >= plan.allowed_length {
            scratch.extending.push((next, repeat));
        }
    }
    // The longest repetition of each token counts.
    scratch.extending.sort_unstable_by(|a, b| b.cmp(a));
    scratch.extending.dedup_by_key(|(token, _)| *token);
    for &(token, repeat) in &scratch.extending {
        let index = token as usize;
        if let Some(logit) = row.get_mut(index)
            && !breakers.breaks_alone(token)
        {
            *logit -= plan.penalty(repeat - plan.allowed_length);
        }
    }
}

/// For each `back` in `1..text.len()`, in order: how many of the last tokens equal the ones that
/// end `back` tokens before the end. The Z-algorithm on the reversed text, linear in its length.
fn suffix_repeats(text: &[u32], repeats: &mut Vec<usize>) {
    let n = text.len();
    let from_end = |i: usize| text.get(n.wrapping_sub(i + 1));
    repeats.clear();
    // The match that reaches furthest: it began at `left` and ends before `right`.
    let (mut left, mut right) = (0_usize, 0_usize);
    for back in 1..n {
        // Inside that match, the answer for its mirror image is known already.
        let mut length = if back < right {
            let known = repeats.get(back - left - 1).copied().unwrap_or(0);
            known.min(right - back)
        } else {
            0
        };
        if back + length >= right {
            while back + length < n && from_end(length) == from_end(back + length) {
                length += 1;
            }
            left = back;
            right = back + length;
        }
        repeats.push(length);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plan(allowed_length: usize) -> DryPlan {
        DryPlan {
            multiplier: 0.8,
            base: 1.75,
            allowed_length,
            last_n: 64,
        }
    }

    fn breakers(sequences: &[&[u32]]) -> Breakers {
        let mut breakers = Breakers::default();
        for sequence in sequences {
            breakers.add(sequence[0], &sequence[1..]);
        }
        breakers
    }

    fn penalties(plan: &DryPlan, breakers: &Breakers, text: &[u32]) -> Vec<f32> {
        let mut history = History::new(plan.last_n, 0);
        history.extend(text);
        let mut row = vec![0.0; 16];
        apply(
            plan,
            breakers,
            &history,
            &mut row,
            &mut DryScratch::default(),
        );
        row
    }

    /// Tries every earlier place and every length.
    fn slow(plan: &DryPlan, breakers: &Breakers, text: &[u32]) -> Vec<f32> {
        let text = &text[text.len().saturating_sub(plan.last_n)..];
        let mut row = vec![0.0_f32; 16];
        let mut longest = [None::<usize>; 16];
        let limit = (0..text.len())
            .rev()
            .find_map(|at| {
                let tails = breakers.tails.get(&text[at])?;
                tails
                    .iter()
                    .filter(|tail| text[at + 1..].starts_with(tail))
                    .map(|tail| text.len() - at - 1 - tail.len())
                    .min()
            })
            .unwrap_or(text.len());
        if text.len() <= plan.allowed_length || limit < plan.allowed_length {
            return row;
        }
        for end in 1..text.len() {
            let mut length = 0;
            while length < end && text[end - 1 - length] == text[text.len() - 1 - length] {
                length += 1;
            }
            let length = length.min(limit);
            if length >= plan.allowed_length {
                let slot = &mut longest[text[end] as usize];
                *slot = (*slot).max(Some(length));
            }
        }
        for (token, length) in longest.iter().enumerate() {
            if let Some(length) = length
                && !breakers.breaks_alone(u32::try_from(token).unwrap())
            {
                let exponent = i32::try_from(length - plan.allowed_length).unwrap();
                row[token] = -plan.multiplier * plan.base.powi(exponent);
            }
        }
        row
    }

    proptest! {
        #[test]
        fn equals_the_slow_search(
            text in prop::collection::vec(0_u32..4, 0..90),
            allowed in 0_usize..5,
            sequences in prop::collection::vec(prop::collection::vec(0_u32..4, 1..4), 0..3),
        ) {
            let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
            let breakers = breakers(&sequences);
            let plan = plan(allowed);
            let fast = penalties(&plan, &breakers, &text);
            let slow = slow(&plan, &breakers, &text);
            for (fast, slow) in fast.iter().zip(&slow) {
                prop_assert!((fast - slow).abs() <= slow.abs() * 1e-4, "{fast} {slow}");
            }
        }

        #[test]
        fn repeats_equal_a_naive_count(text in prop::collection::vec(0_u32..3, 0..80)) {
            let mut repeats = Vec::new();
            suffix_repeats(&text, &mut repeats);
            let reversed: Vec<u32> = text.iter().rev().copied().collect();
            let naive: Vec<usize> = (1..text.len())
                .map(|k| reversed.iter().zip(&reversed[k..]).take_while(|(a, b)| a == b).count())
                .collect();
            prop_assert_eq!(repeats, naive);
        }
    }

    #[test]
    fn the_token_that_extends_a_repetition_is_penalised_by_its_length() {
        // "1 2 3 4" and then "1 2 3": a 4 would extend three repeated tokens.
        let row = penalties(&plan(2), &Breakers::default(), &[1, 2, 3, 4, 9, 1, 2, 3]);
        assert!((row[4] + 0.8 * 1.75).abs() < 1e-6);
        assert_eq!(row.iter().filter(|&&x| x != 0.0).count(), 1);
    }

    #[test]
    fn a_breaker_hides_what_stands_before_it() {
        let breakers = breakers(&[&[2]]);
        let row = penalties(&plan(2), &breakers, &[1, 2, 3, 4, 9, 1, 2, 3]);
        assert!(row.iter().all(|&x| x == 0.0));
    }

    #[test]
    fn a_very_long_repetition_gives_a_finite_penalty() {
        let plan = DryPlan {
            multiplier: 100.0,
            base: 100.0,
            allowed_length: 0,
            last_n: 4096,
        };
        assert!(plan.penalty(4000).is_finite());
    }

    #[test]
    fn breakers_are_found_inside_and_across_tokens() {
        let pieces: [&[u8]; 6] = [b"a", b"\n\n", b"x##", b"#", b"###y", b"# #"];
        let texts = ["\n".to_owned(), "###".to_owned(), String::new()];
        let breakers = Breakers::new(&texts, pieces, |rest| vec![3; rest.len()]);
        assert!(breakers.breaks_alone(1));
        assert!(breakers.breaks_alone(4));
        assert!(!breakers.breaks_alone(0));
        let tails = |id| breakers.tails.get(&id).cloned().unwrap_or_default();
        assert_eq!(tails(2), [vec![3, 3].into(), vec![3].into()]);
        assert_eq!(tails(3), [vec![3, 3].into()]);
        assert_eq!(breakers.since_last(&[0, 2, 3, 0, 0]), 2);
        assert_eq!(breakers.since_last(&[0, 3, 0, 0]), 4);
    }
}
