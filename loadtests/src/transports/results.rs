//! The measured values of all rounds: medians in one table a group, verdicts, and JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use super::figures::Figure;
use super::targets::Target;
use super::units::{GROUPS, Unit};

/// What came of one measurement.
#[derive(Debug)]
pub(super) struct Results {
    unit: Unit,
    lines: Vec<Line>,
    faults: Vec<String>,
}

/// A figure of all rounds.
#[derive(Debug)]
struct Line {
    name: &'static str,
    unit: &'static str,
    values: Vec<f64>,
}

impl Line {
    fn title(&self) -> String {
        match self.unit {
            "" => self.name.to_owned(),
            unit if unit.starts_with('/') => format!("{}{unit}", self.name),
            unit => format!("{}, {unit}", self.name),
        }
    }

    fn spread(&self) -> (f64, f64) {
        let least = self.values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self
            .values
            .iter()
            .copied()
            .fold(f64::NEG_INFINITY, f64::max);
        (least, most)
    }
}

impl Results {
    /// Nothing measured yet.
    pub(super) fn new(unit: &Unit) -> Self {
        Self {
            unit: unit.clone(),
            lines: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// Takes the figures of a round.
    pub(super) fn add(&mut self, figures: Vec<Figure>) {
        for Figure { name, unit, value } in figures {
            match self.lines.iter_mut().find(|line| line.name == name) {
                Some(line) => line.values.push(value),
                None => self.lines.push(Line {
                    name,
                    unit,
                    values: vec![value],
                }),
            }
        }
    }

    /// Takes why a round has no figures.
    pub(super) fn fault(&mut self, fault: String) {
        self.faults.push(fault);
    }

    fn line(&self, name: &str) -> Option<&Line> {
        self.lines.iter().find(|line| line.name == name)
    }

    /// Every value.
    pub(super) fn json(&self) -> Value {
        let figures: Vec<Value> = self
            .lines
            .iter()
            .map(|line| {
                let median = median(&line.values);
                json!({"name": line.name, "unit": line.unit, "median": median, "values": line.values})
            })
            .collect();
        json!({
            "group": self.unit.group,
            "row": self.unit.row,
            "figures": figures,
            "faults": self.faults,
        })
    }
}

/// All groups in Markdown, then which targets were met.
pub(super) fn report(all: &[Results], targets: &[Target]) -> String {
    let mut out = String::new();
    for (group, title) in GROUPS {
        let rows: Vec<&Results> = all
            .iter()
            .filter(|results| results.unit.group == group)
            .collect();
        if rows.is_empty() {
            continue;
        }
        let _ = writeln!(out, "\n{title}\n");
        out.push_str(&table(&rows));
    }
    out.push_str(&verdicts(all, targets));
    for results in all {
        for fault in &results.faults {
            let _ = writeln!(out, "{}: {fault}", results.unit.name());
        }
    }
    out
}

fn table(rows: &[&Results]) -> String {
    let mut names: Vec<(&str, String)> = Vec::new();
    for line in rows.iter().flat_map(|results| &results.lines) {
        if !names.iter().any(|(name, _)| *name == line.name) {
            names.push((line.name, line.title()));
        }
    }
    let mut cells = vec![vec![String::new()]];
    cells[0].extend(names.iter().map(|(_, title)| title.clone()));
    for results in rows {
        let mut row = vec![results.unit.row.clone()];
        row.extend(names.iter().map(|(name, _)| {
            let line = results.line(name);
            let median = line.and_then(|line| median(&line.values));
            median.map_or("–".to_owned(), short)
        }));
        cells.push(row);
    }
    let widths: Vec<usize> = (0..cells[0].len())
        .map(|column| {
            let widths = cells.iter().map(|row| row[column].chars().count());
            widths.max().unwrap_or_default()
        })
        .collect();
    let mut out = String::new();
    for (index, row) in cells.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(out, "| {cell:<width$} ");
        }
        out.push_str("|\n");
        if index == 0 {
            for width in &widths {
                let _ = write!(out, "|{}", "-".repeat(width + 2));
            }
            out.push_str("|\n");
        }
    }
    out
}

fn verdicts(all: &[Results], targets: &[Target]) -> String {
    let mut out = String::from("\n");
    for results in all {
        for target in targets.iter().filter(|target| target.is_for(&results.unit)) {
            let line = results.line(&target.figure);
            let Some((line, value)) = line.and_then(|line| Some((line, median(&line.values)?)))
            else {
                continue;
            };
            let verdict = if target.is_met(value) {
                "met"
            } else {
                "MISSED"
            };
            let (least, most) = line.spread();
            let _ = writeln!(
                out,
                "{verdict}: {}: {} {} ({} to {}), {}",
                results.unit.name(),
                line.title(),
                short(value),
                short(least),
                short(most),
                target.bound(),
            );
        }
    }
    out
}

/// The middle value, or the mean of the two in the middle; of nothing, none.
fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(*sorted.get(sorted.len() / 2 - 1)?, upper))
}

/// Three digits that matter.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{targets, units};
    use super::*;

    fn figures(rate: f64) -> Vec<Figure> {
        let figure = |name, unit, value| Figure { name, unit, value };
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
