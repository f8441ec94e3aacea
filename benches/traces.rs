//! What a request pays for its trace: its names, what is told of it, and the decision at its end. Nobody
//! listens where kept ones go: what that costs is the exporter's business, not the request's.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use sluicegate::generation::{Outcome, Record, Timeline, Usage, Waits, Work};
use sluicegate::telemetry::{Config, Slo, Tracer};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

fn tracer(ratio: &str) -> Option<Arc<Tracer>> {
    let config: Config = toml::from_str(&format!(
        "otlp_endpoint = 'http://127.0.0.1:9'\ntraces.ratio = {ratio}"
    ))
    .ok()?;
    Tracer::start(&config, Arc::new(Slo::default())).ok()
}

/// A call of 256 tokens.
fn work(model: &Arc<str>) -> Work {
    let mut timeline = Timeline::default();
    for token in 0..256 {
        timeline.token(1_000_000 + token * 20_000, 0, 4);
    }
    Work {
        route: "chat",
        model: model.clone(),
        accepted_at: 1_000_000,
        record: Record {
            outcome: Outcome::Ok,
            finish: None,
            usage: Usage::default(),
            time_to_first_token: Some(Duration::from_millis(20)),
            duration: Duration::from_secs(5),
            max_gap_us: 20_000,
            waits: Waits::default(),
        },
        timeline,
        failure: None,
    }
}

fn traces(c: &mut Criterion) {
    let model: Arc<str> = "m".into();
    let mut group = c.benchmark_group("traces");
    let off = Tracer::off();
    group.bench_function("names", |b| b.iter(|| black_box(off.begin(None, None))));
    group.bench_function("names in a caller's trace", |b| {
        b.iter(|| black_box(off.begin(Some(black_box(PARENT)), Some(black_box("vendor=1")))));
    });
    for (name, ratio) in [("a request, not kept", "0.0"), ("a request, kept", "1.0")] {
        let Some(tracer) = tracer(ratio) else {
            return;
        };
        group.bench_function(name, |b| {
            b.iter_batched(
                || work(&model),
                |work| {
                    let trace = tracer.begin(None, None);
                    trace.exchange(|exchange| exchange.route = "/v1/chat/completions");
                    trace.work(work);
                    trace.exchange(|exchange| exchange.is_whole = true);
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, traces);
criterion_main!(benches);
