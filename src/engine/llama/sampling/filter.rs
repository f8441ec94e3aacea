//! Filters over the few tokens that are left, and the draw that ends a step.

use std::cmp::Ordering;

use super::row::{Candidate, exp};

/// Up to this many candidates are put in order before a draw: then a rounding error in the logits
/// moves a boundary between two tokens and does not reshuffle the line. Longer lists are drawn from
/// as they lie.
const SORTED_UP_TO: usize = 1024;
/// Below this a sort is quicker than another selection.
const SORT_BELOW: usize = 64;

/// Likeliest first; of equals, the lower id.
fn by_logit(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// Puts the likeliest first.
pub(super) fn sort(candidates: &mut [Candidate]) {
    candidates.sort_unstable_by(by_logit);
}

/// The candidates' weight together.
pub(super) fn mass(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|c| f64::from(c.weight)).sum()
}

/// Keeps the `k` likeliest.
pub(super) fn top_k(candidates: &mut Vec<Candidate>, k: usize) {
    if k < candidates.len() {
        candidates.select_nth_unstable_by(k, by_logit);
        candidates.truncate(k);
    }
}

/// Keeps the likeliest until their weight reaches `target`.
pub(super) fn top_p(candidates: &mut Vec<Candidate>, target: f64) {
    keep_until(candidates, by_logit, |mass| mass >= target);
}

/// Keeps the tokens whose surprise is nearest to the mean surprise, until their probability exceeds
/// `p` (arXiv 2202.00666).
pub(super) fn typical(candidates: &mut Vec<Candidate>, p: f64) {
    let total = mass(candidates);
    let Some(max) = highest(candidates) else {
        return;
    };
    // Surprise of a candidate: ln(total) - (logit - max), where weights are exp(logit - row max). The
    // row's maximum is among the candidates here, as only top_k has gone before.
    let surprise = |c: &Candidate| total.ln() - f64::from(c.logit - max);
    let entropy: f64 = candidates
        .iter()
        .map(|c| f64::from(c.weight) / total * surprise(c))
        .sum();
    let distance = |c: &Candidate| (surprise(c) - entropy).abs();
    keep_until(
        candidates,
        |a, b| distance(a).total_cmp(&distance(b)).then(a.id.cmp(&b.id)),
        |mass| mass > p * total,
    );
}

/// Keeps what is at most `distance_ln` (a negative number) below the highest.
pub(super) fn min_p(candidates: &mut Vec<Candidate>, distance_ln: f32) {
    if let Some(max) = highest(candidates) {
        let floor = max + distance_ln;
        candidates.retain(|c| c.logit >= floor);
    }
}

/// Of the tokens whose probability reaches `threshold`, keeps the least likely one only.
pub(super) fn xtc(candidates: &mut Vec<Candidate>, threshold: f32) {
    let least = f64::from(threshold) * mass(candidates);
    let top = |c: &Candidate| f64::from(c.weight) >= least;
    let Some(kept) = candidates
        .iter()
        .filter(|c| top(c))
        .max_by(|a, b| by_logit(a, b))
        .copied()
    else {
        return;
    };
    candidates.retain(|c| c.id == kept.id || !top(c));
}

/// Draws one candidate at the given sharpness (1 / temperature): the token at which the running sum
/// passes `unit` of it all. Returns it with its probability; `None` when there is no candidate.
pub(super) fn draw(candidates: &mut [Candidate], sharpness: f32, unit: f64) -> Option<(u32, f64)> {
    if candidates.len() <= SORTED_UP_TO {
        sort(candidates);
    }
    let max = highest(candidates)?;
    let mut total = 0.0;
    for candidate in &mut *candidates {
        candidate.weight = exp((candidate.logit - max) * sharpness);
        total += f64::from(candidate.weight);
    }
    let target = unit * total;
    let mut sum = 0.0;
    candidates
        .iter()
        .find(|c| {
            sum += f64::from(c.weight);
            sum > target
        })
        .map(|c| (c.id, f64::from(c.weight) / total))
}

fn highest(candidates: &[Candidate]) -> Option<f32> {
    candidates.iter().map(|c| c.logit).reduce(f32::max)
}

