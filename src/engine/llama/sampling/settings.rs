//! Settings as a sampler uses them: defaults filled in, ranges checked, what is off is absent.

use crate::generation::ranges::OutOfRange;
use crate::generation::{Mirostat, Sampling, Xtc};

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
    pub(super) fn new(settings: &Sampling, vocabulary: usize) -> Result<Self, OutOfRange> {
        settings.check()?;
        Ok(Self {
            choice: choice(settings),
            penalties: penalties(settings),
            dry: dry(settings),
            bias: bias(settings, vocabulary)?,
        })
    }

    /// Takes the likeliest token as it is.
    pub(super) fn idle() -> Self {
        Self {
            choice: Choice::Greedy,
            penalties: None,
            dry: None,
            bias: Vec::new(),
        }
    }

    /// Adds bans to the biases, which stay sorted and of one entry per token.
    pub(super) fn ban(&mut self, tokens: impl IntoIterator<Item = u32>) {
        let bans = tokens.into_iter().map(|token| (token, f32::NEG_INFINITY));
        self.bias.extend(bans);
        merge(&mut self.bias);
    }
}

fn choice(settings: &Sampling) -> Choice {
    let temperature = settings.temperature.unwrap_or(0.8);
    if temperature <= 0.0 {
        return Choice::Greedy;
    }
    if let Some(settings) = settings.mirostat {
        return Choice::Mirostat {
            settings,
            temperature,
        };
    }
    let top_k = usize::try_from(settings.top_k.unwrap_or(40)).unwrap_or(usize::MAX);
    let top_p = settings.top_p.unwrap_or(0.95);
    let min_p = settings.min_p.unwrap_or(0.05);
    let typical_p = settings.typical_p.unwrap_or(1.0);
    Choice::Filtered(Filters {
        top_k: (top_k > 0).then_some(top_k),
        typical_p: (typical_p < 1.0).then_some(typical_p.into()),
        top_p: (top_p < 1.0).then_some(top_p.into()),
        min_p_ln: (min_p > 0.0).then(|| min_p.ln()),
        // Two tokens cannot both be likelier than a half, so there is never one to exclude.
        xtc: (settings.xtc).filter(|xtc| xtc.probability > 0.0 && xtc.threshold <= 0.5),
        temperature,
    })
}

fn penalties(settings: &Sampling) -> Option<Penalties> {
    let repeat = settings.repeat_penalty.unwrap_or(1.0);
    let presence = settings.presence_penalty.unwrap_or(0.0);
    let frequency = settings.frequency_penalty.unwrap_or(0.0);
    let last_n = settings.repeat_last_n.unwrap_or(64) as usize;
    #[expect(
        clippy::float_cmp,
        reason = "these exact values mean that the penalty is off"
    )]
    let on = last_n > 0 && (repeat != 1.0 || presence != 0.0 || frequency != 0.0);
    on.then_some(Penalties {
        repeat,
        presence,
        frequency,
        last_n,
    })
}

fn dry(settings: &Sampling) -> Option<DryPlan> {
    let dry = settings.dry.as_ref()?;
    (dry.multiplier > 0.0 && dry.penalty_last_n > 0).then_some(DryPlan {
        multiplier: dry.multiplier,
        base: dry.base,
        allowed_length: usize::try_from(dry.allowed_length).unwrap_or(usize::MAX),
        last_n: dry.penalty_last_n as usize,
    })
}

fn bias(settings: &Sampling, vocabulary: usize) -> Result<Vec<(u32, f32)>, OutOfRange> {
    let mut entries = settings.logit_bias.clone();
    for (token, bias) in &mut entries {
        if usize::try_from(*token).map_or(true, |token| token >= vocabulary) {
            return Err(OutOfRange::new(
                "logit_bias",
                format!("token {token} is outside the vocabulary of {vocabulary}"),
            ));
        }
        if *bias <= -100.0 {
            *bias = f32::NEG_INFINITY;
        }
    }
    merge(&mut entries);
    Ok(entries)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_out_of_range_or_a_token_outside_the_vocabulary_is_refused() {
        let field = |settings: &Sampling| Plan::new(settings, 100).unwrap_err().field;
        let mut settings = Sampling {
            temperature: Some(-1.0),
            ..Sampling::default()
        };
        assert_eq!(field(&settings), "temperature");
        settings.temperature = None;
        settings.logit_bias = vec![(100, 0.0)];
        assert_eq!(field(&settings), "logit_bias");
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
