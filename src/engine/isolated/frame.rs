//! Frames on a socket between the two processes, without the socket.
//!
//! ```text
//!  0        4      5          5 + length
//!  | length | kind | body ... |
//!    u32 LE   u8
//! ```
//!
//! Whoever reads names the longest body that it takes. What a frame's length says is believed only as
//! its bytes arrive: nothing is set aside for a body that never comes.

use std::io;

/// Bytes before the body.
pub(super) const HEADER: usize = 5;

/// How much is read at once.
const READ: usize = 4 * 1024;

/// What a peer wrote that it must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer does not keep to the protocol: {0}")]
pub(super) struct Malformed(pub(super) &'static str);

/// What a frame's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Control: what to load and how (JSON). Down.
    Hello = 1,
    /// Control: how much of the model is there (one byte, percent). Up.
    Progress,
    /// Control: the model is ready (JSON). Up.
    Loaded,
    /// Control: it never will be (text). Up.
    Refused,
    /// Control: asks for gauges. Down.
    Ask,
    /// Control: what moves (JSON). Up.
    Gauges,
    /// Control: end. Down.
    Stop,
    /// The one frame that asks something (JSON). Down.
    Call,
    /// A generation has begun (JSON). Up.
    Started,
    /// Events of one choice (`burst.rs`). Up.
    Burst,
    /// A list of numbers, each a `u32`. Up.
    Tokens,
    /// Byte strings, each behind its length. Up.
    Pieces,
    /// Vectors or scores: usage, width, numbers. Up.
    Numbers,
    /// It failed (JSON). Up.
    Failed,
    /// Where a choice stands in line (`answers.rs`). Up, before its first burst.
    Queued,
    /// What happened to a choice beside its tokens (`answers.rs`). Up.
    Moments,
    /// What the engine is doing (JSON). Up.
    View,
}

impl Kind {
    const ALL: [Self; 17] = [
        Self::Hello,
        Self::Progress,
        Self::Loaded,
        Self::Refused,
        Self::Ask,
        Self::Gauges,
        Self::Stop,
        Self::Call,
        Self::Started,
        Self::Burst,
        Self::Tokens,
        Self::Pieces,
        Self::Numbers,
        Self::Failed,
        Self::Queued,
        Self::Moments,
        Self::View,
    ];

    fn of(byte: u8) -> Option<Self> {
        let at = usize::from(byte).checked_sub(1)?;
        Self::ALL.get(at).copied()
    }
}

/// Appends a frame whose body `write` appends.
///
/// # Errors
/// The body is longer than a length can say.
pub(super) fn put(
    out: &mut Vec<u8>,
    kind: Kind,
    write: impl FnOnce(&mut Vec<u8>),
) -> io::Result<()> {
    let start = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, kind as u8]);
    write(out);
    let length = u32::try_from(out.len() - start - HEADER);
    let length = length.map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    Ok(())
}

/// A frame of its own.
///
/// # Errors
/// As [`put`].
pub(super) fn frame(kind: Kind, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(HEADER + body.len());
    put(&mut out, kind, |out| out.extend_from_slice(body))?;
    Ok(out)
}

/// A frame whose body is JSON.
///
/// # Errors
/// As [`put`]; or the value has no JSON.
pub(super) fn json(kind: Kind, value: &impl serde::Serialize) -> io::Result<Vec<u8>> {
    frame(kind, &serde_json::to_vec(value)?)
}

/// Bytes that came in, cut into frames.
#[derive(Debug)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    /// Where the first frame that was not skipped begins.
    from: usize,
    /// Longest body.
    most: usize,
}

impl Inbox {
    /// An inbox for bodies of at most `most` bytes.
    pub(super) fn new(most: usize) -> Self {
        Self {
            bytes: Vec::new(),
            from: 0,
            most,
        }
    }

    /// Lets `read` put more bytes in; what it returns.
    ///
    /// # Errors
    /// Those of `read`.
    pub(super) fn fill(
        &mut self,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        self.bytes.drain(..self.from);
        self.from = 0;
        let held = self.bytes.len();
        // Twice what is there: a large body takes few reads, and never more than it has sent.
        self.bytes.resize(held + held.max(READ), 0);
        let count = read(&mut self.bytes[held..]);
        let kept = count.as_ref().map_or(0, |&count| count);
        self.bytes.truncate(held + kept);
        count
    }

    /// The first frame, if it is whole.
    ///
    /// # Errors
    /// It is of no known kind, or too long.
    pub(super) fn peek(&self) -> Result<Option<(Kind, &[u8])>, Malformed> {
        let Some((header, rest)) = self.bytes[self.from..].split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [a, b, c, d, kind] = *header;
        let kind = Kind::of(kind).ok_or(Malformed("an unknown kind of frame"))?;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > self.most {
            return Err(Malformed("a frame that is too long"));
        }
        Ok(rest.get(..length).map(|body| (kind, body)))
    }

    /// Forgets the first frame.
    pub(super) fn skip(&mut self) {
        if let Ok(Some((_, body))) = self.peek() {
            self.from += HEADER + body.len();
        }
    }
}

/// A body that is read from its front. Never panics, whatever it holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Body<'a>(pub(super) &'a [u8]);

impl<'a> Body<'a> {
    pub(super) fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(Malformed("a cut body"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed("a cut body"))?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn f32(&mut self) -> Result<f32, Malformed> {
        Ok(f32::from_le_bytes(self.array()?))
    }

    /// Bytes behind their length.
    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u32()?;
        self.take(length as usize)
    }
}

/// Appends bytes behind their length.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn feed(inbox: &mut Inbox, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let read = |space: &mut [u8]| {
                let count = space.len().min(bytes.len());
                space[..count].copy_from_slice(&bytes[..count]);
                Ok(count)
            };
            let count = inbox.fill(read).unwrap();
            bytes = &bytes[count..];
        }
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_they_are_cut(
            frames in proptest::collection::vec((0..17_usize, proptest::collection::vec(any::<u8>(), 0..9000)), 0..6),
            cut in 1..5000_usize,
        ) {
            let mut wire = Vec::new();
            for (kind, body) in &frames {
                put(&mut wire, Kind::ALL[*kind], |out| out.extend_from_slice(body)).unwrap();
            }
            let mut inbox = Inbox::new(9000);
            let mut seen = Vec::new();
            for chunk in wire.chunks(cut) {
                feed(&mut inbox, chunk);
                while let Some((kind, body)) = inbox.peek().unwrap() {
                    seen.push((kind as usize - 1, body.to_vec()));
                    inbox.skip();
                }
            }
            prop_assert_eq!(seen, frames);
        }

        #[test]
        fn garbage_is_refused_or_waits_for_more(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut inbox = Inbox::new(64);
            feed(&mut inbox, &bytes);
            for _ in 0..bytes.len() {
                match inbox.peek() {
                    Ok(Some((_, body))) => prop_assert!(body.len() <= 64),
                    Ok(None) | Err(_) => break,
                }
                inbox.skip();
            }
        }
    }

    #[test]
    fn a_length_alone_takes_no_memory() {
        let mut inbox = Inbox::new(1 << 30);
        let mut head = (1_u32 << 30).to_le_bytes().to_vec();
        head.push(Kind::Burst as u8);
        feed(&mut inbox, &head);
        assert_eq!(inbox.peek(), Ok(None));
        assert!(inbox.bytes.capacity() < 64 * 1024);
        let mut strict = Inbox::new(100);
        feed(&mut strict, &head);
        assert!(strict.peek().is_err());
    }
}
