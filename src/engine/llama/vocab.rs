//! Text to tokens and back, off the engine thread.
//!
//! What the hot path needs of a vocabulary is copied out of llama.cpp once, at load: the bytes of
//! every token, the tokens that end a generation, the texts of control tokens.

use std::borrow::Cow;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;

use super::ffi::LlamaError;
use super::sampling::Breakers;
use super::shim;

/// Longest text handed to llama.cpp's BPE tokenizer in one piece, in bytes. Some pre-tokenizers fall
/// back to `std::regex`, which recurses for each character of a run of one kind (llama.cpp issue 17902):
/// up to 350 bytes of stack each with libstdc++, 6 MB for a piece.
const PIECE_BYTES: usize = 16 * 1024;

/// Most digits in a row that llama.cpp is handed. Some pre-tokenizers look from each digit to the last
/// one: 16 KiB of digits took 15 s. A multiple of three, because that is how many make a token.
const NUMBER_BYTES: usize = 255;

/// Stack of a thread that tokenizes more than a few KiB: ten times what a piece was seen to take, for
/// other standard libraries. Memory only where it is used.
pub(super) const TOKENIZER_STACK: usize = 64 * 1024 * 1024;

/// A model's vocabulary.
pub(super) struct Vocabulary {
    bytes: Vec<u8>,
    /// Token `t` is `bytes[ends[t - 1]..ends[t]]`.
    ends: Vec<u32>,
    /// Tokens that end a generation.
    pub(super) eog: Vec<u32>,
    /// Tokens that the model's author wants never generated.
    pub(super) suppressed: Vec<u32>,
    bos: Option<u32>,
    add_bos: bool,
    /// The texts of control tokens, which user text must not turn into.
    control: Option<AhoCorasick>,
    /// Whether text is cut by a regular expression before merging.
    is_bpe: bool,
    /// Most bytes of text that one token can stand for, where the tokenizer drops no text.
    longest: Option<usize>,
    model: Arc<LlamaModel>,
}

