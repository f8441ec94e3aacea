//! Choosing tokens: settings and a row of logits in, one token out, without sorting the vocabulary.
//!
//! The order is llama.cpp's default chain, so the same settings give the same distribution there and
//! here: the mask of a grammar, biases and bans, penalties, DRY, `top_k`, typical, `top_p`, `min_p`, XTC, temperature, draw.
//! `row` reduces the logits to few candidates in one or two streaming passes; `filter` works on those.
//!
//! Where this sampler differs from llama.cpp on purpose:
//! * a row without a finite logit is an error, never a silent pick;
//! * of equal logits the lower id comes first, so nothing depends on how a sort is implemented;
//! * temperature 0 takes the likeliest token, whatever the filters say (XTC could exclude it);
//! * a banned token has no part in the entropy of typical sampling (there it makes it a NaN);
//! * penalties and DRY also act under Mirostat;
//! * the shares that `top_p` and typical sampling cut at are summed in double precision: where thousands of
//!   tokens stay, llama.cpp's single-precision sum ends some tokens earlier or later.
//!
//! All else is compared with llama.cpp's own chain (`llama_cpp.rs`): the same candidates, and the same
//! probabilities within 1e-5.
//!
//! One [`Sampler`] per sequence holds what belongs to it (a few hundred bytes, and its look-back when
//! penalties or DRY are on); one [`Scratch`] per thread holds the large buffers.

mod dry;
mod filter;
mod history;
pub(super) mod pool;
mod random;
mod row;
mod settings;

use std::sync::Arc;

use super::grammar::{Guide, GuideError};
use crate::generation::ranges::OutOfRange;
use crate::generation::{Failure, Mirostat, Sampling};

pub use self::dry::Breakers;
pub use self::row::DeadLogits;

use self::dry::DryScratch;
use self::history::History;
use self::random::{Lane, Random};
use self::row::{Candidate, Row};
use self::settings::{Choice, Filters, Plan};

/// How far below the highest logit `top_p` looks at first, and how much further each time that the
/// tokens found do not suffice. Real models mostly need the first step.
const TOP_P_STEP: f32 = 2.0;
/// When this many steps do not suffice, everything is taken.
const TOP_P_STEPS: u8 = 8;

/// Working memory of one thread, grown to the vocabulary by its first steps and then kept.
#[derive(Debug, Default)]
pub struct Scratch {
    /// The row with biases and penalties, when there are any.
    edited: Vec<f32>,
    maxima: Vec<f32>,
    select: Vec<f32>,
    sums: Vec<f32>,
    candidates: Vec<Candidate>,
    dry: DryScratch,
}

/// Chooses the tokens of one sequence.
#[derive(Debug)]
pub struct Sampler {
    plan: Plan,
    breakers: Arc<Breakers>,
    history: History,
    random: Random,
    /// Tokens sampled so far.
    position: u64,
    /// Mirostat's bound on surprise, in bits.
    mu: f32,
    /// What the text must match, if anything.
    guide: Option<Box<Guide>>,
}

/// Why no token can be chosen: this sequence cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoToken {
    /// The model, or the bans on its tokens, left nothing.
    DeadLogits,
    /// The grammar cannot be followed.
    Guide(GuideError),
}

impl From<DeadLogits> for NoToken {
    fn from(_: DeadLogits) -> Self {
        Self::DeadLogits
    }
}

impl From<GuideError> for NoToken {
    fn from(error: GuideError) -> Self {
        Self::Guide(error)
    }
}

impl From<NoToken> for Failure {
    fn from(error: NoToken) -> Self {
        match error {
            NoToken::DeadLogits => Self::internal(DeadLogits),
            NoToken::Guide(error) => error.into(),
        }
    }
}

impl Sampler {
    /// Checks the settings (a request's, merged over the model's) and prepares a sequence.
    ///
    /// `vocabulary` is the number of tokens. `end` are the end-of-generation tokens, banned under
    /// `ignore_eos`; `suppressed` are the model's own never-tokens. `breakers` must be those of
    /// `settings.dry`; an empty set will do when DRY is off. Equal `seed`s give equal tokens for
    /// equal logits; `settings.seed` is not read.
    ///
    /// # Errors
    /// Names the first field whose value is out of its range.
    pub fn new(
        settings: &Sampling,
        seed: u64,
        vocabulary: usize,
        end: &[u32],
        suppressed: &[u32],
        breakers: Arc<Breakers>,
    ) -> Result<Self, OutOfRange> {
        let mut plan = Plan::new(settings, vocabulary)?;
        plan.ban(suppressed.iter().copied());
        if settings.ignore_eos == Some(true) {
            plan.ban(end.iter().copied());
        }
        let counted = plan.penalties.map_or(0, |penalties| penalties.last_n);
        let searched = plan.dry.map_or(0, |dry| dry.last_n);
        let mu = match plan.choice {
            Choice::Mirostat { settings, .. } => 2.0 * settings.tau,
            Choice::Greedy | Choice::Filtered(_) => 0.0,
        };
        Ok(Self {
            plan,
            breakers,
            history: History::new(searched, counted),
            random: Random::new(seed),
            position: 0,
            mu,
            guide: None,
        })
    }

