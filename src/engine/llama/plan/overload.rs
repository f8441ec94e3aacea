//! Admission by predicted wait in the simulated world: the engine's own places and forecast, with more
//! requests than it can serve.
#![expect(
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures, from small numbers"
)]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::super::job::Counters;
use super::super::places::{Payer, Place as Admitted, Places};
use super::simulator::{Place, Sequence, World};
use super::{Class, Limits, TenantId};
use crate::engine::drain::{Drain, Forecast};
use crate::generation::Deadlines;

const SECOND: u64 = 1_000_000;

const LIMITS: Limits = Limits {
    ids: 8,
    cells: 1 << 20,
    decode_rows: 63,
    batch: 512,
    max_step_us: 50_000,
    one_prompt_per_call: false,
    cut_last: false,
    pooled: false,
    overcommit_percent: 100,
};

/// Longest wait that a request bears, and when its first token is due.
const QUEUE_US: u64 = 3 * SECOND;
const TARGET_US: u64 = 5 * SECOND;

/// What became of the requests that came in one second.
#[derive(Clone, Copy, Debug, Default)]
struct Seconds {
    came: u64,
    refused: u64,
    expired: u64,
    /// First token within the target, and all of it computed.
    good: u64,
    late: u64,
    worst_us: u64,
}

struct Gate {
    world: World,
    counters: Arc<Counters>,
    places: Places,
    drain: Drain,
    lead_us: u64,
    held: HashMap<usize, Admitted>,
    led: Vec<bool>,
    seconds: Vec<Seconds>,
}

impl Gate {
    fn new() -> Self {
        let counters: Arc<Counters> = Arc::default();
        Self {
            world: World::new(LIMITS, Vec::new()),
            places: Places::new(counters.clone(), LIMITS.ids, 1000),
            counters,
            drain: Drain::default(),
            lead_us: 0,
            held: HashMap::new(),
            led: Vec::new(),
            seconds: Vec::new(),
        }
    }

    fn forecast(&self) -> Forecast {
        Forecast {
            each: self.drain.each_us().map(Duration::from_micros),
            lead: Duration::from_micros(self.lead_us),
        }
    }

    fn at(&mut self, us: u64) -> &mut Seconds {
        let second = usize::try_from(us / SECOND).unwrap();
        if self.seconds.len() <= second {
            self.seconds.resize(second + 1, Seconds::default());
        }
        &mut self.seconds[second]
    }

    fn come(&mut self, tenant: u32, prompt: u32, budget: u32, at_us: u64) {
        self.at(at_us).came += 1;
        let payer = Payer {
            tenant: TenantId(tenant.into()),
            weight: 1,
            class: Class::Normal,
        };
        let deadlines = Deadlines {
            queue: Some(Duration::from_micros(QUEUE_US)),
            first_token: Some(Duration::from_micros(TARGET_US)),
            ..Deadlines::default()
        };
        let place = match self.forecast().check(self.places.ahead(payer), &deadlines) {
            Ok(()) => self.places.take(payer, 1),
            Err(refusal) => {
                let after = refusal.retry_after.unwrap();
                assert!(after > Duration::ZERO && after < Duration::from_mins(1));
                None
            }
        };
        let Some(place) = place else {
            self.at(at_us).refused += 1;
            return;
        };
        self.held.extend(
            place
                .into_iter()
                .map(|place| (self.world.sequences.len(), place)),
        );
        let sequence = Sequence::new(tenant, Class::Normal, prompt, budget, at_us);
        self.world.sequences.push(sequence);
        self.led.push(false);
    }

