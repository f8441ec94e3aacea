//! The answer as bare text.
//!
//! A stream that breaks has no place for an error but the text itself: it ends with the line
//! `[error: …]`, so that a reader never takes half an answer for a whole one.

use bytes::BytesMut;

use super::super::TEXT;
use super::super::mark::Format;
use crate::generation::{Failure, Finish, Scored, Usage};

/// Writes the text of one choice.
pub(super) struct Bare;

impl Format for Bare {
    fn content_type(&self) -> &'static str {
        TEXT
    }

    fn text(&mut self, _: u32, text: &str, _: Option<Scored<'_>>, out: &mut BytesMut) {
        out.extend_from_slice(text.as_bytes());
    }

    fn finish(&mut self, _: u32, _: Finish, _: &mut BytesMut) {}

    fn end(&mut self, _: Usage, _: &mut BytesMut) {}

    fn failed(&mut self, failure: &Failure, out: &mut BytesMut) {
        out.extend_from_slice(b"\n[error: ");
        out.extend_from_slice(failure.message.as_bytes());
        out.extend_from_slice(b"]\n");
    }
}
