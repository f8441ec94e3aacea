//! The limit: a program that does nothing but decode, run on the same file.
//!
//! Two programs are understood, because they print the same lines: llama.cpp's `llama-batched-bench`, and
//! this repository's example `bare`.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::process::Command;

use super::figures::{Figure, cost, rate};
use super::scenario::{Kind, Unit};
use crate::numbers::median;

/// Times that it decodes the same again; the median counts.
const TIMES: usize = 3;

/// Such a program.
#[derive(Clone, Debug)]
pub(super) struct Bare {
    /// Its file.
    pub(super) program: PathBuf,
    /// Threads of its team.
    pub(super) threads: usize,
}

impl Bare {
    /// Whether a bare loop is a measure for such a measurement.
    pub(super) fn measures(kind: Kind) -> bool {
        matches!(
            kind,
            Kind::Decode | Kind::Prefill | Kind::Neighbour | Kind::Stalled | Kind::Copy
        )
    }

    /// The arguments for a measurement.
    pub(super) fn arguments(&self, unit: &Unit, model: &Path) -> Vec<String> {
        let row = &unit.row;
        let (prompt, tokens) = match row.kind {
            Kind::Prefill => (row.prompt, 1),
            _ => (row.prompt, row.tokens),
        };
        // Steps are repeated as rows of this list are; a prompt is read with each.
        let tokens = vec![tokens.to_string(); TIMES].join(",");
        let context = row.context as usize * unit.streams;
        [
            ("-m", model.display().to_string()),
            ("-c", context.to_string()),
            ("-npp", prompt.to_string()),
            ("-ntg", tokens),
            ("-npl", unit.streams.to_string()),
            ("-t", self.threads.to_string()),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .chain(["--output-format".to_owned(), "jsonl".to_owned()])
        .collect()
    }

    /// Runs it.
    ///
    /// # Errors
    /// It does not run, or prints something else.
    pub(super) async fn run(&self, unit: &Unit, model: &Path) -> Result<Vec<Figure>> {
        let output = Command::new(&self.program)
            .args(self.arguments(unit, model))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("could not start {}", self.program.display()))?;
        let program = self.program.display();
        ensure!(
            output.status.success(),
            "{program} ended with {}",
            output.status
        );
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        figures(unit.row.kind, &text).with_context(|| format!("{program} printed no figures"))
    }
}

/// The figures in what it printed.
fn figures(kind: Kind, text: &str) -> Option<Vec<Figure>> {
    let lines: Vec<Value> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line.trim()).ok())
        .filter(|line: &Value| line.get("speed_tg").is_some())
        .collect();
    let middle = |key: &str| {
        let values: Vec<f64> = lines
            .iter()
            .filter_map(|line| line.get(key)?.as_f64())
            .collect();
        median(&values)
    };
    Some(match kind {
        Kind::Prefill => vec![rate("prefill", middle("speed_pp")?)],
        kind => {
            let name = match kind {
                Kind::Neighbour => "decode, quiet",
                Kind::Stalled => "decode, alone",
                _ => "decode",
            };
            let mut figures = vec![rate(name, middle("speed_tg")?)];
            figures.extend(middle("cpu_us_tg").map(|cpu| cost("CPU", cpu)));
            figures
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::scenario;
    use super::*;

    fn unit(kind: &str, more: &str) -> Unit {
        let row = format!(
            "[[row]]\nkind = \"{kind}\"\nmodel = \"m\"\ncontext = 64\nprompt = 8\ntokens = 4\n{more}\n"
        );
        scenario::read(Some(&row)).unwrap().remove(0)
    }

    #[test]
    fn it_is_asked_for_the_same_streams_and_lengths() {
        let bare = Bare {
            program: "x".into(),
            threads: 2,
        };
        let decode = bare.arguments(&unit("decode", "streams = [3]"), "m.gguf".as_ref());
        assert_eq!(
            decode.join(" "),
            "-m m.gguf -c 192 -npp 8 -ntg 4,4,4 -npl 3 -t 2 --output-format jsonl"
        );
        assert!(!Bare::measures(Kind::Warm));
    }

    #[test]
    fn the_median_of_its_lines_counts() {
        let text = "noise\n{\"speed_pp\": 1.0, \"speed_tg\": 10.0}\n\
                    {\"speed_pp\": 3.0, \"speed_tg\": 30.0}\n{\"speed_pp\": 2.0, \"speed_tg\": 20.0}\n";
        let found = figures(Kind::Decode, text).unwrap();
        assert_eq!((found[0].name, found[0].value), ("decode", 20.0));
        let prefill = figures(Kind::Prefill, text).unwrap();
        assert_eq!((prefill[0].name, prefill[0].value), ("prefill", 2.0));
        assert_eq!(figures(Kind::Decode, "nothing"), None);
    }
}
