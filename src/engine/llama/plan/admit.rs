//! Who gets an id and cells, and who has to give them up.

use std::cmp::Reverse;

use super::room::Room;
use super::{Class, Park, Plan, Planner, Running, Start, State, Waiting, aged};

/// A sequence of a tenant that holds more than its share may be parked for another tenant when it has
/// run for so long: its state is not copied to and fro at every step.
const TURN_US: u64 = 2_000_000;

/// A background sequence may be parked for an interactive one when it has run for so long; so it gets
/// somewhere even while interactive ones keep coming.
const BACKGROUND_TURN_US: u64 = 250_000;

/// A waiting sequence with what decides on its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct InLine {
    level: Class,
    account: u32,
    due_us: u64,
    /// Position in `State::waiting`.
    at: u32,
}

impl Planner {
    /// Starts waiting sequences while there are ids and cells for them. The first in line that does
    /// not fit stops it: else a large one would wait for as long as small ones come.
    pub(super) fn admit(&mut self, state: &State<'_>, room: &mut Room, out: &mut Plan) {
        if state.waiting.is_empty() {
            return;
        }
        self.stand_in_line(state);
        let mut ids = FreeIds::of(state, out.park);
        while let Some(place) = self.first_in_line() {
            let first = self.line[place];
            let sequence = &state.waiting[first.at as usize];
            let Some(id) = ids.next() else {
                match self.victim(state, first, Want::Id, out) {
                    Some(at) => {
                        park(state, at, true, room, out);
                        ids.freed = Some(state.running[at].id);
                        continue;
                    }
                    None => return,
                }
            };
            if !room.has_prefix(sequence) {
                // By the next plan the caller has counted anew what is cached for it.
                return;
            }
            if !room.start(sequence) {
                let Some(at) = self.victim(state, first, Want::Cells, out) else {
                    return;
                };
                park(state, at, true, room, out);
                if !room.start(sequence) {
                    return;
                }
            }
            out.start.push(Start {
                index: sequence.index,
                id,
            });
            self.tenants.started(state, first.at as usize);
            self.line.swap_remove(place);
        }
    }

    fn stand_in_line(&mut self, state: &State<'_>) {
        self.line.clear();
        for (at, sequence) in state.waiting.iter().enumerate() {
            let account = self.tenants.of_waiting(at);
            let tenant = self.tenants.at(account);
            let since = tenant.neglected_since(sequence.class, sequence.arrived_us);
            let waited = state.now_us.saturating_sub(since);
            self.line.push(InLine {
                level: aged(sequence.class, waited),
                account,
                due_us: due(sequence),
                at: u32::try_from(at).unwrap_or(u32::MAX),
            });
        }
    }

    /// The order in which those who wait would start if nothing else came, as positions in
    /// `State::waiting`: what [`Planner::admit`] would do step by step.
    pub(in super::super) fn order(&mut self, state: &State<'_>, out: &mut Vec<u32>) {
        self.tenants.settle(state);
        self.stand_in_line(state);
        out.clear();
        self.line
            .sort_unstable_by_key(|one| (one.account, Reverse(one.level), one.due_us, one.at));
        // Each moves its tenant back by what it costs.
        let mut keyed = Vec::with_capacity(self.line.len());
        let mut moved = (u32::MAX, (0, 0));
        for one in &self.line {
            let account = self.tenants.at(one.account);
            if moved.0 != one.account {
                moved = (one.account, account.turn());
            }
            keyed.push((Reverse(one.level), moved.1, one.account, one.due_us, one.at));
            let (time, ran_us) = &mut moved.1;
            *time += account.cost(state, &state.waiting[one.at as usize]);
            *ran_us = state.now_us;
        }
        keyed.sort_unstable();
        out.extend(keyed.into_iter().map(|(.., at)| at));
    }

    /// The place in line of the next to start: class, then the least served tenant, then what is due
    /// first, then arrival. Starting one moves its tenant, so this looks at all of them each time.
    fn first_in_line(&self) -> Option<usize> {
        let key = |one: &InLine| {
            let turn = self.tenants.at(one.account).turn();
            (Reverse(one.level), turn, one.account, one.due_us, one.at)
        };
        let places = self.line.iter().enumerate();
        places.min_by_key(|(_, one)| key(one)).map(|(at, _)| at)
    }

    /// Whom to park for the first in line, as a position in `State::running`: who is paused anyway;
    /// for an interactive one, a background one; or one of a tenant that holds more than its share.
    fn victim(&self, state: &State<'_>, first: InLine, want: Want, out: &Plan) -> Option<usize> {
        if !state.parked_room || out.park.is_some() {
            return None;
        }
        let class = state.waiting[first.at as usize].class;
        let ran = |sequence: &Running| state.now_us.saturating_sub(sequence.admitted_us);
        if let Some(at) = longest_paused(state, state.now_us) {
            return Some(at);
        }
        if class == Class::Interactive {
            let background = lowest(state, |_, sequence| {
                sequence.class == Class::Background && ran(sequence) >= BACKGROUND_TURN_US
            });
            if background.is_some() {
                return background;
            }
        }
        let (held, all): (fn(&super::tenants::Account) -> u64, u64) = match want {
            Want::Id => (|account| account.ids, u64::from(state.limits.ids)),
            Want::Cells => (|account| account.cells, state.limits.cells),
        };
        let account = self.tenants.at(first.account);
        if held(account) >= self.tenants.share(account, all) {
            return None;
        }
        lowest(state, |at, sequence| {
            let account = self.tenants.of_running(at);
            !self.tenants.same(at, first.account)
                && ran(sequence) >= TURN_US
                && held(account) > self.tenants.share(account, all)
        })
    }
}

