//! Callers: so many streams at once, or so many arrivals a second, and what came of all they asked.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use super::client::{Answer, Ask, Connection};
use crate::numbers::{float, percentile};
use crate::random::Random;

/// What came of everything that was asked.
#[derive(Default)]
pub(super) struct Tally {
    /// Every answer that has ended.
    pub(super) answers: Vec<Answer>,
    /// Tokens as they came, those of answers that have not ended included.
    pub(super) tokens: u64,
    /// First tokens as they came.
    pub(super) begun: u64,
    /// Connections that were made.
    pub(super) made: u64,
}

/// Callers at work; what they have under way is hung up on when this is dropped. Needs a `LocalSet`.
pub(super) struct Callers {
    tally: Rc<RefCell<Tally>>,
    is_over: Rc<Cell<bool>>,
    work: JoinSet<()>,
}

/// Makes the next request.
pub(super) trait Next: FnMut() -> Ask + 'static {}

impl<F: FnMut() -> Ask + 'static> Next for F {}

impl Callers {
    /// Keeps so many streams open: each asks again when its answer has ended, and after a `pause` where that
    /// was no good answer.
    pub(super) fn closed(
        address: SocketAddr,
        streams: usize,
        pause: Duration,
        next: impl Next,
    ) -> Self {
        let tally = Rc::new(RefCell::new(Tally::default()));
        let is_over = Rc::new(Cell::new(false));
        let next = Rc::new(RefCell::new(next));
        let mut work = JoinSet::new();
        for _ in 0..streams {
            let (tally, next) = (Rc::clone(&tally), Rc::clone(&next));
            let is_over = Rc::clone(&is_over);
            work.spawn_local(async move {
                let mut connection = Connection::new(address);
                while !is_over.get() {
                    let ask = next.borrow_mut()();
                    if one(&mut connection, &ask, &tally).await != 200 && !pause.is_zero() {
                        sleep(pause).await;
                    }
                }
            });
        }
        Self {
            tally,
            is_over,
            work,
        }
    }

    /// Asks so often a second, whatever has become of the requests before.
    pub(super) fn open(
        address: SocketAddr,
        per_second: f64,
        mut random: Random,
        mut next: impl Next,
    ) -> Self {
        let tally = Rc::new(RefCell::new(Tally::default()));
        let is_over = Rc::new(Cell::new(false));
        let mut work = JoinSet::new();
        let (shared, over) = (Rc::clone(&tally), Rc::clone(&is_over));
        work.spawn_local(async move {
            let mut asks = JoinSet::new();
            let idle: Rc<RefCell<Vec<Connection>>> = Rc::default();
            let mut at = Instant::now();
            while !over.get() {
                // By the clock and not by sleeping so long: who is late once is not late ever after.
                at += random.gap(per_second);
                sleep_until(at.into()).await;
                while asks.try_join_next().is_some() {}
                let (ask, tally, idle) = (next(), Rc::clone(&shared), Rc::clone(&idle));
                asks.spawn_local(async move {
                    let kept = idle.borrow_mut().pop();
                    let mut connection = kept.unwrap_or_else(|| Connection::new(address));
                    one(&mut connection, &ask, &tally).await;
                    idle.borrow_mut().push(connection);
                });
            }
            while asks.join_next().await.is_some() {}
        });
        Self {
            tally,
            is_over,
            work,
        }
    }

    /// What came since this was asked last.
    pub(super) fn take(&self) -> Tally {
        self.tally.take()
    }

    /// Asks nothing more. What is under way goes on.
    pub(super) fn cease(&self) {
        self.is_over.set(true);
    }

    /// Asks nothing more, waits until all answers have ended, and takes what came.
    pub(super) async fn finish(mut self) -> Tally {
        self.cease();
        while self.work.join_next().await.is_some() {}
        self.take()
    }

    /// Lets time pass and takes what came in it.
    pub(super) async fn during(&self, time: Duration) -> Tally {
        self.take();
        sleep(time).await;
        self.take()
    }
}

/// One request; returns the status.
async fn one(connection: &mut Connection, ask: &Ask, tally: &RefCell<Tally>) -> u16 {
    let made = connection.made;
    let mut begun = false;
    let answer = connection
        .ask(ask, &mut |tokens| {
            let mut tally = tally.borrow_mut();
            tally.tokens += tokens;
            if tokens > 0 && !begun {
                begun = true;
                tally.begun += 1;
            }
        })
        .await;
    let status = answer.status;
    let mut tally = tally.borrow_mut();
    tally.made += connection.made - made;
    tally.answers.push(answer);
    status
}

