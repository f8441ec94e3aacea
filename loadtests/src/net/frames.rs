//! Frames as HTTP/3 and `sluice/1` have them: a type and a length as QUIC's variable-length integers (RFC
//! 9000, section 16), then so many bytes. In both, type 0 is data.

use super::Fault;

/// Bytes of a body.
pub(crate) const DATA: u64 = 0;

/// Most bytes of a frame that is not data: nothing that a server says is near it.
const MOST: u64 = 64 * 1024;

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// Bytes of a body, not necessarily a whole frame of them.
    Data(&'a [u8]),
    /// A whole frame of another type.
    Frame(u64, &'a [u8]),
}

/// Finds frames in a stream of bytes, in whatever pieces they come.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    /// The head or the payload of a frame that is not all there.
    held: Vec<u8>,
    state: State,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Head,
    Data {
        left: u64,
    },
    Payload {
        kind: u64,
        length: usize,
    },
}

impl Scanner {
    /// Takes bytes and hands what they hold to `sink`.
    ///
    /// # Errors
    /// A frame is too long, or `sink` says so.
    pub(crate) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut sink: impl FnMut(Piece<'_>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        loop {
            match self.state {
                State::Head => {
                    let Some((kind, length)) = self.head(&mut bytes) else {
                        return Ok(());
                    };
                    self.state = match usize::try_from(length) {
                        _ if kind == DATA => State::Data { left: length },
                        Ok(length) if length as u64 <= MOST => State::Payload { kind, length },
                        _ => {
                            return Err(Fault::Broken(format!(
                                "a frame of type {kind} has {length} bytes"
                            )));
                        }
                    };
                }
                State::Data { left: 0 } => self.state = State::Head,
                State::Data { left } => {
                    if bytes.is_empty() {
                        return Ok(());
                    }
                    let some = usize::try_from(left).map_or(bytes.len(), |n| n.min(bytes.len()));
                    let (piece, rest) = bytes.split_at(some);
                    bytes = rest;
                    self.state = State::Data {
                        left: left - some as u64,
                    };
                    sink(Piece::Data(piece))?;
                }
                State::Payload { kind, length } => {
                    if self.held.is_empty() && bytes.len() >= length {
                        let (payload, rest) = bytes.split_at(length);
                        bytes = rest;
                        sink(Piece::Frame(kind, payload))?;
                    } else {
                        let (piece, rest) =
                            bytes.split_at(bytes.len().min(length - self.held.len()));
                        bytes = rest;
                        self.held.extend_from_slice(piece);
                        if self.held.len() < length {
                            return Ok(());
                        }
                        sink(Piece::Frame(kind, &self.held))?;
                        self.held.clear();
                    }
                    self.state = State::Head;
                }
            }
        }
    }

    /// Whether no frame has begun without having ended.
    pub(crate) fn is_between(&self) -> bool {
        self.held.is_empty() && matches!(self.state, State::Head | State::Data { left: 0 })
    }

    /// Type and length; takes all bytes if they are not all there.
    fn head(&mut self, bytes: &mut &[u8]) -> Option<(u64, u64)> {
        if self.held.is_empty() {
            let mut rest = *bytes;
            if let Some(kind) = varint(&mut rest)
                && let Some(length) = varint(&mut rest)
            {
                *bytes = rest;
                return Some((kind, length));
            }
        }
        while let Some((&byte, rest)) = bytes.split_first() {
            *bytes = rest;
            self.held.push(byte);
            let mut head = self.held.as_slice();
            if let Some(kind) = varint(&mut head)
                && let Some(length) = varint(&mut head)
            {
                self.held.clear();
                return Some((kind, length));
            }
        }
        None
    }
}

/// Reads a number off the front.
pub(crate) fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let length = 1 << (bytes.first()? >> 6);
    let (number, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    let value = number
        .iter()
        .fold(0, |value, byte| value << 8 | u64::from(*byte));
    // Without the two bits that told the length.
    Some(value & (u64::MAX >> (66 - 8 * length)))
}

/// Writes a number in its shortest form of one, two or four bytes.
pub(crate) fn put_varint(out: &mut Vec<u8>, value: u32) {
    match value {
        0..0x40 => out.extend(&value.to_be_bytes()[3..]),
        0x40..0x4000 => out.extend(&(value | 0x4000).to_be_bytes()[2..]),
        _ => out.extend((value | 0x8000_0000).to_be_bytes()),
    }
}

/// A whole frame.
pub(crate) fn put_frame(out: &mut Vec<u8>, kind: u32, payload: &[u8]) {
    put_varint(out, kind);
    put_varint(out, u32::try_from(payload.len()).unwrap_or(u32::MAX));
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Data, other frames, and whether all are whole.
    type Found = (Vec<u8>, Vec<(u64, Vec<u8>)>, bool);

    fn scan(pieces: &[&[u8]]) -> Result<Found, Fault> {
        let (mut data, mut frames) = (Vec::new(), Vec::new());
        let mut scanner = Scanner::default();
        for piece in pieces {
            scanner.feed(piece, |piece| {
                match piece {
                    Piece::Data(bytes) => data.extend_from_slice(bytes),
                    Piece::Frame(kind, payload) => frames.push((kind, payload.to_vec())),
                }
                Ok(())
            })?;
        }
        Ok((data, frames, scanner.is_between()))
    }

    fn sample() -> Vec<u8> {
        let mut bytes = Vec::new();
        put_frame(&mut bytes, 3, b"head");
        put_frame(&mut bytes, 0, &[7; 100]);
        put_frame(&mut bytes, 0, &[]);
        put_frame(&mut bytes, 0x4242, &[8; 70]);
        put_frame(&mut bytes, 4, &[]);
        bytes
    }

    #[test]
    fn numbers_of_every_length_are_read_as_the_rfc_has_them() {
        // RFC 9000, appendix A.1.
        for (bytes, value) in [
            (
                &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c][..],
                151_288_809_941_952_652,
            ),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
            (&[0x40, 0x25], 37),
        ] {
            let mut rest = bytes;
            assert_eq!((varint(&mut rest), rest.len()), (Some(value), 0));
            let mut cut = &bytes[..bytes.len() - 1];
            assert_eq!(varint(&mut cut), None);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(value in 0..1_u32 << 30) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let mut rest = bytes.as_slice();
            prop_assert_eq!(varint(&mut rest), Some(u64::from(value)));
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn frames_are_found_in_any_pieces(a in 0..190_usize, b in 0..190_usize) {
            let bytes = sample();
            let (a, b) = (a.min(b).min(bytes.len()), a.max(b).min(bytes.len()));
            let (data, frames, between) = scan(&[&bytes[..a], &bytes[a..b], &bytes[b..]]).unwrap();
            prop_assert_eq!(data, vec![7; 100]);
            let expected = [(3, b"head".to_vec()), (0x4242, vec![8; 70]), (4, Vec::new())];
            prop_assert_eq!(frames, expected);
            prop_assert!(between);
        }

        #[test]
        fn any_bytes_at_all_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = scan(&[&bytes]);
        }
    }

    #[test]
    fn a_frame_that_is_not_whole_is_noticed() {
        let bytes = sample();
        for end in [1, 3, 20, bytes.len() - 1] {
            let (_, _, between) = scan(&[&bytes[..end]]).unwrap();
            assert!(!between, "{end}");
        }
    }

    #[test]
    fn a_frame_of_absurd_length_is_refused() {
        assert!(scan(&[&[3, 0xc0, 0, 0, 1, 0, 0, 0, 0]]).is_err());
    }
}
