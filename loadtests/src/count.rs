//! Counts tokens in a streamed body without parsing it.
//!
//! Every dialect but bare text is lines, and a token's line has a text member that is not empty. Its
//! place is the same in nearly every line of a stream, so one comparison at the last place finds it.

use memchr::{memchr, memmem};

/// In which form the answer is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Dialect {
    /// Server-sent events, one chunk object each.
    Sse,
    /// Bare text; an event is one HTTP chunk, which holds all tokens that were ready together.
    Text,
    /// One JSON object a line.
    Ndjson,
    /// JSON-RPC notifications at /rpc.
    Rpc,
}

/// Which method is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Method {
    /// A conversation.
    Chat,
    /// A text to go on with.
    Completions,
}

/// Counts the tokens of one answer.
pub(crate) struct Counter {
    dialect: Dialect,
    /// What comes before a token's text, up to and with its colon.
    member: &'static [u8],
    /// Where the member stood in the last token's line.
    place: usize,
    /// The head of a line whose end has not come.
    carry: Vec<u8>,
    /// Bytes in the current chunk, for bare text.
    chunk: usize,
    /// Token events so far.
    pub(crate) tokens: u64,
    /// The dialect's own good end has come.
    pub(crate) finished: bool,
    /// The failure that the server reported.
    pub(crate) failure: Option<String>,
}

impl Counter {
    /// A counter for one answer.
    pub(crate) fn new(dialect: Dialect, method: Method) -> Self {
        Self {
            dialect,
            member: match (dialect, method) {
                (Dialect::Sse | Dialect::Ndjson, Method::Chat) => b"\"content\":",
                _ => b"\"text\":",
            },
            place: 0,
            carry: Vec::new(),
            chunk: 0,
            tokens: 0,
            // Bare text has no end of its own but the body's.
            finished: dialect == Dialect::Text,
            failure: None,
        }
    }

    /// Takes bytes of the body.
    pub(crate) fn bytes(&mut self, mut bytes: &[u8]) {
        if self.dialect == Dialect::Text {
            self.chunk += bytes.len();
            return;
        }
        while let Some(end) = memchr(b'\n', bytes) {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            if self.carry.is_empty() {
                self.line(line);
            } else {
                let mut whole = std::mem::take(&mut self.carry);
                whole.extend_from_slice(line);
                self.line(&whole);
                whole.clear();
                self.carry = whole;
            }
            bytes = rest;
        }
        self.carry.extend_from_slice(bytes);
    }

    /// A chunk of the body ends here.
    pub(crate) fn chunk_end(&mut self) {
        if std::mem::take(&mut self.chunk) > 0 && self.dialect == Dialect::Text {
            self.tokens += 1;
        }
    }

    fn line(&mut self, line: &[u8]) {
        if line.len() < 2 {
            return;
        }
        if self.is_token(line) {
            self.tokens += 1;
        } else {
            self.other(line);
        }
    }

    fn is_token(&mut self, line: &[u8]) -> bool {
        let here = line
            .get(self.place..)
            .is_some_and(|rest| rest.starts_with(self.member));
        if !here {
            match memmem::find(line, self.member) {
                Some(place) => self.place = place,
                None => return false,
            }
        }
        let value = &line[self.place + self.member.len()..];
        let value = value.strip_prefix(b" ").unwrap_or(value);
        value.first() == Some(&b'"')
            && value.get(1).is_some_and(|byte| *byte != b'"')
            // The answer that ends a JSON-RPC stream repeats the text.
            && (self.dialect != Dialect::Rpc || has(line, b"\"method\""))
    }

    /// A line without text: the role, the end, a failure, a comment, or what is of no interest here.
    fn other(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let json = match self.dialect {
            Dialect::Sse => match line.strip_prefix(b"data:") {
                Some(data) => data.trim_ascii(),
                None => return,
            },
            _ => line,
        };
        if has(json, b"\"error\":") && !has(json, b"\"error\":null") {
            self.failure = Some(message(json));
        }
        self.finished |= match self.dialect {
            Dialect::Sse => json == b"[DONE]",
            Dialect::Ndjson => has(json, b"\"finish_reason\":\""),
            Dialect::Rpc => has(json, b"\"result\":"),
            Dialect::Text => true,
        };
    }
}

