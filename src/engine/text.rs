//! Token bytes to text: whole characters, and no part of a stop string.
//!
//! Tokens are bytes and may split a character or a stop string anywhere. What cannot be shown yet is
//! held back: an incomplete character at the end, and the longest tail that could still become a
//! stop string.

/// Turns the bytes of one choice's tokens into text.
#[derive(Debug, Default)]
pub(crate) struct TextAssembler {
    held: Vec<u8>,
    stops: Vec<Stop>,
    /// Bytes at the end that a stop string took away: itself, and what followed it in its last token.
    cut: usize,
}

/// Whether the text goes on after a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// It does.
    Goes,
    /// A stop string is complete; everything before it has been released, nothing more will be.
    Stopped,
}

impl TextAssembler {
    /// An assembler that ends at any of `stops`. Empty strings are ignored.
    pub(crate) fn new(stops: &[String]) -> Self {
        Self {
            held: Vec::new(),
            stops: stops
                .iter()
                .filter(|stop| !stop.is_empty())
                .map(|stop| Stop::new(stop.as_bytes()))
                .collect(),
            cut: 0,
        }
    }

    /// How many of the last bytes taken have not been shown: held back, or cut off by a stop string.
    pub(crate) fn unshown(&self) -> usize {
        self.held.len() + self.cut
    }

    /// Takes the bytes of one token and appends to `out` what may be shown now.
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut String) -> Flow {
        if self.held.is_empty()
            && self.stops.is_empty()
            && let Ok(text) = std::str::from_utf8(bytes)
        {
            out.push_str(text);
            return Flow::Goes;
        }
        for (at, &byte) in bytes.iter().enumerate() {
            self.held.push(byte);
            // Of several that end here, the one that began first; it swallows the others.
            let hit = self
                .stops
                .iter_mut()
                .filter_map(|stop| stop.step(byte).then_some(stop.text.len()))
                .max();
            if let Some(len) = hit {
                self.held.truncate(self.held.len() - len);
                self.cut = len + (bytes.len() - at - 1);
                self.finish(out);
                return Flow::Stopped;
            }
        }
        let reserved = self.stops.iter().map(|stop| stop.matched).max();
        let free = self.held.len() - reserved.unwrap_or(0);
        let released = release(&self.held[..free], out);
        self.held.drain(..released);
        Flow::Goes
    }

    /// Releases what is held: the choice has ended. A broken character becomes one U+FFFD.
    pub(crate) fn finish(&mut self, out: &mut String) {
        let released = release(&self.held, out);
        if released < self.held.len() {
            out.push(char::REPLACEMENT_CHARACTER);
        }
        self.held.clear();
    }
}

/// Appends the whole characters at the head of `bytes`, each maximal broken sequence as one U+FFFD
/// (Unicode 16, section 3.9, "maximal subpart"), and returns how many bytes that took. What is left
/// is the beginning of one character.
fn release(bytes: &[u8], out: &mut String) -> usize {
    let mut at = 0;
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        at += chunk.valid().len();
        let broken = chunk.invalid();
        if broken.is_empty() {
            continue;
        }
        let unfinished = at + broken.len() == bytes.len()
            && std::str::from_utf8(broken).is_err_and(|error| error.error_len().is_none());
        if unfinished {
            return at;
        }
        out.push(char::REPLACEMENT_CHARACTER);
        at += broken.len();
    }
    at
}

/// One stop string, matched byte by byte (Knuth, Morris and Pratt). `matched` is also the number of
/// bytes that must be held back on its account.
#[derive(Debug)]
struct Stop {
    text: Box<[u8]>,
    /// For each prefix, the length of its longest proper border.
    border: Box<[usize]>,
    matched: usize,
}

impl Stop {
    fn new(text: &[u8]) -> Self {
        let mut border = vec![0; text.len()];
        let mut len = 0;
        for at in 1..text.len() {
            while len > 0 && text[at] != text[len] {
                len = border[len - 1];
            }
            len += usize::from(text[at] == text[len]);
            border[at] = len;
        }
        Self {
            text: text.into(),
            border: border.into(),
            matched: 0,
        }
    }

