//! What came of all rounds: tables, verdicts, and a file that has everything.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::attribution::{self, Attribution};
use super::figures::{self, SHOWN, Scope};
use super::phase::Outcome;
use super::scenario::Scenario;
use super::slo::{Slo, Verdict, split};
use super::tally;
use crate::histogram::Histogram;
use crate::numbers::short;
use crate::table::{Figure, Line, Lines, markdown, verdict};

/// What came of one round.
#[derive(Default)]
pub(super) struct Part {
    /// Figures of all phases.
    pub(super) figures: Vec<Figure>,
    /// What makes them doubtful.
    pub(super) notes: Vec<String>,
    /// The phases.
    pub(super) phases: Vec<PhasePart>,
}

/// What came of a phase.
pub(super) struct PhasePart {
    /// Its name; empty for the only one.
    pub(super) name: String,
    /// The measured spell.
    pub(super) spell: Duration,
    /// What callers saw.
    pub(super) scopes: Vec<Scope>,
    /// Where time went, where that is told.
    pub(super) attribution: Option<Attribution>,
}

/// What came of everything.
pub(super) struct Report {
    only_ratios: bool,
    /// By scenario and server, in the order in which they came.
    pub(super) entries: Vec<Entry>,
}

/// All rounds of a scenario with a server.
pub(super) struct Entry {
    /// The scenario's name.
    pub(super) scenario: String,
    /// The server's.
    pub(super) subject: String,
    /// Figures of the rounds.
    pub(super) lines: Lines,
    /// What makes them doubtful.
    notes: Vec<String>,
    faults: Vec<String>,
    /// Of each round, in full.
    pub(super) rounds: Vec<Vec<PhasePart>>,
}

impl Part {
    /// Takes what came of a phase.
    pub(super) fn take(&mut self, outcome: Outcome) {
        let scopes = figures::scopes(&outcome);
        let (figures, notes) = figures::figures(&scopes, &outcome);
        self.figures.extend(figures);
        self.notes.extend(notes);
        let metrics = outcome.metrics.as_ref();
        self.phases.push(PhasePart {
            name: outcome.name,
            spell: outcome.spell,
            scopes,
            attribution: metrics
                .map(|(metrics, time)| attribution::read(metrics, time.as_secs_f64())),
        });
    }
}

impl Report {
    /// Nothing came yet.
    pub(super) fn new(only_ratios: bool) -> Self {
        Self {
            only_ratios,
            entries: Vec::new(),
        }
    }

    /// Takes a round.
    pub(super) fn add(&mut self, scenario: &Scenario, subject: &str, part: Result<Part>) {
        let known = |entry: &Entry| entry.scenario == scenario.name && entry.subject == subject;
        let at = self.entries.iter().position(known).unwrap_or_else(|| {
            self.entries.push(Entry {
                scenario: scenario.name.clone(),
                subject: subject.to_owned(),
                lines: Lines::default(),
                notes: Vec::new(),
                faults: Vec::new(),
                rounds: Vec::new(),
            });
            self.entries.len() - 1
        });
        let entry = &mut self.entries[at];
        match part {
            Ok(part) => {
                entry.lines.add(part.figures);
                entry.rounds.push(part.phases);
                entry.notes.extend(part.notes);
            }
            Err(fault) => entry.faults.push(format!("{fault:#}")),
        }
    }

    /// The verdicts on an entry.
    pub(super) fn verdicts(&self, scenario: &Scenario, entry: &Entry) -> Vec<Verdict> {
        let judge = |slo: &Slo| slo.judge(&entry.lines, self.only_ratios);
        scenario.slos.iter().map(judge).collect()
    }

    /// Whether all objectives that are judged were met, in every scenario.
    pub(super) fn is_good(&self, scenarios: &[Scenario]) -> bool {
        let is_good = |entry: &Entry| {
            entry.faults.is_empty()
                && scenario_of(scenarios, entry).is_some_and(|scenario| {
                    let verdicts = self.verdicts(scenario, entry);
                    verdicts.iter().all(|verdict| verdict.is_met != Some(false))
                })
        };
        !self.entries.is_empty() && self.entries.iter().all(is_good)
    }

    /// Rounds that failed.
    pub(super) fn faults(&self) -> Vec<String> {
        let entries = self.entries.iter();
        entries.flat_map(|entry| entry.faults.clone()).collect()
    }

