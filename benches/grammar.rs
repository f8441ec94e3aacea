//! What structured output costs per token at a vocabulary of 152k: computing a mask, and choosing a
//! token with one. The schema is of the kind that applications send; the vocabulary is made here, in
//! the shape of a byte-level one: all bytes, words with and without a space before them, numbers, and
//! the usual pieces of JSON and code.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a bench prints, and may stop at the first surprise"
)]

use std::collections::{HashMap, HashSet};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluicegate::engine::llama::grammar::Compiler;
use sluicegate::engine::llama::sampling::{Sampler, Scratch};
use sluicegate::generation::{Grammar, Sampling};

const VOCABULARY: usize = 152_064;
/// How often the document is said.
const ROUNDS: usize = 40;

const SCHEMA: &str = r##"{
  "type": "object",
  "properties": {
    "name": {"type": "string"},
    "born": {"type": "string", "format": "date"},
    "email": {"type": "string", "format": "email"},
    "age": {"type": "integer", "minimum": 0, "maximum": 150},
    "role": {"enum": ["admin", "editor", "reader"]},
    "scores": {"type": "array", "items": {"type": "number"}, "maxItems": 20},
    "addresses": {"type": "array", "items": {"$ref": "#/$defs/address"}},
    "note": {"anyOf": [{"type": "string", "maxLength": 200}, {"type": "null"}]}
  },
  "required": ["name", "born", "email", "age", "role", "scores", "addresses", "note"],
  "additionalProperties": false,
  "$defs": {
    "address": {
      "type": "object",
      "properties": {
        "street": {"type": "string"},
        "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
        "city": {"type": "string"}
      },
      "required": ["street", "zip", "city"],
      "additionalProperties": false
    }
  }
}"##;

const DOCUMENT: &str = r#"{
  "name": "Ada Lovelace of Ockham Park",
  "born": "1815-12-10",
  "email": "ada@analytical.example.org",
  "age": 36,
  "role": "editor",
  "scores": [9.75, 8, 10, -3.5e2],
  "addresses": [
    {"street": "12 St James's Square", "zip": "10115", "city": "London"},
    {"street": "Fordhook \"Villa\", Ealing", "zip": "20095", "city": "Köln"}
  ],
  "note": "The engine might compose elaborate and scientific pieces of music of any degree of complexity or extent."
}"#;

