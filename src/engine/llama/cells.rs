//! Where K/V is: into cells, out of them into host memory and back, shared between sequences.
//!
//! | | split layout | pooled layout |
//! |---|---|---|
//! | a prefix of a running sequence | copied through host memory | shared cell by cell (`seq_cp`) |
//! | what an ended sequence computed (`kept.rs`) | moved to host memory, once | stays in the pool, its oldest moved to host memory |
//! | room for one more | an id | an id, and pages (`pages.rs`) |

use std::sync::atomic::Ordering::Relaxed;

use super::pages::Holder;
use super::plan::{Plan, TenantId};
use super::prefix::{Key, chain};
use super::sequence::{GRID, Sequence, common, count};
use super::worker::{Slot, Worker};
use crate::generation::{Moment, clock};

/// How long a sequence waits for its prefix to come from the disk. A disk that hangs never answers.
const MOST_FETCH_US: u64 = 1_000_000;

/// Where a prefix was found in cells.
#[derive(Clone, Copy, Debug)]
struct Found {
    id: u32,
    blocks: u32,
    /// Its place in `kept`.
    kept: Option<usize>,
}

impl Worker {
    // === what the planner is told ===

    /// Notes how much of a waiting sequence's prompt is likely to be cached when it starts.
    pub(super) fn expect(&mut self, sequence: &mut Sequence) {
        let keys = sequence.sharable();
        let found = self.found(keys, None);
        let live = found.map_or(0, |found| found.blocks);
        let stored = self.setup.cache.depth(keys).blocks;
        let shared = if self.limits.pooled && live >= stored {
            live
        } else {
            0
        };
        let pins = found
            .and_then(|found| self.kept.get(found.kept?))
            .map_or(0, |kept| {
                let pages = kept.pages.get(..shared as usize).unwrap_or_default();
                self.pages.unused(pages)
            });
        sequence.expected = live.max(stored);
        sequence.expected_shared = shared;
        sequence.expected_pins = pins;
    }

    /// Marks the sequences in prefill that wait for another one to compute what their prompts have in
    /// common, and gives those their due whose wait is over. Who is further leads; of equals, who came
    /// first. So no two wait for each other.
    pub(super) fn look_for_leaders(&mut self) {
        for id in 0..count(self.slots.len()) {
            let Some(sequence) = self.sequence(id) else {
                continue;
            };
            if !sequence.may_follow || !sequence.is_in_prefill() {
                continue;
            }
            let class = sequence.job.class;
            let leader = self.leader(id, sequence);
            let follows = leader.is_some() || self.is_fetched(id) || self.has_copied_enough();
            if let Some(leader) = leader
                && let Some(leader) = self.sequence_mut(leader)
            {
                // Who waits for it must not wait behind its class.
                leader.lent_class = leader.lent_class.max(class);
            }
            if !follows {
                self.attach(id);
            }
            if let Some(sequence) = self.sequence_mut(id) {
                sequence.follows = follows;
                // Once it computes for itself, nobody can be ahead of it on the same way.
                sequence.may_follow = follows;
            }
        }
    }

    /// Who is computing what `sequence` needs next.
    fn leader(&self, id: u32, sequence: &Sequence) -> Option<u32> {
        // Whole states are kept at the last grid line of a prompt only: nothing to wait for before.
        if !self.can_share() {
            return None;
        }
        let (keys, blocks) = (sequence.sharable(), sequence.blocks());
        let leads = |other: &Sequence| {
            let shared = common(&other.job.keys, keys);
            let ahead = other.position > sequence.position
                || (other.position == sequence.position && other.admitted < sequence.admitted);
            other.is_in_prefill() && ahead && shared > blocks && other.blocks() < shared
        };
        (0..count(self.slots.len()))
            .find(|&other| other != id && self.sequence(other).is_some_and(leads))
    }

    /// Whether prefixes were copied for so long in this step that the rest must wait for the next one: who
    /// comes together need not be served together, and streams are waiting.
    fn has_copied_enough(&self) -> bool {
        self.copied_us > self.limits.max_step_us / 2
    }

    /// Whether more of a prompt is on its way from the disk.
    fn is_fetched(&mut self, id: u32) -> bool {
        let Slot::Busy(sequence) = &self.slots[id as usize] else {
            return false;
        };
        if clock::micros().saturating_sub(sequence.admitted_us) > MOST_FETCH_US {
            return false;
        }
        let depth = self.setup.cache.depth(sequence.sharable());
        depth.loading && depth.blocks >= sequence.blocks()
    }

