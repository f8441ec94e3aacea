//! Decisions over ids that are drawn as letters: D decodes, s stays, r rests, b blocks, a point is free.

use proptest::prelude::*;

use super::Dense;
use super::decide::{Decision, Id, Move, Prices, decide, runs};

const KIB: u64 = 1024;

fn ids(drawn: &str) -> Vec<Id> {
    let id = |letter| match letter {
        'D' => Id::Decodes {
            left: 100,
            bytes: KIB,
        },
        's' => Id::Stays,
        'r' => Id::Rests { bytes: KIB },
        'b' => Id::Blocks,
        _ => Id::Free { bytes: 0 },
    };
    drawn.chars().map(id).collect()
}

/// Copies cost nothing.
const FREE: Prices = Prices {
    run_us: 250,
    decode_us: 1000,
    copy_ns: 0,
    max_step_us: 100_000,
    lost_us: 0,
};

/// A copy of a KiB takes 100 us.
const DEAR: Prices = Prices {
    copy_ns: 100_000,
    ..FREE
};

fn step(drawn: &str, prices: &Prices) -> Option<(u32, u32)> {
    let decision = decide(&mut ids(drawn), prices);
    decision.step.map(|step| (step.from, step.to))
}

#[test]
fn the_highest_goes_to_the_hole_where_that_saves_most() {
    for (drawn, expected) in [
        ("D.D", Some((2, 1))),
        ("D.D.D.D", Some((6, 1))),
        ("DD.DD.D", Some((6, 2))),
        ("..DD.D", Some((5, 1))),
        (".D..D.DD.D", Some((9, 5))),
        // The first of two moves that save nothing one by one.
        ("D..DDDD", Some((6, 1))),
        ("D.s", None),
        ("D.sD", Some((3, 1))),
        ("D.s.D", Some((4, 1))),
        ("DsD", None),
        ("DbD", None),
        ("DrD", Some((2, 1))),
        ("D.DrD", Some((4, 1))),
        ("DbD.D", Some((4, 3))),
        ("DDDD", None),
        ("..DDD", None),
        ("D", None),
        ("", None),
    ] {
        assert_eq!(step(drawn, &FREE), expected, "{drawn}");
    }
}

#[test]
fn a_hole_is_suffered_until_it_has_cost_what_closing_it_costs() {
    let mut lost_us = 0;
    let calls = (0..10).find(|_| {
        let decision = decide(&mut ids("D.D"), &Prices { lost_us, ..DEAR });
        assert_eq!(decision.loses_us, 250);
        lost_us += decision.loses_us;
        decision.step.is_some()
    });
    assert_eq!(calls, Some(1));
}

#[test]
fn what_is_soon_over_is_not_worth_a_copy() {
    let rich = Prices {
        copy_ns: 1_000_000,
        lost_us: u64::MAX,
        ..FREE
    };
    for (lefts, moves) in [([100, 100], true), ([100, 4], false), ([4, 100], false)] {
        let mut ids = ids("D.D");
        for (at, left) in [(0, lefts[0]), (2, lefts[1])] {
            ids[at] = Id::Decodes { left, bytes: KIB };
        }
        let decision = decide(&mut ids, &rich);
        assert_eq!(decision.step.is_some(), moves, "{lefts:?}");
        assert_eq!(decision.loses_us > 0, moves, "{lefts:?}");
    }
}

#[test]
fn a_copy_that_would_make_a_step_too_long_is_not_made() {
    let prices = Prices {
        copy_ns: 40_000_000,
        lost_us: u64::MAX,
        ..FREE
    };
    let mut long = ids("D.D");
    for id in [0, 2] {
        let (left, bytes) = (1_000_000, KIB);
        long[id] = Id::Decodes { left, bytes };
    }
    let fits = |max_step_us| {
        let prices = Prices {
            max_step_us,
            ..prices
        };
        decide(&mut long.clone(), &prices).step.is_some()
    };
    assert!(fits(41_000) && !fits(40_999));
    // What is in the way is copied too.
    let mut ended = long.clone();
    ended[1] = Id::Free { bytes: KIB };
    let prices = Prices {
        max_step_us: 41_000,
        ..prices
    };
    assert_eq!(decide(&mut ended, &prices), Decision::default());
    // A long call does not get much longer by a short copy.
    let slow = Prices {
        decode_us: 320_000,
        ..prices
    };
    assert!(decide(&mut long, &slow).step.is_some());
}

#[test]
fn nothing_is_moved_where_runs_cost_nothing() {
    assert_eq!(step("D.D", &Prices { run_us: 0, ..FREE }), None);
}

/// So many decode calls of sequences with these ids.
fn calls(dense: &mut Dense, ids: &[u32], times: impl IntoIterator<Item = u64>) {
    for us in times {
        dense.measured(ids.iter().copied(), us);
    }
}

