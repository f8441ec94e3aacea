//! The planner's rules, one by one.

use super::*;
use proptest::prelude::*;

const LIMITS: Limits = Limits {
    ids: 4,
    cells: 10_000,
    decode_rows: 63,
    batch: 512,
    max_step_us: 50_000,
    one_prompt_per_call: false,
    cut_last: false,
    pooled: true,
    overcommit_percent: 100,
};

const SECOND: u64 = 1_000_000;

fn decoding(id: u32) -> Running {
    Running {
        id,
        tenant: TenantId(0),
        weight: 1,
        class: Class::Normal,
        adapter: 0,
        stage: Stage::Decode,
        ready: true,
        follows: false,
        used: 100,
        cells: 128,
        cells_full: 200,
        deadline_us: None,
        admitted_us: 0,
        served_us: 0,
        paused_since_us: None,
        rows: 1,
    }
}

fn prompt(id: u32, done: u32, total: u32) -> Running {
    Running {
        stage: Stage::Prefill { done, total },
        used: done,
        cells: total + GRID,
        cells_full: total + GRID,
        ..decoding(id)
    }
}

fn waiting(index: u32, tenant: u32) -> Waiting {
    Waiting {
        index,
        tenant: TenantId(tenant.into()),
        weight: 1,
        class: Class::Normal,
        cells_now: 128,
        cells_full: 200,
        pins: 0,
        prompt: 64,
        arrived_us: 10 * SECOND,
        deadline_us: None,
        resumed: false,
    }
}

/// Ten seconds in, calls cost 10 ms and 100 us per row.
fn state<'a>(limits: &'a Limits, running: &'a [Running], waiting: &'a [Waiting]) -> State<'a> {
    State {
        now_us: 10 * SECOND,
        limits,
        rates: Rates {
            decode_us: 10_000,
            prefill_row_ns: 100_000,
        },
        running,
        waiting,
        idle_cells: 0,
        shared_cells: 0,
        spill_after_us: None,
        parked_room: true,
    }
}

fn plan(state: &State<'_>) -> Plan {
    let mut out = Plan::default();
    Planner::default().plan(state, &mut out);
    out
}

fn runs(plan: &Plan) -> Vec<(u32, u32, u32)> {
    plan.prefill.iter().map(|r| (r.id, r.from, r.to)).collect()
}

fn starts(plan: &Plan) -> Vec<(u32, u32)> {
    plan.start.iter().map(|s| (s.index, s.id)).collect()
}

fn ids(plan: &Plan) -> Vec<u32> {
    plan.decode.iter().map(|row| row.id).collect()
}

#[test]
fn the_chunk_fills_the_slack_beside_streams_and_the_batch_alone() {
    let running = [decoding(0), prompt(1, 0, 5000)];
    let mut state = state(&LIMITS, &running, &[]);
    assert_eq!(runs(&plan(&state)), [(1, 0, 384)], "400 rows fit 40 ms");
    state.rates.decode_us = 60_000;
    assert_eq!(
        runs(&plan(&state)),
        [(1, 0, 64)],
        "never less than a grid line"
    );
    state.rates = Rates::default();
    assert_eq!(runs(&plan(&state)), [(1, 0, 128)], "nothing is known yet");
    state.running = &running[1..];
    assert_eq!(runs(&plan(&state)), [(1, 0, 512)]);
}

#[test]
fn short_prompts_share_a_call_unless_each_is_to_have_its_own() {
    let running = [prompt(0, 0, 1000), prompt(1, 0, 40), prompt(2, 0, 30)];
    let together = plan(&state(&LIMITS, &running, &[]));
    assert_eq!(runs(&together), [(0, 0, 384), (1, 0, 40), (2, 0, 30)]);
    let limits = Limits {
        one_prompt_per_call: true,
        ..LIMITS
    };
    assert_eq!(runs(&plan(&state(&limits, &running, &[]))), [(2, 0, 30)]);
}

#[test]
fn the_last_run_of_a_prompt_begins_on_its_last_grid_line_where_asked() {
    let limits = Limits {
        cut_last: true,
        ..LIMITS
    };
    for (done, total, end) in [(0, 100, 64), (64, 100, 100), (0, 128, 64), (0, 64, 64)] {
        let running = [prompt(0, done, total)];
        assert_eq!(
            runs(&plan(&state(&limits, &running, &[]))),
            [(0, done, end)]
        );
    }
}

