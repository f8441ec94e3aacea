//! `loadtests engine`: this repository's server beside llama-server and a bare decode loop, on the same
//! files and the same machine.
//!
//! Every measurement of `scenario` is made in several rounds. In each round every contestant has its turn:
//! it is started alone (`server`, `bare`), measured (`measure`, over `client`) and ended before the next
//! one starts. What is compared are the ratios within a round, of which `results` prints medians, so that
//! a machine that becomes slower for a while slows all of them.

mod bare;
mod client;
mod figures;
mod measure;
pub(crate) mod neighbour;
mod results;
mod scenario;
mod server;
pub(crate) mod text;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;
use tokio::time::timeout;

use bare::Bare;
use client::Fault;
use figures::Figure;
use measure::Bench;
use results::{Contestant, Results};
use scenario::Unit;
use server::{Product, Server};
use text::Texts;

use crate::folder::Folder;

/// The model of this repository.
const DEMO: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../src/engine/llama/demo/sluicegate-demo-q8_0.gguf"
);

/// The longest that one contestant may take in one round.
const LIMIT: Duration = Duration::from_mins(10);

/// What to measure, and with which programs.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Sluicegate's program
    #[arg(long, value_name = "FILE", default_value = "target/release/sluicegate")]
    sluicegate: PathBuf,

    /// llama-server's program; absent: Sluicegate is measured alone
    #[arg(long, value_name = "FILE", env = "LLAMA_SERVER")]
    llama_server: Option<PathBuf>,

    /// The bare loop: llama-batched-bench, or this repository's example `bare`; absent: no limit is shown
    #[arg(long, value_name = "FILE", env = "LLAMA_BATCHED_BENCH")]
    bare: Option<PathBuf>,

    /// Threads of the bare loop; absent: as many as there are cores
    #[arg(long, value_name = "N")]
    bare_threads: Option<usize>,

    /// Folder of NAME.gguf; measurements whose file is missing are left out
    #[arg(long, value_name = "DIR", env = "ENGINE_MODELS")]
    models: Option<PathBuf>,

    /// A table of measurements instead of the built-in one
    #[arg(long, value_name = "FILE")]
    scenarios: Option<PathBuf>,

    /// Only measurements with this in their names; may be repeated
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,

    /// Name the measurements and the programs' arguments, and measure nothing
    #[arg(long)]
    list: bool,

    /// Rounds; ratios are taken within each
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,

    /// Shortest time of a measurement; what is under way is finished
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "3s")]
    duration: Duration,

    /// Shortest time of load before it
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "2s")]
    warm_up: Duration,

    /// A setting for Sluicegate, SECTION.KEY=VALUE; may be repeated
    #[arg(long, value_name = "SETTING")]
    set: Vec<String>,

    /// A key of the model's table in Sluicegate's configuration, KEY=VALUE in TOML; may be repeated
    #[arg(long, value_name = "SETTING")]
    set_model: Vec<String>,

    /// A further argument for llama-server; may be repeated
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    llama_argument: Vec<String>,

    /// Write every value as JSON
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Measures and prints.
///
/// # Errors
/// A program is missing, or the table of scenarios is none.
pub(crate) fn run(options: &Options) -> Result<()> {
    let units = units(options)?;
    ensure!(
        !units.is_empty(),
        "no measurement is left: see --models and --only"
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let folder = Folder::new("engine")?;
    let programs = Programs::new(options);
    if options.list {
        for (unit, model) in &units {
            println!("{}", unit.name());
            for (who, command) in programs.commands(unit, model, folder.path()) {
                println!("    {}: {command}", who.name());
            }
        }
        return Ok(());
    }
    let done = RefCell::new(Vec::new());
    let end = LocalSet::new().block_on(&runtime, async {
        let mut stop = signal(SignalKind::terminate())?;
        tokio::select! {
            // Whatever is dropped on the way out ends the processes that it started.
            end = all(options, &programs, &units, folder.path(), &done) => end,
            _ = tokio::signal::ctrl_c() => bail!("stopped"),
            _ = stop.recv() => bail!("stopped"),
        }
    });
    // Also what was measured before the end came.
    print!("{}", results::table(&done.borrow()));
    end
}

async fn all(
    options: &Options,
    programs: &Programs,
    units: &[(Unit, PathBuf)],
    folder: &Path,
    done: &RefCell<Vec<Results>>,
) -> Result<()> {
    let machine = programs.machine(options).await?;
    eprintln!("{machine:#}");
    for (index, (unit, model)) in units.iter().enumerate() {
        eprintln!("{}/{} {}", index + 1, units.len(), unit.name());
        let mut results = Results::new(unit, programs.commands(unit, model, folder));
        for round in 0..options.rounds {
            let contestants = programs.present(unit);
            for turn in 0..contestants.len() {
                // Each round begins with another one.
                let who = contestants[(round + turn) % contestants.len()];
                let seed = (index * 1000 + round) as u64 + 1;
                match programs
                    .measure(who, unit, model, folder, seed, options)
                    .await
                {
                    Ok(figures) => {
                        progress(round, who, &figures);
                        results.add(who, round, figures);
                    }
                    Err(Fault::NotServed(fault)) => {
                        eprintln!("  {} {}: not served: {fault}", round + 1, who.name());
                        results.fault(who, format!("not served: {fault}"));
                    }
                    Err(Fault::Failed(fault)) => {
                        eprintln!("  {} {}: {fault}", round + 1, who.name());
                        results.fault(who, format!("round {}: {fault}", round + 1));
                    }
                }
            }
        }
        done.borrow_mut().push(results);
        // After each: an interrupted run has what it had.
        if let Some(path) = &options.out {
            let figures: Vec<Value> = done.borrow().iter().map(Results::json).collect();
            let json = json!({"machine": machine, "measurements": figures});
            std::fs::write(path, format!("{json:#}\n"))
                .with_context(|| format!("could not write {}", path.display()))?;
        }
    }
    Ok(())
}

fn progress(round: usize, who: Contestant, figures: &[Figure]) {
    let figures: Vec<String> = figures
        .iter()
        .map(|figure| format!("{} {:.2} {}", figure.name, figure.value, figure.unit))
        .collect();
    eprintln!("  {} {}: {}", round + 1, who.name(), figures.join("; "));
}

/// The measurements that are wanted and have their file.
fn units(options: &Options) -> Result<Vec<(Unit, PathBuf)>> {
    let text = options
        .scenarios
        .as_ref()
        .map(|path| {
            std::fs::read_to_string(path)
                .with_context(|| format!("could not read {}", path.display()))
        })
        .transpose()?;
    let more: toml::Table = options
        .set_model
        .join("\n")
        .parse()
        .context("--set-model takes KEY=VALUE")?;
    let mut chosen = Vec::new();
    for mut unit in scenario::read(text.as_deref())? {
        let name = unit.name();
        if !options.only.is_empty() && !options.only.iter().any(|only| name.contains(only)) {
            continue;
        }
        unit.row.sluicegate.extend(more.clone());
        match model(&unit.row.model, options.models.as_deref()) {
            Some(path) => chosen.push((unit, path)),
            None => eprintln!("left out: {name}: there is no {}.gguf", unit.row.model),
        }
    }
    Ok(chosen)
}

fn model(name: &str, folder: Option<&Path>) -> Option<PathBuf> {
    let given = folder.map(|folder| folder.join(format!("{name}.gguf")));
    let demo = (name == "demo").then(|| PathBuf::from(DEMO));
    let path = given.into_iter().chain(demo).find(|path| path.is_file())?;
    path.canonicalize().ok()
}

/// The programs that take part.
struct Programs {
    sluicegate: Server,
    llama: Option<Server>,
    bare: Option<Bare>,
}

impl Programs {
    fn new(options: &Options) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            sluicegate: Server {
                product: Product::Sluicegate,
                program: options.sluicegate.clone(),
                flags: options
                    .set
                    .iter()
                    .flat_map(|setting| ["--set".to_owned(), setting.clone()])
                    .collect(),
            },
            llama: options.llama_server.clone().map(|program| Server {
                product: Product::Llama,
                program,
                flags: options.llama_argument.clone(),
            }),
            bare: options.bare.clone().map(|program| Bare {
                program,
                threads: options.bare_threads.unwrap_or(cores),
            }),
        }
    }

    /// Who takes part in a measurement.
    fn present(&self, unit: &Unit) -> Vec<Contestant> {
        let mut all = vec![Contestant::Sluicegate];
        all.extend(self.llama.as_ref().map(|_| Contestant::Llama));
        if self.bare.is_some() && Bare::measures(unit.row.kind) {
            all.push(Contestant::Bare);
        }
        all
    }

    fn server(&self, who: Contestant) -> Option<&Server> {
        match who {
            Contestant::Sluicegate => Some(&self.sluicegate),
            Contestant::Llama => self.llama.as_ref(),
            Contestant::Bare => None,
        }
    }

    /// One contestant's turn.
    async fn measure(
        &self,
        who: Contestant,
        unit: &Unit,
        model: &Path,
        folder: &Path,
        seed: u64,
        options: &Options,
    ) -> Result<Vec<Figure>, Fault> {
        let failed = |error: anyhow::Error| Fault::Failed(format!("{error:#}"));
        let late = |_| Fault::Failed(format!("not done after {} s", LIMIT.as_secs()));
        if let (Contestant::Bare, Some(bare)) = (who, &self.bare) {
            let run = timeout(LIMIT, bare.run(unit, model)).await;
            return run.map_err(late)?.map_err(failed);
        }
        let Some(server) = self.server(who) else {
            return Ok(Vec::new());
        };
        let running = server.start(unit, model, folder).await.map_err(failed)?;
        let mut bench = Bench {
            unit,
            running: &running,
            texts: Texts::new(seed),
            seconds: options.duration,
            warm_up: options.warm_up,
        };
        let measured = timeout(LIMIT, bench.measure()).await;
        running.stop().await;
        measured.map_err(late)?
    }

    /// How the programs are started for a measurement; ports differ from run to run.
    fn commands(&self, unit: &Unit, model: &Path, folder: &Path) -> Vec<(Contestant, String)> {
        let command = |who| {
            let Some(server) = self.server(who) else {
                return Some(self.bare.as_ref()?.arguments(unit, model).join(" "));
            };
            let (arguments, config) = server.arguments(unit, model, [0, 0], folder);
            let keys = config
                .as_deref()
                .and_then(|config| config.split_once("[[models]]"));
            let keys = keys.map_or(String::new(), |(_, keys)| keys.replace('\n', " "));
            Some([arguments.join(" "), keys].join(" ").trim_end().to_owned())
        };
        let present = self.present(unit).into_iter();
        present
            .filter_map(|who| Some((who, command(who)?)))
            .collect()
    }

    /// What the figures depend on.
    async fn machine(&self, options: &Options) -> Result<Value> {
        let mut programs = Vec::new();
        for server in [Some(&self.sluicegate), self.llama.as_ref()]
            .into_iter()
            .flatten()
        {
            let version = version(&server.program).await?;
            programs.push(json!({"program": server.program, "version": version}));
        }
        if let Some(bare) = &self.bare {
            ensure!(
                bare.program.is_file(),
                "{} is not there",
                bare.program.display()
            );
            programs.push(json!({"program": bare.program, "threads": bare.threads}));
        }
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name"));
        Ok(json!({
            "cpu": model.map(|model| model.trim_matches([' ', '\t', ':'])),
            "cores": std::thread::available_parallelism().map_or(1, usize::from),
            "rounds": options.rounds,
            "programs": programs,
        }))
    }
}