#[test]
fn what_a_run_costs_is_a_guess_until_a_move_has_shown_it() {
    let mut dense = Dense::default();
    // Four rows and three runs share a call.
    assert_eq!(dense.run_us(4, 3, 7000), 1000);
    // Some calls are slow by chance.
    calls(&mut dense, &[0, 2, 3, 5], [7100, 90_000, 7000]);
    assert_eq!(dense.run_us(4, 3, 7000), 1000);
    // Two moves follow each other: one of them leaves no time to measure anything.
    calls(&mut dense, &[0, 1, 2, 5], [6000]);
    calls(&mut dense, &[0, 1, 2, 3], [90_000, 4100, 4000]);
    assert_eq!(dense.run_us(4, 3, 7000), 1000);
    calls(&mut dense, &[0, 1, 2, 3], [4200; 5]);
    assert_eq!(dense.run_us(4, 3, 7000), 1500);
    // Calls of other sizes cost something else.
    assert_eq!(dense.run_us(5, 3, 8000), 1000);
    calls(&mut dense, &[0, 1, 2], [3000; 20]);
    assert_eq!(dense.run_us(3, 3, 6000), 1000);
    assert_eq!(dense.run_us(4, 3, 7000), 1500);
}

#[test]
fn where_many_rows_at_once_are_slower_than_one_by_one_nothing_is_gained_for_a_while() {
    let mut dense = Dense::default();
    calls(&mut dense, &[0, 2], [3000; 20]);
    calls(&mut dense, &[0, 1], [4000; 20]);
    assert_eq!(dense.run_us(2, 2, 4000), 0);
    // That calls grew longer later says nothing about runs.
    calls(&mut dense, &[0, 2], [9000; 20]);
    assert_eq!(dense.run_us(2, 2, 4000), 0);
    calls(&mut dense, &[0], std::iter::repeat_n(1000, 5000));
    assert_eq!(dense.run_us(2, 2, 4000), 1000);
}

#[test]
fn a_lone_slow_copy_does_not_stop_copying() {
    let mut dense = Dense::default();
    for _ in 0..40 {
        dense.copied(1 << 20, 100);
    }
    let usual = dense.copy_ns;
    assert!(usual < 110, "{usual}");
    dense.copied(1 << 20, 1_000_000);
    assert!(dense.copy_ns < 2 * usual);
}

fn any_id() -> impl Strategy<Value = Id> {
    let bytes = 0..4 * KIB;
    prop_oneof![
        bytes.clone().prop_map(|bytes| Id::Free { bytes }),
        (0..200_u32, bytes.clone()).prop_map(|(left, bytes)| Id::Decodes { left, bytes }),
        bytes.prop_map(|bytes| Id::Rests { bytes }),
        Just(Id::Stays),
        Just(Id::Blocks),
    ]
}

fn any_prices() -> impl Strategy<Value = Prices> {
    let times = (
        0..5000_u64,
        0..20_000_u64,
        0..200_000_u64,
        0..100_000_u64,
        0..20_000_u64,
    );
    times.prop_map(
        |(run_us, decode_us, copy_ns, max_step_us, lost_us)| Prices {
            run_us,
            decode_us,
            copy_ns,
            max_step_us,
            lost_us,
        },
    )
}

/// Carries a move out as the engine does: who rested there does not move again.
fn carry_out(ids: &mut [Id], step: Move) {
    let (from, to) = (step.from as usize, step.to as usize);
    ids.swap(from, to);
    ids[from] = match ids[from] {
        Id::Rests { .. } => Id::Blocks,
        _ => Id::Free { bytes: 0 },
    };
}

fn runs_of(ids: &[Id]) -> u64 {
    runs(ids.iter().map(|id| matches!(id, Id::Decodes { .. })))
}

proptest! {
    #[test]
    fn only_who_decodes_is_moved_and_only_down_to_where_nobody_decodes(
        ids in prop::collection::vec(any_id(), 0..40),
        prices in any_prices(),
    ) {
        if let Some(step) = decide(&mut ids.clone(), &prices).step {
            prop_assert!(step.to < step.from);
            let Id::Decodes { left, bytes } = ids[step.from as usize] else {
                panic!("it does not decode");
            };
            let more = match ids[step.to as usize] {
                Id::Free { bytes } | Id::Rests { bytes } => bytes,
                id => panic!("{id:?} is in the way"),
            };
            prop_assert_eq!(step.us, (bytes + more) * prices.copy_ns / 1024 / 1000);
            let room_us = prices.max_step_us.saturating_sub(prices.decode_us);
            prop_assert!(step.us <= room_us.max(prices.decode_us / 8));
            prop_assert!(step.us <= prices.lost_us);
            prop_assert!(step.us < u64::from(left) * prices.run_us * runs_of(&ids));
        }
    }

    #[test]
    fn moves_come_to_an_end(
        mut ids in prop::collection::vec(any_id(), 0..40),
        prices in any_prices(),
    ) {
        let decoding = |ids: &[Id]| ids.iter().filter(|id| matches!(id, Id::Decodes { .. })).count();
        let before = decoding(&ids);
        // Some move twice, when others have come away from between.
        let mut left = 2 * before;
        while let Some(step) = decide(&mut ids.clone(), &prices).step {
            prop_assert!(left > 0, "{ids:?}");
            left -= 1;
            carry_out(&mut ids, step);
        }
        prop_assert_eq!(decoding(&ids), before);
    }

    #[test]
    fn where_copies_are_cheap_no_hole_stays(
        letters in prop::collection::vec(prop::sample::select(vec!['D', 'D', '.', 'r']), 0..40),
    ) {
        let mut ids = ids(&letters.into_iter().collect::<String>());
        while let Some(step) = decide(&mut ids.clone(), &FREE).step {
            carry_out(&mut ids, step);
        }
        prop_assert!(runs_of(&ids) <= 1, "{ids:?}");
    }
}
