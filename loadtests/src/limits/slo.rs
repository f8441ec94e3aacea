//! What the figures should be, read from TOML.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::scenario::Scenario;
use crate::table::Bound;

/// The file that the program is built with.
const BUILT_IN: &str = include_str!("../../limits/slo.toml");

/// What a figure should be.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Slo {
    /// Whose figure.
    pub(super) scenario: String,
    /// Its name.
    pub(super) figure: String,
    /// In what.
    pub(super) unit: String,
    at_least: Option<f64>,
    at_most: Option<f64>,
    /// Why this much.
    pub(super) why: String,
}

impl Slo {
    /// What the figure should be.
    pub(super) fn bound(&self) -> Bound {
        Bound {
            at_least: self.at_least,
            at_most: self.at_most,
        }
    }
}

/// The objectives of a text, or those that the program is built with.
///
/// # Errors
/// It is no such table, or names what there is not.
pub(super) fn read(text: Option<&str>) -> Result<Vec<Slo>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        slo: Vec<Slo>,
    }
    let file: File = toml::from_str(text.unwrap_or(BUILT_IN)).context("the SLO file")?;
    for slo in &file.slo {
        let Slo {
            scenario, figure, ..
        } = slo;
        ensure!(
            Scenario::ALL.iter().any(|known| known.name() == scenario),
            "there is no scenario {scenario:?}"
        );
        ensure!(
            slo.bound().is_one(),
            "{scenario}, {figure}: either at_least or at_most"
        );
        ensure!(!slo.why.is_empty(), "{scenario}, {figure}: why?");
    }
    Ok(file.slo)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_an_objective() {
        let slos = read(None).unwrap();
        for scenario in Scenario::ALL {
            assert!(
                slos.iter().any(|slo| slo.scenario == scenario.name()),
                "{}",
                scenario.name()
            );
        }
    }

    #[test]
    fn what_is_no_objective_is_an_error() {
        let good = "[[slo]]\nscenario = \"flood\"\nfigure = \"f\"\nunit = \"%\"\nwhy = \"so\"\n";
        assert!(read(Some(&format!("{good}at_most = 1"))).is_ok());
        for wrong in [
            good.to_owned(),
            format!("{good}at_most = 1\nat_least = 1"),
            format!("{good}at_most = 1\nelse = 1"),
            format!("{good}at_most = 1").replace("flood", "drought"),
            format!("{good}at_most = 1").replace("\"so\"", "\"\""),
        ] {
            assert!(read(Some(&wrong)).is_err(), "{wrong}");
        }
    }
}
