//! Who gets how much of the engine, and how soon, in the simulated world.

use super::simulator::{Sequence, World};
use super::{Class, Limits, TenantId};

const SECOND: u64 = 1_000_000;

const LIMITS: Limits = Limits {
    ids: 8,
    cells: 10_000,
    decode_rows: 63,
    batch: 512,
    max_step_us: 50_000,
    one_prompt_per_call: false,
    cut_last: false,
    pooled: true,
    overcommit_percent: 100,
};

fn run(world: &mut World, until_us: u64) {
    while world.now_us < until_us {
        assert!(
            world.step(),
            "nobody stalls here, so there is always something to do"
        );
    }
}

#[test]
fn two_tenants_with_full_lines_get_their_shares_of_the_time() {
    for weight in [1, 3] {
        let mut sequences = Vec::new();
        for _ in 0..400 {
            // One has long prompts and short answers, the other the reverse.
            sequences.push(Sequence::new(1, Class::Normal, 900, 10, 0));
            let mut other = Sequence::new(2, Class::Normal, 50, 80, 0);
            other.weight = weight;
            sequences.push(other);
        }
        let limits = Limits { ids: 8, ..LIMITS };
        let mut world = World::new(limits, sequences);
        run(&mut world, 8 * SECOND);
        let (one, two) = (world.served_us[&TenantId(1)], world.served_us[&TenantId(2)]);
        let fair = one * u64::from(weight);
        assert!(
            two * 100 > fair * 85 && two * 85 < fair * 100,
            "weight {weight}: {one} and {two} us"
        );
    }
}

#[test]
fn a_tenant_that_comes_late_gets_ids_within_seconds_and_no_credit_for_the_past() {
    let mut sequences: Vec<_> = (0..60)
        .map(|_| Sequence::new(1, Class::Normal, 100, 1000, 0))
        .collect();
    let late = 5 * SECOND;
    sequences.extend((0..60).map(|_| Sequence::new(2, Class::Normal, 100, 1000, late)));
    let limits = Limits { ids: 8, ..LIMITS };
    let mut world = World::new(limits, sequences);
    run(&mut world, late + SECOND / 2);
    assert_eq!((world.held(1), world.held(2)), (4, 4));
    world.served_us.clear();
    run(&mut world, late + 10 * SECOND);
    let (one, two) = (world.served_us[&TenantId(1)], world.served_us[&TenantId(2)]);
    assert!(two * 10 < one * 13, "{one} and {two} us");
}

#[test]
fn a_long_prompt_gets_on_while_short_ones_keep_coming() {
    // The short ones alone are more than the engine can do: 200 rows of 50 us each 9 ms. Alone the long
    // one takes 0.8 s; a quarter of the calls are its own. A background one is parked now and then,
    // and has a quarter of a second every four seconds.
    for (class, prompt, bound_us) in [
        (Class::Normal, 16_000, 8 * SECOND),
        (Class::Background, 4_000, 30 * SECOND),
    ] {
        let mut sequences = vec![Sequence::new(1, class, prompt, 5, 0)];
        let short = |at: u64| Sequence::new(1, Class::Interactive, 200, 2, at * 9_000);
        sequences.extend((0..bound_us / 9_000).map(short));
        let limits = Limits {
            ids: 8,
            cells: 40_000,
            ..LIMITS
        };
        let mut world = World::new(limits, sequences);
        while world.sequences[0].first_us.is_none() {
            assert!(world.step());
        }
        assert!(world.now_us < bound_us, "{class:?}: {} us", world.now_us);
    }
}

#[test]
fn at_95_percent_of_the_cells_64_long_prompts_all_end() {
    for host in [usize::MAX, 2, 0] {
        let sequences = (0..64)
            .map(|n| Sequence::new(n % 5, Class::Normal, 400, 400, 0))
            .collect();
        let limits = Limits {
            ids: 64,
            // Their prompts fill it to 95 percent, and each wants as much again.
            cells: 64 * 400 * 100 / 95,
            overcommit_percent: 150,
            ..LIMITS
        };
        let mut world = World::new(limits, sequences);
        world.host = host;
        let mut steps = 0;
        while !world.ended() {
            // `step` is false when no sequence moved.
            assert!(world.step(), "something moves at every step");
            steps += 1;
            assert!(steps < 20_000);
        }
    }
}
