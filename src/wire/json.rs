//! Writing JSON straight into the send buffer, without building values first.
//!
//! Strings are UTF-8; only what RFC 8259, section 7, demands is escaped (quote, backslash, controls).
//! U+2028 and U+2029 go out as they are: JSON allows them, and SSE splits lines at CR and LF only.

use bytes::{BufMut, BytesMut};
use serde::Serialize;

/// Bytes looked at together. The compiler turns the check of a block into a few vector instructions.
const BLOCK: usize = 16;

/// What OpenAI's API says for "very unlikely"; JSON has no infinity.
const LEAST_LOGPROB: f32 = -9999.0;

/// For each byte: 0 if it stands for itself in a string, else the letter after the backslash.
static ESCAPES: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = b'u';
        byte += 1;
    }
    table[0x08] = b'b';
    table[0x09] = b't';
    table[0x0a] = b'n';
    table[0x0c] = b'f';
    table[0x0d] = b'r';
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table
};

/// Appends `text` as the inside of a JSON string, without the quotes.
pub(super) fn text(out: &mut BytesMut, text: &str) {
    let bytes = text.as_bytes();
    out.reserve(bytes.len());
    let mut written = 0;
    let mut at = 0;
    while at < bytes.len() {
        let end = bytes.len().min(at + BLOCK);
        let block = &bytes[at..end];
        if block.len() < BLOCK || !plain(block) {
            for (offset, &byte) in block.iter().enumerate() {
                let letter = ESCAPES[usize::from(byte)];
                if letter != 0 {
                    out.extend_from_slice(&bytes[written..at + offset]);
                    escape(out, byte, letter);
                    written = at + offset + 1;
                }
            }
        }
        at = end;
    }
    out.extend_from_slice(&bytes[written..]);
}

/// Whether no byte of `block` needs escaping. Without early exit, so that it vectorises.
#[expect(
    clippy::needless_bitwise_bool,
    reason = "`||` is a branch per byte, and nothing vectorises"
)]
pub(super) fn plain(block: &[u8]) -> bool {
    !block.iter().fold(false, |found, &byte| {
        found | (byte < 0x20) | (byte == b'"') | (byte == b'\\')
    })
}

#[cold]
fn escape(out: &mut BytesMut, byte: u8, letter: u8) {
    if letter == b'u' {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        out.extend_from_slice(b"\\u00");
        out.put_u8(HEX[usize::from(byte >> 4)]);
        out.put_u8(HEX[usize::from(byte & 15)]);
    } else {
        out.extend_from_slice(&[b'\\', letter]);
    }
}

/// Appends `value` as a JSON string with its quotes.
pub(super) fn string(out: &mut BytesMut, value: &str) {
    out.put_u8(b'"');
    text(out, value);
    out.put_u8(b'"');
}

/// Appends `value` as a JSON string, or `null`.
pub(super) fn string_or_null(out: &mut BytesMut, value: Option<&str>) {
    match value {
        Some(value) => string(out, value),
        None => out.extend_from_slice(b"null"),
    }
}

/// Appends an integer.
pub(super) fn integer(out: &mut BytesMut, value: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Appends a log-probability: the shortest text that reads back as the same `f32`.
pub(super) fn logprob(out: &mut BytesMut, value: f32) {
    let value = if value.is_finite() {
        value.max(LEAST_LOGPROB)
    } else {
        LEAST_LOGPROB
    };
    document(out, &value);
}

/// Appends any serializable value. For what is written once a request, not once a token.
pub(super) fn document(out: &mut BytesMut, value: &impl Serialize) {
    // Writing to memory cannot fail, and the types of this folder have string keys only.
    let written = serde_json::to_writer(out.writer(), value);
    debug_assert!(written.is_ok(), "{written:?}");
}

/// Appends an array of integers.
pub(super) fn integers<T: itoa::Integer>(out: &mut BytesMut, values: impl IntoIterator<Item = T>) {
    out.put_u8(b'[');
    for (index, value) in values.into_iter().enumerate() {
        if index > 0 {
            out.put_u8(b',');
        }
        integer(out, value);
    }
    out.put_u8(b']');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(value: &str) -> String {
        let mut out = BytesMut::new();
        string(&mut out, value);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn every_control_character_is_escaped_and_reads_back() {
        let all: String = (0..=0xff_u8).map(char::from).collect();
        let json = written(&all);
        assert!(json.bytes().all(|byte| byte >= 0x20));
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), all);
    }

    #[test]
    fn infinities_become_the_least_log_probability() {
        for value in [f32::NEG_INFINITY, f32::NAN, f32::MIN] {
            let mut out = BytesMut::new();
            logprob(&mut out, value);
            assert_eq!(&out[..], b"-9999.0");
        }
    }

    proptest! {
        #[test]
        fn any_text_reads_back_as_it_was(text in "\\PC{0,20}[\"\\\\\n\r\t\u{0}-\u{1f}]{0,4}\\PC{0,40}") {
            prop_assert_eq!(serde_json::from_str::<String>(&written(&text)).unwrap(), text);
        }

        #[test]
        fn a_log_probability_reads_back_as_it_was(value in -9999.0_f32..=0.0) {
            let mut out = BytesMut::new();
            logprob(&mut out, value);
            prop_assert_eq!(serde_json::from_slice::<f32>(&out).unwrap().to_bits(), value.to_bits());
        }
    }
}
