//! The callers of one load: they ask when it is time to, over the load's transports in turn, and read the answers.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep, sleep_until, timeout};

use super::scenario::{Arrivals, Load, Span};
use super::server::Server;
use super::tally::{Tally, Timeline, Window};
use crate::engine::text::Texts;
use crate::net::{Connection, Dialer, Fault, Transport};
use crate::random::Random;

/// Streams and connections that are being opened at once where all are to be held, so that listeners' queues hold.
const OPENING: usize = 64;

/// How long opening those may take before the phase goes on with what is open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// Most requests under way where they come by the clock; more are failures that are told.
const MOST_UNDER_WAY: u64 = 10_000;

/// How long a caller waits whose request has failed.
const AFTER_FAILURE: Duration = Duration::from_millis(10);

/// A read of so much may have left more: the other streams come first, or one full pipe would hide them.
const FULL_READ: usize = 16 * 1024;

/// The callers of a load.
pub(super) struct Callers {
    shared: Rc<Shared>,
    tasks: JoinSet<()>,
}

struct Shared {
    load: Load,
    lanes: Vec<Lane>,
    /// Which lane is whose turn.
    order: Vec<usize>,
    turn: Cell<usize>,
    bodies: RefCell<Bodies>,
    window: Rc<Window>,
    /// Held streams that have begun or failed.
    settled: Cell<usize>,
    opening: Semaphore,
    under_way: Cell<u64>,
}

/// A transport of the load.
struct Lane {
    transport: Transport,
    dialer: Dialer,
    connections: Vec<Connection>,
    turn: Cell<usize>,
    tally: RefCell<Tally>,
}

/// Makes requests: each other words, the same in every run.
struct Bodies {
    model: String,
    shared: String,
    prompt: Span,
    tokens: Span,
    is_plain: bool,
    texts: Texts,
    random: Random,
}

impl Bodies {
    fn new(load: &Load, server: &Server, seed: u64) -> Self {
        // What all have in common is also the same for every seed.
        let shared = Texts::new(1).words(load.shared);
        Self {
            model: server.model(&load.model),
            shared,
            prompt: load.prompt,
            tokens: load.tokens,
            is_plain: server.is_plain(),
            texts: Texts::new(seed),
            random: Random::new(seed),
        }
    }

    fn next(&mut self) -> Vec<u8> {
        let words = draw(&mut self.random, self.prompt);
        let own = self.texts.words(words as usize);
        let text = if self.shared.is_empty() {
            own
        } else {
            format!("{} {own}", self.shared)
        };
        let mut body = json!({
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "stream": true,
            "max_tokens": draw(&mut self.random, self.tokens),
        });
        if !self.is_plain {
            body["ignore_eos"] = json!(true);
        }
        body.to_string().into_bytes()
    }
}

fn draw(random: &mut Random, span: Span) -> u32 {
    let [least, most] = span.ends();
    let width = u64::from(most - least) + 1;
    least + u32::try_from((random.bits() >> 16) % width).unwrap_or_default()
}

impl Callers {
    /// Connects, and begins to ask. Needs a `LocalSet`.
    ///
    /// # Errors
    /// The server is not there over a transport.
    pub(super) async fn start(
        load: &Load,
        server: &Server,
        window: &Rc<Window>,
        seed: u64,
    ) -> Result<Self> {
        let mut lanes = Vec::new();
        let mut order = Vec::new();
        for (transport, share) in server.transports(load)? {
            order.extend(std::iter::repeat_n(lanes.len(), share));
            lanes.push(Lane::new(transport, load, server).await?);
        }
        let shared = Rc::new(Shared {
            load: load.clone(),
            lanes,
            order,
            turn: Cell::new(0),
            bodies: RefCell::new(Bodies::new(load, server, seed)),
            window: Rc::clone(window),
            settled: Cell::new(0),
            opening: Semaphore::new(OPENING),
            under_way: Cell::new(0),
        });
        let mut tasks = JoinSet::new();
        let arrivals = load.arrivals;
        match arrivals {
            Arrivals::Closed(streams) => {
                for _ in 0..streams {
                    let shared = Rc::clone(&shared);
                    tasks.spawn_local(async move { shared.again_and_again().await });
                }
            }
            Arrivals::Held(streams) => {
                for _ in 0..streams {
                    let shared = Rc::clone(&shared);
                    tasks.spawn_local(async move { shared.hold().await });
                }
            }
            Arrivals::Rate(_) | Arrivals::Burst { .. } => {
                let shared = Rc::clone(&shared);
                tasks.spawn_local(async move { shared.by_the_clock(seed).await });
            }
        }
        Ok(Self { shared, tasks })
    }

    /// Waits until all streams that are to be held have begun.
    pub(super) async fn settle(&self) {
        let Arrivals::Held(streams) = self.shared.load.arrivals else {
            return;
        };
        let all = async {
            while self.shared.settled.get() < streams {
                sleep(Duration::from_millis(5)).await;
            }
        };
        // What has not begun by then is seen in the figures.
        let _ = timeout(OPEN_TIMEOUT, all).await;
    }

    /// Lets requests that came by the clock come to their end, for so long at most, and hangs up on all others.
    /// Returns what was seen, by transport.
    pub(super) async fn finish(mut self, patience: Duration) -> Vec<(Transport, Tally)> {
        let drains = matches!(
            self.shared.load.arrivals,
            Arrivals::Rate(_) | Arrivals::Burst { .. }
        );
        if drains {
            let all = async { while self.tasks.join_next().await.is_some() {} };
            let _ = timeout(patience, all).await;
        }
        self.tasks.shutdown().await;
        for lane in &self.shared.lanes {
            let mut tally = lane.tally.borrow_mut();
            let left = tally.due - tally.ends();
            if drains && left > 0 {
                // Who is still waiting was not served, and does not get lost by being late.
                tally.unanswered(left, patience);
            } else {
                tally.running = left;
            }
        }
        let lanes = self.shared.lanes.iter();
        lanes
            .map(|lane| (lane.transport, lane.tally.take()))
            .collect()
    }
}

