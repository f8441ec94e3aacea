//! What figures should be, read from TOML.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::units::{GROUPS, Unit};
use crate::net::Transport;
use crate::table::Bound;

/// The table that the program is built with.
const BUILT_IN: &str = include_str!("../../transports/targets.toml");

/// What a figure should be.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Target {
    group: String,
    /// Absent: all.
    transports: Option<Vec<String>>,
    /// Text in the name of the row; absent: any.
    #[serde(default)]
    row: String,
    /// The name of the figure.
    pub(super) figure: String,
    at_least: Option<f64>,
    at_most: Option<f64>,
}

impl Target {
    /// Whether it is for this measurement.
    pub(super) fn is_for(&self, unit: &Unit) -> bool {
        let transports = self.transports.as_ref();
        self.group == unit.group
            && unit.row.contains(&self.row)
            && transports.is_none_or(|names| names.iter().any(|name| name == unit.transport.name()))
    }

    /// What the figure should be.
    pub(super) fn bound(&self) -> Bound {
        Bound {
            at_least: self.at_least,
            at_most: self.at_most,
        }
    }
}

/// The targets of a text, or those that the program is built with.
///
/// # Errors
/// It is no such table, or names what there is not.
pub(super) fn read(text: Option<&str>) -> Result<Vec<Target>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Table {
        target: Vec<Target>,
    }
    let table: Table = toml::from_str(text.unwrap_or(BUILT_IN)).context("the table of targets")?;
    for target in &table.target {
        let Target { group, figure, .. } = target;
        ensure!(
            GROUPS.iter().any(|(name, _)| name == group),
            "there is no group {group:?}"
        );
        for name in target.transports.iter().flatten() {
            ensure!(
                Transport::ALL.iter().any(|known| known.name() == name),
                "there is no transport {name:?}"
            );
        }
        ensure!(
            target.bound().is_one(),
            "{group}, {figure}: either at_least or at_most"
        );
    }
    Ok(table.target)
}

#[cfg(test)]
mod tests {
    use super::super::units;
    use super::*;

    #[test]
    fn the_built_in_targets_each_have_a_measurement() {
        let units = units::chosen(&[]);
        for target in read(None).unwrap() {
            assert!(units.iter().any(|unit| target.is_for(unit)), "{target:?}");
        }
    }

    #[test]
    fn a_bound_holds_at_itself() {
        let text = "[[target]]\ngroup = \"slow\"\nfigure = \"f\"\nat_most = 5.0\n";
        let bound = read(Some(text)).unwrap()[0].bound();
        assert!(bound.is_met(5.0) && !bound.is_met(5.1));
        assert_eq!(bound.words(), "at most 5");
    }

    #[test]
    fn what_there_is_not_is_an_error() {
        for wrong in [
            "group = \"x\"\nfigure = \"f\"\nat_most = 5.0",
            "group = \"slow\"\nfigure = \"f\"",
            "group = \"slow\"\nfigure = \"f\"\nat_most = 5.0\nat_least = 1.0",
            "group = \"slow\"\nfigure = \"f\"\nat_most = 5.0\ntransports = [\"h9\"]",
        ] {
            assert!(
                read(Some(&format!("[[target]]\n{wrong}\n"))).is_err(),
                "{wrong}"
            );
        }
    }
}
