//! The whole engine against the bare decode loop, in one run: what scheduling, sampling, the rings and
//! text cost beside the model. Prints tokens per second of both and their ratio.
//!
//! `cargo bench --bench decode`; the model is the built-in demo.
#![expect(clippy::print_stdout, reason = "the figures are the output")]
#![expect(
    clippy::expect_used,
    reason = "a bench that cannot run has nothing to say"
)]

mod support;

use std::time::Instant;

use sluicegate::engine::llama::bare::BareLoop;
use sluicegate::engine::llama::{DEMO, LlamaEngine, Weights, demo_settings};
use sluicegate::generation::{Input, Request, Sampling};

use self::support::{decode_rate, engine, median};

/// Tokens per sequence and round.
const LENGTH: u32 = 200;
const ROUNDS: usize = 5;

fn main() {
    println!("rows  bare tok/s  engine tok/s  share (medians of {ROUNDS} alternating rounds)");
    for rows in [1, 8, 16, 32] {
        let mut settings = demo_settings();
        settings.parallel = rows;
        let weights = Weights::Embedded(DEMO);
        let mut bare = BareLoop::new(&weights, &settings).expect("the demo model loads");
        let engine = engine(&weights, &settings);
        let figures: Vec<(f64, f64)> = (0..ROUNDS)
            .map(|_| (bare_rate(&mut bare), engine_rate(&engine, rows)))
            .collect();
        let bare = median(figures.iter().map(|pair| pair.0));
        let whole = median(figures.iter().map(|pair| pair.1));
        println!(
            "{rows:4}  {bare:10.0}  {whole:12.0}  {:4.0} %",
            100.0 * whole / bare
        );
    }
}

fn bare_rate(bare: &mut BareLoop) -> f64 {
    bare.restart();
    let start = Instant::now();
    for _ in 0..LENGTH {
        bare.step().expect("the model decodes");
    }
    f64::from(LENGTH * bare.rows()) / start.elapsed().as_secs_f64()
}

/// As a server would: every sequence with sampling, and a reader that turns tokens into text.
fn engine_rate(engine: &LlamaEngine, rows: u32) -> f64 {
    let request = Request {
        n: rows,
        max_tokens: Some(LENGTH),
        sampling: Sampling {
            temperature: Some(0.7),
            ignore_eos: Some(true),
            ..Sampling::default()
        },
        ..Request::new(Input::Text("Once".into()))
    };
    decode_rate(engine, &request)
}
