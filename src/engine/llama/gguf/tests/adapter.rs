//! Adapters: one file per refused fact, and mutations that must never panic.

use std::io::Cursor;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::build::{Gguf, Put, TOKENS, WIDTH, sound};
use super::super::{AdapterSummary, Base, GgufError, check, check_adapter};

/// A model with a head of its own, a few matrices, and experts.
fn base(change: impl FnOnce(&mut Gguf)) -> Base {
    let (width, tokens) = (u64::from(WIDTH), u64::from(TOKENS));
    let mut file = sound();
    file.add("output.weight", &[width, tokens], 8)
        .add("blk.0.attn_q.weight", &[width, width], 8)
        .add("blk.0.ffn_up.weight", &[width, 64], 8)
        .add("blk.0.ffn_up_exps.weight", &[width, 64, 4], 8);
    change(&mut file);
    let bytes = file.bytes();
    check(Cursor::new(&bytes), bytes.len() as u64).unwrap().base
}

/// An adapter of rank 4 for two of its matrices.
fn adapter() -> Gguf {
    let mut file = sound();
    file.keys.clear();
    file.tensors.clear();
    file.set("general.architecture", "llama")
        .set("general.type", "adapter")
        .set("adapter.type", "lora")
        .set("adapter.lora.alpha", Put::F32(8.0));
    pair(&mut file, "blk.0.attn_q.weight", &[32, 4], &[4, 32]);
    pair(&mut file, "blk.0.ffn_up.weight", &[32, 4], &[4, 64]);
    file
}

fn pair(file: &mut Gguf, name: &str, a: &[u64], b: &[u64]) {
    file.add(&format!("{name}.lora_a"), a, 1);
    file.add(&format!("{name}.lora_b"), b, 0);
}

fn run(file: &Gguf, base: &Base) -> Result<AdapterSummary, GgufError> {
    let bytes = file.bytes();
    check_adapter(Cursor::new(&bytes), bytes.len() as u64, base)
}

fn refusal(change: impl FnOnce(&mut Gguf)) -> String {
    let mut file = adapter();
    change(&mut file);
    run(&file, &base(|_| {})).unwrap_err().to_string()
}

#[test]
fn a_sound_adapter_is_summed_up() {
    let mut file = adapter();
    file.add("blk.0.attn_norm.weight", &[32], 0);
    pair(
        &mut file,
        "blk.0.ffn_up_exps.weight",
        &[32, 2, 4],
        &[2, 64, 4],
    );
    pair(&mut file, "token_embd.weight", &[8, 16], &[8, 32]);
    file.remove("adapter.lora.alpha");
    let bytes = file.bytes();
    let summary = run(&file, &base(|_| {})).unwrap();
    assert_eq!((summary.rank, summary.pairs, summary.unused), (8, 4, 1));
    assert_eq!(summary.length, bytes.len() as u64);
    // What comes behind the last number is not part of it.
    let longer = [&bytes[..], b"more"].concat();
    let same = check_adapter(Cursor::new(&longer), longer.len() as u64, &base(|_| {})).unwrap();
    assert_eq!(same, summary);
}

#[test]
fn keys_must_have_the_value_and_the_type_that_llama_cpp_takes_for_granted() {
    for (key, value, words) in [
        ("general.type", Put::from("model"), "\"adapter\""),
        ("general.type", Put::U32(1), "string"),
        ("adapter.type", "control_vector".into(), "\"lora\""),
        ("adapter.type", Put::F32(1.0), "string"),
        ("general.architecture", "qwen2".into(), "\"llama\""),
        ("general.architecture", Put::Texts(Vec::new()), "string"),
        ("adapter.lora.alpha", Put::F32(f32::NAN), "finite"),
        ("adapter.lora.alpha", Put::U32(8), "f32"),
        (
            "adapter.alora.invocation_tokens",
            Put::U32s(vec![1]),
            "first token",
        ),
        ("general.alignment", Put::U32(3), "power of two"),
    ] {
        let message = refusal(|file| {
            file.set(key, value);
        });
        assert!(message.contains(words), "{key}: {message}");
    }
    for key in ["general.type", "adapter.type", "general.architecture"] {
        let message = refusal(|file| {
            file.remove(key);
        });
        assert!(message.contains(key), "{message}");
    }
}

