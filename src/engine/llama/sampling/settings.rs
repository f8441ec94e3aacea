//! Settings as a sampler uses them: defaults filled in, ranges checked, what is off is absent.

use std::fmt;
use std::ops::RangeInclusive;

use crate::generation::{Mirostat, Sampling, Xtc};

/// How far penalties and DRY may look back, in tokens: bounds a sequence's memory and a step's work.
pub const MAX_WINDOW: u32 = 4096;

/// A sampling setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SamplingError {
    /// The field's name in [`Sampling`], with a dot into its parts.
    pub field: &'static str,
    /// What is wrong with it, fit to be shown to the caller.
    pub message: String,
}

impl SamplingError {
    pub(super) fn new(field: &'static str, message: impl Into<String>) -> Self {
        Self {
            field,
            message: message.into(),
        }
    }
}

impl fmt::Display for SamplingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

impl std::error::Error for SamplingError {}

/// How the token is chosen once the logits are final.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Choice {
    /// The likeliest.
    Greedy,
    /// Filters in a fixed order, then a draw.
    Filtered(Filters),
    /// Mirostat 2 instead of filters.
    Mirostat {
        settings: Mirostat,
        temperature: f32,
    },
}

/// llama.cpp's default chain, in its order: `top_k`, typical, `top_p`, `min_p`, XTC, temperature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Filters {
    pub(super) top_k: Option<usize>,
    pub(super) typical_p: Option<f64>,
    pub(super) top_p: Option<f64>,
    /// The natural logarithm of `min_p`: a distance from the highest logit.
    pub(super) min_p_ln: Option<f32>,
    pub(super) xtc: Option<Xtc>,
    pub(super) temperature: f32,
}

/// Penalties on tokens seen lately.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Penalties {
    pub(super) repeat: f32,
    pub(super) presence: f32,
    pub(super) frequency: f32,
    pub(super) last_n: usize,
}

impl Penalties {
    /// The logit of a token that stands `count` times in the window.
    pub(super) fn apply(&self, logit: f32, count: u32) -> f32 {
        // Dividing a negative logit would reward the repetition.
        let scaled = if logit <= 0.0 {
            logit * self.repeat
        } else {
            logit / self.repeat
        };
        #[expect(clippy::cast_precision_loss, reason = "counts are at most MAX_WINDOW")]
        let count = count as f32;
        scaled - count * self.frequency - self.presence
    }
}

/// DRY's numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct DryPlan {
    pub(super) multiplier: f32,
    pub(super) base: f32,
    pub(super) allowed_length: usize,
    pub(super) last_n: usize,
}

impl DryPlan {
    /// What a repetition that exceeds the allowed length by `excess` costs; always finite.
    pub(super) fn penalty(&self, excess: usize) -> f32 {
        let power = self
            .base
            .powi(i32::try_from(excess).unwrap_or(i32::MAX))
            .min(f32::MAX);
        (self.multiplier * power).min(f32::MAX)
    }
}

/// Everything about a sampler that does not change from step to step.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) choice: Choice,
    pub(super) penalties: Option<Penalties>,
    pub(super) dry: Option<DryPlan>,
    /// Added to logits, by ascending token; negative infinity bans.
    pub(super) bias: Vec<(u32, f32)>,
}

impl Plan {
    pub(super) fn new(settings: &Sampling, vocabulary: usize) -> Result<Self, SamplingError> {
        Ok(Self {
            choice: choice(settings)?,
            penalties: penalties(settings)?,
            dry: dry(settings)?,
            bias: bias(settings, vocabulary)?,
        })
    }

    /// Adds bans to the biases, which stay sorted and of one entry per token.
    pub(super) fn ban(&mut self, tokens: impl IntoIterator<Item = u32>) {
        let bans = tokens.into_iter().map(|token| (token, f32::NEG_INFINITY));
        self.bias.extend(bans);
        merge(&mut self.bias);
    }
}

