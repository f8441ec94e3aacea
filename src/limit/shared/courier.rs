//! The one task that speaks with the server: it fetches what runs low and returns what lies unused.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use redis::RedisError;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use super::breaker::Breaker;
use super::lease::{Budget, Wish};
use super::link::{Call, Link, NODES, QUOTA, RATE, Reply};
use super::{Held, Inner, MOST_LEFT_BEHIND};

/// Leases settled in one round trip at most.
const BATCH: usize = 256;

/// Between two looks for leases that lie unused.
const TICK: Duration = Duration::from_millis(500);

/// Between two signs of life of a node, and after how long without one it is gone.
const BEAT: Duration = Duration::from_secs(1);
const GONE: Duration = Duration::from_secs(5);

/// What setting up a connection may take at the least: it is further than a round trip.
const CONNECT: Duration = Duration::from_millis(250);

/// What giving everything back at the end may take.
const FAREWELL: Duration = Duration::from_millis(500);

/// How long the server remembers of a rate what it has settled. It is sent again only until the server is
/// taken to be away, which is a matter of seconds.
const REMEMBERED: Duration = Duration::from_mins(1);

/// How long a quota's key outlives its day or month, for nodes whose clocks are behind.
const AFTERWARDS: Duration = Duration::from_hours(25);

struct Courier {
    shared: Arc<Inner>,
    link: Option<Link>,
    breaker: Breaker,
    /// This node's name at the server.
    node: String,
    /// Of the last wish.
    number: u64,
    next_beat: Instant,
}

/// Why the server gave no answer of use.
enum Silence {
    TooLate,
    Error(RedisError),
}

pub(super) async fn run(shared: Arc<Inner>, stop: CancellationToken) {
    let mut courier = Courier {
        shared,
        link: None,
        breaker: Breaker::new(),
        node: uuid::Uuid::new_v4().simple().to_string(),
        number: 0,
        next_beat: Instant::now(),
    };
    let mut tick = Instant::now();
    loop {
        let shared = courier.shared.clone();
        let wait = courier.breaker.probe_at().unwrap_or(tick).min(tick);
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = time::sleep_until(wait) => {}
            () = shared.wake.notified(), if !courier.breaker.is_open() => {}
        }
        let now = Instant::now();
        if now >= tick {
            courier.look_around();
            tick = now + TICK;
        }
        let may_ask = courier.breaker.probe_at().is_none_or(|at| now >= at);
        if may_ask {
            courier.work().await;
        }
    }
    let _ = time::timeout(FAREWELL, courier.leave()).await;
}

impl Courier {
    /// Says that this node is there, when it is time, and then settles all leases that are due.
    async fn work(&mut self) {
        let is_open = self.breaker.is_open();
        if is_open || Instant::now() >= self.next_beat {
            self.next_beat = Instant::now() + BEAT;
            if !self.beat().await {
                return;
            }
        }
        loop {
            let batch = self.due(BATCH);
            if batch.is_empty() || !self.settle(batch, false).await {
                return;
            }
        }
    }

    /// A sign of life. Whether the server answered.
    async fn beat(&mut self) -> bool {
        let call = self.beating(false);
        let answer = self.exchange(&[call]).await;
        if let Some(&[[nodes, ..]]) = answer.as_deref() {
            let nodes = u32::try_from(nodes).unwrap_or(1).max(1);
            self.shared.nodes.store(nodes, Relaxed);
        }
        answer.is_some()
    }

    fn beating(&self, is_last: bool) -> Call {
        Call {
            code: &NODES,
            keys: vec![format!("{}:nodes", self.shared.redis.prefix)],
            arguments: vec![
                self.node.clone(),
                GONE.as_millis().to_string(),
                u8::from(is_last).to_string(),
            ],
        }
    }

