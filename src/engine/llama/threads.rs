//! How many threads the next llama.cpp call gets: chosen by what calls have taken, never by belief.
//!
//! For each phase and each size of call the governor keeps to one number of threads and now and then
//! *looks* at its neighbours on a ladder (1, 2, 3, 4, 6, 8, …): a handful of calls with one rung more or
//! less, compared with the calls just before. Three things keep it calm. A look must win clearly, more
//! threads more clearly than fewer. What a look lost is saved up for: the next one comes no sooner than
//! [`PRICE`] times that later, so that looks cost about a percent. And a look ends at once when it goes
//! badly: upwards, as it does when somebody else uses the core; downwards, where calls are long.
//!
//! Calls of a new size that will be long, by what a row was found to take, begin with all threads: a
//! handful of them with too few is what users would wait for. Short ones begin with what was best for
//! the last size, at first with one thread, and are soon done looking around.
//!
//! A core is given back by suspicion: time lost against the rung below is summed up while it grows, and
//! when the sum is more than a slip, the rung below is looked at there and then. If it is better, that
//! holds for calls of every size until a look upwards succeeds, with growing intervals between tries.
//!
//! Pure logic on given times; `crew.rs` measures them.

use std::array;

/// Looks at one rung cost at most one part in this many of the time.
const PRICE: u64 = 100;
/// But a higher rung is not left alone for longer than this, in microseconds, or [`CHEAPEST`] times
/// what the last look at it lost: the machine may be quiet again.
const LONGEST: u64 = 15_000_000;
const CHEAPEST: u64 = 20;
/// Calls of a new size that are not counted: they touch memory for the first time.
const FIRST_CALLS: u32 = 2;
/// A call of a new size that will take this long on one thread, in microseconds, gets all of them.
const LONG: u64 = 2_000;
/// From this many rows on a row takes about as long in calls of any size: what was found out about one
/// size need not be found out again for the others, at the price of one slow call each.
const ALIKE: u32 = 64;
/// A look lasts this long, in microseconds, within `LOOK_CALLS`.
const LOOK: u64 = 20_000;
const LOOK_CALLS: (u64, u64) = (3, 48);
/// More threads must take at most this share of the time; fewer may take that.
const BETTER: f32 = 0.94;
const AS_GOOD: f32 = 1.02;
/// Between two looks of one size in microseconds: at first, and after many that changed nothing.
const PATIENCE: (u64, u64) = (250_000, 4_000_000);
/// Between two tries to take back a core that was given up: at first, and at most.
const RETRY: (u64, u64) = (250_000, 4_000_000);
/// Lost time that is no slip any more, in microseconds.
const SLIP: f32 = 20_000.0;
/// An average that is worth comparing with stands for this many calls, and for no more than that many.
const SETTLED: f32 = 4.0;
const MEAN_CALLS: f32 = 16.0;
/// A look ends when it has cost this many microseconds and this many times the usual call: upwards,
/// where one call alone says little, and downwards.
const TOO_MUCH: f32 = 10_000.0;
const TOO_LONG: (f32, f32) = (2.0, 0.5);
/// The full average remembers about this many microseconds, within these shares for one call.
const MEMORY: f32 = 100_000.0;
const SHARE: (f32, f32) = (1.0 / 64.0, 0.5);
/// A single call this many times slower than usual counts for no more where two rungs are compared.
const CLIP: f32 = 4.0;

/// What a call is for. The two differ in how they gain from threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// One row for each of several sequences.
    Decode,
    /// Many rows of few sequences.
    Prefill,
}

/// The threads that a phase may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    /// This many, whatever is measured.
    Fixed(u32),
    /// As many as pay, up to this.
    UpTo(u32),
}

impl Limit {
    /// The most it can come to.
    pub(super) fn most(self) -> u32 {
        match self {
            Self::Fixed(threads) | Self::UpTo(threads) => threads.max(1),
        }
    }
}

