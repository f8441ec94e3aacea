//! The waiting line: a lane for each tenant and class, so that a long lane hides nobody.
//!
//! A lane is in the order in which the planner serves one tenant's sequences of one class: what is due
//! first, then what came first. So the heads of all lanes are all that a plan needs to see.

use std::collections::VecDeque;

use super::plan::{Class, TenantId};

/// Waiting sequences that a plan looks at, shared out among the lanes. Each lane shows its head, however
/// many there are: no more than there are places in line.
const LOOK_AHEAD: usize = 256;

/// Where something stands in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) tenant: TenantId,
    pub(super) class: Class,
    /// By when it should start ([`super::plan::due_us`]).
    pub(super) due_us: u64,
    pub(super) arrived_us: u64,
}

struct Lane<T> {
    tenant: TenantId,
    class: Class,
    /// With what orders them.
    items: VecDeque<((u64, u64), T)>,
}

/// What waits, by tenant and class.
pub(super) struct Line<T> {
    /// Sorted by tenant and class.
    lanes: Vec<Lane<T>>,
    /// What was shown last: lane and place in it.
    shown: Vec<(u32, u32)>,
    len: usize,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self {
            lanes: Vec::new(),
            shown: Vec::new(),
            len: 0,
        }
    }
}

impl<T> Line<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.len
    }

    /// Puts something in line. What was shown before is not to be taken any more.
    pub(super) fn push(&mut self, spot: Spot, item: T) {
        let lane = self
            .lanes
            .binary_search_by_key(&(spot.tenant, spot.class), |lane| (lane.tenant, lane.class))
            .unwrap_or_else(|at| {
                let lane = Lane {
                    tenant: spot.tenant,
                    class: spot.class,
                    items: VecDeque::new(),
                };
                self.lanes.insert(at, lane);
                at
            });
        let items = &mut self.lanes[lane].items;
        let key = (spot.due_us, spot.arrived_us);
        // Mostly at the end.
        let at = items.partition_point(|(other, _)| *other <= key);
        items.insert(at, (key, item));
        self.len += 1;
    }

    /// Shows the head of every lane, and what is behind it as far as there is room, lane by lane; each
    /// with the number by which [`Line::take`] finds it. What is not `ready` is passed over.
    pub(super) fn show(&mut self, ready: impl Fn(&T) -> bool, mut show: impl FnMut(u32, &T)) {
        self.lanes.retain(|lane| !lane.items.is_empty());
        self.shown.clear();
        let each = (LOOK_AHEAD / self.lanes.len().max(1)).max(1);
        for (at, lane) in (0..).zip(&self.lanes) {
            let items = (0..).zip(&lane.items).filter(|(_, (_, item))| ready(item));
            for (place, (_, item)) in items.take(each) {
                show(u32::try_from(self.shown.len()).unwrap_or(u32::MAX), item);
                self.shown.push((at, place));
            }
        }
    }

    /// Takes something out of line that was shown, the last of them first: those before it keep their
    /// numbers.
    pub(super) fn take(&mut self, number: u32) -> Option<T> {
        let &(lane, place) = self.shown.get(number as usize)?;
        let items = &mut self.lanes.get_mut(lane as usize)?.items;
        let (_, item) = items.remove(place as usize)?;
        self.len -= 1;
        Some(item)
    }

    /// All of them, each lane in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        let lanes = self.lanes.iter();
        lanes.flat_map(|lane| lane.items.iter().map(|(_, item)| item))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let lanes = self.lanes.iter_mut();
        lanes.flat_map(|lane| lane.items.iter_mut().map(|(_, item)| item))
    }

    /// Keeps what `stays`. What was shown before is not to be taken any more.
    pub(super) fn retain(&mut self, mut stays: impl FnMut(&mut T) -> bool) {
        self.len = 0;
        for lane in &mut self.lanes {
            lane.items.retain_mut(|(_, item)| stays(item));
            self.len += lane.items.len();
        }
    }

    /// Takes the newest of the lowest class from the tenant that has the most in line by its weight, of
    /// those that `may` go. What was shown before is not to be taken any more.
    pub(super) fn take_newest_of_largest(
        &mut self,
        weight: impl Fn(&T) -> u16,
        may: impl Fn(&T) -> bool,
    ) -> Option<T> {
        let mut largest: Option<(u64, TenantId)> = None;
        for lanes in self.lanes.chunk_by(|a, b| a.tenant == b.tenant) {
            let items = lanes.iter().flat_map(|lane| &lane.items);
            let mut goers = items.filter(|(_, item)| may(item)).map(|(_, item)| item);
            let Some(first) = goers.next() else { continue };
            let weight = u64::from(weight(first).max(1));
            let share = ((1 + goers.count() as u64) << 16) / weight;
            largest = largest.max(Some((share, lanes[0].tenant)));
        }
        let (_, tenant) = largest?;
        let lanes = self.lanes.iter_mut().filter(|lane| lane.tenant == tenant);
        for lane in lanes {
            let goers = (0..).zip(&lane.items).filter(|(_, (_, item))| may(item));
            if let Some((at, _)) = goers.max_by_key(|(_, ((_, arrived), _))| *arrived) {
                self.len -= 1;
                return lane.items.remove(at).map(|(_, item)| item);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spot(tenant: u32, class: Class, due_us: u64, arrived_us: u64) -> Spot {
        Spot {
            tenant: TenantId(tenant.into()),
            class,
            due_us,
            arrived_us,
        }
    }

    fn shown<T: Copy>(line: &mut Line<T>) -> Vec<T> {
        let mut shown = Vec::new();
        line.show(|_| true, |_, &item| shown.push(item));
        shown
    }

    #[test]
    fn a_flood_hides_no_other_tenant_and_no_other_class() {
        let mut line = Line::default();
        for n in 0..10_000 {
            line.push(spot(1, Class::Normal, n, n), (1, n));
        }
        line.push(spot(1, Class::Interactive, 20_000, 20_000), (1, 20_000));
        for n in 0..100 {
            line.push(spot(2, Class::Normal, 30_000 + n, 30_000), (2, n));
        }
        let shown = shown(&mut line);
        assert!(shown.len() <= LOOK_AHEAD);
        assert!(shown.contains(&(1, 0)) && shown.contains(&(1, 20_000)) && shown.contains(&(2, 0)));
        assert_eq!(line.len(), 10_101);
    }

    #[test]
    fn every_tenant_shows_its_head_however_many_there_are() {
        let mut line = Line::default();
        for n in 0..1000 {
            line.push(spot(n, Class::Normal, 5, 5), (n, 1));
            line.push(spot(n, Class::Normal, 4, 6), (n, 0));
        }
        let heads: Vec<_> = (0..1000).map(|n| (n, 0)).collect();
        assert_eq!(shown(&mut line), heads);
    }

    #[test]
    fn the_newest_of_the_largest_goes_by_weight() {
        let mut line = Line::default();
        for n in 0..4 {
            line.push(spot(1, Class::Normal, n, n), (1, n, 1));
        }
        for n in 0..6 {
            line.push(spot(2, Class::Normal, 10 - n, n), (2, n, 3));
        }
        line.push(spot(1, Class::Background, 9, 2), (1, 9, 1));
        let mut take = || line.take_newest_of_largest(|item| item.2, |item| item.1 != 3);
        // Four of the first's may go, all six but one of the second's at a third.
        assert_eq!(take(), Some((1, 9, 1)), "the lowest class first");
        assert_eq!(take(), Some((1, 2, 1)));
        assert_eq!(take(), Some((1, 1, 1)));
        assert_eq!(take(), Some((2, 5, 3)), "newest, though due first");
        assert_eq!(line.len(), 7);
    }

    proptest! {
        #[test]
        fn what_is_shown_is_found_by_its_number(
            items in prop::collection::vec((0u32..4, 0u64..50), 0..60),
            wanted in prop::collection::vec(any::<bool>(), 60),
        ) {
            let mut line = Line::default();
            for (n, &(tenant, due)) in items.iter().enumerate() {
                line.push(spot(tenant, Class::Normal, due, n as u64), (tenant, due, n));
            }
            let mut numbered = Vec::new();
            line.show(|item| wanted[item.2], |number, &item| numbered.push((number, item)));
            prop_assert!(numbered.windows(2).all(|pair| pair[0].1 < pair[1].1), "in order");
            for (number, item) in numbered.into_iter().rev() {
                prop_assert_eq!(line.take(number), Some(item));
            }
            prop_assert_eq!(line.len(), line.iter().count());
            prop_assert!(line.iter().all(|item| !wanted[item.2]));
        }
    }
}