impl Vocabulary {
    /// Copies out what is needed; about 3 ms for 152k tokens. `tokenizer` is the model's kind of
    /// vocabulary, by its name in GGUF files.
    pub(super) fn new(model: Arc<LlamaModel>, tokenizer: &str) -> Self {
        let vocab = model.vocab();
        let count = u32::try_from(vocab.n_tokens()).unwrap_or(0);
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(count as usize);
        let mut eog = Vec::new();
        let mut control_texts = Vec::new();
        let mut piece = Vec::with_capacity(64);
        // An unknown character becomes one token, and is up to four bytes.
        let mut longest = 4;
        for token in vocab.tokens() {
            piece.clear();
            vocab.token_to_piece_into(token, &mut piece, false, None);
            bytes.extend_from_slice(&piece);
            longest = longest.max(piece.len());
            ends.push(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
            if vocab.is_eog(token) {
                eog.push(unsigned(token));
            }
            if vocab.is_control(token)
                && let Some(text) = vocab.text(token)
                && let Ok(text) = text.to_str()
                && !text.is_empty()
            {
                longest = longest.max(text.len());
                control_texts.push(text.to_owned());
            }
        }
        let control = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(&control_texts)
            .ok()
            .filter(|_| !control_texts.is_empty());
        let known = |token: LlamaToken| (token.0 >= 0).then(|| unsigned(token));
        let suppressed = vocab
            .suppress_tokens()
            .iter()
            .copied()
            .filter_map(known)
            .collect();
        let (bos, add_bos) = (known(vocab.bos()), vocab.should_add_bos());
        Self {
            bytes,
            ends,
            eog,
            suppressed,
            bos,
            add_bos,
            control,
            is_bpe: tokenizer == "gpt2",
            // Others normalize: they may make one token of any amount of white space.
            longest: matches!(tokenizer, "gpt2" | "llama").then_some(longest),
            model,
        }
    }

    /// Number of tokens.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes that a token renders as; empty for control tokens and ids out of range.
    pub(super) fn piece(&self, token: u32) -> &[u8] {
        let at = token as usize;
        let Some(&end) = self.ends.get(at) else {
            return &[];
        };
        let from = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[from as usize..end as usize]
    }

    /// Most bytes of text that `tokens` tokens can stand for, where that is known.
    pub(super) fn most_bytes(&self, tokens: u32) -> Option<usize> {
        Some(self.longest?.saturating_mul(tokens as usize))
    }

    /// The text of the token that begins a text, for templates.
    pub(super) fn bos_text(&self) -> String {
        self.special_text(self.bos)
    }

    /// The text of the token that ends a text, for templates.
    pub(super) fn eos_text(&self) -> String {
        let eos = self.model.vocab().eos();
        self.special_text((eos.0 >= 0).then(|| unsigned(eos)))
    }

    /// The text of a token as the vocabulary lists it; empty for none.
    pub(super) fn special_text(&self, token: Option<u32>) -> String {
        let vocab = self.model.vocab();
        token
            .and_then(|token| vocab.text(LlamaToken(i32::try_from(token).ok()?)))
            .map(|text| text.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    /// The tokens of a text. `add_special` puts the beginning-of-text token in front where the model
    /// wants one; `parse_special` lets the texts of control tokens become those tokens.
    pub(super) fn tokenize(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>, LlamaError> {
        self.tokenize_segments(&[(text, parse_special)], add_special)
    }

    /// The tokens of a text that stands for itself, with what the model wants before and behind one.
    pub(super) fn tokenize_whole(&self, text: &str) -> Result<Vec<u32>, LlamaError> {
        let mut tokens = self.tokenize(text, true, false)?;
        self.push_eos(&mut tokens);
        Ok(tokens)
    }

    /// The tokens of two texts to be compared: each ended, with the model's separator between.
    pub(super) fn tokenize_pair(&self, first: &str, second: &str) -> Result<Vec<u32>, LlamaError> {
        let mut tokens = self.tokenize_whole(first)?;
        let vocab = self.model.vocab();
        let sep = vocab.sep();
        if vocab.should_add_sep() && sep.0 >= 0 {
            tokens.push(unsigned(sep));
        }
        tokens.extend(self.tokenize(second, false, false)?);
        self.push_eos(&mut tokens);
        Ok(tokens)
    }

    fn push_eos(&self, tokens: &mut Vec<u32>) {
        let vocab = self.model.vocab();
        let eos = vocab.eos();
        if vocab.should_add_eos() && eos.0 >= 0 {
            tokens.push(unsigned(eos));
        }
    }

    /// The tokens of consecutive segments, each with its own `parse_special`.
    pub(super) fn tokenize_segments(
        &self,
        segments: &[(&str, bool)],
        add_special: bool,
    ) -> Result<Vec<u32>, LlamaError> {
        let mut tokens = Vec::new();
        for &(segment, parse_special) in segments {
            for piece in self.pieces_of(segment) {
                tokens.extend(shim::tokenize(
                    &self.model,
                    piece.as_bytes(),
                    parse_special,
                )?);
            }
        }
        if add_special
            && self.add_bos
            && let Some(bos) = self.bos
            && tokens.first() != Some(&bos)
        {
            tokens.insert(0, bos);
        }
        Ok(tokens)
    }

    /// Marks every control-token text in `text` with a pair of guard characters, so that it can be
    /// told from the template's own after rendering.
    pub(super) fn guard<'t>(&self, text: &'t str, guards: Guards) -> Cow<'t, str> {
        let Some(control) = &self.control else {
            return Cow::Borrowed(text);
        };
        let mut out = String::new();
        let mut from = 0;
        for found in control.find_iter(text) {
            out.push_str(&text[from..found.start()]);
            out.push(guards.open);
            out.push_str(&text[found.range()]);
            out.push(guards.close);
            from = found.end();
        }
        if from == 0 {
            return Cow::Borrowed(text);
        }
        out.push_str(&text[from..]);
        Cow::Owned(out)
    }

    /// Cuts a long text where the regular expression would cut it anyway: before white space that
    /// follows something else. Vocabularies without a regular expression take it whole.
    fn pieces_of<'t>(&self, mut text: &'t str) -> Vec<&'t str> {
        if !self.is_bpe {
            return vec![text];
        }
        let mut pieces = Vec::new();
        while text.len() > PIECE_BYTES {
            let limit = text.floor_char_boundary(PIECE_BYTES);
            let window = text.as_bytes();
            let gap = (limit / 2..limit).rev().find(|&at| {
                window[at].is_ascii_whitespace() && !window[at - 1].is_ascii_whitespace()
            });
            let (piece, rest) = text.split_at(gap.unwrap_or(limit));
            cut_numbers(piece, &mut pieces);
            text = rest;
        }
        cut_numbers(text, &mut pieces);
        pieces
    }

