//! `loadtests run`: scenarios from files, asked of the gateway or of any server that speaks OpenAI's words, and a
//! verdict. `loadtests compare`: two of them, and whether the second is worse.
//!
//! A `scenario` says who asks and what; its `slo` says what should come of it. For each `server` a `phase` is run
//! after the other: `callers` ask and `tally` what they see. `figures` are made of that, `attribution` of what the
//! gateway says of itself. `report` prints, judges and writes JSON; `page` draws. `compare` asks two in turn, `judge`
//! says whether the second is worse, and `rank` tells chance from change.

mod attribution;
mod callers;
mod collector;
pub(crate) mod compare;
mod figures;
mod judge;
mod page;
mod phase;
mod plot;
mod rank;
mod report;
mod scenario;
mod server;
mod slo;
mod tally;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::json;
use tokio::time::{sleep, timeout};
use toml::Table;

use report::{Part, Report};
use scenario::{Phase, Scenario};
use server::{Kind, Peer, Server, Subject, further};

use crate::folder::Folder;
use crate::gateway::Program;
use crate::net::{Dialer, Transport};
use crate::session::{block_on, write};
use crate::target::Target;

/// Where scenarios are looked for by their names.
const FOLDER: &str = "loadtests/scenarios";

/// What a scenario may take beyond its time: starting, warming up, and the last answers.
const GRACE: Duration = Duration::from_mins(2);

/// Open files: streams, their servers' ends, and a few more.
const FILES: u64 = 16_000;

/// Between two rounds, so that what one leaves behind (connections that close, memory that is given back) is not
/// seen by the next.
const PAUSE: Duration = Duration::from_millis(200);

/// What to run.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Scenarios: names of folders in --scenarios, or paths of folders; none is all
    #[arg(value_name = "SCENARIO")]
    scenarios: Vec<String>,

    /// Where scenarios are
    #[arg(long, value_name = "FOLDER", default_value = FOLDER)]
    scenarios_in: PathBuf,

    /// Name the scenarios, and run nothing
    #[arg(long)]
    list: bool,

    /// Sluicegate's program
    #[arg(long, value_name = "FILE", default_value = "target/release/sluicegate")]
    sluicegate: PathBuf,

    /// A setting for the gateway, SECTION.KEY=VALUE; may be repeated
    #[arg(long, value_name = "SETTING")]
    set: Vec<String>,

    /// A server that runs already, instead of a gateway that is started
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// The same with a name for reports; several are asked in turn. The key is in the environment, as
    /// `NAME_API_KEY` or else `OPENAI_API_KEY`
    #[arg(long, value_name = "NAME=URL")]
    peer: Vec<String>,

    /// The model that running servers are asked for, instead of the scenario's: MODEL, or NAME=MODEL for a peer
    #[arg(long, value_name = "MODEL")]
    model: Vec<String>,

    /// A peer's process on this machine, to read its CPU time and memory
    #[arg(long, value_name = "NAME=PID")]
    pid: Vec<String>,

    /// Ask peers for nothing that OpenAI's API does not know (answers may then be shorter than the scenario says)
    #[arg(long)]
    plain: bool,

    /// Measure each scenario for so many seconds
    #[arg(long, value_name = "N")]
    seconds: Option<f64>,

    /// The scenario's short form, and only what says the same on every machine is judged: ratios and failures
    #[arg(long)]
    short: bool,

    /// Rounds, servers in turn; medians count
    #[arg(long, value_name = "N", default_value_t = 1)]
    rounds: u64,

    /// Requests differ from those of another seed
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Write every value as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write a page with plots
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Runs and prints; a failure where an objective was missed.
///
/// # Errors
/// A scenario cannot be read, or there is no such server.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let scenarios = read(&options.scenarios_in, &options.scenarios)?;
    if options.list {
        for scenario in &scenarios {
            println!("{:<16} {}", scenario.name, scenario.question);
        }
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(options.rounds > 0, "at least one round");
    if let Some(seconds) = options.seconds {
        ensure!((0.1..=3600.0).contains(&seconds), "0.1 to 3,600 seconds");
    }
    crate::raise_file_limit(FILES);
    let folder = Folder::new("run")?;
    let subjects = subjects(options, folder.path())?;
    let mut report = Report::new(options.short);
    let end = block_on(async {
        for round in 1..=options.rounds {
            for scenario in &scenarios {
                let time = spell(options, scenario);
                for subject in in_turn(&subjects, round) {
                    let seed = options.seed + round;
                    let part = measure(scenario, subject, time, seed, Order::Forth).await;
                    report.add(scenario, &subject.name, part);
                }
            }
        }
        Ok(())
    });
    // Also what was measured before the end came.
    print!("{}", report.text(&scenarios));
    if let Some(path) = &options.json {
        let json = report.json(&scenarios);
        write(path, &format!("{json:#}\n"))?;
    }
    if let Some(path) = &options.html {
        write(path, &page::page(&report, &scenarios))?;
    }
    end?;
    Ok(if report.is_good(&scenarios) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Scenarios by name or path; all of a folder where none is named.
fn read(folder: &Path, names: &[String]) -> Result<Vec<Scenario>> {
    if !names.is_empty() {
        let path = |name: &String| match Path::new(name) {
            path if path.components().count() > 1 => path.to_owned(),
            path => folder.join(path),
        };
        return names
            .iter()
            .map(|name| Scenario::read(&path(name)))
            .collect();
    }
    let entries = std::fs::read_dir(folder)
        .with_context(|| format!("could not read {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.retain(|path| path.is_dir());
    paths.sort();
    ensure!(!paths.is_empty(), "no scenario in {}", folder.display());
    paths.iter().map(|path| Scenario::read(path)).collect()
}

fn spell(options: &Options, scenario: &Scenario) -> Duration {
    match options.seconds {
        Some(seconds) => Duration::from_secs_f64(seconds),
        None if options.short => scenario.short,
        None => scenario.duration,
    }
}

/// Who is asked.
fn subjects(options: &Options, folder: &Path) -> Result<Vec<Subject>> {
    let mut urls: Vec<(&str, &str)> = Vec::new();
    if let Some(url) = &options.url {
        urls.push(("server", url));
    }
    for peer in &options.peer {
        urls.push(peer.split_once('=').context("--peer is NAME=URL")?);
    }
    if urls.is_empty() {
        return Ok(vec![Subject {
            name: "sluicegate".to_owned(),
            kind: Kind::Gateway {
                program: Program {
                    file: options.sluicegate.clone(),
                    settings: options.set.clone(),
                    folder: folder.to_owned(),
                },
                overlay: Table::new(),
                script: None,
            },
        }]);
    }
    let subject = |(name, url): (&str, &str)| {
        let pid = named(&options.pid, name).map(str::parse).transpose();
        Ok(Subject {
            name: name.to_owned(),
            kind: Kind::Peer(Peer {
                target: Target::parse(url)?,
                key: key(name),
                model: named(&options.model, name).map(str::to_owned),
                is_plain: options.plain,
                pid: pid.context("--pid is NAME=PID")?,
            }),
        })
    };
    urls.into_iter().map(subject).collect()
}

/// The value for a name among NAME=VALUE; else the last one that has no name before it.
fn named<'a>(values: &'a [String], name: &str) -> Option<&'a str> {
    let own = values
        .iter()
        .rev()
        .find_map(|value| value.strip_prefix(name)?.strip_prefix('='));
    let any = || values.iter().rev().find(|value| !value.contains('='));
    own.or_else(|| any().map(String::as_str))
}

/// A peer's key, by the environment.
fn key(name: &str) -> Option<String> {
    let own: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_uppercase()
            } else {
                '_'
            }
        })
        .collect();
    let found = std::env::var(format!("{own}_API_KEY"));
    found.or_else(|_| std::env::var("OPENAI_API_KEY")).ok()
}

