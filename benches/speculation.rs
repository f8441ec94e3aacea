//! Drafts: tokens per second with and without them, on text that copies its prompt, on plain text and on
//! JSON by a schema, for one stream and for eight.
//!
//! `cargo bench --bench speculation [MODEL.gguf [DRAFT.gguf]]`; without a file, the built-in demo. Rounds of
//! the two engines alternate, and the median of their ratios is what counts.
#![expect(clippy::print_stdout, reason = "the figures are the output")]
#![expect(
    clippy::expect_used,
    reason = "a bench that cannot run has nothing to say"
)]

mod support;

use sluicegate::engine::Engine;
use sluicegate::engine::config::Speculation;
use sluicegate::engine::llama::{DEMO, Weights, demo_settings};
use sluicegate::generation::{Constraint, Grammar, Input, Request, Sampling};

use self::support::{decode_rate, engine, median};

const ROUNDS: usize = 7;

const SCHEMA: &str = r#"{"type":"object","properties":{
    "identifier":{"type":"integer","minimum":0,"maximum":99},
    "description":{"type":"string","maxLength":12},
    "availability":{"enum":["sometimes available","never available"]},
    "coordinates":{"type":"array","items":{"type":"boolean"},"minItems":2,"maxItems":2}},
    "required":["identifier","description","availability","coordinates"],"additionalProperties":false}"#;

fn main() {
    let mut files = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"));
    let (file, draft) = (files.next(), files.next());
    let (weights, length) = match file {
        Some(path) => (Weights::File(path.into()), 60),
        None => (Weights::Embedded(DEMO), 100),
    };
    println!("text   streams  off tok/s  drafts tok/s  ratio  drafts  right (medians of {ROUNDS})");
    for streams in [1, 8] {
        let engines = [Speculation::Off, Speculation::Lookup].map(|speculation| {
            let mut settings = demo_settings();
            settings.parallel = streams;
            settings.speculation = speculation;
            if speculation != Speculation::Off {
                settings.draft_model = draft.as_ref().map(Into::into);
            }
            settings.context = std::num::NonZeroU32::new(1024);
            engine(&weights, &settings)
        });
        for (name, request) in [
            ("copy", copying(streams, length)),
            ("plain", plain(streams, length)),
            ("json", json(streams, length)),
        ] {
            let before = engines[1].gauges().load;
            let figures: Vec<(f64, f64)> = (0..ROUNDS)
                .map(|_| {
                    (
                        decode_rate(&engines[0], &request),
                        decode_rate(&engines[1], &request),
                    )
                })
                .collect();
            let off = median(figures.iter().map(|pair| pair.0));
            let on = median(figures.iter().map(|pair| pair.1));
            let ratio = median(figures.iter().map(|pair| pair.1 / pair.0));
            let after = engines[1].gauges().load;
            let (drafts, right) = (
                after.drafted - before.drafted,
                after.accepted_drafts - before.accepted_drafts,
            );
            println!(
                "{name:6} {streams:7}  {off:9.0}  {on:12.0}  {ratio:5.3}  {drafts:6}  {right:5}"
            );
        }
    }
}

/// Goes on with what the prompt repeats, as the likeliest token does in nearly any model.
fn copying(streams: u32, length: u32) -> Request {
    let text = "one two three four five. ".repeat(8);
    request(text, streams, length, 0.0)
}

fn plain(streams: u32, length: u32) -> Request {
    request("Once upon a time".to_owned(), streams, length, 0.7)
}

fn json(streams: u32, length: u32) -> Request {
    let mut request = request("One of them, as JSON: ".to_owned(), streams, length, 0.3);
    request.sampling.ignore_eos = None;
    request.constraint = Some(Constraint {
        field: "response_format",
        grammar: Grammar::JsonSchema {
            schema: SCHEMA.to_owned(),
            strict: true,
        },
    });
    request
}

fn request(text: String, streams: u32, length: u32, temperature: f32) -> Request {
    Request {
        n: streams,
        max_tokens: Some(length),
        sampling: Sampling {
            temperature: Some(temperature),
            seed: Some(1),
            ignore_eos: Some(true),
            ..Sampling::default()
        },
        ..Request::new(Input::Text(text))
    }
}
