//! The client against a scripted server on port 0, over HTTP/1.1 and HTTP/2 in clear text.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::*;

type Body = UnsyncBoxBody<Bytes, io::Error>;
type Answer = Response<Body>;

/// What the server is asked, and a place for its answer.
struct Asked {
    request: Request<Incoming>,
    answer: tokio::sync::oneshot::Sender<Answer>,
}

/// A server that hands every request to the test. Dropping it stops it.
struct Server {
    address: SocketAddr,
    asked: mpsc::Receiver<Asked>,
    _task: JoinSet<()>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, asked) = mpsc::channel(8);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let sender = sender.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        let sender = sender.clone();
                        async move {
                            let (answer, answered) = tokio::sync::oneshot::channel();
                            let _ = sender.send(Asked { request, answer }).await;
                            answered.await
                        }
                    });
                    let _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(socket), service)
                        .await;
                });
            }
        });
        Self {
            address,
            asked,
            _task: task,
        }
    }

    fn client(&self, transport: Transport) -> Client {
        let endpoint = Endpoint::parse(&format!("http://{}", self.address)).unwrap();
        Client::new(endpoint, transport)
    }

    /// Answers the next request with a whole body.
    async fn answer(&mut self, status: u16, content_type: &str, body: &str) -> Request<Incoming> {
        let Asked { request, answer } = self.asked.recv().await.unwrap();
        let body = Full::new(Bytes::from(body.to_owned()));
        let response = Response::builder()
            .status(status)
            .header("content-type", content_type)
            .header("retry-after", "7")
            .body(body.map_err(|never| match never {}).boxed_unsync())
            .unwrap();
        answer.send(response).unwrap();
        request
    }

    /// Answers the next request with a stream that the test writes.
    async fn stream(&mut self) -> mpsc::Sender<io::Result<Frame<Bytes>>> {
        let Asked { answer, .. } = self.asked.recv().await.unwrap();
        let (writer, body) = mpsc::channel(1);
        let body = StreamBody::new(ReceiverStream::new(body)).boxed_unsync();
        let response = Response::builder()
            .header("content-type", "text/event-stream; charset=utf-8")
            .body(body)
            .unwrap();
        answer.send(response).unwrap();
        writer
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the channel carries failures too")]
fn bytes(text: &str) -> io::Result<Frame<Bytes>> {
    Ok(Frame::data(Bytes::from(text.to_owned())))
}

fn text_chunk(text: &str) -> String {
    format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
}

fn text(text: &str) -> Event {
    Event::Text {
        choice: 0,
        text: text.to_owned(),
    }
}

const BOTH: [Transport; 2] = [Transport::Http1, Transport::Http2];

#[tokio::test]
async fn events_arrive_one_by_one_while_the_stream_is_open() {
    for transport in BOTH {
        let mut server = Server::start().await;
        let client = server.client(transport);
        let request = ChatRequest::new("m").user("hi");
        let (stream, writer) = tokio::join!(client.chat(&request), server.stream());
        let mut stream = stream.unwrap();

        for word in ["one", "two"] {
            writer.send(bytes(&text_chunk(word))).await.unwrap();
            assert_eq!(stream.next().await.unwrap().unwrap(), text(word));
        }
        let (head, tail) = ("data: [DO", "NE]\n\n");
        writer.send(bytes(": still here\n\n")).await.unwrap();
        writer.send(bytes(head)).await.unwrap();
        writer.send(bytes(tail)).await.unwrap();
        assert!(stream.next().await.is_none());
        assert!(stream.next().await.is_none());
    }
}

#[tokio::test]
async fn the_request_is_openais() {
    for transport in BOTH {
        let mut server = Server::start().await;
        let client = server.client(transport);
        let request = ChatRequest::new("m").user("hi");
        let (stream, asked) = tokio::join!(
            client.chat(&request),
            server.answer(200, "text/event-stream", "data: [DONE]\n\n")
        );
        assert!(stream.unwrap().next().await.is_none());
        assert_eq!(asked.uri().path(), "/v1/chat/completions");
        assert_eq!(asked.headers()["content-type"], "application/json");
    }
}

#[tokio::test]
async fn a_key_goes_with_every_request() {
    for transport in BOTH {
        let mut server = Server::start().await;
        let endpoint = Endpoint::parse(&format!("http://{}", server.address)).unwrap();
        let options = Options {
            api_key: Some(ApiKey::new("sgk_1")),
            ..transport.into()
        };
        let client = Client::new(endpoint, options);
        for _ in 0..2 {
            let list = r#"{"data":[]}"#;
            let (models, asked) = tokio::join!(
                client.models(),
                server.answer(200, "application/json", list)
            );
            assert!(models.unwrap().is_empty());
            assert_eq!(asked.headers()["authorization"], "Bearer sgk_1");
        }
        assert!(!format!("{client:?}").contains("sgk_1"));
    }
}

#[tokio::test]
async fn a_chat_is_sent_as_part_of_the_trace_that_it_is_given() {
    for transport in BOTH {
        let mut server = Server::start().await;
        let client = server.client(transport);
        for parent in [Some("00-1-2-01"), None, Some("no\nheader")] {
            let request = ChatRequest {
                traceparent: parent.map(str::to_owned),
                ..ChatRequest::new("m")
            };
            let answer = server.answer(200, "application/json", "{}");
            let (_, asked) = tokio::join!(client.chat(&request), answer);
            let sent = asked.headers().get("traceparent");
            let expected = parent.filter(|parent| !parent.contains('\n'));
            assert_eq!(sent.map(|sent| sent.to_str().unwrap()), expected);
        }
    }
}

#[tokio::test]
async fn a_body_that_ends_early_is_told_from_a_good_end() {
    for transport in BOTH {
        let mut server = Server::start().await;
        let client = server.client(transport);
        let request = ChatRequest::new("m");
        let (stream, writer) = tokio::join!(client.chat(&request), server.stream());
        let mut stream = stream.unwrap();
        writer.send(bytes(&text_chunk("x"))).await.unwrap();
        drop(writer);
        assert_eq!(stream.next().await.unwrap().unwrap(), text("x"));
        let error = stream.next().await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), "the stream ended without [DONE]");
        assert!(stream.next().await.is_none());
    }
}

