//! `loadtests limits`: what identity, limits and fairness promise, measured on the gateway itself.
//!
//! Each `scenario` is one promise: it starts a `gateway` with a configuration of its own, lets `callers` ask over
//! `client` connections, and makes figures of what came. What is compared (refused and accepted, without and with a
//! flood) alternates within a scenario, so that a machine that becomes slower slows both. `results` prints the
//! figures beside what the `slo` file says they should be.

mod callers;
mod client;
mod cost;
mod exact;
mod fair;
mod fairness;
mod flood;
mod overload;
mod redis;
mod refusal;
mod results;
mod scenario;
mod shared;
mod slo;
mod strangers;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::Args;
use tokio::time::timeout;

use crate::gateway::Program;
use results::Results;
use scenario::{Bench, Measured, Scenario};

use crate::folder::Folder;
use crate::session;

/// What a scenario may take beyond its time: starting, warming up, and the last answers.
const GRACE: Duration = Duration::from_mins(1);

/// Open files: every stream of an overload is a connection.
const FILES: u64 = 8_000;

/// What to measure.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Sluicegate's program
    #[arg(long, value_name = "FILE", default_value = "target/release/sluicegate")]
    sluicegate: PathBuf,

    /// Only scenarios with this in their names; may be repeated
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,

    /// Name the scenarios, and measure nothing
    #[arg(long)]
    list: bool,

    /// Rounds; medians count
    #[arg(long, value_name = "N", default_value_t = 1)]
    rounds: u64,

    /// How long each scenario takes, about
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "20s")]
    duration: Duration,

    /// A setting for the gateway, SECTION.KEY=VALUE; may be repeated
    #[arg(long, value_name = "SETTING")]
    set: Vec<String>,

    /// An SLO file instead of the built-in one
    #[arg(long, value_name = "FILE")]
    slo: Option<PathBuf>,

    /// Write every value as JSON
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Measures and prints; a failure where an objective was missed.
///
/// # Errors
/// There is nothing to measure, or the SLO file is none.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let scenarios = scenario::chosen(&options.only);
    ensure!(!scenarios.is_empty(), "no scenario is left: see --only");
    if options.list {
        for scenario in &scenarios {
            println!("{:<10} {}", scenario.name(), scenario.title());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let slos = slo::read(session::read(options.slo.as_deref())?.as_deref())?;
    crate::raise_file_limit(FILES);
    let folder = Folder::new("limits")?;
    let mut results: Vec<Results> = scenarios.iter().copied().map(Results::new).collect();
    let end = session::block_on(all(options, &scenarios, folder.path(), &mut results));
    // Also what was measured before the end came.
    print!("{}", results::report(&results, &slos));
    end?;
    Ok(if results::all_met(&results, &slos) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn all(
    options: &Options,
    scenarios: &[Scenario],
    folder: &Path,
    results: &mut [Results],
) -> Result<()> {
    for round in 1..=options.rounds {
        let bench = Bench {
            program: Program {
                file: options.sluicegate.clone(),
                settings: options.set.clone(),
                folder: folder.to_owned(),
            },
            time: options.duration,
            round,
        };
        for (scenario, results) in scenarios.iter().zip(results.iter_mut()) {
            let name = scenario.name();
            let limit = options.duration * 2 + GRACE;
            let measured = timeout(limit, scenario.measure(&bench)).await;
            let late = || bail!("not done after {} s", limit.as_secs());
            match measured.unwrap_or_else(|_| late()) {
                Ok(Measured::Figures(figures)) => {
                    session::tell(round, name, &figures);
                    results.add(figures);
                }
                Ok(Measured::Skipped(why)) => {
                    eprintln!("{round} {name}: skipped: {why}");
                    results.skip(why);
                }
                Err(fault) => results.fault(session::fault(round, name, &fault)),
            }
        }
        // After each: an interrupted run has what it had.
        session::keep(options.out.as_deref(), results.iter().map(Results::json))?;
    }
    Ok(())
}
