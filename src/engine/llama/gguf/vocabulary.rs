//! The tokenizer inside a GGUF file: whether llama.cpp can tokenize any text with it and survive.

use std::borrow::Cow;
use std::collections::HashMap;

use super::error::{GgufError, shown};
use super::metadata::{Items, Kind, Metadata, Value, as_c, bad, missing, wrong_type};

const TOKENS: &str = "tokenizer.ggml.tokens";
/// The longest real tokens are runs of a few hundred spaces or dashes. Tries over tokens recurse as
/// deep as a token is long, and some tokenizers keep every suffix of every token.
const MOST_TOKEN_BYTES: u64 = 4096;
/// `LLAMA_TOKEN_TYPE_BYTE`.
const BYTE: i64 = 6;

/// What is fixed about the tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vocabulary {
    pub(super) model: String,
    pub(super) pre: Option<String>,
    pub(super) tokens: u32,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) eot: Option<u32>,
    pub(super) add_bos: Option<bool>,
}

/// Tokenizer families that llama.cpp tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    /// `SentencePiece` with byte fallback.
    SentencePiece,
    /// Byte-level BPE.
    Bpe,
    /// Gemma 4: BPE over text, with its own special tokens.
    GemmaBpe,
    WordPiece,
    Unigram,
    Rwkv,
    Plamo,
}

impl Family {
    fn of(model: &str) -> Option<Self> {
        Some(match model {
            "llama" => Self::SentencePiece,
            "gpt2" | "hybriddna" | "whitespace" => Self::Bpe,
            "gemma4" => Self::GemmaBpe,
            "bert" => Self::WordPiece,
            "t5" => Self::Unigram,
            "rwkv" => Self::Rwkv,
            "plamo2" => Self::Plamo,
            _ => return None,
        })
    }

    /// The beginning- and end-of-sequence ids that llama.cpp assumes when the file names none, and
    /// whether it then adds each of them to prompts.
    fn defaults(self) -> Defaults {
        let (bos, eos, adds) = match self {
            Self::SentencePiece | Self::Plamo => (Some(1), Some(2), Adds::Bos),
            // Some pre-tokenizers switch it on.
            Self::Bpe => (Some(11), Some(11), Adds::Bos),
            Self::GemmaBpe => (None, None, Adds::Bos),
            Self::WordPiece => (Some(101), None, Adds::Bos),
            Self::Unigram => (None, Some(1), Adds::Eos),
            Self::Rwkv => (None, None, Adds::Neither),
        };
        Defaults { bos, eos, adds }
    }
}

struct Defaults {
    bos: Option<u32>,
    eos: Option<u32>,
    adds: Adds,
}

/// Which of the two llama.cpp puts around a prompt when the file does not say.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Adds {
    Bos,
    Eos,
    Neither,
}

/// Checks everything under `tokenizer.`.
pub(super) fn check(metadata: &Metadata) -> Result<Vocabulary, GgufError> {
    let model_key = "tokenizer.ggml.model";
    let model = metadata
        .text(model_key)?
        .ok_or_else(|| missing(model_key))?;
    let Some(family) = Family::of(model) else {
        return Err(bad(
            model_key,
            shown(model),
            "llama, gpt2, gemma4, bert, t5, rwkv, plamo2, hybriddna or whitespace",
        ));
    };
    let pre_key = "tokenizer.ggml.pre";
    let pre = metadata.text(pre_key)?;
    // This one leaves spaces in, and only the tokenizer of its name cuts at them before it merges.
    if pre == Some("whitespace") && family == Family::Bpe && model != "whitespace" {
        return Err(bad(
            pre_key,
            shown("whitespace"),
            format!("a pre-tokenizer for {model}"),
        ));
    }
    let texts = metadata.texts(TOKENS)?.ok_or_else(|| missing(TOKENS))?;
    let tokens = u32::try_from(texts.len()).unwrap_or(u32::MAX);
    if tokens == 0 {
        return Err(bad(TOKENS, "empty", "at least one token"));
    }
    let ids = unique(texts)?;
    let types = types(metadata, texts.len())?;
    check_byte_tokens(texts, types, family)?;
    check_scores(metadata, texts.len())?;
    match family {
        Family::SentencePiece => check_all_bytes(&ids)?,
        Family::Bpe | Family::GemmaBpe => check_merges(metadata, pre)?,
        Family::Unigram => super::charsmap::check(metadata)?,
        Family::Rwkv => check_newline(&ids)?,
        // PLaMo's own loader looks for its bytes and fails cleanly.
        Family::WordPiece | Family::Plamo => {}
    }
    check_suppressed(metadata)?;
    check_flags(metadata)?;
    let special = check_special(metadata, tokens, family)?;
    Ok(Vocabulary {
        model: model.into(),
        pre: pre.map(Into::into),
        tokens,
        ..special
    })
}