#[tokio::test]
async fn a_connection_that_breaks_is_an_error() {
    for transport in BOTH {
        let mut server = Server::start().await;
        let client = server.client(transport);
        let request = ChatRequest::new("m");
        let (stream, writer) = tokio::join!(client.chat(&request), server.stream());
        let mut stream = stream.unwrap();
        writer.send(Err(io::ErrorKind::Other.into())).await.unwrap();
        let error = stream.next().await.unwrap().unwrap_err();
        assert!(matches!(error, Error::Http(_)), "{error}");
        assert!(stream.next().await.is_none());
    }
}

#[tokio::test]
async fn a_failure_reported_in_the_stream_ends_it() {
    let mut server = Server::start().await;
    let client = server.client(Transport::Http1);
    let request = ChatRequest::new("m");
    let body = "data: {\"error\":{\"message\":\"It broke.\"}}\n\ndata: [DONE]\n\n";
    let (stream, _) = tokio::join!(
        client.chat(&request),
        server.answer(200, "text/event-stream", body)
    );
    let events: Vec<_> = stream.unwrap().collect().await;
    assert_eq!(events.len(), 1);
    let error = events[0].as_ref().unwrap_err();
    assert_eq!(error.to_string(), "the server ended the stream: It broke.");
}

#[tokio::test]
async fn dropping_a_stream_cancels_it_at_the_server() {
    for transport in BOTH {
        let mut server = Server::start().await;
        let client = server.client(transport);
        let request = ChatRequest::new("m");
        let (stream, writer) = tokio::join!(client.chat(&request), server.stream());
        drop(stream.unwrap());
        // The server drops the body, and with it the channel's reader.
        writer.closed().await;

        // The client is still good for the next request.
        let (stream, writer) = tokio::join!(client.chat(&request), server.stream());
        writer.send(bytes(&text_chunk("x"))).await.unwrap();
        assert_eq!(stream.unwrap().next().await.unwrap().unwrap(), text("x"));
    }
}

#[tokio::test]
async fn an_http2_stream_outlives_its_client() {
    let mut server = Server::start().await;
    let client = server.client(Transport::Http2);
    let request = ChatRequest::new("m");
    let (stream, writer) = tokio::join!(client.chat(&request), server.stream());
    let mut stream = stream.unwrap();
    drop(client);
    writer.send(bytes(&text_chunk("x"))).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), text("x"));
}

#[tokio::test]
async fn raw_events_are_handed_out_as_they_came() {
    let mut server = Server::start().await;
    let client = server.client(Transport::Http1);
    let request = ChatRequest::new("m");
    let body = "event: e\ndata: {\ndata: }\n\ndata: [DONE]\n\n";
    let (frames, _) = tokio::join!(
        client.chat_frames(&request),
        server.answer(200, "text/event-stream", body)
    );
    let mut frames = frames.unwrap();
    let message = frames.next().await.unwrap().unwrap();
    assert_eq!((message.kind, message.data), (&b"e"[..], &b"{\n}"[..]));
    assert!(frames.next().await.unwrap().is_none());
}

#[tokio::test]
async fn a_refusal_carries_the_servers_words() {
    let mut server = Server::start().await;
    let client = server.client(Transport::Http1);
    let request = ChatRequest::new("m");
    let body = r#"{"error":{"message":"The queue is full.","type":"x","param":null,"code":null}}"#;
    let (stream, _) = tokio::join!(
        client.chat(&request),
        server.answer(503, "application/json", body)
    );
    let Err(Error::Refused {
        status, message, ..
    }) = stream
    else {
        panic!("{stream:?}");
    };
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(message, "The queue is full.");
}

#[tokio::test]
async fn an_answer_that_is_no_stream_is_refused() {
    let mut server = Server::start().await;
    let client = server.client(Transport::Http1);
    let request = ChatRequest::new("m");
    let (stream, _) = tokio::join!(
        client.chat(&request),
        server.answer(200, "application/json", "{}")
    );
    let error = stream.unwrap_err();
    assert!(error.to_string().contains("application/json"), "{error}");
}

#[tokio::test]
async fn models_are_listed() {
    for transport in BOTH {
        let mut server = Server::start().await;
        let client = server.client(transport);
        let body = r#"{"object":"list","data":[{"id":"a","object":"model"},{"id":"b"}]}"#;
        let (models, asked) = tokio::join!(
            client.models(),
            server.answer(200, "application/json", body)
        );
        let models: Vec<_> = models.unwrap().into_iter().map(|m| m.id).collect();
        assert_eq!(models, ["a", "b"]);
        assert_eq!(asked.uri().path(), "/v1/models");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let endpoint = Endpoint::parse(&address.to_string()).unwrap();
    let client = Client::new(endpoint, Transport::Http1);
    let error = client.models().await.unwrap_err();
    assert_eq!(error.to_string(), format!("could not connect to {address}"));
}