fn choice(settings: &Sampling) -> Result<Choice, SamplingError> {
    let temperature = within("temperature", settings.temperature, 0.8, 0.0..=256.0)?;
    let top_p = within("top_p", settings.top_p, 0.95, 0.0..=1.0)?;
    let min_p = within("min_p", settings.min_p, 0.05, 0.0..=1.0)?;
    let typical_p = within("typical_p", settings.typical_p, 1.0, 0.0..=1.0)?;
    let xtc = settings.xtc;
    if let Some(xtc) = xtc {
        within("xtc.probability", Some(xtc.probability), 0.0, UNIT_RANGE)?;
        within("xtc.threshold", Some(xtc.threshold), 0.0, UNIT_RANGE)?;
    }
    let mirostat = settings.mirostat;
    if let Some(mirostat) = mirostat {
        within("mirostat.tau", Some(mirostat.tau), 0.0, 0.0..=100.0)?;
        within("mirostat.eta", Some(mirostat.eta), 0.0, UNIT_RANGE)?;
    }
    if temperature <= 0.0 {
        return Ok(Choice::Greedy);
    }
    if let Some(settings) = mirostat {
        return Ok(Choice::Mirostat {
            settings,
            temperature,
        });
    }
    let top_k = usize::try_from(settings.top_k.unwrap_or(40)).unwrap_or(usize::MAX);
    Ok(Choice::Filtered(Filters {
        top_k: (top_k > 0).then_some(top_k),
        typical_p: (typical_p < 1.0).then_some(typical_p.into()),
        top_p: (top_p < 1.0).then_some(top_p.into()),
        min_p_ln: (min_p > 0.0).then(|| min_p.ln()),
        // Two tokens cannot both be likelier than a half, so there is never one to exclude.
        xtc: xtc.filter(|xtc| xtc.probability > 0.0 && xtc.threshold <= 0.5),
        temperature,
    }))
}

fn penalties(settings: &Sampling) -> Result<Option<Penalties>, SamplingError> {
    let repeat = within(
        "repeat_penalty",
        settings.repeat_penalty,
        1.0,
        f32::MIN_POSITIVE..=f32::MAX,
    )?;
    let presence = within(
        "presence_penalty",
        settings.presence_penalty,
        0.0,
        -2.0..=2.0,
    )?;
    let frequency = within(
        "frequency_penalty",
        settings.frequency_penalty,
        0.0,
        -2.0..=2.0,
    )?;
    let last_n = window("repeat_last_n", settings.repeat_last_n.unwrap_or(64))?;
    #[expect(
        clippy::float_cmp,
        reason = "these exact values mean that the penalty is off"
    )]
    let on = last_n > 0 && (repeat != 1.0 || presence != 0.0 || frequency != 0.0);
    Ok(on.then_some(Penalties {
        repeat,
        presence,
        frequency,
        last_n,
    }))
}

fn dry(settings: &Sampling) -> Result<Option<DryPlan>, SamplingError> {
    let Some(dry) = &settings.dry else {
        return Ok(None);
    };
    let multiplier = within("dry.multiplier", Some(dry.multiplier), 0.0, 0.0..=1e6)?;
    let base = within("dry.base", Some(dry.base), 1.75, 1.0..=1e6)?;
    let last_n = window("dry.penalty_last_n", dry.penalty_last_n)?;
    Ok((multiplier > 0.0 && last_n > 0).then_some(DryPlan {
        multiplier,
        base,
        allowed_length: usize::try_from(dry.allowed_length).unwrap_or(usize::MAX),
        last_n,
    }))
}

fn bias(settings: &Sampling, vocabulary: usize) -> Result<Vec<(u32, f32)>, SamplingError> {
    let mut entries = settings.logit_bias.clone();
    for (token, bias) in &mut entries {
        if usize::try_from(*token).map_or(true, |token| token >= vocabulary) {
            return Err(SamplingError::new(
                "logit_bias",
                format!("token {token} is outside the vocabulary of {vocabulary}"),
            ));
        }
        if bias.is_nan() || *bias > MAX_BIAS {
            return Err(SamplingError::new(
                "logit_bias",
                format!("token {token} has bias {bias}, at most {MAX_BIAS}"),
            ));
        }
        if *bias <= -100.0 {
            *bias = f32::NEG_INFINITY;
        }
    }
    merge(&mut entries);
    Ok(entries)
}

/// `OpenAI`'s range ends at 100; room above it for those who want certainty.
const MAX_BIAS: f32 = 1e4;
const UNIT_RANGE: RangeInclusive<f32> = 0.0..=1.0;

/// Sorts by token and adds up the biases of one token.
fn merge(entries: &mut Vec<(u32, f32)>) {
    entries.sort_by_key(|(token, _)| *token);
    entries.dedup_by(|later, kept| {
        let same = later.0 == kept.0;
        if same {
            kept.1 += later.1;
        }
        same
    });
}

