//! The engine thread's side of the waiting line: who comes in, who is shown to the planner, who goes.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, Instant};

use super::job::Job;
use super::line::Spot;
use super::plan::{State, TenantId, Waiting, due_us};
use super::sequence::{GRID, Sequence, count};
use super::worker::{Slot, Worker};
use crate::generation::{Failure, Kind, Queued, clock};

/// How often those in line are told where they stand: more often than anybody asks.
const TELL_EVERY_US: u64 = 250_000;

impl Worker {
    /// Puts jobs in line, but for those that were cancelled on the way here: their bell may have been
    /// heard already, when there was nothing to be found.
    pub(super) fn take_jobs(&mut self, jobs: Vec<Job>) {
        for job in jobs {
            if job.ring.is_cancelled() {
                continue;
            }
            if let Some((deadline, _)) = job.queue_deadline {
                let next = self.next_deadline.unwrap_or(deadline);
                self.next_deadline = Some(next.min(deadline));
            }
            let mut sequence = Box::new(Sequence::new(job));
            self.expect(&mut sequence);
            self.stand_in_line(sequence);
        }
    }

    /// Puts a sequence in line, by its tenant, class and urgency.
    pub(super) fn stand_in_line(&mut self, sequence: Box<Sequence>) {
        let job = &sequence.job;
        let spot = Spot {
            tenant: TenantId(job.tenant),
            class: job.class,
            due_us: due_us(
                job.class,
                sequence.arrived_us,
                job.first_token_due_us,
                sequence.resumed,
            ),
            arrived_us: sequence.arrived_us,
        };
        self.waiting.push(spot, sequence);
    }

    /// Sends the newest of the largest tenant away for each that came in although all places were taken.
    pub(super) fn make_room(&mut self) {
        let places = self.setup.places;
        while self.setup.counters.accepted.load(Relaxed) > places {
            let largest = self.waiting.take_newest_of_largest(
                |sequence| sequence.job.weight,
                |sequence| !sequence.resumed && sequence.parked.is_none(),
            );
            let Some(mut sequence) = largest else { return };
            let counters = &self.setup.counters;
            let retry_after = counters.forecast().retry_after(counters.waiting());
            sequence.job.fail(
                Failure::new(
                    Kind::Overloaded,
                    "The waiting line is full, and this caller had the most in it when others came.",
                )
                .with_code("queue_full")
                .with_retry_after(retry_after),
            );
        }
    }

    /// Frees what nobody waits for any more, and what has waited too long to be admitted. Looks only
    /// when somebody has cancelled or a deadline has come.
    pub(super) fn drop_cancelled(&mut self) {
        let cancelled = self.setup.cancelled.swap(false, SeqCst);
        if cancelled {
            for id in 0..self.slots.len() {
                if self.slots[id]
                    .sequence()
                    .is_some_and(|sequence| sequence.job.ring.is_cancelled())
                {
                    self.release(count(id), true);
                }
            }
        }
        let now = Instant::now();
        if !cancelled && self.next_deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        let mut next: Option<Instant> = None;
        let mut unparked = 0;
        let counters = &self.setup.counters;
        let retry_after = counters.forecast().retry_after(counters.waiting());
        self.waiting.retain(|sequence| {
            let parked = sequence.parked.as_ref().map(|(_, state)| state.len());
            let stays = if sequence.job.ring.is_cancelled() {
                false
            } else {
                // Who has run before has left the line for good.
                let bound = sequence.job.queue_deadline.filter(|_| !sequence.resumed);
                match bound {
                    Some((deadline, bound)) if now >= deadline => {
                        sequence.job.fail(waited_too_long(bound, retry_after));
                        false
                    }
                    Some((deadline, _)) => {
                        next = Some(next.map_or(deadline, |next| next.min(deadline)));
                        true
                    }
                    None => true,
                }
            };
            if !stays && let Some(bytes) = parked {
                unparked += bytes as u64;
                counters.parked.fetch_sub(1, Relaxed);
            }
            stays
        });
        self.parked_bytes = self.parked_bytes.saturating_sub(unparked);
        self.next_deadline = next;
    }

