//! Runs the load: threads of streams, a warm-up, a measured spell, and the sum of what was seen.
//!
//! Each thread has an executor of its own and shares nothing but the phase and the count of requests
//! left, so that a token costs one read, one scan and one clock reading.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use tokio::runtime;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::sleep;

use crate::count::{Dialect, Method};
use crate::exchange::{Pace, Shared};
use crate::process::Reading;
use crate::stats::Stats;

/// Connections that one thread opens at once with `--open`, so that the listener's queue holds.
const OPENING: usize = 128;

/// How often the opening of streams is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// How long opening may take before the run goes on with what is open.
const OPEN_TIMEOUT: Duration = Duration::from_mins(1);

/// What to run.
#[derive(Clone)]
pub(crate) struct Plan {
    /// Where the server is.
    pub(crate) address: SocketAddr,
    /// Whole requests; taken in turn.
    pub(crate) requests: Vec<Vec<u8>>,
    /// The form of the answers.
    pub(crate) dialect: Dialect,
    /// What is asked for.
    pub(crate) method: Method,
    /// Streams at once.
    pub(crate) streams: usize,
    /// Streams that are read slowly, besides.
    pub(crate) slow_streams: usize,
    /// Bytes a second for those.
    pub(crate) slow_rate: u64,
    /// Threads.
    pub(crate) threads: usize,
    /// What ends the run.
    pub(crate) until: Until,
    /// Before anything counts.
    pub(crate) warm_up: Duration,
    /// What gaps are compared with.
    pub(crate) expected_gap: Option<Duration>,
    /// The server's process, to be read before and after.
    pub(crate) pid: Option<u32>,
}

/// What ends a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// So many requests; each stream's place is filled again.
    Requests(u64),
    /// So much time; each stream's place is filled again.
    Elapsed(Duration),
    /// So much time from when all streams are open; none is opened again.
    Held(Duration),
}

/// What came of it.
pub(crate) struct Outcome {
    /// The figures of all threads.
    pub(crate) stats: Stats,
    /// The measured spell.
    pub(crate) elapsed: Duration,
    /// Streams whose answer had begun when measuring began, with [`Until::Held`].
    pub(crate) open: u64,
    /// The server before the first connection, when measuring began, and when it ended.
    pub(crate) server: Option<[Reading; 3]>,
    /// This process when measuring began and ended.
    pub(crate) own: [Reading; 2],
}

/// What the threads share.
struct Control {
    phase: watch::Receiver<Phase>,
    /// Requests that may still be sent while measuring.
    left: AtomicU64,
    /// Streams that are open.
    open: AtomicU64,
    /// Streams that failed to open.
    failed: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    WarmUp,
    Measure,
    Stop,
}

impl Control {
    fn take_request(&self) -> bool {
        let taken = self
            .left
            .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
        taken.is_ok()
    }
}

/// Runs a plan to its end.
///
/// # Errors
/// A thread cannot start, or the server's process cannot be read.
pub(crate) async fn run(plan: Plan) -> Result<Outcome> {
    let pid = plan.pid.map(|pid| pid.to_string());
    let server = || pid.as_deref().map(Reading::of).transpose();
    let before = server()?;
    let counted_from_start = plan.warm_up.is_zero() && !matches!(plan.until, Until::Held(_));
    let first = if counted_from_start {
        Phase::Measure
    } else {
        Phase::WarmUp
    };
    let (phase, receiver) = watch::channel(first);
    let control = Arc::new(Control {
        phase: receiver,
        left: AtomicU64::new(match plan.until {
            Until::Requests(count) => count,
            Until::Elapsed(_) | Until::Held(_) => u64::MAX,
        }),
        open: AtomicU64::new(0),
        failed: AtomicU64::new(0),
    });
    let mut begin = Instant::now();
    let mut server_begin = before;
    let mut own_begin = Reading::of("self")?;
    let mut threads = start(&plan, &control)?;
    if !counted_from_start {
        warm_up(&plan, &control).await;
        server_begin = server()?;
        own_begin = Reading::of("self")?;
        begin = Instant::now();
        phase.send_replace(Phase::Measure);
    }
    let open = control.open.load(Relaxed);
    match plan.until {
        Until::Elapsed(spell) | Until::Held(spell) => sleep(spell).await,
        // Threads drop their receivers when their requests are done; this one stays.
        Until::Requests(_) => {
            while threads.iter().any(|thread| !thread.is_finished()) {
                sleep(LOOK).await;
            }
        }
    }
    let mut elapsed = begin.elapsed();
    let server_end = server()?;
    let own_end = Reading::of("self")?;
    phase.send_replace(Phase::Stop);
    let mut stats = Stats::default();
    let mut last_end = begin;
    for thread in threads.drain(..) {
        let (part, end) = thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        stats.merge(&part);
        last_end = last_end.max(end);
    }
    if let Until::Requests(_) = plan.until {
        elapsed = last_end - begin;
    }
    Ok(Outcome {
        stats,
        elapsed,
        open,
        server: match (before, server_begin, server_end) {
            (Some(before), Some(begin), Some(end)) => Some([before, begin, end]),
            _ => None,
        },
        own: [own_begin, own_end],
    })
}

