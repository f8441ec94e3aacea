//! Which sequence to move next, so that those who decode have consecutive ids; a function of what it is
//! shown.
//!
//! llama.cpp computes a split cache's rows in runs of consecutive ids, and every run reads the whole
//! model once more. A copy of a state costs time, too, and the hole that it fills may be filled by
//! itself a moment later. So holes are suffered until they have cost as much as closing them will:
//! whatever comes, no more is lost than about twice what who knew the future would have lost.

/// What one id is to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Id {
    /// Free, once so many bytes of an ended sequence are saved.
    Free { bytes: u64 },
    /// Decodes, now or soon, and is left where it is.
    Stays,
    /// Decodes, and may yield so many tokens more.
    Decodes { left: u32, bytes: u64 },
    /// Does not decode, and can be moved out of the way.
    Rests { bytes: u64 },
    /// Does not decode, and is left where it is.
    Blocks,
}

impl Id {
    fn is_active(self) -> bool {
        matches!(self, Self::Stays | Self::Decodes { .. })
    }

    /// Bytes to copy before a sequence can have this id; `None` if it never can.
    fn bytes_in_the_way(self) -> Option<u64> {
        match self {
            Self::Free { bytes } | Self::Rests { bytes } => Some(bytes),
            Self::Stays | Self::Decodes { .. } | Self::Blocks => None,
        }
    }
}

/// What things cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prices {
    /// Microseconds of one run more in a decode call; 0 if it costs nothing, or is unknown.
    pub(super) run_us: u64,
    /// Microseconds of a decode call.
    pub(super) decode_us: u64,
    /// Nanoseconds of copying 1024 bytes of a state out of one id into another.
    pub(super) copy_ns: u64,
    /// How long a step may take.
    pub(super) max_step_us: u64,
    /// What the holes have cost so far.
    pub(super) lost_us: u64,
}

impl Prices {
    fn of(&self, bytes: u64) -> u64 {
        bytes.saturating_mul(self.copy_ns) / 1024 / 1000
    }

    /// What a step has left for a copy; a small part of a decode call goes unnoticed in any case.
    fn room_us(&self) -> u64 {
        (self.max_step_us.saturating_sub(self.decode_us)).max(self.decode_us / 8)
    }
}

/// A sequence to move to a lower id. If another one rests there, the two change places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) from: u32,
    pub(super) to: u32,
    /// What it is expected to take.
    pub(super) us: u64,
}

/// What to do about holes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Decision {
    /// What the holes that could be closed with profit cost in one decode call.
    pub(super) loses_us: u64,
    pub(super) step: Option<Move>,
}

/// Decides about the ids of a split cache, which are shown in order. They are not what they were then.
pub(super) fn decide(ids: &mut [Id], prices: &Prices) -> Decision {
    let mut decision = Decision::default();
    let Some(mut bill) = Bill::of(ids, prices) else {
        return decision;
    };
    // One move may do; otherwise the highest fill the lowest holes until it pays.
    if let Some((from, to)) = best_move(ids) {
        let mut alone = bill.clone();
        if alone.add(ids, from, to) {
            alone.settle(&mut decision);
            ids.swap(from, to);
        }
    }
    while decision.step.is_none()
        && let Some((from, to)) = lowest_move(ids)
        && bill.add(ids, from, to)
    {
        bill.settle(&mut decision);
    }
    decision
}

/// Runs of consecutive ids among those for which this is true.
pub(super) fn runs(decodes: impl Iterator<Item = bool>) -> u64 {
    let mut before = false;
    let begins = decodes.filter(|&now| {
        let begins = now && !before;
        before = now;
        begins
    });
    begins.count() as u64
}

/// Some moves, one after the other, and what comes of them.
#[derive(Clone, Debug)]
struct Bill<'a> {
    prices: &'a Prices,
    /// Runs of a call as things are.
    runs: i64,
    /// Calls in which what is saved is saved.
    calls: u64,
    /// Runs fewer.
    saves: i64,
    /// Time of all copies.
    us: u64,
    first: Option<Move>,
}