impl Lane {
    async fn new(transport: Transport, load: &Load, server: &Server) -> Result<Self> {
        let dialer = Dialer::new(transport, server.site(transport)?, load.reads.is_some())?;
        let count = if transport.is_multiplexed() {
            load.connections
        } else {
            1
        };
        let mut connections = Vec::new();
        for _ in 0..count {
            connections.push(dialer.connect().await.map_err(anyhow::Error::msg)?);
        }
        Ok(Self {
            transport,
            dialer,
            connections,
            turn: Cell::new(0),
            tally: RefCell::default(),
        })
    }
}

impl Shared {
    /// A request is due: which lane it takes, and its times. Counted here and not when it is sent, so that none is
    /// lost to a generator that does not come to sending it.
    fn due(&self, intended: Instant, counts: bool) -> (usize, Timeline) {
        let turn = self.turn.get();
        self.turn.set(turn + 1);
        let lane = self.order[turn % self.order.len()];
        self.lanes[lane].tally.borrow_mut().due += u64::from(counts);
        (lane, Timeline::new(intended, counts))
    }

    async fn again_and_again(&self) {
        while !self.window.is_over(Instant::now()) {
            let now = Instant::now();
            let due = self.due(now, self.window.holds(now));
            if !self.ask(due, &mut || {}).await {
                sleep(AFTER_FAILURE).await;
            }
        }
    }

    async fn hold(&self) {
        let mut permit = self.opening.acquire().await.ok();
        let mut is_settled = false;
        let mut settle = || {
            permit = None;
            if !std::mem::replace(&mut is_settled, true) {
                self.settled.set(self.settled.get() + 1);
            }
        };
        let due = self.due(Instant::now(), true);
        self.ask(due, &mut settle).await;
        settle();
    }

    async fn by_the_clock(self: Rc<Self>, seed: u64) {
        let mut random = Random::new(seed ^ 0x5EED);
        let mut asked = JoinSet::new();
        let mut at = Instant::now();
        loop {
            let count = match self.load.arrivals {
                Arrivals::Rate(rate) => {
                    // By the clock and not by sleeping so long: who is late once is not late ever after.
                    at += random.gap(rate);
                    1
                }
                Arrivals::Burst { streams, every } => {
                    at += every;
                    streams
                }
                Arrivals::Closed(_) | Arrivals::Held(_) => 0,
            };
            sleep_until(at.into()).await;
            if self.window.is_over(at) {
                break;
            }
            while asked.try_join_next().is_some() {}
            for _ in 0..count {
                let due = self.due(at, self.window.holds(at));
                let shared = Rc::clone(&self);
                asked.spawn_local(async move { shared.ask(due, &mut || {}).await });
            }
        }
        while asked.join_next().await.is_some() {}
    }

    /// Asks once; whether all went well.
    async fn ask(&self, (lane, mut timeline): (usize, Timeline), begun: &mut impl FnMut()) -> bool {
        let lane = &self.lanes[lane];
        if timeline.counts {
            let passed = timeline.intended.elapsed();
            lane.tally.borrow_mut().late.record(passed, 1);
        }
        let end = if self.under_way.get() < MOST_UNDER_WAY {
            let _place = Place::take(&self.under_way);
            self.exchange(lane, &mut timeline, begun).await
        } else {
            Err(Fault::Broken(format!(
                "not sent: {MOST_UNDER_WAY} are under way"
            )))
        };
        let is_good = end.is_ok();
        let mut tally = lane.tally.borrow_mut();
        tally.ended(&timeline, Instant::now(), end);
        is_good
    }

    async fn exchange(
        &self,
        lane: &Lane,
        timeline: &mut Timeline,
        begun: &mut impl FnMut(),
    ) -> Result<(), Fault> {
        let body = self.bodies.borrow_mut().next();
        let turn = lane.turn.get();
        lane.turn.set(turn + 1);
        let connection = &lane.connections[turn % lane.connections.len()];
        let mut stream = lane
            .dialer
            .open(connection, &body)
            .await
            .map_err(Fault::Broken)?;
        let most = self.load.reads.map_or(usize::MAX, |rate| rate.max(1024));
        let mut has_begun = false;
        loop {
            let read = match stream.read(most).await {
                Ok(Some(read)) => read,
                Ok(None) => break,
                Err(Fault::Stale) => {
                    // As clients do. Each time one that was kept is gone, so that a new one comes at last.
                    let again = lane.dialer.open(connection, &body).await;
                    stream = again.map_err(Fault::Broken)?;
                    continue;
                }
                Err(fault) => return Err(fault),
            };
            let now = Instant::now();
            lane.tally
                .borrow_mut()
                .read(&self.window, timeline, now, read.tokens);
            if !has_begun && read.tokens > 0 {
                has_begun = true;
                begun();
            }
            match self.load.reads {
                None if read.bytes >= FULL_READ => yield_now().await,
                Some(0) if has_begun => std::future::pending().await,
                None | Some(0) => {}
                Some(rate) => {
                    #[expect(clippy::cast_precision_loss, reason = "a read is small")]
                    let seconds = read.bytes as f64 / rate as f64;
                    sleep(Duration::from_secs_f64(seconds)).await;
                }
            }
        }
        connection.keep(stream);
        Ok(())
    }
}

/// Counted for as long as this is kept, however it ends.
struct Place<'a>(&'a Cell<u64>);

impl<'a> Place<'a> {
    fn take(count: &'a Cell<u64>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests;