/// Ids by text, none of them too long. llama.cpp stops the process when two tokens have one text.
fn unique(texts: &[String]) -> Result<HashMap<Cow<'_, str>, usize>, GgufError> {
    let mut ids = HashMap::with_capacity(texts.len());
    for (id, text) in texts.iter().enumerate() {
        let bytes = text.len() as u64;
        if bytes > MOST_TOKEN_BYTES {
            return Err(GgufError::TooLarge {
                what: format!("the length of token {id} in bytes"),
                found: bytes,
                limit: MOST_TOKEN_BYTES,
            });
        }
        // llama.cpp names empty tokens like this before it compares.
        let text: Cow<'_, str> = match as_c(text) {
            "" => format!("[EMPTY_{id}]").into(),
            text => text.into(),
        };
        if let Some(&first) = ids.get(&text) {
            return Err(GgufError::DuplicateToken {
                first: first as u64,
                second: id as u64,
                text: shown(&text),
            });
        }
        ids.insert(text, id);
    }
    Ok(ids)
}

fn types(metadata: &Metadata, tokens: usize) -> Result<Option<&[i64]>, GgufError> {
    let key = "tokenizer.ggml.token_type";
    match metadata.find(key) {
        None => Ok(None),
        Some(Value::Array(Kind::I32, _, Items::Integers(types))) => {
            check_len(key, types.len(), tokens)?;
            match types.iter().find(|&kind| !(0..=BYTE).contains(kind)) {
                Some(kind) => Err(bad(
                    key,
                    format!("an array with {kind} in it"),
                    "types 0 to 6",
                )),
                None => Ok(Some(types)),
            }
        }
        Some(other) => Err(wrong_type(key, other, "array of i32")),
    }
}

fn check_len(key: &str, found: usize, tokens: usize) -> Result<(), GgufError> {
    if found < tokens {
        return Err(bad(
            key,
            format!("an array of {found}"),
            format!("{tokens}, one per token"),
        ));
    }
    Ok(())
}

/// A token of type byte is written `<0x41>`; llama.cpp cuts the digits out without looking, and
/// stops the process where a word-piece vocabulary has one.
fn check_byte_tokens(
    texts: &[String],
    types: Option<&[i64]>,
    family: Family,
) -> Result<(), GgufError> {
    if family == Family::Rwkv {
        return Ok(());
    }
    for (text, _) in texts
        .iter()
        .zip(types.unwrap_or_default())
        .filter(|&(_, &kind)| kind == BYTE)
    {
        let digits = as_c(text)
            .strip_prefix("<0x")
            .and_then(|rest| rest.strip_suffix('>'));
        let spelled = digits.is_some_and(|digits| {
            digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
        });
        if !spelled || family == Family::WordPiece {
            return Err(bad(
                TOKENS,
                format!("an array with the byte token {}", shown(text)),
                "byte tokens written like <0x0A>, and none in a word-piece vocabulary",
            ));
        }
    }
    Ok(())
}

fn check_scores(metadata: &Metadata, tokens: usize) -> Result<(), GgufError> {
    let key = "tokenizer.ggml.scores";
    match metadata.find(key) {
        None => Ok(()),
        Some(Value::Array(Kind::F32, _, Items::Floats(scores))) => {
            check_len(key, scores.len(), tokens)?;
            // Scores order a queue; one that is not a number makes its order undefined.
            match scores.iter().find(|score| score.is_nan()) {
                Some(score) => Err(bad(key, format!("an array with {score} in it"), "numbers")),
                None => Ok(()),
            }
        }
        Some(Value::Array(Kind::I32, _, Items::Integers(scores))) => {
            check_len(key, scores.len(), tokens)
        }
        Some(other) => Err(wrong_type(key, other, "array of f32 or i32")),
    }
}

/// Text that no token matches is spelled in bytes: as `<0x41>` or as the character itself.
fn check_all_bytes(ids: &HashMap<Cow<'_, str>, usize>) -> Result<(), GgufError> {
    for byte in 0..=u8::MAX {
        let spelled = ids.contains_key(format!("<0x{byte:02X}>").as_str())
            // A zero byte would end the C string that is looked up.
            || (1..0x80).contains(&byte) && ids.contains_key(char::from(byte).to_string().as_str());
        if !spelled {
            return Err(GgufError::MissingByte { byte });
        }
    }
    Ok(())
}

