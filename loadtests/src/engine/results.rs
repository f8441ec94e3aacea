//! The measured values of all rounds: ratios, medians, spreads, a table and JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use super::figures::{Better, Figure};
use super::scenario::{Against, Reach, Unit};
use crate::numbers::median;

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contestant {
    /// This repository's server.
    Sluicegate,
    /// llama.cpp's.
    Llama,
    /// The bare loop.
    Bare,
}

impl Contestant {
    /// All, in the table's order.
    pub(super) const ALL: [Self; 3] = [Self::Sluicegate, Self::Llama, Self::Bare];

    /// Its name in the report.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sluicegate => "Sluicegate",
            Self::Llama => "llama-server",
            Self::Bare => "bare loop",
        }
    }
}

/// What came of one unit.
#[derive(Debug)]
pub(super) struct Results {
    /// What was measured.
    pub(super) name: String,
    /// The commands, without what changes from run to run.
    pub(super) commands: Vec<(Contestant, String)>,
    reach: Vec<Reach>,
    lines: Vec<Line>,
    faults: Vec<(Contestant, String)>,
}

/// A figure of all contestants.
#[derive(Debug)]
struct Line {
    name: &'static str,
    unit: &'static str,
    better: Better,
    /// A value per contestant and round; rounds in which something went wrong have none.
    values: [Vec<Option<f64>>; 3],
}

impl Line {
    fn of(&self, contestant: Contestant) -> Vec<f64> {
        self.values[contestant as usize]
            .iter()
            .copied()
            .flatten()
            .collect()
    }

    /// How many times better Sluicegate is in each round that both finished.
    fn ratios(&self, other: Contestant) -> Vec<f64> {
        let ours = &self.values[Contestant::Sluicegate as usize];
        let pairs = ours.iter().zip(&self.values[other as usize]);
        pairs
            .filter_map(|(ours, theirs)| ours.zip(*theirs))
            .map(|(ours, theirs)| match self.better {
                Better::More => ours / theirs,
                Better::Less => theirs / ours,
            })
            .filter(|ratio| ratio.is_finite())
            .collect()
    }

    fn reached(&self, reach: &Reach) -> Option<bool> {
        let value = match reach.against {
            Against::Llama => median(&self.ratios(Contestant::Llama)),
            Against::Bare => median(&self.ratios(Contestant::Bare)),
            Against::Value => median(&self.of(Contestant::Sluicegate)),
        };
        value.map(|value| value >= reach.at_least)
    }
}

impl Results {
    /// Nothing measured yet.
    pub(super) fn new(unit: &Unit, commands: Vec<(Contestant, String)>) -> Self {
        Self {
            name: unit.name(),
            commands,
            reach: unit.reach.clone(),
            lines: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// Takes what a contestant did in a round, counted from 0.
    pub(super) fn add(&mut self, contestant: Contestant, round: usize, figures: Vec<Figure>) {
        for figure in figures {
            let known = self.lines.iter().position(|line| line.name == figure.name);
            let index = known.unwrap_or_else(|| {
                self.lines.push(Line {
                    name: figure.name,
                    unit: figure.unit,
                    better: figure.better,
                    values: Default::default(),
                });
                self.lines.len() - 1
            });
            let values = &mut self.lines[index].values[contestant as usize];
            values.resize(round, None);
            values.push(Some(figure.value));
        }
    }

    /// Takes why a contestant has no figures in a round.
    pub(super) fn fault(&mut self, contestant: Contestant, fault: String) {
        let fault = (contestant, fault);
        if !self.faults.contains(&fault) {
            self.faults.push(fault);
        }
    }

    /// The figures as JSON.
    pub(super) fn json(&self) -> Value {
        let lines: Vec<Value> = self
            .lines
            .iter()
            .map(|line| {
                let mut figure = json!({"name": line.name, "unit": line.unit, "better": match line.better {
                    Better::More => "more",
                    Better::Less => "less",
                }});
                for contestant in Contestant::ALL {
                    let values = &line.values[contestant as usize];
                    if !values.is_empty() {
                        figure[contestant.name()] =
                            json!({"median": median(&line.of(contestant)), "values": values});
                    }
                }
                for other in [Contestant::Llama, Contestant::Bare] {
                    let ratios = line.ratios(other);
                    if !ratios.is_empty() {
                        figure[format!("times {}", other.name())] =
                            json!({"median": median(&ratios), "values": ratios});
                    }
                }
                figure
            })
            .collect();
        let pairs = |pairs: &[(Contestant, String)]| -> Vec<Value> {
            let pair =
                |(who, what): &(Contestant, String)| json!({"who": who.name(), "what": what});
            pairs.iter().map(pair).collect()
        };
        json!({
            "name": self.name,
            "commands": pairs(&self.commands),
            "figures": lines,
            "faults": pairs(&self.faults),
        })
    }
}

/// All figures in one table, in Markdown.
pub(super) fn table(all: &[Results]) -> String {
    let mut rows = vec![
        [
            "measurement",
            "figure",
            "Sluicegate",
            "llama-server",
            "times better",
            "bare loop",
            "times better",
            "reach",
        ]
        .map(str::to_owned),
    ];
    for results in all {
        let mut name = results.name.clone();
        for line in &results.lines {
            let title = match line.unit {
                "" => line.name.to_owned(),
                unit => format!("{}, {unit}", line.name),
            };
            let value = |contestant| median(&line.of(contestant)).map_or("–".to_owned(), short);
            rows.push([
                std::mem::take(&mut name),
                title,
                value(Contestant::Sluicegate),
                value(Contestant::Llama),
                spread(&line.ratios(Contestant::Llama)),
                value(Contestant::Bare),
                spread(&line.ratios(Contestant::Bare)),
                reach(line, &results.reach),
            ]);
        }
        if results.lines.is_empty() {
            rows.push([&name, "no figures", "", "", "", "", "", ""].map(str::to_owned));
        }
    }
    let mut widths = [0; 8];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(out, "| {cell:<width$} ");
        }
        out.push_str("|\n");
        if index == 0 {
            for width in widths {
                let _ = write!(out, "|{}", "-".repeat(width + 2));
            }
            out.push_str("|\n");
        }
    }
    for results in all {
        for reach in &results.reach {
            let measured = |line: &Line| line.name == reach.figure;
            if !results.lines.is_empty() && !results.lines.iter().any(measured) {
                let _ = writeln!(
                    out,
                    "\n{}: there is no figure {:?}",
                    results.name, reach.figure
                );
            }
        }
        for (who, fault) in &results.faults {
            let _ = writeln!(out, "\n{}, {}: {fault}", results.name, who.name());
        }
    }
    out
}

