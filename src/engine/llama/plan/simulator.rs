//! A world for the planner: sequences arrive, prefill, decode, pause, are cancelled, finish, get parked
//! and come back, and a shadow map of the KV cells says who holds how many.

use std::collections::BTreeMap;

use super::{
    Class, GRID, Limits, Plan, Planner, Rates, Running, Stage, State, TenantId, Waiting, calls,
};

/// Who holds a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    Free,
    Cache,
    /// A sequence's own.
    Private(usize),
    /// A cached prefix that a sequence uses.
    Shared(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Arrives at this time.
    Future(u64),
    Line,
    Id(u32),
    /// Parked, and its reader is behind.
    Away,
    Ended,
}

#[derive(Clone, Debug)]
pub(super) struct Sequence {
    pub(super) tenant: TenantId,
    pub(super) weight: u16,
    pub(super) class: Class,
    pub(super) adapter: u16,
    pub(super) prompt: u32,
    pub(super) budget: u32,
    /// Part of the prompt that the cache may have.
    pub(super) cacheable: u32,
    pub(super) deadline_us: Option<u64>,
    pub(super) rows: u16,
    pub(super) place: Place,
    pub(super) generated: u32,
    /// Tokens of `prompt + generated` that have K/V, here or in host memory.
    pub(super) done: u32,
    /// Of these, in shared cells.
    pub(super) shared: u32,
    pub(super) cells: u32,
    pub(super) arrived_us: u64,
    /// In line since.
    pub(super) since_us: u64,
    pub(super) admitted_us: u64,
    pub(super) served_us: u64,
    pub(super) paused_since_us: Option<u64>,
    pub(super) follows: Option<usize>,
    pub(super) resumed: bool,
    /// Its state is in host memory.
    pub(super) parked: bool,
    /// Prefill calls of others since its last one.
    pub(super) missed: u32,
    pub(super) started_us: Option<u64>,
    pub(super) first_us: Option<u64>,
    pub(super) ended_us: Option<u64>,
    pub(super) ends: u32,
}

impl Sequence {
    pub(super) fn new(tenant: u32, class: Class, prompt: u32, budget: u32, at_us: u64) -> Self {
        Self {
            tenant: TenantId(tenant.into()),
            weight: 1,
            class,
            adapter: 0,
            prompt,
            budget,
            cacheable: 0,
            deadline_us: None,
            rows: 1,
            place: Place::Future(at_us),
            generated: 0,
            done: 0,
            shared: 0,
            cells: 0,
            arrived_us: at_us,
            since_us: at_us,
            admitted_us: 0,
            served_us: 0,
            paused_since_us: None,
            follows: None,
            resumed: false,
            parked: false,
            missed: 0,
            started_us: None,
            first_us: None,
            ended_us: None,
            ends: 0,
        }
    }

    /// What has to have K/V before the next token comes from a decode row: all but the newest token.
    fn total(&self) -> u32 {
        self.prompt + self.generated.saturating_sub(1)
    }

    pub(super) fn stage(&self) -> Stage {
        if self.done < self.total() {
            let (done, total) = (self.done, self.total());
            Stage::Prefill { done, total }
        } else {
            Stage::Decode
        }
    }

    fn full(&self) -> u32 {
        self.prompt + self.budget - self.shared
    }
}

/// The engine as the planner sees it.
pub(super) struct World {
    pub(super) limits: Limits,
    pub(super) sequences: Vec<Sequence>,
    pub(super) planner: Planner,
    pub(super) now_us: u64,
    pub(super) decode_row_us: u64,
    pub(super) prefill_row_us: u64,
    /// States that host memory has room for.
    pub(super) host: usize,
    pub(super) spill_after_us: Option<u64>,
    pub(super) served_us: BTreeMap<TenantId, u64>,
    /// Rows computed, of prompts and of answers.
    pub(super) served_tokens: BTreeMap<TenantId, u64>,
    /// Longest time of a step beside streams, measured against the bound.
    pub(super) parks: u32,
    rates: Rates,
    pub(super) map: BTreeMap<Owner, u32>,
    running: Vec<(usize, Running)>,
    plan: Plan,
}

impl World {
    pub(super) fn new(limits: Limits, sequences: Vec<Sequence>) -> Self {
        let cells = if limits.pooled { limits.cells } else { 1 << 20 };
        Self {
            limits,
            sequences,
            planner: Planner::default(),
            now_us: 0,
            decode_row_us: 300,
            prefill_row_us: 50,
            host: usize::MAX,
            spill_after_us: None,
            served_us: BTreeMap::new(),
            served_tokens: BTreeMap::new(),
            parks: 0,
            rates: Rates::default(),
            map: BTreeMap::from([(Owner::Free, u32::try_from(cells).unwrap())]),
            running: Vec::new(),
            plan: Plan::default(),
        }
    }

