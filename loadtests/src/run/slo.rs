//! What the figures of a scenario should be.
//!
//! A figure is named as the report names it: `gap p99`, or with a phase, a load or a transport before it,
//! `beside/readers: gap p99`. With `over` the objective is for the ratio of both, which says the same on a slow
//! machine as on a fast one.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::table::{Bound, Lines};

/// What must be told of every scenario, whatever else is.
const REQUIRED: [&str; 3] = ["errors", "truncated", "refused"];

/// An objective.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Slo {
    /// Whose.
    pub(super) figure: String,
    /// By what it is divided.
    pub(super) over: Option<String>,
    at_least: Option<f64>,
    at_most: Option<f64>,
    /// What it means where it is missed.
    pub(super) why: String,
}

/// What became of an objective.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Verdict {
    /// What should be, in words.
    pub(super) objective: String,
    /// What was; none where there is no such figure.
    pub(super) value: Option<f64>,
    /// Whether it is as it should be; none where it is not judged.
    pub(super) is_met: Option<bool>,
    /// What it means where it is missed.
    pub(super) why: String,
}

impl Slo {
    fn bound(&self) -> Bound {
        Bound {
            at_least: self.at_least,
            at_most: self.at_most,
        }
    }

    /// Whether it says the same on every machine.
    fn is_relative(&self) -> bool {
        let (_, name) = split(&self.figure);
        self.over.is_some() || REQUIRED.contains(&name)
    }

    /// Judges figures; with `only_ratios` nothing that depends on the machine.
    pub(super) fn judge(&self, figures: &Lines, only_ratios: bool) -> Verdict {
        let median = |name: &str| figures.line(name)?.median();
        let value = match &self.over {
            None => median(&self.figure),
            Some(over) => median(&self.figure)
                .zip(median(over))
                .map(|(value, over)| value / over)
                .filter(|ratio| ratio.is_finite()),
        };
        let unit = match (&self.over, figures.line(&self.figure)) {
            (None, Some(line)) => line.unit,
            _ => "",
        };
        let over = self.over.as_ref();
        let over = over.map_or(String::new(), |over| format!(" / {over}"));
        Verdict {
            objective: format!("{}{over} {} {unit}", self.figure, self.bound().words())
                .trim_end()
                .to_owned(),
            value,
            is_met: (self.is_relative() || !only_ratios)
                .then(|| value.is_some_and(|value| self.bound().is_met(value))),
            why: self.why.clone(),
        }
    }
}

/// What comes before a colon, and the figure's own name.
pub(super) fn split(figure: &str) -> (&str, &str) {
    figure.split_once(": ").unwrap_or(("", figure))
}

/// The objectives of a text.
///
/// # Errors
/// It is no such table.
pub(super) fn read(text: &str) -> Result<Vec<Slo>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        slo: Vec<Slo>,
    }
    let file: File = toml::from_str(text).context("the SLO file")?;
    for slo in &file.slo {
        ensure!(
            slo.bound().is_one(),
            "{}: either at_least or at_most",
            slo.figure
        );
        ensure!(!slo.why.is_empty(), "{}: why?", slo.figure);
    }
    for required in REQUIRED {
        ensure!(
            file.slo.iter().any(|slo| split(&slo.figure).1 == required),
            "nothing is said of {required:?}"
        );
    }
    Ok(file.slo)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::figure;

    fn lines(values: &[(&'static str, f64)]) -> Lines {
        let mut lines = Lines::default();
        lines.add(
            values
                .iter()
                .map(|(name, value)| figure(*name, "ms", *value))
                .collect(),
        );
        lines
    }

    fn slo(figure: &str, over: Option<&str>, at_most: f64) -> Slo {
        Slo {
            figure: figure.to_owned(),
            over: over.map(str::to_owned),
            at_least: None,
            at_most: Some(at_most),
            why: "so".to_owned(),
        }
    }

    #[test]
    fn a_ratio_is_judged_on_every_machine_and_a_time_only_on_ours() {
        let figures = lines(&[("gap p99", 30.0), ("gap p50", 20.0), ("errors", 1.0)]);
        let ratio = slo("gap p99", Some("gap p50"), 1.5);
        assert_eq!(ratio.judge(&figures, true).is_met, Some(true));
        let ratio = slo("gap p99", Some("gap p50"), 1.4);
        assert_eq!(ratio.judge(&figures, true).is_met, Some(false));
        let time = slo("gap p99", None, 29.0);
        assert_eq!(time.judge(&figures, false).is_met, Some(false));
        assert_eq!(time.judge(&figures, true).is_met, None);
        assert_eq!(
            time.judge(&figures, true).objective,
            "gap p99 at most 29 ms"
        );
        assert_eq!(
            slo("errors", None, 0.0).judge(&figures, true).is_met,
            Some(false)
        );
    }

    #[test]
    fn what_was_not_measured_is_missed() {
        let figures = lines(&[("gap p99", 30.0), ("gap p50", 0.0)]);
        assert_eq!(
            slo("gap p9", None, 1e9).judge(&figures, false).is_met,
            Some(false)
        );
        let ratio = slo("gap p99", Some("gap p50"), 1e9);
        assert_eq!(ratio.judge(&figures, false).is_met, Some(false));
    }

    #[test]
    fn every_file_tells_of_errors_and_says_why() {
        let one = |name: &str| format!("[[slo]]\nfigure = \"{name}\"\nat_most = 0\nwhy = \"so\"\n");
        let all = [one("a: errors"), one("truncated"), one("refused")].concat();
        assert_eq!(read(&all).unwrap().len(), 3);
        for text in [
            all.replace("truncated", "x"),
            all.replace("\"so\"", "\"\""),
            all.replacen("at_most = 0", "", 1),
            all.replacen("at_most = 0", "at_most = 0\nat_least = 0", 1),
        ] {
            assert!(read(&text).is_err(), "{text}");
        }
    }
}
