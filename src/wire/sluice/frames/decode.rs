//! Bytes to frames, in whatever pieces they come.

use super::frame::{Frame, Kind, MAX_PAYLOAD};
use super::varint;

/// Most bytes before a payload: two varints.
const HEADER: usize = 16;

/// Memory that is kept from one held payload to the next.
const KEPT: usize = 4 * 1024;

/// Finds the frames in a stream of bytes.
///
/// A frame that lies whole in what it is fed is borrowed from there; one that came in pieces is put
/// together in a buffer that grows with what has come, never beyond the bound on a payload. The bytes of
/// DATA are given out as they come, and unknown frames, however long, are passed over: neither is held.
#[derive(Debug)]
pub struct Decoder {
    most: usize,
    state: State,
    header: [u8; HEADER],
    header_len: usize,
    held: Vec<u8>,
    is_over: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// In the two varints before a payload, or before them.
    Header,
    /// In a payload that must be whole to be read.
    Payload { kind: Kind, length: usize },
    /// In the bytes of DATA.
    Data { left: usize },
    /// In a frame that nobody here knows.
    Skip { left: u64 },
    /// `held` was given out.
    Given,
    /// It cannot go on.
    Broken(FrameError),
}

/// What is wrong with a stream of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A frame is longer than its type may be.
    #[error("a {} frame of {length} bytes: {most} are the most", kind.name())]
    TooLong {
        /// Its type.
        kind: Kind,
        /// The length that it says it has.
        length: u64,
        /// The most that it may have.
        most: usize,
    },
    /// A payload is not what its type says.
    #[error("the payload of a {} frame is not well formed", .0.name())]
    Malformed(Kind),
    /// Something follows the last frame.
    #[error("a {} frame comes after the end", .0.name())]
    AfterEnd(Kind),
    /// The stream ended within a frame, or before END or ERROR.
    #[error("the stream broke off")]
    Truncated,
}