    /// Describes the heads of the line to the planner.
    pub(super) fn view_waiting(&mut self) {
        let Self {
            waiting,
            waiting_view: view,
            pages,
            ..
        } = self;
        view.clear();
        let idle = pages.idle();
        waiting.show(
            |sequence| sequence.is_in_line(),
            |index, sequence| view.push(sequence.as_waiting(index, idle)),
        );
    }

    /// Tells everybody in line where they stand, now and then.
    pub(super) fn tell_places(&mut self) {
        let now_us = clock::micros();
        if self.waiting.is_empty() || now_us < self.tell_at_us {
            return;
        }
        let idle = self.pages.idle();
        let in_line = || self.waiting.iter().filter(|sequence| sequence.is_in_line());
        self.waiting_view.clear();
        self.waiting_view.extend(
            (0..)
                .zip(in_line())
                .map(|(at, sequence)| sequence.as_waiting(at, idle)),
        );
        let state = State {
            now_us,
            limits: &self.limits,
            rates: self.rates,
            running: &self.running_view,
            waiting: &self.waiting_view,
            idle_cells: 0,
            shared_cells: 0,
            spill_after_us: None,
            parked_room: false,
        };
        let mut order = std::mem::take(&mut self.line_order);
        self.planner.order(&state, &mut order);
        let sequences: Vec<_> = in_line().collect();
        let forecast = self.setup.counters.forecast();
        for (ahead, &at) in (0..).zip(&order) {
            if let Some(sequence) = sequences.get(at as usize) {
                sequence.job.ring.set_queued(Some(Queued {
                    position: count(ahead).saturating_add(1),
                    estimate: forecast.wait(ahead as u64),
                }));
            }
        }
        self.line_order = order;
        // A long line is told less often: at most a hundredth of the time goes into it.
        let took_us = clock::micros().saturating_sub(now_us);
        self.tell_at_us = now_us + TELL_EVERY_US.max(100 * took_us);
    }

    /// Measures how fast the line drains. In this step `started` have begun, `last` of them by the plan
    /// that saw the line last.
    pub(super) fn look_at_line(&mut self, started: usize, last: usize) {
        let standing = count(self.waiting_view.len().saturating_sub(last));
        self.setup.counters.standing.store(standing, Relaxed);
        self.drain.look(clock::micros(), count(started), standing);
        if let Some(each_us) = self.drain.each_us() {
            self.setup.counters.each_us.store(each_us, Relaxed);
        }
    }

    /// Takes in that a prompt was computed so long after its sequence began.
    pub(super) fn took_lead(&self, us: u64) {
        let lead_us = &self.setup.counters.lead_us;
        let old = lead_us.load(Relaxed);
        let new = if old == 0 { us } else { old - old / 8 + us / 8 };
        lead_us.store(new, Relaxed);
    }

    /// How many would start if there were ids.
    pub(super) fn coming(&self) -> usize {
        let waiting = self.waiting.iter();
        waiting.filter(|sequence| sequence.is_in_line()).count()
    }

    /// Whether there is no sequence at all.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.slots.iter().all(|slot| matches!(slot, Slot::Free))
    }
}

impl Sequence {
    /// What the planner is told; `idle` pages of a pool hold only what is kept.
    fn as_waiting(&self, index: u32, idle: u32) -> Waiting {
        let shared = self.expected_shared * GRID;
        Waiting {
            index,
            tenant: TenantId(self.job.tenant),
            weight: self.job.weight,
            class: self.job.class,
            cells_now: self.needs().saturating_sub(shared),
            cells_full: (self.job.most)
                .next_multiple_of(GRID)
                .saturating_sub(shared),
            // What was kept then may have gone since.
            pins: self.expected_pins.min(idle) * GRID,
            prompt: self.target().saturating_sub(self.expected * GRID),
            arrived_us: self.arrived_us,
            deadline_us: self.job.first_token_due_us,
            resumed: self.resumed,
        }
    }

    /// Who was set aside for a slow reader comes back in line when the reader has caught up.
    fn is_in_line(&self) -> bool {
        !(self.resumed && self.job.ring.is_paused())
    }
}

fn waited_too_long(bound: Duration, retry_after: Duration) -> Failure {
    let bound = humantime::format_duration(bound);
    Failure::new(
        Kind::Deadline,
        format!("The request waited longer than {bound} for a free sequence."),
    )
    .with_code("queue_timeout")
    .with_retry_after(retry_after)
}
