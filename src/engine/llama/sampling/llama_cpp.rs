//! The same settings, the same row, llama.cpp's own chain: the same tokens stay, with the same
//! probabilities.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "test values are small"
)]

use std::collections::BTreeMap;
use std::sync::Arc;

use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_2::token::data_array::LlamaTokenDataArray;
use llama_cpp_2::token::logit_bias::LlamaLogitBias;

use super::*;
use crate::generation::Xtc;

const SEED: u32 = 5;
const TOLERANCE: f64 = 1e-5;

type Distribution = BTreeMap<u32, f64>;

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

/// A row in which no two logits are equal. Large ones are so peaked that a few hundred tokens share nearly
/// all: sums over more of them end elsewhere in single precision (`mod.rs`).
fn row(vocabulary: usize, seed: u64, spread: f64) -> Vec<f32> {
    let random = Random::new(seed);
    let mut row: Vec<f32> = (0..vocabulary as u64)
        .map(|i| {
            let sum: f64 = (0..6).map(|j| random.unit(i * 6 + j, Lane::Token)).sum();
            ((sum - 3.0) * spread) as f32
        })
        .collect();
    let mut order: Vec<usize> = (0..vocabulary).collect();
    order.sort_by(|a, b| row[*a].total_cmp(&row[*b]));
    for pair in order.windows(2) {
        row[pair[1]] = row[pair[1]].max(row[pair[0]].next_up());
    }
    row
}

/// What llama.cpp leaves of a row, put together as its tools do.
fn theirs(logits: &[f32], settings: &Sampling, text: &[u32]) -> Distribution {
    let vocabulary = i32::try_from(logits.len()).unwrap();
    let on = |value: Option<f32>, default: f32| value.unwrap_or(default);
    let temperature = on(settings.temperature, 0.8);
    let biases = settings.logit_bias.iter();
    let biases: Vec<_> = biases
        .map(|&(id, bias)| {
            let bias = if bias <= -100.0 {
                f32::NEG_INFINITY
            } else {
                bias
            };
            LlamaLogitBias::new(LlamaToken(id as i32), bias)
        })
        .collect();
    let mut chain = vec![
        LlamaSampler::logit_bias(vocabulary, &biases),
        LlamaSampler::penalties(
            vocabulary,
            settings.repeat_last_n.unwrap_or(64) as i32,
            on(settings.repeat_penalty, 1.0),
            on(settings.frequency_penalty, 0.0),
            on(settings.presence_penalty, 0.0),
        ),
    ];
    if temperature > 0.0 {
        chain.push(LlamaSampler::top_k(settings.top_k.unwrap_or(40) as i32));
        chain.push(LlamaSampler::typical(on(settings.typical_p, 1.0), 0));
        chain.push(LlamaSampler::top_p(on(settings.top_p, 0.95), 0));
        chain.push(LlamaSampler::min_p(on(settings.min_p, 0.05), 0));
        if let Some(xtc) = settings.xtc {
            let Xtc {
                probability,
                threshold,
            } = xtc;
            chain.push(LlamaSampler::xtc(probability, threshold, 0, SEED));
        }
        chain.push(LlamaSampler::temp(temperature));
        chain.push(LlamaSampler::dist(SEED));
    } else {
        chain.push(LlamaSampler::greedy());
    }
    let mut chain = LlamaSampler::chain(chain, true);
    chain.accept_many(text.iter().map(|&id| LlamaToken(id as i32)));
    let line = (0..).zip(logits);
    let line = line.map(|(id, &logit)| LlamaTokenData::new(LlamaToken(id), logit, 0.0));
    let mut line = LlamaTokenDataArray::from_iter(line, false);
    chain.apply(&mut line);
    if temperature <= 0.0 {
        let LlamaToken(id) = line.selected_token().unwrap();
        return [(id.cast_unsigned(), 1.0)].into();
    }
    let left = line.data.iter().map(|token| {
        let LlamaToken(id) = token.id();
        (id.cast_unsigned(), f64::from(token.p()))
    });
    // A ban leaves a token in the line, with nothing.
    left.filter(|&(_, p)| p > 0.0).collect()
}

/// What our filters leave: the list that a draw was made from.
fn ours(logits: &[f32], settings: &Sampling, text: &[u32]) -> Distribution {
    let breakers = Arc::default();
    let mut sampler = Sampler::new(settings, 1, logits.len(), &[], &[], breakers).unwrap();
    sampler.accept_prompt(text);
    let mut scratch = Scratch::default();
    let token = sampler.sample(logits, &mut scratch).unwrap();
    if settings.temperature == Some(0.0) {
        return [(token, 1.0)].into();
    }
    let weights = || {
        scratch
            .candidates
            .iter()
            .map(|c| (c.id, f64::from(c.weight)))
    };
    let total: f64 = weights().map(|(_, weight)| weight).sum();
    let left: Distribution = weights().map(|(id, weight)| (id, weight / total)).collect();
    assert!(left.contains_key(&token));
    left
}

