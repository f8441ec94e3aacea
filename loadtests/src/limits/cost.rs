//! What identity and limits cost who is served: the same streams without and with them, in turn.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::client::Ask;
use super::scenario::Bench;
use crate::count::{Dialect, Method};
use crate::gateway::{Gateway, Setup};
use crate::load::{self, Outcome, Plan, Until};
use crate::numbers::{float, median};
use crate::table::{Figure, figure};

/// Streams at once.
const STREAMS: usize = 64;

/// Pairs of turns as fast as they go: many short ones, since the machine's speed changes.
const PAIRS: u32 = 9;

/// Pairs of turns with a token every millisecond. Their CPU time changes less.
const SLOW_PAIRS: usize = 3;

/// Load before each turn counts.
const WARM_UP: Duration = Duration::from_millis(300);

/// What a turn showed.
#[derive(Clone, Copy)]
struct Turn {
    /// Tokens a second.
    rate: f64,
    /// Server CPU per token, in microseconds.
    cpu: f64,
}

/// Measures.
///
/// # Errors
/// A gateway does not start, or streams fail.
pub(super) async fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let without = bench.program.start(&Setup::scripted(), "without").await?;
    let mut setup = Setup::scripted().with(
        "[limits.classes.wide]\nrequests_per_minute = 60000000\ntokens_per_minute = 100000000\n\
         output_tokens_per_minute = 100000000\nstreams = 10000\ntokens_per_month = 1000000000000000\n\
         [limits.models.scripted]\nrequests_per_minute = 60000000\nstreams = 10000\n",
    );
    // The largest budget that can be written down would not last for all turns.
    let keys: Vec<String> = (0..PAIRS)
        .map(|pair| {
            let owner = format!("owner-{pair}");
            setup = setup.clone().with(&format!(
                "[limits.organizations.{owner}]\ntokens_per_minute = 100000000\n"
            ));
            setup.key_of(&format!("key-{pair}"), Some("wide"), Some(&owner))
        })
        .collect();
    let with = bench.program.start(&setup, "with").await?;
    let sides = Sides {
        without: &without,
        with: &with,
    };
    let time = bench.time / (PAIRS * 3);
    let full = turns(&sides, &keys, "scripted?tokens=100000000", time).await?;
    let singly = turns(
        &sides,
        &keys[..SLOW_PAIRS],
        "scripted?tokens=100000000&pace=1ms",
        time,
    )
    .await?;
    without.stop().await;
    with.stop().await;
    Ok(vec![
        figure(
            "as fast as they go, without",
            "tokens/s",
            middle(&full, |[off, _]| off.rate)?,
        ),
        figure(
            "as fast as they go, with",
            "tokens/s",
            middle(&full, |[_, on]| on.rate)?,
        ),
        figure(
            "slower",
            "%",
            100.0 * (1.0 - middle(&full, |[off, on]| on.rate / off.rate)?),
        ),
        figure(
            "CPU per token, without",
            "us",
            middle(&full, |[off, _]| off.cpu)?,
        ),
        figure(
            "CPU per token, with",
            "us",
            middle(&full, |[_, on]| on.cpu)?,
        ),
        figure(
            "a token every ms, CPU per token, without",
            "us",
            middle(&singly, |[off, _]| off.cpu)?,
        ),
        figure(
            "a token every ms, CPU per token, with",
            "us",
            middle(&singly, |[_, on]| on.cpu)?,
        ),
        figure(
            "a token every ms, more CPU",
            "%",
            100.0 * (middle(&singly, |[off, on]| on.cpu / off.cpu)? - 1.0),
        ),
    ])
}

/// What is compared.
struct Sides<'a> {
    without: &'a Gateway,
    with: &'a Gateway,
}

/// A pair of turns for each key; who is first alternates.
async fn turns(
    sides: &Sides<'_>,
    keys: &[String],
    model: &str,
    time: Duration,
) -> Result<Vec<[Turn; 2]>> {
    let mut pairs = Vec::new();
    for (pair, key) in keys.iter().enumerate() {
        let off = turn(sides.without, None, model, time);
        let on = turn(sides.with, Some(key), model, time);
        pairs.push(if pair % 2 == 0 {
            let off = off.await?;
            [off, on.await?]
        } else {
            let on = on.await?;
            [off.await?, on]
        });
    }
    Ok(pairs)
}

async fn turn(gateway: &Gateway, key: Option<&str>, model: &str, time: Duration) -> Result<Turn> {
    let body = json!({
        "model": model, "stream": true,
        "messages": [{"role": "user", "content": "Tell me a story."}],
    });
    let outcome = load::run(Plan {
        address: gateway.address,
        requests: vec![Ask::chat(key, "", &body).bytes().to_vec()],
        dialect: Dialect::Sse,
        method: Method::Chat,
        streams: STREAMS,
        slow_streams: 0,
        slow_rate: 0,
        threads: 1,
        until: Until::Elapsed(time),
        warm_up: WARM_UP,
        expected_gap: None,
        pid: Some(gateway.pid()),
    })
    .await?;
    let Outcome { stats, .. } = &outcome;
    ensure!(
        stats.errors.is_empty(),
        "streams failed: {:?}",
        stats.errors
    );
    ensure!(stats.tokens > 0, "no token came");
    let tokens = float(stats.tokens);
    let cpu = outcome.server.map_or(Duration::ZERO, |[_, begin, end]| {
        end.cpu.saturating_sub(begin.cpu)
    });
    Ok(Turn {
        rate: tokens / outcome.elapsed.as_secs_f64(),
        cpu: cpu.as_secs_f64() * 1e6 / tokens,
    })
}

fn middle(pairs: &[[Turn; 2]], of: impl Fn([Turn; 2]) -> f64) -> Result<f64> {
    let values: Vec<f64> = pairs.iter().map(|pair| of(*pair)).collect();
    median(&values).ok_or_else(|| anyhow::anyhow!("no pair of turns"))
}
