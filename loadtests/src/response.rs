//! An HTTP/1.1 response, read from whatever pieces the socket gives, without a copy of its body.
//!
//! Only what a load generator needs: status, whether the connection can be used again, and the body's
//! bytes by chunked coding, by length or until the connection closes (RFC 9112, sections 6 and 7).

use memchr::memmem;

/// The largest response head that is read.
const HEAD_LIMIT: usize = 64 * 1024;

/// A response under way.
pub(crate) struct Response {
    head: Vec<u8>,
    state: State,
    /// The status; 0 until the head is complete.
    pub(crate) status: u16,
    /// The connection may carry another request.
    pub(crate) keep_alive: bool,
}

enum State {
    Head,
    /// In a chunk's size line: its value so far, and whether its digits have ended.
    Size {
        value: u64,
        digits_ended: bool,
    },
    Data {
        left: u64,
    },
    /// Between a chunk's data and its line feed.
    DataEnd,
    /// In the lines after the last chunk; whether the current one has bytes.
    Trailer {
        bytes: bool,
    },
    Length {
        left: u64,
    },
    UntilClose,
    Done,
}

/// What comes out of a body.
pub(crate) enum Piece<'a> {
    /// Bytes of the body.
    Bytes(&'a [u8]),
    /// A chunk ends here.
    ChunkEnd,
}

impl Default for Response {
    fn default() -> Self {
        Self {
            head: Vec::new(),
            state: State::Head,
            status: 0,
            keep_alive: false,
        }
    }
}

impl Response {
    /// Takes the next bytes from the socket and hands the status and the body's pieces to `sink`.
    ///
    /// # Errors
    /// What came is not HTTP, or its framing is broken.
    pub(crate) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut sink: impl FnMut(u16, Piece<'_>),
    ) -> Result<(), &'static str> {
        while let Some((&first, rest)) = bytes.split_first() {
            match &mut self.state {
                State::Head => bytes = self.feed_head(bytes)?,
                State::Size {
                    value,
                    digits_ended,
                } => {
                    match (first, *digits_ended) {
                        (b'\n', _) => {
                            self.state = match *value {
                                0 => State::Trailer { bytes: false },
                                left => State::Data { left },
                            };
                        }
                        (_, true) => {}
                        (digit, false) => match char::from(digit).to_digit(16) {
                            Some(digit) if *value < 1 << 48 => {
                                *value = *value * 16 + u64::from(digit);
                            }
                            Some(_) => return Err("a chunk is too large"),
                            None if matches!(digit, b';' | b'\r' | b' ') => *digits_ended = true,
                            None => return Err("a chunk's size is no number"),
                        },
                    }
                    bytes = rest;
                }
                State::Data { left } => {
                    let (data, rest) = split_at_most(bytes, *left);
                    *left -= data.len() as u64;
                    let ended = *left == 0;
                    sink(self.status, Piece::Bytes(data));
                    if ended {
                        sink(self.status, Piece::ChunkEnd);
                        self.state = State::DataEnd;
                    }
                    bytes = rest;
                }
                State::DataEnd => {
                    if first == b'\n' {
                        self.state = State::Size {
                            value: 0,
                            digits_ended: false,
                        };
                    } else if first != b'\r' {
                        return Err("a chunk is longer than its size");
                    }
                    bytes = rest;
                }
                State::Trailer { bytes: some } => {
                    match (first, *some) {
                        (b'\n', false) => self.state = State::Done,
                        (b'\n', true) => *some = false,
                        (b'\r', _) => {}
                        _ => *some = true,
                    }
                    bytes = rest;
                }
                State::Length { left } => {
                    let (data, rest) = split_at_most(bytes, *left);
                    *left -= data.len() as u64;
                    if *left == 0 {
                        self.state = State::Done;
                    }
                    sink(self.status, Piece::Bytes(data));
                    bytes = rest;
                }
                State::UntilClose => {
                    sink(self.status, Piece::Bytes(bytes));
                    bytes = &[];
                }
                State::Done => return Err("bytes follow the response"),
            }
        }
        Ok(())
    }

    /// The body is complete.
    pub(crate) fn done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// The connection closed: whether that is a good end.
    pub(crate) fn close(&mut self) -> bool {
        let good = matches!(self.state, State::UntilClose | State::Done);
        self.state = State::Done;
        good
    }

    /// A header of the complete head.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut parsed = httparse::Response::new(&mut headers);
        parsed.parse(&self.head).ok()?;
        let mut all = parsed.headers.iter();
        let header = all.find(|header| header.name.eq_ignore_ascii_case(name))?;
        Some(String::from_utf8_lossy(header.value).into_owned())
    }

    /// Gathers the head; returns the bytes behind it.
    fn feed_head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], &'static str> {
        let before = self.head.len();
        self.head.extend_from_slice(bytes);
        let from = before.saturating_sub(3);
        let Some(end) = memmem::find(&self.head[from..], b"\r\n\r\n") else {
            return if self.head.len() > HEAD_LIMIT {
                Err("the response's head is too large")
            } else {
                Ok(&[])
            };
        };
        let end = from + end + 4;
        self.head.truncate(end);
        self.parse_head()?;
        Ok(&bytes[end - before..])
    }

    fn parse_head(&mut self) -> Result<(), &'static str> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut parsed = httparse::Response::new(&mut headers);
        parsed
            .parse(&self.head)
            .map_err(|_| "the response is not HTTP")?;
        self.status = parsed.code.unwrap_or_default();
        self.keep_alive = parsed.version == Some(1);
        self.state = State::UntilClose;
        for header in parsed.headers.iter() {
            let value = String::from_utf8_lossy(header.value).to_ascii_lowercase();
            if header.name.eq_ignore_ascii_case("connection") && value.contains("close") {
                self.keep_alive = false;
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                self.state = State::Size {
                    value: 0,
                    digits_ended: false,
                };
            } else if header.name.eq_ignore_ascii_case("content-length") {
                let left = value
                    .trim()
                    .parse()
                    .map_err(|_| "the content-length is no number")?;
                self.state = if left == 0 {
                    State::Done
                } else {
                    State::Length { left }
                };
            }
        }
        Ok(())
    }
}

