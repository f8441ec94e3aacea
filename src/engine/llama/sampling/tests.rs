//! The whole sampler against a slow one: full sorts in double precision, one filter after another.

#![expect(
    clippy::float_cmp,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "test values are small and compared with themselves"
)]

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::generation::{Dry, Xtc};

/// Everything off but the temperature.
fn plain(temperature: f32) -> Sampling {
    Sampling {
        temperature: Some(temperature),
        top_k: Some(0),
        top_p: Some(1.0),
        min_p: Some(0.0),
        ..Sampling::default()
    }
}

fn greedy() -> Sampling {
    plain(0.0)
}

fn sampler(settings: &Sampling, seed: u64, vocabulary: usize) -> Sampler {
    Sampler::new(settings, seed, vocabulary, &[], &[], Arc::default()).unwrap()
}

/// Repeatable logits with a bell-like spread.
fn bell(vocabulary: usize, seed: u64, spread: f64) -> Vec<f32> {
    let random = Random::new(seed);
    (0..vocabulary as u64)
        .map(|i| {
            let sum: f64 = (0..6).map(|j| random.unit(i * 6 + j, Lane::Token)).sum();
            ((sum - 3.0) * spread) as f32
        })
        .collect()
}

/// The distribution after all filters, by definition.
fn slow(logits: &[f32], settings: &Sampling, xtc_acts: bool) -> HashMap<u32, f64> {
    let mut line: Vec<(u32, f64)> = (0..)
        .zip(logits)
        .filter(|(_, x)| x.is_finite())
        .map(|(id, &x)| (id, f64::from(x)))
        .collect();
    let softmax = |line: &[(u32, f64)], t: f64| -> Vec<f64> {
        let max = line.iter().map(|l| l.1).fold(f64::MIN, f64::max);
        let weights: Vec<f64> = line.iter().map(|l| ((l.1 - max) / t).exp()).collect();
        let total: f64 = weights.iter().sum();
        weights.iter().map(|w| w / total).collect()
    };
    line.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    match settings.top_k.unwrap_or(40) {
        0 => {}
        k => line.truncate(k as usize),
    }
    if let Some(p) = settings.typical_p.filter(|p| *p < 1.0) {
        let probabilities = softmax(&line, 1.0);
        let entropy: f64 = probabilities.iter().map(|p| -p * p.ln()).sum();
        let mut scored: Vec<(f64, f64, (u32, f64))> = probabilities
            .iter()
            .zip(&line)
            .map(|(p, l)| ((-p.ln() - entropy).abs(), *p, *l))
            .collect();
        scored.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut sum = 0.0;
        line.clear();
        for (_, probability, entry) in scored {
            line.push(entry);
            sum += probability;
            if sum > f64::from(p) {
                break;
            }
        }
        line.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    }
    let p = f64::from(settings.top_p.unwrap_or(0.95));
    if p < 1.0 {
        let mut sum = 0.0;
        let keep = softmax(&line, 1.0).iter().position(|q| {
            sum += q;
            sum >= p
        });
        line.truncate(keep.map_or(line.len(), |at| at + 1));
    }
    let p = f64::from(settings.min_p.unwrap_or(0.05));
    let top = line[0].1;
    line.retain(|l| (l.1 - top).exp() >= p);
    if let Some(xtc) = settings.xtc.filter(|_| xtc_acts) {
        let likely = softmax(&line, 1.0)
            .iter()
            .filter(|p| **p >= f64::from(xtc.threshold))
            .count();
        line.drain(..likely.saturating_sub(1));
    }
    let probabilities = softmax(&line, f64::from(settings.temperature.unwrap_or(0.8)));
    line.iter().map(|l| l.0).zip(probabilities).collect()
}

