//! Figures of several rounds: their medians, what they should be, and tables in Markdown.

use std::borrow::Cow;
use std::fmt::Write;

use serde_json::{Value, json};

use crate::numbers::{median, short};

/// A figure of one round.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Figure {
    /// What it is.
    pub(crate) name: Cow<'static, str>,
    /// In what; none for a pure number.
    pub(crate) unit: &'static str,
    /// How much.
    pub(crate) value: f64,
}

/// A figure.
pub(crate) fn figure(name: impl Into<Cow<'static, str>>, unit: &'static str, value: f64) -> Figure {
    Figure {
        name: name.into(),
        unit,
        value,
    }
}

/// All figures of a measurement.
#[derive(Debug, Default)]
pub(crate) struct Lines(Vec<Line>);

/// A figure of all rounds.
#[derive(Debug)]
pub(crate) struct Line {
    /// What it is.
    pub(crate) name: Cow<'static, str>,
    /// In what; none for a pure number.
    pub(crate) unit: &'static str,
    /// Of each round.
    pub(crate) values: Vec<f64>,
}

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bound {
    /// The least that is enough.
    pub(crate) at_least: Option<f64>,
    /// The most that is allowed.
    pub(crate) at_most: Option<f64>,
}

impl Lines {
    /// Takes the figures of a round.
    pub(crate) fn add(&mut self, figures: Vec<Figure>) {
        for Figure { name, unit, value } in figures {
            match self.0.iter_mut().find(|line| line.name == name) {
                Some(line) => line.values.push(value),
                None => self.0.push(Line {
                    name,
                    unit,
                    values: vec![value],
                }),
            }
        }
    }

    /// A figure by its name.
    pub(crate) fn line(&self, name: &str) -> Option<&Line> {
        self.0.iter().find(|line| line.name == name)
    }

    /// All, in the order in which they came.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Line> {
        self.0.iter()
    }

    /// Every value.
    pub(crate) fn json(&self) -> Value {
        let line = |line: &Line| {
            let median = median(&line.values);
            json!({"name": line.name, "unit": line.unit, "median": median, "values": line.values})
        };
        self.0.iter().map(line).collect()
    }
}

impl Line {
    /// Its name and unit.
    pub(crate) fn title(&self) -> String {
        match self.unit {
            "" => self.name.clone().into_owned(),
            unit if unit.starts_with('/') => format!("{}{unit}", self.name),
            unit => format!("{}, {unit}", self.name),
        }
    }

    /// The median of the rounds.
    pub(crate) fn median(&self) -> Option<f64> {
        median(&self.values)
    }

    /// The least and the largest value, in words; nothing for a single one.
    pub(crate) fn spread(&self) -> String {
        let least = self.values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self
            .values
            .iter()
            .copied()
            .fold(f64::NEG_INFINITY, f64::max);
        if self.values.len() < 2 {
            return String::new();
        }
        format!("{} to {}", short(least), short(most))
    }

    /// Whether its median is as it should be; without a value, none.
    pub(crate) fn meets(&self, bound: Bound) -> Option<bool> {
        self.median().map(|value| bound.is_met(value))
    }
}

impl Bound {
    /// Whether a value is as it should be.
    pub(crate) fn is_met(self, value: f64) -> bool {
        self.at_least.is_none_or(|least| value >= least)
            && self.at_most.is_none_or(|most| value <= most)
    }

    /// Whether it says one thing.
    pub(crate) fn is_one(self) -> bool {
        self.at_least.is_some() != self.at_most.is_some()
    }

    /// In words.
    pub(crate) fn words(self) -> String {
        match (self.at_least, self.at_most) {
            (Some(least), _) => format!("at least {least}"),
            (None, Some(most)) => format!("at most {most}"),
            (None, None) => String::new(),
        }
    }
}

/// How a verdict is told.
pub(crate) fn verdict(is_met: bool) -> &'static str {
    if is_met { "met" } else { "MISSED" }
}

/// The medians of several measurements, a row for each.
pub(crate) fn medians(rows: &[(&str, &Lines)]) -> String {
    let mut names: Vec<(&str, String)> = Vec::new();
    for line in rows.iter().flat_map(|(_, lines)| lines.iter()) {
        if !names.iter().any(|(name, _)| *name == line.name) {
            names.push((&line.name, line.title()));
        }
    }
    let mut cells = vec![vec![String::new()]];
    cells[0].extend(names.iter().map(|(_, title)| title.clone()));
    for (name, lines) in rows {
        let mut row = vec![(*name).to_owned()];
        row.extend(names.iter().map(|(name, _)| {
            let median = lines.line(name).and_then(Line::median);
            median.map_or("–".to_owned(), short)
        }));
        cells.push(row);
    }
    markdown(&cells)
}

/// A table, the first row of which is its head.
pub(crate) fn markdown(cells: &[Vec<String>]) -> String {
    let widths: Vec<usize> = (0..cells.first().map_or(0, Vec::len))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_a_median_a_spread_and_a_verdict() {
        let mut lines = Lines::default();
        for value in [3.0, 1.0, 2.0] {
            lines.add(vec![figure("time", "ms", value)]);
        }
        let line = lines.line("time").unwrap();
        assert_eq!(
            (line.title().as_str(), line.median(), line.spread().as_str()),
            ("time, ms", Some(2.0), "1.00 to 3.00")
        );
        let at_most = |most| Bound {
            at_least: None,
            at_most: Some(most),
        };
        assert_eq!(line.meets(at_most(2.0)), Some(true));
        assert_eq!(line.meets(at_most(1.9)), Some(false));
        assert_eq!(lines.json()[0]["values"], json!([3.0, 1.0, 2.0]));
        assert!(lines.line("other").is_none());
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        assert_eq!(
            markdown(&[row("", "b"), row("row", "–")]),
            "|     | b |\n|-----|---|\n| row | – |\n"
        );
    }
}
