//! Callers against servers that answer at once, are silent, or break off.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use serde_json::Value;
use tokio::task::LocalSet;

use super::*;
use crate::run::server::Peer;
use crate::target::Target;

const HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

fn chunk(data: &str) -> String {
    let event = format!("data: {data}\n\n");
    format!("{:x}\r\n{event}\r\n", event.len())
}

fn token() -> String {
    chunk(r#"{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}"#)
}

fn whole() -> String {
    [HEAD, &token(), &token(), &chunk("[DONE]"), "0\r\n\r\n"].concat()
}

/// Answers every request on every connection with the same bytes; tells of the requests' bodies.
fn serve(answer: String) -> (Server, Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = sync_channel(100_000);
    thread::spawn(move || {
        for socket in listener.incoming() {
            let (mut socket, answer, tell) = (socket.unwrap(), answer.clone(), tell.clone());
            thread::spawn(move || {
                let mut request = [0; 4096];
                // A request is small, and comes in one piece.
                while let Ok(read @ 1..) = socket.read(&mut request) {
                    let text = String::from_utf8_lossy(&request[..read]);
                    let (_, body) = text.split_once("\r\n\r\n").unwrap();
                    let _ = tell.send(serde_json::from_str(body).unwrap());
                    if answer.is_empty() {
                        continue;
                    }
                    if socket.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    (server(address), told)
}

fn server(address: SocketAddr) -> Server {
    Server::Peer(Peer {
        target: Target::parse(&format!("http://{address}")).unwrap(),
        key: None,
        model: None,
        is_plain: false,
        pid: None,
    })
}

fn load(arrivals: Arrivals) -> Load {
    let text = "name = \"x\"\narrivals = { closed = 1 }\nmodel = \"m\"\nprompt = [2, 4]\nshared = 3\n\
                tokens = [5, 6]\n";
    let mut load: Load = toml::from_str(text).unwrap();
    load.arrivals = arrivals;
    load
}

/// Lets callers ask from now on until so many requests have come, and for that long again.
async fn ask(load: &Load, server: &Server, told: &Receiver<Value>, patience: Duration) -> Tally {
    let window = Rc::new(Window::default());
    let begin = Instant::now();
    window.set(begin, begin + Duration::from_hours(1));
    let callers = Callers::start(load, server, &window, 1).await.unwrap();
    callers.settle().await;
    let mut came = 0;
    while came < 8 {
        sleep(Duration::from_millis(1)).await;
        came += told.try_iter().count();
    }
    window.set(begin, Instant::now());
    let mut tallies = callers.finish(patience).await;
    assert_eq!(tallies.len(), 1);
    tallies.remove(0).1
}

const LONG: Duration = Duration::from_mins(1);

#[tokio::test]
async fn callers_ask_again_and_what_they_ask_follows_from_the_seed() {
    LocalSet::new()
        .run_until(async {
            let (server, told) = serve(whole());
            let tally = ask(&load(Arrivals::Closed(2)), &server, &told, LONG).await;
            assert!(
                tally.finished >= 6 && tally.errors == 0,
                "{:?}",
                tally.kinds
            );
            assert!(tally.first_token.count() >= tally.finished);

            let mut one = Bodies::new(&load(Arrivals::Closed(1)), &server, 7);
            let mut same = Bodies::new(&load(Arrivals::Closed(1)), &server, 7);
            let mut other = Bodies::new(&load(Arrivals::Closed(1)), &server, 8);
            let text = |body: Vec<u8>| {
                let body: Value = serde_json::from_slice(&body).unwrap();
                assert!((5..=6).contains(&body["max_tokens"].as_u64().unwrap()));
                body["messages"][0]["content"].as_str().unwrap().to_owned()
            };
            let (one, same, other) = (text(one.next()), text(same.next()), text(other.next()));
            assert!(one == same && one != other);
            assert!((5..=7).contains(&one.split(' ').count()));
            // What all have in common is the same for all seeds.
            let first = |text: &str| {
                text.split(' ')
                    .take(3)
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            };
            assert_eq!(first(&one), first(&other));
        })
        .await;
}

#[tokio::test]
async fn who_comes_by_the_clock_and_is_not_answered_has_failed() {
    LocalSet::new()
        .run_until(async {
            let (server, told) = serve(String::new());
            let rate = load(Arrivals::Rate(10_000.0));
            let tally = ask(&rate, &server, &told, Duration::from_millis(1)).await;
            assert!(tally.errors >= 8 && tally.finished == 0);
            assert_eq!(
                tally.kinds.get("no end within 0 s"),
                Some(&tally.errors),
                "{:?}",
                tally.kinds
            );
            assert!(tally.due == tally.errors && tally.due >= tally.late.count());
        })
        .await;
}

#[tokio::test]
async fn bursts_come_to_their_end_and_streams_that_break_off_are_truncated() {
    LocalSet::new()
        .run_until(async {
            let burst = Arrivals::Burst {
                streams: 4,
                every: Duration::from_millis(1),
            };
            let (server, told) = serve([HEAD, &token(), "0\r\n\r\n"].concat());
            let tally = ask(&load(burst), &server, &told, LONG).await;
            assert!(tally.truncated >= 8 && tally.truncated == tally.due);
            assert_eq!(tally.truncated % 4, 0);
        })
        .await;
}

#[tokio::test]
async fn held_streams_run_until_the_end() {
    LocalSet::new()
        .run_until(async {
            let (server, told) = serve([HEAD, &token()].concat());
            let tally = ask(&load(Arrivals::Held(8)), &server, &told, LONG).await;
            assert_eq!((tally.running, tally.due), (8, 8));
            assert_eq!(tally.first_token.count(), 8);
        })
        .await;
}

#[tokio::test]
async fn who_finds_a_kept_connection_closed_asks_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = server(listener.local_addr().unwrap());
    let (tell, told) = sync_channel(100_000);
    thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let mut request = [0; 4096];
            // Says that the connection stays, takes another request, and closes without a word.
            if socket.read(&mut request).is_ok_and(|read| read > 0) {
                let _ = tell.send(Value::Null);
                let _ = socket.write_all(whole().as_bytes());
                let _ = socket.read(&mut request);
            }
        }
    });
    LocalSet::new()
        .run_until(async {
            let tally = ask(&load(Arrivals::Closed(1)), &server, &told, LONG).await;
            assert!(
                tally.finished >= 7 && tally.errors == 0,
                "{:?}",
                tally.kinds
            );
        })
        .await;
}
