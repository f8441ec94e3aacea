//! What goes in comes out, within bounds.

use proptest::prelude::*;

use super::*;

fn bytes_held(timeline: &Timeline) -> usize {
    timeline.kept.capacity() * size_of::<Kept>()
        + timeline.choices.capacity() * size_of::<u16>()
        + timeline.moments.capacity() * size_of::<(u64, Moment)>()
}

/// Tokens as (microseconds since the one before, choice, bytes).
fn fed(tokens: &[(u64, u32, usize)]) -> (Timeline, Vec<(u64, u32, u8)>) {
    let mut timeline = Timeline::default();
    let mut at = 1;
    let mut told = Vec::new();
    for &(delta, choice, bytes) in tokens {
        at += delta;
        timeline.token(at, choice, bytes);
        told.push((at, choice, u8::try_from(bytes).unwrap_or(u8::MAX)));
    }
    (timeline, told)
}

proptest! {
    #[test]
    fn what_goes_in_comes_out(
        tokens in prop::collection::vec((0..100_000_u64, 0..3_u32, 0..300_usize), 0..1000),
    ) {
        let (timeline, told) = fed(&tokens);
        prop_assert_eq!(timeline.tokens().collect::<Vec<_>>(), told);
        prop_assert_eq!(timeline.stride(), 1);
        prop_assert_eq!(timeline.count() as usize, tokens.len());
    }

    #[test]
    fn a_long_stream_keeps_every_so_many_th_token_with_its_true_time(
        length in 0..40_000_usize,
        several in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let token = |index: usize| {
            let mixed = (index as u64 + 1).wrapping_mul(seed | 1).rotate_left(17);
            let choice = if several { u32::try_from((mixed >> 8) % 5).unwrap() } else { 3 };
            (mixed % 50_000, choice, (mixed >> 16) as usize % 20)
        };
        let tokens: Vec<_> = (0..length).map(token).collect();
        let (timeline, told) = fed(&tokens);
        let stride = timeline.stride() as usize;
        let expected: Vec<_> = told.iter().copied().step_by(stride).collect();
        prop_assert_eq!(timeline.tokens().collect::<Vec<_>>(), expected);
        prop_assert!(stride.is_power_of_two());
        prop_assert!(stride == 1 || length > stride / 2 * Timeline::MOST_KEPT);
        prop_assert!(bytes_held(&timeline) <= 28 * 1024);
        prop_assert!(several || bytes_held(&timeline) <= 20 * 1024);
        prop_assert_eq!(timeline.first(), told.first().map(|token| token.0));
        prop_assert_eq!(timeline.last(), told.last().map(|token| token.0));
        let longest = tokens.iter().skip(1).map(|token| token.0).max().unwrap_or(0);
        let gap = timeline.longest_gap();
        prop_assert_eq!(gap.micros, longest);
        if longest > 0 {
            prop_assert_eq!(tokens[gap.index as usize].0, longest);
            prop_assert_eq!(told[gap.index as usize].0, gap.at);
        }
    }

    #[test]
    fn times_never_run_backwards(
        times in prop::collection::vec(any::<u64>(), 0..6000),
    ) {
        let mut timeline = Timeline::default();
        for &at in &times {
            timeline.token(at, 0, 1);
        }
        let kept: Vec<_> = timeline.tokens().map(|token| token.0).collect();
        prop_assert!(kept.is_sorted());
        prop_assert_eq!(timeline.last(), times.iter().max().copied());
        prop_assert!(kept.last().copied() <= timeline.last());
        prop_assert!(bytes_held(&timeline) <= 20 * 1024);
    }

    #[test]
    fn moments_come_out_in_order_and_late_ones_are_counted(
        times in prop::collection::vec(0..1000_u64, 0..200),
    ) {
        let mut timeline = Timeline::default();
        for &at in &times {
            timeline.moment(at, Moment::Stalled(at));
        }
        let mut expected: Vec<_> = times.iter().copied().take(Timeline::MOST_MOMENTS).collect();
        expected.sort_unstable();
        let told: Vec<_> = timeline.moments().iter().map(|told| told.0).collect();
        prop_assert_eq!(told, expected);
        let more = times.len().saturating_sub(Timeline::MOST_MOMENTS);
        prop_assert_eq!(timeline.more_moments() as usize, more);
        prop_assert!(bytes_held(&timeline) <= 2 * 1024);
    }
}

#[test]
fn a_wait_that_a_delta_cannot_hold_is_made_up_for_later() {
    let hour = 3_600_000_000;
    let (timeline, told) = fed(&[(0, 0, 1), (2 * hour, 0, 1), (1, 0, 1), (1, 0, 1)]);
    let kept: Vec<_> = timeline.tokens().map(|token| token.0).collect();
    assert_eq!(kept[1], told[0].0 + u64::from(u32::MAX));
    assert_eq!(kept[2..], [told[2].0, told[3].0]);
    assert_eq!(timeline.longest_gap().micros, 2 * hour);
}

#[test]
fn a_stream_of_any_length_stays_small() {
    let mut timeline = Timeline::default();
    for index in 0..1_000_000_u64 {
        timeline.token(1 + index * 20_000, (index % 4) as u32, 4);
    }
    assert_eq!(timeline.stride(), 256);
    assert!(timeline.tokens().count() > Timeline::MOST_KEPT / 2 - 200);
    assert!(bytes_held(&timeline) <= 28 * 1024);
    assert_eq!(timeline.last(), Some(1 + 999_999 * 20_000));
}