#[test]
fn prompts_go_by_class_then_deadline_then_length() {
    let limits = Limits {
        one_prompt_per_call: true,
        ..LIMITS
    };
    let fresh = |running| Running {
        served_us: 10 * SECOND,
        ..running
    };
    let mut running = [
        fresh(prompt(0, 0, 40)),
        fresh(prompt(1, 0, 200)),
        fresh(prompt(2, 0, 300)),
        fresh(prompt(3, 0, 500)),
    ];
    let first = |running: &[Running]| plan(&state(&limits, running, &[])).prefill[0].id;
    assert_eq!(first(&running), 0);
    running[1].deadline_us = Some(11 * SECOND);
    assert_eq!(first(&running), 1);
    running[2].class = Class::Interactive;
    assert_eq!(first(&running), 2);
    running[3].class = Class::Interactive;
    running[3].deadline_us = Some(12 * SECOND);
    assert_eq!(first(&running), 3);
    running[3].follows = true;
    assert_eq!(
        first(&running),
        2,
        "who follows another has nothing to compute"
    );
}

#[test]
fn drafts_are_cut_before_a_stream_is_left_out_and_who_was_left_out_goes_first() {
    let limits = Limits {
        decode_rows: 4,
        ..LIMITS
    };
    let mut running: Vec<_> = (0..3)
        .map(|id| Running {
            rows: 4,
            ..decoding(id)
        })
        .collect();
    let rows = |running: &[Running]| -> Vec<_> {
        let plan = plan(&state(&limits, running, &[]));
        plan.decode.iter().map(|row| (row.id, row.rows)).collect()
    };
    assert_eq!(rows(&running), [(0, 2), (1, 1), (2, 1)]);
    running.extend((3..6).map(decoding));
    for running in &mut running[..4] {
        running.served_us = 5;
    }
    assert_eq!(rows(&running), [(0, 1), (1, 1), (4, 1), (5, 1)]);
}

#[test]
fn adapter_groups_take_turns_by_time() {
    let running = [
        decoding(0),
        Running {
            adapter: 7,
            ..decoding(1)
        },
        decoding(2),
        decoding(3),
    ];
    let state = state(&LIMITS, &running, &[]);
    let mut planner = Planner::default();
    let mut out = Plan::default();
    let mut turns = Vec::new();
    for _ in 0..10 {
        planner.plan(&state, &mut out);
        assert_eq!(
            ids(&out),
            if out.decode_adapter == 7 {
                vec![1]
            } else {
                vec![0, 2, 3]
            }
        );
        turns.push(out.decode_adapter);
        planner.decoded(&out, 10_000);
    }
    // Three quarters of 50 ms are four calls of 10 ms, one quarter is two.
    assert_eq!(turns, [0, 0, 0, 0, 7, 7, 0, 0, 0, 0]);
}

#[test]
fn a_stream_has_a_promise_before_its_row() {
    let limits = Limits {
        cells: 200,
        overcommit_percent: 150,
        ..LIMITS
    };
    let running = [Running {
        used: 128,
        ..decoding(0)
    }];
    let mut state = state(&limits, &running, &[]);
    state.idle_cells = 60;
    let grown = plan(&state);
    assert_eq!(grown.grow, [Grow { id: 0, cells: 192 }]);
    assert_eq!(grown.evict_cells, 52);
    let running = [Running {
        cells: 130,
        ..running[0]
    }];
    let state = State {
        running: &running,
        ..state
    };
    assert!(plan(&state).grow.is_empty(), "it has one");
}

#[test]
fn without_a_cell_left_the_least_important_is_parked_and_never_the_last_one() {
    let limits = Limits {
        cells: 256,
        overcommit_percent: 150,
        ..LIMITS
    };
    let running = [
        Running {
            used: 128,
            ..decoding(0)
        },
        Running {
            used: 110,
            admitted_us: 5,
            ..decoding(1)
        },
    ];
    let crowded = plan(&state(&limits, &running, &[]));
    assert_eq!(crowded.park, Some(Park { id: 1, keep: true }));
    assert_eq!(ids(&crowded), [0]);
    assert_eq!(crowded.grow, [Grow { id: 0, cells: 192 }]);
    let mut state = state(&limits, &running, &[]);
    state.parked_room = false;
    let no_room = plan(&state);
    assert_eq!(
        (no_room.park, ids(&no_room)),
        (None, vec![1]),
        "1 can still go on"
    );
    let running = [
        running[0],
        Running {
            used: 128,
            ..running[1]
        },
    ];
    state.running = &running;
    assert_eq!(
        plan(&state).park,
        Some(Park { id: 1, keep: false }),
        "nobody can"
    );
}

