//! A generation as frames of `sluice/1`, told as the same events as any other.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};

use super::error::Error;
use super::feed::{Fed, Feed};
use super::sluice;
use super::stream::{Event, Usage};
use crate::wire::sluice::frames::{Decoder, Frame, Reasons};

/// Who speaks in a chat's answer.
const ASSISTANT: &str = "assistant";

/// The frames of a streamed answer.
#[derive(Debug)]
pub(super) struct Generation {
    feed: Feed,
    decoder: Decoder,
    /// Bytes that came and were not decoded yet.
    unread: Bytes,
    /// Frames that count as events.
    given: u64,
    /// Choices that have begun, one bit each; no server has more of them.
    begun: u128,
    usage: Option<Usage>,
}

impl Generation {
    pub(super) fn new(feed: Feed) -> Self {
        Self {
            feed,
            decoder: Decoder::new(),
            unread: Bytes::new(),
            given: 0,
            begun: 0,
            usage: None,
        }
    }

    /// Appends what comes next; false after the end.
    pub(super) fn poll_events(
        &mut self,
        context: &mut Context<'_>,
        events: &mut VecDeque<Event>,
    ) -> Poll<Result<bool, Error>> {
        loop {
            let mut input = &self.unread[..];
            let frame = self.decoder.next(&mut input)?;
            let step = frame.map(|frame| {
                self.given += u64::from(frame.kind().is_event());
                tell(frame, &mut self.begun, &mut self.usage, events)
            });
            let taken = self.unread.len() - input.len();
            self.unread.advance(taken);
            match step {
                Some(Step::More) if !events.is_empty() => return Poll::Ready(Ok(true)),
                Some(Step::More) => {}
                Some(Step::End) => {
                    self.feed.end();
                    return Poll::Ready(Ok(false));
                }
                Some(Step::Failed(error)) => {
                    self.feed.end();
                    return Poll::Ready(Err(error));
                }
                None => match ready!(self.feed.poll_next(context, self.given))? {
                    Fed::Bytes(bytes) => self.unread = bytes,
                    Fed::Anew => self.decoder = Decoder::new(),
                },
            }
        }
    }
}

enum Step {
    More,
    End,
    Failed(Error),
}

/// Says what a frame does, in events.
fn tell(
    frame: Frame<'_>,
    begun: &mut u128,
    usage: &mut Option<Usage>,
    events: &mut VecDeque<Event>,
) -> Step {
    match frame {
        Frame::Tokens { choice, text, .. } => {
            let bit = 1_u128.checked_shl(choice).unwrap_or_default();
            if *begun & bit != bit {
                *begun |= bit;
                let role = ASSISTANT.to_owned();
                events.push_back(Event::Role { choice, role });
            }
            if !text.is_empty() {
                let text = text.to_owned();
                events.push_back(Event::Text { choice, text });
            }
        }
        Frame::Usage {
            prompt_tokens,
            completion_tokens,
            ..
        } => {
            *usage = Some(Usage {
                prompt_tokens: prompt_tokens.into(),
                completion_tokens: completion_tokens.into(),
            });
        }
        Frame::End(reasons) => {
            events.extend(
                (0..)
                    .zip(reasons.iter())
                    .map(|(choice, reason)| Event::Finish {
                        choice,
                        reason: name(reason).to_owned(),
                    }),
            );
            events.extend(usage.take().map(Event::Usage));
            return Step::End;
        }
        Frame::Error(json) => return Step::Failed(sluice::reported(json)),
        _ => {}
    }
    Step::More
}