type Thread = thread::JoinHandle<Result<(Stats, Instant)>>;

fn start(plan: &Plan, control: &Arc<Control>) -> Result<Vec<Thread>> {
    let share = |all: usize, index| (index..all).step_by(plan.threads).count();
    (0..plan.threads)
        .map(|index| {
            let (plan, control) = (plan.clone(), Arc::clone(control));
            let (streams, slow) = (share(plan.streams, index), share(plan.slow_streams, index));
            thread::Builder::new()
                .name(format!("load-{index}"))
                .spawn(move || {
                    let runtime = runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .context("could not start an executor")?;
                    let set = LocalSet::new();
                    Ok(set.block_on(&runtime, thread_main(plan, control, index, streams, slow)))
                })
                .context("could not start a thread")
        })
        .collect()
}

async fn warm_up(plan: &Plan, control: &Control) {
    if let Until::Held(_) = plan.until {
        let begin = Instant::now();
        let settled = || control.open.load(Relaxed) + control.failed.load(Relaxed);
        while settled() < plan.streams as u64 && begin.elapsed() < OPEN_TIMEOUT {
            sleep(LOOK).await;
        }
    }
    sleep(plan.warm_up).await;
}

async fn thread_main(
    plan: Plan,
    control: Arc<Control>,
    index: usize,
    streams: usize,
    slow: usize,
) -> (Stats, Instant) {
    let shared = Rc::new(Shared::new(
        plan.address,
        plan.requests.into(),
        plan.dialect,
        plan.method,
        plan.expected_gap,
    ));
    let mut phase = control.phase.clone();
    if *phase.borrow_and_update() == Phase::Measure {
        shared.stats.borrow_mut().begin();
    }
    let mut workers = JoinSet::new();
    let opening = Rc::new(Semaphore::new(OPENING));
    for stream in 0..streams {
        let (shared, control) = (Rc::clone(&shared), Arc::clone(&control));
        // Streams take the requests in turn, all threads together.
        let turn = index + stream * plan.threads;
        match plan.until {
            Until::Held(_) => {
                let opening = Rc::clone(&opening);
                workers.spawn_local(async move { hold(&shared, &control, &opening, turn).await });
            }
            Until::Requests(_) | Until::Elapsed(_) => {
                workers.spawn_local(async move { repeat(&shared, &control, turn).await });
            }
        }
    }
    let mut slow_readers = JoinSet::new();
    for turn in 0..slow {
        let (shared, rate) = (Rc::clone(&shared), plan.slow_rate);
        slow_readers.spawn_local(async move { read_slowly(&shared, rate, turn).await });
    }
    let by_requests = matches!(plan.until, Until::Requests(_));
    loop {
        tokio::select! {
            changed = phase.changed() => match (changed.is_ok(), *phase.borrow_and_update()) {
                (true, Phase::Measure) => shared.stats.borrow_mut().begin(),
                (true, Phase::WarmUp) => {}
                (true, Phase::Stop) | (false, _) => break,
            },
            ended = workers.join_next(), if by_requests => if ended.is_none() {
                break;
            },
        }
    }
    // Streams under way are hung up on; the server sees a client that left.
    let end = Instant::now();
    workers.shutdown().await;
    slow_readers.shutdown().await;
    (shared.stats.take(), end)
}

/// Sends request after request on one connection.
async fn repeat(shared: &Shared, control: &Control, first_turn: usize) {
    let mut connection = None;
    let mut turn = first_turn;
    loop {
        if shared.stats.borrow().measuring && !control.take_request() {
            return;
        }
        let end = shared
            .exchange(&mut connection, turn, Pace::Full, &mut || {})
            .await;
        if let Err(kind) = end {
            shared.stats.borrow_mut().failed(kind);
            // A server that refuses everything should not be hammered at full speed.
            sleep(Duration::from_millis(10)).await;
        }
        turn += 1;
    }
}

