//! What ended sequences computed: kept in cells while that costs nobody much, then in host memory.
//!
//! A split cache has the cells of an idle id for nothing, but each row of a pooled one pays for every
//! cell in use: what is only kept there is bounded by what a row may pay.

use super::ffi::MEMORY_IDS;
use super::pages::Holder;
use super::prefix::Key;
use super::sequence::{GRID, common, count};
use super::worker::{Slot, Worker};
use crate::generation::clock;

/// A prefix kept in the cells of a pool, under an id that no decode call uses.
pub(super) struct Kept {
    /// Its sequence id, above those that run.
    pub(super) id: u32,
    pub(super) keys: Vec<Key>,
    pub(super) pages: Vec<u32>,
    /// When it was last used; engine microseconds.
    pub(super) used_us: u64,
}

impl Worker {
    /// Keeps what an ended sequence of a pool computed, under an id of its own.
    pub(super) fn keep(&mut self, id: u32, keys: Vec<Key>, pages: &[u32]) {
        let blocks = keys.len();
        let known = (self.kept.iter_mut())
            .find(|kept| common(&kept.keys, &keys) as usize == blocks)
            .map(|kept| kept.used_us = clock::micros());
        let first = self.limits.ids;
        let mut free = first..MEMORY_IDS;
        let mut owner = free.find(|id| self.kept.iter().all(|kept| kept.id != *id));
        if known.is_none()
            && owner.is_none()
            && let Some(at) = oldest(&self.kept)
        {
            owner = Some(self.kept[at].id);
            self.evict_one(at);
        }
        if known.is_none() && owner.is_none() {
            // No id is left to keep anything under.
            let from = self.setup.cache.saved(&keys);
            self.setup
                .cache
                .save(&mut self.context, id, &keys, from, true);
        }
        if known.is_none()
            && let Some(owner) = owner
        {
            // A shorter prefix of the same way has no use of its own any more.
            while let Some(at) = (self.kept.iter())
                .position(|kept| common(&kept.keys, &keys) as usize == kept.keys.len())
            {
                self.drop_kept(at);
            }
            if self.context.copy(id, owner, count(blocks) * GRID).is_ok() {
                let pages: Vec<u32> = pages.iter().take(blocks).copied().collect();
                self.pages.share(&pages, Holder::Idle);
                self.kept.push(Kept {
                    id: owner,
                    keys,
                    pages,
                    used_us: clock::micros(),
                });
            }
        }
        self.context.forget(id);
        self.pages.give_back(pages, Holder::Run);
    }

    /// Frees cells of a pool that only kept prefixes hold, the longest unused first; what they hold
    /// moves to host memory.
    pub(super) fn evict(&mut self, cells: u64) {
        let wanted = u64::from(self.pages.free()) + cells.div_ceil(u64::from(GRID));
        while u64::from(self.pages.free()) < wanted
            && let Some(at) = oldest(&self.kept)
        {
            self.evict_one(at);
        }
    }

    fn evict_one(&mut self, at: usize) {
        let kept = &self.kept[at];
        let from = self.setup.cache.saved(&kept.keys);
        self.setup
            .cache
            .save(&mut self.context, kept.id, &kept.keys, from, false);
        self.drop_kept(at);
    }

    fn drop_kept(&mut self, at: usize) {
        let kept = self.kept.swap_remove(at);
        self.context.forget(kept.id);
        self.pages.give_back(&kept.pages, Holder::Idle);
    }

    /// Evicts all that is only kept; whether there was anything.
    pub(super) fn evict_all(&mut self) -> bool {
        let any = !self.kept.is_empty();
        while !self.kept.is_empty() {
            self.evict_one(0);
        }
        any
    }

    /// Moves what an ended sequence computed to host memory: one a step when there is nothing else to do,
    /// or no id is free. On a pool, what exceeds the rows' allowance. Whether there was any.
    pub(super) fn save_ended(&mut self, idle: bool) -> bool {
        let mut any = false;
        let is_full = || !(self.slots.iter()).any(|slot| matches!(slot, Slot::Free));
        let is_ended = |slot: &Slot| matches!(slot, Slot::Ended { .. });
        if (idle || is_full())
            && let Some(id) = self.slots.iter().position(is_ended)
        {
            self.save(count(id));
            any = true;
        }
        let allowed = self.setup.idle_cells.allowed(self.row_ns) / GRID;
        if self.pages.idle() > allowed
            && let Some(at) = oldest(&self.kept)
        {
            self.evict_one(at);
            any = true;
        }
        any
    }

    /// Moves all that ended sequences computed to host memory.
    pub(super) fn save_all_ended(&mut self) {
        for id in 0..count(self.slots.len()) {
            self.save(id);
        }
    }

    /// Moves what an ended sequence computed to host memory, and frees its id.
    pub(super) fn save(&mut self, id: u32) {
        let slot = std::mem::replace(&mut self.slots[id as usize], Slot::Free);
        match slot {
            Slot::Free => {}
            Slot::Busy(_) => self.slots[id as usize] = slot,
            Slot::Ended { keys } => {
                let from = self.setup.cache.saved(&keys);
                self.setup
                    .cache
                    .save(&mut self.context, id, &keys, from, true);
                self.context.forget(id);
            }
        }
    }
}

fn oldest(kept: &[Kept]) -> Option<usize> {
    let all = kept.iter().enumerate();
    all.min_by_key(|(_, kept)| kept.used_us).map(|(at, _)| at)
}
