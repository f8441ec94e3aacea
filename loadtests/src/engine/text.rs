//! Prompts: words drawn by a fixed rule, so that every server gets the same and none has seen it before.

use serde_json::{Value, json};

use crate::random::Random;

/// Short words that most vocabularies know.
const WORDS: [&str; 64] = [
    "the", "a", "old", "small", "river", "house", "tree", "stone", "green", "blue", "walked",
    "ran", "saw", "found", "gave", "took", "under", "over", "near", "far", "day", "night", "sun",
    "moon", "rain", "wind", "road", "hill", "bird", "dog", "cat", "fish", "girl", "boy", "man",
    "woman", "king", "queen", "friend", "story", "book", "song", "bread", "milk", "fire", "water",
    "door", "window", "garden", "field", "forest", "sea", "boat", "wheel", "light", "dark", "warm",
    "cold", "quick", "slow", "happy", "quiet", "and", "then",
];

/// A source of texts.
#[derive(Clone, Debug)]
pub(crate) struct Texts {
    random: Random,
    /// Words that make a token, as the model at hand counts.
    pub(super) words_per_token: f64,
}

impl Texts {
    /// The texts of one measurement.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            words_per_token: 1.0,
        }
    }

    /// So many words.
    pub(crate) fn words(&mut self, count: usize) -> String {
        let words: Vec<&str> = (0..count).map(|_| self.word()).collect();
        words.join(" ")
    }

    /// Words that make about so many tokens.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a number of words is small and positive"
    )]
    pub(super) fn tokens(&mut self, count: u32) -> String {
        let words = (f64::from(count) * self.words_per_token).round().max(1.0);
        self.words(words as usize)
    }

    fn word(&mut self) -> &'static str {
        WORDS.get(self.random.one_of_64()).copied().unwrap_or("and")
    }
}

/// The body of a chat that goes on for `tokens` tokens whatever the model says. Both servers have these
/// sampling defaults; they are written out so that it stays so.
pub(super) fn chat(messages: &Value, tokens: u32) -> Value {
    json!({
        "model": "m",
        "messages": messages,
        "stream": true,
        "stream_options": {"include_usage": true},
        "max_tokens": tokens,
        "ignore_eos": true,
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.05,
    })
}

/// One message of a user.
pub(super) fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_follow_from_their_seed_and_do_not_repeat() {
        let (mut one, mut same, mut other) = (Texts::new(1), Texts::new(1), Texts::new(2));
        let first = one.words(12);
        assert_eq!(first, same.words(12));
        assert_ne!(first, other.words(12));
        assert_ne!(first, one.words(12));
        assert_eq!(first.split(' ').count(), 12);
    }

    #[test]
    fn tokens_become_words_at_the_models_rate() {
        let mut texts = Texts::new(1);
        texts.words_per_token = 0.5;
        assert_eq!(texts.tokens(20).split(' ').count(), 10);
    }
}
