//! How the engine is shared between callers who all ask for more than there is.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::time::sleep;

use super::callers::{Callers, Next};
use super::client::Ask;
use super::fairness::{farthest, jain};
use super::scenario::Bench;
use crate::engine::text::Texts;
use crate::gateway::Setup;
use crate::random::Random;
use crate::table::{Figure, figure};

/// Sequences at once.
const PARALLEL: usize = 8;

/// Streams of each caller: alone it could fill the batch.
const STREAMS: usize = 8;

/// Words of a prompt, on average.
const WORDS: usize = 24;

/// Load before anything counts.
const WARM_UP: Duration = Duration::from_secs(2);

/// Stories of so many tokens on average, that nobody has asked for before, so that no cache knows them; their
/// tokens are told.
pub(super) fn story(key: &str, tokens: u32, seed: u64) -> impl Next {
    let (key, mut texts) = (key.to_owned(), Texts::new(seed));
    let mut random = Random::new(seed);
    move || {
        // From half as much to half as much again: nobody should find the others in step with it.
        let half = random.one_of_64();
        let words = WORDS / 2 + WORDS * half / 64;
        let tokens = u64::from(tokens) / 2 + u64::from(tokens) * half as u64 / 64;
        let body = json!({
            "model": "demo", "stream": true, "stream_options": {"include_usage": true},
            "max_tokens": tokens, "ignore_eos": true,
            "messages": [{"role": "user", "content": texts.words(words)}],
        });
        Ask::chat(Some(&key), "", &body)
    }
}

/// Equal callers. Needs a `LocalSet`.
///
/// # Errors
/// The gateway does not start, or requests fail.
pub(super) async fn equal(bench: &Bench) -> Result<Vec<Figure>> {
    let (shares, rate) = shares(bench, &[1; 5]).await?;
    Ok(vec![
        figure("Jain's index", "", jain(&shares)),
        figure("farthest from a fifth", "%", farthest(&shares, &[1.0; 5])),
        figure("computed", "tokens/s", rate),
    ])
}

/// Callers of weights 1, 2 and 4. Needs a `LocalSet`.
///
/// # Errors
/// The gateway does not start, or requests fail.
pub(super) async fn weights(bench: &Bench) -> Result<Vec<Figure>> {
    let (shares, rate) = shares(bench, &[1, 2, 4]).await?;
    let to_first = |index: usize| shares[index] / shares[0];
    Ok(vec![
        figure("second to first", "", to_first(1)),
        figure("third to first", "", to_first(2)),
        figure(
            "farthest from its weight",
            "%",
            farthest(&shares, &[1.0, 2.0, 4.0]),
        ),
        figure("computed", "tokens/s", rate),
    ])
}

/// Tokens that were computed for a caller of each weight, and a second for all.
async fn shares(bench: &Bench, weights: &[u16]) -> Result<(Vec<f64>, f64)> {
    let mut setup = Setup::demo(PARALLEL, 256);
    let mut keys = Vec::new();
    for (index, weight) in weights.iter().enumerate() {
        let class = format!("weight-{weight}");
        setup = setup.with(&format!("[limits.classes.{class}]\nweight = {weight}\n"));
        keys.push(setup.key(&format!("caller-{index}"), Some(&class)));
    }
    let gateway = bench.program.start(&setup, "gateway").await?;
    let callers: Vec<Callers> = (0_u64..)
        .zip(&keys)
        .map(|(index, key)| {
            let next = story(key, 48, bench.round * 100 + index);
            Callers::closed(gateway.address, STREAMS, Duration::from_millis(5), next)
        })
        .collect();
    sleep(WARM_UP).await;
    for caller in &callers {
        caller.take();
    }
    let time = bench.time.saturating_sub(WARM_UP);
    sleep(time).await;
    let tallies: Vec<_> = callers.iter().map(Callers::take).collect();
    gateway.stop().await;
    for tally in &tallies {
        let faults = tally.faults(&[200]);
        ensure!(faults.is_empty(), "requests failed: {faults:?}");
        ensure!(!tally.answers.is_empty(), "somebody had no answer at all");
    }
    let computed: Vec<f64> = tallies
        .iter()
        .map(super::callers::Tally::computed)
        .collect();
    let rate = computed.iter().sum::<f64>() / time.as_secs_f64();
    Ok((computed, rate))
}