/// A reason as OpenAI names it; one of a later version has no name here.
fn name(reason: u64) -> &'static str {
    match u8::try_from(reason) {
        Ok(Reasons::STOP) => "stop",
        Ok(Reasons::LENGTH) => "length",
        _ if Reasons::limit(reason).is_some() => "length",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use hyper::StatusCode;
    use quinn::SendStream;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::client::testing::{self, Asked, Server};
    use crate::client::{ChatRequest, ChatStream, Client, Endpoint};
    use crate::wire::sluice::FRAMES;

    const FAULT: &[u8] = br#"{"code":48,"kind":"overloaded","status":503,"message":"It is full."}"#;

    fn tokens(choice: u32, text: &str) -> Frame<'_> {
        Frame::Tokens {
            choice,
            count: 1,
            text,
        }
    }

    fn text(choice: u32, text: &str) -> Event {
        let text = text.to_owned();
        Event::Text { choice, text }
    }

    fn role(choice: u32) -> Event {
        let role = ASSISTANT.to_owned();
        Event::Role { choice, role }
    }

    fn finish(choice: u32, reason: &str) -> Event {
        let reason = reason.to_owned();
        Event::Finish { choice, reason }
    }

    fn client(server: &Server) -> Client {
        let endpoint = Endpoint::parse(&format!("https://{}", server.address)).unwrap();
        Client::new(endpoint, testing::options())
    }

    /// A chat that has been asked for, and where it arrives.
    async fn ask(
        client: Client,
        server: &mut Server,
    ) -> (JoinHandle<Result<ChatStream, Error>>, Asked) {
        let chat = tokio::spawn(async move {
            let request = ChatRequest::new("m").user("hi");
            client.chat(&request).await
        });
        loop {
            let asked = server.asked().await;
            if asked.head.path != "/v1/bind" {
                return (chat, asked);
            }
            asked.answer(404, "{}").await;
        }
    }

    /// A chat whose answer begins with these frames and can go on.
    async fn begin(server: &mut Server, frames: &[Frame<'_>]) -> (ChatStream, SendStream) {
        let (chat, asked) = ask(client(server), server).await;
        let send = asked.frames(200, FRAMES, frames).await;
        (chat.await.unwrap().unwrap(), send)
    }

    /// All events, and the error that ends them, if one does.
    async fn all(mut stream: ChatStream) -> (Vec<Event>, Option<Error>) {
        let mut events = Vec::new();
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => events.push(event),
                Err(error) => {
                    assert!(stream.next().await.is_none(), "it is the last");
                    return (events, Some(error));
                }
            }
        }
        (events, None)
    }

    #[tokio::test]
    async fn frames_become_the_events_of_a_chat_in_their_order() {
        let mut server = Server::start();
        let frames = [
            Frame::Progress {
                prompt_tokens: 4,
                cached_tokens: 0,
            },
            tokens(0, "a"),
            Frame::Ping,
            tokens(1, "b"),
            tokens(0, "ä"),
            tokens(1, ""),
            Frame::Usage {
                prompt_tokens: 4,
                cached_tokens: 0,
                completion_tokens: 5,
            },
            Frame::End(Reasons::new(&[Reasons::STOP, Reasons::LENGTH, 9]).unwrap()),
        ];
        let (stream, mut send) = begin(&mut server, &frames).await;
        send.finish().unwrap();
        let (events, error) = all(stream).await;
        assert!(error.is_none(), "{error:?}");
        let expected = [
            role(0),
            text(0, "a"),
            role(1),
            text(1, "b"),
            text(0, "ä"),
            finish(0, "stop"),
            finish(1, "length"),
            finish(2, "other"),
            Event::Usage(Usage {
                prompt_tokens: 4,
                completion_tokens: 5,
            }),
        ];
        assert_eq!(events, expected);
    }

    #[tokio::test]
    async fn events_arrive_while_the_stream_is_open_however_frames_are_cut() {
        let mut server = Server::start();
        let (mut stream, mut send) = begin(&mut server, &[tokens(0, "a")]).await;
        assert_eq!(stream.next().await.unwrap().unwrap(), role(0));
        assert_eq!(stream.next().await.unwrap().unwrap(), text(0, "a"));
        let mut bytes = bytes::BytesMut::new();
        tokens(0, "b").encode(&mut bytes);
        for byte in bytes {
            send.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(stream.next().await.unwrap().unwrap(), text(0, "b"));
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_told_from_a_good_end() {
        let mut server = Server::start();
        // Behind a frame, and within one.
        for more in [&b""[..], b"\x10\x07\x00"] {
            let (stream, mut send) = begin(&mut server, &[tokens(0, "a")]).await;
            send.write_all(more).await.unwrap();
            send.finish().unwrap();
            let (events, error) = all(stream).await;
            assert_eq!(events, [role(0), text(0, "a")]);
            assert!(matches!(error, Some(Error::Truncated)), "{error:?}");
        }
        let (mut stream, mut send) = begin(&mut server, &[tokens(0, "a")]).await;
        for _ in 0..2 {
            stream.next().await.unwrap().unwrap();
        }
        send.reset(quinn::VarInt::from_u32(0x31)).unwrap();
        let (_, error) = all(stream).await;
        assert!(matches!(error, Some(Error::Quic(_))), "{error:?}");
    }

    #[tokio::test]
    async fn what_is_not_well_formed_ends_the_stream() {
        let mut server = Server::start();
        let (stream, mut send) = begin(&mut server, &[]).await;
        // TOKENS with half a character.
        send.write_all(b"\x10\x03\x00\x01\xc3").await.unwrap();
        let (_, error) = all(stream).await;
        assert!(matches!(error, Some(Error::Frames(_))), "{error:?}");
    }

    #[tokio::test]
    async fn a_failure_is_the_servers_words_before_and_within_the_answer() {
        let mut server = Server::start();
        let frames = [tokens(0, "a"), Frame::Error(FAULT)];
        let (stream, _send) = begin(&mut server, &frames).await;
        let (events, error) = all(stream).await;
        assert_eq!(events.len(), 2);
        let expected = "the server ended the stream: It is full.";
        assert_eq!(error.unwrap().to_string(), expected);

        let (chat, asked) = ask(client(&server), &mut server).await;
        let mut send = asked.frames(503, FRAMES, &[Frame::Error(FAULT)]).await;
        send.finish().unwrap();
        let Err(Error::Refused {
            status, message, ..
        }) = chat.await.unwrap()
        else {
            panic!("it is refused");
        };
        assert_eq!(
            (status, &*message),
            (StatusCode::SERVICE_UNAVAILABLE, "It is full.")
        );
    }

    #[tokio::test]
    async fn dropping_the_stream_stops_the_server() {
        let mut server = Server::start();
        // The connection stays for as long as the client does.
        let client = client(&server);
        let (chat, asked) = ask(client.clone(), &mut server).await;
        let send = asked.frames(200, FRAMES, &[tokens(0, "a")]).await;
        let stopped = send.stopped();
        drop(chat.await.unwrap().unwrap());
        // With the code of a cancelled request.
        assert_eq!(stopped.await.unwrap(), Some(quinn::VarInt::from_u32(0x35)));
    }
}
