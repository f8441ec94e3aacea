//! The table of what is measured, read from TOML, and the single measurements that it stands for.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// The table that the program is built with.
const BUILT_IN: &str = include_str!("../../engine/scenarios.toml");

/// What is done in a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// Streams at once, all running.
    Decode,
    /// One prompt at a time.
    Prefill,
    /// Users at once with one new system prompt.
    Newcomers,
    /// A prefix that is new, then known.
    Warm,
    /// Conversations of several turns.
    Chat,
    /// A long prompt beside running streams.
    Beside,
    /// Readers that stop beside others.
    Stalled,
    /// A busy process on one core.
    Neighbour,
    /// JSON Schema.
    Schema,
    /// Text that repeats its prompt.
    Copy,
}

impl Kind {
    /// As in the table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Prefill => "prefill",
            Self::Newcomers => "newcomers",
            Self::Warm => "warm",
            Self::Chat => "chat",
            Self::Beside => "beside",
            Self::Stalled => "stalled",
            Self::Neighbour => "neighbour",
            Self::Schema => "schema",
            Self::Copy => "copy",
        }
    }
}

/// A row of the table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Row {
    /// What is done.
    pub(super) kind: Kind,
    /// The model's file, without its ending.
    pub(super) model: String,
    #[serde(default = "one")]
    streams: Vec<usize>,
    /// Streams that stop reading, besides.
    #[serde(default)]
    pub(super) stalled: usize,
    /// Turns of a conversation.
    #[serde(default)]
    pub(super) turns: usize,
    /// Tokens that one stream may hold.
    pub(super) context: u32,
    /// Tokens of a prompt.
    pub(super) prompt: u32,
    /// Tokens of an answer.
    #[serde(default = "few")]
    pub(super) tokens: u32,
    /// Further flags of llama-server.
    #[serde(default)]
    pub(super) llama: Vec<String>,
    /// Further keys of the model's table.
    #[serde(default)]
    pub(super) sluicegate: toml::Table,
    #[serde(default)]
    reach: Vec<Reach>,
    #[serde(default)]
    reach_at: Vec<Reach>,
}

fn one() -> Vec<usize> {
    vec![1]
}

fn few() -> u32 {
    4
}

/// What a figure should be.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reach {
    /// For this number of streams only; goes before one for all.
    streams: Option<usize>,
    /// The figure's name.
    pub(super) figure: String,
    /// What it is compared with.
    pub(super) against: Against,
    /// The least that is wanted.
    pub(super) at_least: f64,
}

/// What a figure is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Against {
    /// llama-server's: so many times better.
    Llama,
    /// The bare loop's.
    Bare,
    /// Nothing: the value itself.
    Value,
}

/// One measurement: a row at one number of streams.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    /// Its row.
    pub(super) row: Row,
    /// Streams at once.
    pub(super) streams: usize,
    /// What its figures should be.
    pub(super) reach: Vec<Reach>,
}

impl Unit {
    /// Its name in the report and for `--only`.
    pub(super) fn name(&self) -> String {
        let mut name = format!("{} {}", self.row.kind.name(), self.row.model);
        if self.streams > 1 {
            name = format!("{name} x{}", self.streams);
        }
        if self.row.stalled > 0 {
            name = format!("{name} +{}", self.row.stalled);
        }
        if !self.row.llama.is_empty() {
            name = format!("{name} (llama-server {})", self.row.llama.join(" "));
        }
        name
    }

    /// Sequences that a server must be able to run at once.
    pub(super) fn parallel(&self) -> usize {
        let besides = match self.row.kind {
            // The second user of a prefix comes while the first one's sequence may still be there.
            Kind::Beside | Kind::Warm => 1,
            _ => self.row.stalled,
        };
        self.streams + besides
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    row: Vec<Row>,
}

/// Reads a table; none is the built-in one.
///
/// # Errors
/// It is no such table.
pub(super) fn read(text: Option<&str>) -> Result<Vec<Unit>> {
    let table: Table =
        toml::from_str(text.unwrap_or(BUILT_IN)).context("this is no table of scenarios")?;
    let mut units = Vec::new();
    let mut names = BTreeSet::new();
    for row in table.row {
        check(&row).with_context(|| format!("{} {}", row.kind.name(), row.model))?;
        for &streams in &row.streams {
            let unit = Unit {
                streams,
                reach: reach(&row, streams),
                row: row.clone(),
            };
            let name = unit.name();
            ensure!(
                names.insert(name.clone()),
                "two measurements are called {name:?}"
            );
            units.push(unit);
        }
    }
    Ok(units)
}

fn check(row: &Row) -> Result<()> {
    ensure!(
        !row.streams.is_empty() && row.streams.iter().all(|&streams| streams > 0),
        "streams must be numbers above 0"
    );
    ensure!(
        row.tokens > 0 && row.prompt > 0,
        "tokens and prompt must be above 0"
    );
    ensure!(
        row.prompt + row.tokens < row.context,
        "prompt and answer must fit into the context"
    );
    ensure!(
        (row.kind == Kind::Chat) == (row.turns > 1),
        "turns, at least 2, go with the kind chat"
    );
    ensure!(
        (row.kind == Kind::Stalled) == (row.stalled > 0),
        "stalled goes with the kind stalled"
    );
    let alone = matches!(row.kind, Kind::Prefill | Kind::Warm | Kind::Copy);
    ensure!(!alone || row.streams == [1], "this kind has one stream");
    ensure!(
        row.reach.iter().all(|reach| reach.streams.is_none())
            && row.reach_at.iter().all(|reach| reach.streams.is_some()),
        "reach is for all numbers of streams, reach_at for one"
    );
    Ok(())
}

/// What holds for so many streams: the particular before the general.
fn reach(row: &Row, streams: usize) -> Vec<Reach> {
    let mut chosen: Vec<Reach> = Vec::new();
    let here = row
        .reach_at
        .iter()
        .filter(|reach| reach.streams == Some(streams));
    for reach in here.chain(&row.reach) {
        let same = |one: &Reach| one.figure == reach.figure && one.against == reach.against;
        if !chosen.iter().any(same) {
            chosen.push(reach.clone());
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_table_is_a_table() {
        let units = read(None).unwrap();
        assert!(units.iter().any(|unit| unit.name() == "decode demo x64"));
        assert!(units.iter().any(|unit| unit.name() == "stalled demo x8 +8"));
    }

    const ROW: &str = "[[row]]\nkind = \"decode\"\nmodel = \"m\"\ncontext = 64\nprompt = 8\n";

    #[test]
    fn a_particular_reach_goes_before_the_general_one() {
        let text = format!(
            "{ROW}streams = [1, 2]\n\
             reach = [{{ figure = \"decode\", against = \"bare\", at_least = 0.9 }}]\n\
             reach_at = [{{ streams = 2, figure = \"decode\", against = \"bare\", at_least = 0.8 }}]\n"
        );
        let units = read(Some(&text)).unwrap();
        let least: Vec<_> = units
            .iter()
            .map(|unit| {
                unit.reach
                    .iter()
                    .map(|reach| reach.at_least)
                    .collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(least, [[0.9], [0.8]]);
        assert_eq!(units[1].parallel(), 2);
    }

    #[test]
    fn rows_that_cannot_run_are_refused() {
        for bad in [
            "streams = []",
            "tokens = 60",
            "turns = 3",
            "stalled = 1",
            "strems = [1]",
            "streams = [1, 1]",
        ] {
            assert!(read(Some(&format!("{ROW}{bad}\n"))).is_err(), "{bad}");
        }
    }
}