fn within(
    field: &'static str,
    value: Option<f32>,
    default: f32,
    range: RangeInclusive<f32>,
) -> Result<f32, SamplingError> {
    let value = value.unwrap_or(default);
    if range.contains(&value) {
        return Ok(value);
    }
    let bounds = if *range.end() >= f32::MAX {
        "must be a number above 0".to_owned()
    } else {
        format!("must be from {} to {}", range.start(), range.end())
    };
    Err(SamplingError::new(field, format!("{value} {bounds}")))
}

fn window(field: &'static str, tokens: u32) -> Result<usize, SamplingError> {
    if tokens > MAX_WINDOW {
        return Err(SamplingError::new(
            field,
            format!("{tokens} must be from 0 to {MAX_WINDOW}"),
        ));
    }
    Ok(tokens as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::Dry;

    fn field(change: impl FnOnce(&mut Sampling)) -> &'static str {
        let mut settings = Sampling::default();
        change(&mut settings);
        Plan::new(&settings, 100).unwrap_err().field
    }

    #[test]
    fn every_value_out_of_range_is_refused_by_its_name() {
        for bad in [-0.1, 256.5, f32::NAN, f32::INFINITY] {
            assert_eq!(field(|s| s.temperature = Some(bad)), "temperature");
        }
        for bad in [-0.1, 1.1, f32::NAN] {
            assert_eq!(field(|s| s.top_p = Some(bad)), "top_p");
            assert_eq!(field(|s| s.min_p = Some(bad)), "min_p");
            assert_eq!(field(|s| s.typical_p = Some(bad)), "typical_p");
            let xtc = |probability, threshold| {
                Some(Xtc {
                    probability,
                    threshold,
                })
            };
            assert_eq!(field(|s| s.xtc = xtc(bad, 0.1)), "xtc.probability");
            assert_eq!(field(|s| s.xtc = xtc(0.1, bad)), "xtc.threshold");
            let mirostat = |tau, eta| Some(Mirostat { tau, eta });
            assert_eq!(field(|s| s.mirostat = mirostat(5.0, bad)), "mirostat.eta");
            assert_eq!(
                field(|s| s.mirostat = mirostat(bad * 1e3, 0.1)),
                "mirostat.tau"
            );
        }
        for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert_eq!(field(|s| s.repeat_penalty = Some(bad)), "repeat_penalty");
        }
        for bad in [-2.1, 2.1, f32::NAN] {
            assert_eq!(
                field(|s| s.presence_penalty = Some(bad)),
                "presence_penalty"
            );
            assert_eq!(
                field(|s| s.frequency_penalty = Some(bad)),
                "frequency_penalty"
            );
        }
        assert_eq!(field(|s| s.repeat_last_n = Some(4097)), "repeat_last_n");
        let dry = |change: fn(&mut Dry)| {
            let mut dry = Dry::default();
            change(&mut dry);
            Some(dry)
        };
        assert_eq!(
            field(|s| s.dry = dry(|d| d.multiplier = -1.0)),
            "dry.multiplier"
        );
        assert_eq!(field(|s| s.dry = dry(|d| d.base = 0.5)), "dry.base");
        assert_eq!(
            field(|s| s.dry = dry(|d| d.penalty_last_n = 5000)),
            "dry.penalty_last_n"
        );
        for bad in [(100, 0.0), (1, f32::NAN), (1, f32::INFINITY)] {
            assert_eq!(field(|s| s.logit_bias = vec![bad]), "logit_bias");
        }
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let plan = Plan::new(&Sampling::default(), 100).unwrap();
        let Choice::Filtered(filters) = plan.choice else {
            panic!("{:?}", plan.choice);
        };
        assert_eq!(filters.top_k, Some(40));
        assert!((filters.top_p.unwrap() - 0.95).abs() < 1e-6);
        assert!((filters.min_p_ln.unwrap() - 0.05_f32.ln()).abs() < 1e-6);
        assert!((filters.temperature - 0.8).abs() < 1e-6);
        assert_eq!((filters.typical_p, filters.xtc), (None, None));
        assert_eq!((plan.penalties, plan.dry), (None, None));
    }

    #[test]
    fn biases_of_one_token_add_up_and_bans_win() {
        let settings = Sampling {
            logit_bias: vec![(5, 1.0), (2, -100.0), (5, 2.0), (2, 50.0)],
            ..Sampling::default()
        };
        let mut plan = Plan::new(&settings, 100).unwrap();
        plan.ban([5, 9, 9]);
        assert_eq!(plan.bias, [2, 5, 9].map(|token| (token, f32::NEG_INFINITY)));
    }
}