/// The type and the length of the frame that `bytes` begins with, its header included; no type if nobody
/// here knows it. `None` if it is not all there. For who has frames in memory and looks for their bounds.
#[must_use]
pub fn first(bytes: &[u8]) -> Option<(Option<Kind>, usize)> {
    let mut rest = bytes;
    let number = varint::read(&mut rest)?;
    let length = usize::try_from(varint::read(&mut rest)?).ok()?;
    rest.split_at_checked(length)
        .map(|(_, after)| (Kind::of(number), bytes.len() - after.len()))
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// At the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::with_most(MAX_PAYLOAD)
    }

    /// The same, for frames of at most `most` bytes, if that is less than [`MAX_PAYLOAD`]. DATA, which
    /// is never held, may be of [`MAX_PAYLOAD`] all the same.
    #[must_use]
    pub fn with_most(most: usize) -> Self {
        Self {
            most: most.min(MAX_PAYLOAD),
            state: State::Header,
            header: [0; HEADER],
            header_len: 0,
            held: Vec::new(),
            is_over: false,
        }
    }

    /// The next frame, or a piece of DATA. Takes what it has read off the front of `input`; `None` means
    /// that it took all and needs more.
    ///
    /// # Errors
    /// The stream is not well formed. It stays so: every further call says the same.
    pub fn next<'d, 'i: 'd>(
        &'d mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<Frame<'d>>, FrameError> {
        loop {
            match self.state {
                State::Broken(error) => return Err(error),
                State::Given => {
                    self.held.clear();
                    self.held.shrink_to(KEPT);
                    self.state = State::Header;
                }
                State::Header => {
                    let Some((number, length)) = self.take_header(input) else {
                        return Ok(None);
                    };
                    self.state = self.begin(number, length);
                }
                State::Skip { left } => {
                    let some = usize::try_from(left).map_or(input.len(), |n| n.min(input.len()));
                    *input = &input[some..];
                    match left - some as u64 {
                        0 => self.state = State::Header,
                        left => {
                            self.state = State::Skip { left };
                            return Ok(None);
                        }
                    }
                }
                State::Data { left: 0 } => self.state = State::Header,
                State::Data { left } => {
                    let (piece, rest) = input.split_at(left.min(input.len()));
                    *input = rest;
                    self.state = State::Data {
                        left: left - piece.len(),
                    };
                    return Ok((!piece.is_empty()).then_some(Frame::Data(piece)));
                }
                State::Payload { kind, length }
                    if self.held.is_empty() && input.len() >= length =>
                {
                    let (payload, rest) = input.split_at(length);
                    *input = rest;
                    self.state = State::Header;
                    return self.give(kind, payload);
                }
                State::Payload { kind, length } => {
                    let (piece, rest) = input.split_at(input.len().min(length - self.held.len()));
                    *input = rest;
                    self.hold(piece, length);
                    if self.held.len() < length {
                        return Ok(None);
                    }
                    self.state = State::Given;
                    self.is_over |= kind.is_last();
                    let frame = Frame::parse(kind, &self.held);
                    if frame.is_none() {
                        self.state = State::Broken(FrameError::Malformed(kind));
                    }
                    return frame.map(Some).ok_or(FrameError::Malformed(kind));
                }
            }
        }
    }

    /// Whether the stream may end here as far as frames go: not within one.
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        let begun = matches!(
            self.state,
            State::Payload { .. } | State::Skip { .. } | State::Broken(_)
        );
        let in_data = matches!(self.state, State::Data { left } if left > 0);
        !begun && !in_data && self.header_len == 0
    }

    /// What to make of the end of an answer's stream.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] unless the last frame was END or ERROR, and whole.
    pub fn finish(&self) -> Result<(), FrameError> {
        if self.is_over && self.is_between_frames() {
            Ok(())
        } else {
            Err(FrameError::Truncated)
        }
    }

    /// Bytes that it holds on the heap.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.held.capacity()
    }

    fn take_header(&mut self, input: &mut &[u8]) -> Option<(u64, u64)> {
        while let Some((&byte, rest)) = input.split_first() {
            *input = rest;
            self.header[self.header_len] = byte;
            self.header_len += 1;
            let mut header = &self.header[..self.header_len];
            if let Some(number) = varint::read(&mut header)
                && let Some(length) = varint::read(&mut header)
            {
                self.header_len = 0;
                return Some((number, length));
            }
        }
        None
    }

    fn begin(&self, number: u64, length: u64) -> State {
        let Some(kind) = Kind::of(number) else {
            return State::Skip { left: length };
        };
        if self.is_over {
            return State::Broken(FrameError::AfterEnd(kind));
        }
        let most = if kind == Kind::Data {
            MAX_PAYLOAD
        } else {
            self.most
        };
        match usize::try_from(length) {
            Ok(left) if left <= most && kind == Kind::Data => State::Data { left },
            Ok(length) if length <= most => State::Payload { kind, length },
            _ => State::Broken(FrameError::TooLong { kind, length, most }),
        }
    }

    fn give<'a>(&mut self, kind: Kind, payload: &'a [u8]) -> Result<Option<Frame<'a>>, FrameError> {
        self.is_over |= kind.is_last();
        let frame = Frame::parse(kind, payload);
        if frame.is_none() {
            self.state = State::Broken(FrameError::Malformed(kind));
        }
        frame.map(Some).ok_or(FrameError::Malformed(kind))
    }

    /// Grows with what has come, twofold but never beyond `length`: who announces much and sends little
    /// costs little.
    fn hold(&mut self, piece: &[u8], length: usize) {
        let needed = self.held.len() + piece.len();
        if needed > self.held.capacity() {
            let wanted = needed.max(self.held.capacity() * 2).min(length);
            self.held.reserve_exact(wanted - self.held.len());
        }
        self.held.extend_from_slice(piece);
    }
}