fn split_at_most(bytes: &[u8], most: u64) -> (&[u8], &[u8]) {
    bytes.split_at(usize::try_from(most).map_or(bytes.len(), |most| most.min(bytes.len())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Body, chunks, whether it ended well.
    fn read(pieces: &[&[u8]]) -> Result<(Response, Vec<u8>, usize), &'static str> {
        let mut response = Response::default();
        let (mut body, mut chunks) = (Vec::new(), 0);
        for piece in pieces {
            response.feed(piece, |_, piece| match piece {
                Piece::Bytes(bytes) => body.extend_from_slice(bytes),
                Piece::ChunkEnd => chunks += 1,
            })?;
        }
        Ok((response, body, chunks))
    }

    const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
        5\r\nhello\r\n1A;ext=1\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\nx: y\r\n\r\n";

    proptest! {
        #[test]
        fn a_chunked_body_reads_the_same_in_any_pieces(a in 0..CHUNKED.len(), b in 0..CHUNKED.len()) {
            let (a, b) = (a.min(b), a.max(b));
            let (response, body, chunks) = read(&[&CHUNKED[..a], &CHUNKED[a..b], &CHUNKED[b..]]).unwrap();
            prop_assert!(response.done() && response.keep_alive);
            prop_assert_eq!(response.status, 200);
            prop_assert_eq!(body, b"helloabcdefghijklmnopqrstuvwxyz");
            prop_assert_eq!(chunks, 2);
        }

        #[test]
        fn any_bytes_at_all_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = read(&[&CHUNKED[..47], &bytes]);
            let _ = read(&[&bytes]);
        }
    }

    #[test]
    fn a_body_may_have_a_length_or_end_with_the_connection() {
        let length = b"HTTP/1.1 503 x\r\nConnection: Close\r\nContent-Length: 2\r\n\r\nno";
        let (response, body, _) = read(&[length]).unwrap();
        assert_eq!((response.status, &body[..]), (503, &b"no"[..]));
        assert!(response.done() && !response.keep_alive);
        assert_eq!(response.header("connection").as_deref(), Some("Close"));
        assert_eq!(response.header("retry-after"), None);

        let (mut response, body, _) = read(&[b"HTTP/1.0 200 OK\r\n\r\nab"]).unwrap();
        assert_eq!(body, b"ab");
        assert!(!response.done() && !response.keep_alive && response.close());
    }

    #[test]
    fn a_body_that_is_cut_off_is_no_good_end() {
        let (mut response, _, _) = read(&[&CHUNKED[..60]]).unwrap();
        assert!(!response.done() && !response.close());
    }

    #[test]
    fn broken_chunks_are_errors() {
        let head: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        for body in [
            &b"xyz\r\n"[..],
            b"1\r\nabc",
            b"fffffffffffffffff\r\n",
            b"0\r\n\r\nmore",
        ] {
            assert!(read(&[head, body]).is_err(), "{body:?}");
        }
    }
}