/// Draws many tokens from one row and compares the counts with the distribution by chi-square.
fn assert_distribution(logits: &[f32], settings: &Sampling, expected: &HashMap<u32, f64>) {
    const DRAWS: u32 = 4000;
    let mut sampler = sampler(settings, 42, logits.len());
    let mut scratch = Scratch::default();
    let mut counts: HashMap<u32, u32> = HashMap::new();
    for _ in 0..DRAWS {
        let token = sampler.sample(logits, &mut scratch).unwrap();
        *counts.entry(token).or_insert(0) += 1;
    }
    for token in counts.keys() {
        assert!(expected.contains_key(token), "{token} was filtered out");
    }
    // Rare tokens share one bin, as the test asks for at least five expected per bin.
    let (mut chi_square, mut bins) = (0.0, -1.0);
    let (mut rare_expected, mut rare_seen) = (0.0, 0.0);
    for (token, probability) in expected {
        let expected = probability * f64::from(DRAWS);
        let seen = f64::from(counts.get(token).copied().unwrap_or(0));
        if expected < 5.0 {
            rare_expected += expected;
            rare_seen += seen;
        } else {
            chi_square += (seen - expected).powi(2) / expected;
            bins += 1.0;
        }
    }
    if rare_expected >= 5.0 {
        chi_square += (rare_seen - rare_expected).powi(2) / rare_expected;
        bins += 1.0;
    }
    // Wilson and Hilferty's approximation of the chi-square quantile, about 1 in 10^5.
    let f: f64 = f64::max(bins, 1.0);
    let bound = f * (1.0 - 2.0 / (9.0 * f) + 4.3 * (2.0 / (9.0 * f)).sqrt()).powi(3);
    assert!(chi_square < bound, "{settings:?}: {chi_square} >= {bound}");
}

#[test]
fn draws_follow_the_distribution_of_the_chain() {
    let xtc = Some(Xtc {
        probability: 1.0,
        threshold: 0.02,
    });
    let chains = [
        Sampling::default(),
        plain(1.0),
        plain(1.7),
        Sampling {
            top_k: Some(7),
            ..plain(1.0)
        },
        Sampling {
            top_p: Some(0.8),
            ..plain(1.0)
        },
        Sampling {
            top_p: Some(0.9),
            min_p: Some(0.02),
            ..plain(0.7)
        },
        Sampling {
            min_p: Some(0.1),
            ..plain(1.3)
        },
        Sampling {
            typical_p: Some(0.6),
            ..plain(1.0)
        },
        Sampling {
            typical_p: Some(0.7),
            ..Sampling::default()
        },
        Sampling { xtc, ..plain(1.0) },
        Sampling {
            xtc,
            ..Sampling::default()
        },
    ];
    for (vocabulary, spread) in [(300, 3.0), (16_401, 6.0)] {
        let logits = bell(vocabulary, 9, spread);
        for settings in &chains {
            let expected = slow(&logits, settings, settings.xtc.is_some());
            assert_distribution(&logits, settings, &expected);
        }
    }
}

#[test]
fn flat_rows_make_the_widest_candidate_lists_and_stay_right() {
    let logits: Vec<f32> = bell(20_003, 5, 0.01);
    let settings = Sampling {
        top_p: Some(0.5),
        ..plain(1.0)
    };
    let expected = slow(&logits, &settings, false);
    let mut sampler = sampler(&settings, 1, logits.len());
    let mut scratch = Scratch::default();
    for _ in 0..200 {
        let token = sampler.sample(&logits, &mut scratch).unwrap();
        assert!(expected.contains_key(&token));
    }
    assert!(scratch.candidates.len().abs_diff(expected.len()) <= 1);
}

fn any_logit() -> impl Strategy<Value = f32> {
    prop_oneof![
        30 => -20.0_f32..20.0,
        2 => Just(f32::NEG_INFINITY),
        1 => Just(f32::NAN),
    ]
}

fn any_settings() -> impl Strategy<Value = Sampling> {
    (
        prop_oneof![Just(0.0_f32), 0.05_f32..3.0],
        prop_oneof![Just(0_u32), 1_u32..60, Just(1_000_000)],
        prop_oneof![Just(1.0_f32), 0.0_f32..1.0],
        prop_oneof![Just(0.0_f32), 0.0_f32..1.0],
        prop_oneof![Just(None), (0.0_f32..1.0).prop_map(Some)],
        prop_oneof![
            Just(None),
            (0.0_f32..0.6).prop_map(|threshold| Some(Xtc {
                probability: 1.0,
                threshold,
            }))
        ],
    )
        .prop_map(
            |(temperature, top_k, top_p, min_p, typical_p, xtc)| Sampling {
                temperature: Some(temperature),
                top_k: Some(top_k),
                top_p: Some(top_p),
                min_p: Some(min_p),
                typical_p,
                xtc,
                ..Sampling::default()
            },
        )
}