/// A call that was made with the threads that [`Governor::threads`] named for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) phase: Phase,
    pub(super) rows: u32,
    /// When it ended, in microseconds from any beginning.
    pub(super) at: u64,
    /// How long it took.
    pub(super) wall: u64,
}

/// Chooses thread counts.
#[derive(Debug)]
pub(super) struct Governor {
    decode: Tuner,
    prefill: Tuner,
}

impl Governor {
    pub(super) fn new(decode: Limit, prefill: Limit) -> Self {
        Self {
            decode: Tuner::new(decode),
            prefill: Tuner::new(prefill),
        }
    }

    /// Takes in what a row costs on one thread, in microseconds.
    pub(super) fn calibrate(&mut self, row: u64) {
        self.decode.row = row;
        self.prefill.row = row;
    }

    /// Threads for a call of `rows`.
    pub(super) fn threads(&mut self, phase: Phase, rows: u32) -> u32 {
        self.tuner(phase).threads(rows)
    }

    /// Learns from a call.
    pub(super) fn observe(&mut self, call: &Call) {
        self.tuner(call.phase).observe(call);
    }

    fn tuner(&mut self, phase: Phase) -> &mut Tuner {
        match phase {
            Phase::Decode => &mut self.decode,
            Phase::Prefill => &mut self.prefill,
        }
    }
}

/// Rungs of the ladder at most: 1, 2, 3, 4, 6, 8, … 384, 512.
const RUNGS: usize = 20;
/// Sizes of call: two to each power of two, up to 2^13 rows.
const SIZES: usize = 28;

/// The ways to look from a rung.
const UP: usize = 0;
const DOWN: usize = 1;

#[derive(Debug)]
struct Tuner {
    limit: Limit,
    /// Thread counts, rising.
    ladder: Vec<u32>,
    sizes: [Size; SIZES],
    /// The size of the last call.
    last: usize,
    /// Microseconds of a row on one thread; 0 is unknown.
    row: u64,
    /// No size uses more than this rung: the machine is shared.
    ceiling: usize,
    retry: Wait,
    /// No look up at a rung, and none down, before these times, but for those that must be.
    thrift: [[u64; 2]; RUNGS],
}

impl Tuner {
    fn new(limit: Limit) -> Self {
        let most = limit.most();
        let steps = (0..).flat_map(|power: u32| [2u32 << power, 3u32 << power]);
        let ladder: Vec<u32> = std::iter::once(1)
            .chain(steps)
            .take(RUNGS - 1)
            .take_while(|&threads| threads < most)
            .chain([most])
            .collect();
        Self {
            limit,
            ceiling: ladder.len() - 1,
            ladder,
            sizes: array::from_fn(|_| Size::default()),
            last: 0,
            row: 0,
            retry: Wait::new(RETRY),
            thrift: [[0; 2]; RUNGS],
        }
    }

    fn threads(&mut self, rows: u32) -> u32 {
        if let Limit::Fixed(threads) = self.limit {
            return threads.max(1);
        }
        let index = size_of_call(rows);
        if self.sizes[index].calls == 0 {
            self.sizes[index].rung = if self.row * u64::from(rows) < LONG {
                self.sizes[self.last].rung
            } else {
                // No more than for the next larger size: there is less to divide.
                let larger = self.sizes[index..].iter().find(|size| size.calls > 0);
                larger.map_or(self.ladder.len() - 1, |size| size.rung)
            };
            if let Some(known) = self.alike(index) {
                let means = known.means.map(|mean| Mean {
                    calls: mean.calls.min(SETTLED),
                    ..mean
                });
                self.sizes[index].means = means;
            }
        }
        self.last = index;
        let ceiling = self.ceiling;
        let size = &mut self.sizes[index];
        // Another size has found out more about the machine meanwhile.
        size.look.take_if(|look| look.ceiling != ceiling);
        self.ladder[size.look.as_ref().map_or(size.rung.min(ceiling), |l| l.to)]
    }

