//! Figures of what callers saw, by phase, load and transport.

use crate::histogram::Histogram;
use crate::metrics;
use crate::net::Transport;
use crate::numbers::{float, ms};
use crate::table::{Figure, figure};

use super::phase::Outcome;
use super::tally::Tally;

/// The generator's share of a core above which its own times are in doubt.
const BUSY: f64 = 90.0;

/// How late requests may be sent before that is told.
const LATE_MS: f64 = 5.0;

/// Figures that tables show, of all callers and of those that are told apart; the file of results has all.
pub(super) const SHOWN: [&str; 19] = [
    "first token p50",
    "first token p95",
    "first token p99",
    "gap p50",
    "gap p95",
    "gap p99",
    "total p50",
    "total p99",
    "tokens",
    "answers",
    "errors",
    "truncated",
    "refused",
    "server CPU per token",
    "resident",
    "healthz p99",
    "scrape p99",
    "generator CPU",
    "sent late p99",
];

/// What some callers saw.
pub(super) struct Scope {
    /// Phase, load or transport, as objectives name it; empty for all callers of the only phase.
    pub(super) name: String,
    /// What they saw.
    pub(super) tally: Tally,
}

/// What callers saw: all together first, then by load and by transport where there are several.
pub(super) fn scopes(outcome: &Outcome) -> Vec<Scope> {
    let name = |part: &str| match (outcome.name.as_str(), part) {
        (phase, "") => phase.to_owned(),
        ("", part) => part.to_owned(),
        (phase, part) => format!("{phase}/{part}"),
    };
    let mut whole = Tally::default();
    let mut parts = Vec::new();
    let mut by_transport: Vec<(Transport, Tally)> = Vec::new();
    for seen in &outcome.loads {
        let mut sum = Tally::default();
        for (transport, tally) in &seen.tallies {
            sum.merge(tally);
            if !seen.counts {
                continue;
            }
            match by_transport.iter_mut().find(|(one, _)| one == transport) {
                Some((_, all)) => all.merge(tally),
                None => by_transport.push((*transport, tally.clone())),
            }
        }
        if seen.counts {
            whole.merge(&sum);
        }
        parts.push((seen.load.as_str(), sum));
    }
    let mut scopes = vec![Scope {
        name: name(""),
        tally: whole,
    }];
    if parts.len() > 1 {
        scopes.extend(parts.into_iter().map(|(load, tally)| Scope {
            name: name(load),
            tally,
        }));
    }
    if by_transport.len() > 1 {
        scopes.extend(by_transport.into_iter().map(|(transport, tally)| Scope {
            name: name(transport.name()),
            tally,
        }));
    }
    scopes
}

/// The figures of a phase, and what is to be known of them.
pub(super) fn figures(scopes: &[Scope], outcome: &Outcome) -> (Vec<Figure>, Vec<String>) {
    let mut figures = Vec::new();
    for scope in scopes {
        let seconds = outcome.spell.as_secs_f64();
        figures.extend(of_tally(&scope.name, &scope.tally, seconds));
    }
    let Some(whole) = scopes.first() else {
        return (figures, Vec::new());
    };
    let mut add = |what: &str, unit, value| {
        figures.push(figure(titled(&whole.name, what), unit, value));
    };
    if let Some([begin, end]) = outcome.server {
        let cpu = end.cpu.saturating_sub(begin.cpu).as_secs_f64();
        // Readers who do not count are served as well.
        let tallies = outcome.loads.iter().flat_map(|seen| &seen.tallies);
        let tokens: u64 = tallies.map(|(_, tally)| tally.tokens).sum();
        if tokens > 0 {
            add("server CPU per token", "us", 1e6 * cpu / float(tokens));
        }
        add("resident", "MiB", float(end.rss_kib) / 1024.0);
    }
    for (what, probe) in [("healthz", &outcome.healthz), ("scrape", &outcome.scrapes)] {
        if let Some(times) = probe {
            add(&format!("{what} p99"), "ms", ms(times.percentile(0.99)));
            add(&format!("{what} max"), "ms", ms(times.max()));
        }
    }
    if let Some(([_, end], _)) = &outcome.metrics {
        add("series", "", float(metrics::series(end)));
    }
    let [begin, end] = outcome.own;
    let own = end.cpu.saturating_sub(begin.cpu).as_secs_f64() / outcome.spell.as_secs_f64();
    add("generator CPU", "%", 100.0 * own);
    let late = ms(whole.tally.late.percentile(0.99));
    if whole.tally.late.count() > 0 {
        add("sent late p99", "ms", late);
    }
    (figures, notes(&whole.name, 100.0 * own, late))
}