    // === giving cells ===

    /// Carries out what was planned for cells and ids.
    pub(super) fn change_hands(&mut self, plan: &Plan) {
        // Taken out of the line from its end, so that the places of those before stay what they are.
        let mut places: Vec<_> = plan
            .start
            .iter()
            .map(|start| (start.index, start.id))
            .collect();
        places.sort_unstable();
        let mut starting: Vec<_> = places
            .into_iter()
            .rev()
            .filter_map(|(index, id)| Some((id, self.waiting.take(index)?)))
            .collect();
        starting.sort_unstable_by_key(|(id, _)| {
            let order = plan.start.iter().position(|start| start.id == *id);
            order.unwrap_or(usize::MAX)
        });
        // Who is parked comes back into that line, and leaves an id to who starts.
        if let Some(park) = plan.park {
            self.park(park.id, park.keep);
        }
        // What they will share is held before anything is evicted for what they will not.
        for (id, sequence) in starting {
            self.take_id(id, sequence);
        }
        self.evict(plan.evict_cells);
        for start in &plan.start {
            self.start(start.id);
        }
        for grow in &plan.grow {
            if let Some(sequence) = self.sequence(grow.id) {
                let shared = count(sequence.pages.len()) - self.pages.private(&sequence.pages);
                self.grow(grow.id, grow.cells + shared * GRID);
            }
        }
    }

    /// Gives a waiting sequence an id and, on a pool, the cells that it can share.
    fn take_id(&mut self, id: u32, mut sequence: Box<Sequence>) {
        self.save(id);
        let is_first = sequence.admitted == 0;
        self.admissions += 1;
        sequence.admitted = self.admissions;
        sequence.admitted_us = clock::micros();
        sequence.served_us = sequence.admitted_us;
        sequence.company = self.running();
        if let Some(place) = &mut sequence.job.place {
            place.begin();
        }
        let ring = &sequence.job.ring;
        ring.set_queued(None);
        if is_first {
            ring.note(sequence.admitted_us, Moment::Admitted);
        } else if sequence.resumed {
            ring.note(sequence.admitted_us, Moment::Resumed);
        }
        sequence.may_follow = sequence.generated.is_empty() && self.shares();
        let is_parked = sequence.parked.is_some();
        if !is_parked && self.shares() {
            let looked_up = u64::from(sequence.prompt_len());
            let queries = &self.setup.counters.prefix_queries;
            queries.fetch_add(looked_up, Relaxed);
        }
        self.slots[id as usize] = Slot::Busy(sequence);
        self.setup.counters.running.fetch_add(1, Relaxed);
        if self.limits.pooled && !is_parked {
            self.attach(id);
        }
    }

    /// Gives a sequence that has an id the cells to begin with, and its state if it was parked.
    fn start(&mut self, id: u32) {
        let Some(needs) = self.sequence(id).map(Sequence::needs) else {
            return;
        };
        if !self.grow(id, needs) {
            // What it was expected to share is gone: it waits for cells of its own.
            self.set_back(id);
            return;
        }
        let parked = self
            .sequence_mut(id)
            .and_then(|sequence| sequence.parked.take());
        let Some((position, state)) = parked else {
            return;
        };
        self.setup.counters.parked.fetch_sub(1, Relaxed);
        self.parked_bytes = self.parked_bytes.saturating_sub(state.len() as u64);
        let position = match self.context.state_write(id, &state) {
            Ok(()) => position,
            Err(error) => {
                // Its tokens are known, so that what is lost can be computed again.
                tracing::warn!(%error, "a parked sequence was not taken back");
                0
            }
        };
        if let Some(sequence) = self.sequence_mut(id) {
            sequence.position = position;
        }
    }

    /// Takes pages of the pool until a sequence has `cells` cells; true where there is no pool.
    fn grow(&mut self, id: u32, cells: u32) -> bool {
        let Slot::Busy(sequence) = &mut self.slots[id as usize] else {
            return false;
        };
        !self.limits.pooled || self.pages.grow(&mut sequence.pages, cells.div_ceil(GRID))
    }