    pub(super) fn ended(&self) -> bool {
        self.sequences.iter().all(|s| s.place == Place::Ended)
    }

    pub(super) fn held(&self, tenant: u32) -> usize {
        let tenant = TenantId(tenant.into());
        let running = self.running.iter();
        running.filter(|(_, r)| r.tenant == tenant).count()
    }

    pub(super) fn count(&self, owner: Owner) -> u32 {
        self.map.get(&owner).copied().unwrap_or(0)
    }

    /// Cells of cached prefixes that somebody uses.
    fn shared(&self) -> u64 {
        let shared = self
            .map
            .iter()
            .filter(|(owner, _)| matches!(owner, Owner::Shared(_)));
        shared.map(|(_, &count)| u64::from(count)).sum()
    }

    /// Hands `count` cells over; panics when there are fewer.
    fn hand_over(&mut self, from: Owner, to: Owner, count: u32) {
        let left = self.count(from).checked_sub(count);
        let left = left.unwrap_or_else(|| panic!("{from:?} has too few cells for {to:?}"));
        self.map.insert(from, left);
        *self.map.entry(to).or_default() += count;
    }

    fn hand_over_all(&mut self, from: Owner, to: Owner) {
        self.hand_over(from, to, self.count(from));
        self.map.remove(&from);
    }

    fn parked(&self) -> usize {
        self.sequences.iter().filter(|s| s.parked).count()
    }

    /// One step: state, plan, checks, calls. False when there was nothing to do.
    pub(super) fn step(&mut self) -> bool {
        for sequence in &mut self.sequences {
            if matches!(sequence.place, Place::Future(at) if at <= self.now_us) {
                sequence.place = Place::Line;
            }
        }
        let idle = self.count(Owner::Cache);
        self.running = self.describe_running();
        let running: Vec<_> = self.running.iter().map(|(_, r)| *r).collect();
        let waiting = self.describe_waiting(idle);
        let limits = self.limits;
        let state = State {
            now_us: self.now_us,
            limits: &limits,
            rates: self.rates,
            running: &running,
            waiting: &waiting,
            idle_cells: u64::from(idle),
            shared_cells: self.shared(),
            spill_after_us: self.spill_after_us,
            parked_room: self.parked() < self.host,
        };
        let mut plan = std::mem::take(&mut self.plan);
        self.planner.plan(&state, &mut plan);
        check(&state, &plan);
        self.apply(&state, &plan);
        self.compute(&plan);
        let busy = !plan.is_idle();
        self.plan = plan;
        busy
    }

    fn describe_running(&self) -> Vec<(usize, Running)> {
        let mut running = Vec::new();
        for (key, s) in self.sequences.iter().enumerate() {
            let Place::Id(id) = s.place else { continue };
            let used = self.count(Owner::Private(key));
            assert_eq!(used, s.done - s.shared, "the map agrees with the sequence");
            let leads = |key: usize| {
                matches!(self.sequences[key].place, Place::Id(_))
                    && self.sequences[key].stage() != Stage::Decode
            };
            let described = Running {
                id,
                tenant: s.tenant,
                weight: s.weight,
                class: s.class,
                adapter: s.adapter,
                stage: s.stage(),
                ready: s.paused_since_us.is_none(),
                follows: s.follows.is_some_and(leads),
                used,
                cells: s.cells,
                cells_full: s.full(),
                deadline_us: s.deadline_us,
                admitted_us: s.admitted_us,
                served_us: s.served_us,
                paused_since_us: s.paused_since_us,
                rows: s.rows,
            };
            running.push((key, described));
        }
        running.sort_by_key(|(_, r)| r.id);
        running
    }

    fn describe_waiting(&self, idle: u32) -> Vec<Waiting> {
        let line = self.sequences.iter().enumerate();
        let mut line: Vec<_> = line.filter(|(_, s)| s.place == Place::Line).collect();
        line.sort_by_key(|(_, s)| s.since_us);
        let describe = |(key, s): (usize, &Sequence)| {
            let pins = if s.parked {
                0
            } else {
                s.cacheable.min(idle) / GRID * GRID
            };
            let cells_full = s.prompt + s.budget - pins;
            let held = s.total() - pins;
            Waiting {
                index: u32::try_from(key).unwrap(),
                tenant: s.tenant,
                weight: s.weight,
                class: s.class,
                cells_now: (held.next_multiple_of(GRID) + GRID).min(cells_full),
                cells_full,
                pins,
                prompt: if s.parked { s.total() - s.done } else { held },
                arrived_us: s.since_us,
                deadline_us: s.deadline_us,
                resumed: s.resumed,
            }
        };
        line.into_iter().map(describe).collect()
    }

