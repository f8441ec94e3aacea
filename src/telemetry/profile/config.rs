//! `[profile]`: whether it is known afterwards where the time went.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// `[profile]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether the last minutes are kept.
    pub enabled: bool,
    /// Samples for each second of CPU time while nothing is wrong; 1 to 250.
    #[serde(deserialize_with = "rate")]
    pub rate: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: false,
            rate: 10,
        }
    }
}

fn rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let rate = u32::deserialize(deserializer)?;
    if (1..=250).contains(&rate) {
        return Ok(rate);
    }
    Err(D::Error::custom(format_args!(
        "{rate} is out of range; must be between 1 and 250"
    )))
}
