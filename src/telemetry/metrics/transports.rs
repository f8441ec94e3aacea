//! What the sockets count: connections, handshakes, certificates.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};
use metrics_exporter_prometheus::PrometheusRecorder;

use super::names::{
    AUTH_REFUSALS, CERTIFICATE_RELOADS, CERTIFICATE_UNTIL, CONNECTIONS_OPEN, EARLY_IDS,
    EARLY_REQUESTS, HANDSHAKE_TIME, HANDSHAKES, HTTP2_RESETS, KEY_RELOADS, TICKETS, TICKETS_LIVE,
    TRANSPORT_STALLS,
};
use super::quic::{Quic, QuicCounts, Watched};
use super::text::Text;
use super::traffic::{Traffic, Transport};
use super::{counter, gauge, histogram};

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

/// What was done with a request that came before its handshake had ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EarlyRequest {
    /// Served at once.
    Served,
    /// Kept until the handshake ended.
    Held,
    /// Answered with a failure.
    Refused,
}

impl EarlyRequest {
    const ALL: [(Self, &'static str); 3] = [
        (Self::Served, "served"),
        (Self::Held, "held"),
        (Self::Refused, "refused"),
    ];
}

/// Why requests are refused before they come to a handler.
const AUTH_REASONS: [&str; 15] = [
    "too_early",
    "replayed",
    "token_unknown",
    "token_expired",
    "token_foreign",
    "proof_missing",
    "proof_wrong",
    "unnamed",
    "missing_api_key",
    "invalid_api_key",
    "key_expired",
    "key_removed",
    "insufficient_scope",
    "model_not_allowed",
    "invalid_token",
];

/// Why an HTTP/2 peer may reset a stream, by its number (RFC 9113, section 7); the last stands for all others.
const HTTP2_REASONS: [&str; 15] = [
    "no_error",
    "protocol_error",
    "internal_error",
    "flow_control_error",
    "settings_timeout",
    "stream_closed",
    "frame_size_error",
    "refused_stream",
    "cancel",
    "compression_error",
    "connect_error",
    "enhance_your_calm",
    "inadequate_security",
    "http_1_1_required",
    "other",
];

/// TLS tickets at the moment of a scrape: totals since the start, but for the last two.
#[derive(Clone, Copy, Debug, Default)]
pub struct TicketLoad {
    /// Handed out.
    pub issued: u64,
    /// Taken to resume.
    pub redeemed: u64,
    /// Shown although they had been taken before.
    pub replayed: u64,
    /// Shown and not known.
    pub unknown: u64,
    /// Shown when their lineage had become too old.
    pub too_old: u64,
    /// Pushed out by newer ones before they were used.
    pub evicted: u64,
    /// Pushed out after they were used and before they expired.
    pub forgotten: u64,
    /// That can be taken now.
    pub live: usize,
    /// Ids of early requests that are remembered.
    pub early_ids: usize,
}

impl TicketLoad {
    fn totals(&self) -> [(&'static str, u64); 7] {
        [
            ("issued", self.issued),
            ("redeemed", self.redeemed),
            ("replayed", self.replayed),
            ("unknown", self.unknown),
            ("too_old", self.too_old),
            ("evicted", self.evicted),
            ("forgotten", self.forgotten),
        ]
    }
}

/// The series of all transports.
pub struct Transports {
    connections_open: Gauge,
    handshakes: [Counter; Handshake::ALL.len()],
    reloads_taken: Counter,
    reloads_refused: Counter,
    certificate_until: Gauge,
    tickets: [Counter; 7],
    tickets_live: Gauge,
    early_ids: Gauge,
    early_requests: [Counter; EarlyRequest::ALL.len()],
    auth_refusals: [Counter; AUTH_REASONS.len()],
    keys_taken: Counter,
    keys_refused: Counter,
    traffic: [Arc<Traffic>; Transport::ALL.len()],
    quic: Arc<Quic>,
    handshake_times: [Histogram; 2],
    http2_resets: [Counter; HTTP2_REASONS.len()],
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
            tickets: TicketLoad::default()
                .totals()
                .map(|(event, _)| counter(recorder, TICKETS, &[("event", event)])),
            tickets_live: gauge(recorder, TICKETS_LIVE, &[]),
            early_ids: gauge(recorder, EARLY_IDS, &[]),
            early_requests: EarlyRequest::ALL
                .map(|(_, decision)| counter(recorder, EARLY_REQUESTS, &[("decision", decision)])),
            auth_refusals: AUTH_REASONS
                .map(|reason| counter(recorder, AUTH_REFUSALS, &[("reason", reason)])),
            keys_taken: counter(recorder, KEY_RELOADS, &[("result", "taken")]),
            keys_refused: counter(recorder, KEY_RELOADS, &[("result", "refused")]),
            traffic: Transport::ALL.map(|transport| Arc::new(Traffic::new(recorder, transport))),
            quic: Quic::new(recorder),
            handshake_times: ["tcp", "quic"]
                .map(|over| histogram(recorder, HANDSHAKE_TIME, &[("over", over)])),
            http2_resets: HTTP2_REASONS
                .map(|reason| counter(recorder, HTTP2_RESETS, &[("reason", reason)])),
        }
    }