/// What the figure should be, and whether it is.
fn reach(line: &Line, all: &[Reach]) -> String {
    let here = all.iter().filter(|reach| reach.figure == line.name);
    let texts: Vec<String> = here
        .filter_map(|reach| {
            let verdict = if line.reached(reach)? {
                "met"
            } else {
                "missed"
            };
            let least = short(reach.at_least);
            Some(match reach.against {
                Against::Llama => format!("{least}x llama-server: {verdict}"),
                Against::Bare => format!("{least} of bare: {verdict}"),
                Against::Value => format!("{least}: {verdict}"),
            })
        })
        .collect();
    texts.join(", ")
}

/// The median of some ratios, and the least and largest of them.
fn spread(ratios: &[f64]) -> String {
    let Some(middle) = median(ratios) else {
        return String::new();
    };
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let most = ratios.iter().copied().fold(0.0, f64::max);
    format!("{} ({} to {})", short(middle), short(least), short(most))
}

/// Three digits that matter.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::figures::{millis, rate};
    use super::super::scenario;
    use super::*;

    fn results() -> Results {
        let row = "[[row]]\nkind = \"decode\"\nmodel = \"m\"\nstreams = [8]\ncontext = 64\nprompt = 8\n\
                   reach = [\n\
                   { figure = \"decode\", against = \"llama\", at_least = 1.5 },\n\
                   { figure = \"decode\", against = \"bare\", at_least = 0.95 },\n\
                   { figure = \"decoed\", against = \"value\", at_least = 1.0 },\n\
                   ]\n";
        let unit = scenario::read(Some(row)).unwrap().remove(0);
        let mut results = Results::new(&unit, Vec::new());
        for (round, ours, theirs) in [(0, 900.0, 300.0), (1, 800.0, 400.0), (2, 400.0, 400.0)] {
            results.add(Contestant::Sluicegate, round, vec![rate("decode", ours)]);
            results.add(Contestant::Llama, round, vec![rate("decode", theirs)]);
        }
        // It failed in the first round.
        results.add(Contestant::Bare, 1, vec![rate("decode", 1000.0)]);
        results.fault(Contestant::Bare, "it fell over".to_owned());
        results.fault(Contestant::Bare, "it fell over".to_owned());
        results
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let results = results();
        let line = &results.lines[0];
        assert_eq!(line.ratios(Contestant::Llama), [3.0, 2.0, 1.0]);
        assert_eq!(line.ratios(Contestant::Bare), [0.8]);
        assert_eq!(
            results.json()["figures"][0]["times llama-server"]["median"],
            2.0
        );
        assert_eq!(
            results.json()["figures"][0]["bare loop"]["values"],
            json!([null, 1000.0])
        );
    }

    #[test]
    fn of_times_less_is_better() {
        let mut results = results();
        let time = |millis_| vec![millis("wait", Duration::from_millis(millis_))];
        results.add(Contestant::Sluicegate, 0, time(10));
        results.add(Contestant::Llama, 0, time(40));
        assert_eq!(results.lines[1].ratios(Contestant::Llama), [4.0]);
    }

    #[test]
    fn the_table_has_medians_spreads_and_verdicts() {
        let text = table(&[results()]);
        let row: Vec<&str> = text
            .lines()
            .nth(2)
            .unwrap()
            .split('|')
            .map(str::trim)
            .collect();
        let expected = [
            "",
            "decode m x8",
            "decode, tokens/s",
            "800",
            "400",
            "2.00 (1.00 to 3.00)",
            "1000",
            "0.80 (0.80 to 0.80)",
            "1.50x llama-server: met, 0.95 of bare: missed",
            "",
        ];
        assert_eq!(row, expected);
        assert_eq!(
            text.matches("decode m x8, bare loop: it fell over").count(),
            1
        );
        assert!(text.contains("decode m x8: there is no figure \"decoed\""));
        let widths: Vec<usize> = text
            .lines()
            .take(3)
            .map(|line| line.chars().count())
            .collect();
        assert!(widths.iter().all(|width| *width == widths[0]));
    }
}
