//! Speculation: tokens that are likely to follow are computed in the same call as the next one.
//!
//! ```text
//! lookup   what followed when the sequence was at these words before
//! worth    how many of those pay: rates of the sequence, costs of the engine
//! ```
//!
//! A draft costs a row. It is right if it is what the sequence's own sampler chooses on the row before,
//! so that the text is the one there would be without drafts (`calls.rs`, `sample`).

mod lookup;
#[cfg(test)]
mod tests;
mod worth;

use self::lookup::Index;
use self::worth::{MOST, Worth};

pub(super) use self::worth::Costs;

/// What a sequence keeps for its drafts.
#[derive(Debug, Default)]
pub(super) struct Speculation {
    index: Index,
    worth: Worth,
}

impl Speculation {
    /// Appends to `drafts` what may follow `prompt` and `generated`, at most `most` tokens, as far as it
    /// is likely to pay beside `rows` rows for `streams` streams that are in the call already.
    pub(super) fn draft(
        &mut self,
        prompt: &[u32],
        generated: &[u32],
        most: u32,
        (rows, streams): (usize, usize),
        costs: &Costs,
        drafts: &mut Vec<u32>,
    ) {
        let known = self.index.len();
        if let Some(rest) = prompt.get(known..) {
            self.index.extend(rest);
        }
        let known = self.index.len() - prompt.len();
        self.index
            .extend(generated.get(known..).unwrap_or_default());
        let Some(found) = self.index.find() else {
            return;
        };
        let most = u16::try_from(most).unwrap_or(MOST);
        let chosen = self.worth.choose(costs, found.length, most, rows, streams);
        self.index.follow(found, usize::from(chosen), drafts);
    }

    /// Takes in how many of the drafts were right.
    pub(super) fn verified(&mut self, drafts: usize, right: usize) {
        self.worth.verified(drafts, right);
    }
}
