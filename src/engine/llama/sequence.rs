//! A sequence on the engine thread: what of it is computed, and where its K/V is.

use super::job::Job;
pub(super) use super::plan::GRID;
use super::prefix::Key;
use super::speculate::Speculation;
use crate::generation::{Class, clock};

/// A job under way: waiting, running, or parked.
pub(super) struct Sequence {
    pub(super) job: Job,
    /// Tokens whose K/V is computed: in the cells while it runs, in `parked` otherwise.
    pub(super) position: u32,
    /// What it has generated. The last one's K/V is not computed yet.
    pub(super) generated: Vec<u32>,
    /// Tokens that may follow, to be verified in the next decode call.
    pub(super) drafts: Vec<u32>,
    /// Where drafts come from, once there were any to look for.
    pub(super) speculation: Option<Box<Speculation>>,
    /// Since when it is out of the batch because its reader is behind; like every time here, in
    /// microseconds of the engine's clock.
    pub(super) paused_since_us: Option<u64>,
    /// The pause in which it has left its id to one that decodes.
    pub(super) stepped_aside: Option<u64>,
    /// Its K/V in host memory, with the position it had then.
    pub(super) parked: Option<(u32, Vec<u8>)>,
    /// Whether somebody else may be computing what its prompt begins with.
    pub(super) may_follow: bool,
    /// Whether it waits for that now.
    pub(super) follows: bool,
    /// The most urgent class of those who wait for it.
    pub(super) lent_class: Class,
    /// Pages of a pooled cache that it holds.
    pub(super) pages: Vec<u32>,
    pub(super) arrived_us: u64,
    pub(super) admitted_us: u64,
    /// When it was last in a call.
    pub(super) served_us: u64,
    /// Sequences that ran when it started.
    pub(super) company: u32,
    /// Tokens behind its [`Sequence::head`] that its full context was shifted over.
    pub(super) left_out: u32,
    /// Its number among the sequences that were ever given an id.
    pub(super) admitted: u64,
    /// Tokens of its prompt that it did not compute.
    pub(super) cached: u32,
    /// Whether it had an id before.
    pub(super) resumed: bool,
    /// Blocks of its prompt that are likely to be cached when it starts; how many of them in cells of
    /// the pool that it would share; how many of those nobody uses now.
    pub(super) expected: u32,
    pub(super) expected_shared: u32,
    pub(super) expected_pins: u32,
}

impl Sequence {
    pub(super) fn new(job: Job) -> Self {
        Self {
            job,
            position: 0,
            generated: Vec::new(),
            drafts: Vec::new(),
            speculation: None,
            paused_since_us: None,
            stepped_aside: None,
            parked: None,
            may_follow: false,
            follows: false,
            lent_class: Class::Background,
            pages: Vec::new(),
            arrived_us: clock::micros(),
            admitted_us: 0,
            served_us: 0,
            company: 0,
            left_out: 0,
            admitted: 0,
            cached: 0,
            resumed: false,
            expected: 0,
            expected_shared: 0,
            expected_pins: 0,
        }
    }

    /// Tells its reader how much of the prompt was cached.
    pub(super) fn tell_cached(&self) {
        if self.job.tells_cached {
            self.job.ring.set_cached(self.cached);
        }
    }

    /// Tokens of the prompt.
    pub(super) fn prompt_len(&self) -> u32 {
        count(self.job.prompt.len())
    }

    /// Tokens generated so far.
    pub(super) fn generated_len(&self) -> u32 {
        count(self.generated.len())
    }

    /// Tokens to compute before the next one can be chosen from a decode row, or from the prompt's last
    /// row if none was generated. More than the prompt when a state was lost and is computed again.
    pub(super) fn target(&self) -> u32 {
        self.prompt_len() + self.generated_len().saturating_sub(1) - self.left_out
    }

    /// Whether tokens that are known are still to be computed.
    pub(super) fn is_in_prefill(&self) -> bool {
        self.position < self.target()
    }

    /// A token that is known, by its position.
    pub(super) fn token(&self, position: u32) -> u32 {
        let left_out = if position < self.head() {
            0
        } else {
            self.left_out
        };
        let at = (position + left_out) as usize;
        let prompt = &self.job.prompt;
        let known = prompt
            .get(at)
            .or_else(|| self.generated.get(at - prompt.len()));
        known.copied().unwrap_or(0)
    }

    /// The names of the prompt's blocks that may come from a cache: all but what holds the last token,
    /// whose logits are needed.
    pub(super) fn sharable(&self) -> &[Key] {
        let most = (self.job.prompt.len().saturating_sub(1)) / GRID as usize;
        self.job.keys.get(..most).unwrap_or(&self.job.keys)
    }

    /// Whole blocks computed.
    pub(super) fn blocks(&self) -> u32 {
        self.position / GRID
    }

    /// The token that its next decode row computes.
    pub(super) fn next(&self) -> u32 {
        self.generated.last().copied().unwrap_or(0)
    }

    /// Cells that it starts with: for what is known, and a page to grow into.
    pub(super) fn needs(&self) -> u32 {
        (self.target() + 1)
            .next_multiple_of(GRID)
            .saturating_add(GRID)
            .min(self.job.most.next_multiple_of(GRID))
    }

    /// Writes the tokens whose K/V is computed into `out`; nothing may have been left out.
    pub(super) fn computed(&self, out: &mut Vec<u32>) {
        out.clear();
        let all = self.job.prompt.iter().chain(&self.generated);
        out.extend(all.take(self.position as usize));
    }
}

/// How many blocks two chains of names have in common. Equal names mean equal beginnings, so the
/// question is where they part: a binary search.
pub(super) fn common(a: &[Key], b: &[Key]) -> u32 {
    let shorter = a.len().min(b.len());
    let (mut low, mut high) = (0, shorter);
    while low < high {
        let middle = usize::midpoint(low, high);
        if a.get(middle) == b.get(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    count(low)
}

pub(super) fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