    /// Gives a sequence in prefill the longest part of its prompt that is computed already.
    fn attach(&mut self, id: u32) {
        let Slot::Busy(sequence) = &self.slots[id as usize] else {
            return;
        };
        let keys = sequence.sharable().to_vec();
        let (has, tenant) = (sequence.blocks(), TenantId(sequence.job.tenant));
        let began_us = clock::micros();
        let found = self.found(&keys, Some(id));
        let live = found.map_or(0, |found| found.blocks);
        let stored = self.setup.cache.depth(&keys).blocks;
        let got = match found {
            Some(found) if self.limits.pooled && live > has && live >= stored => {
                if self.share(found, id) { live } else { 0 }
            }
            Some(found) if !self.limits.pooled && live > stored.max(has) => {
                let known = &keys[..live as usize];
                self.setup
                    .cache
                    .save(&mut self.context, found.id, known, stored, false);
                self.restore(id, known)
            }
            _ if stored > has => self.restore(id, &keys[..stored as usize]),
            _ => return,
        };
        let took_us = clock::micros().saturating_sub(began_us);
        self.copied_us += took_us;
        self.planner.charge(tenant, took_us);
        let Some(sequence) = self.slots[id as usize].sequence_mut() else {
            return;
        };
        sequence.position = got * GRID;
        let cached = got.saturating_sub(has) * GRID;
        self.setup
            .counters
            .prefix_hits
            .fetch_add(u64::from(cached), Relaxed);
        sequence.cached += cached;
        sequence.tell_cached();
    }

    /// Fills a sequence's cells from host memory; returns the blocks it has then.
    fn restore(&mut self, id: u32, keys: &[Key]) -> u32 {
        if self.limits.pooled {
            // What it gets are cells of its own, in place of those that it shares.
            let Slot::Busy(sequence) = &mut self.slots[id as usize] else {
                return 0;
            };
            let needs = sequence.needs();
            let room = self.pages.free() + self.pages.sole(&sequence.pages);
            if room < needs.div_ceil(GRID) {
                return sequence.blocks();
            }
            let pages = std::mem::take(&mut sequence.pages);
            self.pages.give_back(&pages, Holder::Run);
            self.context.forget(id);
            self.grow(id, needs);
        }
        if self.setup.cache.restore(&mut self.context, id, keys) {
            count(keys.len())
        } else {
            0
        }
    }

    /// Lets a sequence use the first cells of another id in place of what it has.
    fn share(&mut self, found: Found, id: u32) -> bool {
        self.context.forget(id);
        let blocks = found.blocks as usize;
        let pages = match found.kept.and_then(|at| self.kept.get_mut(at)) {
            Some(kept) => {
                kept.used_us = clock::micros();
                kept.pages.get(..blocks)
            }
            None => self
                .sequence(found.id)
                .and_then(|other| other.pages.get(..blocks)),
        };
        let Some(pages) = pages.map(<[u32]>::to_vec) else {
            return false;
        };
        if let Err(error) = self.context.copy(found.id, id, found.blocks * GRID) {
            tracing::warn!(%error, "a prefix could not be shared");
            return false;
        }
        self.pages.share(&pages, Holder::Run);
        let Slot::Busy(sequence) = &mut self.slots[id as usize] else {
            return false;
        };
        let own = blocks.min(sequence.pages.len());
        let replaced: Vec<u32> = sequence.pages.splice(..own, pages).collect();
        self.pages.give_back(&replaced, Holder::Run);
        true
    }

    /// Where most of a prompt with these names is computed, in cells.
    fn found(&self, keys: &[Key], except: Option<u32>) -> Option<Found> {
        // A part of a state that is kept whole is nothing.
        if self.setup.cache.is_whole() {
            return None;
        }
        let slots = (0..).zip(&self.slots).filter(|&(id, _)| Some(id) != except);
        let in_slots = slots.map(|(id, slot)| {
            let blocks = match slot {
                Slot::Free => 0,
                Slot::Busy(sequence) => common(&sequence.job.keys, keys).min(sequence.blocks()),
                Slot::Ended { keys: known } => common(known, keys),
            };
            Found {
                id,
                blocks,
                kept: None,
            }
        });
        let in_kept = self.kept.iter().enumerate().map(|(at, kept)| Found {
            id: kept.id,
            blocks: common(&kept.keys, keys),
            kept: Some(at),
        });
        in_slots
            .chain(in_kept)
            .filter(|found| found.blocks > 0)
            .max_by_key(|found| found.blocks)
    }

    // === taking cells ===

