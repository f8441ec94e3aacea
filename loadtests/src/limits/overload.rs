//! More arrivals than the machine can serve: what is still served in time, and how soon all is well again.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::time::sleep;

use super::callers::{Callers, Next, Tally};
use super::client::{Answer, Ask};
use super::scenario::Bench;
use crate::engine::text::Texts;
use crate::gateway::Setup;
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

/// How long callers wait for the end of an answer. As much may wait when the load falls, and is worked off with the
/// fifth of the capacity that is then left over.
const DEADLINE: Duration = Duration::from_secs(1);

/// Load before a phase counts.
const WARM_UP: Duration = Duration::from_secs(1);

/// Load before the first phase: meanwhile the engine finds out how many threads are best.
const FIRST: Duration = Duration::from_secs(4);

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

    // More streams than places, so that none is ever free.
    let saturate = async |seed: u64, warm_up: Duration| {
        let next = stories(&keys, seed);
        let callers = Callers::closed(address, PARALLEL * 2, Duration::ZERO, next);
        sleep(warm_up).await;
        let tally = callers.during(bench.time / 10).await;
        callers.finish().await;
        tally
    };
    let tally = saturate(seed, FIRST).await;
    let capacity = float(tally.with(200)) / (bench.time / 10).as_secs_f64();
    ensure!(
        capacity > 0.0,
        "nothing was served: {:?}",
        tally.faults(&[])
    );
    let peak = goodput(&tally, bench.time / 10);

    let callers = open(0.8 * capacity, seed + 1);
    sleep(WARM_UP).await;
    let before = callers.during(bench.time / 8).await;
    callers.finish().await;

    let flood = open(2.0 * capacity, seed + 2);
    sleep(WARM_UP).await;
    let over = flood.during(bench.time / 4).await;
    // Arrivals fall; what waits is still there.
    flood.cease();
    let fall = Instant::now();
    let callers = open(0.8 * capacity, seed + 3);
    let after = callers.during(bench.time * 9 / 20).await;
    let backlog = flood.finish().await;
    callers.finish().await;
    let tally = saturate(seed + 4, WARM_UP).await;
    gateway.stop().await;

    // The machine's speed changes: what it could do is what it did at its best.
    let peak = peak.max(goodput(&tally, bench.time / 10));
    let goodput = goodput(&over, bench.time / 4);
    let mut figures = vec![
        figure("capacity", "answers/s", capacity),
        figure("goodput at capacity", "tokens/s", peak),
        figure("goodput at twice that", "tokens/s", goodput),
        figure("of peak goodput", "%", 100.0 * goodput / peak),
    ];
    figures.extend(times(&before, &over, &after, fall));
    let mut all = before;
    for tally in [over, backlog, after] {
        all.add(tally);
    }
    figures.extend(refusals(&all.answers)?);
    Ok(figures)
}

/// Times before, at and after twice the capacity.
fn times(before: &Tally, over: &Tally, after: &Tally, fall: Instant) -> Vec<Figure> {
    let (median, slow) = (before.first(0.5), before.first(0.99));
    let slow_over = over.first(0.99);
    vec![
        figure("first token p50, 0.8", "ms", ms(median)),
        figure("first token p99, 0.8", "ms", ms(slow)),
        figure("first token p99 of the admitted, 2", "ms", ms(slow_over)),
        figure(
            "of the deadline",
            "%",
            100.0 * slow_over.as_secs_f64() / DEADLINE.as_secs_f64(),
        ),
        figure("first token p50, 0.8 again", "ms", ms(after.first(0.5))),
        figure(
            "back after",
            "s",
            recovery(&after.answers, fall, slow.max(median * 2)),
        ),
    ]
}

/// What became of those who could not be served in time.
fn refusals(answers: &[Answer]) -> Result<Vec<Figure>> {
    let count = |of: &dyn Fn(&Answer) -> bool| {
        float(answers.iter().filter(|answer| of(answer)).count() as u64)
    };
    let strange = answers
        .iter()
        .find(|answer| !is_refusal(answer) && !matches!(answer.status, 200 | 504));
    ensure!(strange.is_none(), "{strange:?}");
    let late = count(&|answer| !is_refusal(answer) && !answer.is_whole);
    let admitted = count(&|answer| !is_refusal(answer));
    let refused = answers.iter().filter(|answer| is_refusal(answer));
    Ok(vec![
        figure(
            "admitted but not finished",
            "%",
            100.0 * late / admitted.max(1.0),
        ),
        figure("refusals", "", count(&is_refusal)),
        figure(
            "refusals without Retry-After",
            "",
            count(&|answer| is_refusal(answer) && !answer.has_retry_after),
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
    matches!(answer.status, 429 | 503)
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
