//! Server-sent events, decoded as the bytes come in, without copying them twice.
//!
//! The decoder owns one buffer. [`Decoder::push`] appends what the socket gave; [`Decoder::advance`]
//! moves to the next complete event, whose data is then a slice of that buffer:
//!
//! ```text
//!   0          data_len             line                scanned          len
//!   | data so far | (spent bytes) | line under way … | not looked at … |
//! ```
//!
//! Only data in several lines moves at all: each further line is shifted down behind the first, in
//! place, since its `data:` leaves more room than the line feed between them takes. The rules are those
//! of the HTML standard, section 9.2.6: lines end in LF, CRLF or CR; one BOM at the head is dropped;
//! a block without data dispatches nothing; an event that the end of input cuts off is dropped. `id`
//! and `retry` are for reconnecting, which a generation cannot do, and are skipped.

use memchr::{memchr, memchr2};

/// An incremental decoder for one event stream.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes of the current event's data, at the head of the buffer.
    data_len: usize,
    /// Whether a `data` line was seen; an event may have empty data, a block without data is none.
    has_data: bool,
    /// Where the current line begins.
    line: usize,
    /// No line end lies before this.
    scanned: usize,
    before_line: Before,
    /// The `event` field of the current event; kept apart because joining data lines would overwrite it.
    kind: Vec<u8>,
    /// The event that was dispatched last is still in the buffer.
    dispatched: bool,
    limit: usize,
}

/// What came before the line under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    /// Nothing, so a BOM may stand at its head.
    Nothing,
    /// A CR, so an LF at its head belongs to the line before.
    Cr,
    /// A complete line end.
    LineEnd,
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// The `event` field; empty when the event has none.
    pub kind: &'a [u8],
    /// The `data` lines, joined by line feeds. The standard decodes UTF-8 with replacement; whether to
    /// do so is left to the reader of these bytes.
    pub data: &'a [u8],
}

/// An event is larger than the decoder's limit. The stream cannot be read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event in the stream is larger than {limit} bytes")]
pub struct TooLarge {
    /// The limit, in bytes.
    pub limit: usize,
}

