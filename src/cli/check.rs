//! `sluicegate check`: says whether `serve` would accept a configuration, without serving.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::config::{Config, ConfigError, Flags, Sources};
use crate::engine::config::Backing;

/// Exit status of a configuration that cannot be used; `serve` ends with the same.
pub const BAD_CONFIG: u8 = 2;

/// Checks the configuration that `flags` and the environment make. Prints `ok` and a summary to
/// standard output, or every problem to standard error.
///
/// # Errors
/// The output cannot be written.
pub fn run(flags: Flags) -> io::Result<ExitCode> {
    match Sources::of_process(flags).and_then(|sources| Config::load(&sources)) {
        Ok(config) => match config.unusable_model() {
            None => {
                summarize(&config, &mut io::stdout().lock())?;
                Ok(ExitCode::SUCCESS)
            }
            Some(reason) => {
                writeln!(io::stderr().lock(), "{reason}")?;
                Ok(ExitCode::from(BAD_CONFIG))
            }
        },
        Err(error) => {
            report(&error)?;
            Ok(ExitCode::from(BAD_CONFIG))
        }
    }
}

/// Prints what is wrong with a configuration to standard error.
pub(super) fn report(error: &ConfigError) -> io::Result<()> {
    let mut out = io::stderr().lock();
    write!(out, "{error}")?;
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        write!(out, ": {error}")?;
        cause = error.source();
    }
    writeln!(out)
}

fn summarize(config: &Config, out: &mut impl Write) -> io::Result<()> {
    let list = |addresses: &[std::net::SocketAddr]| {
        let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        texts.join(", ")
    };
    writeln!(out, "ok")?;
    writeln!(out, "  requests   {}", list(&config.server.listen))?;
    if config.tls.is_on() {
        writeln!(out, "  over TLS   {}", list(&config.tls.listen))?;
    }
    writeln!(out, "  operators  {}", list(&config.ops.listen))?;
    if config.models.is_empty() {
        writeln!(out, "  model      demo (built in)")?;
    }
    for model in &config.models {
        match &model.backing {
            Backing::Gguf { path, .. } => {
                writeln!(out, "  model      {} from {}", model.name, path.display())?;
            }
            Backing::Scripted(_) => writeln!(out, "  model      {} (scripted)", model.name)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(text: &str) -> String {
        let sources = Sources {
            file: Some(("test.toml".into(), text.to_owned())),
            ..Sources::default()
        };
        let mut out = Vec::new();
        summarize(&Config::load(&sources).unwrap(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_summary_says_where_and_what() {
        let nothing = summary("");
        assert!(nothing.starts_with("ok\n"), "{nothing}");
        assert!(nothing.contains("127.0.0.1:8080"), "{nothing}");
        assert!(nothing.contains("demo"), "{nothing}");
        let scripted = summary("[[models]]\nname = 'm'\nengine = 'scripted'");
        assert!(scripted.contains("m (scripted)"), "{scripted}");
        assert!(!scripted.contains("demo"), "{scripted}");
    }
}