    /// For each scenario a table of figures with a column for each server, and one of verdicts.
    pub(super) fn text(&self, scenarios: &[Scenario]) -> String {
        let mut out = String::new();
        for scenario in scenarios {
            let entries: Vec<&Entry> = self.of(scenario).collect();
            if entries.is_empty() {
                continue;
            }
            let _ = writeln!(out, "\n## {}\n\n{}\n", scenario.name, scenario.question);
            out.push_str(&markdown(&table(&entries)));
            out.push('\n');
            for entry in entries {
                let rows = self.verdicts(scenario, entry);
                out.push_str(&markdown(&verdicts(&entry.subject, &rows)));
                for row in rows.iter().filter(|row| row.is_met == Some(false)) {
                    let _ = writeln!(out, "MISSED: {}: {}", row.objective, row.why);
                }
                for line in entry.doubts() {
                    let _ = writeln!(out, "{}: {line}", entry.subject);
                }
            }
        }
        out
    }

    /// What came of a scenario, by server.
    pub(super) fn of<'a>(&'a self, scenario: &'a Scenario) -> impl Iterator<Item = &'a Entry> {
        let name = &scenario.name;
        self.entries
            .iter()
            .filter(move |entry| entry.scenario == *name)
    }

    /// Everything.
    pub(super) fn json(&self, scenarios: &[Scenario]) -> Value {
        let entry = |entry: &Entry| {
            let verdicts = scenario_of(scenarios, entry)
                .map(|scenario| self.verdicts(scenario, entry))
                .unwrap_or_default();
            json!({
                "scenario": entry.scenario,
                "server": entry.subject,
                "figures": entry.lines.json(),
                "verdicts": verdicts.iter().map(|verdict| json!({
                    "objective": verdict.objective,
                    "value": verdict.value,
                    "met": verdict.is_met,
                    "why": verdict.why,
                })).collect::<Value>(),
                "notes": entry.notes,
                "faults": entry.faults,
                "rounds": entry.rounds.iter().map(|phases| {
                    phases.iter().map(PhasePart::json).collect::<Value>()
                }).collect::<Value>(),
            })
        };
        json!({
            "format": 1,
            "command": std::env::args().collect::<Vec<_>>(),
            "machine": machine(),
            "only_ratios": self.only_ratios,
            "met": self.is_good(scenarios),
            "results": self.entries.iter().map(entry).collect::<Value>(),
        })
    }
}

fn scenario_of<'a>(scenarios: &'a [Scenario], entry: &Entry) -> Option<&'a Scenario> {
    scenarios
        .iter()
        .find(|scenario| scenario.name == entry.scenario)
}

impl Entry {
    /// What went wrong, and what to think of before trusting a figure; each once.
    pub(super) fn doubts(&self) -> Vec<String> {
        let mut doubts: Vec<String> = Vec::new();
        let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
        for phase in self.rounds.iter().flatten() {
            // Who is in a part is in the whole as well, but for loads that do not count.
            let mut most: BTreeMap<&str, u64> = BTreeMap::new();
            for (kind, count) in phase.scopes.iter().flat_map(|scope| &scope.tally.kinds) {
                let known = most.entry(kind).or_default();
                *known = count.max(known).to_owned();
            }
            for (kind, count) in most {
                *kinds.entry(kind).or_default() += count;
            }
        }
        let failures = kinds
            .iter()
            .map(|(kind, count)| format!("{kind} ({count} times)"));
        let faults = self
            .faults
            .iter()
            .map(|fault| format!("a round failed: {fault}"));
        for doubt in faults.chain(self.notes.iter().cloned()).chain(failures) {
            if !doubts.contains(&doubt) {
                doubts.push(doubt);
            }
        }
        doubts
    }
}

impl PhasePart {
    fn json(&self) -> Value {
        let scope = |scope: &Scope| {
            let tally = &scope.tally;
            let mut times = serde_json::Map::new();
            for (name, histogram) in figures::times(tally) {
                times.insert(name.to_owned(), buckets(histogram));
            }
            json!({
                "name": scope.name,
                "requests": tally.due,
                "finished": tally.finished,
                "running": tally.running,
                "refused": tally.refused,
                "truncated": tally.truncated,
                "errors": tally.errors,
                "kinds": tally.kinds,
                "tokens": tally.tokens,
                "tokens_over_time": tally.points,
                "times_us": times,
            })
        };
        json!({
            "phase": self.name,
            "seconds": self.spell.as_secs_f64(),
            "step_seconds": tally::step(self.spell).as_secs_f64(),
            "scopes": self.scopes.iter().map(scope).collect::<Value>(),
            "attribution": self.attribution.as_ref().map(Attribution::json),
        })
    }
}

/// Microseconds that so many did not exceed and the bucket before did not reach.
fn buckets(histogram: &Histogram) -> Value {
    let bucket = |(last, count): (Duration, u64)| {
        json!([u64::try_from(last.as_micros()).unwrap_or(u64::MAX), count])
    };
    histogram.buckets().map(bucket).collect()
}

