//! `[server]` and `[ops]`: addresses, timeouts and bounds of the sockets.
//!
//! Every bound exists because a stranger may connect: a peer that sends nothing, or sends without
//! end, costs at most what is written here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::de::{self, Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer};

use crate::gateway::settings::timeout;

/// `[server]`: the public listener.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Where to listen: one address or a list; never empty. Port 0 takes any free port.
    #[serde(deserialize_with = "addresses")]
    pub listen: Vec<SocketAddr>,
    /// From accepting a connection to its first byte.
    #[serde(deserialize_with = "timeout")]
    pub first_byte_timeout: Duration,
    /// From a request's first byte to the end of its headers.
    #[serde(deserialize_with = "timeout")]
    pub header_timeout: Duration,
    /// From the end of the headers to the end of the body.
    #[serde(deserialize_with = "timeout")]
    pub body_timeout: Duration,
    /// How long a kept-alive connection may wait for its next request.
    #[serde(deserialize_with = "timeout")]
    pub idle_timeout: Duration,
    /// Request line and headers together, in bytes. On HTTP/1.1 also the most bytes of an answer that is no
    /// stream that wait for the socket: hyper has one bound for both directions.
    #[serde(deserialize_with = "bytes::<_, 8_192, 65_536>")]
    pub max_header_bytes: usize,
    /// A request's body, in bytes.
    #[serde(deserialize_with = "bytes::<_, 1, 1_073_741_824>")]
    pub max_body_bytes: usize,
    /// Nesting of arrays and objects in a JSON body, 1..=127: `serde_json` itself stops at 128.
    #[serde(deserialize_with = "json_depth")]
    pub max_json_depth: u8,
    /// Connections at once; more wait in the kernel's backlog.
    pub max_connections: NonZeroU32,
    /// HTTP/2 streams at once on one connection.
    pub max_streams_per_connection: NonZeroU32,
    /// What an HTTP/1.1 client means that closes its sending side before the answer has ended.
    pub half_close: HalfClose,
    /// Whether the kernel sends what it is given at once (`TCP_NODELAY`), small or not.
    pub nodelay: bool,
    /// Unsent bytes that the kernel takes for one connection (`TCP_NOTSENT_LOWAT`).
    #[serde(deserialize_with = "bytes::<_, 1, 1_073_741_824>")]
    pub notsent_lowat: usize,
    /// A proxy before this server ends TLS. Tokens bound to TLS connections then mean nothing, so a TLS
    /// listener beside it is refused.
    pub tls_terminated: bool,
    /// Where what outlives the process is kept; absent: `$STATE_DIRECTORY`, else
    /// `$XDG_STATE_HOME/sluicegate`, else `~/.local/state/sluicegate`.
    pub state_dir: Option<PathBuf>,
    /// The kernel's send buffer per connection, in bytes (`SO_SNDBUF`); absent leaves it to the kernel.
    #[serde(deserialize_with = "some_bytes::<_, 4_096, 1_073_741_824>")]
    pub send_buffer: Option<usize>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: vec![loopback(8080)],
            first_byte_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            max_header_bytes: 32 << 10,
            max_body_bytes: 8 << 20,
            max_json_depth: 64,
            max_connections: const { NonZeroU32::new(10_000).unwrap() },
            max_streams_per_connection: const { NonZeroU32::new(100).unwrap() },
            half_close: HalfClose::Cancel,
            nodelay: true,
            notsent_lowat: 16 << 10,
            tls_terminated: false,
            state_dir: None,
            send_buffer: None,
        }
    }
}

/// `server.half_close`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HalfClose {
    /// It has left: what it asked for is given up at once. TCP does not tell a half from a whole.
    Cancel,
    /// It has asked all it had to ask, and reads on. One that has left is noticed when it is written to.
    Serve,
}

/// `[ops]`: the operator's listener; metrics, health and what must never be public.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ops {
    /// Where to listen: one address or a list; never empty.
    #[serde(deserialize_with = "addresses")]
    pub listen: Vec<SocketAddr>,
    /// Whether a key is asked for on loopback, too: `ops:read` to look, `ops:write` to change. Elsewhere it
    /// always is.
    pub require_key: bool,
}

impl Default for Ops {
    fn default() -> Self {
        Self {
            listen: vec![loopback(8081)],
            require_key: false,
        }
    }
}

impl Ops {
    /// Whether a key is asked for: it is to be, or others than this machine may come.
    #[must_use]
    pub fn requires_key(&self) -> bool {
        self.require_key || self.listen.iter().any(|at| !at.ip().is_loopback())
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// One address or a list of them.
pub(super) fn addresses<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<SocketAddr>, D::Error> {
    struct Visitor;

    impl<'de> de::Visitor<'de> for Visitor {
        type Value = Vec<SocketAddr>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an address with a port, like \"127.0.0.1:8080\", or a list of them")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            let address = text
                .parse()
                .map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))?;
            Ok(vec![address])
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut addresses = Vec::new();
            while let Some(text) = list.next_element::<String>()? {
                let address: SocketAddr = text
                    .parse()
                    .map_err(|_| A::Error::invalid_value(de::Unexpected::Str(&text), &self))?;
                if addresses.contains(&address) && address.port() != 0 {
                    return Err(A::Error::custom(format_args!("{address} is listed twice")));
                }
                addresses.push(address);
            }
            if addresses.is_empty() {
                return Err(A::Error::invalid_length(0, &self));
            }
            Ok(addresses)
        }

        fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Err(A::Error::invalid_type(de::Unexpected::Map, &self))
        }
    }

    deserializer.deserialize_any(Visitor)
}

/// A size between two bounds, both included.
pub(super) fn bytes<'de, D, const MIN: u64, const MAX: u64>(
    deserializer: D,
) -> Result<usize, D::Error>
where
    D: Deserializer<'de>,
{
    let size = ByteSize::deserialize(deserializer)?;
    if !(MIN..=MAX).contains(&size.0) {
        let (min, max) = (ByteSize(MIN), ByteSize(MAX));
        return Err(D::Error::custom(format_args!(
            "{size} is out of range; must be between {min} and {max}"
        )));
    }
    usize::try_from(size.0).map_err(D::Error::custom)
}

fn some_bytes<'de, D, const MIN: u64, const MAX: u64>(
    deserializer: D,
) -> Result<Option<usize>, D::Error>
where
    D: Deserializer<'de>,
{
    bytes::<D, MIN, MAX>(deserializer).map(Some)
}

fn json_depth<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    let depth = u8::deserialize(deserializer)?;
    if !(1..=127).contains(&depth) {
        return Err(D::Error::custom(format_args!(
            "{depth} is out of range; must be between 1 and 127"
        )));
    }
    Ok(depth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_are_asked_for_a_key_wherever_others_can_come() {
        let asks = |listen: &[&str], require_key| {
            let listen = listen.iter().map(|at| at.parse().unwrap()).collect();
            let ops = Ops {
                listen,
                require_key,
            };
            ops.requires_key()
        };
        assert!(!Ops::default().requires_key());
        assert!(!asks(&["127.0.0.1:1", "[::1]:1"], false));
        assert!(asks(&["127.0.0.1:1"], true));
        for public in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[::ffff:127.0.0.1]:1"] {
            assert!(asks(&["127.0.0.1:1", public], false), "{public}");
        }
    }
}
