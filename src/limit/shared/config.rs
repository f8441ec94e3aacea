//! `[limits.redis]`: where nodes share their limits.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// `[limits.redis]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    /// The server: `redis://user:password@host:port/database`.
    pub url: Url,
    /// How long a request may wait for the server before the node decides alone.
    #[serde(default = "timeout", deserialize_with = "short")]
    pub timeout: Duration,
    /// Nodes among which a limit is divided while the server is away; absent, as many as were last seen
    /// there.
    #[serde(default)]
    pub nodes: Option<NonZeroU32>,
    /// What every key begins with. Gateways with the same share their limits.
    #[serde(default = "prefix", deserialize_with = "plain")]
    pub prefix: String,
}

fn timeout() -> Duration {
    Duration::from_millis(5)
}

fn prefix() -> String {
    "sluicegate".to_owned()
}

/// Where a server is and how to log in there. Printing it shows no password.
#[derive(Clone)]
pub struct Url {
    text: String,
    info: ConnectionInfo,
}

impl Url {
    /// Reads `redis://…`.
    ///
    /// # Errors
    /// What is wrong with it, without repeating it: there may be a password in it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.starts_with("rediss:") || text.starts_with("valkeys:") {
            return Err("TLS to Redis is not supported; use a local one or a tunnel");
        }
        let info = text
            .into_connection_info()
            .map_err(|_| "is no URL like redis://user:password@host:6379/0")?;
        match info.addr() {
            ConnectionAddr::Tcp(..) => Ok(Self {
                text: text.to_owned(),
                info,
            }),
            _ => Err("must begin with redis://"),
        }
    }

    /// Host and port.
    pub(super) fn address(&self) -> (&str, u16) {
        match self.info.addr() {
            ConnectionAddr::Tcp(host, port) => (host, *port),
            _ => ("", 0),
        }
    }

    pub(super) fn info(&self) -> &ConnectionInfo {
        &self.info
    }
}

impl PartialEq for Url {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, port) = self.address();
        write!(f, "redis://…@{host}:{port}")
    }
}

impl<'de> Deserialize<'de> for Url {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(D::Error::custom)
    }
}

fn short<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let timeout: Duration = humantime_serde::deserialize(deserializer)?;
    if !(Duration::from_millis(1)..=Duration::from_secs(1)).contains(&timeout) {
        return Err(D::Error::custom("must be between 1ms and 1s"));
    }
    Ok(timeout)
}

fn plain<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let prefix = String::deserialize(deserializer)?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if prefix.is_empty() || prefix.len() > 64 || !prefix.chars().all(is_plain) {
        return Err(D::Error::custom(
            "must be 1 to 64 letters, digits, dashes, underscores, dots or colons",
        ));
    }
    Ok(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Redis, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn only_the_url_must_be_said() {
        let redis = read("url = 'redis://host'").unwrap();
        assert_eq!(redis.url.address(), ("host", 6379));
        assert_eq!((redis.timeout, redis.nodes), (timeout(), None));
        assert!(read("").is_err());
    }

    #[test]
    fn a_password_is_never_printed() {
        let redis = read("url = 'redis://me:s3cret@host:1/2'").unwrap();
        let info = redis.url.info().redis_settings();
        assert_eq!(
            (info.username(), info.password(), info.db()),
            (Some("me"), Some("s3cret"), 2)
        );
        let printed = format!("{redis:?}");
        assert!(
            !printed.contains("s3cret") && printed.contains("host:1"),
            "{printed}"
        );
        for wrong in [
            "redis://:s3cret@host:port",
            "http://:s3cret@h",
            "rediss://:s3cret@h",
            "s3cret",
        ] {
            let error = Url::parse(wrong).unwrap_err();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for more in [
            "timeout = '0s'",
            "timeout = '2s'",
            "nodes = 0",
            "prefix = ''",
            "prefix = 'a b'",
            "x = 1",
        ] {
            assert!(
                read(&format!("url = 'redis://host'\n{more}")).is_err(),
                "{more}"
            );
        }
    }
}
