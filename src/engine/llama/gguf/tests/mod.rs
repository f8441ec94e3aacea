//! One file per refused fact, and mutations that must never panic.

mod adapter;
mod settings;
mod vectors;
mod vocabulary;

use std::io::Cursor;

use proptest::collection::vec;
use proptest::prelude::*;

use super::build::{Gguf, Put, TOKENS, WIDTH, sound};
use super::{GgufError, Summary, check};

fn run(file: &Gguf) -> Result<Summary, GgufError> {
    let bytes = file.bytes();
    check(Cursor::new(&bytes), bytes.len() as u64)
}

/// The message for a sound file after `change`.
fn refusal(change: impl FnOnce(&mut Gguf)) -> String {
    let mut file = sound();
    change(&mut file);
    match run(&file) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("the file was accepted"),
    }
}

fn accepted(change: impl FnOnce(&mut Gguf)) -> Summary {
    let mut file = sound();
    change(&mut file);
    run(&file).unwrap()
}

/// Each row: a key of the sound file, another value for it, and words of the refusal.
fn refuses(rows: Vec<(&str, Put, &str)>) {
    for (key, value, words) in rows {
        let shown = format!("{value:?}");
        let message = refusal(|file| {
            file.set(key, value);
        });
        assert!(
            message.contains(words),
            "{key} = {shown}: {message:?} lacks {words:?}"
        );
    }
}

#[test]
fn a_sound_file_is_summed_up() {
    let summary = accepted(|_| {});
    assert_eq!(summary.architecture, "llama");
    assert_eq!(summary.name.as_deref(), Some("Tiny"));
    assert_eq!(summary.block_count, 2);
    assert_eq!(summary.context_length, 128);
    assert_eq!(summary.embedding_length, WIDTH);
    assert_eq!((summary.head_count, summary.head_count_kv), (4, 2));
    assert_eq!(summary.vocabulary, TOKENS);
    assert_eq!(summary.tokenizer, "gpt2");
    assert_eq!(summary.pre_tokenizer.as_deref(), Some("gpt-2"));
    assert_eq!(summary.chat_template.as_deref(), Some("{{ messages }}"));
    assert_eq!(
        (summary.bos, summary.eos, summary.eot),
        (Some(1), Some(2), Some(3))
    );
    assert_eq!(summary.add_bos, Some(false));
    assert_eq!(summary.file_type, Some(7));
    assert_eq!(summary.weights, "q8_0");
    assert_eq!(summary.alignment, 32);
    assert_eq!(summary.tensors, 4);
    assert_eq!(summary.parameters, u64::from(WIDTH * TOKENS + 3 * WIDTH));
    assert_eq!(summary.tensor_bytes, 16 * 34 + 3 * 32 * 4);
    assert!(summary.generates);
}

#[test]
fn every_truncation_is_refused_as_one() {
    let bytes = sound().bytes();
    // The last tensor fills its padding exactly, so every byte counts.
    for len in 0..bytes.len() {
        let cut = bytes.get(..len).unwrap();
        let error = check(Cursor::new(cut), len as u64).unwrap_err();
        assert!(
            matches!(error, GgufError::Truncated { .. }),
            "{len}: {error}"
        );
        // A file that shrinks after its length was taken is no different.
        let error = check(Cursor::new(cut), bytes.len() as u64).unwrap_err();
        assert!(
            matches!(error, GgufError::Truncated { .. }),
            "{len}: {error}"
        );
    }
}

#[test]
fn other_files_and_versions_are_refused() {
    let magic = |magic| refusal(|file| file.magic = magic);
    assert!(magic(*b"GGML").contains("expected \"GGUF\""));
    let version = |version| refusal(|file| file.version = version);
    assert!(version(3_u32.swap_bytes()).contains("big-endian"));
    assert!(version(1).contains("version 1, expected 2 or 3"));
    assert!(version(4).contains("version 4"));
    accepted(|file| file.version = 2);
}

