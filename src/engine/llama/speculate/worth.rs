//! Whether drafts pay: how often they were right lately, against what their rows cost.
//!
//! A call with `k` drafts of which each is right with probability `a`, if those before it were, yields
//! `1 + a + a^2 + … + a^k` tokens. A token more is worth what one costs without drafts in the same
//! call; a row more costs what it was measured to cost, beside the rows that are there anyway. So
//! drafts are many on a GPU, few on a CPU, and fewer the more streams share the call.

/// Most drafts of one sequence in a call.
pub(crate) const MOST: u16 = 15;

/// A draft is to be worth this much more than it costs: measured times are not exact.
const MARGIN: f32 = 1.05;

/// What a row beside others costs before it was measured, in rows. Little, so that it is measured.
const UNKNOWN_ROW: f32 = 0.5;

/// Row counts told apart one by one; those above by the [`STEPS`]-th part of a power of two.
const EXACT: u16 = 16;
const STEPS: u16 = 4;
const BUCKETS: usize = 64;

/// A measurement is forgotten after so many calls without another one: contexts grow, neighbours come.
const FORGET: u32 = 4096;

/// How far a new measurement moves a cost, and a new trial a rate.
const COST_STEP: f32 = 0.25;
const RATE_STEP: f32 = 1.0 / 16.0;
const COMMON_RATE_STEP: f32 = 1.0 / 64.0;

/// Calls between two single drafts of a kind that does not pay but could, as a bound below and above.
const FIRST_PAUSE: u16 = 32;
const LONGEST_PAUSE: u16 = 2048;

/// What decode calls cost by their rows, in microseconds, as measured lately; and how often drafts were
/// right whose origin is the same for all sequences, for those that begin.
#[derive(Clone, Debug)]
pub(crate) struct Costs {
    measured: [Cost; BUCKETS],
    calls: u32,
    forced: f32,
    model: f32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    us: f32,
    rows: f32,
    /// The number of the last call that was measured; 0 if none.
    call: u32,
}

impl Default for Costs {
    fn default() -> Self {
        Self {
            measured: [Cost::default(); BUCKETS],
            calls: FORGET,
            forced: 0.8,
            model: 0.7,
        }
    }
}

impl Costs {
    /// Takes in a call of so many rows.
    pub(crate) fn measured(&mut self, rows: usize, us: u64) {
        self.calls = self.calls.wrapping_add(1).max(FORGET);
        let call = self.calls;
        let is_known = self.known(bucket(rows)).is_some();
        let Some(cost) = self.measured.get_mut(bucket(rows)) else {
            return;
        };
        let (us, rows) = (number(us), number(rows as u64));
        if is_known {
            cost.us += (us - cost.us) * COST_STEP;
            cost.rows += (rows - cost.rows) * COST_STEP;
        } else {
            (cost.us, cost.rows) = (us, rows);
        }
        cost.call = call;
    }

    /// As if rows cost nothing, so that every match is followed.
    #[cfg(test)]
    pub(crate) fn free() -> Self {
        let (us, rows, call) = (1000.0, f32::MAX, FORGET);
        Self {
            measured: [Cost { us, rows, call }; BUCKETS],
            ..Self::default()
        }
    }

    /// What a call of so many rows costs, in microseconds; between what was measured in proportion.
    /// `None` before anything was.
    pub(super) fn of(&self, rows: usize) -> Option<f32> {
        let at = bucket(rows);
        let below = (0..=at).rev().find_map(|at| self.known(at));
        let above = (at..BUCKETS).find_map(|at| self.known(at));
        let rows = number(rows as u64);
        Some(match (below, above) {
            (Some(low), Some(high)) if high.rows > low.rows => {
                let part = (rows - low.rows) / (high.rows - low.rows);
                low.us + (high.us - low.us).max(0.0) * part.clamp(0.0, 1.0)
            }
            (Some(low), _) => low.us * (1.0 + UNKNOWN_ROW * (rows / low.rows - 1.0).max(0.0)),
            (None, Some(high)) => {
                high.us / (1.0 + UNKNOWN_ROW * (high.rows / rows.max(1.0) - 1.0).max(0.0))
            }
            (None, None) => return None,
        })
    }

    /// What a token of each of so many streams costs without drafts; 0 before anything was measured.
    pub(crate) fn each(&self, streams: usize) -> f32 {
        self.of(streams).unwrap_or(0.0) / number(streams.max(1) as u64)
    }

    fn known(&self, at: usize) -> Option<Cost> {
        let cost = self.measured.get(at)?;
        let fresh = self.calls.wrapping_sub(cost.call) < FORGET;
        (cost.call > 0 && fresh).then_some(*cost)
    }
}

fn bucket(rows: usize) -> usize {
    let exact = usize::from(EXACT);
    if rows <= exact {
        return rows.saturating_sub(1);
    }
    let steps = usize::from(STEPS);
    let power = rows.ilog2() as usize;
    let part = (rows >> (power - 2)) & (steps - 1);
    let first = exact.ilog2() as usize;
    (exact + (power - first) * steps + part).min(BUCKETS - 1)
}