proptest! {
    #[test]
    fn only_tokens_of_the_slow_chain_are_picked(
        logits in prop::collection::vec(any_logit(), 1..500),
        settings in any_settings(),
        seed in any::<u64>(),
    ) {
        let alive = logits.iter().any(|x| x.is_finite());
        let mut sampler = sampler(&settings, seed, logits.len());
        let mut scratch = Scratch::default();
        for _ in 0..4 {
            let picked = sampler.sample(&logits, &mut scratch);
            prop_assert_eq!(picked.is_ok(), alive);
            let Ok(token) = picked else { return Ok(()) };
            if settings.temperature == Some(0.0) {
                let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                prop_assert_eq!(logits.iter().position(|x| *x == max), Some(token as usize));
                continue;
            }
            // A cut that rounding may move by one token is compared with its neighbours' cuts.
            let nudged = |by: f32| Sampling {
                top_p: settings.top_p.map(|p| if p < 1.0 { (p + by).clamp(0.0, 1.0) } else { p }),
                min_p: settings.min_p.map(|p| if p > 0.0 { (p - by).clamp(0.0, 1.0) } else { p }),
                typical_p: settings.typical_p.map(|p| (p + by).clamp(0.0, 1.0)),
                xtc: settings.xtc.map(|xtc| Xtc { threshold: xtc.threshold + by, ..xtc }),
                ..settings.clone()
            };
            let acts = settings.xtc.is_some_and(|xtc| xtc.threshold <= 0.5);
            let fits = [0.0, 1e-5, -1e-5]
                .iter()
                .any(|&by| slow(&logits, &nudged(by), acts).contains_key(&token));
            prop_assert!(fits, "{token} {settings:?}");
        }
    }

    #[test]
    fn penalties_equal_a_recount_over_the_window(
        prompt in prop::collection::vec(0_u32..20, 0..60),
        logits in prop::collection::vec(-5.0_f32..5.0, 20),
        repeat in 0.5_f32..2.0,
        presence in -2.0_f32..2.0,
        frequency in -2.0_f32..2.0,
        last_n in 0_u32..40,
    ) {
        let settings = Sampling {
            repeat_penalty: Some(repeat),
            presence_penalty: Some(presence),
            frequency_penalty: Some(frequency),
            repeat_last_n: Some(last_n),
            ..greedy()
        };
        let mut sampler = sampler(&settings, 0, 20);
        sampler.accept_prompt(&prompt);
        let mut text = prompt;
        let mut scratch = Scratch::default();
        for _ in 0..20 {
            let window = &text[text.len().saturating_sub(last_n as usize)..];
            let expected: Vec<f32> = (0..)
                .zip(&logits)
                .map(|(id, &x)| {
                    let count = window.iter().filter(|t| **t == id).count();
                    if count == 0 {
                        return x;
                    }
                    let x = if x <= 0.0 { x * repeat } else { x / repeat };
                    x - count as f32 * frequency - presence
                })
                .collect();
            let token = sampler.sample(&logits, &mut scratch).unwrap();
            let max = expected.iter().copied().fold(f32::MIN, f32::max);
            prop_assert_eq!(expected[token as usize], max);
            text.push(token);
        }
    }

    #[test]
    fn logprobs_equal_a_log_softmax(
        logits in prop::collection::vec(any_logit(), 1..600),
        token in 0_u32..700,
        k in 0_usize..30,
    ) {
        let mut line: Vec<(u32, f64)> = (0..)
            .zip(&logits)
            .filter(|(_, x)| x.is_finite())
            .map(|(id, &x)| (id, f64::from(x)))
            .collect();
        line.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let log_total = line.iter().map(|l| l.1.exp()).sum::<f64>().ln();
        let mut top = vec![(0, 0.0)];
        let own = logprobs(&logits, token, k, &mut Scratch::default(), &mut top);
        let expected = line.iter().find(|l| l.0 == token).map(|l| l.1 - log_total);
        if let Some(expected) = expected {
            prop_assert!((f64::from(own) - expected).abs() < 1e-4);
        } else {
            prop_assert_eq!(own, f32::NEG_INFINITY);
        }
        prop_assert_eq!(top.len(), k.min(line.len()));
        for ((id, logprob), expected) in top.iter().zip(&line) {
            prop_assert_eq!(*id, expected.0);
            prop_assert!((f64::from(*logprob) - (expected.1 - log_total)).abs() < 1e-4);
        }
    }
}

fn tokens(settings: &Sampling, seed: u64, steps: u64, scratch: &mut Scratch) -> Vec<u32> {
    let mut sampler = sampler(settings, seed, 500);
    (0..steps)
        .map(|step| sampler.sample(&bell(500, step, 3.0), scratch).unwrap())
        .collect()
}