    /// The nearest size whose rows take about as long as those of a size at `index`.
    fn alike(&self, index: usize) -> Option<&Size> {
        let first = size_of_call(ALIKE);
        let others = self.sizes.iter().enumerate().skip(first);
        others
            .filter(|(_, size)| index >= first && size.calls > FIRST_CALLS)
            .min_by_key(|(other, _)| other.abs_diff(index))
            .map(|(_, size)| size)
    }

    /// Where a size is when it does not look around.
    fn rung(&self, size: &Size) -> usize {
        size.rung.min(self.ceiling)
    }

    fn observe(&mut self, call: &Call) {
        if self.ladder.len() == 1 || matches!(self.limit, Limit::Fixed(_)) || call.rows == 0 {
            return;
        }
        let index = size_of_call(call.rows);
        let rung = self.rung(&self.sizes[index]);
        let size = &mut self.sizes[index];
        size.calls = size.calls.saturating_add(1);
        if size.calls <= FIRST_CALLS {
            return;
        }
        let Some(mut look) = size.look.take() else {
            size.settle(rung, call);
            self.look_around(index, rung, call);
            return;
        };
        match look.add(call) {
            Progress::Going => size.look = Some(look),
            progress => self.decide(index, &look, progress, call.at),
        }
    }

    /// Begins a look if it is time for one.
    fn look_around(&mut self, index: usize, rung: usize, call: &Call) {
        let size = &self.sizes[index];
        let usual = size.means[rung];
        if usual.calls < SETTLED {
            return;
        }
        let suspicion = rung > 0 && size.lost > slip(usual.time * float(call.rows));
        let to = if suspicion {
            // Much too slow: far more threads than there are cores left.
            let far = usual.full > 3.0 * size.means[rung - 1].full;
            Some(if far { rung / 2 } else { rung - 1 })
        } else {
            self.direction(size, rung, call.at)
        };
        let Some(to) = to else {
            return;
        };
        self.sizes[index].look = Some(Look {
            suspicion,
            ..Look::new((rung, to), self.ceiling, usual, call.rows)
        });
    }

    /// Where to look when nothing is wrong.
    fn direction(&self, size: &Size, rung: usize, at: u64) -> Option<usize> {
        let up = rung + 1;
        let has_up = up < self.ladder.len();
        let is_new = |to: &usize| size.means[*to].calls == 0.0;
        if has_up && rung < self.ceiling && is_new(&up) {
            return Some(up);
        }
        if let Some(down) = rung.checked_sub(1).filter(is_new) {
            return Some(down);
        }
        if has_up && rung == self.ceiling {
            return (at >= self.retry.until && at >= self.thrift[up][UP]).then_some(up);
        }
        if at < size.patience.until {
            return None;
        }
        let may = |to: &usize, way: usize| at >= self.thrift[*to][way];
        let up = has_up.then_some(up).filter(|to| may(to, UP));
        let down = rung.checked_sub(1).filter(|to| may(to, DOWN));
        if size.up_is_next {
            up.or(down)
        } else {
            down.or(up)
        }
    }

