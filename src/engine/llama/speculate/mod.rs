//! Speculation: tokens that are likely to follow are computed in the same call as the next one.
//!
//! ```text
//! lookup   what followed when the sequence was at these words before
//! (a guide)  what its grammar leaves no choice about: `grammar/guide.rs`
//! draft_model  what a small model takes for the likeliest
//! worth    how many of those pay: rates of the sequence, costs of the engine
//! trial    whether steps with drafts are faster at all
//! ```
//!
//! A draft costs a row. It is right if it is what the sequence's own sampler chooses on the row before,
//! so that the text is the one there would be without drafts (`calls.rs`, `sample`).

mod draft_model;
mod fit;
mod lookup;
#[cfg(test)]
mod tests;
mod trial;
mod worth;

use self::lookup::Index;
use self::worth::{MOST, Origin, Worth};
use super::grammar::Guide;

pub(super) use self::draft_model::{DraftModel, Wanted};
pub use self::fit::DraftError;
pub(super) use self::fit::{load, no_draft};
pub(super) use self::trial::Trials;
pub(super) use self::worth::Costs;

/// What drafts are to fit into.
pub(super) struct Chance<'a> {
    /// Most drafts.
    pub(super) most: u32,
    /// Rows and streams that are in the call already.
    pub(super) rows: usize,
    pub(super) streams: usize,
    /// What calls cost.
    pub(super) costs: &'a Costs,
    /// What a draft of the draft model costs in microseconds, if there is one for this sequence.
    pub(super) model: Option<f32>,
}

/// What a sequence keeps for its drafts.
#[derive(Debug)]
pub(super) struct Speculation {
    index: Index,
    worth: Worth,
}

impl Speculation {
    pub(super) fn new(costs: &Costs) -> Self {
        Self {
            index: Index::default(),
            worth: Worth::new(costs),
        }
    }

    /// Appends to `drafts` what may follow `prompt` and `generated`, as far as it is likely to pay. What
    /// `guide` forces comes before a match, unless that is a long one, which mostly goes on beyond it; a
    /// draft model comes before a short match. If its turn has come: how many drafts it is to make.
    pub(super) fn draft(
        &mut self,
        prompt: &[u32],
        generated: &[u32],
        guide: Option<&mut Guide>,
        chance: &Chance<'_>,
        drafts: &mut Vec<u32>,
    ) -> Option<u16> {
        let known = self.index.len();
        if let Some(rest) = prompt.get(known..) {
            self.index.extend(rest);
        }
        let known = self.index.len() - prompt.len();
        self.index
            .extend(generated.get(known..).unwrap_or_default());
        let most = u16::try_from(chance.most).unwrap_or(MOST);
        let worth = &mut self.worth;
        let mut chosen =
            |origin| worth.choose(chance.costs, origin, most, chance.rows, chance.streams);
        let found = self.index.find();
        let origin = found.map(|found| Origin::of_match(found.length));
        if let Some(guide) = guide
            && origin != Some(Origin::Long)
        {
            let forced = chosen(Origin::Forced);
            if forced > 0 {
                guide.foresee(usize::from(forced), drafts);
            }
            if !drafts.is_empty() {
                return None;
            }
        }
        if let Some(price) = chance.model
            && origin != Some(Origin::Long)
        {
            let wanted = chosen(Origin::Model(price));
            if wanted > 0 {
                return Some(wanted);
            }
        }
        if let (Some(found), Some(origin)) = (found, origin) {
            let most = chosen(origin);
            self.index.follow(found, usize::from(most), drafts);
        }
        None
    }

    /// Takes in how many of the drafts were right.
    pub(super) fn verified(&mut self, costs: &mut Costs, drafts: usize, right: usize) {
        self.worth.verified(costs, drafts, right);
    }
}