#[test]
fn equal_seeds_give_equal_tokens_and_other_seeds_others() {
    for settings in [plain(1.0), Sampling::default()] {
        let first = tokens(&settings, 11, 60, &mut Scratch::default());
        // The scratch was used by others before: it must not matter.
        let mut used = Scratch::default();
        let other = tokens(&plain(2.0), 12, 60, &mut used);
        assert_eq!(tokens(&settings, 11, 60, &mut used), first);
        assert_ne!(other, first);
    }
}

#[test]
fn a_draw_is_tied_to_its_position_not_to_the_rows_before() {
    let row = bell(500, 1, 1.0);
    let mut scratch = Scratch::default();
    let (mut a, mut b) = (sampler(&plain(1.0), 5, 500), sampler(&plain(1.0), 5, 500));
    for step in 0..40 {
        a.sample(&row, &mut scratch).unwrap();
        b.sample(&bell(500, step, 4.0), &mut scratch).unwrap();
    }
    // A dead row takes no number.
    assert_eq!(
        a.sample(&[f32::NAN; 500], &mut scratch),
        Err(NoToken::DeadLogits)
    );
    for _ in 0..40 {
        assert_eq!(a.sample(&row, &mut scratch), b.sample(&row, &mut scratch));
    }
}

#[test]
fn xtc_acts_as_often_as_asked_and_leaves_the_token_draws_alone() {
    let logits = [2.0_f32, 2.0, -1.0, -1.0];
    let xtc = |probability| Sampling {
        xtc: Some(Xtc {
            probability,
            threshold: 0.1,
        }),
        ..plain(1.0)
    };
    let mut scratch = Scratch::default();
    let mut with = sampler(&xtc(0.3), 8, 4);
    let mut without = sampler(&plain(1.0), 8, 4);
    let (mut zeros, mut plain_zeros) = (0, 0);
    for _ in 0..10_000 {
        // Acting removes token 0, the first of the two likely ones.
        zeros += u32::from(with.sample(&logits, &mut scratch).unwrap() == 0);
        plain_zeros += u32::from(without.sample(&logits, &mut scratch).unwrap() == 0);
    }
    let share = f64::from(zeros) / f64::from(plain_zeros);
    assert!((share - 0.7).abs() < 0.03, "{share}");
}

#[test]
fn bans_biases_suppressed_and_end_tokens_act_before_anything_else() {
    let logits = vec![9.0, 8.0, 7.0, 6.0, 5.0, 4.0];
    let mut scratch = Scratch::default();
    let mut pick = |settings: &Sampling, suppressed: &[u32]| {
        Sampler::new(settings, 0, 6, &[1, 900], suppressed, Arc::default())
            .unwrap()
            .sample(&logits, &mut scratch)
    };
    let biased = |logit_bias: &[(u32, f32)], ignore_eos: bool| Sampling {
        logit_bias: logit_bias.to_vec(),
        ignore_eos: Some(ignore_eos),
        ..greedy()
    };
    assert_eq!(pick(&biased(&[], false), &[]), Ok(0));
    assert_eq!(pick(&biased(&[], false), &[0]), Ok(1));
    assert_eq!(pick(&biased(&[], true), &[0, 700]), Ok(2));
    assert_eq!(pick(&biased(&[(5, 10.0)], false), &[]), Ok(5));
    assert_eq!(pick(&biased(&[(5, 4.0)], false), &[]), Ok(0));
    let bans = [(0, -100.0), (1, -100.0), (2, -100.0)];
    assert_eq!(pick(&biased(&bans, false), &[]), Ok(3));
    let all: Vec<(u32, f32)> = (0..6).map(|id| (id, -100.0)).collect();
    assert_eq!(pick(&biased(&all, false), &[]), Err(NoToken::DeadLogits));
    // The same bans hold in every path that draws.
    for base in [plain(1.0), plain(5.0), Sampling::default()] {
        for typical_p in [1.0, 0.9] {
            let settings = Sampling {
                logit_bias: bans.to_vec(),
                typical_p: Some(typical_p),
                ..base.clone()
            };
            let mut sampler = sampler(&settings, 3, 6);
            for _ in 0..200 {
                assert!(sampler.sample(&logits, &mut Scratch::default()).unwrap() > 2);
            }
        }
    }
}

