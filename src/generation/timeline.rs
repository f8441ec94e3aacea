//! When each token of a stream came: a few bytes a token, and what happened between them.
//!
//! A token takes five bytes: the microseconds since the token kept before it, and the length of its
//! text. What stream it is of is kept only where there are several. A long stream is thinned out: once
//! 4,096 tokens are kept, every second of them goes, and from then on only every second one comes in;
//! and so on. The first, the last and the longest gap stay exact.

/// Something that happened to a stream beside its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// It left the waiting line.
    Admitted,
    /// All of its prompt was read.
    Prefilled,
    /// Its sequence left the batch because its reader was behind.
    Paused,
    /// Its sequence came back, into the batch or from where it was set aside.
    Resumed,
    /// Its sequence was set aside for others.
    Preempted,
    /// From then on its reader did not come for more, for this long, in microseconds.
    Stalled(u64),
}

/// The longest wait between two tokens of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gap {
    /// How long it was, in microseconds.
    pub micros: u64,
    /// The number of the token that ended it, counted from 0.
    pub index: u32,
    /// When that came.
    pub at: u64,
}

/// The times of a stream's tokens, as [`super::clock`] microseconds. It takes 20 KiB at most, 28 KiB
/// with several choices, and 1.5 KiB for moments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeline {
    kept: Vec<Kept>,
    /// The choice of each token that is kept; empty while all are of `only`.
    choices: Vec<u16>,
    only: u16,
    /// Every so many-th token is kept; a power of two.
    stride: u32,
    /// Tokens, whether kept or not.
    count: u32,
    first: u64,
    last: u64,
    /// When the token that was kept last came, as the deltas tell it.
    kept_at: u64,
    longest: Gap,
    moments: Vec<(u64, Moment)>,
    /// Moments that found no room.
    more_moments: u32,
}

/// Microseconds since the token kept before, and bytes: five bytes in place of eight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kept([u8; 5]);

impl Kept {
    fn new(delta: u32, bytes: u8) -> Self {
        let [a, b, c, d] = delta.to_le_bytes();
        Self([a, b, c, d, bytes])
    }

    fn delta(self) -> u32 {
        let [a, b, c, d, _] = self.0;
        u32::from_le_bytes([a, b, c, d])
    }

    fn bytes(self) -> u8 {
        self.0[4]
    }
}

impl Default for Timeline {
    fn default() -> Self {
        Self {
            kept: Vec::new(),
            choices: Vec::new(),
            only: 0,
            stride: 1,
            count: 0,
            first: 0,
            last: 0,
            kept_at: 0,
            longest: Gap::default(),
            moments: Vec::new(),
            more_moments: 0,
        }
    }
}

impl Timeline {
    /// Most tokens kept.
    pub const MOST_KEPT: usize = 4096;

    /// Most moments kept; later ones are counted.
    pub const MOST_MOMENTS: usize = 64;

    /// Tokens that the first allocation has room for: a short answer takes no second one.
    const AT_FIRST: usize = 64;

    /// A token of `choice` came at `at`, of so many bytes of text. One that is older than the one before
    /// it counts as coming with that.
    #[inline]
    pub fn token(&mut self, at: u64, choice: u32, bytes: usize) {
        if self.count == 0 {
            (self.first, self.last, self.kept_at) = (at, at, at);
            self.only = short(choice);
        }
        let at = at.max(self.last);
        let gap = at - self.last;
        if gap > self.longest.micros {
            self.longest = Gap {
                micros: gap,
                index: self.count,
                at,
            };
        }
        self.last = at;
        if self.count & (self.stride - 1) == 0 {
            self.keep(at, short(choice), bytes);
        }
        self.count = self.count.saturating_add(1);
    }

    #[inline]
    fn keep(&mut self, at: u64, choice: u16, bytes: usize) {
        if self.kept.len() == self.kept.capacity() && !self.make_room() {
            return;
        }
        if choice != self.only && self.choices.is_empty() {
            self.choices.reserve_exact(self.kept.capacity());
            self.choices.resize(self.kept.len(), self.only);
            self.choices.push(choice);
        } else if !self.choices.is_empty() {
            self.choices.push(choice);
        }
        let delta = u32::try_from(at - self.kept_at).unwrap_or(u32::MAX);
        let bytes = u8::try_from(bytes).unwrap_or(u8::MAX);
        // What a delta cannot hold is left to the next one.
        self.kept_at += u64::from(delta);
        self.kept.push(Kept::new(delta, bytes));
    }

    /// Grows, or forgets every second token; whether the next one is still to be kept.
    #[cold]
    fn make_room(&mut self) -> bool {
        let held = self.kept.len();
        if held < Self::MOST_KEPT {
            let more = held.max(Self::AT_FIRST);
            self.kept.reserve_exact(more.min(Self::MOST_KEPT - held));
            return true;
        }
        let mut into = 0;
        for from in (0..held).step_by(2) {
            let mut kept = self.kept[from];
            if from > 0 {
                let delta = self.kept[from - 1].delta().saturating_add(kept.delta());
                kept = Kept::new(delta, kept.bytes());
            }
            self.kept[into] = kept;
            if let Some(&choice) = self.choices.get(from) {
                self.choices[into] = choice;
            }
            into += 1;
        }
        self.kept.truncate(into);
        self.choices.truncate(into);
        let deltas = self.kept.iter().map(|kept| u64::from(kept.delta()));
        self.kept_at = self.first + deltas.sum::<u64>();
        self.stride *= 2;
        self.count & (self.stride - 1) == 0
    }

    /// Something else happened.
    pub fn moment(&mut self, at: u64, moment: Moment) {
        if self.moments.len() >= Self::MOST_MOMENTS {
            self.more_moments = self.more_moments.saturating_add(1);
            return;
        }
        let later = self.moments.iter().rev().take_while(|told| told.0 > at);
        let place = self.moments.len() - later.count();
        self.moments.insert(place, (at, moment));
    }

    /// The tokens that are kept, oldest first: when each came, its choice, and how many bytes of text it
    /// has (255 and more are 255). They are every [`Timeline::stride`]-th of the stream's, from the first
    /// on.
    pub fn tokens(&self) -> impl Iterator<Item = (u64, u32, u8)> + '_ {
        let mut at = self.first;
        self.kept.iter().enumerate().map(move |(index, kept)| {
            at += u64::from(kept.delta());
            let choice = self.choices.get(index).copied().unwrap_or(self.only);
            (at, u32::from(choice), kept.bytes())
        })
    }

    /// One in so many tokens is kept.
    #[must_use]
    pub fn stride(&self) -> u32 {
        self.stride
    }

    /// Tokens of the stream, kept or not.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// When the first token came, if one did.
    #[must_use]
    pub fn first(&self) -> Option<u64> {
        (self.count > 0).then_some(self.first)
    }

    /// When the last token came, if one did.
    #[must_use]
    pub fn last(&self) -> Option<u64> {
        (self.count > 0).then_some(self.last)
    }

    /// The longest wait between two tokens, whichever choices they are of; all zero before there are two.
    #[must_use]
    pub fn longest_gap(&self) -> Gap {
        self.longest
    }

    /// What else happened, in order: the first [`Timeline::MOST_MOMENTS`] that were told.
    #[must_use]
    pub fn moments(&self) -> &[(u64, Moment)] {
        &self.moments
    }

    /// Moments beyond those.
    #[must_use]
    pub fn more_moments(&self) -> u32 {
        self.more_moments
    }
}

/// No request has so many choices.
fn short(choice: u32) -> u16 {
    u16::try_from(choice).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
