//! What an HTTP/2 peer sends, frame by frame: what it has read, and what it costs without asking for
//! anything.
//!
//! Frames that manage the connection are answered by hyper as they come, for ever: a peer may send pings,
//! settings, window updates of one byte, empty DATA and so on without end and keep a core busy
//! (CVE-2019-9511 to 9518), or open streams only to reset them, slowly enough to be served (CVE-2023-44487).
//! So each such frame is paid from an allowance that time, and what the peer reads of us, fill up again.
//! An honest peer sends a few a second, and at most two window updates for each frame that it reads.

use std::sync::Arc;

use super::listen::PREFACE;
use super::pace::SmallFrames;
use crate::generation::clock;
use crate::telemetry::Metrics;

/// What comes back in a second, in frames.
const EACH_SECOND: u64 = 100;

/// So many bytes read are worth a frame.
const BYTES_WORTH_ONE: u64 = 64;

/// A frame of text may be confirmed for its stream and for the connection.
const TEXT_WORTH: u64 = 2;

/// What a reset costs: the request that it ends had begun.
const RESET: u64 = 4;

/// An HTTP/2 peer's side of a connection.
pub(super) struct PeerFrames {
    frames: Frames,
    small_frames: Arc<SmallFrames>,
    allowance: Allowance,
    /// Where resets are counted, if they are.
    metrics: Option<Arc<Metrics>>,
}

impl PeerFrames {
    /// Begins with the first byte of a connection, where the client's preface is. `most`: frames that may
    /// come at once.
    pub(super) fn new(
        small_frames: Arc<SmallFrames>,
        most: u32,
        metrics: Option<Arc<Metrics>>,
    ) -> Self {
        Self {
            metrics,
            frames: Frames::new(),
            small_frames,
            allowance: Allowance::new(most),
        }
    }

    /// Goes through the next bytes; false if there were more frames that ask for nothing than are borne.
    #[must_use]
    pub(super) fn read(&mut self, bytes: &[u8]) -> bool {
        let Seen {
            grows,
            idle,
            resets,
        } = self.frames.read(bytes);
        if let Some(metrics) = &self.metrics {
            for code in resets {
                metrics.transports.http2_reset(code);
            }
        }
        if grows > 0 {
            self.small_frames.window_grew(grows);
        }
        idle == 0
            || self
                .allowance
                .pay(idle, self.small_frames.frames(), clock::task_micros())
    }

    /// So many bytes went out.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.allowance.wrote(bytes);
    }
}

/// What is left of the frames that may come, in bytes that are worth them.
struct Allowance {
    left: u64,
    most: u64,
    /// When it was filled up last, and the frames of text that had gone out by then.
    at: u64,
    text: u64,
}

impl Allowance {
    fn new(most: u32) -> Self {
        let most = u64::from(most) * BYTES_WORTH_ONE;
        Self {
            left: most,
            most,
            at: 0,
            text: 0,
        }
    }

    fn wrote(&mut self, bytes: usize) {
        self.left = self.left.saturating_add(bytes as u64).min(self.most);
    }

    fn pay(&mut self, frames: u64, text: u64, now: u64) -> bool {
        let passed = now.saturating_sub(self.at).saturating_mul(EACH_SECOND) / 1_000_000;
        if passed > 0 {
            self.at = now;
        }
        let read = text.saturating_sub(self.text) * TEXT_WORTH;
        self.text = text;
        let more = passed.saturating_add(read).saturating_mul(BYTES_WORTH_ONE);
        self.left = self.left.saturating_add(more).min(self.most);
        let price = frames.saturating_mul(BYTES_WORTH_ONE);
        let pays = price <= self.left;
        self.left = self.left.saturating_sub(price);
        pays
    }
}

/// What some bytes brought.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    /// How much the connection's window grows.
    grows: u32,
    /// The price of the frames that ask for nothing.
    idle: u64,
    /// The codes of streams that were reset; hardly ever any.
    resets: Vec<u32>,
}

/// Finds the heads of frames (RFC 9113, section 4.1), the window updates of the connection (section 6.9) and the
/// codes of resets (section 6.4). Everything else is skipped by its length.
struct Frames {
    skip: usize,
    frame: [u8; UPDATE],
    have: usize,
}

/// A frame's head.
const HEAD: usize = 9;

/// A whole `WINDOW_UPDATE`, or `RST_STREAM`.
const UPDATE: usize = HEAD + 4;

// Types and flags (RFC 9113, section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const PADDED: u8 = 8;

impl Frames {
    fn new() -> Self {
        Self {
            skip: PREFACE.len(),
            frame: [0; UPDATE],
            have: 0,
        }
    }

