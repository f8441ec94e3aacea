//! `[auth]`: who is believed, token binding and the memory of early data.

use std::path::PathBuf;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::jwt;
use super::keys::KeyEntry;

/// `[auth]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// Keys, beside those of `keys_file`.
    pub keys: Vec<KeyEntry>,
    /// A file of keys, `[[keys]]`, which is followed as it changes.
    pub keys_file: Option<PathBuf>,
    /// Tokens that somebody else issues.
    pub jwt: Option<jwt::config::Jwt>,
    /// What becomes of the streams of a key that is removed, replaced or expires.
    pub on_removed: OnRemoved,
    /// Whether requests without a credential are served: beside keys, or for everybody at a public address.
    pub allow_anonymous: bool,
    /// TLS tickets known at once, live and spent; 0 resumes nobody.
    #[serde(deserialize_with = "count")]
    pub max_tickets: usize,
    /// From issuing a ticket to the last connection that it opens.
    #[serde(deserialize_with = "lifetime")]
    pub ticket_lifetime: Duration,
    /// From a full handshake to the last resumption that descends from it.
    #[serde(deserialize_with = "lifetime")]
    pub lineage_lifetime: Duration,
    /// From binding to the end of the bound token.
    #[serde(deserialize_with = "lifetime")]
    pub token_lifetime: Duration,
    /// Ids of requests served early that are remembered; 0 serves nothing early.
    #[serde(deserialize_with = "count")]
    pub max_early_ids: usize,
    /// Early requests that wait at once for the end of their handshakes; more are answered with 425.
    #[serde(deserialize_with = "count")]
    pub max_held: usize,
    /// Whether a bound token needs a proof with every request, or only with early ones.
    pub require_proof: bool,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            keys_file: None,
            jwt: None,
            on_removed: OnRemoved::End,
            allow_anonymous: false,
            max_tickets: 65_536,
            ticket_lifetime: Duration::from_hours(1),
            lineage_lifetime: Duration::from_hours(24),
            token_lifetime: Duration::from_hours(24),
            max_early_ids: 262_144,
            max_held: 1024,
            require_proof: true,
        }
    }
}

impl Auth {
    /// Whether callers are asked who they are.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.keys.is_empty() || self.keys_file.is_some() || self.jwt.is_some()
    }
}

/// `auth.on_removed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnRemoved {
    /// They end at their next token, with an error that says why.
    #[default]
    End,
    /// They run on; whoever they are for may not resume them.
    Finish,
}

/// Entries that still fit into memory.
fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    const MOST: usize = 16 << 20;
    let count = usize::deserialize(deserializer)?;
    if count > MOST {
        return Err(D::Error::custom(format_args!(
            "{count} is out of range; must be at most {MOST}"
        )));
    }
    Ok(count)
}

/// A week is the longest that TLS lets a ticket live (RFC 8446, section 4.6.1), and nothing here has
/// a reason to live longer.
fn lifetime<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let time: Duration = humantime_serde::deserialize(deserializer)?;
    if !(Duration::from_secs(1)..=Duration::from_hours(7 * 24)).contains(&time) {
        return Err(D::Error::custom("must be between 1s and 7days"));
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Auth, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_gives_the_defaults() {
        assert_eq!(read(""), Ok(Auth::default()));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for bad in [
            "max_tickets = 16777217",
            "max_early_ids = -1",
            "max_held = 16777217",
            "ticket_lifetime = '0s'",
            "ticket_lifetime = '8days'",
            "lineage_lifetime = '999ms'",
            "token_lifetime = 'off'",
            "require_proof = 1",
            "ticket_life = '1h'",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let good = read("max_tickets = 0\ntoken_lifetime = '7days'").unwrap();
        assert_eq!(good.token_lifetime, Duration::from_hours(7 * 24));
    }
}