fn assert_equal(ours: &Distribution, theirs: &Distribution, settings: &Sampling) {
    assert!(
        ours.keys().eq(theirs.keys()),
        "{settings:?}: {} and {} tokens",
        ours.len(),
        theirs.len()
    );
    for ((id, ours), theirs) in ours.iter().zip(theirs.values()) {
        assert!(
            (ours - theirs).abs() < TOLERANCE,
            "{settings:?}: {id} {ours} {theirs}"
        );
    }
}

fn chains() -> Vec<Sampling> {
    let top_k = |k, temperature| Sampling {
        top_k: Some(k),
        ..plain(temperature)
    };
    let top_p = |p, temperature| Sampling {
        top_p: Some(p),
        ..plain(temperature)
    };
    let min_p = |p, temperature| Sampling {
        min_p: Some(p),
        ..plain(temperature)
    };
    let typical = |p, settings| Sampling {
        typical_p: Some(p),
        ..settings
    };
    let xtc = |threshold, settings| Sampling {
        xtc: Some(Xtc {
            probability: 1.0,
            threshold,
        }),
        ..settings
    };
    let all_penalties = |settings| Sampling {
        repeat_penalty: Some(1.3),
        presence_penalty: Some(0.4),
        frequency_penalty: Some(0.3),
        ..settings
    };
    vec![
        Sampling::default(),
        plain(0.0),
        all_penalties(plain(0.0)),
        top_k(1, 1.0),
        top_k(7, 1.0),
        top_k(40, 0.3),
        top_k(200, 1.7),
        top_p(0.1, 1.0),
        top_p(0.8, 1.0),
        top_p(0.95, 0.7),
        min_p(0.05, 1.0),
        min_p(0.3, 1.5),
        typical(0.3, plain(1.0)),
        typical(0.9, plain(1.0)),
        typical(0.7, Sampling::default()),
        xtc(0.02, top_k(60, 1.0)),
        xtc(0.1, Sampling::default()),
        xtc(0.5, Sampling::default()),
        xtc(0.02, min_p(0.01, 1.0)),
        all_penalties(Sampling::default()),
        all_penalties(top_p(0.9, 1.0)),
        Sampling {
            repeat_penalty: Some(0.8),
            repeat_last_n: Some(5),
            ..Sampling::default()
        },
        Sampling {
            frequency_penalty: Some(-0.5),
            repeat_last_n: Some(300),
            ..top_k(20, 1.0)
        },
        Sampling {
            logit_bias: vec![(3, 4.0), (17, -2.5), (29, -100.0)],
            ..all_penalties(Sampling::default())
        },
        all_penalties(typical(
            0.8,
            Sampling {
                top_k: Some(90),
                top_p: Some(0.97),
                min_p: Some(0.02),
                ..xtc(0.03, plain(1.2))
            },
        )),
    ]
}

#[test]
fn the_filters_leave_what_llama_cpps_chain_leaves() {
    for (vocabulary, spread) in [(300, 3.0), (2_048, 5.0), (32_003, 9.0)] {
        for seed in [1, 2] {
            let logits = row(vocabulary, seed, spread);
            let text: Vec<u32> = (0..200).map(|i| i * i % 211).collect();
            for settings in chains() {
                let ours = ours(&logits, &settings, &text);
                assert_equal(&ours, &theirs(&logits, &settings, &text), &settings);
            }
        }
    }
}

#[test]
fn without_filters_tokens_are_drawn_as_often_as_by_llama_cpp() {
    for temperature in [0.5, 1.0, 1.8] {
        let logits = row(300, 3, 2.0);
        let settings = plain(temperature);
        let theirs = theirs(&logits, &settings, &[]);
        assert_eq!(theirs.len(), logits.len());
        let (mut maxima, mut sums) = (Vec::new(), Vec::new());
        let row = Row::scan(&logits, &mut maxima).unwrap();
        // No list is made: where one token's share of the unit interval ends, the next one's begins.
        let mut end = 0.0;
        for (id, probability) in theirs {
            let begin = end;
            end += probability;
            if probability > 2.0 * TOLERANCE {
                for unit in [begin + TOLERANCE, end - TOLERANCE] {
                    assert_eq!(row.draw(sharpness(temperature), unit, &mut sums), id);
                }
            }
        }
        assert!((end - 1.0).abs() < TOLERANCE);
    }
}
