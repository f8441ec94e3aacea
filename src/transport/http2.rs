//! `[http2]`: windows, frames and patience of HTTP/2 connections.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::Deserialize;

use super::config::bytes;
use crate::gateway::settings::timeout;

/// `[http2]`: what our side of HTTP/2 offers and bears, in clear text and over TLS.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http2 {
    /// What one request's body may send ahead of its being read, in bytes.
    #[serde(deserialize_with = "bytes::<_, 65_535, 16_777_216>")]
    pub stream_window: usize,
    /// The same for all bodies of a connection together.
    #[serde(deserialize_with = "bytes::<_, 65_535, 67_108_864>")]
    pub connection_window: usize,
    /// Bytes of one answer that hyper takes from us beyond what the peer's window allows at once.
    #[serde(deserialize_with = "bytes::<_, 4_096, 1_048_576>")]
    pub max_send_buffer: usize,
    /// The largest frame that a peer may send (RFC 9113, section 6.5.2).
    #[serde(deserialize_with = "bytes::<_, 16_384, 16_777_215>")]
    pub max_frame: usize,
    /// Silence before a ping asks whether the peer is still there.
    #[serde(deserialize_with = "timeout")]
    pub ping_interval: Duration,
    /// How long its answer may take; then the connection is closed.
    #[serde(deserialize_with = "timeout")]
    pub ping_timeout: Duration,
    /// Streams a peer may open and reset before we have looked at them (CVE-2023-44487).
    pub max_pending_resets: NonZeroU32,
    /// Streams that we may have had to reset for the peer's errors before it is sent away
    /// (CVE-2025-8671).
    pub max_local_resets: NonZeroU32,
    /// Frames that ask for nothing (pings, settings, window updates, empty DATA; a reset counts as four)
    /// which a peer may send at once. Every second, and what it reads, allows for more; what exceeds
    /// them ends the connection (CVE-2019-9511 to 9518).
    pub max_control_frames: NonZeroU32,
}

impl Default for Http2 {
    fn default() -> Self {
        Self {
            stream_window: 256 << 10,
            connection_window: 1 << 20,
            max_send_buffer: 16 << 10,
            max_frame: 16 << 10,
            ping_interval: Duration::from_secs(20),
            ping_timeout: Duration::from_secs(10),
            max_pending_resets: const { NonZeroU32::new(20).unwrap() },
            max_local_resets: const { NonZeroU32::new(256).unwrap() },
            max_control_frames: const { NonZeroU32::new(1000).unwrap() },
        }
    }
}

impl Http2 {
    /// Sets a builder up.
    pub(super) fn apply<E>(&self, builder: &mut hyper::server::conn::http2::Builder<E>) {
        let size = |bytes| u32::try_from(bytes).unwrap_or(u32::MAX);
        let count = |count: NonZeroU32| usize::try_from(count.get()).unwrap_or(usize::MAX);
        builder
            .initial_stream_window_size(size(self.stream_window))
            .initial_connection_window_size(size(self.connection_window))
            .max_send_buf_size(self.max_send_buffer)
            .max_frame_size(size(self.max_frame))
            .keep_alive_interval(self.ping_interval)
            .keep_alive_timeout(self.ping_timeout)
            .max_pending_accept_reset_streams(count(self.max_pending_resets))
            .max_local_error_reset_streams(count(self.max_local_resets));
    }
}
