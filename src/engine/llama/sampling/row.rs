//! One row of logits, read a few times as a stream and never sorted.
//!
//! A first pass keeps the highest logit of each block of neighbouring tokens. That small table
//! answers what a sort would: the `k` highest blocks hold the `k` highest tokens, and whatever lies
//! below a floor is skipped a block at a time. The passes run over sixteen lanes in plain code that
//! compilers turn into vector instructions; sums are made in one fixed order, so the same logits give
//! the same bits on every machine.

/// A token that is still in the running.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: u32,
    pub(super) logit: f32,
    /// Its probability at temperature 1, times a constant that all candidates share.
    pub(super) weight: f32,
}

/// The row is useless: no token has a finite logit, or one is infinitely likely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadLogits;

impl std::fmt::Display for DeadLogits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the model left no token with a finite logit")
    }
}

impl std::error::Error for DeadLogits {}

/// Lanes of every vector loop: one AVX-512 register, two of AVX2, four of SSE or NEON.
const LANES: usize = 16;
/// Block width for rows shorter than `WIDE_FROM`: enough blocks to tell the best forty apart.
const NARROW: usize = 16;
/// Block width for long rows.
const WIDE: usize = 64;
const WIDE_FROM: usize = 16_384;

/// A row with its table of block maxima.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row<'a> {
    logits: &'a [f32],
    maxima: &'a [f32],
    width: usize,
    max: f32,
}

impl<'a> Row<'a> {
    /// Scans the row. A NaN counts as negative infinity: such a token is never chosen.
    pub(super) fn scan(logits: &'a [f32], maxima: &'a mut Vec<f32>) -> Result<Self, DeadLogits> {
        maxima.clear();
        let width = if logits.len() < WIDE_FROM {
            push_maxima::<NARROW>(logits, maxima);
            NARROW
        } else {
            push_maxima::<WIDE>(logits, maxima);
            WIDE
        };
        let max = highest(maxima);
        if !max.is_finite() {
            return Err(DeadLogits);
        }
        Ok(Self {
            logits,
            maxima,
            width,
            max,
        })
    }

    /// The highest logit; finite.
    pub(super) fn max(&self) -> f32 {
        self.max
    }

    /// The first token with the highest logit.
    pub(super) fn argmax(&self) -> u32 {
        #[expect(clippy::float_cmp, reason = "the maximum is one of these very values")]
        self.blocks()
            .filter(|(_, block_max, _)| *block_max == self.max)
            .find_map(|(first, _, block)| {
                let at = block.iter().zip(first..).find(|(x, _)| **x == self.max);
                at.map(|(_, id)| id)
            })
            .unwrap_or(0)
    }

    /// Adds to `out` every token with `floor <= logit < ceiling`, in order of id.
    pub(super) fn gather(&self, floor: f32, ceiling: f32, out: &mut Vec<Candidate>) {
        // Negative infinity is "banned": not even the lowest floor lets it in.
        let floor = floor.max(f32::MIN);
        for (first, block_max, block) in self.blocks() {
            if block_max < floor {
                continue;
            }
            for (&logit, id) in block.iter().zip(first..) {
                if logit >= floor && logit < ceiling {
                    out.push(Candidate {
                        id,
                        logit,
                        weight: exp(logit - self.max),
                    });
                }
            }
        }
    }

    /// A logit that at least `k` tokens reach and few more do: the `k`-th highest block maximum.
    pub(super) fn floor_of_top(&self, k: usize, select: &mut Vec<f32>) -> f32 {
        if k == 0 || k > self.maxima.len() {
            return f32::MIN;
        }
        // The same trick once more: the maxima of groups of maxima bound the answer from below, and
        // what is left to select from is short.
        select.clear();
        push_maxima::<NARROW>(self.maxima, select);
        let floor = if k <= select.len() {
            kth_highest(select, k)
        } else {
            f32::MIN
        };
        select.clear();
        select.extend(self.maxima.iter().copied().filter(|&max| max >= floor));
        if k <= select.len() {
            kth_highest(select, k).max(f32::MIN)
        } else {
            f32::MIN
        }
    }