fn has(line: &[u8], needle: &[u8]) -> bool {
    memmem::find(line, needle).is_some()
}

/// The server's words in an error object.
pub(crate) fn message(json: &[u8]) -> String {
    let parsed = serde_json::from_slice::<serde_json::Value>(json).ok();
    parsed
        .as_ref()
        .and_then(|value| value.pointer("/error/message")?.as_str())
        .unwrap_or("no message")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SSE: &str = concat!(
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n",
        ": waiting\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\": \"\\\"content\\\":\\\"x\"}}]}\r\n\r\n",
        "data: {\"id\":\"longer\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"c\"}}],\"error\":null}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":null},\"finish_reason\":\"stop\"}]}\n\n",
        "data: [DONE]\n\n",
    );

    fn count(dialect: Dialect, method: Method, pieces: &[&str]) -> Counter {
        let mut counter = Counter::new(dialect, method);
        for piece in pieces {
            counter.bytes(piece.as_bytes());
            counter.chunk_end();
        }
        counter
    }

    proptest! {
        #[test]
        fn tokens_are_counted_the_same_in_any_pieces(a in 0..SSE.len(), b in 0..SSE.len()) {
            let (a, b) = (a.min(b), a.max(b));
            let counter = count(Dialect::Sse, Method::Chat, &[&SSE[..a], &SSE[a..b], &SSE[b..]]);
            prop_assert_eq!(counter.tokens, 3);
            prop_assert!(counter.finished);
            prop_assert_eq!(counter.failure, None);
        }
    }

    #[test]
    fn a_stream_without_its_end_is_not_finished() {
        let counter = count(
            Dialect::Sse,
            Method::Chat,
            &[SSE.strip_suffix("data: [DONE]\n\n").unwrap()],
        );
        assert!(!counter.finished);
    }

    #[test]
    fn a_reported_failure_is_kept() {
        let line = "data: {\"error\":{\"message\":\"It broke.\",\"code\":null}}\n\n";
        let counter = count(Dialect::Sse, Method::Chat, &[line, "data: [DONE]\n\n"]);
        assert_eq!(counter.failure.as_deref(), Some("It broke."));
    }

    #[test]
    fn completions_have_their_text_elsewhere() {
        let line = "{\"choices\":[{\"index\":0,\"text\":\"a\",\"finish_reason\":null}]}\n";
        let end = "{\"choices\":[{\"index\":0,\"text\":\"\",\"finish_reason\":\"length\"}]}\n";
        let counter = count(Dialect::Ndjson, Method::Completions, &[line, line, end]);
        assert_eq!((counter.tokens, counter.finished), (2, true));
    }

    #[test]
    fn the_answer_of_a_call_is_no_token() {
        let token = "{\"jsonrpc\":\"2.0\",\"method\":\"token\",\"params\":{\"id\":1,\"index\":0,\"text\":\"a\"}}\n";
        let answer = "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"choices\":[{\"index\":0,\"text\":\"aa\"}]}}\n";
        let counter = count(Dialect::Rpc, Method::Chat, &[token, token, answer]);
        assert_eq!((counter.tokens, counter.finished), (2, true));
        let error =
            "{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{\"code\":-32000,\"message\":\"no\"}}\n";
        let counter = count(Dialect::Rpc, Method::Chat, &[error]);
        assert_eq!(
            (counter.failure.as_deref(), counter.finished),
            (Some("no"), false)
        );
    }

    #[test]
    fn bare_text_is_counted_by_chunks() {
        let counter = count(Dialect::Text, Method::Chat, &["a\n", "", "b"]);
        assert_eq!((counter.tokens, counter.finished), (2, true));
    }
}