    /// One round trip for some leases. Whether the server answered.
    async fn settle(&mut self, batch: Vec<Arc<Held>>, all: bool) -> bool {
        let (mut calls, mut wishes) = (Vec::new(), Vec::new());
        for held in &batch {
            held.lease.is_due.store(false, Relaxed);
            let at = held.lease.clock.at();
            self.number += 1;
            let own_used = held.used_by_own(at);
            let wish = held.lease.wish(all, self.number, own_used, at);
            calls.push(self.call(held, &wish));
            wishes.push(wish);
        }
        let answer = self.exchange(&calls).await;
        for (index, (held, wish)) in batch.iter().zip(&wishes).enumerate() {
            match answer.as_ref().and_then(|replies| replies.get(index)) {
                Some(&reply) => held.lease.granted(wish, reply, held.lease.clock.at()),
                None => held.lease.unanswered(wish),
            }
        }
        answer.is_some()
    }

    fn call(&self, held: &Held, wish: &Wish) -> Call {
        let (prefix, name) = (&self.shared.redis.prefix, &held.lease.name);
        // Where the server remembers what it has settled: for each lease of each node.
        let settled = format!("{prefix}:settled:{}", self.node);
        match held.lease.budget {
            Budget::Rate { per_minute, burst } => Call {
                code: &RATE,
                keys: vec![
                    format!("{prefix}:rate:{name}"),
                    format!("{settled}:{name}:{per_minute}:{burst}"),
                ],
                arguments: vec![
                    per_minute.to_string(),
                    burst.to_string(),
                    wish.settle.to_string(),
                    wish.need.to_string(),
                    wish.want.to_string(),
                    wish.known.to_string(),
                    wish.number.to_string(),
                    REMEMBERED.as_millis().to_string(),
                ],
            },
            Budget::Quota { period, most } => {
                let left = period.left(wish.index, held.lease.clock.at().unix);
                let date = period.text(wish.index);
                Call {
                    code: &QUOTA,
                    keys: vec![
                        format!("{prefix}:{date}:{name}"),
                        format!("{settled}:{date}:{name}:{most}"),
                    ],
                    arguments: vec![
                        most.to_string(),
                        wish.settle.to_string(),
                        wish.need.to_string(),
                        wish.want.to_string(),
                        wish.known.to_string(),
                        wish.number.to_string(),
                        (left + AFTERWARDS).as_millis().to_string(),
                    ],
                }
            }
        }
    }

    /// Runs scripts, over a new connection if there is none.
    async fn exchange(&mut self, calls: &[Call]) -> Option<Vec<Reply>> {
        let answer = self.try_exchange(calls).await;
        match answer {
            Ok(replies) => {
                self.shared.is_late.store(false, Relaxed);
                if self.breaker.answered() {
                    self.resume();
                }
                Some(replies)
            }
            Err(silence) => {
                self.failed(&silence);
                None
            }
        }
    }

    async fn try_exchange(&mut self, calls: &[Call]) -> Result<Vec<Reply>, Silence> {
        let patience = self.shared.redis.timeout.saturating_mul(4);
        let mut link = match self.link.take() {
            Some(link) => link,
            None => within(patience.max(CONNECT), Link::open(&self.shared.redis.url)).await?,
        };
        // Requests that wait give up before; what comes late is still of use to the next ones.
        let replies = within(patience.max(Duration::from_millis(20)), link.run(calls)).await?;
        self.link = Some(link);
        Ok(replies)
    }

    fn failed(&mut self, silence: &Silence) {
        self.shared.failures.fetch_add(1, Relaxed);
        let [random, ..] = *uuid::Uuid::new_v4().as_bytes();
        if self.breaker.failed(Instant::now(), random) {
            self.shared.is_up.store(false, Relaxed);
            let reason = match silence {
                Silence::TooLate => "no answer in time".to_owned(),
                Silence::Error(error) => error.to_string(),
            };
            tracing::warn!(
                redis = ?self.shared.redis.url, reason, nodes = self.shared.nodes(),
                "limits are not shared for now; this node goes on with its part of each"
            );
            if self.shared.is_guess() {
                tracing::warn!(
                    "the server has not answered since this node started and limits.redis.nodes is not \
                     set: the node takes itself for the only one and gives out all of each limit"
                );
            }
        }
    }