    /// Draws the conclusion of a look.
    fn decide(&mut self, index: usize, look: &Look, progress: Progress, at: u64) {
        let (from, to) = (look.from, look.to);
        let up = to > from;
        let won = progress == Progress::Done && look.wins();
        if look.excess > 0.0 && !look.suspicion {
            let lost = micros(look.excess);
            let (way, most) = if up {
                (UP, LONGEST.max(CHEAPEST * lost))
            } else {
                (DOWN, u64::MAX)
            };
            let wait = (PRICE * lost).min(most);
            let until = &mut self.thrift[to][way];
            *until = (*until).max(at + wait);
        }
        let size = &mut self.sizes[index];
        let known = size.means[to];
        size.means[to].look(look);
        size.lost = 0.0;
        if look.suspicion && !won && to > 0 && look.time > 1.5 * known.full * look.rows {
            // So many threads have become slow as well: even fewer cores are left.
            size.look = Some(Look {
                suspicion: true,
                ..Look::new((from, to / 2), look.ceiling, look.usual, look.call_rows)
            });
            return;
        }
        size.up_is_next = up == won;
        match (up, won) {
            (true, true) => {
                size.patience.shorten(at);
                if from == self.ceiling {
                    size.rung = size.rung.max(to);
                    self.ceiling = to;
                    self.retry.reset(at);
                } else {
                    size.rung = to;
                }
            }
            (true, false) if from == self.ceiling => self.retry.lengthen(at),
            (false, true) if look.suspicion || (look.was_usual() && look.wins_by_far()) => {
                // Not this size's doing: the core is somebody else's for now.
                size.means[from].calls = 0.0;
                self.ceiling = to;
                self.retry.restart(at);
            }
            (false, true) => {
                size.rung = to;
                size.patience.shorten(at);
            }
            (_, false) => size.patience.lengthen(at),
        }
    }
}

/// What is known about calls of one size.
#[derive(Debug)]
struct Size {
    calls: u32,
    /// The best rung on a machine of our own.
    rung: usize,
    means: [Mean; RUNGS],
    look: Option<Look>,
    patience: Wait,
    up_is_next: bool,
    /// Microseconds lost against the rung below since that began to grow.
    lost: f32,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            calls: 0,
            rung: 0,
            means: [Mean::default(); RUNGS],
            look: None,
            patience: Wait::new(PATIENCE),
            up_is_next: true,
            lost: 0.0,
        }
    }
}

impl Size {
    /// Learns from a call at the usual rung.
    fn settle(&mut self, rung: usize, call: &Call) {
        let (wall, rows) = (float(call.wall), float(call.rows));
        self.means[rung].add(wall, rows);
        let Some(below) = rung.checked_sub(1).map(|below| self.means[below]) else {
            return;
        };
        if below.calls == 0.0 {
            return;
        }
        let slip = slip(self.means[rung].time * rows);
        let loss = wall - below.full * rows;
        // One call alone says little, unless it is out of all bounds.
        let counted = if loss < 3.0 * slip {
            loss.min(0.6 * slip)
        } else {
            loss
        };
        self.lost = (self.lost + counted).max(0.0);
    }
}

/// Time per row at a rung, averaged in two ways.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    /// Follows quickly, and one long call does not bend it far: to compare some calls with some others.
    time: f32,
    /// With all that calls have taken, over a longer time: to tell what it comes to in the end.
    full: f32,
    /// How many calls `time` stands for, at most `MEAN_CALLS`; 0 is unknown.
    calls: f32,
}

impl Mean {
    fn add(&mut self, wall: f32, rows: f32) {
        let time = wall / rows;
        if self.calls == 0.0 {
            (self.time, self.full) = (time, time);
        }
        self.calls = (self.calls + 1.0).min(MEAN_CALLS);
        self.time += (time.min(self.time * CLIP) - self.time) / self.calls;
        let share = (self.time * rows / MEMORY).clamp(SHARE.0, SHARE.1);
        self.full += (time - self.full) * share;
    }

    /// Learns from a look. It was short: what was known before still counts for half.
    fn look(&mut self, look: &Look) {
        let (time, full) = (look.clipped / look.rows, look.time / look.rows);
        let known = self.calls > 0.0;
        self.time = if known {
            self.time.midpoint(time)
        } else {
            time
        };
        self.full = if known {
            self.full.midpoint(full)
        } else {
            full
        };
        self.calls = SETTLED;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Going,
    Done,
    /// Given up: it costs too much.
    Bad,
}

/// Some calls at a neighbouring rung.
#[derive(Debug)]
struct Look {
    from: usize,
    to: usize,
    /// The ceiling at that time.
    ceiling: usize,
    suspicion: bool,
    /// What it is compared with.
    usual: Mean,
    /// Rows of a call.
    call_rows: u32,
    left: u64,
    /// The first call is not compared: threads are woken, caches filled.
    first: bool,
    time: f32,
    clipped: f32,
    rows: f32,
    /// Microseconds more than usual, so far.
    excess: f32,
}

impl Look {
    fn new((from, to): (usize, usize), ceiling: usize, usual: Mean, rows: u32) -> Self {
        let each = micros(usual.time * float(rows)).max(1);
        Self {
            from,
            to,
            ceiling,
            suspicion: false,
            usual,
            call_rows: rows,
            left: (LOOK / each).clamp(LOOK_CALLS.0, LOOK_CALLS.1),
            first: true,
            time: 0.0,
            clipped: 0.0,
            rows: 0.0,
            excess: 0.0,
        }
    }

