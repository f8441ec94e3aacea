//! A streamed answer: raw events as the server framed them, or typed ones.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use serde::Deserialize;
use tokio_stream::Stream;

use super::error::{Error, excerpt, message_in};
use super::feed::{Fed, Feed};
use super::generation::Generation;
use super::sse::{self, Decoder};

/// The largest event that is read. A chunk with twenty alternatives per token is some 4 KiB.
const EVENT_LIMIT: usize = 1024 * 1024;

/// The media type of server-sent events.
pub(super) const EVENT_STREAM: &str = "text/event-stream";

/// One thing that a server tells about a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A choice begins; its speaker.
    Role {
        /// Which choice.
        choice: u32,
        /// Commonly `assistant`.
        role: String,
    },
    /// More text of a choice; never empty.
    Text {
        /// Which choice.
        choice: u32,
        /// The text.
        text: String,
    },
    /// A choice ended well.
    Finish {
        /// Which choice.
        choice: u32,
        /// `stop`, `length`, …
        reason: String,
    },
    /// Tokens counted, over all choices; after the last choice ended.
    Usage(Usage),
}

/// Tokens of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Tokens generated.
    #[serde(default)]
    pub completion_tokens: u64,
}

/// The raw events of a streamed answer. Dropping it cancels the generation.
#[derive(Debug)]
pub struct Frames {
    feed: Feed,
    decoder: Decoder,
    /// Events that were handed out.
    given: u64,
    /// Nothing more will come: `[DONE]`, or an error that was told.
    ended: bool,
}

/// The typed events of a streamed answer. Dropping it cancels the generation.
///
/// Ends with `None` after the server's own end, or after the one error that ended it.
#[derive(Debug)]
pub struct ChatStream {
    source: Source,
    ready: VecDeque<Event>,
    ended: bool,
}

#[derive(Debug)]
enum Source {
    Events(Frames),
    Frames(Generation),
}

impl Frames {
    pub(super) fn new(feed: Feed) -> Self {
        Self {
            feed,
            decoder: Decoder::new(EVENT_LIMIT),
            given: 0,
            ended: false,
        }
    }

