//! One caller asks for ten times its share: what the others feel of it.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::sleep;

use super::callers::{Callers, Tally};
use super::fair::story;
use super::scenario::Bench;
use crate::gateway::{Gateway, Setup};
use crate::numbers::{float, ms};
use crate::table::{Figure, figure};

/// Sequences at once: a little less than all callers at their share ask for, so that somebody always waits and
/// what is compared is not an idle machine with a busy one.
const PARALLEL: usize = 16;

/// Who only asks for their share.
const OTHERS: usize = 4;

/// Streams of a caller at its share.
const SHARE: usize = 4;

/// How many times its share the fifth caller asks for.
const FLOOD: usize = 10;

/// Turns of each kind.
const TURNS: u32 = 3;

/// Load before each turn counts.
const WARM_UP: Duration = Duration::from_millis(500);

/// Time for the gateway to notice that all have left.
const PAUSE: Duration = Duration::from_millis(200);

/// Measures. Needs a `LocalSet`.
///
/// # Errors
/// The gateway does not start, or the others' requests fail.
pub(super) async fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let mut setup = Setup::demo(PARALLEL, 256);
    let keys: Vec<String> = (0..=OTHERS)
        .map(|caller| setup.key(&format!("caller-{caller}"), None))
        .collect();
    let gateway = bench.program.start(&setup, "gateway").await?;
    let time = bench.time / (TURNS * 5);
    let (mut silent, mut share, mut flood) = (Tally::default(), Tally::default(), Tally::default());
    let mut refused = 0;
    for turn in 0..TURNS {
        let seed = bench.round * 1000 + u64::from(turn) * 10;
        silent.add(spell(&gateway, &keys, 0, time, seed).await.0);
        share.add(spell(&gateway, &keys, SHARE, time * 2, seed + 1).await.0);
        let (others, flooder) = spell(&gateway, &keys, SHARE * FLOOD, time * 2, seed + 2).await;
        flood.add(others);
        refused += flooder.answers.len() as u64 - flooder.with(200);
    }
    gateway.stop().await;
    for tally in [&silent, &share, &flood] {
        let faults = tally.faults(&[200]);
        ensure!(faults.is_empty(), "the others' requests failed: {faults:?}");
    }
    let growth = |share_of: f64| {
        100.0 * (flood.first(share_of).as_secs_f64() / share.first(share_of).as_secs_f64() - 1.0)
    };
    Ok(vec![
        figure("first token p50, fifth silent", "ms", ms(silent.first(0.5))),
        figure(
            "first token p99, fifth silent",
            "ms",
            ms(silent.first(0.99)),
        ),
        figure("first token p50, at its share", "ms", ms(share.first(0.5))),
        figure("first token p99, at its share", "ms", ms(share.first(0.99))),
        figure("first token p50, flood", "ms", ms(flood.first(0.5))),
        figure("first token p99, flood", "ms", ms(flood.first(0.99))),
        figure("growth of p50", "%", growth(0.5)),
        figure("growth of p99", "%", growth(0.99)),
        figure(
            "the others' tokens, flood to share",
            "%",
            100.0 * float(flood.tokens) / float(share.tokens),
        ),
        figure("answers seen, flood", "", float(flood.answers.len() as u64)),
        figure("the fifth's refused", "", float(refused)),
    ])
}

/// Four at their share, and the fifth with so many streams: what came to the four, and to the fifth.
async fn spell(
    gateway: &Gateway,
    keys: &[String],
    fifth: usize,
    time: Duration,
    seed: u64,
) -> (Tally, Tally) {
    let pause = Duration::from_millis(5);
    let callers: Vec<Callers> = keys
        .iter()
        .enumerate()
        .map(|(index, key)| {
            let streams = if index == OTHERS { fifth } else { SHARE };
            let next = story(key, 32, seed * 100 + index as u64);
            Callers::closed(gateway.address, streams, pause, next)
        })
        .collect();
    sleep(WARM_UP).await;
    for caller in &callers {
        caller.take();
    }
    sleep(time).await;
    let mut others = Tally::default();
    let mut flooder = Tally::default();
    for (index, caller) in callers.iter().enumerate() {
        let tally = caller.take();
        if index == OTHERS {
            flooder = tally;
        } else {
            others.add(tally);
        }
    }
    drop(callers);
    sleep(PAUSE).await;
    (others, flooder)
}