    /// One that belongs to no sequence.
    fn idle() -> Self {
        Self {
            plan: Plan::idle(),
            breakers: Arc::default(),
            history: History::new(0, 0),
            random: Random::new(0),
            position: 0,
            mu: 0.0,
            guide: None,
        }
    }

    /// Chooses only what `guide` allows from here on.
    pub fn follow(&mut self, guide: Guide) {
        self.guide = Some(Box::new(guide));
    }

    /// What the text must match, if anything.
    pub(super) fn guide_mut(&mut self) -> Option<&mut Guide> {
        self.guide.as_deref_mut()
    }

    /// Whether the text is whole by its grammar, so that nothing can follow.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.guide.as_ref().is_some_and(|guide| guide.is_complete())
    }

    /// Lets penalties and DRY see tokens that were not sampled here: the prompt, in order.
    pub fn accept_prompt(&mut self, tokens: &[u32]) {
        self.history.extend(tokens);
    }

    /// Picks the next token from raw logits, one per token of the vocabulary, and remembers it.
    ///
    /// Draws depend on the seed and on how many tokens were sampled before, on nothing else. Does not
    /// allocate once `scratch` has grown.
    ///
    /// # Errors
    /// When no token has a finite logit after bans, or one is infinite, or the grammar cannot be
    /// followed: this sequence cannot go on.
    pub fn sample(&mut self, logits: &[f32], scratch: &mut Scratch) -> Result<u32, NoToken> {
        let Scratch {
            edited,
            maxima,
            select,
            sums,
            candidates,
            dry,
        } = scratch;
        let logits = if self.guide.is_some() || self.edits() {
            edited.clear();
            match &mut self.guide {
                Some(guide) => extend_masked(edited, logits, guide.mask()?),
                None => edited.extend_from_slice(logits),
            }
            self.edit(edited, dry);
            edited
        } else {
            logits
        };
        let row = Row::scan(logits, maxima).map_err(|dead| match self.guide {
            Some(_) => NoToken::Guide(GuideError::all_banned()),
            None => dead.into(),
        })?;
        let unit = self.random.unit(self.position, Lane::Token);
        let token = match self.plan.choice {
            Choice::Greedy => row.argmax(),
            Choice::Filtered(filters) => {
                let threshold = filters.xtc.and_then(|xtc| {
                    let chance = self.random.unit(self.position, Lane::Xtc);
                    (chance < f64::from(xtc.probability)).then_some(xtc.threshold)
                });
                draw_filtered(&row, &filters, threshold, unit, candidates, select, sums)
            }
            Choice::Mirostat {
                settings,
                temperature,
            } => {
                let (token, mu) =
                    draw_mirostat(&row, settings, temperature, self.mu, unit, candidates, sums);
                self.mu = mu;
                token
            }
        };
        if let Some(guide) = &mut self.guide {
            guide.accept(token)?;
        }
        self.position += 1;
        self.history.push(token);
        Ok(token)
    }

    /// Whether this sampler changes any logit.
    fn edits(&self) -> bool {
        !self.plan.bias.is_empty() || self.plan.penalties.is_some() || self.plan.dry.is_some()
    }

    fn edit(&self, row: &mut [f32], scratch: &mut DryScratch) {
        for &(token, bias) in &self.plan.bias {
            if let Some(logit) = row.get_mut(token as usize) {
                *logit += bias;
            }
        }
        if let Some(penalties) = &self.plan.penalties {
            for (token, count) in self.history.counts() {
                if let Some(logit) = row.get_mut(token as usize) {
                    *logit = penalties.apply(*logit, count);
                }
            }
        }
        if let Some(plan) = &self.plan.dry {
            dry::apply(plan, &self.breakers, &self.history, row, scratch);
        }
    }
}

/// Appends the logits whose bit is set in `mask`, and negative infinity in place of the others.
fn extend_masked(out: &mut Vec<f32>, logits: &[f32], mask: &[u32]) {
    let mut words = mask.iter();
    for chunk in logits.chunks(32) {
        // Most words are all or nothing: a grammar allows a few tokens, or nearly any text.
        match words.next().copied().unwrap_or(0) {
            0 => out.resize(out.len() + chunk.len(), f32::NEG_INFINITY),
            u32::MAX => out.extend_from_slice(chunk),
            word => out.extend(chunk.iter().enumerate().map(|(bit, &logit)| {
                if word >> bit & 1 == 1 {
                    logit
                } else {
                    f32::NEG_INFINITY
                }
            })),
        }
    }
}