impl Decoder {
    /// A decoder for a stream whose events hold at most `limit` bytes: the data so far and the line
    /// under way, together.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            buffer: Vec::new(),
            data_len: 0,
            has_data: false,
            line: 0,
            scanned: 0,
            before_line: Before::Nothing,
            kind: Vec::new(),
            dispatched: false,
            limit,
        }
    }

    /// Appends bytes from the wire. Call [`Decoder::advance`] until it says `false` before the next
    /// push, or the buffer grows.
    pub fn push(&mut self, bytes: &[u8]) {
        self.release();
        // Close the gap of spent bytes, so that the buffer holds one event and one push at most.
        if self.line > self.data_len {
            self.buffer.copy_within(self.line.., self.data_len);
            let spent = self.line - self.data_len;
            self.buffer.truncate(self.buffer.len() - spent);
            self.scanned -= spent;
            self.line = self.data_len;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Moves to the next event. `false` means that more bytes are needed.
    ///
    /// # Errors
    /// The event under way is larger than the limit; every later call says so too.
    pub fn advance(&mut self) -> Result<bool, TooLarge> {
        self.release();
        while let Some(end) = self.line_end() {
            let mut start = self.line;
            self.within_limit(end - start)?;
            self.line = end + 1;
            let before = match self.buffer[end] {
                b'\r' => Before::Cr,
                _ => Before::LineEnd,
            };
            if std::mem::replace(&mut self.before_line, before) == Before::Nothing
                && self.buffer[start..end].starts_with(b"\xEF\xBB\xBF")
            {
                start += 3;
            }
            if start < end {
                self.field(start, end);
            } else if self.has_data {
                self.dispatched = true;
                return Ok(true);
            } else {
                self.kind.clear();
            }
        }
        self.within_limit(self.buffer.len() - self.line)?;
        Ok(false)
    }

    /// The event that [`Decoder::advance`] moved to; empty before the first.
    #[must_use]
    pub fn message(&self) -> Message<'_> {
        if self.dispatched {
            Message {
                kind: &self.kind,
                data: &self.buffer[..self.data_len],
            }
        } else {
            Message {
                kind: &[],
                data: &[],
            }
        }
    }

    /// Forgets the event that was handed out.
    fn release(&mut self) {
        if std::mem::take(&mut self.dispatched) {
            self.data_len = 0;
            self.has_data = false;
            self.kind.clear();
        }
    }

    /// Where the line under way ends, if its end has come.
    fn line_end(&mut self) -> Option<usize> {
        if self.before_line == Before::Cr && self.line < self.buffer.len() {
            self.before_line = Before::LineEnd;
            if self.buffer[self.line] == b'\n' {
                self.line += 1;
            }
        }
        let from = self.scanned.max(self.line);
        let found = memchr2(b'\n', b'\r', &self.buffer[from..]);
        self.scanned = found.map_or(self.buffer.len(), |at| from + at);
        found.map(|at| from + at)
    }

    /// Takes one line that is not empty.
    fn field(&mut self, start: usize, end: usize) {
        let colon = memchr(b':', &self.buffer[start..end]).map_or(end, |at| start + at);
        let mut value = (colon + 1).min(end);
        if value < end && self.buffer[value] == b' ' {
            value += 1;
        }
        match &self.buffer[start..colon] {
            b"data" => {
                if self.has_data {
                    self.buffer[self.data_len] = b'\n';
                    self.data_len += 1;
                }
                self.buffer.copy_within(value..end, self.data_len);
                self.data_len += end - value;
                self.has_data = true;
            }
            b"event" => {
                self.kind.clear();
                self.kind.extend_from_slice(&self.buffer[value..end]);
            }
            _ => {}
        }
    }

    fn within_limit(&self, line: usize) -> Result<(), TooLarge> {
        if self.data_len + line > self.limit {
            return Err(TooLarge { limit: self.limit });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 64 * 1024;

    type Owned = (Vec<u8>, Vec<u8>);

    fn decode_with(limit: usize, pieces: &[&[u8]]) -> (Vec<Owned>, Result<(), TooLarge>) {
        let mut decoder = Decoder::new(limit);
        let mut events = Vec::new();
        for piece in pieces {
            decoder.push(piece);
            loop {
                match decoder.advance() {
                    Ok(true) => {
                        let Message { kind, data } = decoder.message();
                        events.push((kind.to_vec(), data.to_vec()));
                    }
                    Ok(false) => break,
                    Err(error) => return (events, Err(error)),
                }
            }
        }
        (events, Ok(()))
    }

    fn decode(pieces: &[&[u8]]) -> Vec<Owned> {
        let (events, end) = decode_with(LIMIT, pieces);
        end.unwrap();
        events
    }

    fn data(text: &str) -> Vec<String> {
        decode(&[text.as_bytes()])
            .into_iter()
            .map(|(_, data)| String::from_utf8(data).unwrap())
            .collect()
    }

    /// The standard's algorithm over a whole stream at once, written as differently as possible.
    fn oracle(stream: &[u8]) -> Vec<Owned> {
        let stream = stream.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(stream);
        let mut lines = vec![Vec::new()];
        let mut at = 0;
        while at < stream.len() {
            match (stream[at], stream.get(at + 1)) {
                (b'\r', Some(b'\n')) => {
                    lines.push(Vec::new());
                    at += 1;
                }
                (b'\r' | b'\n', _) => lines.push(Vec::new()),
                (byte, _) => lines.last_mut().unwrap().push(byte),
            }
            at += 1;
        }
        lines.pop(); // what no line end follows
        let (mut events, mut kind, mut data) = (Vec::new(), Vec::new(), None::<Vec<u8>>);
        for line in lines {
            if line.is_empty() {
                let kind = std::mem::take(&mut kind);
                if let Some(mut data) = data.take() {
                    data.pop();
                    events.push((kind, data));
                }
                continue;
            }
            let mut halves = line.splitn(2, |b| *b == b':');
            let name = halves.next().unwrap();
            let value = halves.next().unwrap_or_default();
            let value = value.strip_prefix(b" ").unwrap_or(value);
            if name == b"data" {
                let data = data.get_or_insert_default();
                data.extend_from_slice(value);
                data.push(b'\n');
            } else if name == b"event" {
                kind = value.to_vec();
            }
        }
        events
    }

    #[test]
    fn every_line_end_separates_events() {
        assert_eq!(data("data: a\n\ndata: b\n\n"), ["a", "b"]);
        assert_eq!(data("data: a\r\n\r\ndata: b\r\n\r\n"), ["a", "b"]);
        assert_eq!(data("data: a\r\rdata: b\r\r"), ["a", "b"]);
        assert_eq!(data("data: a\r\n\ndata: b\n\r\n"), ["a", "b"]);
    }

    #[test]
    fn one_space_after_the_colon_is_optional() {
        assert_eq!(data("data:a\n\ndata:  a\n\ndata\n\n"), ["a", " a", ""]);
    }

    #[test]
    fn data_lines_are_joined_and_survive_an_event_name_between_them() {
        let events = decode(&[b"data: one\nevent: name\nid: 7\ndata: two\ndata:\ndata: x\n\n"]);
        assert_eq!(events, [(b"name".to_vec(), b"one\ntwo\n\nx".to_vec())]);
    }

    #[test]
    fn comments_and_blocks_without_data_dispatch_nothing() {
        assert!(data(": hello\n\n:\n\nevent: x\n\nid: 1\n\nretry: 5\n\n").is_empty());
        assert_eq!(decode(&[b"event: x\n\ndata: a\n\n"])[0].0, b"");
    }

    #[test]
    fn a_byte_order_mark_is_dropped_at_the_head_only() {
        assert_eq!(data("\u{feff}data: \u{feff}a\n\n"), ["\u{feff}a"]);
        assert_eq!(data("\n\u{feff}data: a\n\ndata: b\n\n"), ["b"]);
    }

    #[test]
    fn an_event_without_its_blank_line_is_not_dispatched() {
        assert!(data("data: a\n").is_empty());
    }

    #[test]
    fn an_event_is_dispatched_at_its_carriage_return_without_waiting_for_more() {
        assert_eq!(decode(&[b"data: a\r\n\r"]).len(), 1);
        assert_eq!(decode(&[b"data: a\r\n\r", b"\ndata: b\n\n"]).len(), 2);
    }

    #[test]
    fn memory_stays_bounded_under_endless_comments() {
        let mut decoder = Decoder::new(100);
        decoder.push(b"data: kept\n");
        for _ in 0..1_000 {
            decoder.push(b": nothing\n");
            assert_eq!(decoder.advance(), Ok(false));
        }
        assert!(decoder.buffer.len() < 100);
        decoder.push(b"\n");
        assert_eq!(decoder.advance(), Ok(true));
        assert_eq!(decoder.message().data, b"kept");
    }

    #[test]
    fn an_event_over_the_limit_is_an_error_for_good() {
        let mut decoder = Decoder::new(10);
        decoder.push(b"data: 12345678901\n\n");
        assert_eq!(decoder.advance(), Err(TooLarge { limit: 10 }));
        assert_eq!(decoder.advance(), Err(TooLarge { limit: 10 }));
        let many = b"data: 123\ndata: 456\ndata: 789\n\n";
        assert!(decode_with(10, &[many]).1.is_err());
        assert_eq!(decode_with(17, &[many]).0.len(), 1);
    }

    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let word = prop::sample::select(vec![
            "data:",
            "data: ",
            "data",
            "event:",
            "event: e",
            "id: 1",
            "retry: 2",
            ":",
            ": c",
            " ",
            "\n",
            "\n",
            "\n\n",
            "\r",
            "\r\n",
            "\r\n\r\n",
            "x",
            "é",
            "\u{feff}",
            "{\"a\":1}",
        ]);
        prop::collection::vec(word, 0..24).prop_map(|words| words.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn every_split_decodes_like_the_whole(stream in stream()) {
            let whole = oracle(&stream);
            prop_assert_eq!(&decode(&[&stream]), &whole);
            for at in 0..=stream.len() {
                let (head, tail) = stream.split_at(at);
                prop_assert_eq!(&decode(&[head, tail]), &whole);
            }
            let bytes: Vec<&[u8]> = stream.chunks(1).collect();
            prop_assert_eq!(&decode(&bytes), &whole);
        }

        #[test]
        fn three_pieces_decode_like_the_whole(stream in stream(), a: usize, b: usize) {
            let (a, b) = (a % (stream.len() + 1), b % (stream.len() + 1));
            let (a, b) = (a.min(b), a.max(b));
            let pieces = [&stream[..a], &stream[a..b], &stream[b..]];
            prop_assert_eq!(decode(&pieces), oracle(&stream));
        }

        #[test]
        fn the_limit_does_not_depend_on_the_split(stream in stream(), limit in 0_usize..24) {
            let whole = decode_with(limit, &[&stream]);
            let bytes: Vec<&[u8]> = stream.chunks(1).collect();
            prop_assert_eq!(decode_with(limit, &bytes), whole);
        }

        #[test]
        fn any_bytes_at_all_are_survived(stream in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(decode(&[&stream]), oracle(&stream));
        }
    }
}