/// What makes figures doubtful.
fn notes(phase: &str, own: f64, late: f64) -> Vec<String> {
    let mut notes = Vec::new();
    if own >= BUSY {
        let what = "the generator used all of the one core that it can use: its times are in doubt";
        notes.push(titled(phase, what));
    }
    if late > LATE_MS {
        let what = "requests were sent late (see there): times count from when they were due";
        notes.push(titled(phase, what));
    }
    notes
}

fn of_tally(name: &str, tally: &Tally, seconds: f64) -> Vec<Figure> {
    let mut figures = Vec::new();
    let mut add = |what: &str, unit, value| figures.push(figure(titled(name, what), unit, value));
    for (what, times) in times(tally) {
        if times.count() > 0 {
            for (share, of) in [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)] {
                add(&format!("{what} {share}"), "ms", ms(times.percentile(of)));
            }
            add(&format!("{what} max"), "ms", ms(times.max()));
        }
    }
    let requests = float(tally.due.max(1));
    let share = |count: u64| 100.0 * float(count) / requests;
    add("tokens", "/s", float(tally.tokens) / seconds);
    add("answers", "/s", float(tally.finished) / seconds);
    add("errors", "%", share(tally.errors));
    add("truncated", "%", share(tally.truncated));
    add("refused", "%", share(tally.refused));
    figures
}

/// The times that callers saw.
pub(super) fn times(tally: &Tally) -> [(&'static str, &Histogram); 3] {
    [
        ("first token", &tally.first_token),
        ("gap", &tally.gap),
        ("total", &tally.total),
    ]
}

/// A figure's name with whose it is.
pub(super) fn titled(scope: &str, what: &str) -> String {
    if scope.is_empty() {
        what.to_owned()
    } else {
        format!("{scope}: {what}")
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::phase::Seen;
    use super::super::tally::{Timeline, Window};
    use super::*;
    use crate::process::Reading;

    fn tally(tokens: u64) -> Tally {
        let begin = Instant::now();
        let window = Window::default();
        window.set(begin, begin + Duration::from_secs(1));
        let mut tally = Tally::default();
        let mut timeline = Timeline::new(begin, true);
        tally.read(
            &window,
            &mut timeline,
            begin + Duration::from_millis(5),
            tokens,
        );
        tally.ended(&timeline, begin + Duration::from_millis(9), Ok(()));
        tally
    }

    fn outcome(name: &str) -> Outcome {
        let reading = |ms| Reading {
            cpu: Duration::from_millis(ms),
            rss_kib: 1024,
        };
        Outcome {
            name: name.to_owned(),
            loads: vec![
                Seen {
                    load: "a".to_owned(),
                    counts: true,
                    tallies: vec![(Transport::Http1, tally(2)), (Transport::Http3, tally(3))],
                },
                Seen {
                    load: "b".to_owned(),
                    counts: false,
                    tallies: vec![(Transport::Http1, tally(5))],
                },
            ],
            spell: Duration::from_secs(2),
            server: Some([reading(0), reading(100)]),
            own: [reading(0), reading(1_900)],
            metrics: Some((
                [String::new(), "# x\na 1\nb{c=\"d\"} 2\n".to_owned()],
                Duration::from_secs(1),
            )),
            scrapes: None,
            healthz: None,
        }
    }

    #[test]
    fn callers_are_told_together_by_load_and_by_transport() {
        let outcome = outcome("beside");
        let scopes = scopes(&outcome);
        let names: Vec<(&str, u64)> = scopes
            .iter()
            .map(|scope| (scope.name.as_str(), scope.tally.tokens))
            .collect();
        let expected = [
            ("beside", 5),
            ("beside/a", 5),
            ("beside/b", 5),
            ("beside/h1", 2),
            ("beside/h3", 3),
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn figures_have_their_scope_in_their_names_and_doubts_are_told() {
        let outcome = outcome("");
        let (figures, notes) = figures(&scopes(&outcome), &outcome);
        let value = |name: &str| {
            figures
                .iter()
                .find(|figure| figure.name == name)
                .unwrap()
                .value
        };
        let near = |name: &str, expected: f64| {
            assert!(
                (value(name) - expected).abs() < 0.1,
                "{name}: {}",
                value(name)
            );
        };
        near("tokens", 2.5);
        near("h3: tokens", 1.5);
        near("first token p99", 5.0);
        near("total max", 9.0);
        near("server CPU per token", 10_000.0);
        near("series", 2.0);
        near("errors", 0.0);
        near("generator CPU", 95.0);
        assert!(
            notes.len() == 1 && notes[0].contains("in doubt"),
            "{notes:?}"
        );
    }
}
