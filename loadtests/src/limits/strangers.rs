//! Keys that nobody knows: what a flood of them costs and leaves behind.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::callers::{Callers, Tally};
use super::client::{Ask, Connection};
use super::scenario::Bench;
use crate::gateway::{Gateway, Setup};
use crate::keys;
use crate::numbers::{float, ms};
use crate::random::Random;
use crate::table::{Figure, figure};

/// Keys that are tried before anything counts, so that buffers and pools have their size.
const BEFORE: usize = 20_000;

/// Keys that are tried.
const KEYS: usize = 100_000;

/// Connections that ask without a pause.
const CONNECTIONS: usize = 8;

/// How often it is looked whether all were tried.
const LOOK: Duration = Duration::from_millis(20);

/// The accounts that limits have in memory.
const ACCOUNTS: &str = "sluicegate_limit_accounts";

/// Measures. Needs a `LocalSet`.
///
/// # Errors
/// The gateway does not start, or answers otherwise.
pub(super) async fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let mut setup =
        Setup::scripted().with("[limits.classes.default]\nrequests_per_minute = 60000000\n");
    let known = setup.key("known", None);
    let gateway = bench.program.start(&setup, "gateway").await?;
    let body = json!({
        "model": "scripted?tokens=1",
        "messages": [{"role": "user", "content": "Tell me a story."}],
    });
    let good = Ask::chat(Some(&known), "", &body);
    let mut friend = Connection::new(gateway.address);
    let greeted = friend.ask(&good, &mut |_| {}).await;
    ensure!(greeted.is_whole, "the known key: {:?}", greeted.fault);
    let mut random = Random::new(bench.round);
    tries(&gateway, &mut random, &body, BEFORE).await;
    let (before, accounts) = (gateway.reading()?, gateway.metric(ACCOUNTS, &[]).await?);
    let tally = tries(&gateway, &mut random, &body, KEYS).await;
    let (after, more_accounts) = (gateway.reading()?, gateway.metric(ACCOUNTS, &[]).await?);
    let faults = tally.faults(&[401]);
    ensure!(faults.is_empty(), "not always 401: {faults:?}");
    let greeted = friend.ask(&good, &mut |_| {}).await;
    ensure!(greeted.is_whole, "the known key: {:?}", greeted.fault);
    gateway.stop().await;
    let count = tally.answers.len() as u64;
    let cpu = after.cpu.saturating_sub(before.cpu);
    let gained = float(after.rss_kib) - float(before.rss_kib);
    Ok(vec![
        figure("keys tried", "", float(count)),
        figure("resident memory gained", "KiB", gained),
        figure("accounts gained", "", more_accounts - accounts),
        figure(
            "CPU, unknown key",
            "us",
            cpu.as_secs_f64() * 1e6 / float(count),
        ),
        figure("p99, unknown key", "us", ms(tally.total(401, 0.99)) * 1e3),
    ])
}

/// Tries so many keys, and a few more: every connection ends with the one it is at.
async fn tries(gateway: &Gateway, random: &mut Random, body: &Value, keys: usize) -> Tally {
    let (mut numbers, body) = (Random::new(random.bits()), body.clone());
    let callers = Callers::closed(gateway.address, CONNECTIONS, Duration::ZERO, move || {
        Ask::chat(Some(&keys::mint(&mut numbers)), "", &body)
    });
    let mut tally = Tally::default();
    while tally.answers.len() < keys {
        sleep(LOOK).await;
        tally.add(callers.take());
    }
    tally
}