    fn read(&mut self, mut bytes: &[u8]) -> Seen {
        let mut seen = Seen::default();
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let wanted = if self.have < HEAD { HEAD } else { UPDATE };
            let taken = (wanted - self.have).min(bytes.len());
            self.frame[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            let number = |at: usize| {
                let four = [0, 1, 2, 3].map(|i| self.frame[at + i]);
                u32::from_be_bytes(four)
            };
            let (length, kind) = (number(0) >> 8, self.frame[3]);
            if self.have == HEAD {
                seen.idle += price(kind, self.frame[4], length);
            }
            if self.have == UPDATE {
                if kind == RST_STREAM {
                    seen.resets.push(number(HEAD));
                } else if number(5) & RESERVED == 0 {
                    seen.grows = seen.grows.saturating_add(number(HEAD) & RESERVED);
                }
                self.have = 0;
            } else if self.have == HEAD
                && !(matches!(kind, WINDOW_UPDATE | RST_STREAM) && length == 4)
            {
                self.have = 0;
                self.skip = length as usize;
            }
        }
        seen
    }
}

/// Without the bit that means nothing.
const RESERVED: u32 = 0x7fff_ffff;

/// What a frame costs that asks for nothing; requests and their bodies have bounds of their own.
fn price(kind: u8, flags: u8, length: u32) -> u64 {
    match kind {
        // Padding, of 255 bytes at the most, is how a frame with a length carries nothing.
        DATA => u64::from(
            length == 0 && flags & END_STREAM == 0 || flags & PADDED != 0 && length <= 256,
        ),
        HEADERS | CONTINUATION => 0,
        RST_STREAM => RESET,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    proptest! {
        #[test]
        fn frames_are_found_however_the_bytes_are_cut(
            frames in prop::collection::vec((0..12_u8, any::<u8>(), 0..3_u32, prop_oneof![prop::collection::vec(any::<u8>(), 4), prop::collection::vec(any::<u8>(), 0..40)]), 0..12),
            updates in prop::collection::vec(1..100_000_u32, 0..6),
            cuts in prop::collection::vec(1..30_usize, 1..40),
        ) {
            let mut bytes = PREFACE.to_vec();
            let resets: Vec<u32> = frames
                .iter()
                .filter(|(kind, _, _, payload)| *kind == RST_STREAM && payload.len() == 4)
                .map(|(_, _, _, payload)| u32::from_be_bytes(payload[..].try_into().unwrap()))
                .collect();
            let mut updates_left = updates.iter();
            let mut idle = 2 * updates.len() as u64;
            let update = |bytes: &mut Vec<u8>, by: &u32| {
                bytes.extend(frame(WINDOW_UPDATE, 0, 0, &by.to_be_bytes()));
                bytes.extend(frame(WINDOW_UPDATE, 0, 1, &by.to_be_bytes()));
            };
            for (kind, flags, stream, payload) in &frames {
                let kind = if *kind == WINDOW_UPDATE { 0 } else { *kind };
                idle += price(kind, *flags, u32::try_from(payload.len()).unwrap());
                bytes.extend(frame(kind, *flags, *stream, payload));
                if let Some(by) = updates_left.next() {
                    update(&mut bytes, by);
                }
            }
            for by in updates_left {
                update(&mut bytes, by);
            }
            let mut reader = Frames::new();
            let mut rest = &bytes[..];
            let mut all = Seen::default();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                let seen = reader.read(piece);
                all.grows += seen.grows;
                all.idle += seen.idle;
                all.resets.extend(seen.resets);
                rest = after;
            }
            prop_assert_eq!(all, Seen { grows: updates.iter().sum(), idle, resets });
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            Frames::new().read(&bytes);
        }
    }

    #[test]
    fn frames_that_ask_for_something_are_free() {
        for (kind, flags, length, expected) in [
            (DATA, 0, 1, 0),
            (DATA, 0, 0, 1),
            (DATA, END_STREAM, 0, 0),
            (DATA, PADDED, 100, 1),
            (HEADERS, PADDED, 100, 0),
            (CONTINUATION, 0, 0, 0),
            (RST_STREAM, 0, 4, RESET),
            (6, 0, 8, 1),
            (0x10, 0, 8, 1),
            (0xff, 0, 0, 1),
        ] {
            assert_eq!(
                price(kind, flags, length),
                expected,
                "{kind} {flags} {length}"
            );
        }
    }

    #[test]
    fn the_allowance_comes_back_with_time_and_with_what_is_read() {
        let mut allowance = Allowance::new(50);
        assert!(allowance.pay(50, 0, 0));
        assert!(!allowance.pay(1, 0, 0), "it is spent");
        assert!(!allowance.pay(1, 0, 9_999));
        assert!(allowance.pay(1, 0, 10_000), "a hundred a second");
        assert!(!allowance.pay(1, 0, 10_001));
        assert!(allowance.pay(50, 0, 60_000_000), "no more than at first");
        assert!(!allowance.pay(1, 0, 60_000_000));
        allowance.wrote(128);
        assert!(allowance.pay(2, 0, 60_000_000));
        assert!(allowance.pay(2, 1, 60_000_000), "one frame of text");
        assert!(!allowance.pay(1, 1, 60_000_000));
    }

    #[test]
    fn a_peer_that_confirms_every_little_frame_is_borne_for_ever() {
        let mut allowance = Allowance::new(1000);
        for text in 1..1_000_000 {
            assert!(allowance.pay(2, text, 0));
        }
    }
}