#[test]
fn nobody_starts_on_cells_that_are_promised() {
    let limits = Limits {
        cells: 400,
        ..LIMITS
    };
    let running = [decoding(0)];
    let line = [waiting(0, 0), waiting(1, 0)];
    assert_eq!(starts(&plan(&state(&limits, &running, &line))), [(0, 1)]);
    let more = Limits {
        overcommit_percent: 150,
        ..limits
    };
    assert_eq!(
        starts(&plan(&state(&more, &running, &line))),
        [(0, 1), (1, 2)]
    );
    let split = Limits {
        pooled: false,
        ..limits
    };
    assert_eq!(
        starts(&plan(&state(&split, &running, &line))),
        [(0, 1), (1, 2)]
    );
}

#[test]
fn idle_cells_are_evicted_but_not_the_prefix_that_is_used() {
    let limits = Limits {
        cells: 400,
        ..LIMITS
    };
    let line = [Waiting {
        pins: 64,
        ..waiting(0, 0)
    }];
    let mut state = state(&limits, &[], &line);
    state.idle_cells = 300;
    assert_eq!(plan(&state).evict_cells, 28);
}

#[test]
fn the_line_goes_by_class_then_tenant_then_deadline() {
    let limits = Limits { ids: 1, ..LIMITS };
    let mut line = vec![waiting(0, 0), waiting(1, 1)];
    let mut planner = Planner::default();
    let mut out = Plan::default();
    let mut first = |line: &[Waiting]| {
        planner.plan(&state(&limits, &[], line), &mut out);
        planner.charge(TenantId(0), 1000);
        out.start[0].index
    };
    assert_eq!(first(&line), 0);
    assert_eq!(first(&line), 1, "tenant 0 was charged");
    line.push(Waiting {
        deadline_us: Some(11 * SECOND),
        ..waiting(2, 1)
    });
    assert_eq!(first(&line), 2);
    line.push(Waiting {
        resumed: true,
        ..waiting(3, 1)
    });
    assert_eq!(first(&line), 3);
    line.push(Waiting {
        class: Class::Interactive,
        ..waiting(4, 0)
    });
    assert_eq!(first(&line), 4);
    line.push(Waiting {
        arrived_us: 7 * SECOND,
        ..waiting(5, 2)
    });
    assert_eq!(
        first(&line),
        5,
        "it has waited for longer than a class is worth"
    );
}

#[test]
fn a_paused_stream_makes_way_at_once_when_somebody_waits_and_in_time_otherwise() {
    let limits = Limits { ids: 2, ..LIMITS };
    let paused = |id, since| Running {
        ready: false,
        paused_since_us: Some(since),
        ..decoding(id)
    };
    let running = [paused(0, 9 * SECOND), paused(1, 8 * SECOND)];
    let line = [waiting(0, 0)];
    let wanted = plan(&state(&limits, &running, &line));
    assert_eq!(wanted.park, Some(Park { id: 1, keep: true }));
    assert_eq!(starts(&wanted), [(0, 1)]);
    let mut state = state(&limits, &running, &[]);
    assert_eq!(plan(&state).park, None);
    state.spill_after_us = Some(SECOND);
    assert_eq!(plan(&state).park.map(|park| park.id), Some(1));
    state.spill_after_us = Some(3 * SECOND);
    assert_eq!(plan(&state).park, None);
}

#[test]
fn an_interactive_request_takes_the_id_of_a_background_one() {
    let limits = Limits { ids: 2, ..LIMITS };
    let mut running = [
        Running {
            class: Class::Background,
            ..decoding(0)
        },
        Running {
            admitted_us: 9 * SECOND,
            ..decoding(1)
        },
    ];
    let line = [Waiting {
        class: Class::Interactive,
        ..waiting(0, 0)
    }];
    let taken = plan(&state(&limits, &running, &line));
    assert_eq!(taken.park, Some(Park { id: 0, keep: true }));
    assert_eq!((starts(&taken), ids(&taken)), (vec![(0, 0)], vec![1]));
    running[0].admitted_us = 10 * SECOND - 1;
    assert_eq!(
        plan(&state(&limits, &running, &line)).park,
        None,
        "it has only begun"
    );
}

