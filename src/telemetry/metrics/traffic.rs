//! What each transport carries: connections, requests, bytes, and the time that answers waited for room.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use metrics::{Counter, Gauge};
use metrics_exporter_prometheus::PrometheusRecorder;

use super::names::{BYTES, REQUESTS_OPEN, TRANSPORT_CONNECTIONS, TRANSPORT_STALLS};
use super::text::Text;
use super::{counter, gauge};

/// How a request comes and its answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// HTTP/3.
    Http3,
    /// `sluice/1`.
    Sluice,
}

impl Transport {
    pub(super) const ALL: [Self; 4] = [Self::Http1, Self::Http2, Self::Http3, Self::Sluice];

    /// Its name as a label and in traces.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "h1",
            Self::Http2 => "h2",
            Self::Http3 => "h3",
            Self::Sluice => "sluice",
        }
    }
}

/// The series of one transport. Whoever counts in small steps gathers them first: these are shared by all
/// connections.
pub struct Traffic {
    transport: Transport,
    connections: Gauge,
    requests_open: Gauge,
    bytes_in: Counter,
    bytes_out: Counter,
    /// In microseconds.
    stalled: AtomicU64,
}

impl Traffic {
    pub(super) fn new(recorder: &PrometheusRecorder, transport: Transport) -> Self {
        let name = transport.as_str();
        let bytes = |direction| {
            let labels = [("transport", name), ("direction", direction)];
            counter(recorder, BYTES, &labels)
        };
        let open = |series| gauge(recorder, series, &[("transport", name)]);
        Self {
            transport,
            connections: open(TRANSPORT_CONNECTIONS),
            requests_open: open(REQUESTS_OPEN),
            bytes_in: bytes("in"),
            bytes_out: bytes("out"),
            stalled: AtomicU64::new(0),
        }
    }

    /// A connection speaks this transport until the guard is dropped.
    #[must_use]
    pub fn connection(self: &Arc<Self>) -> Speaking {
        self.connections.increment(1.0);
        Speaking(self.clone())
    }

    /// A request began.
    pub fn request_began(&self) {
        self.requests_open.increment(1.0);
    }

    /// A request ended, with the last byte of its answer or without.
    pub fn request_ended(&self) {
        self.requests_open.decrement(1.0);
    }

    /// Connections have read and written so much more.
    pub fn carried(&self, bytes_in: u64, bytes_out: u64) {
        self.bytes_in.increment(bytes_in);
        self.bytes_out.increment(bytes_out);
    }

    /// An answer had more to give for so long while its connection had no room.
    pub fn stalled(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.stalled.fetch_add(micros, Relaxed);
    }

    /// Writes what [`metrics::Counter`] cannot count.
    pub(super) fn write(&self, text: &mut Text) {
        let seconds = Duration::from_micros(self.stalled.load(Relaxed)).as_secs_f64();
        let labels = [("transport", self.transport.as_str())];
        text.sample(&TRANSPORT_STALLS, &labels, seconds);
    }
}

/// Counts one connection as speaking a transport for as long as it lives.
pub struct Speaking(Arc<Traffic>);

impl Drop for Speaking {
    fn drop(&mut self) {
        self.0.connections.decrement(1.0);
    }
}