    /// The sum of `exp((logit - max) * sharpness)` over all tokens, and in `sums` by block.
    pub(super) fn sum_exp(&self, sharpness: f32, sums: &mut Vec<f32>) -> f64 {
        sums.clear();
        let mut total = 0.0;
        for (_, _, block) in self.blocks() {
            let sum = sum_exp(block, self.max, sharpness);
            sums.push(sum);
            total += f64::from(sum);
        }
        total
    }

    /// Draws from the whole row at once: the token at which the running sum passes `unit` of it all.
    pub(super) fn draw(&self, sharpness: f32, unit: f64, sums: &mut Vec<f32>) -> u32 {
        let target = unit * self.sum_exp(sharpness, sums);
        let mut before = 0.0;
        let mut last = self.argmax();
        for ((first, _, block), &sum) in self.blocks().zip(sums.iter()) {
            if before + f64::from(sum) <= target {
                before += f64::from(sum);
                continue;
            }
            for (&logit, id) in block.iter().zip(first..) {
                let weight = exp((logit - self.max) * sharpness);
                if weight > 0.0 {
                    last = id;
                    before += f64::from(weight);
                    if before > target {
                        return id;
                    }
                }
            }
            // The lanes' sum was a rounding error above this one.
            return last;
        }
        last
    }

    /// Blocks in order: the first token's id, the block's maximum, its logits.
    fn blocks(&self) -> impl Iterator<Item = (u32, f32, &'a [f32])> + use<'a> {
        (0_u32..)
            .step_by(self.width)
            .zip(self.maxima)
            .zip(self.logits.chunks(self.width))
            .map(|((first, &max), block)| (first, max, block))
    }
}

fn push_maxima<const WIDTH: usize>(values: &[f32], out: &mut Vec<f32>) {
    let (blocks, rest) = values.as_chunks::<WIDTH>();
    out.extend(blocks.iter().map(|block| highest(block)));
    if !rest.is_empty() {
        out.push(highest(rest));
    }
}

/// The highest value, NaN aside; negative infinity when there is none.
#[inline]
fn highest(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = higher(value, *lane);
        }
    }
    let rest = rest
        .iter()
        .fold(f32::NEG_INFINITY, |max, &value| higher(value, max));
    higher(rest, fold(lanes, higher))
}

/// `value` if it is higher; `other` also when `value` is NaN. One instruction, unlike `f32::max`.
#[inline]
fn higher(value: f32, other: f32) -> f32 {
    if value > other { value } else { other }
}

/// Folds the lanes in halves, a shape that stays in vector registers.
#[inline]
fn fold(mut lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        let (low, high) = lanes.split_at_mut(width);
        for (low, high) in low.iter_mut().zip(high) {
            *low = combine(*high, *low);
        }
    }
    lanes[0]
}

#[inline]
fn sum_exp(block: &[f32], max: f32, sharpness: f32) -> f32 {
    let (chunks, rest) = block.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane += exp((logit - max) * sharpness);
        }
    }
    let rest: f32 = rest
        .iter()
        .map(|&logit| exp((logit - max) * sharpness))
        .sum();
    fold(lanes, |a, b| a + b) + rest
}

fn kth_highest(values: &mut [f32], k: usize) -> f32 {
    let (_, kth, _) = values.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    *kth
}

/// `e^x` for `x <= 0`, within 2 units in the last place; 0 below -87 and for NaN.
///
/// Plain arithmetic without branches or library calls, so that it vectorises and has the same bits
/// everywhere: `x = n ln 2 + r`, a polynomial for `e^r`, and `n` added to the exponent bits.
#[inline]
pub(super) fn exp(x: f32) -> f32 {
    /// 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first short enough for `n * LN2_HIGH` to be exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;

    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    // Coefficients of Cephes' expf (Moshier), fitted on |r| <= ln 2 / 2.
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let power = p * (r * r) + r + 1.0;
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x > -87.0 { power * scale } else { 0.0 }
}

