//! What the settings of an architecture may be.

use super::super::build::{Put, sound};
use super::{accepted, refusal, refuses, run};

#[test]
fn settings_that_end_the_process_are_refused() {
    refuses(vec![
        ("llama.block_count", Put::U32(0), "1 to 512"),
        ("llama.block_count", Put::U32(513), "1 to 512"),
        ("llama.block_count", Put::F32(2.0), "expected u32"),
        ("llama.context_length", Put::U32(0), "1 to"),
        ("llama.embedding_length", Put::U32(u32::MAX), "1 to"),
        ("llama.nextn_predict_layers", Put::U32(2), "0 to 1"),
        (
            "llama.feed_forward_length",
            Put::U32s(vec![64]),
            "one per block",
        ),
        (
            "llama.feed_forward_length",
            Put::I32s(vec![64, -1]),
            "at least 0",
        ),
        (
            "llama.attention.head_count_kv",
            Put::U32(3),
            "divisor of the 4",
        ),
        ("llama.attention.head_count", Put::U32(64), "at most the 32"),
        (
            "llama.attention.head_count_kv",
            Put::U32s(vec![2, 3]),
            "divisor",
        ),
        (
            "llama.attention.layer_norm_rms_epsilon",
            Put::F32(-1.0),
            "0 to 1",
        ),
        (
            "llama.attention.layer_norm_rms_epsilon",
            Put::F32(f32::NAN),
            "not finite",
        ),
        (
            "llama.attention.scale",
            Put::F32(f32::INFINITY),
            "not finite",
        ),
        ("llama.x", Put::F32s(vec![1.0, f32::NAN]), "not finite"),
        ("llama.rope.dimension_count", Put::U32(7), "even number"),
        ("llama.rope.dimension_count", Put::U32(10), "up to 8"),
        (
            "llama.rope.dimension_count",
            Put::U32(6),
            "the 8 of a whole head",
        ),
        (
            "llama.attention.value_length",
            Put::U32(4),
            "the 8 of key_length",
        ),
        ("llama.rope.freq_base", Put::F32(0.0), "more than 0"),
        ("llama.rope.scaling.type", "spiral".into(), "none, linear"),
        ("llama.rope.scaling.factor", Put::F32(-1.0), "at least 0"),
        (
            "llama.rope.dimension_sections",
            Put::I32s(vec![0, 0, 0, 4]),
            "above 0",
        ),
        (
            "llama.rope.dimension_sections",
            Put::I32s(vec![-4, 8, 0, 0]),
            "at least 0",
        ),
        ("llama.pooling_type", Put::U32(9), "0 to 4"),
        ("llama.ssm.state_size", Put::U32(0), "1 to"),
    ]);
    for key in ["block_count", "context_length", "embedding_length"] {
        let message = refusal(|file| {
            file.remove(&format!("llama.{key}"));
        });
        assert!(message.contains("is missing"), "{message}");
    }
}

#[test]
fn experts_must_add_up() {
    let experts = |count, used, groups: Option<(u32, u32)>| {
        let mut file = sound();
        file.set("llama.expert_count", Put::U32(count))
            .set("llama.expert_used_count", Put::U32(used));
        if let Some((groups, used)) = groups {
            file.set("llama.expert_group_count", Put::U32(groups))
                .set("llama.expert_group_used_count", Put::U32(used));
        }
        run(&file).is_ok()
    };
    assert!(experts(0, 0, None));
    assert!(experts(8, 2, None));
    assert!(experts(8, 8, Some((4, 2))));
    assert!(!experts(1025, 2, None));
    assert!(!experts(8, 0, None));
    assert!(!experts(8, 9, None));
    assert!(!experts(0, 2, None));
    assert!(!experts(8, 2, Some((8, 2))));
    assert!(!experts(8, 2, Some((3, 2))));
    assert!(!experts(8, 2, Some((4, 4))));
    assert!(!experts(8, 2, Some((4, 0))));
    assert!(!experts(0, 0, Some((1, 1))));
}

#[test]
fn blocks_may_differ() {
    let summary = accepted(|file| {
        file.set("llama.attention.head_count", Put::I32s(vec![4, 8]))
            .set("llama.attention.head_count_kv", Put::U32s(vec![0, 2]))
            .set("llama.feed_forward_length", Put::U32s(vec![64, 0]))
            .set("llama.attention.key_length", Put::U32(8))
            .set("llama.attention.value_length", Put::U32(8));
    });
    assert_eq!((summary.head_count, summary.head_count_kv), (8, 2));
}

#[test]
fn recurrent_models_and_encoders_pass() {
    let mamba = accepted(|file| {
        for (key, _) in &mut file.keys {
            if let Some(rest) = key.strip_prefix(b"llama.") {
                *key = [b"mamba.", rest].concat();
            }
        }
        file.set("general.architecture", "mamba")
            .set("mamba.attention.head_count", Put::U32(0))
            .remove("mamba.attention.head_count_kv")
            .remove("mamba.rope.dimension_count");
    });
    assert_eq!(mamba.head_count, 0);
    assert!(mamba.generates);
    let plain = accepted(|file| {
        file.set("llama.attention.causal", Put::Bool(0));
    });
    assert!(!plain.generates);
}
