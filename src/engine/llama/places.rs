//! Places among the accepted sequences: how many there are, who holds them, and who may come in when
//! they are all taken.
//!
//! While there are free places anybody may have them, all of them if nobody else comes. When there are
//! none, who has less in line by its weight than the tenant with the most may come in all the same, and
//! the engine thread sends the newest of the largest away in its place (`waiting.rs`).

use std::collections::HashMap;
use std::sync::atomic::{
    AtomicU16, AtomicU32,
    Ordering::{AcqRel, Relaxed},
};
use std::sync::{Arc, Mutex, PoisonError};

use super::job::Counters;
use super::plan::{Class, TenantId};

/// Who asks for places.
#[derive(Clone, Copy, Debug)]
pub(super) struct Payer {
    pub(super) tenant: TenantId,
    /// Its share of the engine relative to others'; at least 1.
    pub(super) weight: u16,
    pub(super) class: Class,
}

/// What a tenant has in line.
#[derive(Debug, Default)]
struct Standing {
    weight: AtomicU16,
    /// By class: taken and not begun.
    waiting: [AtomicU32; 3],
}

impl Standing {
    fn waiting(&self) -> u64 {
        let each = self.waiting.iter();
        each.map(|count| u64::from(count.load(Relaxed))).sum()
    }

    fn weight(&self) -> u64 {
        u64::from(self.weight.load(Relaxed).max(1))
    }
}

/// All places of a model.
pub(super) struct Places {
    counters: Arc<Counters>,
    /// Sequences that run at once.
    running: u32,
    /// Those that there are.
    limit: u32,
    /// With those that are taken by who comes in for others, until these have gone.
    most: u32,
    tenants: Mutex<Tenants>,
}

#[derive(Default)]
struct Tenants {
    /// Whoever holds a place, and some who did.
    standings: HashMap<TenantId, Arc<Standing>>,
    /// Those who hold none are forgotten when there are so many.
    look_at: usize,
}

/// Tenants below which nobody is looked for to be forgotten.
const FEW: usize = 64;

impl Tenants {
    fn of(&mut self, payer: Payer) -> Arc<Standing> {
        if self.standings.len() >= self.look_at.max(FEW) {
            self.standings
                .retain(|_, standing| Arc::strong_count(standing) > 1);
            self.look_at = 2 * self.standings.len();
        }
        let standing = self.standings.entry(payer.tenant).or_default();
        standing.weight.store(payer.weight, Relaxed);
        standing.clone()
    }
}

impl Places {
    /// `running` sequences at once, and `waiting` in line.
    pub(super) fn new(counters: Arc<Counters>, running: u32, waiting: u32) -> Self {
        let limit = running.saturating_add(waiting);
        Self {
            counters,
            running,
            limit,
            most: Self::most(running, waiting),
            tenants: Mutex::default(),
        }
    }

    /// Most places that can be taken at one time.
    pub(super) fn most(running: u32, waiting: u32) -> u32 {
        running.saturating_add(waiting).saturating_add(waiting / 2)
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    /// Takes `count` places, all or none.
    pub(super) fn take(&self, payer: Payer, count: u32) -> Option<Vec<Place>> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let standing = tenants.of(payer);
        if !self.count(count, self.limit) {
            let most = tenants.standings.values();
            let most = most.max_by_key(|other| (other.waiting() << 16) / other.weight())?;
            let (own, count_all) = (standing.waiting(), u64::from(count));
            let (theirs, weights) = (most.waiting(), (standing.weight(), most.weight()));
            // What is true of it then: otherwise two equals would chase each other out.
            let comes_in = theirs >= count_all
                && (own + count_all) * weights.1 <= (theirs - count_all) * weights.0;
            if !comes_in || !self.count(count, self.most) {
                return None;
            }
        }
        standing.waiting[payer.class as usize].fetch_add(count, Relaxed);
        let place = || Place {
            counters: self.counters.clone(),
            standing: standing.clone(),
            class: payer.class,
            has_begun: false,
        };
        Some((0..count).map(|_| place()).collect())
    }

    fn count(&self, count: u32, limit: u32) -> bool {
        let more = |taken: u32| taken.checked_add(count).filter(|&sum| sum <= limit);
        self.counters
            .accepted
            .try_update(AcqRel, Relaxed, more)
            .is_ok()
    }

    /// What of the line is likely to be served before the next of this tenant: all of higher classes;
    /// of its own class what its tenant has in line, and of each other tenant as much as its weight
    /// allows it in that time.
    pub(super) fn ahead(&self, payer: Payer) -> u64 {
        let tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let own_weight = u64::from(payer.weight.max(1));
        let at = payer.class as usize;
        let own = tenants.standings.get(&payer.tenant);
        let own = own.map_or(0, |own| u64::from(own.waiting[at].load(Relaxed)));
        let others = tenants.standings.iter().map(|(tenant, standing)| {
            let waiting = |class: &AtomicU32| u64::from(class.load(Relaxed));
            let higher: u64 = standing.waiting[at + 1..].iter().map(waiting).sum();
            let same = waiting(&standing.waiting[at]);
            if *tenant == payer.tenant {
                return higher + same;
            }
            let turns = ((own + 1) * standing.weight()).div_ceil(own_weight);
            higher + same.min(turns)
        });
        others.sum::<u64>().saturating_sub(self.about_to_begin())
    }