    /// One step of the engine, with what its thread does around it.
    fn step(&mut self) {
        let now_us = self.world.now_us;
        let waiting = |place| matches!(place, Place::Line | Place::Future(_));
        let keys: Vec<_> = self.held.keys().copied().collect();
        for key in keys {
            let sequence = &self.world.sequences[key];
            let (came_us, place) = (sequence.arrived_us, sequence.place);
            if waiting(place) && sequence.started_us.is_none() && now_us >= came_us + QUEUE_US {
                self.world.end(key);
                self.held.remove(&key);
                self.at(came_us).expired += 1;
            }
        }
        let stood = self.standing();
        if !self.world.step() {
            self.world.now_us += 1000;
        }
        let standing = self.standing();
        let started = u32::try_from(stood - standing).unwrap();
        let running = self.held.len() - standing;
        let [standing, running] = [standing, running].map(|count| u32::try_from(count).unwrap());
        self.counters.standing.store(standing, Relaxed);
        self.counters.running.store(running, Relaxed);
        self.drain.look(now_us, started, standing);
        let keys: Vec<_> = self.held.keys().copied().collect();
        for key in keys {
            let sequence = &self.world.sequences[key];
            let came_us = sequence.arrived_us;
            let (began, first, ended) = (sequence.started_us, sequence.first_us, sequence.ended_us);
            if began.is_some()
                && let Some(place) = self.held.get_mut(&key)
            {
                place.begin();
            }
            if let (Some(began), Some(first), false) = (began, first, self.led[key]) {
                self.led[key] = true;
                let lead = first - began;
                self.lead_us = match self.lead_us {
                    0 => lead,
                    old => old - old / 8 + lead / 8,
                };
            }
            if ended.is_some() {
                self.held.remove(&key);
                let wait_us = first.unwrap() - came_us;
                let second = self.at(came_us);
                second.worst_us = second.worst_us.max(wait_us);
                if wait_us <= TARGET_US {
                    second.good += 1;
                } else {
                    second.late += 1;
                }
            }
        }
    }

    fn standing(&self) -> usize {
        let held = self.held.keys();
        held.filter(|&&key| {
            matches!(
                self.world.sequences[key].place,
                Place::Line | Place::Future(_)
            )
        })
        .count()
    }

    fn sum(&self, seconds: std::ops::Range<usize>) -> Seconds {
        let mut sum = Seconds::default();
        for one in &self.seconds[seconds] {
            sum.came += one.came;
            sum.refused += one.refused;
            sum.expired += one.expired;
            sum.good += one.good;
            sum.late += one.late;
            sum.worst_us = sum.worst_us.max(one.worst_us);
        }
        sum
    }
}

/// Requests come by chance, so many a second on average as `rate` says for each second.
fn run(seconds: u64, rate: impl Fn(u64) -> f64) -> Gate {
    let mut gate = Gate::new();
    let mut dice = 88_172_645_463_325_252u64;
    let mut roll = |end: u64| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        (dice >> 16) % end
    };
    let mut next_us = 0.0;
    while gate.world.now_us < seconds * SECOND {
        let now_us = gate.world.now_us;
        while next_us <= now_us as f64 {
            let at_us = next_us as u64;
            let (tenant, prompt, budget) = (roll(4), 200 + roll(400), 50 + roll(250));
            gate.come(tenant as u32, prompt as u32, budget as u32, at_us);
            let uniform = (roll(1 << 40) as f64 + 1.0) / (1u64 << 40) as f64;
            next_us += -uniform.ln() * 1e6 / rate(at_us / SECOND);
        }
        gate.step();
    }
    gate
}

/// Requests a second that the engine of this world can just serve.
const CAPACITY: f64 = 12.0;

#[test]
fn at_twice_the_capacity_and_more_goodput_stays_at_its_peak_and_waits_within_the_target() {
    let at = |rate: f64| run(100, |_| rate).sum(10..90);
    let peak = at(CAPACITY);
    assert!(
        peak.refused + peak.expired > 0,
        "there is no more to be had"
    );
    for times in [2.0, 4.0] {
        let over = at(CAPACITY * times);
        println!("peak {peak:?}, {times} times as much {over:?}");
        assert!(over.good * 10 >= peak.good * 9, "{over:?} of {peak:?}");
        assert_eq!(over.late, 0, "what was computed was wanted");
        assert!(over.worst_us <= TARGET_US);
        // Who cannot be served is told at once, not after having waited.
        assert!(over.expired * 10 <= over.good, "{over:?}");
    }
}

#[test]
fn ten_seconds_after_an_overload_nobody_waits_for_it_any_more() {
    let (from, to) = (30, 60);
    let gate = run(90, |second| {
        let over = (from..to).contains(&second);
        CAPACITY * if over { 2.0 } else { 0.5 }
    });
    let before = gate.sum(10..30);
    let after = gate.sum(70..89);
    println!("before {before:?}, after {after:?}");
    assert!(gate.sum(35..60).refused > 100, "it was too much");
    assert_eq!(after.refused + after.expired + after.late, 0);
    assert!(after.worst_us <= 2 * before.worst_us.max(100_000));
}