impl Tally {
    /// Adds another spell's.
    pub(super) fn add(&mut self, other: Self) {
        self.answers.extend(other.answers);
        self.tokens += other.tokens;
        self.begun += other.begun;
        self.made += other.made;
    }

    /// Answers with this status.
    pub(super) fn with(&self, status: u16) -> u64 {
        let with = self.answers.iter().filter(|answer| answer.status == status);
        with.count() as u64
    }

    /// The times from request to end that a share of those with this status do not exceed.
    pub(super) fn total(&self, status: u16, share: f64) -> Duration {
        let with = self.answers.iter().filter(|answer| answer.status == status);
        percentile(
            &mut with.map(|answer| answer.total).collect::<Vec<_>>(),
            share,
        )
    }

    /// The times to the first token that a share of all do not exceed.
    pub(super) fn first(&self, share: f64) -> Duration {
        let first = self.answers.iter().filter_map(|answer| answer.first);
        percentile(&mut first.collect::<Vec<_>>(), share)
    }

    /// Tokens that were computed: those that came, and for every answer that began its prompt, which counts
    /// as the mean of those that are known.
    pub(super) fn computed(&self) -> f64 {
        let prompts: Vec<u64> = self
            .answers
            .iter()
            .filter_map(|answer| answer.prompt)
            .collect();
        let mean = float(prompts.iter().sum()) / float(prompts.len().max(1) as u64);
        float(self.tokens) + float(self.begun) * mean
    }

    /// Answers other than these statuses, by what they say.
    pub(super) fn faults(&self, expected: &[u16]) -> BTreeMap<String, u64> {
        let mut faults = BTreeMap::new();
        for answer in &self.answers {
            let is_expected = expected.contains(&answer.status)
                && (answer.status != 200 || answer.fault.is_none());
            if !is_expected {
                let fault = answer.fault.clone();
                let kind = fault.unwrap_or_else(|| format!("status {}", answer.status));
                *faults.entry(kind).or_default() += 1;
            }
        }
        faults
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these are whole numbers")]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use serde_json::json;
    use tokio::task::LocalSet;

    use super::*;

    /// Answers every request on every connection.
    fn serve() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for socket in listener.incoming() {
                let mut socket = socket.unwrap();
                thread::spawn(move || {
                    while socket.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {
                        let answer = b"HTTP/1.1 200 x\r\ncontent-length: 2\r\n\r\n{}";
                        socket.write_all(answer).unwrap();
                    }
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn callers_ask_until_they_are_told_to_cease() {
        let address = serve();
        let next = || Ask::chat(None, "", &json!({}));
        LocalSet::new()
            .run_until(async {
                let closed = Callers::closed(address, 2, Duration::ZERO, next);
                let open = Callers::open(address, 10_000.0, Random::new(1), next);
                for callers in [closed, open] {
                    let mut tally = Tally::default();
                    while tally.answers.len() < 20 {
                        sleep(Duration::from_millis(1)).await;
                        tally.add(callers.take());
                    }
                    tally.add(callers.finish().await);
                    assert!(tally.faults(&[200]).is_empty());
                    assert!(tally.made >= 1 && tally.made < tally.with(200));
                }
            })
            .await;
    }

    fn answer(status: u16, first: u64, prompt: Option<u64>) -> Answer {
        Answer {
            status,
            sent: Instant::now(),
            first: (status == 200).then_some(Duration::from_millis(first)),
            total: Duration::from_millis(first + 1),
            tokens: 0,
            is_whole: status == 200,
            fault: (status != 200).then(|| "no".to_owned()),
            has_retry_after: false,
            prompt,
        }
    }

    #[test]
    fn a_tally_tells_statuses_apart() {
        let mut tally = Tally {
            answers: vec![answer(200, 10, Some(4)), answer(429, 20, None)],
            tokens: 5,
            begun: 3,
            made: 1,
        };
        assert_eq!((tally.with(200), tally.with(429)), (1, 1));
        assert_eq!(tally.total(429, 0.5), Duration::from_millis(21));
        assert_eq!(tally.first(0.99), Duration::from_millis(10));
        assert_eq!(tally.computed(), 17.0);
        assert_eq!(tally.faults(&[200])["no"], 1);
        assert!(tally.faults(&[200, 429]).is_empty());
        tally.add(Tally {
            answers: vec![answer(200, 30, Some(8))],
            ..Tally::default()
        });
        assert_eq!(tally.computed(), 23.0);
    }
}
