//! More arrivals than the machine can serve: what is still served in time, and how soon all is well again.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::time::sleep;

use super::callers::{Callers, Next, Tally};
use super::client::{Answer, Ask};
use super::gateway::Setup;
use super::scenario::Bench;
use crate::engine::text::Texts;
use crate::numbers::{float, ms, percentile};
use crate::random::Random;
use crate::table::{Figure, figure};

/// Sequences at once.
const PARALLEL: usize = 8;

/// Places in the waiting line: more than can be served in time.
const WAITING: usize = 512;

/// Callers that requests are from, in turn.
const CALLERS: usize = 8;

/// Tokens of an answer.
const TOKENS: u32 = 32;

/// How long callers wait for the end of an answer.
const DEADLINE: Duration = Duration::from_secs(2);

/// Load before a phase counts.
const WARM_UP: Duration = Duration::from_secs(1);

/// Answers are looked at by the time of their request, in such bins.
const BIN: Duration = Duration::from_millis(500);

/// As many bins in a row must be well.
const CALM: usize = 3;

/// Measures. Needs a `LocalSet`.
///
/// # Errors
/// The gateway does not start, or answers neither with tokens nor with a refusal.
pub(super) async fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let mut setup = Setup::demo(PARALLEL, WAITING);
    let keys: Vec<String> = (0..CALLERS)
        .map(|caller| setup.key(&format!("caller-{caller}"), None))
        .collect();
    let gateway = bench.program.start(&setup, "gateway").await?;
    let address = gateway.address;
    let seed = bench.round * 100;
    let open = |rate: f64, seed: u64| {
        Callers::open(address, rate, Random::new(seed), stories(&keys, seed))
    };

    // The capacity: more streams than places, so that none is ever free.
    let callers = Callers::closed(address, PARALLEL * 2, Duration::ZERO, stories(&keys, seed));
    sleep(WARM_UP).await;
    let time = bench.time / 6;
    let peak = callers.during(time).await;
    callers.finish().await;
    let capacity = float(peak.with(200)) / time.as_secs_f64();
    ensure!(capacity > 0.0, "nothing was served: {:?}", peak.faults(&[]));
    let peak = goodput(&peak, time);

    let callers = open(0.8 * capacity, seed + 1);
    sleep(WARM_UP).await;
    let before = callers.during(bench.time / 6).await;
    callers.finish().await;

    let flood = open(2.0 * capacity, seed + 2);
    sleep(WARM_UP).await;
    let time = bench.time / 4;
    let over = flood.during(time).await;
    // Arrivals fall; what waits is still there.
    flood.cease();
    let fall = Instant::now();
    let callers = open(0.8 * capacity, seed + 3);
    let after = callers.during(bench.time * 5 / 12).await;
    let backlog = flood.finish().await;
    callers.finish().await;
    gateway.stop().await;

    let mut all = Tally::default();
    let usual = before.first(0.99).max(before.first(0.5) * 2);
    let goodput_over = goodput(&over, time);
    let recovery = recovery(&after.answers, fall, usual);
    let at_80 = [before.first(0.5), before.first(0.99)];
    let first_over = over.first(0.99);
    let at_80_again = after.first(0.5);
    for tally in [before, over, backlog, after] {
        all.add(tally);
    }
    let refused = all.answers.iter().filter(|answer| is_refusal(answer));
    let expired = all.answers.iter().filter(|answer| answer.status == 504);
    let mute = refused.clone().filter(|answer| !answer.has_retry_after);
    let admitted = all.answers.iter().filter(|answer| answer.status == 200);
    let late = admitted.clone().filter(|answer| !answer.is_whole);
    let strange = all
        .answers
        .iter()
        .find(|answer| answer.status != 200 && !is_refusal(answer));
    ensure!(strange.is_none(), "{strange:?}");
    let percent =
        |part: usize, whole: usize| 100.0 * float(part as u64) / float(whole.max(1) as u64);
    Ok(vec![
        figure("capacity", "answers/s", capacity),
        figure("goodput at capacity", "tokens/s", peak),
        figure("goodput at twice that", "tokens/s", goodput_over),
        figure("of peak goodput", "%", 100.0 * goodput_over / peak),
        figure("first token p50, 0.8", "ms", ms(at_80[0])),
        figure("first token p99, 0.8", "ms", ms(at_80[1])),
        figure("first token p99 of the admitted, 2", "ms", ms(first_over)),
        figure(
            "of the deadline",
            "%",
            100.0 * first_over.as_secs_f64() / DEADLINE.as_secs_f64(),
        ),
        figure(
            "admitted but not finished",
            "%",
            percent(late.count(), admitted.count()),
        ),
        figure("back after", "s", recovery),
        figure("first token p50, 0.8 again", "ms", ms(at_80_again)),
        figure("refusals", "", float(refused.clone().count() as u64)),
        figure(
            "of them only after the deadline",
            "",
            float(expired.count() as u64),
        ),
        figure(
            "refusals without Retry-After",
            "",
            float(mute.count() as u64),
        ),
        figure("refused after, p99", "ms", ms(slowest(refused.collect()))),
    ])
}

