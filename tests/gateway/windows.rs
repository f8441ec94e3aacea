//! What a reader who stops can pull, whatever window it offers; and frames that follow the reader.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use crate::support::{
    Answer, Certified, Metrics, Served, Sluice, Tap, TestGateway, chat_body, gateway, secure,
    within,
};

/// More than any buffer on the way takes.
const ENDLESS: &str = "scripted?tokens=100000000&token_bytes=16";

/// The default of `stream.send_budget`.
const BUDGET: u64 = 64 * 1024;

/// What the client's kernel takes of a connection that nobody reads, for the smallest buffer.
const KERNEL: u64 = 16 * 1024;

/// Connects with the least receive buffer.
async fn socket(address: std::net::SocketAddr) -> tokio::net::TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    within(socket.connect(address)).await.unwrap()
}

/// How a reader stops.
#[derive(Clone, Copy, Debug)]
enum Stop {
    /// The program does not read, its HTTP/2 library does, into this window.
    Body { window: u32 },
    /// Nobody reads the socket; the window offered is as large as a browser's.
    Socket,
}

struct Http2 {
    sender: SendRequest<Bytes>,
    /// Told to stop reading the socket; the connection stays.
    pause: Option<oneshot::Sender<()>>,
    _driver: AbortOnDropHandle<()>,
}

async fn http2<S>(io: S, window: u32, connection_window: u32) -> Http2
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(window)
        .initial_connection_window_size(connection_window);
    let (sender, mut connection) = within(builder.handshake(io)).await.unwrap();
    let (pause, mut paused) = oneshot::channel();
    let driver = async move {
        tokio::select! {
            _ = &mut connection => {}
            // Kept, but not polled.
            Ok(()) = &mut paused => std::future::pending().await,
        }
    };
    Http2 {
        sender,
        pause: Some(pause),
        _driver: AbortOnDropHandle::new(tokio::spawn(driver)),
    }
}

impl Http2 {
    async fn ask(&mut self, path: &str, accept: &str, body: String) -> RecvStream {
        let request = hyper::Request::post(format!("http://test{path}"))
            .header("accept", accept)
            .header("content-type", "application/json")
            .body(())
            .unwrap();
        let mut sender = within(self.sender.clone().ready()).await.unwrap();
        let (response, mut send) = sender.send_request(request, false).unwrap();
        send.send_data(body.into(), true).unwrap();
        let response = within(response).await.unwrap();
        assert_eq!(response.status(), 200);
        response.into_body()
    }
}

async fn rest(mut body: RecvStream) -> Result<String, h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = within(body.data()).await {
        let data = data?;
        all.extend_from_slice(&data);
        body.flow_control().release_capacity(data.len())?;
    }
    Ok(String::from_utf8(all).unwrap())
}

/// Bytes of SSE per token of `ENDLESS`.
async fn bytes_per_token(gateway: &TestGateway) -> u64 {
    let whole = gateway
        .chat(
            "scripted?tokens=1000&token_bytes=16",
            "x",
            r#""stream":true"#,
        )
        .send()
        .await
        .bytes()
        .await;
    whole.len() as u64 / 1000 + 1
}

/// Waits until no more tokens are taken for half a second. An early look would only see fewer: what is
/// asserted is the most that is ever taken.
pub(crate) async fn settled(gateway: &TestGateway) -> u64 {
    let output = |m: &Metrics| m.sum("tokens_total", &["kind=\"output\""]);
    let (mut last, mut looks) = (output(&gateway.metrics().await), 0);
    while looks < 20 {
        tokio::time::sleep(Duration::from_millis(25)).await;
        let now = output(&gateway.metrics().await);
        looks = if now == last { looks + 1 } else { 0 };
        last = now;
    }
    last
}

/// About how many bytes the only stream has given when it stops: tokens are counted in groups of 64, so
/// there may be nearly as many more.
async fn pulled(gateway: &TestGateway, before: u64, each: u64) -> u64 {
    (settled(gateway).await - before + 64) * each
}

/// One line of the table.
struct Line {
    case: String,
    pulled: u64,
    most: u64,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { case, pulled, most } = self;
        write!(f, "{case:<58} {pulled:>9} of at most {most:>9} bytes")
    }
}

#[tokio::test]
async fn a_reader_who_stops_pulls_no_more_than_the_budget_beyond_what_its_own_side_takes() {
    let certified = Certified::new();
    let gateway = gateway()
        .scripted()
        .with(&certified.section())
        .start()
        .await;
    let each = bytes_per_token(&gateway).await;
    let mut table = Vec::new();
    let body = || chat_body(ENDLESS, "x", r#""stream":true"#);

    for is_secure in [false, true] {
        let over = if is_secure {
            "over TLS"
        } else {
            "in clear text"
        };
        // HTTP/1.1: nobody reads the socket.
        let before = settled(&gateway).await;
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n{}",
            body().len(),
            body()
        );
        let case = format!("HTTP/1.1 {over}, nobody reads the socket");
        let count;
        if is_secure {
            let socket = socket(gateway.secure()).await;
            let mut io = secure(socket, certified.client(), &["http/1.1"])
                .await
                .unwrap();
            io.write_all(request.as_bytes()).await.unwrap();
            io.flush().await.unwrap();
            io.read_u8().await.unwrap();
            count = pulled(&gateway, before, each).await;
        } else {
            let mut io = socket(gateway.public).await;
            io.write_all(request.as_bytes()).await.unwrap();
            io.read_u8().await.unwrap();
            count = pulled(&gateway, before, each).await;
        }
        table.push(Line {
            case,
            pulled: count,
            most: BUDGET + KERNEL + 64 * each,
        });

        for stop in [Stop::Body { window: 65_535 }, Stop::Socket] {
            let before = settled(&gateway).await;
            let window = match stop {
                Stop::Body { window } => window,
                Stop::Socket => 6 << 20,
            };
            let mut client = if is_secure {
                let socket = socket(gateway.secure()).await;
                let io = secure(socket, certified.client(), &["h2"]).await.unwrap();
                http2(io, window, 15 << 20).await
            } else {
                http2(socket(gateway.public).await, window, 15 << 20).await
            };
            let _body = client.ask("/v1/chat/completions", "*/*", body()).await;
            let (case, offered) = match stop {
                Stop::Body { window } => {
                    let case = format!("HTTP/2 {over}, window {window}, the program does not read");
                    (case, u64::from(window) + 64 * each)
                }
                Stop::Socket => {
                    let pause = client.pause.take().unwrap();
                    pause.send(()).unwrap();
                    let case = format!("HTTP/2 {over}, window {window}, nobody reads the socket");
                    // What came before the reader stopped, and what is counted too much.
                    (case, 2 * 64 * each)
                }
            };
            table.push(Line {
                case,
                pulled: pulled(&gateway, before, each).await,
                most: offered + BUDGET + KERNEL,
            });
        }
    }
    let lines: Vec<_> = table.iter().map(ToString::to_string).collect();
    let fits = table.iter().all(|line| line.pulled <= line.most);
    assert!(fits, "\n{}", lines.join("\n"));
}

