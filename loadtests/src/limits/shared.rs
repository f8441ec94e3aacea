//! One quota of two gateways, kept in Redis: how exactly it is met, and what happens while Redis is away.

use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::process::Signal;
use serde_json::json;
use tokio::time::sleep;

use super::callers::{Callers, Tally};
use super::client::Ask;
use super::exact::bound;
use super::redis::{self, Redis};
use super::scenario::{Bench, Measured};
use crate::gateway::{Gateway, Setup};
use crate::numbers::{float, ms};
use crate::random::Random;
use crate::table::{Figure, figure};

/// Requests a minute that are allowed, and at once.
const REQUESTS: u32 = 6_000;
const BURST: u32 = 100;

/// Arrivals a second at each gateway: together twice what is allowed, and not the same at both.
const ARRIVALS: [f64; 2] = [120.0, 80.0];

/// Time to forget what was lost when Redis came back or went.
const SETTLE: Duration = Duration::from_secs(1);

const NO_REDIS: &str = "there is no redis-server in PATH";

/// What the gateway says of Redis.
const FAILURES: &str = "sluicegate_limit_redis_failures_total";

/// Two gateways and their Redis.
struct Nodes {
    redis: Redis,
    gateways: [Gateway; 2],
    key: String,
}

impl Nodes {
    /// Starts them; none where there is no Redis.
    async fn start(bench: &Bench) -> Result<Option<Self>> {
        let Some(program) = redis::program() else {
            return Ok(None);
        };
        let redis = Redis::start(&program, &bench.program.folder).await?;
        let mut setup = Setup::scripted().with(&format!(
            "[limits.redis]\nurl = \"redis://{}\"\nnodes = 2\n\
             [limits.classes.shared]\nrequests_per_minute = {REQUESTS}\nrequest_burst = {BURST}\n",
            redis.address
        ));
        let key = setup.key("shared", Some("shared"));
        let one = bench.program.start(&setup, "one").await?;
        let two = bench.program.start(&setup, "two").await?;
        Ok(Some(Self {
            redis,
            gateways: [one, two],
            key,
        }))
    }

    /// Callers at both gateways.
    fn callers(&self, seed: u64) -> Vec<Callers> {
        let body = json!({
            "model": "scripted?tokens=1", "max_tokens": 1,
            "messages": [{"role": "user", "content": "Tell me a story."}],
        });
        let ask = Ask::chat(Some(&self.key), "", &body);
        (seed..)
            .zip(self.gateways.iter().zip(ARRIVALS))
            .map(|(seed, (gateway, rate))| {
                let ask = ask.clone();
                Callers::open(gateway.address, rate, Random::new(seed), move || {
                    ask.clone()
                })
            })
            .collect()
    }

    async fn stop(self) {
        for gateway in self.gateways {
            gateway.stop().await;
        }
        self.redis.stop().await;
    }
}

/// What both callers saw since this was asked last.
fn taken(callers: &[Callers]) -> Tally {
    let mut all = Tally::default();
    for caller in callers {
        all.add(caller.take());
    }
    all
}

fn failed(tally: &Tally) -> f64 {
    float(tally.faults(&[200, 429]).values().sum())
}

/// The quota while all is well. Needs a `LocalSet`.
///
/// # Errors
/// A program does not start.
pub(super) async fn quota(bench: &Bench) -> Result<Measured> {
    let Some(nodes) = Nodes::start(bench).await? else {
        return Ok(Measured::Skipped(NO_REDIS));
    };
    let begin = Instant::now();
    let callers = nodes.callers(bench.round * 10);
    sleep(bench.time).await;
    let tally = taken(&callers);
    let seconds = begin.elapsed().as_secs_f64();
    drop(callers);
    nodes.stop().await;
    let admitted = 100.0 * float(tally.with(200)) / bound(BURST, REQUESTS, seconds);
    Ok(Measured::Figures(vec![
        figure("measured", "s", seconds),
        figure("admitted, of the quota", "%", admitted),
        figure("off the quota", "%", (admitted - 100.0).abs()),
        figure("requests failed", "", failed(&tally)),
        figure("p50, admitted", "ms", ms(tally.total(200, 0.5))),
        figure("p99, admitted", "ms", ms(tally.total(200, 0.99))),
        figure("p99, refused", "ms", ms(tally.total(429, 0.99))),
    ]))
}

/// The quota while Redis is stopped, back, and killed. Needs a `LocalSet`.
///
/// # Errors
/// A program does not start.
pub(super) async fn outage(bench: &Bench) -> Result<Measured> {
    let Some(nodes) = Nodes::start(bench).await? else {
        return Ok(Measured::Skipped(NO_REDIS));
    };
    let callers = nodes.callers(bench.round * 10);
    sleep(SETTLE).await;
    taken(&callers);
    let mut figures = Vec::new();
    let mut failures = 0.0;
    let names = [
        ["admitted, there", "beyond the rate, there", "p99, there"],
        [
            "admitted, stopped",
            "beyond the rate, stopped",
            "p99, stopped",
        ],
        ["admitted, back", "beyond the rate, back", "p99, back"],
        ["admitted, killed", "beyond the rate, killed", "p99, killed"],
    ];
    let signals = [
        None,
        Some(Signal::STOP),
        Some(Signal::CONT),
        Some(Signal::KILL),
    ];
    for (signal, names) in signals.into_iter().zip(names) {
        if let Some(signal) = signal {
            nodes.redis.signal(signal)?;
        }
        let (part, tally) = phase(&callers, bench.time / 4, names).await;
        figures.extend(part);
        failures += failed(&tally);
    }
    drop(callers);
    let mut noticed = 0.0;
    for gateway in &nodes.gateways {
        noticed += gateway.metric(FAILURES, &[]).await?;
    }
    nodes.stop().await;
    figures.push(figure("requests failed", "", failures));
    figures.push(figure("failures of Redis that were counted", "", noticed));
    Ok(Measured::Figures(figures))
}

/// One phase: what was admitted beside what the rate alone allows, and how long answers took.
async fn phase(
    callers: &[Callers],
    time: Duration,
    [share, beyond, p99]: [&'static str; 3],
) -> (Vec<Figure>, Tally) {
    let begin = Instant::now();
    sleep(time).await;
    let tally = taken(callers);
    let allowed = bound(0, REQUESTS, begin.elapsed().as_secs_f64());
    let admitted = float(tally.with(200));
    let slowest = tally.total(200, 0.99).max(tally.total(429, 0.99));
    let figures = vec![
        figure(share, "% of the rate", 100.0 * admitted / allowed),
        figure(beyond, "", admitted - allowed),
        figure(p99, "ms", ms(slowest)),
    ];
    (figures, tally)
}
