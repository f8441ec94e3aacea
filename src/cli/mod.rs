//! The command line: what can be asked of the program.
#![expect(
    clippy::print_stderr,
    reason = "errors of a command are for who ran it"
)]

pub mod chat;
pub mod check;
mod check_model;
mod cpu;
mod health;
mod key;
mod serve;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::Flags;

/// An LLM streaming gateway in one binary
///
/// Runs GGUF models in process and streams their tokens over HTTP as SSE, bare text, NDJSON and
/// JSON-RPC. Without a configured model it serves a tiny built-in one, called demo.
#[derive(Debug, Parser)]
#[command(name = "sluicegate", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve models
    ///
    /// Ends with status 0 after a signal to stop: SIGTERM or Ctrl-C lets running streams finish, up
    /// to drain.timeout; a second one ends at once. SIGHUP reads the configuration again; the log
    /// says what of it holds now, and what needs a restart. SIGUSR1 doubles the detail of traces and
    /// of the continuous profile, SIGUSR2 halves it.
    Serve {
        #[command(flatten)]
        flags: Flags,
    },
    Chat(Box<chat::ChatArgs>),
    /// Try a model file in a process of its own
    ///
    /// Checks the file, then loads it in a second process, tokenizes and computes two tokens there.
    /// Ends with status 2 when the file cannot be used, and says why.
    CheckModel(check_model::CheckModelArgs),
    Key(key::KeyArgs),
    Health(health::HealthArgs),
    /// Check a configuration without serving
    ///
    /// Accepts and refuses exactly what serve does. Ends with status 2 when something is wrong.
    Check {
        #[command(flatten)]
        flags: Flags,
    },
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    if cpu::refuses() {
        return ExitCode::from(cpu::WRONG_CPU);
    }
    run()
}

/// Not inlined: nothing of it may run before the CPU is known to be able to.
#[inline(never)]
fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve { flags } => serve::run(flags),
        Command::Chat(args) => talk(*args),
        Command::CheckModel(args) => check_model::run(&args),
        Command::Key(args) => key::run(&args),
        Command::Health(args) => health::run(&args),
        Command::Check { flags } => check::run(flags).map_err(Into::into),
    };
    result.unwrap_or_else(|error| {
        eprintln!("sluicegate: {error:#}");
        ExitCode::FAILURE
    })
}

/// The file of this program, also when it has been replaced on disk since it was started.
fn program() -> PathBuf {
    if cfg!(target_os = "linux") {
        return "/proc/self/exe".into();
    }
    std::env::current_exe().unwrap_or_else(|_| "sluicegate".into())
}

fn talk(args: chat::ChatArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(chat::run(args))
}
