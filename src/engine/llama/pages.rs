//! Which cells of a pooled KV cache are spoken for, in pages of 64: the engine's own account.
//!
//! llama.cpp has no call that tells how many cells are free, and a decode that finds too few of them
//! fails. So every sequence holds pages for what it may yet compute, and pages of a shared prefix are
//! held by all who use it. A page is a number, not a place: llama.cpp puts cells where it likes.

use super::sequence::count;

/// Who holds a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// A running sequence.
    Run,
    /// A prefix that is only kept.
    Idle,
}

#[derive(Clone, Copy, Debug, Default)]
struct Held {
    run: u32,
    idle: u32,
}

/// The account of one pool.
#[derive(Debug)]
pub(super) struct Pages {
    held: Vec<Held>,
    free: Vec<u32>,
    /// Pages held by running sequences.
    running: u32,
    /// Pages held by more than one running sequence.
    shared: u32,
}

impl Pages {
    /// All of `count` pages free.
    pub(super) fn new(count: u32) -> Self {
        Self {
            held: vec![Held::default(); count as usize],
            free: (0..count).rev().collect(),
            running: 0,
            shared: 0,
        }
    }

    /// Pages in all.
    pub(super) fn total(&self) -> u32 {
        count(self.held.len())
    }

    /// Pages that nobody holds.
    pub(super) fn free(&self) -> u32 {
        count(self.free.len())
    }

    /// Pages that only kept prefixes hold.
    pub(super) fn idle(&self) -> u32 {
        self.total() - self.free() - self.running
    }

    /// Pages that several running sequences hold.
    pub(super) fn shared(&self) -> u32 {
        self.shared
    }

    /// Pages of a list that one running sequence alone holds.
    pub(super) fn private(&self, pages: &[u32]) -> u32 {
        count(pages.iter().filter(|&&page| self.at(page).run == 1).count())
    }

    /// Pages of a list that no running sequence holds.
    pub(super) fn unused(&self, pages: &[u32]) -> u32 {
        count(pages.iter().filter(|&&page| self.at(page).run == 0).count())
    }

    /// Pages of a list, one running sequence's, that nobody else holds: they are free when it gives them
    /// back.
    pub(super) fn sole(&self, pages: &[u32]) -> u32 {
        let sole = |held: Held| held.run == 1 && held.idle == 0;
        count(pages.iter().filter(|&&page| sole(self.at(page))).count())
    }

    /// Takes free pages for a running sequence until `pages` has `count` of them; all or none.
    pub(super) fn grow(&mut self, pages: &mut Vec<u32>, count: u32) -> bool {
        let missing = (count as usize).saturating_sub(pages.len());
        let Some(rest) = self.free.len().checked_sub(missing) else {
            return false;
        };
        for page in self.free.split_off(rest).into_iter().rev() {
            self.hold(page, Holder::Run);
            pages.push(page);
        }
        true
    }

    /// Lets one more hold these pages.
    pub(super) fn share(&mut self, pages: &[u32], holder: Holder) {
        for &page in pages {
            self.hold(page, holder);
        }
    }

    /// One holder less; what nobody holds is free.
    pub(super) fn give_back(&mut self, pages: &[u32], holder: Holder) {
        for &page in pages {
            let Some(held) = self.held.get_mut(page as usize) else {
                continue;
            };
            match holder {
                Holder::Run => {
                    debug_assert!(held.run > 0, "given back twice");
                    held.run = held.run.saturating_sub(1);
                    match held.run {
                        0 => self.running -= 1,
                        1 => self.shared -= 1,
                        _ => {}
                    }
                }
                Holder::Idle => {
                    debug_assert!(held.idle > 0, "given back twice");
                    held.idle = held.idle.saturating_sub(1);
                }
            }
            if held.run == 0 && held.idle == 0 {
                self.free.push(page);
            }
        }
    }

    fn hold(&mut self, page: u32, holder: Holder) {
        let Some(held) = self.held.get_mut(page as usize) else {
            return;
        };
        match holder {
            Holder::Run => {
                held.run += 1;
                match held.run {
                    1 => self.running += 1,
                    2 => self.shared += 1,
                    _ => {}
                }
            }
            Holder::Idle => held.idle += 1,
        }
    }

    fn at(&self, page: u32) -> Held {
        self.held.get(page as usize).copied().unwrap_or_default()
    }
}

/// How many cells of a pool may hold what is only kept: every row of every call scans them all.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdleCells {
    /// Attention heads of all layers together.
    heads: u32,
}

impl IdleCells {
    /// Nanoseconds that one head takes for one cell that is not its row's, measured on a CPU.
    const CELL_NS: u64 = 3;
    /// What of a row's time may go into them.
    const PERCENT: u64 = 10;

    pub(super) fn new(heads: u32) -> Self {
        Self { heads }
    }

    /// The cells allowed where a row takes `row_ns`; none are while that is unknown (0).
    pub(super) fn allowed(self, row_ns: u64) -> u32 {
        let cells = row_ns * Self::PERCENT / 100 / Self::CELL_NS / u64::from(self.heads.max(1));
        u32::try_from(cells).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against the plainest account there is: a list of holders for every page.
        #[test]
        fn the_figures_are_those_of_a_list_of_holders(
            steps in prop::collection::vec((0u8..5, 0usize..8, 1u32..6), 0..120),
        ) {
            let mut pages = Pages::new(24);
            let mut runs: Vec<Vec<u32>> = Vec::new();
            let mut kept: Vec<Vec<u32>> = Vec::new();
            for (step, which, count) in steps {
                match step {
                    0 => {
                        let mut list = Vec::new();
                        let fits = count <= pages.free();
                        prop_assert_eq!(pages.grow(&mut list, count), fits);
                        runs.push(list);
                    }
                    1 if !runs.is_empty() => {
                        let at = which % runs.len();
                        let list = runs[at].clone();
                        pages.share(&list, Holder::Run);
                        runs.push(list);
                    }
                    2 if !runs.is_empty() => {
                        let list = runs.swap_remove(which % runs.len());
                        pages.share(&list, Holder::Idle);
                        pages.give_back(&list, Holder::Run);
                        kept.push(list);
                    }
                    3 if !runs.is_empty() => {
                        let list = runs.swap_remove(which % runs.len());
                        pages.give_back(&list, Holder::Run);
                    }
                    4 if !kept.is_empty() => {
                        let list = kept.swap_remove(which % kept.len());
                        pages.give_back(&list, Holder::Idle);
                    }
                    _ => {}
                }
                let count = |lists: &[Vec<u32>], page| lists.iter().flatten().filter(|&&p| p == page).count();
                let all = 0..pages.total();
                let run: Vec<_> = all.clone().map(|page| count(&runs, page)).collect();
                let idle: Vec<_> = all.map(|page| count(&kept, page)).collect();
                let figure = |found: &dyn Fn(usize, usize) -> bool| {
                    run.iter().zip(&idle).filter(|&(&r, &i)| found(r, i)).count()
                };
                prop_assert_eq!(pages.free() as usize, figure(&|r, i| r + i == 0));
                prop_assert_eq!(pages.idle() as usize, figure(&|r, i| r == 0 && i > 0));
                prop_assert_eq!(pages.shared() as usize, figure(&|r, _| r > 1));
                for list in &runs {
                    let private = list.iter().filter(|&&page| run[page as usize] == 1).count();
                    prop_assert_eq!(pages.private(list) as usize, private);
                    let sole = list.iter().filter(|&&page| run[page as usize] == 1 && idle[page as usize] == 0);
                    prop_assert_eq!(pages.sole(list) as usize, sole.count());
                }
            }
        }
    }
}