/// What it was measured on.
pub(super) fn machine() -> Value {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named = |line: &str| {
        Some(
            line.strip_prefix("model name")?
                .split_once(':')?
                .1
                .trim()
                .to_owned(),
        )
    };
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    json!({
        "cpu": cpus.lines().find_map(named),
        "cores": std::thread::available_parallelism().map(usize::from).ok(),
        "kernel": kernel.trim(),
        "load_afterwards": load.split(' ').next(),
    })
}

/// Medians, a column for each server, with the spread where there is one.
pub(super) fn table(entries: &[&Entry]) -> Vec<Vec<String>> {
    let mut head = vec!["median".to_owned()];
    head.extend(entries.iter().map(|entry| entry.subject.clone()));
    let mut cells = vec![head];
    let mut names: Vec<&Line> = Vec::new();
    for line in entries.iter().flat_map(|entry| entry.lines.iter()) {
        let is_shown = SHOWN.contains(&split(&line.name).1);
        if is_shown && !names.iter().any(|known| known.name == line.name) {
            names.push(line);
        }
    }
    for named in names {
        let mut row = vec![named.title()];
        row.extend(entries.iter().map(|entry| {
            let line = entry.lines.line(&named.name);
            line.map_or("–".to_owned(), cell)
        }));
        cells.push(row);
    }
    cells
}

/// A median with its spread.
fn cell(line: &Line) -> String {
    let median = line.median().map_or("–".to_owned(), short);
    match line.spread() {
        spread if spread.is_empty() => median,
        spread => format!("{median} ({spread})"),
    }
}

fn verdicts(subject: &str, verdicts: &[Verdict]) -> Vec<Vec<String>> {
    let mut cells = vec![vec![subject.to_owned(), "value".to_owned(), String::new()]];
    cells.extend(verdicts.iter().map(|row| {
        vec![
            row.objective.clone(),
            row.value.map_or("–".to_owned(), short),
            told(row.is_met).to_owned(),
        ]
    }));
    cells
}

/// How a verdict is told; none was not judged.
pub(super) fn told(is_met: Option<bool>) -> &'static str {
    is_met.map_or("not judged", verdict)
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;
    use crate::table::figure;

    const SCENARIO: &str = "question = \"?\"\nduration = \"1s\"\nshort = \"1s\"\nwarm_up = \"0s\"\n\
        [[load]]\nname = \"a\"\narrivals = { closed = 1 }\nmodel = \"m\"\nprompt = 1\ntokens = 1\n";

    fn scenario() -> Scenario {
        let objective = |rest: &str| format!("[[slo]]\n{rest}\nwhy = \"so\"\n");
        let slos = [
            "figure = \"errors\"\nat_most = 0",
            "figure = \"truncated\"\nat_most = 0",
            "figure = \"refused\"\nat_most = 0",
            "figure = \"gap p50\"\nat_most = 25",
        ];
        Scenario::parse("x", SCENARIO, &slos.map(objective).concat()).unwrap()
    }

    fn part(errors: f64, gap: f64) -> Part {
        let values = [
            ("errors", errors),
            ("truncated", 0.0),
            ("refused", 0.0),
            ("gap p50", gap),
        ];
        let figures = values.map(|(name, value)| figure(name.to_owned(), "", value));
        Part {
            figures: figures.into(),
            ..Part::default()
        }
    }

    fn is_good(only_ratios: bool, parts: impl IntoIterator<Item = Result<Part>>) -> bool {
        let scenarios = [scenario()];
        let mut report = Report::new(only_ratios);
        for part in parts {
            report.add(&scenarios[0], "s", part);
        }
        let is_good = report.is_good(&scenarios);
        assert_eq!(report.json(&scenarios)["met"], is_good);
        is_good
    }

    #[test]
    fn the_gate_opens_only_where_every_judged_objective_is_met() {
        assert!(is_good(false, [Ok(part(0.0, 20.0))]));
        assert!(!is_good(true, [Ok(part(0.1, 20.0))]));
        assert!(!is_good(false, [Ok(part(0.0, 30.0))]));
        // What depends on the machine is told, and not judged.
        assert!(is_good(true, [Ok(part(0.0, 30.0))]));
    }

    #[test]
    fn a_round_that_failed_and_none_at_all_are_no_good() {
        let fault = || -> Result<Part> { bail!("it did not start") };
        assert!(!is_good(
            true,
            [Ok(part(0.0, 20.0)), Ok(part(0.0, 20.0)), fault()]
        ));
        assert!(!is_good(true, [fault()]));
        assert!(!is_good(true, []));
    }
}
