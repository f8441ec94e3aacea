//! Opens streams over one transport, holds them all, and measures a spell.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::readers::{Shared, keep_up, lag};
use crate::gateway::Gateway;
use crate::net::{self, Connection, Dialer, Transport};

use super::sockets;
use crate::process::Reading;
use crate::stats::Stats;

/// What to run.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Over what.
    pub(super) transport: Transport,
    /// Where the gateway is, if not where it listens: at a relay.
    pub(super) through: Option<SocketAddr>,
    /// Streams that count; they are spread over the connections.
    pub(super) streams: usize,
    /// Connections of these. On HTTP/1.1 each stream has its own.
    pub(super) connections: usize,
    /// The script that they ask for.
    pub(super) model: String,
    /// What gaps are compared with.
    pub(super) gap: Option<Duration>,
    /// Whether their windows are those of readers who do not keep up.
    pub(super) small: bool,
    /// Streams besides, which do not count.
    pub(super) others: Option<Others>,
    /// Between the opening of all and measuring.
    pub(super) warm_up: Duration,
    /// How long is measured.
    pub(super) spell: Duration,
}

/// Streams whose reader does not keep up.
#[derive(Clone, Debug)]
pub(super) struct Others {
    /// How many.
    pub(super) streams: usize,
    /// Connections of their own; none: they are on those of the streams that count.
    pub(super) connections: usize,
    /// Bytes a second that each reads; none after the first token with 0.
    pub(super) rate: usize,
    /// The script that they ask for.
    pub(super) model: String,
}

/// What came of it.
pub(super) struct Outcome {
    /// The figures of the streams that count.
    pub(super) stats: Stats,
    /// The measured spell.
    pub(super) elapsed: Duration,
    /// Streams whose answer had begun when measuring began, those that do not count included.
    pub(super) open: usize,
    /// Streams that count and had a token while measuring.
    pub(super) heard: usize,
    /// Before the first connection, when measuring began, and when it ended.
    pub(super) server: [Memory; 3],
    /// The server's CPU time while measuring.
    pub(super) server_cpu: Duration,
    /// This process's, a relay included.
    pub(super) own_cpu: Duration,
    /// What went over the wire while measuring.
    pub(super) wire: Wire,
    /// With one stream and an expected gap: how late each token was against the earliest one.
    pub(super) late: Vec<Duration>,
}

/// Memory, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// Resident in the gateway.
    pub(super) process: u64,
    /// In the kernel for sockets of both ends.
    pub(super) sockets: u64,
}

/// What the generator's ends of connections have seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wire {
    /// Bytes from the gateway: payloads of TCP or UDP.
    pub(super) down: u64,
    /// Bytes to the gateway.
    pub(super) up: u64,
    /// Datagrams from the gateway.
    pub(super) datagrams_down: u64,
    /// Datagrams to the gateway.
    pub(super) datagrams_up: u64,
}

/// Runs a plan. `at_begin` is called when measuring begins. Needs a `LocalSet`.
///
/// # Errors
/// The gateway's process cannot be read, or there is no socket.
pub(super) async fn run(
    plan: &Plan,
    gateway: &Gateway,
    at_begin: impl FnOnce(),
) -> Result<Outcome> {
    let pid = gateway.pid().to_string();
    let memory = || -> Result<Memory> {
        Ok(Memory {
            process: Reading::of(&pid)?.rss_kib,
            sockets: sockets::memory_kib()?,
        })
    };
    let before = memory()?;
    let tells_arrivals = plan.streams == 1 && plan.gap.is_some();
    let shared = Rc::new(Shared::new(plan.gap, tells_arrivals));
    let mut site = gateway.site(plan.transport)?;
    site.address = plan.through.unwrap_or(site.address);
    let dialer = |small| Dialer::new(plan.transport, site.clone(), small).map(Rc::new);
    let mut tasks = JoinSet::new();
    let main = dialer(plan.small)?;
    let count = connections(plan.transport, plan.connections, plan.streams);
    let connections = connect(&main, count, &shared).await;
    let body: Rc<[u8]> = net::body(&plan.model).into();
    let mut wanted = plan.streams;
    let mut more = Vec::new();
    if let Some(others) = &plan.others {
        wanted += others.streams;
        let body: Rc<[u8]> = net::body(&others.model).into();
        let (dialer, connections) = if others.connections == 0 {
            (Rc::clone(&main), connections.clone())
        } else {
            let dialer = dialer(true)?;
            let count = self::connections(plan.transport, others.connections, others.streams);
            let made = connect(&dialer, count, &shared).await;
            (dialer, made)
        };
        for (_, connection) in (0..others.streams).zip(connections.iter().cycle()) {
            let (shared, dialer) = (Rc::clone(&shared), Rc::clone(&dialer));
            let (connection, body, rate) = (Rc::clone(connection), Rc::clone(&body), others.rate);
            tasks.spawn_local(async move { lag(&shared, &dialer, &connection, &body, rate).await });
        }
        more = connections;
        shared.settled(others.streams).await;
    }
    for (_, connection) in (0..plan.streams).zip(connections.iter().cycle()) {
        let (shared, dialer) = (Rc::clone(&shared), Rc::clone(&main));
        let (connection, body) = (Rc::clone(connection), Rc::clone(&body));
        tasks.spawn_local(async move { keep_up(&shared, &dialer, &connection, &body).await });
    }
    shared.settled(wanted).await;
    sleep(plan.warm_up).await;
    let begin_memory = memory()?;
    at_begin();
    let cpu = || -> Result<(Duration, Duration)> {
        Ok((Reading::of(&pid)?.cpu, Reading::of("self")?.cpu))
    };
    let (server_cpu, own_cpu) = cpu()?;
    let wire = wire(&main, &connections);
    let begin = Instant::now();
    shared.stats.borrow_mut().begin();
    sleep(plan.spell).await;
    let elapsed = begin.elapsed();
    let stats = shared.stats.take();
    let heard = shared.heard.get();
    let (server_cpu_end, own_cpu_end) = cpu()?;
    let wire_end = self::wire(&main, &connections);
    let end_memory = memory()?;
    tasks.shutdown().await;
    drop(more);
    let arrivals = shared.arrivals.take().unwrap_or_default();
    Ok(Outcome {
        stats,
        elapsed,
        open: shared.open.get(),
        heard,
        server: [before, begin_memory, end_memory],
        server_cpu: server_cpu_end.saturating_sub(server_cpu),
        own_cpu: own_cpu_end.saturating_sub(own_cpu),
        wire: wire_end.since(wire),
        late: plan.gap.map_or_else(Vec::new, |gap| late(&arrivals, gap)),
    })
}

