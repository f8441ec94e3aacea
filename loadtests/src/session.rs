//! What every command that measures does around its measurements: run until somebody stops it, tell of rounds, and
//! keep what came.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use crate::numbers::short;
use crate::table::Figure;

/// Runs to its end, or until somebody stops it. What is dropped on the way out ends the processes that it started.
///
/// # Errors
/// The work's own, or it was stopped.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, async {
        let mut stop = signal(SignalKind::terminate())?;
        tokio::select! {
            end = work => end,
            _ = tokio::signal::ctrl_c() => bail!("stopped"),
            _ = stop.recv() => bail!("stopped"),
        }
    })
}

/// Tells what a round came to.
pub(crate) fn tell(round: u64, name: &str, figures: &[Figure]) {
    let texts: Vec<String> = figures
        .iter()
        .map(|figure| format!("{} {}", figure.name, short(figure.value)))
        .collect();
    eprintln!("{round} {name}: {}", texts.join("; "));
}

/// Tells why a round came to nothing; returns it for the report.
pub(crate) fn fault(round: u64, name: &str, fault: &anyhow::Error) -> String {
    eprintln!("{round} {name}: {fault:#}");
    format!("round {round}: {fault:#}")
}

/// Writes results as JSON, where that is wanted.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn keep(path: Option<&Path>, results: impl Iterator<Item = Value>) -> Result<()> {
    let Some(path) = path else {
        return Ok(());
    };
    write(path, &format!("{:#}\n", results.collect::<Value>()))
}

/// Writes a file.
///
/// # Errors
/// It cannot be written.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("could not write {}", path.display()))
}

/// Reads a file, where there is one.
///
/// # Errors
/// It cannot be read.
pub(crate) fn read(path: Option<&Path>) -> Result<Option<String>> {
    path.map(|path| {
        std::fs::read_to_string(path).with_context(|| format!("could not read {}", path.display()))
    })
    .transpose()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::folder::Folder;

    #[test]
    fn results_are_written_where_a_file_is_named() {
        let folder = Folder::new("session").unwrap();
        let path = folder.path().join("out.json");
        keep(None, [json!(1)].into_iter()).unwrap();
        keep(Some(&path), [json!(1), json!(2)].into_iter()).unwrap();
        let text = read(Some(&path)).unwrap().unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), json!([1, 2]));
        assert!(read(Some(&folder.path().join("none"))).is_err());
        assert_eq!(read(None).unwrap(), None);
    }

    #[test]
    fn work_ends_with_what_it_comes_to() {
        assert_eq!(block_on(async { Ok(7) }).unwrap(), 7);
        let error = block_on::<()>(async { bail!("no") }).unwrap_err();
        assert_eq!(fault(2, "x", &error), "round 2: no");
    }
}
