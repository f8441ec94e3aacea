//! A client of `sluice/1`: streams of a QUIC connection, and what the codec finds in them.

use quinn::{Connection, RecvStream, SendStream, VarInt};
use sluicegate::wire::sluice::FRAMES;
use sluicegate::wire::sluice::fault::Fault;
use sluicegate::wire::sluice::frames::{Decoder, Frame, FrameError};
use sluicegate::wire::sluice::head::{Headers, RequestHead, ResponseHead};

use super::{Quic, Served, chat_body, within};

/// One connection.
pub(crate) struct Sluice(pub(crate) Connection);

/// What came, one frame at a time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Came {
    Response(ResponseHead),
    Data(Vec<u8>),
    Tokens(u32, u32, String),
    Logprobs(u32, usize),
    Progress(u32, u32),
    Usage(u32, u32, u32),
    Ping,
    Error(Fault),
    End(Vec<u64>),
}

/// A frame, written.
pub(crate) fn frame(frame: &Frame<'_>) -> Vec<u8> {
    let mut out = bytes::BytesMut::new();
    frame.encode(&mut out);
    out.to_vec()
}

/// The REQUEST frame of these.
pub(crate) fn head(method: &str, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let pairs = headers.iter().map(|&(n, v)| (n.to_owned(), v.to_owned()));
    let head = RequestHead {
        method: method.to_owned(),
        path: path.to_owned(),
        headers: Headers(pairs.collect()),
    };
    frame(&Frame::Request(&serde_json::to_vec(&head).unwrap()))
}

impl Served {
    /// A host that speaks `sluice/1`.
    pub(crate) fn sluice_host(&self) -> Quic {
        self.quic().protocol("sluice/1")
    }

    pub(crate) async fn sluice(&self) -> Sluice {
        self.sluice_by(&self.sluice_host()).await
    }

    pub(crate) async fn sluice_by(&self, host: &Quic) -> Sluice {
        Sluice(host.raw(self.gateway.secure()).await)
    }
}

impl Sluice {
    /// A stream with these bytes on it, still open.
    pub(crate) async fn open(&self, bytes: &[u8]) -> Exchange {
        let (mut send, recv) = within(self.0.open_bi()).await.expect("a stream");
        within(send.write_all(bytes))
            .await
            .expect("room for a head");
        Exchange {
            send,
            recv,
            decoder: Decoder::new(),
            unread: Vec::new(),
        }
    }

    /// A whole request.
    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Exchange {
        let mut bytes = head(method, path, headers);
        for piece in body.chunks(1000) {
            bytes.extend(frame(&Frame::Data(piece)));
        }
        let mut exchange = self.open(&bytes).await;
        exchange.send.finish().unwrap();
        exchange
    }

    /// A chat, up to the head of its answer.
    pub(crate) async fn chat(&self, model: &str, more: &str) -> Exchange {
        let body = chat_body(model, "x", more);
        let path = "/v1/chat/completions";
        let mut exchange = self.ask("POST", path, &[], body.as_bytes()).await;
        assert_eq!(exchange.head().await.status, 200);
        exchange
    }

    pub(crate) async fn status_of(&self, path: &str) -> u16 {
        self.ask("GET", path, &[], b"").await.head().await.status
    }
}

/// One stream.
pub(crate) struct Exchange {
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
    decoder: Decoder,
    unread: Vec<u8>,
}

impl Exchange {
    /// The next frame, or a piece of DATA; none at the end of a whole answer.
    pub(crate) async fn try_next(&mut self) -> Result<Option<Came>, FrameError> {
        loop {
            let mut input = &self.unread[..];
            let came = self.decoder.next(&mut input)?.map(|frame| owned(&frame));
            let taken = self.unread.len() - input.len();
            self.unread.drain(..taken);
            if came.is_some() {
                return Ok(came);
            }
            let mut buffer = [0; 1000];
            match within(self.recv.read(&mut buffer)).await {
                Ok(Some(read)) => self.unread.extend_from_slice(&buffer[..read]),
                Ok(None) => return self.decoder.finish().map(|()| None),
                Err(_) => return Err(FrameError::Truncated),
            }
        }
    }

    pub(crate) async fn next(&mut self) -> Came {
        let came = self.try_next().await.expect("frames");
        came.expect("the answer goes on")
    }

    pub(crate) async fn head(&mut self) -> ResponseHead {
        match self.next().await {
            Came::Response(head) => head,
            other => panic!("RESPONSE is first: {other:?}"),
        }
    }

    /// All that is still to come.
    pub(crate) async fn rest(&mut self) -> Vec<Came> {
        let mut all = Vec::new();
        while let Some(came) = self.try_next().await.expect("a whole answer") {
            all.push(came);
        }
        all
    }

    /// The text of all that is still to come of a generation that ends well.
    pub(crate) async fn text(&mut self) -> String {
        let rest = self.rest().await;
        assert!(matches!(rest.last(), Some(Came::End(_))), "{rest:?}");
        let texts = rest.iter().filter_map(|came| match came {
            Came::Tokens(_, _, text) => Some(text.as_str()),
            _ => None,
        });
        texts.collect()
    }

    /// The body of an answer that is none, and that it ended.
    pub(crate) async fn body(&mut self) -> Vec<u8> {
        let mut rest = self.rest().await;
        assert_eq!(rest.pop(), Some(Came::End(Vec::new())));
        let pieces = rest.into_iter().flat_map(|came| match came {
            Came::Data(bytes) => bytes,
            other => panic!("only DATA: {other:?}"),
        });
        pieces.collect()
    }

    /// Status, kind and message of an ERROR that is all there is behind RESPONSE.
    pub(crate) async fn refused(&mut self) -> (u16, String, String) {
        let head = self.head().await;
        assert_eq!(head.headers.first("content-type"), Some(FRAMES));
        let mut rest = self.rest().await;
        match rest.pop() {
            Some(Came::Error(fault)) if rest.is_empty() && fault.status == head.status => {
                (fault.status, fault.kind, fault.message)
            }
            other => panic!("one ERROR of status {}: {other:?}", head.status),
        }
    }

    /// Wants no more of the answer.
    pub(crate) fn stop(&mut self) {
        self.recv.stop(VarInt::from_u32(0x35)).unwrap();
    }
}

fn owned(frame: &Frame<'_>) -> Came {
    match *frame {
        Frame::Response(json) => Came::Response(serde_json::from_slice(json).unwrap()),
        Frame::Error(json) => Came::Error(serde_json::from_slice(json).unwrap()),
        Frame::Data(bytes) => Came::Data(bytes.to_vec()),
        Frame::Tokens {
            choice,
            count,
            text,
        } => Came::Tokens(choice, count, text.to_owned()),
        Frame::Logprobs { choice, tokens } => Came::Logprobs(choice, tokens.iter().count()),
        Frame::Progress {
            prompt_tokens,
            cached_tokens,
        } => Came::Progress(prompt_tokens, cached_tokens),
        Frame::Usage {
            prompt_tokens,
            cached_tokens,
            completion_tokens,
        } => Came::Usage(prompt_tokens, cached_tokens, completion_tokens),
        Frame::Ping => Came::Ping,
        Frame::End(reasons) => Came::End(reasons.iter().collect()),
        Frame::Request(_) | Frame::Resume { .. } => panic!("not to a client: {frame:?}"),
    }
}