/// Forth in one round and back in the next, so that what drifts is shared by all.
fn in_turn<T>(all: &[T], round: u64) -> impl Iterator<Item = &T> {
    let forth = round % 2 == 1;
    let count = all.len();
    (0..count).map(move |index| &all[if forth { index } else { count - 1 - index }])
}

/// In which order phases are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// The file's.
    Forth,
    /// The other one.
    Back,
}

/// Runs a scenario once.
async fn measure(
    scenario: &Scenario,
    subject: &Subject,
    time: Duration,
    seed: u64,
    order: Order,
) -> Result<Part> {
    let limit = time + scenario.warm_up * u32::try_from(scenario.phases.len())? + GRACE;
    let begin = Instant::now();
    let part = timeout(limit, phases(scenario, subject, time, seed, order)).await;
    sleep(PAUSE).await;
    let part = part.unwrap_or_else(|_| bail!("not done after {} s", limit.as_secs()));
    match &part {
        Ok(_) => eprintln!(
            "{} {}: {:.1} s",
            scenario.name,
            subject.name,
            begin.elapsed().as_secs_f64()
        ),
        Err(fault) => eprintln!("{} {}: {fault:#}", scenario.name, subject.name),
    }
    part
}

async fn phases(
    scenario: &Scenario,
    subject: &Subject,
    time: Duration,
    seed: u64,
    order: Order,
) -> Result<Part> {
    let server = Rc::new(subject.start(scenario).await?);
    wake(scenario, &server).await?;
    let mut part = Part::default();
    let mut phases: Vec<&Phase> = scenario.phases.iter().collect();
    if order == Order::Back {
        phases.reverse();
    }
    for phase in phases {
        let spell = scenario.spell(phase, time);
        let outcome = phase::run(scenario, phase, &server, spell, seed).await?;
        part.take(outcome);
    }
    if let Some(server) = Rc::into_inner(server) {
        server.stop().await;
    }
    Ok(part)
}

/// Asks every further model once, so that it has all of its series.
async fn wake(scenario: &Scenario, server: &Server) -> Result<()> {
    if scenario.further_models == 0 || !matches!(server, Server::Gateway(..)) {
        return Ok(());
    }
    let dialer = Dialer::new(Transport::Http1, server.site(Transport::Http1)?, false)?;
    let connection = dialer.connect().await.map_err(anyhow::Error::msg)?;
    for index in 0..scenario.further_models {
        let messages = json!([{"role": "user", "content": "Hi"}]);
        let body = json!({
            "model": further(index), "messages": messages, "stream": true, "max_tokens": 2
        });
        let body = body.to_string().into_bytes();
        let stream = dialer.open(&connection, &body).await;
        let mut stream = stream.map_err(anyhow::Error::msg)?;
        loop {
            match stream.read(usize::MAX).await {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(fault) => bail!("{}: {fault}", further(index)),
            }
        }
        connection.keep(stream);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_asked_forth_and_back() {
        let order = |round| {
            in_turn(&["a", "b", "c"], round)
                .copied()
                .collect::<String>()
        };
        assert_eq!((order(1).as_str(), order(2).as_str()), ("abc", "cba"));
    }

    #[test]
    fn a_value_is_for_its_name_or_for_all() {
        let values: Vec<String> = ["m", "a=x"].map(str::to_owned).into();
        assert_eq!(named(&values, "a"), Some("x"));
        assert_eq!(named(&values, "b"), Some("m"));
        assert_eq!(named(&[], "b"), None);
    }
}