/// Requests of all callers in turn, each with a text of its own.
fn stories(keys: &[String], seed: u64) -> impl Next {
    let (keys, mut texts, mut turn) = (keys.to_vec(), Texts::new(seed), 0);
    let line = format!("x-request-timeout: {}ms\r\n", DEADLINE.as_millis());
    move || {
        turn += 1;
        let body = json!({
            "model": "demo", "stream": true, "max_tokens": TOKENS, "ignore_eos": true,
            "messages": [{"role": "user", "content": texts.words(16)}],
        });
        Ask::chat(Some(&keys[turn % keys.len()]), &line, &body)
    }
}

fn is_refusal(answer: &Answer) -> bool {
    matches!(answer.status, 429 | 503 | 504)
}

/// Tokens a second of answers that came whole and in time.
fn goodput(tally: &Tally, time: Duration) -> f64 {
    let good = tally
        .answers
        .iter()
        .filter(|answer| answer.is_whole && answer.total <= DEADLINE);
    float(good.map(|answer| answer.tokens).sum()) / time.as_secs_f64()
}

/// How long refusals take.
fn slowest(refused: Vec<&Answer>) -> Duration {
    let mut times: Vec<Duration> = refused.into_iter().map(|answer| answer.total).collect();
    percentile(&mut times, 0.99)
}

/// Seconds from the fall of the load until nobody is refused and the median time to the first token is no more than
/// `usual`, for several bins of requests in a row; infinite where that was not seen.
fn recovery(answers: &[Answer], fall: Instant, usual: Duration) -> f64 {
    let mut bins: Vec<Vec<&Answer>> = Vec::new();
    for answer in answers {
        let bin = answer.sent.saturating_duration_since(fall).as_micros() / BIN.as_micros();
        let bin = usize::try_from(bin).unwrap_or(usize::MAX);
        if bins.len() <= bin {
            bins.resize(bin + 1, Vec::new());
        }
        bins[bin].push(answer);
    }
    let is_well = |bin: &Vec<&Answer>| {
        let mut first: Vec<Duration> = bin.iter().filter_map(|answer| answer.first).collect();
        !bin.is_empty()
            && bin.iter().all(|answer| answer.status == 200)
            && percentile(&mut first, 0.5) <= usual
    };
    let well: Vec<bool> = bins.iter().map(is_well).collect();
    let calm = well
        .windows(CALM)
        .position(|bins| bins.iter().all(|well| *well));
    calm.map_or(f64::INFINITY, |bin| float(bin as u64) * BIN.as_secs_f64())
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these are whole numbers or halves")]
mod tests {
    use super::*;

    fn answer(begin: Instant, sent: u64, status: u16, first: u64) -> Answer {
        Answer {
            status,
            sent: begin + Duration::from_millis(sent),
            first: (status == 200).then_some(Duration::from_millis(first)),
            total: Duration::from_millis(first * 2),
            tokens: 10,
            is_whole: status == 200,
            fault: None,
            has_retry_after: false,
            prompt: None,
        }
    }

    #[test]
    fn it_is_over_when_several_bins_in_a_row_are_well() {
        let begin = Instant::now();
        let usual = Duration::from_millis(20);
        let mut answers = vec![
            answer(begin, 100, 200, 500),
            answer(begin, 600, 200, 10),
            answer(begin, 1100, 503, 0),
            answer(begin, 1600, 200, 15),
            answer(begin, 2100, 200, 20),
        ];
        assert_eq!(recovery(&answers, begin, usual), f64::INFINITY);
        answers.push(answer(begin, 2600, 200, 5));
        assert_eq!(recovery(&answers, begin, usual), 1.5);
        assert_eq!(recovery(&[], begin, usual), f64::INFINITY);
    }

    #[test]
    fn only_what_is_whole_and_in_time_is_good() {
        let begin = Instant::now();
        let tally = Tally {
            answers: vec![
                answer(begin, 0, 200, 10),
                answer(begin, 0, 200, 1001),
                answer(begin, 0, 429, 10),
            ],
            ..Tally::default()
        };
        assert_eq!(goodput(&tally, Duration::from_secs(2)), 5.0);
    }
}
