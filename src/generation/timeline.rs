//! When each token of a stream came: a few bytes a token, and what happened between them.

/// Something that happened to a stream beside its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// It left the waiting line.
    Admitted,
    /// All of its prompt was read.
    Prefilled,
    /// Its sequence left the batch because its reader was behind.
    Paused,
    /// Its sequence came back into the batch.
    Resumed,
    /// Its sequence was set aside for others.
    Preempted,
    /// Its reader did not come for more for this long, in microseconds.
    Stalled(u64),
}

/// The times of a stream's tokens, as [`super::clock`] microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    tokens: Vec<(u64, u32, u8)>,
    moments: Vec<(u64, Moment)>,
}

impl Timeline {
    /// A token of `choice` came at `at`, of so many bytes of text.
    pub fn token(&mut self, at: u64, choice: u32, bytes: usize) {
        let bytes = u8::try_from(bytes).unwrap_or(u8::MAX);
        self.tokens.push((at, choice, bytes));
    }

    /// Something else happened.
    pub fn moment(&mut self, at: u64, moment: Moment) {
        self.moments.push((at, moment));
    }

    /// Each token: when it came, its choice, and how many bytes it has (255 and more are 255).
    pub fn tokens(&self) -> impl Iterator<Item = (u64, u32, u8)> + '_ {
        self.tokens.iter().copied()
    }

    /// What else happened, in order.
    #[must_use]
    pub fn moments(&self) -> &[(u64, Moment)] {
        &self.moments
    }
}
