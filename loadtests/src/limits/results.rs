//! The figures of all rounds beside what they should be.

use std::fmt::Write;

use serde_json::{Value, json};

use super::scenario::Scenario;
use super::slo::Slo;
use crate::numbers::short;
use crate::table::{Figure, Line, Lines, markdown, verdict};

/// What came of one scenario.
#[derive(Debug)]
pub(super) struct Results {
    scenario: Scenario,
    lines: Lines,
    skipped: Option<&'static str>,
    faults: Vec<String>,
}

impl Results {
    /// Nothing measured yet.
    pub(super) fn new(scenario: Scenario) -> Self {
        Self {
            scenario,
            lines: Lines::default(),
            skipped: None,
            faults: Vec::new(),
        }
    }

    /// Takes the figures of a round.
    pub(super) fn add(&mut self, figures: Vec<Figure>) {
        self.lines.add(figures);
    }

    /// Takes why there are no figures, although nothing is wrong.
    pub(super) fn skip(&mut self, why: &'static str) {
        self.skipped = Some(why);
    }

    /// Takes why a round has no figures.
    pub(super) fn fault(&mut self, fault: String) {
        self.faults.push(fault);
    }

    /// Every value.
    pub(super) fn json(&self) -> Value {
        json!({
            "scenario": self.scenario.name(),
            "figures": self.lines.json(),
            "skipped": self.skipped,
            "faults": self.faults,
        })
    }

    fn slos<'a>(&self, slos: &'a [Slo]) -> impl Iterator<Item = &'a Slo> {
        let name = self.scenario.name();
        slos.iter().filter(move |slo| slo.scenario == name)
    }

    /// Whether an objective was met; none where it was not tried.
    fn is_met(&self, slo: &Slo) -> Option<bool> {
        if self.skipped.is_some() {
            return None;
        }
        // A figure that did not come is no good one.
        let line = self.lines.line(&slo.figure);
        Some(
            line.and_then(|line| line.meets(slo.bound()))
                .unwrap_or(false),
        )
    }
}

/// Whether all objectives that were tried were met, in every round.
pub(super) fn all_met(all: &[Results], slos: &[Slo]) -> bool {
    all.iter().all(|results| {
        results.faults.is_empty()
            && results
                .slos(slos)
                .all(|slo| results.is_met(slo).unwrap_or(true))
    })
}

/// One table, then what was missed and why it matters, what was skipped, and what went wrong.
pub(super) fn report(all: &[Results], slos: &[Slo]) -> String {
    let row = |cells: [&str; 6]| cells.map(str::to_owned).to_vec();
    let mut cells = vec![row([
        "scenario",
        "figure",
        "median",
        "spread",
        "objective",
        "",
    ])];
    let mut notes = String::new();
    for results in all {
        let name = results.scenario.name();
        for line in results.lines.iter() {
            let slo = results.slos(slos).find(|slo| slo.figure == line.name);
            let bound = slo.map(|slo| slo.bound().words()).unwrap_or_default();
            let is_met = slo.and_then(|slo| results.is_met(slo));
            cells.push(row([
                name,
                &line.title(),
                &line.median().map_or("–".to_owned(), short),
                &line.spread(),
                &bound,
                is_met.map(verdict).unwrap_or_default(),
            ]));
        }
        for slo in results.slos(slos) {
            if results.is_met(slo) == Some(false) {
                let median = results.lines.line(&slo.figure).and_then(Line::median);
                let _ = writeln!(
                    notes,
                    "MISSED: {name}: {} {} {}, {}: {}",
                    slo.figure,
                    median.map_or("–".to_owned(), short),
                    slo.unit,
                    slo.bound().words(),
                    slo.why
                );
            }
        }
        if let Some(why) = results.skipped {
            let _ = writeln!(notes, "skipped: {name}: {why}");
        }
        for fault in &results.faults {
            let _ = writeln!(notes, "{name}: {fault}");
        }
    }
    format!("\n{}\n{notes}", markdown(&cells))
}

#[cfg(test)]
mod tests {
    use super::super::slo;
    use super::*;
    use crate::table::figure;

    const SLO: &str = "[[slo]]\nscenario = \"flood\"\nfigure = \"growth\"\nunit = \"%\"\nat_most = 10\n\
                       why = \"it is promised\"\n";

    fn results(values: &[f64]) -> Results {
        let mut results = Results::new(Scenario::Flood);
        for value in values {
            results.add(vec![figure("growth", "%", *value)]);
        }
        results
    }

    #[test]
    fn the_median_of_the_rounds_is_what_counts() {
        let slos = slo::read(Some(SLO)).unwrap();
        let good = [results(&[9.0, 50.0, 8.0])];
        assert!(all_met(&good, &slos));
        let text = report(&good, &slos);
        assert!(
            text.contains("| growth, % | 9.00   | 8.00 to 50.0 | at most 10 | met |"),
            "{text}"
        );
        assert_eq!(good[0].json()["figures"][0]["median"], 9.0);
    }

    #[test]
    fn what_is_missed_absent_or_broken_is_a_failure_and_what_is_skipped_is_not() {
        let slos = slo::read(Some(SLO)).unwrap();
        let missed = [results(&[11.0])];
        assert!(!all_met(&missed, &slos));
        let text = report(&missed, &slos);
        assert!(
            text.contains("MISSED: flood: growth 11.0 %, at most 10: it is promised"),
            "{text}"
        );
        assert!(!all_met(&[results(&[])], &slos));
        let mut broken = results(&[1.0]);
        broken.fault("round 2: it fell over".to_owned());
        assert!(!all_met(&[broken], &slos));
        let mut skipped = results(&[]);
        skipped.skip("there is none");
        assert!(report(&[skipped], &slos).contains("skipped: flood: there is none"));
        let mut skipped = results(&[]);
        skipped.skip("there is none");
        assert!(all_met(&[skipped], &slos));
    }
}
