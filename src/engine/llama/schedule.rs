//! What the next step computes: pure functions from the state of the sequences to rows.
//!
//! A step is two calls: one row for every sequence that decodes, then one bounded chunk of prompts.
//! Two calls, because on a CPU one mixed call costs nearly twice as much, and because a running
//! stream then never waits longer than one chunk for a long prompt beside it.

/// Prompts are cut at multiples of this many tokens: the grid on which prefixes will be shared, and
/// the row count from which a CPU's matrix kernels run at full speed.
pub(super) const GRID: u32 = 64;

/// Where one sequence stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefill {
    /// The sequence's id.
    pub(super) id: u32,
    /// Prompt tokens already computed.
    pub(super) done: u32,
    /// Prompt tokens in all; more than `done`.
    pub(super) total: u32,
}

/// A run of prompt tokens of one sequence, to be computed in this step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The sequence's id.
    pub(super) id: u32,
    /// First prompt token of the run.
    pub(super) from: u32,
    /// One past the last.
    pub(super) to: u32,
}

/// Shares out `budget` prompt tokens among the sequences in prefill, beginning with the first whose
/// id is at least `turn`, and puts the runs into `out`, sorted by id. Returns the sequence that was
/// served last: the next turn begins behind it.
///
/// A run ends with its prompt or on the grid. Short prompts are gathered in one call; with
/// `one_only` (unified layouts, where a prompt's bits depend on what shares its batch) the first
/// sequence has the call to itself. `waiting` is sorted by id.
pub(super) fn prefill(
    waiting: &[Prefill],
    budget: u32,
    turn: u32,
    one_only: bool,
    out: &mut Vec<Run>,
) -> Option<u32> {
    out.clear();
    let first = waiting.partition_point(|sequence| sequence.id < turn);
    let mut left = budget.max(GRID);
    for sequence in waiting[first..].iter().chain(&waiting[..first]) {
        let mut to = sequence.total.min(sequence.done.saturating_add(left));
        if to < sequence.total {
            to -= to % GRID;
        }
        if to <= sequence.done {
            // What is left of the budget does not reach the next grid line.
            continue;
        }
        left -= to - sequence.done;
        out.push(Run {
            id: sequence.id,
            from: sequence.done,
            to,
        });
        if one_only || left == 0 {
            break;
        }
    }
    let last = out.last().map(|run| run.id);
    out.sort_unstable_by_key(|run| run.id);
    last
}

/// KV cells promised to sequences, so that a decode never finds the cache full.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cells {
    capacity: u64,
    promised: u64,
}

impl Cells {
    /// All of `capacity` free.
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            capacity,
            promised: 0,
        }
    }

    /// Promises `count` cells, or none of them.
    pub(super) fn promise(&mut self, count: u32) -> bool {
        let promised = self.promised + u64::from(count);
        if promised > self.capacity {
            return false;
        }
        self.promised = promised;
        true
    }

    /// Takes a promise back.
    pub(super) fn give_back(&mut self, count: u32) {
        self.promised = self.promised.saturating_sub(u64::from(count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plan(waiting: &[Prefill], budget: u32, turn: u32, one_only: bool) -> Vec<Run> {
        let mut out = Vec::new();
        prefill(waiting, budget, turn, one_only, &mut out);
        out
    }

    fn at(id: u32, done: u32, total: u32) -> Prefill {
        Prefill { id, done, total }
    }

    #[test]
    fn a_long_prompt_is_cut_on_the_grid() {
        let run = |from, to| vec![Run { id: 0, from, to }];
        assert_eq!(plan(&[at(0, 0, 5000)], 128, 0, false), run(0, 128));
        assert_eq!(plan(&[at(0, 4992, 5000)], 128, 0, false), run(4992, 5000));
    }

    #[test]
    fn short_prompts_share_one_call_and_turns_rotate() {
        let waiting = [at(0, 0, 40), at(3, 0, 1000), at(5, 0, 30)];
        let ids: Vec<_> = plan(&waiting, 128, 3, false).iter().map(|r| r.id).collect();
        assert_eq!(ids, [3], "3 takes the whole budget on its turn");
        let ids: Vec<_> = plan(&waiting, 128, 4, false).iter().map(|r| r.id).collect();
        assert_eq!(
            ids,
            [0, 5],
            "58 tokens are left, which do not reach the grid"
        );
        assert_eq!(plan(&waiting, 512, 0, true).len(), 1);
    }

    #[test]
    fn the_next_turn_begins_behind_the_last_one_served() {
        let waiting = [at(0, 0, 40), at(3, 0, 1000), at(5, 0, 30)];
        // 5, then 0; the grid keeps 3 out. The next turn is 3's, not 5's.
        let mut out = Vec::new();
        assert_eq!(prefill(&waiting, 128, 4, false, &mut out), Some(0));
        assert_eq!(prefill(&[], 128, 4, false, &mut out), None);
    }

    proptest! {
        #[test]
        fn every_prompt_is_computed_once_in_order_and_no_call_exceeds_its_budget(
            totals in prop::collection::vec(1u32..700, 1..9),
            budget in prop::sample::select(vec![64u32, 128, 192, 512]),
            one_only in any::<bool>(),
        ) {
            let mut state: Vec<_> = totals.iter().zip(0..).map(|(&total, id)| at(id, 0, total)).collect();
            let mut turn = 0;
            let bound = totals.iter().map(|t| t / GRID + 1).sum::<u32>();
            for _ in 0..bound {
                let waiting: Vec<_> = state.iter().copied().filter(|s| s.done < s.total).collect();
                let mut runs = Vec::new();
                let last = prefill(&waiting, budget, turn, one_only, &mut runs);
                turn = last.map_or(0, |id| id + 1);
                prop_assert_eq!(runs.is_empty(), waiting.is_empty());
                prop_assert!(runs.iter().map(|r| r.to - r.from).sum::<u32>() <= budget);
                prop_assert!(runs.windows(2).all(|pair| pair[0].id < pair[1].id));
                for run in runs {
                    let sequence = &mut state[run.id as usize];
                    prop_assert_eq!(run.from, sequence.done);
                    prop_assert!(run.to > run.from && run.to <= sequence.total);
                    prop_assert!(run.to == sequence.total || run.to % GRID == 0);
                    sequence.done = run.to;
                }
            }
            prop_assert!(state.iter().all(|s| s.done == s.total), "within {bound} calls");
        }

        #[test]
        fn promises_never_exceed_the_cells(requests in prop::collection::vec((1u32..400, any::<bool>()), 0..60)) {
            let mut cells = Cells::new(1000);
            let mut held = Vec::new();
            for (count, free) in requests {
                if cells.promise(count) {
                    held.push(count);
                }
                prop_assert!(held.iter().sum::<u32>() <= 1000);
                if free && let Some(count) = held.pop() {
                    cells.give_back(count);
                }
            }
        }
    }
}