    /// Takes one byte; true when the stop string ends with it.
    fn step(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.text[self.matched] != byte {
            self.matched = self.border[self.matched - 1];
        }
        self.matched += usize::from(self.text[self.matched] == byte);
        if self.matched == self.text.len() {
            self.matched = 0;
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn assemble(tokens: &[&[u8]], stops: &[&str]) -> (String, Flow) {
        let stops: Vec<_> = stops.iter().map(ToString::to_string).collect();
        let mut assembler = TextAssembler::new(&stops);
        let mut out = String::new();
        for token in tokens {
            if assembler.push(token, &mut out) == Flow::Stopped {
                return (out, Flow::Stopped);
            }
        }
        assembler.finish(&mut out);
        (out, Flow::Goes)
    }

    /// Cuts `bytes` at the given places, wherever they fall.
    fn cut<'a>(bytes: &'a [u8], places: &[prop::sample::Index]) -> Vec<&'a [u8]> {
        let mut at: Vec<_> = places.iter().map(|p| p.index(bytes.len() + 1)).collect();
        at.sort_unstable();
        let mut tokens = Vec::new();
        let mut from = 0;
        for place in at.into_iter().chain([bytes.len()]) {
            tokens.push(&bytes[from..place]);
            from = place;
        }
        tokens
    }

    #[test]
    fn a_character_split_over_tokens_waits() {
        let mut assembler = TextAssembler::new(&[]);
        let mut out = String::new();
        assembler.push(&"水".as_bytes()[..2], &mut out);
        assert_eq!(out, "");
        assembler.push(&"水".as_bytes()[2..], &mut out);
        assert_eq!(out, "水");
    }

    #[test]
    fn a_broken_character_at_the_end_becomes_one_replacement() {
        assert_eq!(assemble(&[b"a\xf0\x9f\x98"], &[]).0, "a\u{fffd}");
        assert_eq!(assemble(&[b"a\xf0", b"\x9f", b"\x98"], &[]).0, "a\u{fffd}");
    }

    #[test]
    fn a_stop_string_across_tokens_is_never_shown() {
        let hit = (String::from("ab"), Flow::Stopped);
        assert_eq!(assemble(&[b"abS", b"TO", b"Pmore"], &["STOP"]), hit);
        let miss = (String::from("abSTOX"), Flow::Goes);
        assert_eq!(assemble(&[b"abS", b"TO", b"X"], &["STOP"]), miss);
    }

    #[test]
    fn what_is_unshown_is_what_is_held_and_then_what_was_cut() {
        let mut assembler = TextAssembler::new(&["STOP".to_owned()]);
        let mut out = String::new();
        assembler.push(b"abST", &mut out);
        assert_eq!((out.as_str(), assembler.unshown()), ("ab", 2));
        assert_eq!(assembler.push(b"OPmore", &mut out), Flow::Stopped);
        assert_eq!((out.as_str(), assembler.unshown()), ("ab", 8));
    }

    #[test]
    fn of_two_stops_that_end_together_the_longer_wins() {
        let hit = (String::from("x"), Flow::Stopped);
        assert_eq!(assemble(&[b"xabc"], &["bc", "abc"]), hit);
    }

    #[test]
    fn a_stop_that_repeats_its_own_beginning_is_found() {
        let hit = (String::from("aa"), Flow::Stopped);
        assert_eq!(assemble(&[b"aaa", b"ab"], &["aab"]), hit);
    }

    proptest! {
        #[test]
        fn any_split_of_any_bytes_gives_the_lossy_text(
            bytes in prop::collection::vec(any::<u8>(), 0..60),
            places in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let (text, _) = assemble(&cut(&bytes, &places), &[]);
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn any_split_stops_where_the_whole_text_would(
            text in "[ab\u{e9}\u{6c34}]{0,24}",
            stops in prop::collection::vec("[ab\u{e9}]{1,4}", 1..4),
            places in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            // The stop that ends first; of those that end together, the longest.
            let expected = (0..=text.len()).find_map(|end| {
                let head = text.get(..end)?;
                let len = stops.iter().filter(|s| head.ends_with(*s)).map(String::len).max()?;
                Some(head[..head.len() - len].to_owned())
            });
            let refs: Vec<_> = stops.iter().map(String::as_str).collect();
            let (shown, flow) = assemble(&cut(text.as_bytes(), &places), &refs);
            prop_assert_eq!(flow == Flow::Stopped, expected.is_some());
            prop_assert_eq!(shown, expected.unwrap_or(text));
        }

        #[test]
        fn nothing_that_could_begin_a_stop_is_shown_early(
            text in "[ab]{0,24}",
            stop in "[ab]{1,5}",
        ) {
            let mut assembler = TextAssembler::new(std::slice::from_ref(&stop));
            let mut out = String::new();
            for byte in text.as_bytes() {
                if assembler.push(&[*byte], &mut out) == Flow::Stopped {
                    break;
                }
                let tail = (1..stop.len()).any(|n| out.ends_with(&stop[..n]) && text[out.len()..].starts_with(&stop[n..]));
                prop_assert!(!tail, "{:?} shown, {:?} coming", out, stop);
            }
        }
    }
}
