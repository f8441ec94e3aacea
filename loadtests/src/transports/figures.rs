//! Figures from what came of runs.

use std::time::Duration;

use super::load::Outcome;
use crate::numbers::{float, ms};
use crate::table::{Figure, figure};

/// Tokens a second.
pub(super) fn rate(outcome: &Outcome) -> Figure {
    let seconds = outcome.elapsed.as_secs_f64();
    figure("token events", "/s", float(outcome.stats.tokens) / seconds)
}

/// What a token costs on both sides and on the wire.
pub(super) fn costs(outcome: &Outcome) -> Vec<Figure> {
    let tokens = outcome.stats.tokens;
    let cpu = |time: Duration| time.as_secs_f64() * 1e6 / float(tokens);
    let mut figures = vec![
        figure("server CPU per token", "us", cpu(outcome.server_cpu)),
        figure("generator CPU per token", "us", cpu(outcome.own_cpu)),
        figure("bytes down per token", "B", per(outcome.wire.down, tokens)),
        figure("bytes up per token", "B", per(outcome.wire.up, tokens)),
    ];
    if outcome.wire.datagrams_down > 0 {
        let datagrams = per(outcome.wire.datagrams_down, tokens);
        figures.push(figure("datagrams down per token", "", datagrams));
    }
    figures
}

/// What the gateway gained from before the first connection, by stream.
pub(super) fn per_stream(outcome: &Outcome) -> Figure {
    let [before, _, end] = outcome.server;
    let gained = end.process.saturating_sub(before.process);
    let each = float(gained) / float(outcome.open as u64);
    figure("resident per open stream", "KiB", each)
}

/// Where memory is at the end.
pub(super) fn memory(outcome: &Outcome) -> Vec<Figure> {
    let [before, _, end] = outcome.server;
    let sockets = end.sockets.saturating_sub(before.sockets);
    let share = outcome.server_cpu.as_secs_f64() / outcome.elapsed.as_secs_f64();
    vec![
        figure("resident", "MiB", float(end.process) / 1024.0),
        figure("sockets, both ends", "MiB", float(sockets) / 1024.0),
        total_memory(outcome),
        per_stream(outcome),
        figure("server CPU", "% of a core", 100.0 * share),
    ]
}

/// Resident memory of the whole process, and what sockets of both ends have gained.
pub(super) fn total_memory(outcome: &Outcome) -> Figure {
    let [before, _, end] = outcome.server;
    let sockets = end.sockets.saturating_sub(before.sockets);
    figure(
        "memory in all",
        "MiB",
        float(end.process + sockets) / 1024.0,
    )
}

/// The longest time between two tokens of a stream.
pub(super) fn longest_gap(outcome: &Outcome) -> Figure {
    figure("longest gap", "ms", ms(outcome.stats.gap.max()))
}

/// The same streams without and with others.
pub(super) fn growth(alone: &Outcome, beside: &Outcome) -> Vec<Figure> {
    let p99 = |outcome: &Outcome| outcome.stats.gap.percentile(0.99).as_secs_f64();
    vec![
        gap("p99 gap, alone", alone, 0.99),
        gap("p99 gap, beside", beside, 0.99),
        figure("growth", "%", 100.0 * (p99(beside) / p99(alone) - 1.0)),
    ]
}

/// The time between tokens that so many do not exceed.
pub(super) fn gap(name: &'static str, outcome: &Outcome, share: f64) -> Figure {
    figure(name, "ms", ms(outcome.stats.gap.percentile(share)))
}

/// For each token.
pub(super) fn per(count: u64, tokens: u64) -> f64 {
    float(count) / float(tokens)
}

/// A share of a hundred.
pub(super) fn percent(part: u64, whole: u64) -> f64 {
    100.0 * per(part, whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Stats;
    use crate::transports::load::{Memory, Wire};

    fn outcome() -> Outcome {
        let at = |process, sockets| Memory { process, sockets };
        Outcome {
            stats: Stats {
                tokens: 1000,
                ..Stats::default()
            },
            elapsed: Duration::from_secs(2),
            open: 10,
            heard: 10,
            server: [at(1024, 100), at(2048, 200), at(3072, 1124)],
            server_cpu: Duration::from_millis(20),
            own_cpu: Duration::from_millis(10),
            wire: Wire {
                down: 5000,
                up: 100,
                datagrams_down: 500,
                datagrams_up: 250,
            },
            late: Vec::new(),
        }
    }

    fn value(figures: &[Figure], name: &str) -> f64 {
        figures
            .iter()
            .find(|figure| figure.name == name)
            .map(|figure| figure.value)
            .unwrap()
    }

    #[test]
    fn costs_are_told_per_token() {
        let costs = costs(&outcome());
        for (name, expected) in [
            ("server CPU per token", 20.0),
            ("generator CPU per token", 10.0),
            ("bytes down per token", 5.0),
            ("bytes up per token", 0.1),
            ("datagrams down per token", 0.5),
        ] {
            assert!((value(&costs, name) - expected).abs() < 1e-9, "{name}");
        }
        assert!((rate(&outcome()).value - 500.0).abs() < 1e-9);
    }

    #[test]
    fn memory_is_what_was_gained_but_for_the_whole_process() {
        let memory = memory(&outcome());
        for (name, expected) in [
            ("resident", 3.0),
            ("sockets, both ends", 1.0),
            ("memory in all", 4.0),
            ("resident per open stream", 204.8),
            ("server CPU", 1.0),
        ] {
            assert!((value(&memory, name) - expected).abs() < 1e-9, "{name}");
        }
    }

    #[test]
    fn growth_is_of_the_99th_percentile() {
        let with = |ms| {
            let mut outcome = outcome();
            outcome.stats.gap.record(Duration::from_millis(ms), 100);
            outcome
        };
        let growth = growth(&with(10), &with(11));
        assert!((value(&growth, "growth") - 10.0).abs() < 1.5);
    }
}
