//! `loadtests compare`: two programs, two configurations, or two phases of one scenario, in turn, and whether the
//! second is worse than the first.
//!
//! Each round is a value of each figure, and `rank` says what the rounds of both sides tell. A figure is a
//! regression where its ratio is past a bound and the ratio's interval has no 1 in it: a difference that is small,
//! or that chance may have made, is none.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;
use toml::Table;

use super::collector::Collector;
use super::rank::{self, Ratio};
use super::report::Report;
use super::server::{Kind, Subject};
use super::{Order, in_turn, measure, page, read};
use crate::folder::Folder;
use crate::gateway::Program;
use crate::numbers::{median, short};
use crate::session::{self, block_on, write};
use crate::table::markdown;

/// How often an interval may miss the truth. Many figures are looked at, so that one in twenty would be too often.
const CHANCE: f64 = 0.01;

/// Every round of both sides asks the same, so that only what is compared differs.
const SEED: u64 = 1;

/// The names of both sides.
const SIDES: [&str; 2] = ["base", "head"];

/// Figures that are compared: of every phase, of all its callers; whether more is worse; and how many times the
/// bound they may be worse: what is rare is measured less well.
const COMPARED: [(&str, bool, f64); 10] = [
    ("first token p50", true, 1.0),
    ("first token p99", true, 3.0),
    ("gap p50", true, 1.0),
    ("gap p99", true, 3.0),
    ("total p50", true, 1.0),
    ("healthz p99", true, 3.0),
    ("tokens", false, 1.0),
    ("answers", false, 1.0),
    ("server CPU per token", true, 1.0),
    ("resident", true, 3.0),
];

/// What to compare.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Scenarios: names of folders in --scenarios-in, or paths of folders
    #[arg(value_name = "SCENARIO", required_unless_present = "recorded")]
    scenarios: Vec<String>,

    /// Where scenarios are
    #[arg(long, value_name = "FOLDER", default_value = super::FOLDER)]
    scenarios_in: PathBuf,

    /// The program that is known to be good
    #[arg(long, value_name = "FILE", default_value = "target/release/sluicegate")]
    base: PathBuf,

    /// The program that is judged
    #[arg(long, value_name = "FILE", default_value = "target/release/sluicegate")]
    head: PathBuf,

    /// Configuration over the scenario's for the first side. {collector} in it is where --collector listens
    #[arg(long, value_name = "FILE")]
    base_with: Option<PathBuf>,

    /// The same for the second side
    #[arg(long, value_name = "FILE")]
    head_with: Option<PathBuf>,

    /// Take in traces (OTLP over HTTP) and throw them away
    #[arg(long)]
    collector: bool,

    /// Changes of the script for the second side ("pace=22ms"), to see that a slower one is found out
    #[arg(long, value_name = "CHANGES")]
    head_script: Option<String>,

    /// Compare two phases of the scenario instead, with one program
    #[arg(long, value_name = "BASE,HEAD", conflicts_with_all = ["head", "head_with", "head_script"])]
    phases: Option<String>,

    /// Rounds of each side
    #[arg(long, value_name = "N", default_value_t = 6)]
    rounds: u64,

    /// Measure each scenario for so many seconds in a round
    #[arg(long, value_name = "N")]
    seconds: Option<f64>,

    /// By how many per cent a figure may be worse; three times that for the rare ones (p99)
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0)]
    bound: f64,

    /// Judge what an earlier run has written with --json, and measure nothing
    #[arg(long, value_name = "FILE")]
    recorded: Option<PathBuf>,

    /// Write every value as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write a page with plots
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// A figure of both sides.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    scenario: String,
    figure: String,
    base: Vec<f64>,
    head: Vec<f64>,
    /// What the second side is of the first; none where that cannot be said.
    ratio: Option<Ratio>,
    verdict: Verdict,
}

/// What a difference is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// No worse, as far as can be said.
    Good,
    /// Better, and that is no chance.
    Better,
    /// Worse, past the bound, and that is no chance.
    Worse,
    /// Too few values, or zeros.
    Unknown,
}

