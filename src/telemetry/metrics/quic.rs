//! What QUIC counts of each connection, added up.
//!
//! quinn keeps its counts per connection and tells them when it is asked. That is done before a scrape, not more
//! often than once a second, and a last time when a connection ends; what has come since the last time is
//! added. So nothing is counted twice, no sum falls, and no packet costs more than before.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metrics::Counter;
use metrics_exporter_prometheus::PrometheusRecorder;
use slab::Slab;

use super::counter;
use super::names::{QUIC_ACKS, QUIC_CONGESTION, QUIC_DATAGRAMS, QUIC_PACKETS, QUIC_PATHS};
use super::traffic::Traffic;

/// How old the counts may be that a scrape gets.
const EVERY: Duration = Duration::from_secs(1);

/// What one connection has seen since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuicCounts {
    /// Bytes of the datagrams that came.
    pub bytes_in: u64,
    /// Bytes of those that were sent.
    pub bytes_out: u64,
    /// Datagrams that came.
    pub datagrams_in: u64,
    /// Datagrams that were sent.
    pub datagrams_out: u64,
    /// Packets that were sent.
    pub packets_sent: u64,
    /// Those of them that were given up as lost.
    pub packets_lost: u64,
    /// ACK frames that came.
    pub acks_in: u64,
    /// ACK frames that were sent.
    pub acks_out: u64,
    /// Times that the congestion controller backed off.
    pub congestion_events: u64,
    /// Times that a path had to be proved, as after a change of address.
    pub path_challenges: u64,
}

impl QuicCounts {
    /// What has come since `last`. What quinn counts anew with a new path begins at zero.
    fn since(self, last: Self) -> Self {
        let new = |now: u64, last: u64| now.checked_sub(last).unwrap_or(now);
        Self {
            bytes_in: new(self.bytes_in, last.bytes_in),
            bytes_out: new(self.bytes_out, last.bytes_out),
            datagrams_in: new(self.datagrams_in, last.datagrams_in),
            datagrams_out: new(self.datagrams_out, last.datagrams_out),
            packets_sent: new(self.packets_sent, last.packets_sent),
            packets_lost: new(self.packets_lost, last.packets_lost),
            acks_in: new(self.acks_in, last.acks_in),
            acks_out: new(self.acks_out, last.acks_out),
            congestion_events: new(self.congestion_events, last.congestion_events),
            path_challenges: new(self.path_challenges, last.path_challenges),
        }
    }
}

/// How a connection is asked for its counts.
type Look = Box<dyn Fn() -> QuicCounts + Send + Sync>;

struct Connection {
    look: Look,
    traffic: Arc<Traffic>,
    /// What was added already.
    last: QuicCounts,
}

#[derive(Default)]
struct Live {
    connections: Slab<Connection>,
    looked_at: Option<Instant>,
}

/// The series of QUIC, and the connections that they are read from.
pub(super) struct Quic {
    live: Mutex<Live>,
    datagrams_in: Counter,
    datagrams_out: Counter,
    packets_sent: Counter,
    packets_lost: Counter,
    acks_in: Counter,
    acks_out: Counter,
    congestion_events: Counter,
    path_challenges: Counter,
}

impl Quic {
    pub(super) fn new(recorder: &PrometheusRecorder) -> Arc<Self> {
        let directed = |name, direction| counter(recorder, name, &[("direction", direction)]);
        let packets = |event| counter(recorder, QUIC_PACKETS, &[("event", event)]);
        Arc::new(Self {
            live: Mutex::default(),
            datagrams_in: directed(QUIC_DATAGRAMS, "in"),
            datagrams_out: directed(QUIC_DATAGRAMS, "out"),
            packets_sent: packets("sent"),
            packets_lost: packets("lost"),
            acks_in: directed(QUIC_ACKS, "in"),
            acks_out: directed(QUIC_ACKS, "out"),
            congestion_events: counter(recorder, QUIC_CONGESTION, &[]),
            path_challenges: counter(recorder, QUIC_PATHS, &[]),
        })
    }

    /// Counts a connection until the guard is dropped.
    pub(super) fn watch(self: &Arc<Self>, traffic: Arc<Traffic>, look: Look) -> Watched {
        let connection = Connection {
            look,
            traffic,
            last: QuicCounts::default(),
        };
        Watched {
            key: self.lock().connections.insert(connection),
            quic: self.clone(),
        }
    }

    /// Asks every connection, unless that was done a moment ago.
    pub(super) fn pull(&self) {
        let places = {
            let mut live = self.lock();
            let now = Instant::now();
            let is_new = live.looked_at.is_some_and(|at| now - at < EVERY);
            if is_new {
                return;
            }
            live.looked_at = Some(now);
            live.connections.capacity()
        };
        for key in 0..places {
            // One by one: whoever opens or ends a connection does not wait for all of them.
            if let Some(connection) = self.lock().connections.get_mut(key) {
                self.add(connection);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn forget_look(&self) {
        self.lock().looked_at = None;
    }

    fn add(&self, connection: &mut Connection) {
        let now = (connection.look)();
        let new = now.since(connection.last);
        connection.last = now;
        connection.traffic.carried(new.bytes_in, new.bytes_out);
        self.datagrams_in.increment(new.datagrams_in);
        self.datagrams_out.increment(new.datagrams_out);
        self.packets_sent.increment(new.packets_sent);
        self.packets_lost.increment(new.packets_lost);
        self.acks_in.increment(new.acks_in);
        self.acks_out.increment(new.acks_out);
        self.congestion_events.increment(new.congestion_events);
        self.path_challenges.increment(new.path_challenges);
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts one connection of QUIC for as long as it lives.
pub struct Watched {
    quic: Arc<Quic>,
    key: usize,
}

impl Drop for Watched {
    fn drop(&mut self) {
        let ended = self.quic.lock().connections.try_remove(self.key);
        if let Some(mut connection) = ended {
            self.quic.add(&mut connection);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    use super::super::Metrics;
    use super::super::Transport;
    use super::super::tests::{scrape, value};
    use super::*;

    fn sent(metrics: &Metrics) -> String {
        let series = r#"sluicegate_quic_packets_total{event="sent"}"#;
        value(&scrape(metrics), series)
    }

    #[test]
    fn counts_are_added_once_and_never_fall_whatever_a_connection_says() {
        let metrics = Metrics::new([]).unwrap();
        let packets = Arc::new(AtomicU64::new(5));
        let look = {
            let packets = packets.clone();
            move || QuicCounts {
                packets_sent: packets.load(SeqCst),
                bytes_out: 100,
                ..QuicCounts::default()
            }
        };
        let watched = metrics.transports.watch_quic(Transport::Http3, look);
        metrics.transports.forget_look();
        assert_eq!(sent(&metrics), "5");
        packets.store(7, SeqCst);
        assert_eq!(sent(&metrics), "5", "a second has not passed");
        metrics.transports.forget_look();
        assert_eq!(sent(&metrics), "7");
        // A new path, counted from zero.
        packets.store(2, SeqCst);
        metrics.transports.forget_look();
        assert_eq!(sent(&metrics), "9");
        packets.store(3, SeqCst);
        drop(watched);
        assert_eq!(sent(&metrics), "10", "what came last is not lost");
        let bytes = r#"sluicegate_bytes_total{transport="h3",direction="out"}"#;
        assert_eq!(value(&scrape(&metrics), bytes), "100");
        assert_eq!(Arc::strong_count(&packets), 1, "nothing of it is kept");
    }
}
