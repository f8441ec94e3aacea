//! Decisions over simulated sequences: acceptances by a fixed rate, costs by a formula.

use super::worth::{Costs, MOST, Origin, Worth};

/// Microseconds of a call.
type Price = fn(f64) -> f64;

/// As measured on a CPU: eight rows cost nearly seven times as much as one.
const CPU: Price = |rows| 1000.0 * (0.19 + 0.81 * rows);

/// Rows are nearly free.
const GPU: Price = |rows| 1000.0 * (1.0 + 0.02 * rows);

fn microseconds(time: f64) -> u64 {
    std::time::Duration::from_secs_f64(time / 1e6)
        .as_micros()
        .try_into()
        .unwrap()
}

/// A reproducible number in 0..1.
fn random(state: &mut u64) -> f64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    f64::from(u32::try_from(*state >> 32).unwrap()) / f64::from(u32::MAX)
}

struct Outcome {
    /// Time with drafts as a part of the time without, for the same tokens.
    time: f64,
    drafted: u32,
}

/// `streams` sequences in one call, each of which gives `tokens` tokens. A draft after a match of
/// `length` is right with probability `rate`; so large a part of steps, `matched`, has a match.
fn simulate(
    price: Price,
    streams: usize,
    tokens: u32,
    length: usize,
    (rate, matched): (f64, f64),
) -> Outcome {
    let (mut costs, mut seed) = (Costs::default(), 9);
    let mut worths = vec![Worth::new(&costs); streams];
    let (mut time, mut given, mut drafted) = (0.0, 0u32, 0u32);
    let wanted = tokens * u32::try_from(streams).unwrap();
    while given < wanted {
        let mut rows = streams;
        let mut chosen = Vec::new();
        for worth in &mut worths {
            let has_match = random(&mut seed) < matched;
            let drafts = if has_match {
                worth.choose(&costs, Origin::of_match(length), MOST, rows, streams)
            } else {
                0
            };
            rows += usize::from(drafts);
            chosen.push(drafts);
        }
        let took = price(f64::from(u32::try_from(rows).unwrap()));
        costs.measured(rows, microseconds(took));
        time += took;
        for (worth, drafts) in worths.iter_mut().zip(chosen) {
            let mut right = 0;
            while right < drafts && random(&mut seed) < rate {
                right += 1;
            }
            if drafts > 0 {
                worth.verified(&mut costs, drafts.into(), right.into());
            }
            drafted += u32::from(drafts);
            given += 1 + u32::from(right);
        }
    }
    let plain = price(f64::from(u32::try_from(streams).unwrap())) * f64::from(tokens);
    let due = f64::from(given) / f64::from(wanted);
    Outcome {
        time: time / (plain * due),
        drafted,
    }
}

#[test]
fn plain_text_loses_less_than_a_hundredth() {
    for streams in [1, 8] {
        for tokens in [200, 2000] {
            // A tenth of plain text has a short match, and it is mostly chance.
            let outcome = simulate(CPU, streams, tokens, 3, (0.2, 0.1));
            assert!(outcome.time < 1.01, "{streams} {tokens}: {}", outcome.time);
        }
        // Even where every step has a match.
        let outcome = simulate(CPU, streams, 2000, 3, (0.1, 1.0));
        assert!(outcome.time < 1.01, "{streams}: {}", outcome.time);
    }
}

#[test]
fn copies_pay_on_a_cpu_only_where_nearly_every_draft_is_right() {
    let sure = simulate(CPU, 1, 1000, 20, (0.995, 1.0));
    assert!(sure.time < 0.9, "{}", sure.time);
    let doubtful = simulate(CPU, 1, 1000, 20, (0.7, 1.0));
    assert!(doubtful.time < 1.03, "{}", doubtful.time);
    assert!(doubtful.drafted < 200, "{}", doubtful.drafted);
}

#[test]
fn drafts_pay_on_a_gpu_almost_always() {
    for (length, rate) in [(3, 0.5), (20, 0.9)] {
        let outcome = simulate(GPU, 1, 1000, length, (rate, 1.0));
        assert!(outcome.time < 0.7, "{rate}: {}", outcome.time);
    }
}