/// Measures, or reads what was measured, and judges; a failure where something is worse.
///
/// # Errors
/// A program does not start, a file cannot be read, or there was nothing to compare.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    ensure!(options.bound > 0.0, "a bound is above 0");
    let results = match &options.recorded {
        Some(_) => {
            let text = session::read(options.recorded.as_deref())?;
            serde_json::from_str(&text.unwrap_or_default()).context("this is no file of results")?
        }
        None => record(options)?,
    };
    let phases = phases(options)?;
    let rows = rows(&results, phases, options.bound)?;
    print!("{}", report(&rows, options.bound));
    let is_good = rows.iter().all(|row| row.verdict != Verdict::Worse);
    Ok(if is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn phases(options: &Options) -> Result<Option<[&str; 2]>> {
    let Some(phases) = &options.phases else {
        return Ok(None);
    };
    let (base, head) = phases.split_once(',').context("--phases is BASE,HEAD")?;
    Ok(Some([base, head]))
}

/// Measures, and returns what the file of results has.
fn record(options: &Options) -> Result<Value> {
    let scenarios = read(&options.scenarios_in, &options.scenarios)?;
    ensure!(
        options.rounds >= 5,
        "at least five rounds: fewer cannot tell chance from change"
    );
    if let Some(seconds) = options.seconds {
        ensure!((0.1..=3600.0).contains(&seconds), "0.1 to 3,600 seconds");
    }
    crate::raise_file_limit(super::FILES);
    let folder = Folder::new("compare")?;
    let collector = options.collector.then(Collector::start).transpose()?;
    let overlay = |file: &Option<PathBuf>| overlay(file.as_deref(), collector.as_ref());
    let subject = |name: &str, file: &Path, overlay, script: Option<&String>| Subject {
        name: name.to_owned(),
        kind: Kind::Gateway {
            program: Program {
                file: file.to_owned(),
                settings: Vec::new(),
                folder: folder.path().to_owned(),
            },
            overlay,
            script: script.cloned(),
        },
    };
    let mut subjects = vec![subject(
        SIDES[0],
        &options.base,
        overlay(&options.base_with)?,
        None,
    )];
    if options.phases.is_none() {
        let head = overlay(&options.head_with)?;
        subjects.push(subject(
            SIDES[1],
            &options.head,
            head,
            options.head_script.as_ref(),
        ));
    }
    let mut report = Report::new(true);
    block_on(async {
        for round in 1..=options.rounds {
            for scenario in &scenarios {
                let seconds = options.seconds.map(std::time::Duration::from_secs_f64);
                let time = seconds.unwrap_or(scenario.short);
                let order = match (&options.phases, round % 2) {
                    (Some(_), 0) => Order::Back,
                    _ => Order::Forth,
                };
                for subject in in_turn(&subjects, round) {
                    let part = measure(scenario, subject, time, SEED, order).await;
                    report.add(scenario, &subject.name, part);
                }
            }
        }
        Ok(())
    })?;
    if let Some(collector) = &collector {
        let (requests, bytes) = collector.seen();
        eprintln!("the collector has taken {requests} requests, {bytes} bytes");
        ensure!(
            requests > 0,
            "no trace came to the collector: there is nothing to compare"
        );
    }
    let faults = report.faults();
    ensure!(faults.is_empty(), "rounds failed: {}", faults.join("; "));
    let json = report.json(&scenarios);
    if let Some(path) = &options.json {
        write(path, &format!("{json:#}\n"))?;
    }
    if let Some(path) = &options.html {
        write(path, &page::page(&report, &scenarios))?;
    }
    Ok(json)
}

fn overlay(file: Option<&Path>, collector: Option<&Collector>) -> Result<Table> {
    let Some(file) = file else {
        return Ok(Table::new());
    };
    let mut text = session::read(Some(file))?.unwrap_or_default();
    match collector {
        Some(collector) => {
            let url = format!("http://{}", collector.address);
            text = text.replace("{collector}", &url);
        }
        None => ensure!(
            !text.contains("{collector}"),
            "{} needs --collector",
            file.display()
        ),
    }
    text.parse().with_context(|| format!("{}", file.display()))
}

/// Every figure that both sides have.
fn rows(results: &Value, phases: Option<[&str; 2]>, bound: f64) -> Result<Vec<Row>> {
    let entries = results["results"]
        .as_array()
        .context("this is no file of results")?;
    let mut rows = Vec::new();
    for base in entries.iter().filter(|entry| entry["server"] == SIDES[0]) {
        let scenario = base["scenario"].as_str().unwrap_or_default();
        let head = match phases {
            Some(_) => Some(base),
            None => entries
                .iter()
                .find(|entry| entry["server"] == SIDES[1] && entry["scenario"] == scenario),
        };
        let Some(head) = head else {
            bail!("{scenario} has no {:?}", SIDES[1]);
        };
        for (figure, values) in figures(base) {
            let (phase, what) = super::slo::split(&figure);
            let Some((_, more_is_worse, times)) =
                COMPARED.iter().find(|(known, _, _)| *known == what)
            else {
                continue;
            };
            let other = match phases {
                Some([from, to]) if phase == from => super::figures::titled(to, what),
                Some(_) => continue,
                None if phase.contains('/') => continue,
                None => figure.clone(),
            };
            let Some((_, others)) = figures(head).into_iter().find(|(name, _)| *name == other)
            else {
                continue;
            };
            let ratio = rank::ratio(&values, &others, CHANCE);
            rows.push(Row {
                scenario: scenario.to_owned(),
                figure: if phases.is_some() {
                    what.to_owned()
                } else {
                    figure
                },
                verdict: judge(ratio, *more_is_worse, times * bound / 100.0),
                base: values,
                head: others,
                ratio,
            });
        }
    }
    ensure!(
        rows.iter().any(|row| row.ratio.is_some()),
        "there is nothing to compare: five rounds of each side are the least"
    );
    Ok(rows)
}

fn figures(entry: &Value) -> Vec<(String, Vec<f64>)> {
    let one = |figure: &Value| {
        let values = figure["values"]
            .as_array()?
            .iter()
            .filter_map(Value::as_f64);
        Some((figure["name"].as_str()?.to_owned(), values.collect()))
    };
    let all = entry["figures"].as_array().map(Vec::as_slice);
    all.unwrap_or_default().iter().filter_map(one).collect()
}

fn judge(ratio: Option<Ratio>, more_is_worse: bool, bound: f64) -> Verdict {
    let Some(Ratio {
        estimate,
        interval: [low, high],
        ..
    }) = ratio
    else {
        return Verdict::Unknown;
    };
    // As if more were always worse.
    let (estimate, low, high) = if more_is_worse {
        (estimate, low, high)
    } else {
        (1.0 / estimate, 1.0 / high, 1.0 / low)
    };
    if low > 1.0 && estimate > 1.0 + bound {
        Verdict::Worse
    } else if high < 1.0 {
        Verdict::Better
    } else {
        Verdict::Good
    }
}

fn report(rows: &[Row], bound: f64) -> String {
    let head = [
        "scenario",
        "figure",
        "base",
        "head",
        "ratio",
        "99 % interval",
        "p",
        "",
    ];
    let mut cells = vec![head.map(str::to_owned).to_vec()];
    let middle = |values: &[f64]| median(values).map_or("–".to_owned(), short);
    for row in rows {
        let [ratio, interval, p] = match row.ratio {
            Some(ratio) => [
                format!("{:.3}", ratio.estimate),
                format!("{:.3} to {:.3}", ratio.interval[0], ratio.interval[1]),
                format!("{:.4}", ratio.p),
            ],
            None => ["–", "–", "–"].map(str::to_owned),
        };
        cells.push(vec![
            row.scenario.clone(),
            row.figure.clone(),
            middle(&row.base),
            middle(&row.head),
            ratio,
            interval,
            p,
            match row.verdict {
                Verdict::Good => "",
                Verdict::Better => "better",
                Verdict::Worse => "WORSE",
                Verdict::Unknown => "not comparable",
            }
            .to_owned(),
        ]);
    }
    let mut out = format!("\n{}\n", markdown(&cells));
    let worse = rows
        .iter()
        .filter(|row| row.verdict == Verdict::Worse)
        .count();
    let _ = writeln!(
        out,
        "{worse} of {} figures are worse by more than {bound} % ({} % for the rare ones), which is not by chance.",
        rows.len(),
        3.0 * bound
    );
    out
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    /// Recorded by `loadtests compare steady --seconds 3 --json FILE` with one program on both sides; histograms
    /// left out.
    const SAME: &str = include_str!("../../recorded/same.json");

    /// The same with `--head-script pace=23ms` where the scenario says 20.
    const SLOWER: &str = include_str!("../../recorded/slower.json");

    fn judged(text: &str) -> Vec<Row> {
        rows(&serde_json::from_str(text).unwrap(), None, 5.0).unwrap()
    }

    fn worse(rows: &[Row]) -> Vec<&str> {
        let worse = rows.iter().filter(|row| row.verdict == Verdict::Worse);
        worse.map(|row| row.figure.as_str()).collect()
    }

    #[test]
    fn the_same_program_is_not_worse_than_itself() {
        let rows = judged(SAME);
        assert!(rows.len() >= 8);
        assert_eq!(worse(&rows), [""; 0]);
    }

    #[test]
    fn a_program_that_was_slowed_down_is_found_out() {
        let rows = judged(SLOWER);
        let worse = worse(&rows);
        assert!(
            worse.contains(&"gap p50") && worse.contains(&"tokens"),
            "{worse:?}"
        );
        assert!(report(&rows, 5.0).contains("| WORSE |"));
        // The other way round it is better, and nothing else.
        let turned = SLOWER
            .replace("\"base\"", "\"x\"")
            .replace("\"head\"", "\"base\"")
            .replace("\"x\"", "\"head\"");
        let rows = judged(&turned);
        assert!(rows.iter().any(|row| row.verdict == Verdict::Better));
        assert!(rows.iter().all(|row| row.verdict != Verdict::Worse));
    }

    fn results(base: [f64; 6], head: [f64; 6]) -> Value {
        let entry = |server: &str, figure: &str, values: [f64; 6]| json!({"scenario": "s", "server": server, "figures": [{"name": figure, "values": values}]});
        json!({"results": [entry("base", "gap p50", base), entry("head", "gap p50", head)]})
    }

    #[test]
    fn a_difference_must_be_sure_and_past_the_bound() {
        let base = [10.0, 10.1, 10.2, 10.3, 10.4, 10.5];
        let times = |by: f64| base.map(|value| value * by);
        let verdict = |head, bound| rows(&results(base, head), None, bound).unwrap()[0].verdict;
        assert_eq!(verdict(times(1.20), 5.0), Verdict::Worse);
        // Sure, but small; past the bound, but not sure.
        assert_eq!(verdict(times(1.06), 10.0), Verdict::Good);
        assert_eq!(
            verdict([9.0, 9.5, 10.9, 12.0, 13.0, 9.9], 5.0),
            Verdict::Good
        );
        assert!(rows(&results(base, [0.0; 6]), None, 5.0).is_err());
    }

    #[test]
    fn phases_of_one_program_are_compared_by_their_names() {
        let figures =
            |factor: f64| [10.0, 10.1, 10.2, 10.3, 10.4, 10.5].map(|value| value * factor);
        let results = json!({"results": [{"scenario": "s", "server": "base", "figures": [
            {"name": "quiet: gap p99", "values": figures(1.0)},
            {"name": "scraped: gap p99", "values": figures(2.0)},
            {"name": "quiet/callers: gap p99", "values": figures(1.0)},
        ]}]});
        let rows = rows(&results, Some(["quiet", "scraped"]), 5.0).unwrap();
        assert_eq!(worse(&rows), ["gap p99"]);
        assert!(super::rows(&results, None, 5.0).is_err());
    }

    #[test]
    fn fewer_is_worse_where_more_is_better() {
        let ratio = |estimate: f64| {
            Some(Ratio {
                estimate,
                interval: [estimate * 0.99, estimate * 1.01],
                p: 0.002,
            })
        };
        assert_eq!(judge(ratio(0.8), false, 0.05), Verdict::Worse);
        assert_eq!(judge(ratio(0.8), true, 0.05), Verdict::Better);
        assert_eq!(judge(ratio(1.2), false, 0.05), Verdict::Better);
    }

    #[test]
    fn an_overlay_needs_the_collector_that_it_names() {
        let folder = Folder::new("overlay").unwrap();
        let file = folder.path().join("x.toml");
        fs::write(&file, "a = \"{collector}\"\n").unwrap();
        assert!(overlay(Some(&file), None).is_err());
        let collector = Collector::start().unwrap();
        let table = overlay(Some(&file), Some(&collector)).unwrap();
        assert!(
            table["a"]
                .as_str()
                .unwrap()
                .starts_with("http://127.0.0.1:")
        );
        assert!(overlay(None, None).unwrap().is_empty());
    }
}