    /// The next event, or `None` once the server has sent `[DONE]`. Cancelling the wait loses nothing.
    ///
    /// An event that reports an error is handed out like any other; [`parse_chunk`] tells.
    ///
    /// # Errors
    /// The connection broke, the body ended without `[DONE]`, or an event is too large.
    pub async fn next(&mut self) -> Result<Option<sse::Message<'_>>, Error> {
        let more = poll_fn(|context| self.poll_advance(context)).await?;
        Ok(more.then(|| self.decoder.message()))
    }

    fn poll_advance(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, Error>> {
        if self.ended {
            return Poll::Ready(Ok(false));
        }
        let step = ready!(self.poll_event(context));
        self.ended = !matches!(step, Ok(true));
        Poll::Ready(step)
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, Error>> {
        loop {
            if self.decoder.advance()? {
                self.given += 1;
                let is_end = self.decoder.message().data == b"[DONE]";
                if is_end {
                    self.feed.end();
                }
                return Poll::Ready(Ok(!is_end));
            }
            match ready!(self.feed.poll_next(context, self.given))? {
                Fed::Bytes(bytes) => self.decoder.push(&bytes),
                Fed::Anew => self.decoder = Decoder::new(EVENT_LIMIT),
            }
        }
    }
}

impl ChatStream {
    pub(super) fn of_events(frames: Frames) -> Self {
        Self::new(Source::Events(frames))
    }

    pub(super) fn of_frames(feed: Feed) -> Self {
        Self::new(Source::Frames(Generation::new(feed)))
    }

    fn new(source: Source) -> Self {
        Self {
            source,
            ready: VecDeque::new(),
            ended: false,
        }
    }

    /// The next event. Cancelling the wait loses nothing.
    pub async fn next(&mut self) -> Option<Result<Event, Error>> {
        poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// Makes more events ready; false after the end.
    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, Error>> {
        match &mut self.source {
            Source::Frames(generation) => generation.poll_events(context, &mut self.ready),
            Source::Events(frames) => {
                if !ready!(frames.poll_advance(context))? {
                    return Poll::Ready(Ok(false));
                }
                parse_chunk(frames.decoder.message(), &mut self.ready)?;
                Poll::Ready(Ok(true))
            }
        }
    }
}

impl Stream for ChatStream {
    type Item = Result<Event, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(event) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            match ready!(this.poll_more(context)) {
                Ok(true) => {}
                Ok(false) => this.ended = true,
                Err(error) => {
                    this.ended = true;
                    this.ready.clear();
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}

/// Appends what one raw event says: nothing, or several events.
///
/// # Errors
/// The event reports the server's failure, or is no chunk of a chat.
pub fn parse_chunk(message: sse::Message<'_>, events: &mut VecDeque<Event>) -> Result<(), Error> {
    let reported = |data| Error::Reported {
        message: message_in(data).unwrap_or_else(|| excerpt(data)),
    };
    if message.kind == b"error" {
        return Err(reported(message.data));
    }
    let chunk: Chunk = serde_json::from_slice(message.data)
        .map_err(|source| Error::malformed(message.data, source))?;
    if chunk.error.is_some() {
        return Err(reported(message.data));
    }
    for choice in chunk.choices.unwrap_or_default() {
        let index = choice.index;
        let delta = choice.delta.unwrap_or_default();
        let role = delta.role.map(|role| Event::Role {
            choice: index,
            role,
        });
        let text = delta.content.filter(|text| !text.is_empty());
        let text = text.map(|text| Event::Text {
            choice: index,
            text,
        });
        let finish = choice.finish_reason.map(|reason| Event::Finish {
            choice: index,
            reason,
        });
        events.extend([role, text, finish].into_iter().flatten());
    }
    events.extend(chunk.usage.map(Event::Usage));
    Ok(())
}

/// A chat chunk, as far as it matters here. Servers send `null` and nothing for the same thing.
#[derive(Deserialize)]
struct Chunk {
    choices: Option<Vec<Choice>>,
    usage: Option<Usage>,
    error: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u32,
    delta: Option<Delta>,
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct Delta {
    role: Option<String>,
    content: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: &str, data: &str) -> Result<Vec<Event>, Error> {
        let mut events = VecDeque::new();
        let message = sse::Message {
            kind: kind.as_bytes(),
            data: data.as_bytes(),
        };
        parse_chunk(message, &mut events)?;
        Ok(events.into())
    }

    #[test]
    fn a_chunk_may_say_several_things_in_order() {
        let events = parse(
            "",
            r#"{"choices":[{"index":2,"delta":{"role":"assistant","content":"é"},
               "finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1,"x":0}}"#,
        );
        let (choice, usage) = (
            2,
            Usage {
                prompt_tokens: 3,
                completion_tokens: 1,
            },
        );
        assert_eq!(
            events.unwrap(),
            [
                Event::Role {
                    choice,
                    role: "assistant".into()
                },
                Event::Text {
                    choice,
                    text: "é".into()
                },
                Event::Finish {
                    choice,
                    reason: "stop".into()
                },
                Event::Usage(usage),
            ]
        );
    }

    #[test]
    fn nulls_and_absent_fields_say_nothing() {
        for data in [
            "{}",
            r#"{"choices":null,"usage":null,"error":null}"#,
            r#"{"choices":[{"index":0,"delta":{"content":null},"finish_reason":null}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"","tool_calls":[]}}]}"#,
            r#"{"choices":[{}]}"#,
        ] {
            assert_eq!(parse("", data).unwrap(), []);
        }
    }

    #[test]
    fn an_error_is_recognised_by_its_member_or_by_its_event_name() {
        for (kind, data) in [
            ("", r#"{"error":{"message":"Out of luck."}}"#),
            ("error", r#"{"message":"Out of luck."}"#),
            ("error", "Out of luck."),
        ] {
            let error = parse(kind, data).unwrap_err();
            assert_eq!(
                error.to_string(),
                "the server ended the stream: Out of luck."
            );
        }
    }

    #[test]
    fn what_is_no_chunk_is_shown() {
        let error = parse("", "<html>").unwrap_err();
        assert!(error.to_string().ends_with("format: <html>"), "{error}");
    }
}