#[test]
fn a_sequence_that_begins_to_copy_is_noticed() {
    let mut costs = Costs::default();
    for rows in 1..=16 {
        costs.measured(
            rows,
            microseconds(CPU(f64::from(u32::try_from(rows).unwrap()))),
        );
    }
    let mut worth = Worth::new(&costs);
    for _ in 0..50 {
        let drafts = worth.choose(&costs, Origin::Long, MOST, 1, 1);
        worth.verified(&mut costs, drafts.into(), 0);
    }
    assert_eq!(worth.choose(&costs, Origin::Long, MOST, 1, 1), 0);
    let needed = (0..4000)
        .position(|_| {
            let drafts = worth.choose(&costs, Origin::Long, MOST, 1, 1);
            if drafts > 0 {
                worth.verified(&mut costs, drafts.into(), drafts.into());
            }
            drafts > 3
        })
        .expect("it drafts again");
    assert!(needed < 2200, "{needed}");
}

#[test]
fn drafts_keep_within_their_room_and_wait_for_the_first_measurement() {
    let mut costs = Costs::default();
    let mut worth = Worth::new(&costs);
    assert_eq!(worth.choose(&costs, Origin::Long, MOST, 1, 1), 0);
    costs.measured(1, 1000);
    assert_eq!(worth.choose(&costs, Origin::Long, 0, 1, 1), 0);
    assert_eq!(worth.choose(&costs, Origin::Long, 2, 1, 1), 2);
    assert!((8..=MOST).contains(&worth.choose(&costs, Origin::Long, u16::MAX, 1, 1)));
}

#[test]
fn costs_of_any_number_of_rows_are_taken() {
    let mut costs = Costs::default();
    for rows in [0, 1, 17, 31, 32, 63, 64, 500, 8192, usize::MAX] {
        costs.measured(rows, 1000);
        let mut worth = Worth::new(&costs);
        assert!(worth.choose(&costs, Origin::Long, MOST, rows.min(8192), 1) <= MOST);
    }
}

#[test]
fn what_drafts_cost_to_make_counts_and_how_they_fare_is_known_to_those_who_begin() {
    let mut costs = Costs::default();
    for rows in 1..=16 {
        costs.measured(
            rows,
            microseconds(GPU(f64::from(u32::try_from(rows).unwrap()))),
        );
    }
    let chosen = |costs: &Costs, us| Worth::new(costs).choose(costs, Origin::Model(us), MOST, 1, 1);
    let (cheap, dear) = (chosen(&costs, 20.0), chosen(&costs, 300.0));
    assert!(dear > 0 && dear < cheap, "{dear} {cheap}");
    assert_eq!(chosen(&costs, 1000.0), 0, "as dear as a token of its own");
    // Sequences of a few tokens learn little themselves, and all together enough.
    for _ in 0..100 {
        let mut worth = Worth::new(&costs);
        let drafts = worth.choose(&costs, Origin::Model(300.0), MOST, 1, 1);
        worth.verified(&mut costs, drafts.max(1).into(), 0);
    }
    assert_eq!(chosen(&costs, 300.0), 0);
    for _ in 0..100 {
        let mut worth = Worth::new(&costs);
        worth.choose(&costs, Origin::Model(300.0), MOST, 1, 1);
        worth.verified(&mut costs, 3, 3);
    }
    assert!(chosen(&costs, 300.0) > dear);
}

#[test]
fn what_would_not_pay_if_it_were_right_is_not_even_tried() {
    let mut costs = Costs::default();
    for rows in 1..=60 {
        // As measured on a CPU with kernels for eight rows.
        let us = if rows <= 8 {
            13_500
        } else {
            6000 + 1700 * rows as u64
        };
        costs.measured(rows, us);
    }
    let mut worth = Worth::new(&costs);
    let tried = (0..1000).map(|_| worth.choose(&costs, Origin::Forced, MOST, 8, 8));
    assert_eq!(tried.max(), Some(0));
    assert!(worth.choose(&costs, Origin::Long, MOST, 1, 1) > 0);
}