/// Opens one stream and reads it to its end.
async fn hold(shared: &Shared, control: &Control, opening: &Semaphore, turn: usize) {
    let mut permit = opening.acquire().await.ok();
    let mut open = false;
    let end = shared
        .exchange(&mut None, turn, Pace::Full, &mut || {
            permit = None;
            open = true;
            control.open.fetch_add(1, Relaxed);
        })
        .await;
    if let Err(kind) = end {
        if !open {
            control.failed.fetch_add(1, Relaxed);
        }
        let mut stats = shared.stats.borrow_mut();
        // Counted also before measuring begins: a stream that does not open is not opened again.
        *stats.errors.entry(kind).or_default() += 1;
    }
}

/// Reads stream after stream slowly.
async fn read_slowly(shared: &Shared, rate: u64, first_turn: usize) {
    let mut turn = first_turn;
    loop {
        let pace = Pace::Slow(rate);
        let end = shared.exchange(&mut None, turn, pace, &mut || {}).await;
        {
            let slow = &mut shared.stats.borrow_mut().slow;
            match end {
                Ok(()) => slow.finished += 1,
                Err(_) => slow.cut += 1,
            }
        }
        sleep(Duration::from_millis(100)).await;
        turn += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

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

    /// Answers every request on every connection with the same bytes, until the client leaves.
    fn serve(answer: String) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for socket in listener.incoming() {
                let (mut socket, answer): (TcpStream, _) = (socket.unwrap(), answer.clone());
                thread::spawn(move || {
                    let mut request = [0; 1024];
                    while socket.read(&mut request).is_ok_and(|read| read > 0) {
                        socket.write_all(answer.as_bytes()).unwrap();
                    }
                });
            }
        });
        address
    }

    fn plan(address: SocketAddr, streams: usize, until: Until) -> Plan {
        Plan {
            address,
            requests: vec![b"POST / HTTP/1.1\r\n\r\n".to_vec()],
            dialect: Dialect::Sse,
            method: Method::Chat,
            streams,
            slow_streams: 0,
            slow_rate: 0,
            threads: 2,
            until,
            warm_up: Duration::ZERO,
            expected_gap: None,
            pid: Some(std::process::id()),
        }
    }

    #[tokio::test]
    async fn every_request_is_sent_once_and_counted() {
        let address = serve(whole());
        let outcome = run(plan(address, 3, Until::Requests(50))).await.unwrap();
        let stats = &outcome.stats;
        assert_eq!((stats.finished, stats.tokens), (50, 100));
        assert_eq!((stats.first_token.count(), stats.gap.count()), (50, 50));
        assert_eq!(stats.total.count(), 50);
        assert!(stats.errors.is_empty());
        assert!(outcome.server.is_some());
    }

    #[tokio::test]
    async fn failures_are_counted_by_kind() {
        for (answer, kind) in [
            (
                "HTTP/1.1 429 x\r\ncontent-length: 30\r\n\r\n{\"error\":{\"message\":\"Later.\"}}"
                    .to_owned(),
                "status 429: Later.",
            ),
            (
                [
                    HEAD,
                    &chunk(r#"{"error":{"message":"Broken."}}"#),
                    "0\r\n\r\n",
                ]
                .concat(),
                "in the stream: Broken.",
            ),
            (
                [HEAD, &token(), "0\r\n\r\n"].concat(),
                "the stream ended without its end mark",
            ),
            ("nonsense\r\n\r\n".to_owned(), "the response is not HTTP"),
        ] {
            let address = serve(answer);
            let outcome = run(plan(address, 1, Until::Requests(2))).await.unwrap();
            let errors: Vec<_> = outcome.stats.errors.into_iter().collect();
            assert_eq!(errors, [(kind.to_owned(), 2)]);
        }
    }

    #[tokio::test]
    async fn held_streams_are_all_open_before_anything_counts() {
        let address = serve([HEAD, &token()].concat());
        let held = Until::Held(Duration::from_millis(1));
        let outcome = run(plan(address, 9, held)).await.unwrap();
        assert_eq!((outcome.open, outcome.stats.finished), (9, 0));
        assert!(outcome.stats.errors.is_empty());
    }
}