/// Words of the refusal, and what brings it about.
type Row = (&'static str, fn(&mut Gguf));

#[test]
fn pairs_must_be_whole_and_fit_the_model() {
    let rows: [Row; 11] = [
        ("only one of", |file| {
            file.tensors.pop();
        }),
        ("neither", |file| {
            file.add("blk.0.attn_k.weight", &[32, 32], 0);
        }),
        ("not in the model", |file| {
            pair(file, "blk.7.attn_q.weight", &[32, 4], &[4, 32]);
        }),
        ("no tensor of a model", |file| {
            pair(file, "blk.0.lora_a.weight", &[32, 4], &[4, 32]);
        }),
        // llama.cpp compares only the first two dimensions with the model's.
        ("[32, 4, 1, 1]", |file| {
            file.tensor("blk.0.attn_q.weight.lora_a").dimensions = vec![32, 2, 2];
        }),
        ("for a rank of 2", |file| {
            pair(file, "blk.0.ffn_up_exps.weight", &[32, 2, 4], &[2, 64]);
        }),
        ("for a rank of 8", |file| {
            *file = adapter_without("blk.0.attn_q.weight");
            pair(file, "blk.0.attn_q.weight", &[32, 4], &[8, 32]);
        }),
        ("for a rank of 32", |file| {
            *file = adapter_without("blk.0.attn_q.weight");
            pair(file, "blk.0.attn_q.weight", &[4, 32], &[32, 4]);
        }),
        // Ranks that differ stop the process when the graph is built.
        ("[4, 16, 1, 1]", |file| {
            pair(file, "token_embd.weight", &[8, 16], &[4, 32]);
        }),
        ("f32, f16, bf16 or q8_0", |file| {
            *file = adapter_without("blk.0.attn_q.weight");
            file.add("blk.0.attn_q.weight.lora_a", &[32, 4], 2);
            file.tensor("blk.0.attn_q.weight.lora_a").data = vec![0; 4 * 18];
            file.add("blk.0.attn_q.weight.lora_b", &[4, 32], 0);
        }),
        ("more than", |file| {
            pair(file, "blk.0.attn_q.weight2", &[32, 4096], &[4096, 32]);
        }),
    ];
    for (words, change) in rows {
        let message = refusal(change);
        assert!(message.contains(words), "{words:?}: {message}");
    }
}

fn adapter_without(name: &str) -> Gguf {
    let mut file = adapter();
    file.tensors.retain(|tensor| !tensor.name.starts_with(name));
    file
}

/// llama.cpp multiplies by the same tensor at both ends of the model, with one pair for both: whatever
/// its shape, one of the two stops the process.
#[test]
fn a_table_that_is_also_the_head_takes_no_pair() {
    let mut file = adapter();
    pair(&mut file, "token_embd.weight", &[8, 16], &[8, 32]);
    assert!(run(&file, &base(|_| {})).is_ok());
    let tied = base(|file| file.tensors.retain(|tensor| tensor.name != "output.weight"));
    let message = run(&file, &tied).unwrap_err().to_string();
    assert!(message.contains("also the head"), "{message}");
}

#[test]
fn what_is_no_number_is_found_in_every_format() {
    let name = "blk.0.attn_q.weight";
    for (format, bad, at) in [
        (0, &f32::NAN.to_le_bytes()[..], 4 * 7),
        (0, &f32::NEG_INFINITY.to_le_bytes()[..], 4 * 7),
        (1, &0x7c00_u16.to_le_bytes()[..], 2 * 7),
        (30, &0xff80_u16.to_le_bytes()[..], 2 * 7),
        (8, &0x7e00_u16.to_le_bytes()[..], 34 * 2),
    ] {
        let mut file = adapter_without(name);
        file.add(&format!("{name}.lora_a"), &[32, 4], format);
        if format == 30 {
            file.tensor(&format!("{name}.lora_a")).data = vec![0; 256];
        }
        file.add(&format!("{name}.lora_b"), &[4, 32], 0);
        run(&file, &base(|_| {})).unwrap();
        let data = &mut file.tensor(&format!("{name}.lora_a")).data;
        data[at..at + bad.len()].copy_from_slice(bad);
        let message = run(&file, &base(|_| {})).unwrap_err().to_string();
        assert!(message.contains("finite"), "{format}: {message}");
        let index = if format == 8 { 64 } else { 7 };
        assert!(message.contains(&format!("element {index},")), "{message}");
    }
}

proptest! {
    #[test]
    fn no_mutation_panics(
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        keep in 0.0..1.0f64,
        cut in any::<bool>(),
    ) {
        let mut bytes = adapter().bytes();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cut {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss,
                reason = "a place within a small file")]
            bytes.truncate((bytes.len() as f64 * keep) as usize);
        }
        let _ = check_adapter(Cursor::new(&bytes), bytes.len() as u64, &base(|_| {}));
    }
}
