//! Thousands of random schedules: sequences of all kinds, readers that stall, callers that go.

use proptest::prelude::*;

use super::simulator::{Owner, Place, Sequence, World};
use super::{Class, Limits, Stage};

impl World {
    /// Readers fall behind and catch up, callers go, sequences find that another computes their prefix.
    fn trouble(&mut self, dice: &mut Dice, chance: u32) {
        for key in 0..self.sequences.len() {
            let now_us = self.now_us;
            let s = &mut self.sequences[key];
            let decodes = matches!(s.place, Place::Id(_)) && s.stage() == Stage::Decode;
            if s.paused_since_us.is_some() {
                if dice.below(8) == 0 {
                    s.paused_since_us = None;
                    if s.place == Place::Away {
                        s.place = Place::Line;
                        s.since_us = now_us;
                    }
                }
            } else if decodes && dice.below(100) < chance {
                s.paused_since_us = Some(now_us);
            } else if !matches!(s.place, Place::Future(_) | Place::Ended)
                && dice.below(800) < chance
            {
                self.end(key);
            } else if s.place == Place::Line && key > 0 && dice.below(10) == 0 {
                s.follows = Some(usize::try_from(dice.next()).unwrap() % key);
            }
        }
    }

    fn calm(&mut self) {
        for s in &mut self.sequences {
            s.paused_since_us = None;
            if s.place == Place::Away {
                s.place = Place::Line;
            }
        }
    }
}

/// Small and repeatable; proptest gives the seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 16
    }

    fn below(&mut self, end: u32) -> u32 {
        u32::try_from(self.next() % u64::from(end)).unwrap()
    }
}

fn limits() -> impl Strategy<Value = Limits> {
    (
        (1u32..10, 512u64..3000, 1u32..12, 64u32..300),
        (5_000u64..60_000, any::<bool>(), any::<bool>()),
        (prop::bool::weighted(0.8), 100u32..=150),
    )
        .prop_map(|((ids, cells, decode_rows, batch), step, pool)| Limits {
            ids,
            cells,
            decode_rows,
            batch,
            max_step_us: step.0,
            one_prompt_per_call: step.1,
            cut_last: step.2,
            pooled: pool.0,
            overcommit_percent: pool.1,
        })
}

fn sequences(dice: &mut Dice, count: u32, cells: u64) -> Vec<Sequence> {
    let cells = u32::try_from(cells).unwrap();
    let classes = [Class::Background, Class::Normal, Class::Interactive];
    let mut make = |_| {
        let longest = if dice.below(4) == 0 {
            cells * 3 / 4
        } else {
            150
        };
        let prompt = 1 + dice.below(longest);
        let budget = 1 + dice.below((cells - prompt).min(200));
        let class = classes[dice.below(3) as usize];
        let at_us = u64::from(dice.below(1_000_000));
        Sequence {
            adapter: u16::try_from(dice.below(6) / 4 + dice.below(6) / 5).unwrap(),
            weight: 1 + u16::try_from(dice.below(3)).unwrap(),
            cacheable: dice.below(prompt),
            deadline_us: (dice.below(3) == 0).then(|| at_us + u64::from(dice.below(3_000_000))),
            rows: 1 + u16::try_from(dice.below(8).saturating_sub(4)).unwrap(),
            ..Sequence::new(dice.below(4), class, prompt, budget, at_us)
        }
    };
    (0..count).map(&mut make).collect()
}

fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok();
    let cases = cases.and_then(|cases| cases.parse().ok());
    ProptestConfig::with_cases(cases.unwrap_or(default))
}

proptest! {
    #![proptest_config(cases(300))]

    /// `World` checks at every step that promises fit the cells, that every row has one, that rows and
    /// runs keep to the limits, the order and the grid, that a step is as short as asked, that no
    /// prompt starves, and that a plan is empty only when nobody could go on.
    #[test]
    fn every_sequence_ends_exactly_once_whatever_happens(
        limits in limits(),
        seed in 1u64..,
        count in 1u32..30,
        chance in 0u32..12,
        host in 0usize..4,
        spill_after_us in prop::option::of(0u64..200_000),
    ) {
        let mut dice = Dice(seed);
        let sequences = sequences(&mut dice, count, limits.cells);
        let mut world = World::new(limits, sequences);
        world.host = host;
        world.spill_after_us = spill_after_us;
        for _ in 0..400 {
            world.trouble(&mut dice, chance);
            if !world.step() {
                world.now_us += 20_000;
            }
        }
        // No more trouble: whoever is left gets to its end. Each of at most 30 sequences needs at most
        // 200 tokens and 50 runs, and moves some memory before that.
        let mut steps = 0;
        while !world.ended() {
            world.calm();
            if !world.step() {
                world.now_us += 20_000;
            }
            steps += 1;
            prop_assert!(steps < 20_000, "no end in sight");
        }
        prop_assert!(world.sequences.iter().all(|s| s.ends == 1));
        let cached = world.count(Owner::Cache) + world.count(Owner::Free);
        prop_assert_eq!(cached, world.map.values().sum::<u32>(), "all cells came back");
    }
}
