//! What a tokenizer needs to survive any text.

use super::super::build::{Put, TOKENS, WIDTH, sound, tokens};
use super::{accepted, refusal, refuses, run};

#[test]
fn vocabularies_that_end_the_process_are_refused() {
    let mut twice = tokens();
    twice[9] = "t4".into();
    let mut cut = tokens();
    cut[9] = "t4\0x".into();
    let mut long = tokens();
    long[9] = "-".repeat(4097);
    let mut empty = tokens();
    empty[3] = String::new();
    empty[9] = "[EMPTY_3]".into();
    refuses(vec![
        (
            "tokenizer.ggml.tokens",
            Put::Texts(twice),
            "tokens 4 and 9 are both \"t4\"",
        ),
        (
            "tokenizer.ggml.tokens",
            Put::Texts(long),
            "length of token 9",
        ),
        ("tokenizer.ggml.tokens", Put::Texts(cut), "tokens 4 and 9"),
        ("tokenizer.ggml.tokens", Put::Texts(empty), "tokens 3 and 9"),
        ("tokenizer.ggml.tokens", Put::Texts(vec![]), "at least one"),
        (
            "tokenizer.ggml.tokens",
            Put::I32s(vec![1]),
            "expected array of string",
        ),
        (
            "tokenizer.ggml.tokens",
            Put::Texts(vec!["a".into()]),
            "below 1",
        ),
        (
            "tokenizer.ggml.model",
            "none".into(),
            "expected llama, gpt2",
        ),
        (
            "tokenizer.ggml.model",
            "magic".into(),
            "expected llama, gpt2",
        ),
        (
            "tokenizer.ggml.pre",
            "whitespace".into(),
            "a pre-tokenizer for gpt2",
        ),
        (
            "tokenizer.ggml.merges",
            Put::Texts(vec!["ab".into()]),
            "merge number 0",
        ),
        (
            "tokenizer.ggml.merges",
            Put::Texts(vec!["a b".into(), "a ".into()]),
            "merge number 1",
        ),
        (
            "tokenizer.ggml.merges",
            Put::Texts(vec![" a".into()]),
            "merge number 0",
        ),
        (
            "tokenizer.ggml.merges",
            Put::I32s(vec![1]),
            "expected array of string",
        ),
    ]);
    for key in ["model", "tokens", "merges"] {
        let message = refusal(|file| {
            file.remove(&format!("tokenizer.ggml.{key}"));
        });
        assert!(message.contains("is missing"), "{message}");
    }
}

#[test]
fn what_is_said_of_tokens_fits_them() {
    let many = TOKENS as usize;
    refuses(vec![
        (
            "tokenizer.ggml.token_type",
            Put::I32s(vec![1; many - 1]),
            "one per token",
        ),
        (
            "tokenizer.ggml.token_type",
            Put::I32s(vec![7; many]),
            "types 0 to 6",
        ),
        (
            "tokenizer.ggml.token_type",
            Put::I32s(vec![6; many]),
            "byte token \"t0\"",
        ),
        (
            "tokenizer.ggml.token_type",
            Put::U32(1),
            "expected array of i32",
        ),
        (
            "tokenizer.ggml.scores",
            Put::F32s(vec![0.0; many - 1]),
            "one per token",
        ),
        (
            "tokenizer.ggml.scores",
            Put::F32s(vec![f32::NAN; many]),
            "NaN",
        ),
        (
            "tokenizer.ggml.scores",
            Put::Bool(1),
            "expected array of f32",
        ),
        (
            "tokenizer.ggml.suppress_tokens",
            Put::U32s(vec![1]),
            "expected array of i32",
        ),
        ("tokenizer.ggml.bos_token_id", Put::U32(TOKENS), "below 16"),
        ("tokenizer.ggml.eos_token_id", Put::U32(99), "below 16"),
        ("tokenizer.ggml.eot_token_id", Put::U32(99), "below 16"),
        (
            "tokenizer.ggml.padding_token_id",
            Put::I32(0),
            "expected u32",
        ),
        ("tokenizer.ggml.add_bos_token", Put::U32(1), "expected bool"),
    ]);
}

#[test]
fn sentencepiece_needs_every_byte() {
    let mut file = sound();
    let mut texts: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    let kinds = vec![6; texts.len()];
    file.set("tokenizer.ggml.model", "llama")
        .set("tokenizer.ggml.tokens", Put::Texts(texts.clone()))
        .set("tokenizer.ggml.token_type", Put::I32s(kinds))
        .remove("tokenizer.ggml.merges");
    let table = file.tensor("token_embd.weight");
    table.dimensions = vec![WIDTH.into(), 256];
    table.data = vec![0; 256 * 34];
    assert_eq!(run(&file).unwrap().vocabulary, 256);

    texts[0xC3] = "<0xc3>".into();
    file.set("tokenizer.ggml.tokens", Put::Texts(texts.clone()));
    let message = run(&file).unwrap_err().to_string();
    assert!(message.contains("0xC3"), "{message}");

    // ASCII may stand for itself.
    texts[0xC3] = "<0xC3>".into();
    texts[0x41] = "A".into();
    file.set("tokenizer.ggml.tokens", Put::Texts(texts))
        .remove("tokenizer.ggml.token_type");
    run(&file).unwrap();
}

#[test]
fn tokens_that_prompts_begin_with_must_exist() {
    let message = refusal(|file| {
        file.set("tokenizer.ggml.model", "gemma4")
            .remove("tokenizer.ggml.bos_token_id");
    });
    assert!(message.contains("bos_token_id\" is missing"), "{message}");
    let message = refusal(|file| {
        file.set("tokenizer.ggml.model", "bert")
            .set("tokenizer.ggml.seperator_token_id", Put::U32(u32::MAX));
    });
    assert!(message.contains("seperator_token_id"), "{message}");
    // Converters write "none" so.
    let summary = accepted(|file| {
        file.set("tokenizer.ggml.bos_token_id", Put::U32(u32::MAX));
    });
    assert_eq!(summary.bos, None);
}

#[test]
fn a_charsmap_must_stay_inside_itself() {
    let file = |map: Vec<u8>| {
        let mut file = sound();
        file.set("tokenizer.ggml.model", "t5")
            .set("tokenizer.ggml.precompiled_charsmap", Put::U8s(map));
        run(&file)
    };
    let mut map = 1024_u32.to_le_bytes().to_vec();
    map.extend([0; 1025]);
    assert!(file(map.clone()).is_ok());
    map.truncate(1028);
    assert!(file(map).is_err());
    assert!(file(vec![0; 3]).is_err());
    assert!(file([4, 0, 0, 0, 0, 0, 0, 0, 0].to_vec()).is_err());
}
