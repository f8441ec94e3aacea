//! What the sockets count: connections, handshakes, certificates.

use metrics::{Counter, Gauge};
use metrics_exporter_prometheus::PrometheusRecorder;

use super::names::{CERTIFICATE_RELOADS, CERTIFICATE_UNTIL, CONNECTIONS_OPEN, HANDSHAKES};
use super::{counter, gauge};

/// How a TLS handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// Well.
    Done,
    /// The peer and we have nothing in common, or it left, or it is no TLS at all.
    Failed,
    /// It took too long, the wait for its turn included.
    TimedOut,
}

impl Handshake {
    const ALL: [(Self, &'static str); 3] = [
        (Self::Done, "done"),
        (Self::Failed, "failed"),
        (Self::TimedOut, "timed_out"),
    ];
}

/// The series of all transports.
pub struct Transports {
    connections_open: Gauge,
    handshakes: [Counter; Handshake::ALL.len()],
    reloads_taken: Counter,
    reloads_refused: Counter,
    certificate_until: Gauge,
}

impl Transports {
    pub(super) fn new(recorder: &PrometheusRecorder) -> Self {
        let reloads = |result| counter(recorder, CERTIFICATE_RELOADS, &[("result", result)]);
        Self {
            connections_open: gauge(recorder, CONNECTIONS_OPEN, &[]),
            handshakes: Handshake::ALL
                .map(|(_, result)| counter(recorder, HANDSHAKES, &[("result", result)])),
            reloads_taken: reloads("taken"),
            reloads_refused: reloads("refused"),
            certificate_until: gauge(recorder, CERTIFICATE_UNTIL, &[]),
        }
    }

    /// A connection was accepted; it counts as open until the guard is dropped.
    #[must_use]
    pub fn connection_opened(&self) -> ConnectionOpen {
        self.connections_open.increment(1.0);
        ConnectionOpen(self.connections_open.clone())
    }

    /// A handshake ended.
    pub fn handshake(&self, how: Handshake) {
        self.handshakes[how as usize].increment(1);
    }

    /// The certificate in use ends then, in seconds since 1970.
    pub fn certificate_until(&self, seconds: i64) {
        #[expect(clippy::cast_precision_loss, reason = "no certificate ends in 2^53 s")]
        self.certificate_until.set(seconds as f64);
    }

    /// The certificate's files had changed, and what they hold now was taken.
    pub fn certificate_replaced(&self, until: i64) {
        self.reloads_taken.increment(1);
        self.certificate_until(until);
    }

    /// The certificate's files had changed to something that cannot be used.
    pub fn certificate_refused(&self) {
        self.reloads_refused.increment(1);
    }
}

/// Counts one connection as open for as long as it lives.
pub struct ConnectionOpen(Gauge);

impl Drop for ConnectionOpen {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}