#[test]
fn dry_breaks_a_loop_that_greedy_would_repeat() {
    // Whatever came last, the model wants the next of 0 1 2 3 0 1 2 3 ...
    let run = |dry: Option<Dry>| {
        let settings = Sampling { dry, ..greedy() };
        let mut sampler = sampler(&settings, 0, 8);
        sampler.accept_prompt(&[0, 1, 2, 3, 0, 1, 2]);
        let mut scratch = Scratch::default();
        let mut last = 2;
        (0..12)
            .map(|_| {
                let mut logits = vec![0.0; 8];
                logits[(last as usize + 1) % 4] = 3.0;
                last = sampler.sample(&logits, &mut scratch).unwrap();
                last
            })
            .collect::<Vec<u32>>()
    };
    assert_eq!(run(None), [3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2]);
    let dry = Dry {
        multiplier: 2.0,
        ..Dry::default()
    };
    assert_ne!(run(Some(dry))[..4], [3, 0, 1, 2]);
}

#[test]
fn mirostat_steers_the_mean_surprise_to_its_target() {
    let logits = bell(20_003, 4, 4.0);
    let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    for tau in [3.0, 6.0] {
        let settings = Sampling {
            mirostat: Some(Mirostat { tau, eta: 0.1 }),
            top_k: Some(1),
            ..plain(1.0)
        };
        let mut sampler = sampler(&settings, 1, logits.len());
        let mut scratch = Scratch::default();
        let (mut surprise, mut unlikely) = (0.0, 0);
        for step in 0..2000 {
            let mu = sampler.mu;
            let token = sampler.sample(&logits, &mut scratch).unwrap();
            let bits = -(f64::from(logits[token as usize]).exp() / total).log2();
            unlikely += u32::from(bits > f64::from(mu) + 1e-3 && mu > 7.0);
            if step >= 500 {
                // What mirostat observes: the probability among the tokens it kept.
                surprise += (mu - sampler.mu) / 0.1 + tau;
            }
        }
        let mean = surprise / 1500.0;
        assert!((mean - tau).abs() < 0.15, "{mean} for {tau}");
        assert_eq!(unlikely, 0);
    }
}

#[test]
fn a_sharp_temperature_is_finite_and_picks_the_likeliest() {
    for temperature in [f32::MIN_POSITIVE, 1e-40, 1e-6] {
        for base in [
            plain(temperature),
            Sampling {
                temperature: Some(temperature),
                ..Sampling::default()
            },
        ] {
            let mut sampler = sampler(&base, 2, 300);
            let logits = bell(300, 2, 3.0);
            let expected =
                self::sampler(&greedy(), 0, 300).sample(&logits, &mut Scratch::default());
            assert_eq!(sampler.sample(&logits, &mut Scratch::default()), expected);
        }
    }
}

#[test]
fn scratch_stops_growing_after_the_first_steps() {
    let settings = Sampling {
        repeat_penalty: Some(1.1),
        dry: Some(Dry {
            multiplier: 0.8,
            penalty_last_n: 32,
            ..Dry::default()
        }),
        ..Sampling::default()
    };
    let mut sampler = sampler(&settings, 2, 500);
    let mut scratch = Scratch::default();
    let capacities = |s: &Scratch| {
        [
            s.edited.capacity(),
            s.maxima.capacity(),
            s.select.capacity(),
            s.sums.capacity(),
        ]
    };
    let rows: Vec<Vec<f32>> = (0..50).map(|seed| bell(500, seed, 3.0)).collect();
    for row in &rows {
        sampler.sample(row, &mut scratch).unwrap();
    }
    let warm = capacities(&scratch);
    for row in rows.iter().cycle().take(2000) {
        sampler.sample(row, &mut scratch).unwrap();
    }
    assert_eq!(capacities(&scratch), warm);
}

proptest! {
    #[test]
    fn a_mask_leaves_the_allowed_logits_and_nothing_else(
        logits in prop::collection::vec(-9.0_f32..9.0, 1..200),
        words in prop::collection::vec(prop_oneof![Just(0), Just(u32::MAX), any::<u32>()], 0..8),
    ) {
        let mut masked = Vec::new();
        extend_masked(&mut masked, &logits, &words);
        let expected: Vec<f32> = logits.iter().enumerate().map(|(token, &logit)| {
            let word = words.get(token / 32).copied().unwrap_or(0);
            if word >> (token % 32) & 1 == 1 { logit } else { f32::NEG_INFINITY }
        }).collect();
        prop_assert_eq!(masked, expected);
    }
}
