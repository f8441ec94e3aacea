//! `[quic]`: HTTP/3 and raw QUIC over UDP, beside the TLS listener.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::gateway::settings::{at_most_a_year, timeout, timeout_or_off};
use crate::transport::config::bytes;

/// `[quic]`: the UDP side of each address of the TLS listener.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quic {
    /// Whether UDP is served at all.
    pub enabled: bool,
    /// Handshakes at once, the waiting for the client included; more are refused.
    pub max_handshakes: NonZeroU32,
    /// Handshakes at once with clients that have not proved their address; more are sent back for a
    /// proof (Retry), which costs them a round trip. Zero asks everybody.
    pub retry_above: u32,
    /// How long a connection may be silent before it is given up.
    #[serde(deserialize_with = "timeout")]
    pub idle_timeout: Duration,
    /// How often a silent connection is pinged; shorter than `idle_timeout`.
    #[serde(deserialize_with = "timeout")]
    pub keep_alive: Duration,
    /// Whether a client may change its address within a connection.
    pub migration: bool,
    /// Streams that a client may have open at once on one connection: one for each request.
    #[serde(deserialize_with = "streams")]
    pub max_streams: u32,
    /// What one stream may send us unread: a request's body.
    #[serde(deserialize_with = "bytes::<_, 16_384, 16_777_216>")]
    pub stream_receive_window: usize,
    /// What all streams of a connection may send us unread; at least `stream_receive_window`.
    #[serde(deserialize_with = "bytes::<_, 16_384, 1_073_741_824>")]
    pub receive_window: usize,
    /// Tokens that come within this time of a stream's last frame share the next one: fewer datagrams,
    /// fewer acknowledgements. Zero sends each at once; at most a second.
    #[serde(deserialize_with = "flush_interval")]
    pub flush_interval: Duration,
    /// Packets that a client may leave unacknowledged before it answers one at once, 1..=100, if it
    /// knows of `ACK_FREQUENCY`: quinn does, browsers do not.
    #[serde(deserialize_with = "ack_threshold")]
    pub ack_threshold: u32,
    /// How long such a client may wait before it acknowledges, and never more than a round trip; off leaves
    /// it its own delay.
    #[serde(deserialize_with = "timeout_or_off")]
    pub ack_delay: Option<Duration>,
    /// How the pace of sending follows the network.
    pub congestion: Congestion,
    /// Bytes of the first datagrams, 1200..=9000: as large as every path is known to carry.
    #[serde(deserialize_with = "mtu")]
    pub initial_mtu: u16,
    /// Whether larger datagrams are tried out.
    pub mtu_discovery: bool,
    /// How long a client may remember from an answer over TCP that QUIC is spoken here. Zero tells it
    /// to forget.
    #[serde(deserialize_with = "at_most_a_year")]
    pub alt_svc_max_age: Duration,
}

impl Default for Quic {
    fn default() -> Self {
        Self {
            enabled: true,
            max_handshakes: const { NonZeroU32::new(512).unwrap() },
            retry_above: 64,
            idle_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(12),
            migration: true,
            max_streams: 100,
            stream_receive_window: 256 << 10,
            receive_window: 1 << 20,
            flush_interval: Duration::from_millis(20),
            ack_threshold: 9,
            ack_delay: Some(Duration::from_millis(100)),
            congestion: Congestion::Cubic,
            initial_mtu: 1200,
            mtu_discovery: true,
            alt_svc_max_age: Duration::from_mins(5),
        }
    }
}

/// `quic.congestion`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Congestion {
    /// RFC 9438.
    Cubic,
    /// RFC 9002, section 7.
    NewReno,
    /// quinn's, which it calls experimental.
    Bbr,
}

impl Quic {
    /// What two keys of this section say against each other: a key and a message.
    pub(crate) fn conflict(&self) -> Option<(&'static str, String)> {
        if self.keep_alive >= self.idle_timeout {
            return Some((
                "keep_alive",
                "must be shorter than quic.idle_timeout".to_owned(),
            ));
        }
        if self.receive_window < self.stream_receive_window {
            return Some((
                "receive_window",
                "must be at least quic.stream_receive_window".to_owned(),
            ));
        }
        None
    }
}

fn between<'de, D: Deserializer<'de>>(
    deserializer: D,
    range: std::ops::RangeInclusive<u32>,
) -> Result<u32, D::Error> {
    let number = u32::deserialize(deserializer)?;
    if !range.contains(&number) {
        let (min, max) = (range.start(), range.end());
        return Err(D::Error::custom(format_args!(
            "{number} is out of range; must be between {min} and {max}"
        )));
    }
    Ok(number)
}

fn streams<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    between(deserializer, 1..=10_000)
}

fn ack_threshold<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    between(deserializer, 1..=100)
}

fn mtu<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    let bytes = between(deserializer, 1200..=9000)?;
    u16::try_from(bytes).map_err(D::Error::custom)
}

fn flush_interval<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let interval = at_most_a_year(deserializer)?;
    if interval > Duration::from_secs(1) {
        return Err(D::Error::custom("must be at most a second"));
    }
    Ok(interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Quic, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn values_that_cannot_work_are_refused() {
        for wrong in [
            "max_streams = 0",
            "max_streams = 10001",
            "max_handshakes = 0",
            "ack_threshold = 0",
            "ack_threshold = 101",
            "ack_delay = '0s'",
            "initial_mtu = 1199",
            "initial_mtu = 9001",
            "flush_interval = '2s'",
            "stream_receive_window = '1KiB'",
            "congestion = 'reno'",
            "idle_timeout = '0s'",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let read = read("congestion = 'new-reno'\nack_delay = 'off'").unwrap();
        assert_eq!(read.congestion, Congestion::NewReno);
        assert_eq!(read.ack_delay, None);
    }

    #[test]
    fn keys_that_contradict_each_other_are_named() {
        let conflict = |text| read(text).unwrap().conflict().map(|(key, _)| key);
        assert_eq!(Quic::default().conflict(), None);
        assert_eq!(conflict("keep_alive = '30s'"), Some("keep_alive"));
        assert_eq!(conflict("receive_window = '64KiB'"), Some("receive_window"));
    }
}
