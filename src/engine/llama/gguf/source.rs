//! Bytes in, little-endian words out, with every length checked against the file before it is believed.

use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom};

use super::error::{GgufError, shown};

/// Names, tokens and merges are short; a chat template is the longest text that is kept.
pub(super) const MOST_TEXT_BYTES: u64 = 1 << 20;
/// Metadata as a whole. The largest real vocabularies (250k tokens, 500k merges, an embedded
/// `tokenizer.json`) stay under 64 MiB.
const MOST_METADATA_BYTES: u64 = 256 << 20;

/// A reader that knows where it is and how much there is.
pub(super) struct Source<R> {
    inner: BufReader<R>,
    at: u64,
    len: u64,
    /// What is being read, for messages; set by whoever reads on.
    what: String,
}

impl<R: Read + Seek> Source<R> {
    /// Starts at byte 0 of `reader`.
    pub(super) fn new(reader: R, len: u64) -> Result<Self, GgufError> {
        let mut inner = BufReader::with_capacity(64 << 10, reader);
        inner
            .seek(SeekFrom::Start(0))
            .map_err(|source| GgufError::Read { offset: 0, source })?;
        Ok(Self {
            inner,
            at: 0,
            len,
            what: String::new(),
        })
    }

    pub(super) fn at(&self) -> u64 {
        self.at
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Says what the following reads are for.
    pub(super) fn reading(&mut self, what: impl Into<String>) {
        self.what = what.into();
    }

    /// How many bytes are left before the end of the file or of what metadata may take.
    fn room(&self) -> u64 {
        self.len.saturating_sub(self.at)
    }

    /// Fails unless `bytes` more can be read, within the metadata budget.
    pub(super) fn expect(&self, bytes: u64) -> Result<(), GgufError> {
        if bytes > self.room() {
            return Err(self.truncated(bytes));
        }
        if self.at.saturating_add(bytes) > MOST_METADATA_BYTES {
            return Err(GgufError::TooLarge {
                what: "the number of bytes before the weights".into(),
                found: self.at.saturating_add(bytes),
                limit: MOST_METADATA_BYTES,
            });
        }
        Ok(())
    }

    fn truncated(&self, bytes: u64) -> GgufError {
        GgufError::Truncated {
            what: self.what.clone(),
            offset: self.at,
            bytes,
            file: self.len,
        }
    }

    /// Fills `into`, wherever in the file.
    pub(super) fn fill(&mut self, into: &mut [u8]) -> Result<(), GgufError> {
        let bytes = into.len() as u64;
        if bytes > self.room() {
            return Err(self.truncated(bytes));
        }
        self.inner.read_exact(into).map_err(|source| {
            // The file became shorter than it was said to be.
            if source.kind() == ErrorKind::UnexpectedEof {
                self.truncated(bytes)
            } else {
                GgufError::Read {
                    offset: self.at,
                    source,
                }
            }
        })?;
        self.at += bytes;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        self.expect(N as u64)?;
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn four(&mut self) -> Result<[u8; 4], GgufError> {
        self.array()
    }

    pub(super) fn u8(&mut self) -> Result<u8, GgufError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(super) fn u16(&mut self) -> Result<u16, GgufError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A length and as many bytes of UTF-8, at most `most` of them.
    pub(super) fn text(&mut self, most: u64) -> Result<String, GgufError> {
        let bytes = self.text_len(most)?;
        let offset = self.at;
        let mut text = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
        self.fill(&mut text)?;
        String::from_utf8(text).map_err(|_| GgufError::NotUtf8 {
            what: self.what.clone(),
            offset,
        })
    }

    /// A text that names something: not cut short by a zero byte, as C would.
    pub(super) fn name(&mut self, most: u64) -> Result<String, GgufError> {
        let name = self.text(most)?;
        if name.contains('\0') {
            return Err(GgufError::ZeroInName { name: shown(&name) });
        }
        Ok(name)
    }

    fn text_len(&mut self, most: u64) -> Result<u64, GgufError> {
        let bytes = self.u64()?;
        self.expect(bytes)?;
        if bytes > most {
            return Err(GgufError::TooLarge {
                what: format!("the length of {} in bytes", self.what),
                found: bytes,
                limit: most,
            });
        }
        Ok(bytes)
    }

    /// Passes over a text that nobody here wants, whatever its size.
    pub(super) fn skip_text(&mut self) -> Result<(), GgufError> {
        let bytes = self.text_len(u64::MAX)?;
        self.skip(bytes)
    }

    pub(super) fn skip(&mut self, bytes: u64) -> Result<(), GgufError> {
        self.expect(bytes)?;
        self.seek(self.at + bytes)
    }

    /// Goes to a byte of the file.
    pub(super) fn seek(&mut self, to: u64) -> Result<(), GgufError> {
        // Relative moves keep what is buffered. Both ends are at most 2^63 - 1 in any real file.
        let by =
            i64::try_from(i128::from(to) - i128::from(self.at)).map_err(|_| self.truncated(to))?;
        self.inner
            .seek_relative(by)
            .map_err(|source| GgufError::Read { offset: to, source })?;
        self.at = to;
        Ok(())
    }
}

/// A key as messages show it.
pub(super) fn value_of(key: &str) -> String {
    format!("the value of {}", shown(key))
}
