//! What sampling settings and adapters' scales may be: one table for the configuration, the dialects and the engine.
//!
//! A dialect checks each field against these under the field's own name; the configuration checks a
//! whole [`Sampling`] with [`Sampling::check`], and so does the engine before it relies on it.

use std::fmt;
use std::ops::RangeInclusive;

use super::request::{Dry, Sampling};

/// `temperature`; 0 is greedy.
pub const TEMPERATURE: RangeInclusive<f32> = 0.0..=5.0;
/// What is a probability: `top_p`, `min_p`, `typical_p`, XTC's settings.
pub const PROBABILITY: RangeInclusive<f32> = 0.0..=1.0;
/// `repeat_penalty`; 1 is off.
pub const REPEAT_PENALTY: RangeInclusive<f32> = 0.01..=10.0;
/// `presence_penalty` and `frequency_penalty`.
pub const PENALTY: RangeInclusive<f32> = -2.0..=2.0;
/// A value of `logit_bias`; the least one bans the token.
pub const LOGIT_BIAS: RangeInclusive<f32> = -100.0..=100.0;
/// Most entries of `logit_bias`.
pub const MAX_BIASES: usize = 1024;
/// How far penalties and DRY may look back, in tokens: bounds a sequence's memory and a step's work.
pub const MAX_WINDOW: u32 = 4096;
/// DRY's `multiplier`; 0 is off.
pub const DRY_MULTIPLIER: RangeInclusive<f32> = 0.0..=100.0;
/// DRY's `base`: below 1 the penalty would shrink as the repetition grows.
pub const DRY_BASE: RangeInclusive<f32> = 1.0..=100.0;
/// DRY's longest `allowed_length`, in tokens.
pub const MAX_DRY_ALLOWED_LENGTH: u32 = 65_536;
/// Most of DRY's sequence breakers: each is searched in every piece of the vocabulary.
pub const MAX_BREAKERS: usize = 32;
/// Longest sequence breaker, in bytes (llama.cpp cuts there).
pub const MAX_BREAKER_BYTES: usize = 40;
/// Mirostat's `tau`, in bits.
pub const MIROSTAT_TAU: RangeInclusive<f32> = 0.0..=100.0;
/// Mirostat's `eta`.
pub const MIROSTAT_ETA: RangeInclusive<f32> = 0.0..=1.0;
/// The scale of an adapter: how many times what it was trained to add is added.
pub const ADAPTER_SCALE: RangeInclusive<f32> = -100.0..=100.0;
/// Most adapters that one request computes with at once: each adds two products to every matrix.
pub const MAX_ADAPTERS: usize = 4;

/// A sampling setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutOfRange {
    /// The field's name in [`Sampling`], with a dot into its parts.
    pub field: &'static str,
    /// What is wrong with it, fit to be shown to the caller.
    pub message: String,
}

impl OutOfRange {
    /// What is wrong with `field`.
    pub fn new(field: &'static str, message: impl Into<String>) -> Self {
        Self {
            field,
            message: message.into(),
        }
    }
}

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

impl std::error::Error for OutOfRange {}

impl Sampling {
    /// Checks every field that is present. What needs the vocabulary (a bias's token) is left to the
    /// engine. DRY's other settings do not matter while its multiplier is 0.
    ///
    /// # Errors
    /// The first field that is out of its range.
    pub fn check(&self) -> Result<(), OutOfRange> {
        let (xtc, mirostat) = (self.xtc, self.mirostat);
        let reals = [
            ("temperature", self.temperature, TEMPERATURE),
            ("top_p", self.top_p, PROBABILITY),
            ("min_p", self.min_p, PROBABILITY),
            ("typical_p", self.typical_p, PROBABILITY),
            ("repeat_penalty", self.repeat_penalty, REPEAT_PENALTY),
            ("presence_penalty", self.presence_penalty, PENALTY),
            ("frequency_penalty", self.frequency_penalty, PENALTY),
            ("xtc.probability", xtc.map(|x| x.probability), PROBABILITY),
            ("xtc.threshold", xtc.map(|x| x.threshold), PROBABILITY),
            ("mirostat.tau", mirostat.map(|m| m.tau), MIROSTAT_TAU),
            ("mirostat.eta", mirostat.map(|m| m.eta), MIROSTAT_ETA),
        ];
        for (field, value, range) in reals {
            if let Some(value) = value {
                real(field, value, &range)?;
            }
        }
        if let Some(tokens) = self.repeat_last_n {
            whole("repeat_last_n", tokens, MAX_WINDOW)?;
        }
        if self.logit_bias.len() > MAX_BIASES {
            return Err(OutOfRange::new(
                "logit_bias",
                format!("{} entries, at most {MAX_BIASES}", self.logit_bias.len()),
            ));
        }
        for &(_, bias) in &self.logit_bias {
            real("logit_bias", bias, &LOGIT_BIAS)?;
        }
        self.dry.as_ref().map_or(Ok(()), Dry::check)
    }
}

