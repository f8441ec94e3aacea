//! Random numbers by position, not by history: number `(position, lane)` of a seed is a pure
//! function, so pausing, preempting or replaying a sequence cannot move the ones that follow.

/// What a number is for. Each purpose has its own lane, so that one more or one fewer draw for XTC
/// leaves the token draws where they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Which token.
    Token = 0,
    /// Whether XTC acts on this step.
    Xtc = 1,
}

/// Lanes per position.
const LANES: u64 = 2;

/// The increment of `SplitMix64`: 2^64 divided by the golden ratio, made odd.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// One seed's table of numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Random {
    key: u64,
}

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        // Hashed once here so that seeds that differ by one (the choices of one request) start at
        // unrelated places of the sequence.
        Self {
            key: mix(seed.wrapping_add(GAMMA)),
        }
    }

    /// A number in `[0, 1)`, with 53 random bits: output `position * LANES + lane` of `SplitMix64`.
    #[expect(
        clippy::cast_precision_loss,
        reason = "the shift leaves 53 bits, which an f64 holds exactly"
    )]
    pub(super) fn unit(self, position: u64, lane: Lane) -> f64 {
        let counter = position
            .wrapping_mul(LANES)
            .wrapping_add(lane as u64)
            .wrapping_add(1);
        let bits = mix(self.key.wrapping_add(counter.wrapping_mul(GAMMA)));
        (bits >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }
}

/// `SplitMix64`'s output function (Steele, Lea, Flood 2014, variant 13 of Stafford's mixers).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_depends_on_seed_position_and_lane_alone() {
        let random = Random::new(7);
        let first: Vec<f64> = (0..100).map(|p| random.unit(p, Lane::Token)).collect();
        let backwards: Vec<f64> = (0..100)
            .rev()
            .map(|p| {
                let _ = random.unit(p, Lane::Xtc);
                Random::new(7).unit(p, Lane::Token)
            })
            .collect();
        assert!(first.iter().eq(backwards.iter().rev()));
    }

    #[test]
    fn neighbouring_seeds_positions_and_lanes_share_no_number() {
        let mut seen = std::collections::HashSet::new();
        for seed in 0..50 {
            for position in 0..200 {
                for lane in [Lane::Token, Lane::Xtc] {
                    let unit = Random::new(seed).unit(position, lane);
                    assert!((0.0..1.0).contains(&unit));
                    assert!(seen.insert(unit.to_bits()), "{seed} {position} {lane:?}");
                }
            }
        }
    }

    #[test]
    fn numbers_are_uniform_along_positions_and_along_seeds() {
        let along_positions = (0..64_000).map(|p| Random::new(3).unit(p, Lane::Token));
        let along_seeds = (0..64_000).map(|s| Random::new(s).unit(5, Lane::Xtc));
        for numbers in [
            along_positions.collect::<Vec<_>>(),
            along_seeds.collect::<Vec<_>>(),
        ] {
            let mut bins = [0_u32; 64];
            for unit in numbers {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a number in 0..64"
                )]
                let bin = (unit * 64.0) as usize;
                bins[bin] += 1;
            }
            let chi_square: f64 = bins
                .iter()
                .map(|&n| (f64::from(n) - 1000.0).powi(2) / 1000.0)
                .sum();
            // 63 degrees of freedom: 1 in 10^5 exceeds 117.
            assert!(chi_square < 117.0, "{chi_square}");
        }
    }
}
