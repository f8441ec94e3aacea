//! One sequence's way through a grammar: which tokens may come next, and when it is done.

use std::fmt;

use llguidance::Matcher;
use llguidance::api::StopReason;
use llguidance::toktrie::SimpleVob;

use super::compile::plain;
use crate::generation::{Failure, Kind};

/// Follows one sequence.
///
/// A mask is computed token by token, on the thread that samples; it is the one allocation there (a bit
/// per token, made by llguidance).
pub struct Guide {
    matcher: Matcher,
    mask: SimpleVob,
    /// Whether it may be asked what is forced.
    foresees: bool,
}

/// What comes behind a string, likeliest first where several can.
const BEHIND_STRING: [u8; 4] = *b":,}]";

impl Guide {
    /// `foresees` is whether what the grammar forces is never long: all of it is followed at once.
    pub(super) fn new(matcher: Matcher, foresees: bool) -> Self {
        Self {
            matcher,
            mask: SimpleVob::new(),
            foresees,
        }
    }

    /// A guide in the same state that shares nothing with this one. (Ordinary clones share a lexer
    /// behind a lock, which an error in one of them poisons for all.)
    #[must_use]
    pub fn copy(&self) -> Self {
        Self::new(self.matcher.deep_clone(), self.foresees)
    }

    /// The tokens that may come next, one bit each: token `t` is bit `t % 32` of word `t / 32`.
    ///
    /// # Errors
    /// No token can follow, or the grammar is too complex at this place.
    pub fn mask(&mut self) -> Result<&[u32], GuideError> {
        match self.matcher.compute_mask() {
            Ok(mask) => {
                self.mask = mask;
                Ok(self.mask.as_slice())
            }
            Err(error) => Err(GuideError(plain(&error.to_string()))),
        }
    }

    /// Appends at most `most` tokens that say what can only come next, like the rest of a key. They are a
    /// guess: the text is forced, but not how it is cut into tokens. What may come next stays the same.
    pub fn foresee(&mut self, most: usize, out: &mut Vec<u32>) {
        if !self.foresees {
            return;
        }
        let mut text = self.matcher.compute_ff_bytes();
        let Ok(environment) = self.matcher.tok_env() else {
            return;
        };
        let mut tokens = environment.tok_trie().greedy_tokenize(&text);
        if text.ends_with(b"\"") {
            // Vocabularies have tokens for a string's end with what comes behind it.
            for behind in BEHIND_STRING {
                text.push(behind);
                let more = environment.tok_trie().greedy_tokenize(&text);
                if (self.matcher.validate_tokens(&more)).is_ok_and(|right| right == more.len()) {
                    tokens = more;
                    break;
                }
                text.pop();
            }
        }
        tokens.truncate(most);
        out.append(&mut tokens);
    }

    /// Notes the token that was chosen; it must be one that the mask allows.
    ///
    /// # Errors
    /// The token cannot come here, or the grammar is too complex at this place.
    pub fn accept(&mut self, token: u32) -> Result<(), GuideError> {
        match self.matcher.consume_token(token) {
            // A parser that gave up is "stopped" as well, without an error.
            Ok(()) if self.matcher.stop_reason().is_ok() => Ok(()),
            Ok(()) => Err(GuideError(format!("{:?}", self.matcher.stop_reason()))),
            Err(error) => Err(GuideError(plain(&error.to_string()))),
        }
    }

    /// Whether the text is whole and nothing can follow it.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        matches!(
            self.matcher.stop_reason(),
            StopReason::NoExtension | StopReason::EndOfSentence
        )
    }
}

impl fmt::Debug for Guide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guide")
            .field("state", &self.matcher.stop_reason())
            .finish_non_exhaustive()
    }
}

/// Why a guide cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuideError(String);

impl GuideError {
    /// Nothing that may come next is possible.
    pub(in crate::engine::llama) fn all_banned() -> Self {
        Self("every token that may come next is banned or impossible".to_owned())
    }
}

impl fmt::Display for GuideError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for GuideError {}

impl From<GuideError> for Failure {
    fn from(error: GuideError) -> Self {
        Self::new(
            Kind::Invalid,
            format!("The schema or grammar cannot be followed any further: {error}."),
        )
        .with_code("constraint_failed")
    }
}