#[test]
fn a_tenant_with_all_ids_gives_one_up_for_another() {
    let limits = Limits { ids: 2, ..LIMITS };
    let mut running = [
        decoding(0),
        Running {
            admitted_us: 7 * SECOND,
            ..decoding(1)
        },
    ];
    let own = [waiting(0, 0)];
    assert_eq!(plan(&state(&limits, &running, &own)).park, None);
    let other = [waiting(0, 1)];
    let capped = plan(&state(&limits, &running, &other));
    assert_eq!(capped.park, Some(Park { id: 1, keep: true }));
    running[0].tenant = TenantId(1);
    assert_eq!(
        plan(&state(&limits, &running, &own)).park,
        None,
        "it has its share"
    );
}

#[test]
fn of_two_who_were_served_the_same_the_one_that_ran_last_is_last() {
    for (ran, other) in [(1, 2), (2, 1)] {
        let (mut planner, mut out) = (Planner::default(), Plan::default());
        let mut running = decoding(0);
        running.tenant = TenantId(ran.into());
        let before = [running];
        planner.plan(&state(&LIMITS, &before, &[]), &mut out);
        let line = [waiting(0, ran), waiting(1, other)];
        let now = state(&LIMITS, &[], &line);
        let mut order = Vec::new();
        planner.order(&now, &mut order);
        planner.plan(&now, &mut out);
        let started: Vec<_> = starts(&out).into_iter().map(|(index, _)| index).collect();
        assert_eq!((order, started), (vec![1, 0], vec![1, 0]));
    }
}

#[test]
fn tenants_that_are_gone_are_forgotten() {
    let mut planner = Planner::default();
    let mut out = Plan::default();
    for tenant in 0..5000 {
        let line = [waiting(0, tenant), waiting(1, u32::MAX)];
        planner.plan(&state(&LIMITS, &[], &line), &mut out);
        planner.charge(TenantId(tenant.into()), 1000);
    }
    assert!(planner.tenants.len() < 1100);
    planner.plan(&state(&LIMITS, &[], &[]), &mut out);
    planner.charge(TenantId(u32::MAX.into()), SECOND);
}

/// By hand: `cargo test --release --lib plan::tests::cost -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
#[expect(clippy::print_stdout, reason = "it prints its figure")]
fn cost() {
    let limits = Limits {
        ids: 64,
        cells: 100_000,
        ..LIMITS
    };
    let tenants = 16;
    for (name, prompts) in [("64 decode", 0), ("48 decode, 16 prefill", 16)] {
        let mut running: Vec<_> = (0..64 - prompts).map(decoding).collect();
        running.extend((64 - prompts..64).map(|id| prompt(id, 0, 1000)));
        for sequence in &mut running {
            sequence.tenant = TenantId((sequence.id % tenants).into());
        }
        let line: Vec<_> = (0..256).map(|n| waiting(n, n % tenants)).collect();
        for waiting in [&line[..], &[]] {
            let state = state(&limits, &running, waiting);
            let mut planner = Planner::default();
            let mut out = Plan::default();
            let mut best = f64::MAX;
            for _ in 0..20 {
                let start = std::time::Instant::now();
                for _ in 0..1000 {
                    planner.plan(&state, &mut out);
                    planner.decoded(&out, 10_000);
                    planner.prefilled(&out, 10_000);
                }
                best = best.min(start.elapsed().as_secs_f64() * 1000.0);
            }
            println!("{name}, {} waiting: {best:.2} us", waiting.len());
        }
    }
}

proptest! {
    #[test]
    fn the_order_of_the_line_is_the_order_of_the_starts(
        line in prop::collection::vec((0u32..4, 0usize..3, 1u32..2000, 0u64..20, prop::bool::ANY), 1..40),
        weights in [1u16..5, 1u16..5, 1u16..5, 1u16..5],
    ) {
        let classes = [Class::Background, Class::Normal, Class::Interactive];
        let limits = Limits { ids: 64, pooled: false, ..LIMITS };
        let line: Vec<_> = (0..).zip(line).map(|(index, (tenant, class, prompt, ago, is_due))| Waiting {
            weight: weights[tenant as usize],
            class: classes[class],
            prompt,
            arrived_us: 10 * SECOND - ago * SECOND / 2,
            deadline_us: is_due.then_some(11 * SECOND),
            ..waiting(index, tenant)
        }).collect();
        let state = state(&limits, &[], &line);
        let (mut planner, mut order) = (Planner::default(), Vec::new());
        planner.order(&state, &mut order);
        let started: Vec<_> = plan(&state).start.iter().map(|start| start.index).collect();
        prop_assert_eq!(order, started);
    }
}