#[test]
fn absurd_counts_and_lengths_are_refused_before_anything_is_allocated() {
    let counts = |tensors, keys| refusal(|file| file.counts = (tensors, keys));
    assert!(counts(Some(u64::MAX), None).contains("number of tensors"));
    assert!(counts(Some(0), None).contains("no tensors"));
    assert!(counts(None, Some(u64::MAX)).contains("number of metadata keys"));
    let long = u64::MAX.to_le_bytes();
    let array = |code: u32, len: u64| {
        let mut raw = code.to_le_bytes().to_vec();
        raw.extend(len.to_le_bytes());
        Put::Raw(9, raw)
    };
    refuses(vec![
        ("general.name", Put::Raw(8, long.to_vec()), "truncated"),
        ("x", array(4, u64::MAX), "the length of"),
        ("x", array(8, 1 << 40), "truncated"),
        ("x", array(0, 1 << 40), "truncated"),
        ("tokenizer.ggml.tokens", array(8, 1 << 20), "truncated"),
    ]);
    let template = "x".repeat((1 << 20) + 1);
    assert!(
        refusal(|file| {
            file.set("tokenizer.chat_template", template.as_str());
        })
        .contains("more than the 1048576")
    );
    // Others may be as long: some converters embed `tokenizer.json`.
    accepted(|file| {
        file.set("tokenizer.huggingface.json", template.as_str());
    });
}

#[test]
fn malformed_metadata_is_refused() {
    let key = |key: &[u8]| refusal(|file| file.keys.push((key.to_vec(), Put::U32(1))));
    assert!(key(b"").contains("is empty"));
    assert!(key(b"general.name").contains("appears twice"));
    assert!(key(b"\xff").contains("not UTF-8"));
    // C would read this as a second `llama.block_count`, and the first found wins.
    assert!(key(b"llama.block_count\0").contains("zero byte"));
    let mut nested = 9_u32.to_le_bytes().to_vec();
    nested.extend([0; 8]);
    refuses(vec![
        ("x", Put::Raw(13, vec![]), "value type 13"),
        ("x", Put::Raw(9, nested), "value type 9"),
        ("x", Put::Bool(2), "a bool, 0 or 1"),
        ("general.name", Put::Text(vec![0xC3]), "not UTF-8"),
        ("general.name", Put::U32(1), "of type u32, expected string"),
        ("general.alignment", Put::U32(0), "power of two"),
        ("general.alignment", Put::U32(48), "power of two"),
        ("general.alignment", Put::U8(32), "expected u32"),
    ]);
}

#[test]
fn files_that_are_not_one_whole_known_model_are_refused() {
    refuses(vec![
        ("split.count", Put::U32(3), "one of 3 split files"),
        ("split.count", "3".into(), "not an integer"),
        ("general.type", "adapter".into(), "expected \"model\""),
        ("general.architecture", "nonesuch".into(), "not known"),
        ("general.architecture", "clip".into(), "not known"),
    ]);
    accepted(|file| {
        file.set("split.count", Put::U32(1));
    });
    assert!(
        refusal(|file| {
            file.remove("general.architecture");
        })
        .contains("is missing")
    );
}

#[test]
fn tensor_names_are_unique_and_short() {
    let add = |name: &str| {
        refusal(|file| {
            file.add(name, &[4], 0);
        })
    };
    assert!(add("output_norm.weight").contains("appears twice"));
    assert!(add("").contains("0 bytes"));
    assert!(add(&"n".repeat(64)).contains("64 bytes"));
    assert!(add("a\0b").contains("zero byte"));
}

#[test]
fn impossible_shapes_and_formats_are_refused() {
    let add = |dimensions: &[u64], format| {
        refusal(|file| {
            file.tensors.push(super::build::Weights {
                name: "x.weight".into(),
                dimensions: dimensions.into(),
                format,
                data: vec![],
                offset: None,
            });
        })
    };
    assert!(add(&[], 0).contains("1 to 4"));
    assert!(add(&[1; 5], 0).contains("1 to 4"));
    assert!(add(&[4, 0], 0).contains("at least 1"));
    assert!(add(&[u64::MAX], 0).contains("below 2^63"));
    assert!(add(&[1 << 32, 1 << 32], 0).contains("below 2^63"));
    assert!(add(&[1 << 62], 0).contains("2^63 bytes"));
    assert!(add(&[48, 2], 8).contains("multiple of 32"));
    assert!(add(&[4], 4).contains("number 4"));
    assert!(add(&[4], 43).contains("number 43"));
    assert!(add(&[1 << 40, 2], 1).contains("truncated"));
}

