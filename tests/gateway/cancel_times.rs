//! How soon a client that leaves is seen, by each of the ways to leave.

use std::any::Any;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::support::{Served, chat_body, gateway, within};

/// What is promised while nothing else keeps the machine busy.
const PROMISE: Duration = Duration::from_millis(50);

/// A loaded machine may miss that often. One that only looks now and then would hit it by chance, but not
/// so often in so few rounds.
const ENOUGH: usize = 5;
const ROUNDS: usize = 40;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Http1Close,
    Http2Reset,
    Http2Close,
    Http3Stop,
    Http3Close,
    SluiceStop,
    SluiceClose,
}

const WAYS: [Way; 7] = [
    Way::Http1Close,
    Way::Http2Reset,
    Way::Http2Close,
    Way::Http3Stop,
    Way::Http3Close,
    Way::SluiceStop,
    Way::SluiceClose,
];

/// Leaves, and returns what shall outlive that.
type Leave = Box<dyn FnOnce() -> Box<dyn Any>>;

/// A stream that has begun, and how to leave it.
async fn begun(way: Way, served: &Served, model: &str) -> Leave {
    match way {
        Way::Http1Close => {
            let ask = served.gateway.chat(model, "x", r#""stream":true"#);
            let mut reply = ask.send().await;
            reply.next_event().await.expect("it began");
            Box::new(move || {
                drop(reply);
                Box::new(())
            })
        }
        Way::Http2Reset | Way::Http2Close => {
            let stream = TcpStream::connect(served.gateway.public).await.unwrap();
            let io = TokioIo::new(stream);
            let handshake = http2::handshake(TokioExecutor::new(), io);
            let (mut sender, connection) = within(handshake).await.unwrap();
            let connection = AbortOnDropHandle::new(tokio::spawn(connection));
            let body = chat_body(model, "x", r#""stream":true"#);
            let url = format!("{}/v1/chat/completions", served.gateway.url());
            let request = hyper::Request::post(url)
                .body(Full::new(Bytes::from(body)))
                .unwrap();
            let answer = within(sender.send_request(request)).await.unwrap();
            let mut answer = answer.into_body();
            within(answer.frame()).await.expect("it began").unwrap();
            Box::new(move || {
                drop(answer);
                if way == Way::Http2Reset {
                    return Box::new((sender, connection));
                }
                Box::new(())
            })
        }
        Way::Http3Stop | Way::Http3Close => {
            let http = served.http3().await;
            let mut exchange = http.chat(model, "").await;
            exchange.next_event().await.expect("it began");
            Box::new(move || {
                if way == Way::Http3Close {
                    http.connection.close(0_u32.into(), b"");
                    return Box::new((exchange, http));
                }
                drop(exchange);
                Box::new(http)
            })
        }
        Way::SluiceStop | Way::SluiceClose => {
            let sluice = served.sluice().await;
            let mut exchange = sluice.chat(model, "").await;
            exchange.next().await;
            Box::new(move || {
                if way == Way::SluiceClose {
                    sluice.0.close(0_u32.into(), b"");
                } else {
                    exchange.stop();
                }
                Box::new((exchange, sluice))
            })
        }
    }
}

/// From leaving to its being counted and its place being free.
async fn round(way: Way, served: &Served, model: &str, gone: &mut u64) -> Duration {
    let leave = begun(way, served, model).await;
    let start = Instant::now();
    let _kept = leave();
    *gone += 1;
    loop {
        let metrics = served.gateway.metrics().await;
        if metrics.ended("client_gone") == *gone && metrics.running() == 0 {
            return start.elapsed();
        }
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "{way:?} is never seen:\n{metrics}"
        );
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
#[expect(
    clippy::print_stdout,
    reason = "the figures, for whoever asks for them"
)]
async fn a_client_that_leaves_is_seen_at_once_by_whatever_way_it_goes() {
    let served = Served::by(gateway().scripted()).await;
    let mut gone = 0;
    for way in WAYS {
        for (state, model) in [
            ("idle", "scripted?pace=1h"),
            ("in mid-stream", "scripted?tokens=1000000&pace=1ms"),
        ] {
            let mut times = Vec::new();
            let in_time = |times: &Vec<Duration>| times.iter().filter(|&&t| t <= PROMISE).count();
            while in_time(&times) < ENOUGH && times.len() < ROUNDS {
                times.push(round(way, &served, model, &mut gone).await);
            }
            times.sort_unstable();
            let median = times[times.len() / 2];
            println!("{way:?}, {state}: median {median:.1?} of {}", times.len());
            assert!(in_time(&times) >= ENOUGH, "{way:?}, {state}: {times:?}");
        }
    }
}