fn connections(transport: Transport, wanted: usize, streams: usize) -> usize {
    if transport.is_multiplexed() {
        wanted.clamp(1, streams.max(1))
    } else {
        // They are made with the streams.
        1
    }
}

/// Makes connections; those that fail are counted as errors.
async fn connect(dialer: &Rc<Dialer>, count: usize, shared: &Rc<Shared>) -> Vec<Rc<Connection>> {
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let (dialer, shared) = (Rc::clone(dialer), Rc::clone(shared));
        tasks.spawn_local(async move {
            let _permit = shared.opening.acquire().await;
            dialer.connect().await
        });
    }
    let mut made = Vec::new();
    while let Some(joined) = tasks.join_next().await {
        match joined {
            Ok(Ok(connection)) => made.push(Rc::new(connection)),
            Ok(Err(error)) => shared.error(error),
            Err(_) => shared.error("a task panicked".to_owned()),
        }
    }
    made
}

fn wire(dialer: &Dialer, connections: &[Rc<Connection>]) -> Wire {
    let (down, up) = dialer.wire();
    let mut sum = Wire {
        down,
        up,
        ..Wire::default()
    };
    for connection in connections {
        if let Connection::Quic(connection, _) = connection.as_ref() {
            let stats = connection.stats();
            sum.down += stats.udp_rx.bytes;
            sum.up += stats.udp_tx.bytes;
            sum.datagrams_down += stats.udp_rx.datagrams;
            sum.datagrams_up += stats.udp_tx.datagrams;
        }
    }
    sum
}

impl Wire {
    fn since(self, before: Self) -> Self {
        Self {
            down: self.down - before.down,
            up: self.up - before.up,
            datagrams_down: self.datagrams_down - before.datagrams_down,
            datagrams_up: self.datagrams_up - before.datagrams_up,
        }
    }
}

/// How late tokens of one stream are, made one every `gap`, against the one that was earliest.
fn late(arrivals: &[(Instant, u64)], gap: Duration) -> Vec<Duration> {
    let Some((first, _)) = arrivals.first() else {
        return Vec::new();
    };
    let gap = gap.as_secs_f64();
    let mut tokens = 0_u32;
    let mut times = Vec::new();
    for (at, count) in arrivals {
        for _ in 0..*count {
            times.push((*at - *first).as_secs_f64() - gap * f64::from(tokens));
            tokens += 1;
        }
    }
    let earliest = times.iter().copied().fold(f64::INFINITY, f64::min);
    times
        .into_iter()
        .map(|time| Duration::from_secs_f64((time - earliest).max(0.0)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn tokens_that_waited_for_the_next_are_late_by_a_gap() {
        let start = Instant::now();
        // One every 10 ms: at 0, then 1 and 2 together at 20, and 3 at 31.
        let arrivals = [(start, 1), (start + 20 * MS, 2), (start + 31 * MS, 1)];
        let millis: Vec<u128> = late(&arrivals, 10 * MS)
            .iter()
            .map(|late| (*late + MS / 100).as_millis())
            .collect();
        assert_eq!(millis, [0, 10, 0, 1]);
        assert!(late(&[], MS).is_empty());
    }

    #[test]
    fn the_wire_is_told_for_the_spell() {
        let wire = |n| Wire {
            down: 10 * n,
            up: n,
            datagrams_down: 2 * n,
            datagrams_up: n,
        };
        assert_eq!(wire(5).since(wire(3)), wire(2));
    }

    #[test]
    fn http1_needs_no_connections_before_its_streams() {
        assert_eq!(connections(Transport::Http1, 8, 64), 1);
        assert_eq!(connections(Transport::Http2, 8, 64), 8);
        assert_eq!(connections(Transport::Http3, 8, 3), 3);
    }
}
