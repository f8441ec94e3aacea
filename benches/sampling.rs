//! What choosing one token costs, by vocabulary and settings. Rows are bell-shaped random numbers,
//! which is harder than a trained model's peaked rows: more tokens stay in the running.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use sluicegate::engine::llama::sampling::{Sampler, Scratch, logprobs};
use sluicegate::generation::{Dry, Sampling};

/// Rows to walk through, so that no branch predictor learns one by heart.
const ROWS: usize = 8;

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

fn settings() -> Vec<(&'static str, Sampling)> {
    let default = Sampling::default();
    let open_ai = Sampling {
        temperature: Some(1.0),
        top_k: Some(0),
        top_p: Some(1.0),
        min_p: Some(0.0),
        ..Sampling::default()
    };
    vec![
        ("default_chain", default.clone()),
        (
            "greedy",
            Sampling {
                temperature: Some(0.0),
                ..default.clone()
            },
        ),
        ("no_filters", open_ai.clone()),
        (
            "top_p_alone",
            Sampling {
                top_p: Some(0.95),
                ..open_ai.clone()
            },
        ),
        (
            "min_p_alone",
            Sampling {
                min_p: Some(0.05),
                ..open_ai.clone()
            },
        ),
        (
            "typical_alone",
            Sampling {
                typical_p: Some(0.9),
                ..open_ai
            },
        ),
        (
            "default_and_penalties",
            Sampling {
                repeat_penalty: Some(1.1),
                presence_penalty: Some(0.5),
                ..default.clone()
            },
        ),
        (
            "default_and_dry",
            Sampling {
                dry: Some(Dry {
                    multiplier: 0.8,
                    ..Dry::default()
                }),
                ..default
            },
        ),
    ]
}

fn sampling(c: &mut Criterion) {
    for (name, settings) in settings() {
        let mut group = c.benchmark_group(name);
        for vocabulary in [2_048, 32_000, 152_064] {
            let rows = rows(vocabulary);
            let Ok(mut sampler) = Sampler::new(&settings, 1, vocabulary, &[], &[], Arc::default())
            else {
                continue;
            };
            let prompt: Vec<u32> = (0..2000).map(|i| i * 7 % 1999).collect();
            sampler.accept_prompt(&prompt);
            let mut scratch = Scratch::default();
            let mut next = rows.iter().cycle();
            group.bench_function(BenchmarkId::from_parameter(vocabulary), |b| {
                b.iter(|| {
                    let row = next.next().map_or(&[][..], Vec::as_slice);
                    sampler.sample(black_box(row), &mut scratch)
                });
            });
        }
        group.finish();
    }
    let mut group = c.benchmark_group("logprobs_5");
    for vocabulary in [2_048, 32_000, 152_064] {
        let rows = rows(vocabulary);
        let mut scratch = Scratch::default();
        let mut top = Vec::new();
        let mut next = rows.iter().cycle();
        group.bench_function(BenchmarkId::from_parameter(vocabulary), |b| {
            b.iter(|| {
                let row = next.next().map_or(&[][..], Vec::as_slice);
                logprobs(black_box(row), 17, 5, &mut scratch, &mut top)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, sampling);
criterion_main!(benches);
