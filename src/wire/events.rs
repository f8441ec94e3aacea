//! Where one event of a streamed answer ends and the next begins, format by format.
//!
//! A reader who lost the connection says how many whole events it has; this is the one place that knows
//! what it counted. Encoders need not: the boundaries are in the bytes.
//!
//! | format | an event |
//! |---|---|
//! | server-sent events | a block up to its empty line; comments (keep-alives) are none |
//! | NDJSON, JSON-RPC in lines | a line |
//! | bare text | a byte, since it has nothing between the bytes |
//! | frames of `sluice/1` | a frame that says something of the generation; PING is none |

use bytes::BytesMut;

use super::sluice::FRAMES;
use super::sluice::frames::{Kind, varint};
use super::{EVENT_STREAM, NDJSON, TEXT, json};

/// How the events of one format are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Events {
    /// Blocks of server-sent events.
    Blocks,
    /// Lines.
    Lines,
    /// Bytes.
    Bytes,
    /// Frames of `sluice/1`.
    Frames,
}

impl Events {
    /// The rule for a streamed answer of this `content-type`; `None` if it has no events to count.
    #[must_use]
    pub fn of(content_type: &str) -> Option<Self> {
        match content_type {
            EVENT_STREAM => Some(Self::Blocks),
            NDJSON => Some(Self::Lines),
            TEXT => Some(Self::Bytes),
            FRAMES => Some(Self::Frames),
            _ => None,
        }
    }

    /// Events in `bytes`, which begin and end between two of them.
    #[must_use]
    pub fn count(self, bytes: &[u8]) -> u64 {
        if self == Self::Bytes {
            return bytes.len() as u64;
        }
        self.parts(bytes).map(|part| u64::from(part.counts)).sum()
    }

    /// How many of `bytes` the first `events` events take.
    #[must_use]
    pub fn skip(self, bytes: &[u8], events: u64) -> usize {
        if self == Self::Bytes {
            return usize::try_from(events).map_or(bytes.len(), |events| events.min(bytes.len()));
        }
        let mut left = events;
        let mut at = 0;
        for part in self.parts(bytes) {
            if left == 0 {
                break;
            }
            at += part.bytes.len();
            left -= u64::from(part.counts);
        }
        at
    }

    /// Appends `bytes` with each server-sent event's number before it (`id: 7`), the first one's being
    /// `first`. Other formats have no place for it.
    pub fn with_ids(self, bytes: &[u8], first: u64, out: &mut BytesMut) {
        if self != Self::Blocks {
            out.extend_from_slice(bytes);
            return;
        }
        let mut number = first;
        for part in self.parts(bytes) {
            if part.counts {
                out.extend_from_slice(b"id: ");
                json::integer(out, number);
                out.extend_from_slice(b"\n");
                number += 1;
            }
            out.extend_from_slice(part.bytes);
        }
    }

    fn parts(self, bytes: &[u8]) -> Parts<'_> {
        Parts {
            events: self,
            rest: bytes,
        }
    }
}

/// A piece between two boundaries.
struct Part<'a> {
    bytes: &'a [u8],
    /// Whether it is an event: a keep-alive is none.
    counts: bool,
}

struct Parts<'a> {
    events: Events,
    rest: &'a [u8],
}

impl<'a> Iterator for Parts<'a> {
    type Item = Part<'a>;

    fn next(&mut self) -> Option<Part<'a>> {
        let first = *self.rest.first()?;
        let end = match self.events {
            // No line inside a block is empty, and JSON writes its line feeds as `\n`.
            Events::Blocks => memchr::memmem::find(self.rest, b"\n\n").map(|at| at + 2),
            Events::Lines => memchr::memchr(b'\n', self.rest).map(|at| at + 1),
            Events::Bytes => Some(1),
            Events::Frames => frame(self.rest).map(|(_, length)| length),
        };
        let (bytes, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        Some(Part {
            bytes,
            counts: match self.events {
                Events::Blocks => first != b':',
                Events::Frames => {
                    let kind = frame(bytes).and_then(|(kind, _)| Kind::of(kind));
                    kind.is_some_and(Kind::is_event)
                }
                Events::Lines | Events::Bytes => true,
            },
        })
    }
}

