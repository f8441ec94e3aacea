//! What saying no costs: 429 and 401 beside an accepted request, over kept-alive connections.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::time::sleep;

use super::callers::{Callers, Tally};
use super::client::{Ask, Connection};
use super::scenario::Bench;
use crate::gateway::{Gateway, Setup};
use crate::keys;
use crate::numbers::{float, ms};
use crate::random::Random;
use crate::table::{Figure, figure};

/// Connections that ask without a pause.
const CONNECTIONS: usize = 4;

/// Turns of each kind.
const TURNS: u32 = 4;

/// Load before each turn counts.
const WARM_UP: Duration = Duration::from_millis(200);

/// One kind of request.
struct Kind {
    ask: Ask,
    status: u16,
    tally: Tally,
    cpu: Duration,
    names: [&'static str; 3],
}

/// Measures. Needs a `LocalSet`.
///
/// # Errors
/// The gateway does not start, or answers otherwise.
pub(super) async fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let mut setup = Setup::scripted().with(
        "[limits.classes.wide]\nrequests_per_minute = 60000000\ntokens_per_minute = 100000000\n\
         [limits.classes.spent]\nrequests_per_minute = 1\nrequest_burst = 1\n",
    );
    let wide = setup.key("wide", Some("wide"));
    let spent = setup.key("spent", Some("spent"));
    let unknown = keys::mint(&mut Random::new(99));
    let body = json!({
        "model": "scripted?tokens=1", "max_tokens": 1,
        "messages": [{"role": "user", "content": "Tell me a story."}],
    });
    let kind = |key: &str, status, names| Kind {
        ask: Ask::chat(Some(key), "", &body),
        status,
        tally: Tally::default(),
        cpu: Duration::ZERO,
        names,
    };
    let mut kinds = [
        kind(
            &wide,
            200,
            ["CPU, accepted", "p50, accepted", "p99, accepted"],
        ),
        kind(&spent, 429, ["CPU, 429", "p50, 429", "p99, 429"]),
        kind(&unknown, 401, ["CPU, 401", "p50, 401", "p99, 401"]),
    ];
    let gateway = bench.program.start(&setup, "gateway").await?;
    let first = Connection::new(gateway.address)
        .ask(&kinds[1].ask, &mut |_| {})
        .await;
    ensure!(first.status == 200, "the one request: {:?}", first.fault);
    for _ in 0..TURNS {
        for kind in &mut kinds {
            turn(&gateway, kind, bench.time / (TURNS * 3)).await?;
        }
    }
    gateway.stop().await;
    let mut figures = Vec::new();
    for kind in &kinds {
        let Kind { tally, status, .. } = kind;
        let count = float(tally.answers.len() as u64);
        // The spent one is given a request a minute.
        ensure!(
            float(tally.with(*status)) > 0.99 * count,
            "not always {status}: {:?}",
            tally.faults(&[*status])
        );
        let [cpu, p50, p99] = kind.names;
        figures.push(figure(cpu, "us", kind.cpu.as_secs_f64() * 1e6 / count));
        figures.push(figure(p50, "us", ms(tally.total(*status, 0.5)) * 1e3));
        figures.push(figure(p99, "us", ms(tally.total(*status, 0.99)) * 1e3));
    }
    let made = kinds.iter().map(|kind| kind.tally.made).sum();
    figures.push(figure("connections made anew", "", float(made)));
    Ok(figures)
}

/// One turn of a kind, on connections of its own.
async fn turn(gateway: &Gateway, kind: &mut Kind, time: Duration) -> Result<()> {
    let ask = kind.ask.clone();
    let callers = Callers::closed(gateway.address, CONNECTIONS, Duration::ZERO, move || {
        ask.clone()
    });
    sleep(WARM_UP).await;
    let before = gateway.reading()?.cpu;
    let tally = callers.during(time).await;
    kind.cpu += gateway.reading()?.cpu.saturating_sub(before);
    kind.tally.add(tally);
    Ok(())
}