/// The same over QUIC, where what was acknowledged is the client's to hold, as far as its window goes.
#[tokio::test]
async fn a_reader_who_stops_pulls_no_more_than_the_budget_over_quic() {
    let served = Served::by(gateway().scripted()).await;
    let gateway = &served.gateway;
    let each = bytes_per_token(gateway).await;
    let body = chat_body(ENDLESS, "x", r#""stream":true"#);
    let mut table = Vec::new();
    for (window, is_dead) in [(65_536, false), (6 << 20, true)] {
        let tap = Tap::before(gateway.secure()).await;
        tap.release();
        let http3 = served.quic().stream_window(window);
        let http3 = http3.http3(tap.address).await;
        let sluice = served.sluice_host().stream_window(window);
        let sluice = Sluice(sluice.raw(tap.address).await);
        for protocol in ["HTTP/3", "sluice/1"] {
            let before = settled(gateway).await;
            let (mut first, mut second) = (None, None);
            if protocol == "HTTP/3" {
                let mut exchange = http3.post("/v1/chat/completions", body.clone()).await;
                assert_eq!(exchange.head().await.0, 200);
                if is_dead {
                    tap.hold();
                }
                first = Some(exchange);
            } else {
                let accept = [("accept", "text/event-stream")];
                let path = "/v1/chat/completions";
                let mut exchange = sluice.ask("POST", path, &accept, body.as_bytes()).await;
                assert_eq!(exchange.head().await.status, 200);
                if is_dead {
                    tap.hold();
                }
                second = Some(exchange);
            }
            let how = if is_dead {
                "the path is dead"
            } else {
                "the program does not read"
            };
            // A dead path's client has read, and acknowledged, what came before.
            let beyond = if is_dead { BUDGET } else { 0 };
            table.push(Line {
                case: format!("{protocol}, window {window}, {how}"),
                pulled: pulled(gateway, before, each).await,
                most: beyond + BUDGET.max(if is_dead { 0 } else { window.into() }) + 2 * 64 * each,
            });
            tap.release();
            drop((first, second));
        }
    }
    let lines: Vec<_> = table.iter().map(ToString::to_string).collect();
    let fits = table.iter().all(|line| line.pulled <= line.most);
    assert!(fits, "\n{}", lines.join("\n"));
}

/// 5,000 tokens to a program that reads nothing of them until the end, in every format: its HTTP/2
/// library counts the small frames that wait (see `transport/pace.rs`).
#[tokio::test]
async fn a_program_that_pauses_keeps_its_http2_connection_while_5000_tokens_stream() {
    let gateway = gateway().scripted().start().await;
    // One token at a time, so that each could be a frame.
    let model = "scripted?text=abcde&token_bytes=5&tokens=5000&pace=100us";
    let expected = "abcde".repeat(5000);
    for (window, connection_window) in [(65_535, 65_535), (65_535, 1 << 20), (1 << 20, 1 << 20)] {
        let mut client = http2(socket(gateway.public).await, window, connection_window).await;
        let body = chat_body(model, "x", r#""stream":true"#);
        let text = client.ask("/v1/chat/completions", "text/plain", body).await;
        let done = gateway.metrics().await.ended("ok") + 1;
        gateway
            .until("all of it went out", |m| m.ended("ok") == done)
            .await;
        // The connection is whole: it takes another request, and the first one ends as it should.
        let other = client.ask("/v1/tokenize", "*/*", r#"{"content":"abc"}"#.to_owned());
        assert!(rest(other.await).await.unwrap().contains("tokens"));
        assert_eq!(rest(text).await.unwrap(), expected);

        let call = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"chat","params":{}}}"#,
            chat_body(model, "x", r#""stream":true"#)
        );
        for (path, accept, body) in [
            ("/rpc", "*/*", call),
            (
                "/v1/chat/completions",
                "text/event-stream",
                chat_body(model, "x", r#""stream":true"#),
            ),
        ] {
            let stalled = client.ask(path, accept, body).await;
            settled(&gateway).await;
            let text = rest(stalled).await.unwrap();
            if accept == "*/*" {
                assert_eq!(text.matches(r#""text":"abcde""#).count(), 5000);
            } else {
                assert_eq!(Answer::of_text(&text).text(), expected);
            }
        }
    }
}
