//! `loadtests compare`: two programs, two configurations, or two phases of one scenario, in turn, and whether the
//! second is worse than the first (`judge`).

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::Value;
use toml::Table;

use super::collector::Collector;
use super::judge::{self, SIDES, Verdict};
use super::report::Report;
use super::server::{Kind, Subject};
use super::{Order, in_turn, measure, page, read};
use crate::folder::Folder;
use crate::gateway::Program;
use crate::session::{self, block_on, write};

/// Every round of both sides asks the same, so that only what is compared differs.
const SEED: u64 = 1;

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
    let rows = judge::rows(&results, phases, options.bound)?;
    print!("{}", judge::report(&rows, options.bound));
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

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn the_exit_code_says_whether_something_is_worse() {
        let code = |file: &str| {
            let file = format!("{}/recorded/{file}", env!("CARGO_MANIFEST_DIR"));
            let line = Line::try_parse_from(["compare", "--recorded", &file]).unwrap();
            format!("{:?}", run(&line.options).unwrap())
        };
        assert_eq!(code("same.json"), format!("{:?}", ExitCode::SUCCESS));
        assert_eq!(code("slower.json"), format!("{:?}", ExitCode::FAILURE));
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
