//! Exceptions caught for real, and how deep the tokenizer's stack grows.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use llama_cpp_2::model::params::LlamaModelParams;

use super::*;
use crate::engine::llama::ffi::{Numa, backend};
use crate::engine::llama::gguf::build::{Gguf, Put, sound};
use crate::engine::llama::vocab::{TOKENIZER_STACK, Vocabulary};

/// A file that is gone with this.
struct Scratch(PathBuf);

impl Scratch {
    fn new(file: &Gguf) -> Self {
        let name = format!("{}.gguf", uuid::Uuid::new_v4().simple());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, file.bytes()).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The vocabulary of a file, without our own check of it.
fn vocabulary(path: &Path) -> LlamaModel {
    let params = LlamaModelParams::default().with_vocab_only(true);
    LlamaModel::load_from_file(backend(Numa::Off).unwrap(), path, &params).unwrap()
}

/// A byte-pair vocabulary of all bytes, with this pre-tokenizer.
fn all_bytes(pre: &str) -> Gguf {
    let mut file = sound();
    let tokens: Vec<String> = (0..256_u32)
        .map(|byte| byte_text(byte).to_string())
        .collect();
    file.set("tokenizer.ggml.pre", pre)
        .set(
            "tokenizer.ggml.token_type",
            Put::I32s(vec![1; tokens.len()]),
        )
        .set("tokenizer.ggml.tokens", Put::Texts(tokens))
        .set("tokenizer.ggml.merges", Put::Texts(vec!["a b".into()]));
    file
}

/// How GPT-2's vocabularies write a byte.
fn byte_text(byte: u32) -> char {
    let own = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let code = if own(byte) {
        byte
    } else {
        256 + (0..byte).fold(0, |count, before| count + u32::from(!own(before)))
    };
    char::from_u32(code).unwrap()
}

/// A vocabulary as `SentencePiece` has it, but without tokens for the bytes.
fn no_bytes() -> Gguf {
    let mut file = sound();
    let count = 16;
    file.set("tokenizer.ggml.model", "llama")
        .set("tokenizer.ggml.scores", Put::F32s(vec![0.0; count]))
        .set("tokenizer.ggml.token_type", Put::I32s(vec![1; count]));
    file
}

#[test]
fn an_exception_of_the_tokenizer_is_an_error_with_its_words_and_the_next_call_works() {
    let scratch = Scratch::new(&no_bytes());
    let model = vocabulary(&scratch.0);
    let known = tokenize(&model, b"t1", false).map(|tokens| tokens.len());
    for _ in 0..3 {
        let error = tokenize(&model, "é".as_bytes(), false).expect_err("there is no such byte");
        assert!(matches!(error, LlamaError::Exception { .. }), "{error}");
        let said = error.to_string();
        assert!(
            said.contains("threw an exception: ") && said.len() > 40,
            "{said}"
        );
    }
    let again = tokenize(&model, b"t1", false).map(|tokens| tokens.len());
    assert_eq!(known.ok(), again.ok());
}

#[test]
fn every_byte_comes_back_when_a_text_has_more_tokens_than_were_expected() {
    let scratch = Scratch::new(&all_bytes("gpt-2"));
    let model = vocabulary(&scratch.0);
    for length in [0, 1, 7, 8, 9, 100, 5_000] {
        let tokens = tokenize(&model, "x1".repeat(length).as_bytes(), false).unwrap();
        assert_eq!(tokens.len(), 2 * length);
    }
}

/// llama.cpp has no code of its own for these pre-tokenizers: they run as `std::regex`, which recurses
/// for each character that one repetition takes. Too little stack would end the test's process here.
#[test]
fn long_runs_of_one_kind_fit_the_stack_under_every_regular_expression() {
    let all = [
        "bailingmoe",
        "deepseek-llm",
        "exaone-moe",
        "gpt-4o",
        "superbpe",
        "tekken",
        "tiny_aya",
        "youtu",
    ];
    for pre in all {
        let scratch = Scratch::new(&all_bytes(pre));
        let model = Arc::new(vocabulary(&scratch.0));
        let vocabulary = Vocabulary::new(model, "gpt2");
        for run in ["a", "A", "é", "1", "!", " ", "\n"] {
            let text = run.repeat(18_000);
            let tokens = on_deep_stack(|| vocabulary.tokenize(&text, false, false)).unwrap();
            let bytes: usize = tokens.iter().map(|&t| vocabulary.piece(t).len()).sum();
            assert_eq!(bytes, text.len(), "{pre}, {run:?}");
        }
    }
}

fn on_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(TOKENIZER_STACK);
        thread.spawn_scoped(scope, work).unwrap().join().unwrap()
    })
}
