//! The figures of a run, for people and as JSON.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::histogram::Histogram;
use crate::load::{Outcome, Plan, Until};
use crate::process::Reading;

const PERCENTILES: [(&str, f64); 3] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)];

/// The figures as a table.
pub(crate) fn text(plan: &Plan, outcome: &Outcome) -> String {
    let stats = &outcome.stats;
    let mut out = String::new();
    let seconds = outcome.elapsed.as_secs_f64();
    let _ = write!(
        out,
        "{} streams, {:.1} s measured\nanswers  {} finished, {} failed",
        plan.streams,
        seconds,
        stats.finished,
        errors(outcome)
    );
    if let Until::Held(_) = plan.until {
        let _ = write!(out, ", {} open when measuring began", outcome.open);
    }
    let _ = write!(
        out,
        "\ntokens   {} events, {:.0} events/s, {:.1} MB/s\n\n",
        stats.tokens,
        rate(stats.tokens, outcome.elapsed),
        rate(stats.bytes, outcome.elapsed) / 1e6,
    );
    let _ = writeln!(
        out,
        "{:<14}{:>12}{:>12}{:>12}{:>12}{:>12}",
        "milliseconds", "p50", "p90", "p99", "max", "samples"
    );
    for (name, histogram) in rows(outcome) {
        if histogram.count() == 0 {
            continue;
        }
        let _ = write!(out, "{:<14}", name.replace('_', " "));
        for (_, share) in PERCENTILES {
            let _ = write!(out, "{:>12.3}", millis(histogram.percentile(share)));
        }
        let _ = writeln!(
            out,
            "{:>12.3}{:>12}",
            millis(histogram.max()),
            histogram.count()
        );
    }
    if let Some(server) = &outcome.server {
        let [before, begin, end] = server.map(|reading| reading.rss_kib);
        let _ = write!(
            out,
            "\nserver     {:.2} CPU µs/token ({:.0} % of a core), {before} KiB resident before, {begin} when measuring began, {end} at its end",
            per_token(outcome, cpu(server[1], server[2])),
            share_of_core(outcome, cpu(server[1], server[2])),
        );
        if let Some(each) = per_stream(plan, outcome) {
            let _ = write!(out, ", {each:.1} KiB per open stream");
        }
    }
    let own = cpu(outcome.own[0], outcome.own[1]);
    let _ = writeln!(
        out,
        "\ngenerator  {:.2} CPU µs/token ({:.0} % of a core)",
        per_token(outcome, own),
        share_of_core(outcome, own),
    );
    if plan.slow_streams > 0 {
        let _ = writeln!(
            out,
            "slow       {} readers: {} tokens read, {} answers finished, {} cut off",
            plan.slow_streams, stats.slow.tokens, stats.slow.finished, stats.slow.cut
        );
    }
    for (kind, count) in &stats.errors {
        let _ = writeln!(out, "failed     {count} × {kind}");
    }
    out
}

/// The figures as JSON. Times are in milliseconds.
pub(crate) fn json(plan: &Plan, outcome: &Outcome, command: &[String]) -> Value {
    let stats = &outcome.stats;
    let times: serde_json::Map<String, Value> = rows(outcome)
        .into_iter()
        .filter(|(_, histogram)| histogram.count() > 0)
        .map(|(name, histogram)| {
            let mut row = json!({"max": millis(histogram.max()), "samples": histogram.count()});
            for (name, share) in PERCENTILES {
                row[name] = json!(millis(histogram.percentile(share)));
            }
            (name.to_owned(), row)
        })
        .collect();
    json!({
        "command": command,
        "streams": plan.streams,
        "seconds": outcome.elapsed.as_secs_f64(),
        "finished": stats.finished,
        "open": outcome.open,
        "errors": stats.errors,
        "token_events": stats.tokens,
        "token_events_per_second": rate(stats.tokens, outcome.elapsed),
        "bytes": stats.bytes,
        "bytes_per_second": rate(stats.bytes, outcome.elapsed),
        "milliseconds": times,
        "slow_readers": {
            "streams": plan.slow_streams,
            "token_events": stats.slow.tokens,
            "finished": stats.slow.finished,
            "cut": stats.slow.cut,
        },
        "server": outcome.server.map(|[before, begin, end]| json!({
            "cpu_us_per_token": per_token(outcome, cpu(begin, end)),
            "cpu_percent_of_core": share_of_core(outcome, cpu(begin, end)),
            "rss_kib_before": before.rss_kib,
            "rss_kib_begin": begin.rss_kib,
            "rss_kib_end": end.rss_kib,
            "kib_per_open_stream": per_stream(plan, outcome),
        })),
        "generator": {
            "cpu_us_per_token": per_token(outcome, cpu(outcome.own[0], outcome.own[1])),
            "cpu_percent_of_core": share_of_core(outcome, cpu(outcome.own[0], outcome.own[1])),
        },
    })
}

