//! The measured values of all rounds: medians in one table a group, verdicts, and JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use super::targets::Target;
use super::units::{GROUPS, Unit};
use crate::numbers::short;
use crate::table::{Figure, Lines, medians, verdict};

/// What came of one measurement.
#[derive(Debug)]
pub(super) struct Results {
    unit: Unit,
    lines: Lines,
    faults: Vec<String>,
}

impl Results {
    /// Nothing measured yet.
    pub(super) fn new(unit: &Unit) -> Self {
        Self {
            unit: unit.clone(),
            lines: Lines::default(),
            faults: Vec::new(),
        }
    }

    /// Takes the figures of a round.
    pub(super) fn add(&mut self, figures: Vec<Figure>) {
        self.lines.add(figures);
    }

    /// Takes why a round has no figures.
    pub(super) fn fault(&mut self, fault: String) {
        self.faults.push(fault);
    }

    /// Every value.
    pub(super) fn json(&self) -> Value {
        json!({
            "group": self.unit.group,
            "row": self.unit.row,
            "figures": self.lines.json(),
            "faults": self.faults,
        })
    }
}

/// All groups in Markdown, then which targets were met.
pub(super) fn report(all: &[Results], targets: &[Target]) -> String {
    let mut out = String::new();
    for (group, title) in GROUPS {
        let rows: Vec<(&str, &Lines)> = all
            .iter()
            .filter(|results| results.unit.group == group)
            .map(|results| (results.unit.row.as_str(), &results.lines))
            .collect();
        if rows.is_empty() {
            continue;
        }
        let _ = writeln!(out, "\n{title}\n");
        out.push_str(&medians(&rows));
    }
    out.push_str(&verdicts(all, targets));
    for results in all {
        for fault in &results.faults {
            let _ = writeln!(out, "{}: {fault}", results.unit.name());
        }
    }
    out
}

fn verdicts(all: &[Results], targets: &[Target]) -> String {
    let mut out = String::from("\n");
    for results in all {
        for target in targets.iter().filter(|target| target.is_for(&results.unit)) {
            let line = results.lines.line(&target.figure);
            let Some((line, median)) = line.and_then(|line| Some((line, line.median()?))) else {
                continue;
            };
            let mut value = short(median);
            let spread = line.spread();
            if !spread.is_empty() {
                value = format!("{value} ({spread})");
            }
            let _ = writeln!(
                out,
                "{}: {}: {} {value}, {}",
                verdict(target.bound().is_met(median)),
                results.unit.name(),
                line.title(),
                target.bound().words(),
            );
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::{targets, units};
    use super::*;
    use crate::table::figure;

    fn figures(rate: f64) -> Vec<Figure> {
        vec![
            figure("token events", "/s", rate),
            figure("server CPU per token", "us", 0.5),
        ]
    }

    fn results(row: &str, rates: &[f64]) -> Results {
        let unit = units::chosen(&[format!("throughput {row}")]).remove(0);
        let mut results = Results::new(&unit);
        for rate in rates {
            results.add(figures(*rate));
        }
        results
    }

    #[test]
    fn a_group_is_one_table_of_medians_with_verdicts_below() {
        let mut broken = results("h3, 1 ", &[]);
        broken.fault("it fell over".to_owned());
        let all = [
            results("h1, 64", &[100_000.0, 200_000.0, 300_000.0]),
            results("h2, 64", &[100.0, 300.0]),
            broken,
        ];
        let text = report(&all, &targets::read(None).unwrap());
        let rows: Vec<Vec<&str>> = text
            .lines()
            .filter(|line| line.starts_with("| "))
            .map(|line| line.split('|').map(str::trim).collect())
            .collect();
        assert_eq!(
            rows[0],
            ["", "", "token events/s", "server CPU per token, us", ""]
        );
        assert_eq!(rows[1], ["", "h1, 64 connections", "200000", "0.500", ""]);
        assert_eq!(rows[2][2], "200");
        assert_eq!(rows[3][2], "–");
        assert!(text.contains(
            "met: throughput h1, 64 connections: token events/s 200000 (100000 to 300000), at least 150000"
        ));
        assert!(text.contains("MISSED: throughput h2, 64 connections"));
        assert!(text.contains("throughput h3, 1 connection: it fell over"));
        assert_eq!(text.matches("64 streams as fast").count(), 1);
    }

    #[test]
    fn every_value_is_in_the_json() {
        let json = results("h1, 64", &[3.0, 1.0]).json();
        assert_eq!(json["figures"][0]["values"], json!([3.0, 1.0]));
        assert_eq!(json["figures"][0]["median"], 2.0);
    }
}