fn vocabulary() -> Vec<Vec<u8>> {
    let mut words: Vec<Vec<u8>> = vec![b"\xff<|endoftext|>".to_vec()];
    let mut known = HashSet::new();
    let mut add = |word: Vec<u8>, words: &mut Vec<Vec<u8>>| {
        if words.len() < VOCABULARY && known.insert(word.clone()) {
            words.push(word);
        }
    };
    for byte in 0..=255_u8 {
        add(vec![byte], &mut words);
    }
    let pieces = [
        "{\"", "\":", "\": ", "\",", "\", ", "\"}", "},", "}]", "],", "[]", "{}", "\":\"",
        "\": \"", "\",\"", "\n  ", "\n    ", "\n      ", ",\n", "true", "false", "null", "://",
        "\\n", "\\\"", "();", "->", "==",
    ];
    for piece in pieces {
        add(piece.as_bytes().to_vec(), &mut words);
    }
    for number in 0..1000 {
        add(number.to_string().into_bytes(), &mut words);
    }
    for spaces in 2..80 {
        add(vec![b' '; spaces], &mut words);
    }
    for word in DOCUMENT.split(|c: char| !c.is_alphanumeric()) {
        add(word.as_bytes().to_vec(), &mut words);
        add(format!(" {word}").into_bytes(), &mut words);
    }
    let syllables = [
        "an", "be", "con", "de", "er", "fi", "ga", "hi", "in", "ju", "ka", "lo", "men", "ne", "or",
        "pro", "que", "re", "st", "ti", "un", "ver", "wi", "x", "y", "ze", "ß", "é", "ию", "ка",
        "中", "文",
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    while words.len() < VOCABULARY {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let length = 1 + (state >> 8) % 4;
        let mut word: String = (0..length)
            .map(|at| syllables[((state >> (12 + at * 8)) % 32) as usize])
            .collect();
        match (state >> 3) % 4 {
            0 | 1 => word.insert(0, ' '),
            2 => word = word.to_uppercase(),
            _ => {}
        }
        add(word.into_bytes(), &mut words);
    }
    words
}

/// The document in the longest tokens that there are.
fn tokens(words: &[Vec<u8>]) -> Vec<u32> {
    let ids: HashMap<&[u8], u32> = words.iter().map(Vec::as_slice).zip(0..).collect();
    let mut rest = DOCUMENT.as_bytes();
    let mut tokens = Vec::new();
    while !rest.is_empty() {
        let longest = (1..=rest.len().min(32))
            .rev()
            .find_map(|length| Some((length, *ids.get(&rest[..length])?)));
        let (length, token) = longest.expect("every byte is a token");
        tokens.push(token);
        rest = &rest[length..];
    }
    tokens
}

fn report(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let mean = times.iter().sum::<Duration>() / u32::try_from(times.len()).unwrap_or(1);
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    println!(
        "{name:32} median {:>9.1?}  mean {mean:>9.1?}  p99 {:>9.1?}  max {:>9.1?}  ({} times)",
        at(50),
        at(99),
        at(100),
        times.len()
    );
}

fn main() {
    let words = vocabulary();
    let tokens = tokens(&words);
    let start = Instant::now();
    let compiler = Compiler::new(&words, &[0]).expect("the vocabulary");
    println!("vocabulary prepared in {:.1?}", start.elapsed());
    let schema = Grammar::JsonSchema {
        schema: SCHEMA.to_owned(),
        strict: true,
    };
    let mut compiling = Vec::new();
    let mut guide = None;
    for _ in 0..10 {
        let start = Instant::now();
        guide = Some(compiler.compile(&schema).expect("the schema"));
        compiling.push(start.elapsed());
    }
    report("compile", compiling);
    let guide = guide.expect("compiled above");

    let (mut copies, mut masks, mut accepts, mut drops) = (vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mut guide = guide.copy();
        copies.push(start.elapsed());
        for &token in &tokens {
            let start = Instant::now();
            black_box(guide.mask().expect("a mask"));
            masks.push(start.elapsed());
            let start = Instant::now();
            guide.accept(token).expect("the document is valid");
            accepts.push(start.elapsed());
        }
        assert!(guide.is_complete(), "the document is whole");
        let start = Instant::now();
        drop(guide);
        drops.push(start.elapsed());
    }
    println!("{} tokens a document", tokens.len());
    // What a token costs when nothing else runs in between: the median over all rounds.
    let mut quiet = Vec::new();
    for position in 0..tokens.len() {
        let mut times: Vec<_> = (masks.iter().copied())
            .skip(position)
            .step_by(tokens.len())
            .collect();
        times.sort_unstable();
        quiet.push(times[times.len() / 2]);
    }
    report("mask, medians by position", quiet);
    report("copy of a compiled grammar", copies);
    report("mask", masks);
    report("accept", accepts);
    report("drop", drops);

    // The model wants the document: what a sampler with a guide costs, and one without.
    let mut row: Vec<f32> = (0..VOCABULARY)
        .map(|i| (i * 7919 % 1000) as f32 / 100.0)
        .collect();
    let mut scratch = Scratch::default();
    for guided in [false, true] {
        let mut times = Vec::new();
        for _ in 0..ROUNDS / 4 {
            let settings = Sampling::default();
            let mut sampler = Sampler::new(&settings, 1, VOCABULARY, &[], &[], Arc::default())
                .expect("a sampler");
            if guided {
                sampler.follow(guide.copy());
            }
            for &token in &tokens {
                let before = std::mem::replace(&mut row[token as usize], 100.0);
                let start = Instant::now();
                let chosen = sampler.sample(black_box(&row), &mut scratch);
                times.push(start.elapsed());
                assert_eq!(chosen, Ok(token));
                row[token as usize] = before;
            }
        }
        report(
            if guided {
                "sample with a guide"
            } else {
                "sample without"
            },
            times,
        );
    }
}