    /// A connection was accepted; it counts as open until the guard is dropped.
    #[must_use]
    pub fn connection_opened(&self) -> ConnectionOpen {
        self.connections_open.increment(1.0);
        ConnectionOpen(self.connections_open.clone())
    }

    /// What this transport carries.
    #[must_use]
    pub fn traffic(&self, transport: Transport) -> &Arc<Traffic> {
        &self.traffic[transport as usize]
    }

    /// Counts a connection of QUIC, which `look` asks, until the guard is dropped.
    #[must_use]
    pub fn watch_quic(
        &self,
        transport: Transport,
        look: impl Fn() -> QuicCounts + Send + Sync + 'static,
    ) -> Watched {
        let traffic = self.traffic(transport).clone();
        self.quic.watch(traffic, Box::new(look))
    }

    /// A handshake that ended well took so long.
    pub fn handshake_took(&self, time: Duration, over_quic: bool) {
        self.handshake_times[usize::from(over_quic)].record(time);
    }

    /// An HTTP/2 peer has reset a stream with this code.
    pub fn http2_reset(&self, code: u32) {
        let place = usize::try_from(code).unwrap_or(usize::MAX);
        self.http2_resets[place.min(HTTP2_REASONS.len() - 1)].increment(1);
    }

    /// A handshake ended.
    pub fn handshake(&self, how: Handshake) {
        self.handshakes[how as usize].increment(1);
    }

    /// A request came before its handshake had ended.
    pub fn early_request(&self, what: EarlyRequest) {
        self.early_requests[what as usize].increment(1);
    }

    /// A request was refused before it came to a handler, for one of the reasons that have a series.
    pub fn auth_refused(&self, reason: &str) {
        let place = AUTH_REASONS.iter().position(|known| *known == reason);
        if let Some(counter) = place.and_then(|place| self.auth_refusals.get(place)) {
            counter.increment(1);
        }
    }

    /// A file of keys had changed: what it holds now is believed, or cannot be used.
    pub fn keys_read(&self, is_taken: bool) {
        let counter = if is_taken {
            &self.keys_taken
        } else {
            &self.keys_refused
        };
        counter.increment(1);
    }

    /// The next scrape asks QUIC's connections again.
    #[cfg(test)]
    pub(super) fn forget_look(&self) {
        self.quic.forget_look();
    }

    /// Appends the series that the recorder cannot keep.
    pub(super) fn write(&self, text: &mut Text) {
        text.family(&TRANSPORT_STALLS);
        for traffic in &self.traffic {
            traffic.write(text);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "nobody keeps 2^53 tickets")]
    pub(super) fn pull(&self, load: &TicketLoad) {
        self.quic.pull();
        for (counter, (_, total)) in self.tickets.iter().zip(load.totals()) {
            counter.absolute(total);
        }
        self.tickets_live.set(load.live as f64);
        self.early_ids.set(load.early_ids as f64);
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