async fn version(program: &Path) -> Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("could not start {}", program.display()))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text
        .lines()
        .find(|line| line.contains(|c: char| c.is_ascii_digit()));
    Ok(line.unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(flags: &[&str]) -> Options {
        let line = ["x"].iter().chain(flags);
        Line::try_parse_from(line).unwrap().options
    }

    #[test]
    fn measurements_are_chosen_by_name_and_need_their_file() {
        let nowhere = ["--models", "/nowhere"];
        let all = units(&options(&nowhere)).unwrap();
        assert!(!all.is_empty() && all.iter().all(|(unit, _)| unit.row.model == "demo"));
        let flags = [&nowhere[..], &["--only", "decode", "--only", "copy"]].concat();
        let some = units(&options(&flags)).unwrap();
        assert!(some.len() < all.len());
        let kinds: Vec<_> = some.iter().map(|(unit, _)| unit.row.kind.name()).collect();
        assert!(kinds.contains(&"decode") && kinds.contains(&"copy"));
    }

    #[test]
    fn settings_go_to_the_server_that_they_are_for() {
        let options = options(&[
            "--only=copy demo",
            "--llama-server=l",
            "--bare=b",
            "--bare-threads=3",
            "--set=telemetry.log='warn'",
            "--set-model=threads=2",
            "--llama-argument=-t",
            "--llama-argument=1",
        ]);
        let units = units(&options).unwrap();
        let (unit, model) = &units[0];
        let commands = Programs::new(&options).commands(unit, model, "/f".as_ref());
        let commands: Vec<&str> = commands
            .iter()
            .map(|(_, command)| command.as_str())
            .collect();
        assert!(commands[0].contains("--set telemetry.log='warn'"));
        assert!(commands[0].ends_with("parallel = 1 threads = 2"));
        assert!(commands[1].ends_with("--no-webui -t 1"));
        assert!(commands[2].contains("-npl 1 -t 3"));
    }
}