    /// Where DRY must not count a repetition on: every way in which `texts` can begin in a token.
    pub(super) fn breakers(&self, texts: &[String]) -> Result<Breakers, LlamaError> {
        let count = u32::try_from(self.len()).unwrap_or(0);
        let pieces = (0..count).map(|token| self.piece(token));
        let mut failed = None;
        let breakers = Breakers::new(texts, pieces, |rest| {
            shim::tokenize(&self.model, rest, false).unwrap_or_else(|error| {
                failed = Some(error);
                Vec::new()
            })
        });
        failed.map_or(Ok(breakers), Err)
    }
}

/// Cuts a piece after every [`NUMBER_BYTES`] digits in a row.
fn cut_numbers<'t>(mut piece: &'t str, pieces: &mut Vec<&'t str>) {
    let end_of_long = |piece: &str| {
        let mut digits = 0;
        let reached = piece.bytes().position(|byte| {
            digits = if byte.is_ascii_digit() { digits + 1 } else { 0 };
            digits == NUMBER_BYTES
        });
        reached.map(|at| at + 1)
    };
    while piece.len() > NUMBER_BYTES
        && let Some(end) = end_of_long(piece)
    {
        let (number, rest) = piece.split_at(end);
        pieces.push(number);
        piece = rest;
    }
    pieces.push(piece);
}

/// Two characters that do not occur in a request and will not occur in text: Unicode noncharacters
/// (Unicode 16, section 23.7).
#[derive(Clone, Copy, Debug)]
pub(super) struct Guards {
    pub(super) open: char,
    pub(super) close: char,
}

impl Guards {
    /// A pair that none of `texts` contains; `None` if they contain nearly all of them.
    pub(super) fn absent_from(texts: &[&str]) -> Option<Self> {
        let mut free = ('\u{fdd0}'..='\u{fdef}')
            .filter(|&guard| !texts.iter().any(|text| text.contains(guard)));
        Some(Self {
            open: free.next()?,
            close: free.next()?,
        })
    }

    /// Cuts a rendered prompt into segments: what was guarded is plain text, the rest may hold
    /// control tokens. Guards themselves are dropped.
    pub(super) fn segments(self, rendered: &str) -> Vec<(&str, bool)> {
        let mut segments = Vec::new();
        let mut parse_special = true;
        let mut rest = rendered;
        while let Some(at) = rest.find([self.open, self.close]) {
            let (segment, tail) = rest.split_at(at);
            if !segment.is_empty() {
                segments.push((segment, parse_special));
            }
            parse_special = !tail.starts_with(self.open);
            rest = &tail[self.open.len_utf8()..];
        }
        if !rest.is_empty() {
            segments.push((rest, parse_special));
        }
        segments
    }
}

fn unsigned(token: LlamaToken) -> u32 {
    u32::try_from(token.0).unwrap_or(0)
}