#[test]
fn data_must_lie_in_order_in_the_file() {
    let offset = |offset| refusal(|file| file.tensor("output_norm.weight").offset = Some(offset));
    assert!(offset(0).contains("begins at byte 0"));
    assert!(offset(33).contains("begins at byte 33"));
    assert!(offset(u64::MAX).contains("begins at byte"));
    let message = refusal(|file| {
        file.alignment = 1;
        file.set("general.alignment", Put::U32(1));
    });
    assert!(message.contains("multiple of 32"), "{message}");
    accepted(|file| {
        file.alignment = 4096;
        file.set("general.alignment", Put::U32(4096));
    });
}

#[test]
fn norms_must_be_finite_f32() {
    let message = refusal(|file| {
        let norm = file.tensor("blk.1.attn_norm.weight");
        norm.format = 1;
        norm.data = vec![0; 64];
    });
    assert!(message.contains("f16, expected f32"), "{message}");
    for number in [f32::NAN, f32::INFINITY] {
        let message = refusal(|file| {
            file.tensor("blk.1.attn_norm.weight").data[8..12]
                .copy_from_slice(&number.to_le_bytes());
        });
        assert!(message.contains("at element 2"), "{message}");
    }
    let matrix = |format| {
        refusal(|file| {
            file.add("blk.0.attn_q.weight", &[32, 32], format);
        })
    };
    assert!(matrix(26).contains("i32, expected f32, f16"));
    accepted(|file| {
        file.add("blk.0.ffn_gate_tid2eid.weight", &[32, 32], 26)
            // A classifier's head with one output is a matrix.
            .add("cls.output.weight", &[32, 1], 1);
    });
}

#[test]
fn the_embedding_table_matches_the_vocabulary() {
    let message = refusal(|file| {
        file.tensors.remove(0);
    });
    assert!(
        message.contains("\"token_embd.weight\" is missing"),
        "{message}"
    );
    let message = refusal(|file| {
        let table = file.tensor("token_embd.weight");
        table.dimensions = vec![32, 15];
        table.data.truncate(15 * 34);
    });
    assert!(message.contains("by 16 (tokens)"), "{message}");
    let message = refusal(|file| {
        file.add("output.weight", &[16, 32], 1);
    });
    assert!(
        message.contains("\"output.weight\" has dimensions [16, 32, 1, 1]"),
        "{message}"
    );
}

#[test]
fn messages_show_hostile_text_escaped_and_short() {
    let message = refusal(|file| {
        file.set(
            "general.architecture",
            format!("\u{1b}[2J{}", "x".repeat(10_000)).as_str(),
        );
    });
    assert!(
        message.len() < 200 && !message.contains('\u{1b}'),
        "{message}"
    );
}

proptest! {
    #[test]
    fn any_bytes_are_refused_without_a_panic(
        bytes in vec(any::<u8>(), 0..512),
        header in any::<bool>(),
        len in any::<Option<u64>>(),
    ) {
        let mut file = if header { sound().bytes().get(..24).unwrap().to_vec() } else { Vec::new() };
        file.extend(bytes);
        let len = len.unwrap_or(file.len() as u64);
        prop_assert!(check(Cursor::new(&file), len).is_err());
    }

    #[test]
    fn flipped_and_cut_files_never_panic(
        flips in vec((any::<prop::sample::Index>(), 0..8_u8), 1..6),
        words in vec((any::<prop::sample::Index>(), any::<u64>()), 0..3),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let mut file = sound().bytes();
        for (at, bit) in flips {
            let at = at.index(file.len());
            file[at] ^= 1 << bit;
        }
        for (at, word) in words {
            let at = at.index(file.len() - 8);
            file[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        if let Err(error) = check(Cursor::new(&file), file.len() as u64) {
            prop_assert!(error.to_string().len() < 1000);
        }
    }
}