    fn apply(&mut self, state: &State<'_>, plan: &Plan) {
        if let Some(park) = plan.park {
            let key = self.key(park.id);
            self.parks += 1;
            self.hand_over_all(Owner::Private(key), Owner::Free);
            self.hand_over_all(Owner::Shared(key), Owner::Cache);
            let s = &mut self.sequences[key];
            let stalled = s.paused_since_us.is_some();
            s.place = if stalled { Place::Away } else { Place::Line };
            s.since_us = self.now_us;
            s.resumed = true;
            s.parked = park.keep;
            s.shared = 0;
            s.cells = 0;
            if !park.keep {
                s.done = 0;
            }
        }
        for start in &plan.start {
            let key = start.index as usize;
            let taken = self
                .sequences
                .iter()
                .any(|s| s.place == Place::Id(start.id));
            assert!(!taken && start.id < self.limits.ids);
            let waiting = state.waiting.iter().find(|w| w.index == start.index);
            let waiting = waiting.unwrap();
            self.hand_over(Owner::Cache, Owner::Shared(key), waiting.pins);
            let s = &mut self.sequences[key];
            assert_eq!(s.place, Place::Line);
            s.place = Place::Id(start.id);
            s.cells = waiting.cells_now;
            s.admitted_us = self.now_us;
            s.served_us = self.now_us;
            s.started_us = s.started_us.or(Some(self.now_us));
            s.missed = 0;
            if !s.parked {
                s.shared = waiting.pins;
                s.done = waiting.pins;
            }
        }
        if self.limits.pooled {
            let count = u32::try_from(plan.evict_cells).unwrap();
            self.hand_over(Owner::Cache, Owner::Free, count);
        }
        for grow in &plan.grow {
            let key = self.key(grow.id);
            let s = &mut self.sequences[key];
            assert!(grow.cells > s.cells && grow.cells <= s.full());
            s.cells = grow.cells;
        }
        for start in &plan.start {
            let key = start.index as usize;
            if std::mem::take(&mut self.sequences[key].parked) {
                let done = self.sequences[key].done;
                self.hand_over(Owner::Free, Owner::Private(key), done);
            }
        }
        if self.limits.pooled {
            let promised: u64 = self.sequences.iter().map(|s| u64::from(s.cells)).sum();
            let cached = u64::from(self.count(Owner::Cache)) + self.shared();
            assert!(promised + cached <= self.limits.cells, "promised too much");
        }
    }

    fn compute(&mut self, plan: &Plan) {
        if !plan.decode.is_empty() {
            let rows: u64 = plan.decode.iter().map(|r| u64::from(r.rows)).sum();
            let us = 500 + rows * self.decode_row_us;
            self.now_us += us;
            self.planner.decoded(plan, us);
            self.rates.decoded(us);
            for row in &plan.decode {
                let key = self.key(row.id);
                *self.served_us.entry(row.tenant).or_default() += us / rows * u64::from(row.rows);
                *self.served_tokens.entry(row.tenant).or_default() += 1;
                // Rows of drafts are rolled back.
                self.compute_rows(key, u32::from(row.rows));
                self.sequences[key].done -= u32::from(row.rows) - 1;
                self.give_rows_back(key, u32::from(row.rows) - 1);
                self.token(key);
            }
        }
        if !plan.prefill.is_empty() {
            let rows: u32 = plan.prefill.iter().map(|r| r.to - r.from).sum();
            let us = u64::from(rows) * self.prefill_row_us;
            self.now_us += us;
            self.planner.prefilled(plan, us);
            self.rates.prefilled(rows, us);
            for (key, described) in std::mem::take(&mut self.running) {
                if self.sequences[key].place != Place::Id(described.id) {
                    continue;
                }
                if let Some(run) = plan.prefill.iter().find(|r| r.id == described.id) {
                    let rows = run.to - run.from;
                    *self.served_us.entry(run.tenant).or_default() +=
                        u64::from(rows) * self.prefill_row_us;
                    *self.served_tokens.entry(run.tenant).or_default() += u64::from(rows);
                    self.compute_rows(key, rows);
                    let s = &mut self.sequences[key];
                    s.missed = 0;
                    if s.done == s.total() && s.generated == 0 {
                        self.token(key);
                    }
                } else if matches!(described.stage, Stage::Prefill { .. }) && !described.follows {
                    let s = &mut self.sequences[key];
                    s.missed += 1;
                    // Whoever is served longest ago goes first at every fourth call.
                    assert!(s.missed <= calls::TURN * (self.limits.ids + 1), "starved");
                }
            }
        }
    }