    /// Puts a running sequence back in line; its K/V goes to host memory, or is computed again.
    fn park(&mut self, id: u32, keep: bool) {
        let Slot::Busy(sequence) = &mut self.slots[id as usize] else {
            return;
        };
        let mut state = Vec::new();
        let read = if keep {
            self.context.state_read(id, &mut state)
        } else {
            Ok(())
        };
        if let Err(error) = read {
            tracing::warn!(%error, "a sequence's state could not be kept");
            state.clear();
        }
        if !state.is_empty() {
            self.parked_bytes += state.len() as u64;
            sequence.parked = Some((sequence.position, state));
            self.setup.counters.parked.fetch_add(1, Relaxed);
        }
        sequence.resumed = true;
        sequence.job.ring.note(clock::micros(), Moment::Preempted);
        self.setup.counters.parks.fetch_add(1, Relaxed);
        self.set_back(id);
    }

    /// Takes a running sequence's id and cells, and puts it back in line, by its arrival.
    fn set_back(&mut self, id: u32) {
        let slot = std::mem::replace(&mut self.slots[id as usize], Slot::Free);
        let Slot::Busy(mut sequence) = slot else {
            return;
        };
        self.context.forget(id);
        self.pages.give_back(&sequence.pages, Holder::Run);
        sequence.pages.clear();
        sequence.position = 0;
        sequence.drafts.clear();
        if sequence.parked.is_none() && sequence.generated.is_empty() {
            // It begins anew: what it is given then is counted then.
            sequence.cached = 0;
            sequence.tell_cached();
        }
        (
            sequence.expected,
            sequence.expected_shared,
            sequence.expected_pins,
        ) = (0, 0, 0);
        self.leave_batch(&sequence);
        sequence.paused_since_us = None;
        self.stand_in_line(sequence);
    }

    /// Counts a sequence out of those that run, after its cells: who sees that it is gone sees them free.
    fn leave_batch(&self, sequence: &Sequence) {
        self.publish();
        let counters = &self.setup.counters;
        if sequence.paused_since_us.is_some() {
            counters.paused.fetch_sub(1, Relaxed);
        }
        counters.running.fetch_sub(1, Relaxed);
    }

    /// Ends a sequence's hold on its cells. What it computed is kept for those who come after, if
    /// `sound` and it is a block at least.
    pub(super) fn release(&mut self, id: u32, sound: bool) {
        let slot = std::mem::replace(&mut self.slots[id as usize], Slot::Free);
        let Slot::Busy(mut sequence) = slot else {
            self.slots[id as usize] = slot;
            return;
        };
        // Those who came together leave together: the last of them is as little alone as the first.
        let company = self.running().max(sequence.company);
        (self.setup.layout).ended(sequence.position, sequence.cached, company);
        self.leave_batch(&sequence);
        let is_whole = sequence.left_out == 0;
        if !sound || !is_whole || sequence.blocks() == 0 || !self.shares() {
            self.context.forget(id);
            self.pages.give_back(&sequence.pages, Holder::Run);
            return;
        }
        sequence.computed(&mut self.tokens);
        let mut keys = std::mem::take(&mut sequence.job.keys);
        keys.truncate(sequence.blocks() as usize);
        chain(&sequence.job.root, &self.tokens, &mut keys);
        if !self.can_share() {
            self.context.forget(id);
            self.pages.give_back(&sequence.pages, Holder::Run);
        } else if self.limits.pooled {
            self.keep(id, keys, &sequence.pages);
        } else {
            self.slots[id as usize] = Slot::Ended { keys };
        }
    }

    /// Whether a part of what one sequence computes is of use to another.
    fn can_share(&self) -> bool {
        !self.setup.cache.is_whole() && self.shares()
    }

    /// Whether prefixes are kept at all.
    fn shares(&self) -> bool {
        self.setup.cache.is_on() || self.limits.pooled
    }

    /// Sequences that have an id.
    fn running(&self) -> u32 {
        count(self.slots.iter().filter_map(Slot::sequence).count())
    }

    pub(super) fn sequence(&self, id: u32) -> Option<&Sequence> {
        self.slots.get(id as usize).and_then(Slot::sequence)
    }

    pub(super) fn sequence_mut(&mut self, id: u32) -> Option<&mut Sequence> {
        self.slots.get_mut(id as usize).and_then(Slot::sequence_mut)
    }
}