#[cfg(test)]
#[expect(
    clippy::float_cmp,
    reason = "values that only move are compared with themselves"
)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn logit() -> impl Strategy<Value = f32> {
        prop_oneof![
            20 => -30.0_f32..30.0,
            2 => Just(f32::NEG_INFINITY),
            1 => Just(f32::NAN),
            2 => Just(1.5),
        ]
    }

    #[test]
    fn exp_is_right_to_a_few_units_in_the_last_place() {
        let mut x = 0.0_f32;
        while x > -87.0 {
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.5e-7, "{x}: {error}");
            x -= 0.000_37;
        }
        assert_eq!(exp(0.0), 1.0);
        for x in [-87.5, -1e30, f32::MIN, f32::NEG_INFINITY, f32::NAN] {
            assert_eq!(exp(x), 0.0);
        }
    }

    #[test]
    fn rows_without_a_finite_maximum_are_dead() {
        let mut maxima = Vec::new();
        for row in [
            vec![],
            vec![f32::NEG_INFINITY; 100],
            vec![f32::NAN; 20_000],
            [vec![0.0; 50], vec![f32::INFINITY]].concat(),
        ] {
            assert_eq!(Row::scan(&row, &mut maxima).err(), Some(DeadLogits));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn scans_equal_a_full_sort(
            seed in prop::collection::vec(logit(), 1..400),
            repeat in prop_oneof![Just(1_usize), Just(60)],
            k in 1_usize..80,
        ) {
            let values = seed.repeat(repeat);
            let mut sorted: Vec<(u32, f32)> =
                (0..).zip(values.iter().copied()).filter(|(_, x)| x.is_finite()).collect();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let mut maxima = Vec::new();
            let Ok(row) = Row::scan(&values, &mut maxima) else {
                prop_assert!(sorted.is_empty());
                return Ok(());
            };
            prop_assert_eq!(row.max(), sorted[0].1);
            prop_assert_eq!(row.argmax(), sorted[0].0);
            let floor = row.floor_of_top(k, &mut Vec::new());
            if let Some(kth) = sorted.get(k - 1) {
                prop_assert!(floor <= kth.1);
            } else {
                prop_assert_eq!(floor, f32::MIN);
            }
            let mut gathered = Vec::new();
            row.gather(floor, f32::INFINITY, &mut gathered);
            row.gather(f32::MIN, floor, &mut gathered);
            prop_assert_eq!(gathered.len(), sorted.len());
            let ceiling = sorted[0].1;
            gathered.clear();
            row.gather(-3.0, ceiling, &mut gathered);
            let ids: Vec<u32> = gathered.iter().map(|c| c.id).collect();
            let mut expected: Vec<u32> = sorted
                .iter()
                .filter(|(_, x)| (-3.0..ceiling).contains(x))
                .map(|(id, _)| *id)
                .collect();
            expected.sort_unstable();
            prop_assert_eq!(ids, expected);
            let exact: f64 =
                sorted.iter().map(|(_, x)| (f64::from(x - row.max()) * 0.7).exp()).sum();
            let total = row.sum_exp(0.7, &mut Vec::new());
            prop_assert!((total - exact).abs() < exact * 1e-5, "{total} {exact}");
        }

        #[test]
        fn a_draw_inverts_the_cumulative_distribution(
            values in prop::collection::vec(logit(), 1..300),
            unit in 0.0_f64..1.0,
        ) {
            let mut maxima = Vec::new();
            let Ok(row) = Row::scan(&values, &mut maxima) else { return Ok(()) };
            let weight = |x: f32| if x.is_finite() { f64::from(x - row.max()).exp() } else { 0.0 };
            let total: f64 = values.iter().map(|&x| weight(x)).sum();
            let token = row.draw(1.0, unit, &mut Vec::new()) as usize;
            let before: f64 = values[..token].iter().map(|&x| weight(x)).sum();
            let slack = total * 1e-5;
            prop_assert!(values[token].is_finite());
            prop_assert!(before <= unit * total + slack);
            prop_assert!(before + weight(values[token]) >= unit * total - slack);
        }
    }
}
