//! What limits cost: a request that is admitted and one that is refused, over every scope; a burst of
//! tokens; and the headers of an answer.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use sluicegate::generation::Caller;
use sluicegate::limit::config::Limits;
use sluicegate::limit::{Ask, Clock, Kept, Limiter, Work};
use sluicegate::telemetry::Metrics;

const LIMITS: &str = "
    [organizations.acme]
    requests_per_minute = 60000000
    tokens_per_minute = 100000000
    tokens_per_month = 100000000000000
    [classes.default]
    requests_per_minute = 60000000
    tokens_per_minute = 100000000
    input_tokens_per_minute = 100000000
    output_tokens_per_minute = 100000000
    streams = 1000
    queued = 1000
    [classes.default.models.m]
    tokens_per_day = 100000000000000
    [models.m]
    tokens_per_minute = 100000000
";

fn limiter(last: &str) -> Option<Limiter> {
    let limits: Limits = toml::from_str(&format!("{LIMITS}{last}")).ok()?;
    let metrics = Arc::new(Metrics::new(["m"]).ok()?);
    let clock = Clock::real();
    let store = Arc::new(Kept::open(&limits, None, &clock));
    Some(Limiter::new(&limits, ["m"], store, clock, metrics))
}

fn limits(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    // The last scope of the second refuses everything, after all others were asked.
    let (Ok(runtime), Some(open), Some(shut)) =
        (runtime, limiter(""), limiter("requests_per_day = 1"))
    else {
        return;
    };
    let caller = Caller {
        identity: Some("key:bench".into()),
        organization: Some("acme".into()),
        ..Caller::default()
    };
    let ask = Ask {
        caller: &caller,
        model: "m",
        text_bytes: 400,
        tokens: 0,
        work: Work::Generate {
            choices: 1,
            max_tokens: Some(10),
        },
    };
    let _first = runtime.block_on(shut.admit(&ask));
    let mut group = c.benchmark_group("limits");
    group.measurement_time(Duration::from_secs(3));
    group.bench_function("admit_and_give_back", |b| {
        b.iter(|| runtime.block_on(open.admit(black_box(&ask))).is_ok());
    });
    group.bench_function("refuse_at_the_last_scope", |b| {
        b.iter(|| runtime.block_on(shut.admit(black_box(&ask))).is_err());
    });
    group.bench_function("standing", |b| {
        b.iter(|| open.standing(black_box(&caller), Some("m")));
    });
    if let Ok(admission) = runtime.block_on(open.admit(&ask)) {
        let meter = admission.into_meter();
        group.bench_function("charge_beyond_the_reservation", |b| {
            b.iter(|| meter.charge(black_box(1)).is_ok());
        });
    }
    group.finish();
}

criterion_group!(benches, limits);
criterion_main!(benches);