/// The type and the whole length of the frame that `bytes` begin with.
fn frame(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut rest = bytes;
    let kind = varint::read(&mut rest)?;
    let payload = usize::try_from(varint::read(&mut rest)?).ok()?;
    let length = (bytes.len() - rest.len()).checked_add(payload)?;
    (length <= bytes.len()).then_some((kind, length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::sluice::frames::{Frame, Reasons};
    use super::*;

    #[test]
    fn each_streamed_format_has_a_rule_and_documents_have_none() {
        for (content_type, events) in [
            (EVENT_STREAM, Some(Events::Blocks)),
            (NDJSON, Some(Events::Lines)),
            (TEXT, Some(Events::Bytes)),
            (FRAMES, Some(Events::Frames)),
            (super::super::JSON, None),
        ] {
            assert_eq!(Events::of(content_type), events, "{content_type}");
        }
    }

    #[test]
    fn keep_alives_are_no_events_and_get_no_number() {
        let stream = b"data: a\n\n: keep-alive\n\ndata: b\n\ndata: [DONE]\n\n";
        assert_eq!(Events::Blocks.count(stream), 3);
        assert_eq!(Events::Blocks.count(b": keep-alive\n\n"), 0);
        let mut out = BytesMut::new();
        Events::Blocks.with_ids(stream, 9, &mut out);
        assert_eq!(
            &out[..],
            b"id: 9\ndata: a\n\n: keep-alive\n\nid: 10\ndata: b\n\nid: 11\ndata: [DONE]\n\n"
        );
    }

    #[test]
    fn frames_count_but_for_signs_of_life() {
        let mut stream = BytesMut::new();
        for frame in [
            Frame::Progress {
                prompt_tokens: 300,
                cached_tokens: 0,
            },
            Frame::Ping,
            Frame::Tokens {
                choice: 0,
                count: 1,
                text: &"x".repeat(100),
            },
            Frame::End(Reasons::default()),
        ] {
            frame.encode(&mut stream);
        }
        assert_eq!(Events::Frames.count(&stream), 3);
        let last = Events::Frames.skip(&stream, 2);
        assert_eq!(Events::Frames.count(&stream[last..]), 1);
        assert_eq!(&stream[last..], b"\x04\0");
    }

    #[test]
    fn formats_without_a_place_for_numbers_stay_as_they_are() {
        let mut out = BytesMut::new();
        Events::Lines.with_ids(b"{}\n", 1, &mut out);
        Events::Bytes.with_ids(b"x\n\n", 1, &mut out);
        assert_eq!(&out[..], b"{}\nx\n\n");
    }

    proptest! {
        #[test]
        fn what_is_skipped_and_what_is_left_are_the_whole(
            texts in proptest::collection::vec("[a-z:]{0,6}", 0..20),
            cut in 0..24_u64,
        ) {
            for events in [Events::Blocks, Events::Lines, Events::Bytes] {
                let end = if events == Events::Blocks { "\n\n" } else { "\n" };
                let parts: Vec<_> = texts.iter().map(|text| format!("d{text}{end}")).collect();
                let stream = parts.concat();
                let all = events.count(stream.as_bytes());
                if events != Events::Bytes {
                    prop_assert_eq!(all, texts.len() as u64);
                }
                let at = events.skip(stream.as_bytes(), cut);
                let (before, after) = stream.as_bytes().split_at(at);
                prop_assert_eq!(events.count(before), cut.min(all));
                prop_assert_eq!(events.count(after), all - cut.min(all));
            }
        }

        #[test]
        fn any_bytes_are_taken_apart_without_loss(bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b':'), any::<u8>()], 0..64)) {
            for events in [Events::Blocks, Events::Lines, Events::Bytes, Events::Frames] {
                let joined: Vec<u8> = events.parts(&bytes).flat_map(|part| part.bytes.to_vec()).collect();
                prop_assert_eq!(&joined, &bytes);
                prop_assert_eq!(events.skip(&bytes, u64::MAX), bytes.len());
            }
        }
    }
}