/// Keeps the shortest prefix, in the given order, whose weight is enough; all of it, when none is.
///
/// Halves the undecided part around its median until it is short, so it costs a small multiple of
/// the list's length whatever the weights are; only the last part is sorted.
fn keep_until(
    candidates: &mut Vec<Candidate>,
    order: impl Fn(&Candidate, &Candidate) -> Ordering,
    enough: impl Fn(f64) -> bool,
) {
    // Everything before `low` is kept, the prefix ends before or at `high`.
    let (mut low, mut high) = (0, candidates.len());
    let mut kept = 0.0;
    while high - low > SORT_BELOW {
        let middle = usize::midpoint(low, high);
        let Some(part) = candidates.get_mut(low..high) else {
            return;
        };
        let (before, _, _) = part.select_nth_unstable_by(middle - low, &order);
        let with = kept + mass(before);
        if enough(with) {
            high = middle;
        } else {
            low = middle;
            kept = with;
        }
    }
    let Some(part) = candidates.get_mut(low..high) else {
        return;
    };
    part.sort_unstable_by(&order);
    let end = part.iter().position(|c| {
        kept += f64::from(c.weight);
        enough(kept)
    });
    candidates.truncate(end.map_or(high, |at| low + at + 1));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidates(logits: &[f32]) -> Vec<Candidate> {
        let max = logits.iter().copied().reduce(f32::max).unwrap();
        (0..)
            .zip(logits)
            .map(|(id, &logit)| Candidate {
                id,
                logit,
                weight: exp(logit - max),
            })
            .collect()
    }

    fn ids(candidates: &[Candidate]) -> Vec<u32> {
        let mut ids: Vec<u32> = candidates.iter().map(|c| c.id).collect();
        ids.sort_unstable();
        ids
    }

    /// Probabilities in f64, likeliest first.
    fn sorted(logits: &[f32]) -> Vec<(u32, f64)> {
        let max = logits.iter().copied().reduce(f32::max).unwrap();
        let weights = logits.iter().map(|&x| f64::from(x - max).exp());
        let total: f64 = weights.clone().sum();
        let mut sorted: Vec<(u32, f64)> = (0..).zip(weights.map(|w| w / total)).collect();
        sorted.sort_by(|a, b| {
            let logit = |id: u32| logits[id as usize];
            logit(b.0).total_cmp(&logit(a.0)).then(a.0.cmp(&b.0))
        });
        sorted
    }

    /// Whether `kept` is a prefix of `line` that is just long enough, rounding aside.
    fn is_just_enough(kept: &[u32], line: &[(u32, f64)], p: f64) -> bool {
        let n = kept.len();
        let mut prefix: Vec<u32> = line[..n].iter().map(|(id, _)| *id).collect();
        prefix.sort_unstable();
        let mass = |n: usize| line[..n].iter().map(|(_, p)| p).sum::<f64>();
        n > 0
            && prefix == kept
            && (n == line.len() || mass(n) >= p - 1e-6)
            && mass(n - 1) <= p + 1e-6
    }

    fn logits() -> impl Strategy<Value = Vec<f32>> {
        prop_oneof![
            prop::collection::vec(-12.0_f32..12.0, 1..400),
            prop::collection::vec((-4_i8..4).prop_map(f32::from), 1..400),
        ]
    }

    proptest! {
        #[test]
        fn top_k_keeps_the_likeliest(logits in logits(), k in 1_usize..100) {
            let mut kept = candidates(&logits);
            top_k(&mut kept, k);
            let mut expected: Vec<u32> =
                sorted(&logits).iter().take(k).map(|(id, _)| *id).collect();
            expected.sort_unstable();
            prop_assert_eq!(ids(&kept), expected);
        }

        #[test]
        fn top_p_keeps_the_smallest_set_that_reaches_p(logits in logits(), p in 0.0_f64..1.0) {
            let mut kept = candidates(&logits);
            let target = p * mass(&kept);
            top_p(&mut kept, target);
            prop_assert!(is_just_enough(&ids(&kept), &sorted(&logits), p));
        }

        #[test]
        fn typical_keeps_what_is_nearest_to_the_entropy(
            logits in prop::collection::vec(-12.0_f32..12.0, 1..400),
            p in 0.0_f64..1.0,
        ) {
            let mut kept = candidates(&logits);
            typical(&mut kept, p);
            let mut line = sorted(&logits);
            let entropy: f64 = line.iter().map(|(_, p)| -p * p.ln()).sum();
            line.sort_by(|a, b| {
                (-a.1.ln() - entropy).abs().total_cmp(&(-b.1.ln() - entropy).abs())
            });
            prop_assert!(is_just_enough(&ids(&kept), &line, p));
        }

        #[test]
        fn min_p_keeps_what_is_near_the_likeliest(logits in logits(), p in 0.001_f32..1.0) {
            let mut kept = candidates(&logits);
            min_p(&mut kept, p.ln());
            let line = sorted(&logits);
            for (id, probability) in &line {
                let ratio = probability / line[0].1;
                if (ratio - f64::from(p)).abs() > 1e-5 {
                    prop_assert_eq!(ids(&kept).contains(id), ratio > f64::from(p));
                }
            }
        }

        #[test]
        fn xtc_drops_all_likely_tokens_but_the_least(logits in logits(), t in 0.0_f32..0.5) {
            let line = sorted(&logits);
            prop_assume!(line.iter().all(|(_, p)| (p - f64::from(t)).abs() > 1e-6));
            let mut kept = candidates(&logits);
            xtc(&mut kept, t);
            let likely = line.iter().filter(|(_, p)| *p >= f64::from(t)).count();
            let mut expected: Vec<u32> =
                line[likely.saturating_sub(1)..].iter().map(|(id, _)| *id).collect();
            expected.sort_unstable();
            prop_assert_eq!(ids(&kept), expected);
        }

        #[test]
        fn a_draw_inverts_the_cumulative_distribution(
            logits in logits(),
            sharpness in 0.1_f32..4.0,
            unit in 0.0_f64..1.0,
        ) {
            let scaled: Vec<f32> = logits.iter().map(|x| x * sharpness).collect();
            let line = sorted(&scaled);
            let mut all = candidates(&logits);
            let (token, probability) = draw(&mut all, sharpness, unit).unwrap();
            let at = line.iter().position(|(id, _)| *id == token).unwrap();
            prop_assert!((line[at].1 - probability).abs() < 1e-4);
            let before: f64 = all.iter().take_while(|c| c.id != token)
                .map(|c| line.iter().find(|(id, _)| *id == c.id).unwrap().1)
                .sum();
            prop_assert!(before <= unit + 1e-4 && before + probability >= unit - 1e-4);
        }
    }
}