/// What the first in line lacks.
#[derive(Clone, Copy, Debug)]
enum Want {
    Id,
    Cells,
}

fn due(sequence: &Waiting) -> u64 {
    due_us(
        sequence.class,
        sequence.arrived_us,
        sequence.deadline_us,
        sequence.resumed,
    )
}

/// By when a sequence should start. One that named no deadline has a late one of its own, so that
/// those of its tenant that did cannot pass it for ever.
pub(in super::super) fn due_us(
    class: Class,
    arrived_us: u64,
    deadline_us: Option<u64>,
    resumed: bool,
) -> u64 {
    let patience_us = match class {
        Class::Interactive => 1_000_000,
        Class::Normal => 10_000_000,
        Class::Background => 60_000_000,
    };
    let own = if resumed { 0 } else { patience_us };
    let due = deadline_us.unwrap_or(u64::MAX);
    due.min(arrived_us.saturating_add(own))
}

/// Takes the id of a running sequence away, and what the plan had meant for it.
pub(super) fn park(state: &State<'_>, at: usize, keep: bool, room: &mut Room, out: &mut Plan) {
    let sequence = &state.running[at];
    let id = sequence.id;
    let grown = out.grow.iter().find(|grow| grow.id == id);
    room.give_back(grown.map_or(sequence.cells, |grow| grow.cells));
    room.leave(sequence.cells_full.max(sequence.cells));
    out.grow.retain(|grow| grow.id != id);
    out.decode.retain(|row| row.id != id);
    out.park = Some(Park { id, keep });
}

/// The most important stream that could go on but for a cell, when no cell is left.
pub(super) fn stuck(state: &State<'_>, room: &Room) -> Option<usize> {
    if !room.is_full() {
        return None;
    }
    let running = state.running.iter().enumerate();
    running
        .filter(|(_, sequence)| sequence.decodes() && sequence.used >= sequence.cells)
        .max_by_key(|(_, sequence)| rank(sequence))
        .map(|(at, _)| at)
}

/// Whom to park for a stream without a cell: who is paused anyway, or the least important, if it is
/// less important than the stream.
pub(super) fn victim_for_cells(state: &State<'_>, stuck: usize) -> Option<usize> {
    longest_paused(state, state.now_us).or_else(|| {
        let needy = rank(&state.running[stuck]);
        lowest(state, |_, sequence| {
            rank(sequence) < needy && sequence.cells > 0
        })
    })
}

/// Whom to drop when nothing can move and host memory is full.
pub(super) fn last_resort(state: &State<'_>, stuck: usize) -> Option<usize> {
    lowest(state, |at, sequence| at != stuck && sequence.cells > 0)
}

/// A sequence that has been paused for longer than it may.
pub(super) fn spilled(state: &State<'_>) -> Option<usize> {
    let after = state.spill_after_us?;
    longest_paused(state, state.now_us.checked_sub(after)?)
}

/// Who is paused for the longest, since `by` at the latest.
fn longest_paused(state: &State<'_>, by: u64) -> Option<usize> {
    let running = state.running.iter().enumerate();
    running
        .filter_map(|(at, sequence)| Some((sequence.pause()?, at)))
        .filter(|&(since, _)| since <= by)
        .min()
        .map(|(_, at)| at)
}

/// The least important of some: the lowest class, the newest.
fn lowest(state: &State<'_>, which: impl Fn(usize, &Running) -> bool) -> Option<usize> {
    let running = state.running.iter().enumerate();
    running
        .filter(|(at, sequence)| which(*at, sequence))
        .min_by_key(|(_, sequence)| rank(sequence))
        .map(|(at, _)| at)
}

/// Importance when somebody has to go: class, then who is here for longer.
fn rank(sequence: &Running) -> (Class, Reverse<u64>, Reverse<u32>) {
    (
        sequence.class,
        Reverse(sequence.admitted_us),
        Reverse(sequence.id),
    )
}

/// Free ids, lowest first: a split layout computes dense ids fastest.
struct FreeIds<'a> {
    running: std::iter::Peekable<std::slice::Iter<'a, Running>>,
    next: u32,
    end: u32,
    /// The id of the parked sequence.
    freed: Option<u32>,
}

impl<'a> FreeIds<'a> {
    fn of(state: &State<'a>, parked: Option<Park>) -> Self {
        Self {
            running: state.running.iter().peekable(),
            next: 0,
            end: state.limits.ids,
            freed: parked.map(|park| park.id),
        }
    }
}

impl Iterator for FreeIds<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        while self.next < self.end {
            let id = self.next;
            self.next += 1;
            if self.running.next_if(|sequence| sequence.id == id).is_none() {
                return Some(id);
            }
        }
        self.freed.take()
    }
}
