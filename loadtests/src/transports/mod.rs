//! `loadtests transports`: the gateway over every transport that it speaks, side by side.
//!
//! Each measurement of `units` is made in several rounds, each time on a gateway that was just started
//! (`gateway`), in turn so that a machine that becomes slower slows all. `load` opens streams over `net` and
//! measures; `readers` are who reads, and `relay` is a path with delay and loss. `measure` says what is run and makes `figures` of what came; `results` prints
//! medians and which of `targets` they meet.

mod figures;
mod load;
mod measure;
mod readers;
mod relay;
mod results;
mod sockets;
mod targets;
mod units;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::Args;
use tokio::time::timeout;

use crate::gateway::Program;
use measure::Bench;
use results::Results;

use crate::folder::Folder;
use crate::session;

/// The longest that one measurement may take in one round.
const LIMIT: Duration = Duration::from_mins(3);

/// Open files for ten thousand streams and a few more.
const FILES: u64 = 11_000;

/// What to measure.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Sluicegate's program
    #[arg(long, value_name = "FILE", default_value = "target/release/sluicegate")]
    sluicegate: PathBuf,

    /// Only measurements with this in their names; may be repeated
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,

    /// Name the measurements, and measure nothing
    #[arg(long)]
    list: bool,

    /// Rounds; medians are printed
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: u64,

    /// Time that each run is measured
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "4s")]
    duration: Duration,

    /// Time between the opening of all its streams and that
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "1s")]
    warm_up: Duration,

    /// A setting for the gateway, SECTION.KEY=VALUE; may be repeated
    #[arg(long, value_name = "SETTING")]
    set: Vec<String>,

    /// A table of targets instead of the built-in one
    #[arg(long, value_name = "FILE")]
    targets: Option<PathBuf>,

    /// Write every value as JSON
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Measures and prints.
///
/// # Errors
/// There is nothing to measure, no such program, or the table of targets is none.
pub(crate) fn run(options: &Options) -> Result<()> {
    let units = units::chosen(&options.only);
    ensure!(!units.is_empty(), "no measurement is left: see --only");
    if options.list {
        for unit in &units {
            println!("{}", unit.name());
        }
        return Ok(());
    }
    let targets = targets::read(session::read(options.targets.as_deref())?.as_deref())?;
    let files = crate::raise_file_limit(FILES);
    if files < FILES {
        eprintln!("the system allows {files} open files: ten thousand connections will fail");
    }
    let folder = Folder::new("transports")?;
    let mut results: Vec<Results> = units.iter().map(Results::new).collect();
    let end = session::block_on(all(options, &units, folder.path(), &mut results));
    // Also what was measured before the end came.
    print!("{}", results::report(&results, &targets));
    end
}

async fn all(
    options: &Options,
    units: &[units::Unit],
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
            spell: options.duration,
            warm_up: options.warm_up,
            seed: round,
        };
        for (unit, results) in units.iter().zip(results.iter_mut()) {
            let measured = timeout(LIMIT, bench.measure(unit)).await;
            let late = || bail!("not done after {} s", LIMIT.as_secs());
            match measured.unwrap_or_else(|_| late()) {
                Ok(figures) => {
                    session::tell(round, &unit.name(), &figures);
                    results.add(figures);
                }
                Err(fault) => results.fault(session::fault(round, &unit.name(), &fault)),
            }
        }
        // After each: an interrupted run has what it had.
        session::keep(options.out.as_deref(), results.iter().map(Results::json))?;
    }
    Ok(())
}
