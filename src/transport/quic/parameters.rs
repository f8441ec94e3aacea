//! `[quic]` in quinn's terms.

use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig, NewRenoConfig};
use quinn::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::config::{Congestion, Quic};

/// Unidirectional streams that a client may open: HTTP/3 needs three, and some clients add others that
/// mean nothing.
const MAX_UNIDIRECTIONAL: u32 = 16;

/// Connection attempts that wait for the accept loop, and the most bytes of one of them and of all that
/// are kept until it comes: the loop only ever waits for a thread.
const MAX_INCOMING: usize = 1024;
const INCOMING_BYTES: u64 = 64 * 1024;
const INCOMING_BYTES_IN_ALL: u64 = 8 * 1024 * 1024;

/// What is promised to peers and kept by quinn, for every connection. `send_budget`: the window while
/// there is one stream; it moves with their number.
pub(super) fn transport(settings: &Quic, send_budget: usize) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    let mut ack_frequency = AckFrequencyConfig::default();
    ack_frequency
        .ack_eliciting_threshold(settings.ack_threshold.into())
        .max_ack_delay(settings.ack_delay);
    let congestion: Arc<dyn ControllerFactory + Send + Sync> = match settings.congestion {
        Congestion::Cubic => Arc::new(CubicConfig::default()),
        Congestion::NewReno => Arc::new(NewRenoConfig::default()),
        Congestion::Bbr => Arc::new(BbrConfig::default()),
    };
    transport
        .max_idle_timeout(Some(idle(settings.idle_timeout)))
        .keep_alive_interval(Some(settings.keep_alive))
        .max_concurrent_bidi_streams(settings.max_streams.into())
        .max_concurrent_uni_streams(MAX_UNIDIRECTIONAL.into())
        .stream_receive_window(size(settings.stream_receive_window))
        .receive_window(size(settings.receive_window))
        .send_window(u64::try_from(send_budget).unwrap_or(u64::MAX))
        .ack_frequency_config(Some(ack_frequency))
        .congestion_controller_factory(congestion)
        .initial_mtu(settings.initial_mtu)
        .mtu_discovery_config(settings.mtu_discovery.then(MtuDiscoveryConfig::default))
        // Nothing here is sent in datagrams.
        .datagram_receive_buffer_size(None);
    Arc::new(transport)
}

/// Everything else, as long as `crypto` is put in for each connection.
pub(super) fn server(
    settings: &Quic,
    transport: Arc<TransportConfig>,
    crypto: Arc<dyn quinn::crypto::ServerConfig>,
) -> quinn::ServerConfig {
    let mut server = quinn::ServerConfig::with_crypto(crypto);
    server
        .transport_config(transport)
        .migration(settings.migration)
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES_IN_ALL);
    server
}

fn size(bytes: usize) -> VarInt {
    VarInt::try_from(bytes).unwrap_or(VarInt::MAX)
}

fn idle(timeout: Duration) -> IdleTimeout {
    // A year in milliseconds, which is the longest time-out there is, fits many times.
    IdleTimeout::try_from(timeout).unwrap_or(IdleTimeout::from(VarInt::MAX))
}
