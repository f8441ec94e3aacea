//! `POST /v1/tokenize`, `/v1/detokenize` and `/v1/chat/completions/input_tokens`.
//!
//! Bodies and answers are llama-server's, with `model` beside them; JSON-RPC uses the same ones.

use bytes::{BufMut, BytesMut};
use serde::Deserialize;

use super::openai::{self};
use super::read::Unserved;
use super::{Head, json, read};
use crate::generation::{Failure, Input};

/// A text whose tokens are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokenize {
    /// The model's name as asked; empty means the default model.
    pub model: String,
    /// What to tokenize.
    pub input: Input,
    /// Add what the model expects around a prompt. Off unless asked for.
    pub add_special: bool,
    /// Let special-token texts become those tokens. On unless switched off, as in llama-server.
    pub parse_special: bool,
    /// Whether the answer is to hold each token's text.
    pub with_pieces: bool,
}

/// Tokens whose text is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detokenize {
    /// The model's name as asked; empty means the default model.
    pub model: String,
    /// Token ids, unchecked.
    pub tokens: Vec<u32>,
}

/// A conversation whose tokens are to be counted as generation would see them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// The model's name as asked; empty means the default model.
    pub model: String,
    /// The conversation.
    pub input: Input,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TokenizeBody {
    model: Option<String>,
    content: Option<String>,
    text: Option<String>,
    prompt: Option<String>,
    messages: Option<Unserved>,
    add_special: Option<bool>,
    parse_special: Option<bool>,
    with_pieces: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DetokenizeBody {
    model: Option<String>,
    tokens: Option<Vec<u32>>,
}

/// Reads the body of `POST /v1/tokenize`: the text is in `content`, `text` or `prompt`, or else there are
/// `messages`.
///
/// # Errors
/// `Invalid`, naming the field at fault.
pub fn parse_tokenize(body: &[u8], head: &Head<'_>) -> Result<Tokenize, Failure> {
    tokenize(read::text(body, head.limits.json_depth)?)
}

/// Reads the body of `POST /v1/detokenize`: `tokens`.
///
/// # Errors
/// `Invalid`, naming the field at fault.
pub fn parse_detokenize(body: &[u8], head: &Head<'_>) -> Result<Detokenize, Failure> {
    detokenize(read::text(body, head.limits.json_depth)?)
}

/// Reads the body of `POST /v1/chat/completions/input_tokens`: a chat body, of which `model` and
/// `messages` matter.
///
/// # Errors
/// `Invalid`, naming the field at fault.
pub fn parse_count(body: &[u8], head: &Head<'_>) -> Result<Count, Failure> {
    let (model, input) = openai::count(read::text(body, head.limits.json_depth)?)?;
    Ok(Count { model, input })
}

pub(super) fn tokenize(json: &str) -> Result<Tokenize, Failure> {
    let body: TokenizeBody = read::object(json)?;
    let input = if body.messages.is_some() {
        openai::count(json)?.1
    } else {
        let text = body.content.or(body.text).or(body.prompt);
        Input::Text(text.ok_or_else(|| {
            Failure::invalid(
                "content",
                "The text to tokenize must be in content, or a conversation in messages.",
            )
        })?)
    };
    Ok(Tokenize {
        model: body.model.unwrap_or_default(),
        input,
        add_special: body.add_special.unwrap_or(false),
        parse_special: body.parse_special.unwrap_or(true),
        with_pieces: body.with_pieces.unwrap_or(false),
    })
}

pub(super) fn detokenize(json: &str) -> Result<Detokenize, Failure> {
    let body: DetokenizeBody = read::object(json)?;
    Ok(Detokenize {
        model: body.model.unwrap_or_default(),
        tokens: body
            .tokens
            .ok_or_else(|| Failure::invalid("tokens", "tokens must be an array of token ids."))?,
    })
}

/// Appends `{"tokens":[…]}`. With pieces, one for each token, the entries are `{"id":…,"piece":…}`, where a
/// piece is a string, or an array of bytes if it is not UTF-8 by itself.
pub fn write_tokens(tokens: &[u32], pieces: Option<&[Vec<u8>]>, out: &mut BytesMut) {
    out.extend_from_slice(b"{\"tokens\":");
    if let Some(pieces) = pieces {
        out.put_u8(b'[');
        for (index, (&token, piece)) in tokens.iter().zip(pieces).enumerate() {
            out.extend_from_slice(if index == 0 {
                b"{\"id\":"
            } else {
                b",{\"id\":"
            });
            json::integer(out, token);
            out.extend_from_slice(b",\"piece\":");
            match std::str::from_utf8(piece) {
                Ok(text) => json::string(out, text),
                Err(_) => json::integers(out, piece.iter().copied()),
            }
            out.put_u8(b'}');
        }
        out.put_u8(b']');
    } else {
        json::integers(out, tokens.iter().copied());
    }
    out.put_u8(b'}');
}

/// Appends `{"content":"…"}`: the pieces put together; what is not UTF-8 then becomes U+FFFD.
pub fn write_content(pieces: &[Vec<u8>], out: &mut BytesMut) {
    out.extend_from_slice(b"{\"content\":");
    json::string(out, &String::from_utf8_lossy(&pieces.concat()));
    out.put_u8(b'}');
}

/// Appends `{"object":"response.input_tokens","input_tokens":N}`, the answer of OpenAI's counting
/// endpoint and of llama-server's.
pub fn write_count(tokens: usize, out: &mut BytesMut) {
    out.extend_from_slice(b"{\"object\":\"response.input_tokens\",\"input_tokens\":");
    json::integer(out, tokens);
    out.put_u8(b'}');
}

#[cfg(test)]
mod tests {
    use super::super::testing::head;
    use super::*;

    fn written(write: impl FnOnce(&mut BytesMut)) -> serde_json::Value {
        let mut out = BytesMut::new();
        write(&mut out);
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn the_text_may_have_any_of_its_three_names() {
        for name in ["content", "text", "prompt"] {
            let body = format!("\u{feff}{{\"{name}\":\"hi\",\"add_special\":true}}");
            let parsed = parse_tokenize(body.as_bytes(), &head("")).unwrap();
            assert_eq!(parsed.input, Input::Text("hi".into()));
            assert!(parsed.add_special && parsed.parse_special && !parsed.with_pieces);
        }
        let failure = parse_tokenize(b"{}", &head("")).unwrap_err();
        assert_eq!(failure.param.as_deref(), Some("content"));
    }

    #[test]
    fn messages_are_tokenized_as_a_conversation() {
        let body = br#"{"model":"m","messages":[{"role":"user","content":"a"}]}"#;
        let parsed = parse_tokenize(body, &head("")).unwrap();
        assert!(matches!(parsed.input, Input::Chat(messages) if messages[0].content == "a"));
        let counted = parse_count(body, &head("")).unwrap();
        assert!(matches!(counted.input, Input::Chat(_)));
        assert_eq!(counted.model, "m");
    }

    #[test]
    fn a_token_that_is_not_an_id_names_its_place() {
        let failure = parse_detokenize(br#"{"tokens":[1,-2]}"#, &head("")).unwrap_err();
        assert_eq!(failure.param.as_deref(), Some("tokens[1]"));
    }

    #[test]
    fn pieces_are_strings_or_bytes() {
        let pieces = [b"a\"".to_vec(), vec![0xe2, 0x82]];
        assert_eq!(
            written(|out| write_tokens(&[5, 6], Some(&pieces), out)),
            serde_json::json!({"tokens": [{"id": 5, "piece": "a\""}, {"id": 6, "piece": [0xe2, 0x82]}]})
        );
        assert_eq!(
            written(|out| write_tokens(&[5, 6], None, out)),
            serde_json::json!({"tokens": [5, 6]})
        );
        assert_eq!(
            written(|out| write_content(&[vec![0xe2, 0x82], vec![0xac, 0xff]], out)),
            serde_json::json!({"content": "€\u{fffd}"})
        );
        assert_eq!(
            written(|out| write_count(9, out)),
            serde_json::json!({"object": "response.input_tokens", "input_tokens": 9})
        );
    }
}