impl Dry {
    fn check(&self) -> Result<(), OutOfRange> {
        real("dry.multiplier", self.multiplier, &DRY_MULTIPLIER)?;
        if self.multiplier <= 0.0 {
            return Ok(());
        }
        real("dry.base", self.base, &DRY_BASE)?;
        whole(
            "dry.allowed_length",
            self.allowed_length,
            MAX_DRY_ALLOWED_LENGTH,
        )?;
        whole("dry.penalty_last_n", self.penalty_last_n, MAX_WINDOW)?;
        let texts = &self.sequence_breakers;
        let fit = |text: &String| (1..=MAX_BREAKER_BYTES).contains(&text.len());
        if texts.len() > MAX_BREAKERS || !texts.iter().all(fit) {
            return Err(OutOfRange::new(
                "dry.sequence_breakers",
                format!("at most {MAX_BREAKERS} texts of 1 to {MAX_BREAKER_BYTES} bytes each"),
            ));
        }
        Ok(())
    }
}

fn real(field: &'static str, value: f32, range: &RangeInclusive<f32>) -> Result<(), OutOfRange> {
    if range.contains(&value) {
        return Ok(());
    }
    let (least, most) = (range.start(), range.end());
    let message = format!("{value} must be from {least} to {most}");
    Err(OutOfRange::new(field, message))
}

fn whole(field: &'static str, value: u32, most: u32) -> Result<(), OutOfRange> {
    if value <= most {
        return Ok(());
    }
    let message = format!("{value} must be from 0 to {most}");
    Err(OutOfRange::new(field, message))
}

#[cfg(test)]
mod tests {
    use super::super::request::{Mirostat, Xtc};
    use super::*;

    fn field(change: impl FnOnce(&mut Sampling)) -> Option<&'static str> {
        let mut settings = Sampling::default();
        change(&mut settings);
        settings.check().err().map(|error| error.field)
    }

    #[test]
    fn every_value_out_of_range_is_refused_by_its_name() {
        for bad in [-0.1, 5.5, f32::NAN, f32::INFINITY] {
            assert_eq!(field(|s| s.temperature = Some(bad)), Some("temperature"));
        }
        for bad in [-0.1, 1.1, f32::NAN] {
            assert_eq!(field(|s| s.top_p = Some(bad)), Some("top_p"));
            assert_eq!(field(|s| s.min_p = Some(bad)), Some("min_p"));
            assert_eq!(field(|s| s.typical_p = Some(bad)), Some("typical_p"));
            let xtc = |probability, threshold| {
                Some(Xtc {
                    probability,
                    threshold,
                })
            };
            assert_eq!(field(|s| s.xtc = xtc(bad, 0.1)), Some("xtc.probability"));
            assert_eq!(field(|s| s.xtc = xtc(0.1, bad)), Some("xtc.threshold"));
            let mirostat = |tau, eta| Some(Mirostat { tau, eta });
            assert_eq!(
                field(|s| s.mirostat = mirostat(5.0, bad)),
                Some("mirostat.eta")
            );
            assert_eq!(
                field(|s| s.mirostat = mirostat(bad * 1e3, 0.1)),
                Some("mirostat.tau")
            );
        }
        for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert_eq!(
                field(|s| s.repeat_penalty = Some(bad)),
                Some("repeat_penalty")
            );
        }
        for bad in [-2.1, 2.1, f32::NAN] {
            assert_eq!(
                field(|s| s.presence_penalty = Some(bad)),
                Some("presence_penalty")
            );
            assert_eq!(
                field(|s| s.frequency_penalty = Some(bad)),
                Some("frequency_penalty")
            );
        }
        assert_eq!(
            field(|s| s.repeat_last_n = Some(4097)),
            Some("repeat_last_n")
        );
        for bad in [101.0, f32::NAN, f32::NEG_INFINITY] {
            assert_eq!(field(|s| s.logit_bias = vec![(1, bad)]), Some("logit_bias"));
        }
        assert_eq!(field(|_| {}), None);
    }

    type Change = fn(&mut Dry);

    #[test]
    fn dry_is_checked_while_it_is_on() {
        let dry = |multiplier, change: Change| {
            field(|settings| {
                let mut dry = Dry {
                    multiplier,
                    ..Dry::default()
                };
                change(&mut dry);
                settings.dry = Some(dry);
            })
        };
        let changes: [(Change, &str); 4] = [
            (|d| d.base = 0.5, "dry.base"),
            (|d| d.penalty_last_n = 5000, "dry.penalty_last_n"),
            (
                |d| d.sequence_breakers = vec!["x".repeat(41)],
                "dry.sequence_breakers",
            ),
            (
                |d| d.sequence_breakers = vec!["x".into(); 33],
                "dry.sequence_breakers",
            ),
        ];
        for (change, name) in changes {
            assert_eq!(dry(0.5, change), Some(name));
            assert_eq!(dry(0.0, change), None);
        }
        assert_eq!(dry(-1.0, |_| {}), Some("dry.multiplier"));
    }
}
