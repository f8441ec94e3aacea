//! What a token costs once its logits are there, by vocabulary and settings: our sampler and the push
//! into a ring, beside llama.cpp's chain of the same settings. Prints medians of alternating rounds.
//!
//! `cargo bench --bench sampling`. Rows are bell-shaped random numbers, which is harder than a trained
//! model's peaked rows: more tokens stay in the running. llama.cpp's figure is what its
//! `llama_sampler_sample` does after it has the row: fill the list of candidates, apply the chain, accept.
#![expect(clippy::print_stdout, reason = "the figures are the output")]
#![expect(
    clippy::expect_used,
    reason = "a bench that cannot run has nothing to say"
)]
#![expect(
    clippy::cast_possible_wrap,
    reason = "token ids and bench settings are small"
)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_2::token::data_array::LlamaTokenDataArray;
use sluicegate::engine::llama::bare::BareOutlet;
use sluicegate::engine::llama::sampling::Sampler;
use sluicegate::generation::{Dry, Sampling};

/// Rows to walk through, so that no branch predictor learns one by heart.
const ROWS: usize = 8;
const ROUNDS: usize = 9;
/// Logits read per round: rounds last about as long for every vocabulary.
const LOGITS: usize = 1 << 21;

fn main() {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("load average before: {}", load.trim());
    println!(
        "{:24}  {:>10}  {:>10}  {:>12}  {:>6}",
        "settings", "vocabulary", "ours, us", "llama.cpp, us", "ratio"
    );
    for vocabulary in [2_048, 32_000, 152_064] {
        let rows = rows(vocabulary);
        for case in cases() {
            measure(&case, &rows);
        }
    }
}

struct Case {
    name: &'static str,
    settings: Sampling,
    alternatives: Option<u8>,
    /// Whether llama.cpp can do the same without a model.
    compares: bool,
}

fn cases() -> Vec<Case> {
    let case = |name, settings| Case {
        name,
        settings,
        alternatives: None,
        compares: true,
    };
    let default = Sampling::default();
    let open_ai = Sampling {
        temperature: Some(1.0),
        top_k: Some(0),
        top_p: Some(1.0),
        min_p: Some(0.0),
        ..Sampling::default()
    };
    let top_p = Sampling {
        top_p: Some(0.95),
        ..open_ai.clone()
    };
    let min_p = Sampling {
        min_p: Some(0.05),
        ..open_ai.clone()
    };
    let typical = Sampling {
        typical_p: Some(0.9),
        ..open_ai.clone()
    };
    let greedy = Sampling {
        temperature: Some(0.0),
        ..default.clone()
    };
    let penalties = Sampling {
        repeat_penalty: Some(1.1),
        presence_penalty: Some(0.5),
        ..default.clone()
    };
    let dry = Sampling {
        dry: Some(Dry {
            multiplier: 0.8,
            ..Dry::default()
        }),
        ..default.clone()
    };
    vec![
        case("default chain", default.clone()),
        case("greedy", greedy),
        case("default and penalties", penalties),
        case("top_p 0.95, no top_k", top_p),
        case("no filters", open_ai),
        case("min_p 0.05 alone", min_p),
        case("typical 0.9 alone", typical),
        Case {
            compares: false,
            ..case("default and DRY", dry)
        },
        Case {
            compares: false,
            alternatives: Some(5),
            ..case("default and 5 logprobs", default)
        },
    ]
}

fn measure(case: &Case, rows: &[Vec<f32>]) {
    let vocabulary = rows.first().map_or(0, Vec::len);
    let prompt: Vec<u32> = (0..2000).map(|i| i * 7 % 1999).collect();
    let breakers = Arc::default();
    let mut sampler = Sampler::new(&case.settings, 1, vocabulary, &[], &[], breakers)
        .expect("the settings are right");
    sampler.accept_prompt(&prompt);
    let mut outlet = BareOutlet::new(case.alternatives);
    let mut chain = chain(&case.settings, vocabulary);
    chain.accept_many(prompt.iter().map(|&id| LlamaToken(id as i32)));
    let mut line = LlamaTokenDataArray::new(Vec::with_capacity(vocabulary), false);
    let tokens = (LOGITS / vocabulary).max(ROWS);
    let mut ours = || {
        time(rows, tokens, |row| {
            let _ = black_box(outlet.emit(&mut sampler, row));
        })
    };
    let mut theirs = || {
        time(rows, tokens, |row| {
            line.data.clear();
            line.data.extend(
                (0..)
                    .zip(row)
                    .map(|(id, &logit)| LlamaTokenData::new(LlamaToken(id), logit, 0.0)),
            );
            (line.sorted, line.selected) = (false, None);
            chain.apply(&mut line);
            let token = line.selected_token().expect("a token");
            chain.accept(token);
        })
    };
    ours();
    let figures: Vec<(f64, f64)> = if case.compares {
        theirs();
        (0..ROUNDS).map(|_| (ours(), theirs())).collect()
    } else {
        (0..ROUNDS).map(|_| (ours(), f64::NAN)).collect()
    };
    let mine = median(figures.iter().map(|pair| pair.0));
    let name = case.name;
    if case.compares {
        let theirs = median(figures.iter().map(|pair| pair.1));
        let ratio = median(figures.iter().map(|pair| pair.1 / pair.0));
        println!("{name:24}  {vocabulary:10}  {mine:10.2}  {theirs:12.1}  {ratio:6.1}");
    } else {
        println!("{name:24}  {vocabulary:10}  {mine:10.2}");
    }
}

/// Microseconds per token.
fn time(rows: &[Vec<f32>], tokens: usize, mut one: impl FnMut(&[f32])) -> f64 {
    let start = Instant::now();
    for row in rows.iter().cycle().take(tokens) {
        one(black_box(row));
    }
    let tokens = u32::try_from(tokens).map_or(f64::NAN, f64::from);
    start.elapsed().as_secs_f64() * 1e6 / tokens
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// llama.cpp's samplers in the order of its tools.
fn chain(settings: &Sampling, vocabulary: usize) -> LlamaSampler {
    let vocabulary = i32::try_from(vocabulary).unwrap_or(i32::MAX);
    let temperature = settings.temperature.unwrap_or(0.8);
    let repeat = settings.repeat_penalty.unwrap_or(1.0);
    let presence = settings.presence_penalty.unwrap_or(0.0);
    let mut samplers = vec![LlamaSampler::penalties(
        vocabulary, 64, repeat, 0.0, presence,
    )];
    if temperature <= 0.0 {
        samplers.push(LlamaSampler::greedy());
    } else {
        samplers.extend([
            LlamaSampler::top_k(settings.top_k.unwrap_or(40) as i32),
            LlamaSampler::typical(settings.typical_p.unwrap_or(1.0), 0),
            LlamaSampler::top_p(settings.top_p.unwrap_or(0.95), 0),
            LlamaSampler::min_p(settings.min_p.unwrap_or(0.05), 0),
            LlamaSampler::temp(temperature),
            LlamaSampler::dist(1),
        ]);
    }
    LlamaSampler::chain(samplers, true)
}

fn rows(vocabulary: usize) -> Vec<Vec<f32>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut unit = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        f32::from((state >> 48) as u16) / 65_536.0
    };
    let mut bell = move || ((0..12).map(|_| unit()).sum::<f32>() - 6.0) * 3.0;
    (0..ROWS)
        .map(|_| (0..vocabulary).map(|_| bell()).collect())
        .collect()
}