    fn add(&mut self, call: &Call) -> Progress {
        let (wall, rows) = (float(call.wall), float(call.rows));
        let usual = self.usual.time * rows;
        self.excess += wall - usual;
        self.left -= 1;
        let too_long = if self.to > self.from {
            TOO_LONG.0
        } else {
            TOO_LONG.1
        };
        let dear = !self.suspicion && self.excess > TOO_MUCH.max(too_long * usual);
        if !std::mem::take(&mut self.first) || dear {
            self.time += wall;
            self.clipped += wall.min(usual * CLIP);
            self.rows += rows;
        }
        if dear {
            Progress::Bad
        } else if self.left == 0 {
            Progress::Done
        } else {
            Progress::Going
        }
    }

    /// Whether the calls were better than usual: clearly with more threads, hardly worse with fewer.
    fn wins(&self) -> bool {
        if self.suspicion {
            // What calls take in all follows slowly, and that they take long is news.
            let usual = self.usual.full.max(self.usual.time);
            self.time <= usual * self.rows * AS_GOOD
        } else if self.to > self.from {
            self.clipped <= self.usual.time * self.rows * BETTER
        } else {
            self.clipped <= self.usual.time * self.rows * AS_GOOD
        }
    }

    /// Whether it began after the usual number of threads had been that for a while.
    fn was_usual(&self) -> bool {
        self.usual.calls >= MEAN_CALLS
    }

    /// Whether the threads that were left out did harm, which they do where somebody else computes.
    fn wins_by_far(&self) -> bool {
        self.clipped * 1.5 < self.usual.time * self.rows
    }
}

/// A time to wait for, and how far off the next one is to be.
#[derive(Debug)]
struct Wait {
    bounds: (u64, u64),
    gap: u64,
    until: u64,
}

impl Wait {
    fn new(bounds: (u64, u64)) -> Self {
        Self {
            bounds,
            gap: bounds.0,
            until: 0,
        }
    }

    fn reset(&mut self, at: u64) {
        self.gap = self.bounds.0;
        self.until = at;
    }

    fn restart(&mut self, at: u64) {
        self.reset(at);
        self.lengthen(at);
    }

    fn lengthen(&mut self, at: u64) {
        self.until = at + self.gap;
        self.gap = (self.gap * 2).min(self.bounds.1);
    }

    fn shorten(&mut self, at: u64) {
        self.gap = (self.gap / 2).max(self.bounds.0);
        self.until = at + self.gap;
    }
}

/// What may be lost without suspicion, in microseconds, when calls take `usual`.
fn slip(usual: f32) -> f32 {
    usual.max(SLIP)
}

/// Which size a call is of: 1, 2, 3, 4-5, 6-7, 8-11, 12-15, …
fn size_of_call(rows: u32) -> usize {
    let rows = rows.max(1);
    let power = rows.ilog2();
    let half = (rows << 1 >> power) & 1;
    ((2 * power + half) as usize).min(SIZES - 1)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "microseconds and rows, of which three digits count"
)]
fn float(value: impl Into<u64>) -> f32 {
    value.into() as f32
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a time, and the cast saturates"
)]
fn micros(time: f32) -> u64 {
    time as u64
}

#[cfg(test)]
mod tests;