    /// Those that the engine has not looked at yet and has room for: they stand in nobody's way.
    fn about_to_begin(&self) -> u64 {
        if self.counters.standing.load(Relaxed) > 0 {
            return 0;
        }
        let running = self.counters.running.load(Relaxed);
        u64::from(self.running.saturating_sub(running))
    }
}

/// A place among the accepted sequences, given back when the sequence ends.
pub(super) struct Place {
    counters: Arc<Counters>,
    standing: Arc<Standing>,
    class: Class,
    has_begun: bool,
}

impl Place {
    /// Its sequence stands in line no more. It does not stand there again, for whoever else might come.
    pub(super) fn begin(&mut self) {
        if !std::mem::replace(&mut self.has_begun, true) {
            self.standing.waiting[self.class as usize].fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.begin();
        self.counters.accepted.fetch_sub(1, AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payer(tenant: u32, weight: u16) -> Payer {
        Payer {
            tenant: TenantId(tenant.into()),
            weight,
            class: Class::Normal,
        }
    }

    fn places(running: u32, waiting: u32) -> Places {
        Places::new(Arc::default(), running, waiting)
    }

    #[test]
    fn one_tenant_alone_has_all_places_and_no_more() {
        let places = places(2, 8);
        let held: Vec<_> = (0..10)
            .map(|_| places.take(payer(1, 1), 1).unwrap())
            .collect();
        assert!(places.take(payer(1, 1), 1).is_none());
        drop(held);
        assert!(places.take(payer(1, 1), 10).is_some());
    }

    #[test]
    fn a_full_line_has_room_for_who_has_less_until_all_have_the_same() {
        let places = places(2, 8);
        let mut flood = places.take(payer(1, 1), 10).unwrap();
        flood.iter_mut().take(2).for_each(Place::begin);
        let mut held = Vec::new();
        while let Some(place) = places.take(payer(2, 1), 1) {
            held.extend(place);
            // As the engine thread does.
            flood.pop();
        }
        assert_eq!((held.len(), flood.len()), (4, 6), "four in line each");
        assert!(places.take(payer(1, 1), 1).is_none(), "nor back again");
        assert!(places.take(payer(3, 1), 1).is_some(), "nobody is shut out");
    }

    #[test]
    fn a_heavier_tenant_may_hold_more_of_the_line() {
        let places = places(0, 8);
        let mut flood = places.take(payer(1, 1), 8).unwrap();
        let mut held = Vec::new();
        while let Some(place) = places.take(payer(2, 3), 1) {
            held.extend(place);
            flood.pop();
        }
        assert_eq!(held.len(), 6);
    }

    #[test]
    fn what_comes_in_for_others_is_bounded_too() {
        let places = places(0, 100);
        let _flood = places.take(payer(1, 1), 100).unwrap();
        let held: Vec<_> = (2..200)
            .map_while(|tenant| places.take(payer(tenant, 1), 1))
            .collect();
        assert_eq!(held.len(), 50, "nobody has gone yet");
        assert!(self::places(3, 0).take(payer(1, 1), 4).is_none());
    }

    #[test]
    fn who_is_ahead_respects_classes_and_turns() {
        let places = places(0, 1000);
        let of = |tenant, class| Payer {
            class,
            ..payer(tenant, 1)
        };
        let _flood = places.take(of(1, Class::Normal), 500).unwrap();
        let _urgent = places.take(of(2, Class::Interactive), 7).unwrap();
        let _idle = places.take(of(3, Class::Background), 50).unwrap();
        assert_eq!(places.ahead(of(1, Class::Normal)), 507);
        assert_eq!(
            places.ahead(of(4, Class::Normal)),
            8,
            "one turn of the flood"
        );
        assert_eq!(places.ahead(of(4, Class::Interactive)), 1);
        let heavy = Payer {
            weight: 4,
            ..of(5, Class::Background)
        };
        assert_eq!(places.ahead(heavy), 507 + 1);
    }

    #[test]
    #[ignore = "a measurement"]
    #[expect(clippy::print_stdout, reason = "that is what it is for")]
    fn cost() {
        let places = places(16, 1000);
        let held: Vec<_> = (0..1016).map(|n| places.take(payer(n, 1), 1)).collect();
        let began = std::time::Instant::now();
        for _ in 0..1000 {
            assert!(places.ahead(payer(3, 1)) > 0 && places.take(payer(3, 1), 1).is_none());
        }
        let each = began.elapsed() / 1000;
        println!("a refusal with {} tenants in line: {each:?}", held.len());
    }

    #[test]
    fn tenants_that_hold_nothing_are_forgotten() {
        let places = places(1, 10);
        let held = places.take(payer(0, 1), 1);
        for tenant in 1..10_000 {
            assert!(places.take(payer(tenant, 1), 1).is_some());
        }
        let tenants = places.tenants.lock().unwrap();
        assert!(tenants.standings.len() <= FEW);
        assert!(tenants.standings.contains_key(&TenantId(0)));
        drop(held);
    }
}