    fn compute_rows(&mut self, key: usize, rows: u32) {
        self.hand_over(Owner::Free, Owner::Private(key), rows);
        let now_us = self.now_us;
        let s = &mut self.sequences[key];
        s.done += rows;
        s.served_us = now_us;
        assert!(
            s.done - s.shared <= s.cells || !self.limits.pooled,
            "more than promised"
        );
        assert!(s.done - s.shared <= s.full());
    }

    fn give_rows_back(&mut self, key: usize, rows: u32) {
        self.hand_over(Owner::Private(key), Owner::Free, rows);
    }

    fn token(&mut self, key: usize) {
        let now_us = self.now_us;
        let s = &mut self.sequences[key];
        s.generated += 1;
        s.first_us = s.first_us.or(Some(now_us));
        if s.generated == s.budget {
            self.end(key);
        }
    }

    /// Ends a sequence wherever it is. What it computed stays in the cache, if that is pooled.
    pub(super) fn end(&mut self, key: usize) {
        let s = &mut self.sequences[key];
        s.ends += 1;
        s.place = Place::Ended;
        s.ended_us = Some(self.now_us);
        s.parked = false;
        s.cells = 0;
        let keep = self.limits.pooled && key.is_multiple_of(2);
        let to = if keep { Owner::Cache } else { Owner::Free };
        self.hand_over_all(Owner::Private(key), to);
        self.hand_over_all(Owner::Shared(key), Owner::Cache);
    }

    fn key(&self, id: u32) -> usize {
        let at = |s: &Sequence| s.place == Place::Id(id);
        self.sequences.iter().position(at).unwrap()
    }
}

/// What holds of every plan, whatever the state.
fn check(state: &State<'_>, plan: &Plan) {
    let limits = state.limits;
    let of = |id: u32| state.running.iter().find(|r| r.id == id).unwrap();
    assert!(plan.decode.windows(2).all(|p| p[0].id < p[1].id));
    assert!(plan.prefill.windows(2).all(|p| p[0].id < p[1].id));
    let rows: u32 = plan.decode.iter().map(|r| u32::from(r.rows)).sum();
    assert!(rows <= limits.decode_rows);
    let chunk: u32 = plan.prefill.iter().map(|r| r.to - r.from).sum();
    assert!(chunk <= limits.batch);
    let parked = plan.park.map(|park| park.id);
    for row in &plan.decode {
        let sequence = of(row.id);
        assert!(sequence.ready && sequence.stage == Stage::Decode);
        assert!(row.rows >= 1 && row.rows <= sequence.rows && Some(row.id) != parked);
        assert_eq!(sequence.adapter, plan.decode_adapter);
    }
    for run in &plan.prefill {
        let sequence = of(run.id);
        assert!(!sequence.follows && Some(run.id) != parked);
        assert_eq!(sequence.adapter, plan.prefill_adapter);
        let Stage::Prefill { done, total } = sequence.stage else {
            panic!("a run of a prompt that is complete");
        };
        assert_eq!(run.from, done);
        assert!(run.to > run.from && run.to <= total);
        assert!(run.to == total || run.to % GRID == 0);
        if limits.cut_last && run.to == total {
            assert!(run.from >= (total - 1) / GRID * GRID);
        }
    }
    assert!(!limits.one_prompt_per_call || plan.prefill.len() <= 1);
    let rates = state.rates;
    if !plan.decode.is_empty() && rates.prefill_row_ns > 0 && rates.decode_us > 0 {
        let prefill_us = u64::from(chunk) * rates.prefill_row_ns / 1000;
        let line_us = u64::from(GRID) * rates.prefill_row_ns / 1000;
        let bound = limits.max_step_us.max(rates.decode_us + line_us);
        assert!(rates.decode_us + prefill_us <= bound + 1);
    }
    if let Some(park) = plan.park {
        assert!(!park.keep || state.parked_room);
        assert!(park.keep || limits.overcommit_percent > 100);
    }
    if plan.is_idle() {
        let idle = |r: &Running| r.follows || !r.ready && r.stage == Stage::Decode;
        assert!(state.running.iter().all(idle), "somebody could go on");
        let helpless = !state.parked_room && !state.running.is_empty();
        assert!(state.waiting.is_empty() || helpless, "somebody could start");
    }
}
