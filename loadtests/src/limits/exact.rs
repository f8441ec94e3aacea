//! Tokens and requests against the bound: what was delivered, what was charged, what was allowed.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::time::sleep;

use super::callers::{Callers, Tally};
use super::client::{Ask, LEFT};
use super::scenario::Bench;
use crate::gateway::{Gateway, Setup};
use crate::numbers::float;
use crate::random::Random;
use crate::table::{Figure, figure};

/// Streams that compete for one budget.
const STREAMS: usize = 64;

/// Tokens a minute, and at once.
const TOKENS: u32 = 120_000;
const TOKEN_BURST: u32 = 4_000;

/// Requests a minute, and at once.
const REQUESTS: u32 = 12_000;
const REQUEST_BURST: u32 = 100;

/// How long who was refused waits.
const PAUSE: Duration = Duration::from_millis(10);

/// How long the gateway may take to notice that callers have left.
const SETTLE: Duration = Duration::from_millis(500);

/// Tokens that streams delivered, and that callers were charged.
const DELIVERED: &str = "sluicegate_tokens_total";
const CHARGED: &str = "sluicegate_limit_tokens_total";
const OUTPUT: &[&str] = &["kind=\"output\""];

/// Measures. Needs a `LocalSet`.
///
/// # Errors
/// The gateway does not start, or answers otherwise.
pub(super) async fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let mut setup = Setup::scripted().with(&format!(
        "[limits.classes.tokens]\noutput_tokens_per_minute = {TOKENS}\ntoken_burst = {TOKEN_BURST}\n\
         [limits.classes.requests]\nrequests_per_minute = {REQUESTS}\nrequest_burst = {REQUEST_BURST}\n"
    ));
    let tokens = [
        setup.key("patient", Some("tokens")),
        setup.key("hasty", Some("tokens")),
    ];
    let requests = setup.key("counted", Some("requests"));
    let gateway = bench.program.start(&setup, "gateway").await?;
    let patient = budget(&gateway, &tokens[0], bench, false).await?;
    let hasty = budget(&gateway, &tokens[1], bench, true).await?;
    let admitted = rate(&gateway, &requests, bench.time / 4).await?;
    gateway.stop().await;
    Ok(vec![
        figure("tokens charged, of the bound", "%", patient.of_bound),
        figure(
            "charged less received",
            "",
            patient.charged - patient.received,
        ),
        figure(
            "charged less delivered",
            "",
            patient.charged - patient.delivered,
        ),
        figure(
            "tokens charged, of the bound, a third leave",
            "%",
            hasty.of_bound,
        ),
        figure(
            "charged less delivered, a third leave",
            "",
            hasty.charged - hasty.delivered,
        ),
        figure("not received, per stream left", "", hasty.lost_per_stream()),
        figure("requests admitted, of the bound", "%", admitted),
    ])
}

/// What a budget was used for.
struct Budget {
    of_bound: f64,
    charged: f64,
    delivered: f64,
    received: f64,
    left: f64,
}

impl Budget {
    fn lost_per_stream(&self) -> f64 {
        (self.delivered - self.received) / self.left.max(1.0)
    }
}

/// Streams of all lengths against a budget of tokens.
async fn budget(gateway: &Gateway, key: &str, bench: &Bench, hasty: bool) -> Result<Budget> {
    let delivered = gateway.metric(DELIVERED, OUTPUT).await?;
    let charged = gateway.metric(CHARGED, OUTPUT).await?;
    let (mut random, key) = (Random::new(bench.round), key.to_owned());
    let begin = Instant::now();
    let callers = Callers::closed(gateway.address, STREAMS, PAUSE, move || {
        let length = 32 + 2 * random.one_of_64() as u64;
        let body = json!({
            "model": "scripted?tokens=1000&pace=1ms", "stream": true, "max_tokens": length,
            "messages": [{"role": "user", "content": "Tell me a story."}],
        });
        let ask = Ask::chat(Some(&key), "", &body);
        if hasty && random.share() < 1.0 / 3.0 {
            return ask.leaving_after(1 + length / 3);
        }
        ask
    });
    let tally = finished(callers, bench.time * 3 / 8).await;
    // What is charged until the last stream has ended was allowed until then.
    let seconds = begin.elapsed().as_secs_f64();
    sleep(SETTLE).await;
    let faults = tally.faults(&[200, 429]);
    let left = faults.get(LEFT).copied().unwrap_or_default();
    ensure!(
        faults.keys().all(|fault| fault == LEFT),
        "streams failed: {faults:?}"
    );
    ensure!(
        tally.with(429) > 0,
        "nobody was refused: the budget was not met"
    );
    let charged = gateway.metric(CHARGED, OUTPUT).await? - charged;
    Ok(Budget {
        of_bound: 100.0 * charged / bound(TOKEN_BURST, TOKENS, seconds),
        charged,
        delivered: gateway.metric(DELIVERED, OUTPUT).await? - delivered,
        received: float(tally.tokens),
        left: float(left),
    })
}

/// Lets callers ask for some time, and waits until what they have under way has ended.
async fn finished(callers: Callers, time: Duration) -> Tally {
    sleep(time).await;
    callers.finish().await
}

/// One-token requests as fast as they go, against a rate: how much of what is allowed was admitted.
async fn rate(gateway: &Gateway, key: &str, time: Duration) -> Result<f64> {
    let body = json!({
        "model": "scripted?tokens=1", "max_tokens": 1,
        "messages": [{"role": "user", "content": "Tell me a story."}],
    });
    let ask = Ask::chat(Some(key), "", &body);
    let begin = Instant::now();
    let pause = Duration::from_millis(1);
    let callers = Callers::closed(gateway.address, 8, pause, move || ask.clone());
    let tally = finished(callers, time).await;
    let seconds = begin.elapsed().as_secs_f64();
    let faults = tally.faults(&[200, 429]);
    ensure!(faults.is_empty(), "requests failed: {faults:?}");
    Ok(100.0 * float(tally.with(200)) / bound(REQUEST_BURST, REQUESTS, seconds))
}

/// What is allowed in so many seconds.
pub(super) fn bound(burst: u32, per_minute: u32, seconds: f64) -> f64 {
    f64::from(burst) + f64::from(per_minute) / 60.0 * seconds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_the_burst_and_what_comes_back() {
        assert!((bound(100, 600, 3.0) - 130.0).abs() < 1e-9);
    }
}