/// Failed requests of all kinds.
pub(crate) fn errors(outcome: &Outcome) -> u64 {
    outcome.stats.errors.values().sum()
}

fn rows(outcome: &Outcome) -> [(&'static str, &Histogram); 4] {
    let stats = &outcome.stats;
    [
        ("first_token", &stats.first_token),
        ("inter_token", &stats.gap),
        ("gap_error", &stats.gap_error),
        ("total", &stats.total),
    ]
}

fn cpu(begin: Reading, end: Reading) -> Duration {
    end.cpu.saturating_sub(begin.cpu)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "durations stay far below 2^53 µs"
)]
fn millis(duration: Duration) -> f64 {
    // Whole microseconds first, so that no digits appear that were not measured.
    duration.as_micros() as f64 / 1e3
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn rate(count: u64, elapsed: Duration) -> f64 {
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.0 {
        count as f64 / seconds
    } else {
        0.0
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn per_token(outcome: &Outcome, cpu: Duration) -> f64 {
    let tokens = outcome.stats.tokens.max(1);
    cpu.as_secs_f64() * 1e6 / tokens as f64
}

fn share_of_core(outcome: &Outcome, cpu: Duration) -> f64 {
    let elapsed = outcome.elapsed.as_secs_f64();
    if elapsed > 0.0 {
        cpu.as_secs_f64() * 100.0 / elapsed
    } else {
        0.0
    }
}

/// Memory that each open stream added to the server, in KiB, where streams were held open.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn per_stream(plan: &Plan, outcome: &Outcome) -> Option<f64> {
    let [before, _, end] = outcome.server?;
    let held = matches!(plan.until, Until::Held(_)) && outcome.open > 0;
    let added = end.rss_kib as f64 - before.rss_kib as f64;
    held.then(|| added / outcome.open as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::count::{Dialect, Method};
    use crate::stats::Stats;

    #[test]
    fn the_figures_are_the_same_in_both_forms() {
        let plan = Plan {
            address: ([127, 0, 0, 1], 1).into(),
            requests: Vec::new(),
            dialect: Dialect::Sse,
            method: Method::Chat,
            streams: 10,
            slow_streams: 0,
            slow_rate: 0,
            threads: 1,
            until: Until::Held(Duration::from_secs(2)),
            warm_up: Duration::ZERO,
            expected_gap: None,
            pid: None,
        };
        let reading = |cpu, rss_kib| Reading {
            cpu: Duration::from_millis(cpu),
            rss_kib,
        };
        let mut stats = Stats {
            tokens: 1000,
            bytes: 4_000_000,
            ..Stats::default()
        };
        stats.gap.record(Duration::from_millis(50), 1000);
        stats.errors.insert("connect: refused".to_owned(), 2);
        let outcome = Outcome {
            stats,
            elapsed: Duration::from_secs(2),
            open: 8,
            server: Some([reading(0, 100), reading(10, 300), reading(210, 420)]),
            own: [reading(0, 0), reading(100, 0)],
        };
        let json = json(&plan, &outcome, &[]);
        assert_eq!(json["token_events_per_second"], 500.0);
        assert_eq!(json["milliseconds"]["inter_token"]["p99"], 50.0);
        assert_eq!(json["milliseconds"].get("gap_error"), None);
        assert_eq!(json["server"]["cpu_us_per_token"], 200.0);
        assert_eq!(json["server"]["kib_per_open_stream"], 40.0);
        assert_eq!(json["generator"]["cpu_percent_of_core"], 5.0);
        let text = text(&plan, &outcome);
        for part in [
            "1000 events, 500 events/s, 2.0 MB/s",
            "2 failed, 8 open",
            "40.0 KiB per open stream",
            "200.00 CPU µs/token (10 % of a core)",
            "2 × connect: refused",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