/// RWKV's loader tokenizes a line feed and stops the process when nothing comes out.
fn check_newline(ids: &HashMap<Cow<'_, str>, usize>) -> Result<(), GgufError> {
    if ids.contains_key("\\n") || ids.contains_key("\n") {
        return Ok(());
    }
    Err(GgufError::MissingByte { byte: b'\n' })
}

fn check_merges(metadata: &Metadata, pre: Option<&str>) -> Result<(), GgufError> {
    let key = "tokenizer.ggml.merges";
    let Some(merges) = metadata.texts(key)? else {
        // Kimi K2 works without.
        return if pre == Some("kimi-k2") {
            Ok(())
        } else {
            Err(missing(key))
        };
    };
    for (index, merge) in merges.iter().map(|merge| as_c(merge)).enumerate() {
        // As llama.cpp cuts: at the first space that is not the first byte.
        let cut = merge.bytes().skip(1).position(|byte| byte == b' ');
        if cut.is_none_or(|cut| cut + 2 >= merge.len()) {
            return Err(GgufError::Merge {
                index: index as u64,
                text: shown(merge),
            });
        }
    }
    Ok(())
}

fn check_suppressed(metadata: &Metadata) -> Result<(), GgufError> {
    let key = "tokenizer.ggml.suppress_tokens";
    match metadata.find(key) {
        None | Some(Value::Array(Kind::I32, _, Items::Integers(_))) => Ok(()),
        Some(other) => Err(wrong_type(key, other, "array of i32")),
    }
}

/// Flags that the loader reads in this one type.
fn check_flags(metadata: &Metadata) -> Result<(), GgufError> {
    for name in [
        "add_space_prefix",
        "remove_extra_whitespaces",
        "add_bos_token",
        "add_eos_token",
        "add_sep_token",
        "normalizer.lowercase",
        "normalizer.strip_accents",
    ] {
        metadata.bool(&format!("tokenizer.ggml.{name}"))?;
    }
    metadata.u32("tokenizer.ggml.token_type_count")?;
    Ok(())
}

/// Special tokens, and whether those that llama.cpp puts around prompts exist. The `model`, `pre`
/// and `tokens` of the answer are for the caller to fill in.
fn check_special(
    metadata: &Metadata,
    tokens: u32,
    family: Family,
) -> Result<Vocabulary, GgufError> {
    let [bos, eos, eot] = ["bos", "eos", "eot"].map(|name| special(metadata, name, tokens));
    let (bos, eos, eot) = (bos?, eos?, eot?);
    let sep = special(metadata, "seperator", u32::MAX)?;
    // llama.cpp passes over these when they lie outside the vocabulary; only their type matters.
    for name in [
        "eom", "unknown", "padding", "mask", "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep",
        "fim_sep", "prefix", "suffix", "middle",
    ] {
        special(metadata, name, u32::MAX)?;
    }
    let defaults = family.defaults();
    let known = |id: Option<u32>| id.filter(|&id| id < tokens);
    let wanted = |flag: &str, default: bool| -> Result<bool, GgufError> {
        Ok(metadata
            .bool(&format!("tokenizer.ggml.{flag}"))?
            .unwrap_or(default))
    };
    let adds_bos =
        wanted("add_bos_token", defaults.adds == Adds::Bos)? || family == Family::GemmaBpe;
    if adds_bos && known(bos).or(known(defaults.bos)).is_none() {
        return Err(missing("tokenizer.ggml.bos_token_id"));
    }
    if wanted("add_eos_token", defaults.adds == Adds::Eos)?
        && known(eos).or(known(defaults.eos)).is_none()
    {
        return Err(missing("tokenizer.ggml.eos_token_id"));
    }
    if family == Family::WordPiece && known(sep).or(known(Some(102))).is_none() {
        return Err(missing("tokenizer.ggml.seperator_token_id"));
    }
    Ok(Vocabulary {
        model: String::new(),
        pre: None,
        tokens,
        bos,
        eos,
        eot,
        add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?,
    })
}

/// An id below `below`. Converters write "none" as the largest number.
fn special(metadata: &Metadata, name: &str, below: u32) -> Result<Option<u32>, GgufError> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    match metadata.u32(&key)? {
        None | Some(u32::MAX) => Ok(None),
        Some(id) if id < below => Ok(Some(id)),
        Some(id) => Err(bad(&key, id, format!("a token id below {below}"))),
    }
}
