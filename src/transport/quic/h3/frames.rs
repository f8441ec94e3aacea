//! What of a peer's HTTP/3 bytes reaches the `h3` crate: frames whose size is bounded, and none that
//! mean nothing.
//!
//! ```text
//!  type (varint) | length (varint) | payload
//!    DATA            > 0             handed on as it comes
//!    DATA            0               left out
//!    known           <= bound        handed on in one piece, when it is whole
//!    known           >  bound        an error
//!    unknown         any             left out, unread
//! ```
//!
//! The crate by itself gathers a frame of any announced length, reserved ones too, takes an empty DATA
//! frame for the end of a body, and a body that ends within a DATA frame for a whole one, at whose end
//! it panics. Frames: RFC 9114, section 7.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// A type and a length, eight bytes each at the most (RFC 9000, section 16).
const LONGEST_HEADER: usize = 16;

const DATA: u64 = 0x0;
const CONTROL_STREAM: u64 = 0x0;
const MAX_PUSH_ID: u64 = 0xd;

/// Why a stream cannot be read on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    /// A frame that has to be whole to be understood is larger than it may be.
    #[error("a frame of {0} bytes is too large")]
    TooLarge(u64),
    /// The stream ended within a frame.
    #[error("the stream ended within a frame")]
    Truncated,
}

/// The frames of one stream, in whatever pieces they come.
#[derive(Debug)]
pub(super) struct Frames {
    state: State,
    /// Most bytes of a frame that is gathered.
    bound: usize,
}

#[derive(Debug)]
enum State {
    /// The type of a unidirectional stream (RFC 9114, section 6.2).
    StreamType(BytesMut),
    /// A frame's type and length.
    Header(BytesMut),
    /// A frame that is handed on whole, header included, and what it lacks.
    Gather(BytesMut, usize),
    Data(u64),
    Skip(u64),
    /// Not frames at all: QPACK's streams, and those of unknown types.
    Opaque,
}

impl Frames {
    /// Of a request stream.
    pub(super) fn of_request(bound: usize) -> Self {
        let state = State::Header(BytesMut::new());
        Self { state, bound }
    }

    /// Of a unidirectional stream, whose type comes first.
    pub(super) fn of_unidirectional(bound: usize) -> Self {
        let state = State::StreamType(BytesMut::new());
        Self { state, bound }
    }

    /// Takes bytes from `chunk` until there is something to hand on; nothing once `chunk` is empty.
    ///
    /// # Errors
    /// A frame is too large.
    pub(super) fn next(&mut self, chunk: &mut Bytes) -> Result<Option<Bytes>, FrameError> {
        while !chunk.is_empty() {
            match &mut self.state {
                State::StreamType(head) => {
                    head.put_u8(chunk.get_u8());
                    if let Some((kind, _)) = varint(head) {
                        let head = std::mem::take(head).freeze();
                        self.state = if kind == CONTROL_STREAM {
                            State::Header(BytesMut::new())
                        } else {
                            State::Opaque
                        };
                        return Ok(Some(head));
                    }
                }
                State::Header(head) => {
                    head.reserve(LONGEST_HEADER);
                    head.put_u8(chunk.get_u8());
                    if let Some((kind, length)) = type_and_length(head) {
                        let head = std::mem::take(head);
                        if let Some(out) = self.begin(kind, length, head)? {
                            return Ok(Some(out));
                        }
                    }
                }
                State::Gather(frame, missing) => {
                    let count = chunk.len().min(*missing);
                    frame.extend_from_slice(&chunk.split_to(count));
                    *missing -= count;
                    if *missing == 0 {
                        let frame = std::mem::take(frame).freeze();
                        self.state = State::Header(BytesMut::new());
                        return Ok(Some(frame));
                    }
                }
                State::Data(left) => {
                    let piece = take(chunk, left);
                    if *left == 0 {
                        self.state = State::Header(BytesMut::new());
                    }
                    return Ok(Some(piece));
                }
                State::Skip(left) => {
                    take(chunk, left);
                    if *left == 0 {
                        self.state = State::Header(BytesMut::new());
                    }
                }
                State::Opaque => return Ok(Some(std::mem::take(chunk))),
            }
        }
        Ok(None)
    }

