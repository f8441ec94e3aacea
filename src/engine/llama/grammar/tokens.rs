//! The vocabulary as llguidance wants it.

use std::sync::Arc;

use llguidance::toktrie::{ApproximateTokEnv, INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie};

use crate::engine::llama::vocab::Vocabulary;

/// Longest token that can be matched: llguidance's trie counts the levels in ten bits.
const LONGEST: usize = 1000;

/// The bytes of every token and the tokens that end a generation.
///
/// Control tokens, and whatever ends a generation, are marked: they are not text, whatever they are
/// called, and only a Lark grammar that names them lets them come.
pub(in crate::engine::llama) fn words(vocabulary: &Vocabulary) -> (Vec<Vec<u8>>, Vec<u32>) {
    let count = u32::try_from(vocabulary.len()).unwrap_or(0);
    let word = |token| {
        let piece = vocabulary.piece(token);
        if !piece.is_empty() && !vocabulary.eog.contains(&token) {
            return piece.to_vec();
        }
        let name = vocabulary.special_text(Some(token));
        if name.is_empty() {
            return Vec::new();
        }
        [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat()
    };
    ((0..count).map(word).collect(), vocabulary.eog.clone())
}

/// Builds the trie.
pub(super) fn environment(words: &[Vec<u8>], end: &[u32]) -> TokEnv {
    let count = u32::try_from(words.len()).unwrap_or(0);
    let info = TokRxInfo::new(count, end.first().copied().unwrap_or(INVALID_TOKEN));
    let trie = if words.iter().any(|word| word.len() > LONGEST) {
        let fit = |word: &Vec<u8>| {
            if word.len() > LONGEST {
                Vec::new()
            } else {
                word.clone()
            }
        };
        TokTrie::from(&info, &words.iter().map(fit).collect::<Vec<_>>())
    } else {
        TokTrie::from(&info, words)
    };
    let end: Vec<u32> = end.iter().copied().filter(|&end| end < count).collect();
    let trie = if end.is_empty() {
        trie
    } else {
        trie.with_eos_tokens(&end)
    };
    Arc::new(ApproximateTokEnv::new(trie))
}