#[expect(clippy::cast_precision_loss, reason = "a cost need not be exact")]
fn number(value: u64) -> f32 {
    value as f32
}

/// A kind of draft in one sequence: how often it is right, and when one is tried though it does not pay.
#[derive(Clone, Copy, Debug)]
struct Kind {
    rate: f32,
    pause: u16,
    /// Chances until the next trial.
    left: u16,
}

/// Where drafts come from. Each origin has a rate of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Origin {
    /// A short match: in plain text mostly chance.
    Short,
    /// A long match: what is copied has soon one.
    Long,
    /// A grammar that leaves no choice of text, though one of tokens.
    Forced,
    /// A draft model, at so many microseconds a draft.
    Model(f32),
}

impl Origin {
    /// A match of `length` tokens.
    pub(crate) fn of_match(length: usize) -> Self {
        if length >= LONG {
            Self::Long
        } else {
            Self::Short
        }
    }
}

/// Tokens of a long match.
const LONG: usize = 8;

/// How drafts have fared in one sequence.
#[derive(Clone, Debug)]
pub(crate) struct Worth {
    short: Kind,
    long: Kind,
    forced: Kind,
    model: Kind,
    /// The kind of the drafts under way.
    origin: Origin,
}

impl Worth {
    /// That of a sequence that begins.
    pub(crate) fn new(costs: &Costs) -> Self {
        let kind = |rate| Kind {
            rate,
            pause: FIRST_PAUSE,
            left: FIRST_PAUSE,
        };
        Self {
            short: kind(0.4),
            long: kind(0.95),
            forced: kind(costs.forced),
            model: kind(costs.model),
            origin: Origin::Short,
        }
    }

    /// How many drafts of this origin to put into the next call: at most `most`, beside `rows` rows for
    /// `streams` streams that are in it already.
    pub(crate) fn choose(
        &mut self,
        costs: &Costs,
        origin: Origin,
        most: u16,
        rows: usize,
        streams: usize,
    ) -> u16 {
        self.origin = origin;
        let Some(base) = costs.of(rows).filter(|_| most > 0) else {
            return 0;
        };
        let each = match origin {
            Origin::Model(us) => us,
            Origin::Short | Origin::Long | Origin::Forced => 0.0,
        };
        let kind = self.kind();
        // What a token costs where there are no drafts.
        let token = costs.of(streams).unwrap_or(base) / number(streams.max(1) as u64);
        let (mut best, mut best_gain) = (0, 0.0);
        // Whether any would pay if they were all right.
        let mut can_pay = false;
        let (mut chance, mut tokens) = (1.0, 0.0);
        for drafts in 1..=most.min(MOST) {
            chance *= kind.rate;
            tokens += chance;
            let cost = costs.of(rows + usize::from(drafts)).unwrap_or(f32::MAX) - base;
            let cost = cost.max(0.0) + each * f32::from(drafts);
            let gain = tokens * token - cost * MARGIN;
            can_pay |= f32::from(drafts) * token > cost * MARGIN;
            if gain > best_gain {
                (best, best_gain) = (drafts, gain);
            }
        }
        if best == 0 && can_pay {
            if kind.left > 0 {
                kind.left -= 1;
            } else {
                // `verified` sets the next pause.
                return 1;
            }
        }
        best
    }

    /// Takes in how many of the drafts were right.
    pub(crate) fn verified(&mut self, costs: &mut Costs, drafts: usize, right: usize) {
        let common = match self.origin {
            Origin::Short | Origin::Long => None,
            Origin::Forced => Some(&mut costs.forced),
            Origin::Model(_) => Some(&mut costs.model),
        };
        if let Some(rate) = common {
            learn(rate, drafts, right, COMMON_RATE_STEP);
        }
        let kind = self.kind();
        learn(&mut kind.rate, drafts, right, RATE_STEP);
        kind.pause = if right == 0 {
            (kind.pause * 2).min(LONGEST_PAUSE)
        } else {
            (kind.pause / 2).max(FIRST_PAUSE)
        };
        kind.left = if right == 0 { kind.pause } else { 0 };
    }

    fn kind(&mut self) -> &mut Kind {
        match self.origin {
            Origin::Short => &mut self.short,
            Origin::Long => &mut self.long,
            Origin::Forced => &mut self.forced,
            Origin::Model(_) => &mut self.model,
        }
    }
}

/// Moves a rate towards what was seen: `right` drafts, and a wrong one unless those were all.
fn learn(rate: &mut f32, drafts: usize, right: usize, step: f32) {
    for _ in 0..right.min(drafts) {
        *rate += (1.0 - *rate) * step;
    }
    if right < drafts {
        *rate -= *rate * step;
    }
}