impl<'a> Bill<'a> {
    /// None if there is nothing to gain.
    fn of(ids: &[Id], prices: &'a Prices) -> Option<Self> {
        let runs = runs(ids.iter().map(|id| matches!(id, Id::Decodes { .. })));
        if runs < 2 || prices.run_us == 0 {
            return None;
        }
        // Who decodes alone decodes in one run wherever it is: what counts is how long two will.
        let (mut longest, mut second) = (0, 0);
        for id in ids {
            if let &Id::Decodes { left, .. } = id {
                second = second.max(left.min(longest));
                longest = longest.max(left);
            }
        }
        Some(Self {
            prices,
            runs: i64::try_from(runs).unwrap_or(i64::MAX),
            calls: u64::from(second),
            saves: 0,
            us: 0,
            first: None,
        })
    }

    /// Makes a move; false, and nothing is done, if it would make a step too long.
    fn add(&mut self, ids: &mut [Id], from: usize, to: usize) -> bool {
        let (Id::Decodes { left, bytes }, Some(more)) = (ids[from], ids[to].bytes_in_the_way())
        else {
            return false;
        };
        let us = self.prices.of(bytes.saturating_add(more));
        if us > self.prices.room_us() {
            return false;
        }
        self.us = self.us.saturating_add(us);
        self.calls = self.calls.min(u64::from(left));
        self.saves += saved(ids, from, to);
        let index = |at| u32::try_from(at).unwrap_or(u32::MAX);
        let (from_id, to_id) = (index(from), index(to));
        self.first.get_or_insert(Move {
            from: from_id,
            to: to_id,
            us,
        });
        ids.swap(from, to);
        true
    }

    /// Decides by what the moves so far cost and save.
    fn settle(&self, decision: &mut Decision) {
        // Who is still in prefill makes no run yet.
        let saves = u64::try_from(self.saves.min(self.runs - 1)).unwrap_or(0);
        let loses_us = saves.saturating_mul(self.prices.run_us);
        if loses_us.saturating_mul(self.calls) <= self.us {
            return;
        }
        decision.loses_us = decision.loses_us.max(loses_us);
        if self.prices.lost_us >= self.us {
            decision.step = decision.step.or(self.first);
        }
    }
}

/// The highest that decodes.
fn highest(ids: &[Id]) -> Option<usize> {
    ids.iter().rposition(|id| matches!(id, Id::Decodes { .. }))
}

/// The highest that decodes, into the lowest hole.
fn lowest_move(ids: &[Id]) -> Option<(usize, usize)> {
    let from = highest(ids)?;
    let to = (ids[..from].iter()).position(|id| id.bytes_in_the_way().is_some())?;
    Some((from, to))
}

/// The highest that decodes, into the hole where that saves most; of several the cheapest.
fn best_move(ids: &[Id]) -> Option<(usize, usize)> {
    let from = highest(ids)?;
    let holes = (0..from).filter_map(|to| Some((to, ids[to].bytes_in_the_way()?)));
    let (to, _) = holes.max_by_key(|&(to, bytes)| {
        let (bytes, place) = (std::cmp::Reverse(bytes), std::cmp::Reverse(to));
        (saved(ids, from, to), bytes, place)
    })?;
    Some((from, to))
}

/// How many runs fewer there are when what is at `from` is at `to`, where nothing was.
fn saved(ids: &[Id], from: usize, to: usize) -> i64 {
    let active = |at: Option<usize>| {
        at.filter(|&at| at != from)
            .and_then(|at| ids.get(at))
            .is_some_and(|id| id.is_active())
    };
    // Beside two it makes two runs one; beside none it is a run of its own.
    let joins =
        |at: usize| i64::from(active(at.checked_sub(1))) + i64::from(active(at.checked_add(1)));
    joins(to) - joins(from)
}