    fn resume(&mut self) {
        let held: Vec<_> = self.shared.leases().values().cloned().collect();
        for held in held {
            held.lease.resume();
            self.shared.ask(&held);
        }
        self.shared.is_up.store(true, Relaxed);
        tracing::info!(redis = ?self.shared.redis.url, "limits are shared again");
    }

    /// Finds what is to be settled although nobody asked, and forgets what nobody has any more.
    fn look_around(&self) {
        let is_up = self.shared.is_up();
        let mut due = Vec::new();
        let mut leases = self.shared.leases();
        let mut behind = leases.len();
        leases.retain(|_, held| {
            let at = held.lease.clock.at();
            // A count of one: no account and no list has it, so nobody can use it any more.
            let is_left_behind = Arc::strong_count(held) == 1;
            let is_rate = matches!(held.lease.budget, Budget::Rate { .. });
            // Without the server, a rate comes back by itself.
            let is_lost = !is_up && (is_rate || behind > MOST_LEFT_BEHIND);
            if is_left_behind && (held.lease.is_settled() || is_lost) {
                behind -= 1;
                return false;
            }
            if is_up && held.lease.is_unsettled(at) {
                due.push(held.clone());
            }
            true
        });
        if leases.capacity() > 64 + 4 * leases.len() {
            leases.shrink_to_fit();
        }
        drop(leases);
        for held in due {
            self.shared.ask(&held);
        }
    }

    fn due(&self, most: usize) -> Vec<Arc<Held>> {
        let due = &self.shared.due;
        let mut due = due.lock().unwrap_or_else(PoisonError::into_inner);
        let most = most.min(due.len());
        // The oldest first: else those would wait for as long as others keep coming.
        due.drain(..most).collect()
    }

    /// Gives everything back.
    async fn leave(&mut self) {
        if self.breaker.is_open() {
            return;
        }
        // Twice: where something was not confirmed, the first time is for that alone.
        for is_again in [false, true] {
            let mut held: Vec<_> = self.shared.leases().values().cloned().collect();
            held.retain(|held| !is_again || !held.lease.is_settled());
            for batch in held.chunks(BATCH) {
                if !self.settle(batch.to_vec(), true).await {
                    return;
                }
            }
        }
        let call = self.beating(true);
        let _ = self.exchange(&[call]).await;
    }
}

async fn within<T>(
    patience: Duration,
    work: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, Silence> {
    match time::timeout(patience, work).await {
        Ok(done) => done.map_err(Silence::Error),
        Err(_) => Err(Silence::TooLate),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use super::super::Shared;
    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Everything that a node logs until it takes a server for away at which nobody listens.
    async fn logged(more: &str) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone());
        let _guard = tracing::subscriber::set_default(subscriber.finish());
        let redis = toml::from_str(&format!("url = 'redis://127.0.0.1:1'\n{more}")).unwrap();
        let (shared, stop) = (Shared::new(&redis), CancellationToken::new());
        let courier = tokio::spawn(shared.keep(stop.clone()));
        // More looks than it needs.
        while shared.health().failures < 9 {
            time::sleep(TICK).await;
        }
        stop.cancel();
        courier.await.unwrap();
        let lines = lines.0.lock().unwrap();
        String::from_utf8(lines.clone()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_takes_itself_for_the_only_one_says_so_once() {
        let assumed = "takes itself for the only one";
        let lines = logged("").await;
        assert_eq!(lines.matches(assumed).count(), 1, "{lines}");
        let lines = logged("nodes = 2").await;
        assert!(lines.contains("limits are not shared"), "{lines}");
        assert!(!lines.contains(assumed), "{lines}");
    }
}