/// The log-probability of `token` under the model alone (temperature 1, before biases, penalties and
/// filters), and in `top` the `k` likeliest tokens with theirs, likeliest first.
///
/// `top` is cleared first and holds fewer when fewer are possible. Negative infinity for a token that
/// is impossible or outside the vocabulary, and for every token of a dead row.
pub fn logprobs(
    logits: &[f32],
    token: u32,
    k: usize,
    scratch: &mut Scratch,
    top: &mut Vec<(u32, f32)>,
) -> f32 {
    top.clear();
    let Scratch {
        maxima,
        select,
        sums,
        candidates,
        ..
    } = scratch;
    let Ok(row) = Row::scan(logits, maxima) else {
        return f32::NEG_INFINITY;
    };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the result is wanted in single precision"
    )]
    let log_total = row.sum_exp(1.0, sums).ln() as f32;
    // Subtracting the maximum first keeps the digits that matter.
    let logprob = |logit: f32| (logit - row.max()) - log_total;
    if k > 0 {
        candidates.clear();
        row.gather(row.floor_of_top(k, select), f32::INFINITY, candidates);
        filter::top_k(candidates, k);
        filter::sort(candidates);
        top.extend(candidates.iter().map(|c| (c.id, logprob(c.logit))));
    }
    logits
        .get(token as usize)
        .filter(|logit| !logit.is_nan())
        .map_or(f32::NEG_INFINITY, |&logit| logprob(logit))
}

fn sharpness(temperature: f32) -> f32 {
    // Finite, so that the likeliest token's 0 stays 0.
    temperature.recip().min(f32::MAX)
}

fn draw_filtered(
    row: &Row<'_>,
    filters: &Filters,
    xtc_threshold: Option<f32>,
    unit: f64,
    candidates: &mut Vec<Candidate>,
    select: &mut Vec<f32>,
    sums: &mut Vec<f32>,
) -> u32 {
    let sharpness = sharpness(filters.temperature);
    let min_p_floor = filters
        .min_p_ln
        .map_or(f32::MIN, |distance| row.max() + distance);
    candidates.clear();
    if filters.top_k.is_some() || filters.typical_p.is_some() {
        let floor = filters
            .top_k
            .map_or(f32::MIN, |k| row.floor_of_top(k, select));
        row.gather(floor, f32::INFINITY, candidates);
        if let Some(k) = filters.top_k {
            filter::top_k(candidates, k);
        }
        if let Some(p) = filters.typical_p {
            filter::typical(candidates, p);
        }
        if let Some(p) = filters.top_p {
            let target = p * filter::mass(candidates);
            filter::top_p(candidates, target);
        }
        if let Some(distance) = filters.min_p_ln {
            filter::min_p(candidates, distance);
        }
    } else if let Some(p) = filters.top_p {
        // Both filters cut the same descending line, so tokens under min_p's floor need no look.
        let target = p * row.sum_exp(1.0, sums);
        gather_mass(row, min_p_floor, target, candidates);
        filter::top_p(candidates, target);
    } else if filters.min_p_ln.is_some() || xtc_threshold.is_some() {
        row.gather(min_p_floor, f32::INFINITY, candidates);
    } else {
        return row.draw(sharpness, unit, sums);
    }
    if let Some(threshold) = xtc_threshold {
        filter::xtc(candidates, threshold);
    }
    filter::draw(candidates, sharpness, unit).map_or_else(|| row.argmax(), |(token, _)| token)
}

/// Collects the likeliest tokens, roughly by steps, until they weigh `target` or the floor is reached.
fn gather_mass(row: &Row<'_>, floor: f32, target: f64, candidates: &mut Vec<Candidate>) {
    let mut ceiling = f32::INFINITY;
    let mut mass = 0.0;
    for step in 1..=TOP_P_STEPS {
        let next = row.max() - TOP_P_STEP * f32::from(step);
        if next <= floor {
            break;
        }
        let known = candidates.len();
        row.gather(next, ceiling, candidates);
        mass += filter::mass(candidates.get(known..).unwrap_or_default());
        if mass >= target {
            return;
        }
        ceiling = next;
    }
    row.gather(floor, ceiling, candidates);
}

/// Mirostat 2: drops what surprises more than `mu` bits, draws, and moves `mu` so that the surprise
/// of what is drawn tends to `tau`. Returns the token and the new `mu`.
fn draw_mirostat(
    row: &Row<'_>,
    settings: Mirostat,
    temperature: f32,
    mu: f32,
    unit: f64,
    candidates: &mut Vec<Candidate>,
    sums: &mut Vec<f32>,
) -> (u32, f32) {
    let sharpness = sharpness(temperature);
    let total = row.sum_exp(sharpness, sums);
    // -log2(p) <= mu, solved for the logit.
    let distance = (total.ln() - f64::from(mu) * std::f64::consts::LN_2) * f64::from(temperature);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "compared with single-precision logits"
    )]
    let floor = row.max() + distance as f32;
    candidates.clear();
    row.gather(floor, f32::INFINITY, candidates);
    // Nothing is left when even the likeliest surprises too much; then it is taken.
    let (token, probability) =
        filter::draw(candidates, sharpness, unit).unwrap_or_else(|| (row.argmax(), 1.0));
    #[expect(
        clippy::cast_possible_truncation,
        reason = "mu is kept in single precision"
    )]
    let surprise = -probability.log2() as f32;
    (token, mu - settings.eta * (surprise - settings.tau))
}

#[cfg(test)]
mod llama_cpp;
#[cfg(test)]
mod tests;
