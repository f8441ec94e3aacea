//! The JSON of ERROR.
//!
//! ```text
//! {"code": 52, "kind": "stalled", "status": 504, "message": "…", "param": null,
//!  "detail": "reader_stalled", "retry": false, "retry_after_ms": null}
//! ```
//!
//! `code`, `kind` and `status` are one row of `wire/failure.rs`.

use bytes::BytesMut;
use serde::{Deserialize, Serialize};

use super::super::failure::codes;
use super::super::{Refusal, json};
use super::FRAMES;
use super::frames::Frame;
use crate::generation::Failure;

/// Bytes of a message or a place that are told; six times as much, when all of it is escaped, fits a frame.
const LONGEST: usize = 4 * 1024;

/// What an ERROR frame says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The code that a reset stream would carry.
    pub code: u64,
    /// The kind's name.
    pub kind: String,
    /// The HTTP status of the same failure.
    pub status: u16,
    /// What went wrong, for people.
    pub message: String,
    /// The field at fault, where there is one.
    #[serde(default)]
    pub param: Option<String>,
    /// A stable name where the kind's is too coarse.
    #[serde(default)]
    pub detail: Option<String>,
    /// Whether the same request may succeed if it is sent again.
    #[serde(default)]
    pub retry: bool,
    /// When that makes sense.
    #[serde(default)]
    pub retry_after_ms: Option<u64>,
}

impl From<&Failure> for Fault {
    fn from(failure: &Failure) -> Self {
        let codes = codes(failure.kind);
        let millis = |after: std::time::Duration| u64::try_from(after.as_millis());
        Self {
            code: codes.quic.into(),
            kind: codes.name.to_owned(),
            status: codes.status,
            message: short(&failure.message),
            param: failure.param.as_deref().map(short),
            detail: failure.code.or(codes.openai_code).map(str::to_owned),
            retry: codes.retry,
            retry_after_ms: failure.retry_after.and_then(|after| millis(after).ok()),
        }
    }
}

/// Appends an ERROR frame.
pub fn write(failure: &Failure, out: &mut BytesMut) {
    let mut text = BytesMut::new();
    json::document(&mut text, &Fault::from(failure));
    Frame::Error(&text).encode(out);
}

/// Appends the complete answer of a call that failed before anything of it was sent.
pub fn refuse(failure: &Failure, out: &mut BytesMut) -> Refusal {
    write(failure, out);
    Refusal {
        status: codes(failure.kind).status,
        content_type: FRAMES,
    }
}

fn short(text: &str) -> String {
    text[..text.floor_char_boundary(LONGEST)].to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::frames::{Decoder, MAX_PAYLOAD};
    use super::*;
    use crate::generation::Kind;

    fn written(failure: &Failure) -> Fault {
        let mut out = BytesMut::new();
        refuse(failure, &mut out);
        assert!(out.len() < MAX_PAYLOAD);
        let mut decoder = Decoder::new();
        let Ok(Some(Frame::Error(json))) = decoder.next(&mut &out[..]) else {
            panic!("one ERROR frame");
        };
        serde_json::from_slice(json).unwrap()
    }

    #[test]
    fn an_error_says_what_its_row_of_the_table_does() {
        let failure = Failure::invalid("n", "No.").with_retry_after(Duration::from_millis(1500));
        let fault = written(&failure);
        let expected = Fault {
            code: 0x10,
            kind: "invalid".into(),
            status: 400,
            message: "No.".into(),
            param: Some("n".into()),
            detail: None,
            retry: false,
            retry_after_ms: Some(1500),
        };
        assert_eq!(fault, expected);
    }

    #[test]
    fn an_endless_message_is_cut_and_fits_a_frame() {
        let failure = Failure::new(Kind::Invalid, "ä\u{1}".repeat(100_000));
        let fault = written(&failure.with_param("\u{1}".repeat(100_000)));
        assert!(fault.message.len() <= LONGEST && fault.message.starts_with("ä\u{1}ä"));
    }
}