    /// The peer has nothing more to send.
    ///
    /// # Errors
    /// It stopped within a frame.
    pub(super) fn end(&self) -> Result<(), FrameError> {
        match &self.state {
            State::Header(head) if head.is_empty() => Ok(()),
            // A stream may end before it has said what it is.
            State::StreamType(_) | State::Opaque => Ok(()),
            _ => Err(FrameError::Truncated),
        }
    }

    /// A frame's header is there; hands on what can be handed on already.
    fn begin(
        &mut self,
        kind: u64,
        length: u64,
        head: BytesMut,
    ) -> Result<Option<Bytes>, FrameError> {
        let is_known = kind < 0xa || kind == MAX_PUSH_ID;
        let (state, out) = match usize::try_from(length) {
            _ if kind == DATA && length > 0 => (State::Data(length), Some(head.freeze())),
            _ if length > 0 && !is_known => (State::Skip(length), None),
            Ok(length) if length > 0 && length <= self.bound => (State::Gather(head, length), None),
            Ok(0) => {
                let means_something = is_known && kind != DATA;
                let out = means_something.then(|| head.freeze());
                (State::Header(BytesMut::new()), out)
            }
            _ => return Err(FrameError::TooLarge(length)),
        };
        self.state = state;
        Ok(out)
    }
}

/// As much of a frame's payload as has come.
fn take(chunk: &mut Bytes, left: &mut u64) -> Bytes {
    let count = usize::try_from(*left).map_or(chunk.len(), |left| left.min(chunk.len()));
    *left -= count as u64;
    chunk.split_to(count)
}

fn type_and_length(head: &[u8]) -> Option<(u64, u64)> {
    let (kind, size) = varint(head)?;
    let (length, _) = varint(&head[size..])?;
    Some((kind, length))
}

