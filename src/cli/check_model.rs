//! `sluicegate check-model`: says whether a model file can be used, without risking more than a process.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::check::BAD_CONFIG;
use crate::engine::isolated;
use crate::engine::llama::canary;
use crate::generation::chain;

/// What can be said on the command line.
#[derive(Debug, Args)]
pub(super) struct CheckModelArgs {
    /// A GGUF file
    #[arg(required_unless_present_any = ["canary", "serve"])]
    file: Option<PathBuf>,
    /// The longest that it may take
    #[arg(long, default_value = "5m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Be that second process: the file is standard input, and this the settings as JSON
    #[arg(long, hide = true, conflicts_with = "file")]
    canary: Option<String>,
    /// Be a process that runs this model for its parent, on standard input and output
    #[arg(long, hide = true, conflicts_with_all = ["file", "canary"])]
    serve: Option<String>,
}

/// Checks a file, or is the process in which it is tried or run.
pub(super) fn run(args: &CheckModelArgs) -> anyhow::Result<ExitCode> {
    if args.serve.is_some() {
        return Ok(isolated::serve()?);
    }
    if let Some(settings) = &args.canary {
        return Ok(match canary::examine(settings) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                writeln!(io::stderr(), "{}", chain(&error))?;
                ExitCode::from(canary::REFUSED)
            }
        });
    }
    let Some(file) = &args.file else {
        anyhow::bail!("write a file to check");
    };
    match canary::check(file, &super::program(), args.timeout) {
        Ok(()) => {
            writeln!(io::stdout(), "ok")?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            writeln!(io::stderr(), "{}", chain(&error))?;
            Ok(ExitCode::from(BAD_CONFIG))
        }
    }
}