/// A number and its size (RFC 9000, section 16), once it is whole.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let size = 1 << (first >> 6);
    let rest = bytes.get(1..size)?;
    let value = rest.iter().fold(u64::from(first & 0x3f), |value, &byte| {
        value << 8 | u64::from(byte)
    });
    Some((value, size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUND: usize = 64;

    fn put_varint(out: &mut BytesMut, value: u64) {
        match value {
            0..0x40 => out.put_u8(u8::try_from(value).unwrap()),
            0x40..0x4000 => out.put_u16(u16::try_from(value).unwrap() | 0x4000),
            _ => out.put_u64(value | 0xc000_0000_0000_0000),
        }
    }

    fn frame(kind: u64, payload: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        put_varint(&mut out, kind);
        put_varint(&mut out, payload.len() as u64);
        out.extend_from_slice(payload);
        out.to_vec()
    }

    /// Everything that is handed on of `bytes`, which come in pieces of these sizes.
    fn read(frames: &mut Frames, bytes: &[u8], sizes: &[usize]) -> Result<Vec<Bytes>, FrameError> {
        let mut sizes = sizes.iter().copied().cycle();
        let mut rest = Bytes::copy_from_slice(bytes);
        let mut out = Vec::new();
        while !rest.is_empty() {
            let size = sizes.next().unwrap_or(1).clamp(1, rest.len());
            let mut chunk = rest.split_to(size);
            while let Some(piece) = frames.next(&mut chunk)? {
                out.push(piece);
            }
        }
        Ok(out)
    }

    #[test]
    fn what_means_nothing_is_left_out_unread() {
        let mut frames = Frames::of_request(BOUND);
        let mut bytes = frame(0x21, &vec![7; 100_000]);
        bytes.extend(frame(1, b"head"));
        bytes.extend(frame(0, b""));
        bytes.extend(frame(0, b"body"));
        bytes.extend(frame(0x41, b"x"));
        let out = read(&mut frames, &bytes, &[1000]).unwrap().concat();
        assert_eq!(out, [frame(1, b"head"), frame(0, b"body")].concat());
        assert_eq!(frames.end(), Ok(()));
    }

    #[test]
    fn a_frame_that_must_be_whole_has_a_largest_size_and_data_has_none() {
        for kind in [1, 4, 5, 0xd] {
            let whole = read(&mut Frames::of_request(BOUND), &frame(kind, &[0; 64]), &[9]);
            assert_eq!(whole.unwrap().len(), 1, "in one piece");
            let error = read(&mut Frames::of_request(BOUND), &frame(kind, &[0; 65]), &[9]);
            assert_eq!(error.unwrap_err(), FrameError::TooLarge(65));
        }
        let data = read(&mut Frames::of_request(BOUND), &frame(0, &[0; 5000]), &[9]).unwrap();
        assert_eq!(data.concat(), frame(0, &[0; 5000]));
    }

    #[test]
    fn a_stream_that_ends_within_a_frame_is_no_whole_one() {
        let mut whole = frame(1, b"head");
        whole.extend(frame(0, b"body"));
        let boundary = frame(1, b"head").len();
        for cut in 0..=whole.len() {
            let mut frames = Frames::of_request(BOUND);
            read(&mut frames, &whole[..cut], &[3]).unwrap();
            let is_whole = cut == 0 || cut == boundary || cut == whole.len();
            assert_eq!(frames.end().is_ok(), is_whole, "after {cut} bytes");
        }
    }

    #[test]
    fn a_control_stream_is_framed_and_others_are_handed_on() {
        let mut frames = Frames::of_unidirectional(BOUND);
        let mut control = vec![0];
        control.extend(frame(4, b"\x06\x20"));
        let out = read(&mut frames, &control, &[1]).unwrap();
        assert_eq!(out.len(), 2, "type, and settings in one piece");
        assert_eq!(out.concat(), control);
        control.extend(frame(7, &[0; 65]));
        let error = read(&mut Frames::of_unidirectional(BOUND), &control, &[5]);
        assert_eq!(error.unwrap_err(), FrameError::TooLarge(65));
        let mut qpack = vec![2];
        qpack.extend([0xff; 300]);
        let out = read(&mut Frames::of_unidirectional(BOUND), &qpack, &[7]).unwrap();
        assert_eq!(out.concat(), qpack);
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            list in prop::collection::vec((0_u64..70, prop::collection::vec(any::<u8>(), 0..40)), 0..12),
            sizes in prop::collection::vec(1_usize..50, 1..8),
        ) {
            let bytes: Vec<u8> = list.iter().flat_map(|(kind, body)| frame(*kind, body)).collect();
            let wanted: Vec<u8> = list
                .iter()
                .filter(|(kind, body)| match kind {
                    0 => !body.is_empty(),
                    1..=9 | 0xd => true,
                    _ => false,
                })
                .flat_map(|(kind, body)| frame(*kind, body))
                .collect();
            let mut frames = Frames::of_request(BOUND);
            prop_assert_eq!(read(&mut frames, &bytes, &sizes).unwrap().concat(), wanted);
            prop_assert_eq!(frames.end(), Ok(()));
        }

        #[test]
        fn any_bytes_end_in_frames_or_an_error_and_little_is_held(
            bytes in prop::collection::vec(any::<u8>(), 0..2000),
            sizes in prop::collection::vec(1_usize..50, 1..8),
        ) {
            for mut frames in [Frames::of_request(BOUND), Frames::of_unidirectional(BOUND)] {
                let _ = read(&mut frames, &bytes, &sizes);
                if let State::Gather(held, _) | State::Header(held) | State::StreamType(held) = &frames.state {
                    prop_assert!(held.len() <= BOUND + LONGEST_HEADER);
                }
            }
        }
    }
}
