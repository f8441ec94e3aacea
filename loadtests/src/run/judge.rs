//! Whether the second side of a comparison is worse than the first.
//!
//! Each round is a value of each figure, and `rank` says what the rounds of both sides tell. A figure is worse where
//! its ratio is past a bound and the ratio's interval has no 1 in it: a difference that is small, or that chance may
//! have made, is none.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::figures::titled;
use super::rank::{self, Ratio};
use super::slo::split;
use crate::numbers::{median, short};
use crate::table::markdown;

/// How often an interval may miss the truth. Many figures are looked at, so that one in twenty would be too often.
const CHANCE: f64 = 0.01;

/// The names of both sides.
pub(super) const SIDES: [&str; 2] = ["base", "head"];

/// Figures that are compared: of every phase, of all its callers; whether more is worse; and how many times the
/// bound they may be worse: what is rare is measured less well.
const COMPARED: [(&str, bool, f64); 10] = [
    ("first token p50", true, 1.0),
    ("first token p99", true, 3.0),
    ("gap p50", true, 1.0),
    ("gap p99", true, 3.0),
    ("total p50", true, 1.0),
    ("healthz p99", true, 3.0),
    ("tokens", false, 1.0),
    ("answers", false, 1.0),
    ("server CPU per token", true, 1.0),
    ("resident", true, 3.0),
];

/// Shares of requests that went wrong. They are zero where all is well, so there is no ratio: worse is a second side of
/// which every round is above every one of the first, which chance makes in less than one of a hundred comparisons.
const FAILURES: [&str; 3] = ["errors", "truncated", "refused"];

/// In place of a rate of nothing at all, so that it is less than every other and not left out.
const NOTHING: f64 = 1e-9;

/// A figure of both sides.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    scenario: String,
    figure: String,
    base: Vec<f64>,
    head: Vec<f64>,
    /// What the second side is of the first; none where that cannot be said.
    ratio: Option<Ratio>,
    /// Whether that is worse.
    pub(super) verdict: Verdict,
}

/// What a difference is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// No worse, as far as can be said.
    Good,
    /// Better, and that is no chance.
    Better,
    /// Worse, past the bound, and that is no chance.
    Worse,
    /// Too few values, or zeros.
    Unknown,
}

/// Every figure that both sides have. With `phases` the sides are two phases of the first one.
///
/// # Errors
/// A side is missing, or has too few rounds to say anything.
pub(super) fn rows(results: &Value, phases: Option<[&str; 2]>, bound: f64) -> Result<Vec<Row>> {
    let entries = results["results"]
        .as_array()
        .context("this is no file of results")?;
    let mut rows = Vec::new();
    for base in entries.iter().filter(|entry| entry["server"] == SIDES[0]) {
        let scenario = base["scenario"].as_str().unwrap_or_default();
        let head = match phases {
            Some(_) => Some(base),
            None => entries
                .iter()
                .find(|entry| entry["server"] == SIDES[1] && entry["scenario"] == scenario),
        };
        let Some(head) = head else {
            bail!("{scenario} has no {:?}", SIDES[1]);
        };
        for (figure, values) in figures(base) {
            let (phase, what) = split(&figure);
            let compared = COMPARED.iter().find(|(known, _, _)| *known == what);
            if compared.is_none() && !FAILURES.contains(&what) {
                continue;
            }
            let other = match phases {
                Some([from, to]) if phase == from => titled(to, what),
                Some(_) => continue,
                None if phase.contains('/') => continue,
                None => figure.clone(),
            };
            // What the second side lacks (times where nothing came) is told as not comparable.
            let others = figures(head)
                .into_iter()
                .find(|(name, _)| *name == other)
                .map(|(_, values)| values)
                .unwrap_or_default();
            let (ratio, verdict) = match compared {
                Some((_, more_is_worse, times)) => {
                    let ratio = compare(&values, &others, *more_is_worse);
                    (ratio, judge(ratio, *more_is_worse, times * bound / 100.0))
                }
                None => (None, judge_failures(&values, &others)),
            };
            rows.push(Row {
                scenario: scenario.to_owned(),
                figure: if phases.is_some() {
                    what.to_owned()
                } else {
                    figure
                },
                verdict,
                base: values,
                head: others,
                ratio,
            });
        }
    }
    ensure!(
        rows.iter().any(|row| row.ratio.is_some()),
        "there is nothing to compare: five rounds of each side are the least"
    );
    Ok(rows)
}

fn figures(entry: &Value) -> Vec<(String, Vec<f64>)> {
    let one = |figure: &Value| {
        let values = figure["values"]
            .as_array()?
            .iter()
            .filter_map(Value::as_f64);
        Some((figure["name"].as_str()?.to_owned(), values.collect()))
    };
    let all = entry["figures"].as_array().map(Vec::as_slice);
    all.unwrap_or_default().iter().filter_map(one).collect()
}

fn compare(base: &[f64], head: &[f64], more_is_worse: bool) -> Option<Ratio> {
    if more_is_worse {
        return rank::ratio(base, head, CHANCE);
    }
    let head: Vec<f64> = head.iter().map(|value| value.max(NOTHING)).collect();
    rank::ratio(base, &head, CHANCE)
}

fn judge_failures(base: &[f64], head: &[f64]) -> Verdict {
    let above = |these: &[f64], those: &[f64]| {
        let least = these.iter().copied().fold(f64::INFINITY, f64::min);
        those.iter().all(|value| *value < least)
    };
    if base.is_empty() || head.is_empty() {
        Verdict::Unknown
    } else if above(head, base) {
        Verdict::Worse
    } else if above(base, head) {
        Verdict::Better
    } else {
        Verdict::Good
    }
}

fn judge(ratio: Option<Ratio>, more_is_worse: bool, bound: f64) -> Verdict {
    let Some(Ratio {
        estimate,
        interval: [low, high],
        ..
    }) = ratio
    else {
        return Verdict::Unknown;
    };
    // As if more were always worse.
    let (estimate, low, high) = if more_is_worse {
        (estimate, low, high)
    } else {
        (1.0 / estimate, 1.0 / high, 1.0 / low)
    };
    if low > 1.0 && estimate > 1.0 + bound {
        Verdict::Worse
    } else if high < 1.0 {
        Verdict::Better
    } else {
        Verdict::Good
    }
}

/// A table, and how many figures are worse.
pub(super) fn report(rows: &[Row], bound: f64) -> String {
    let head = [
        "scenario",
        "figure",
        "base",
        "head",
        "ratio",
        "99 % interval",
        "p",
        "",
    ];
    let mut cells = vec![head.map(str::to_owned).to_vec()];
    let middle = |values: &[f64]| median(values).map_or("–".to_owned(), short);
    for row in rows {
        let [ratio, interval, p] = match row.ratio {
            Some(ratio) => [
                format!("{:.3}", ratio.estimate),
                format!("{:.3} to {:.3}", ratio.interval[0], ratio.interval[1]),
                format!("{:.4}", ratio.p),
            ],
            None => ["–", "–", "–"].map(str::to_owned),
        };
        cells.push(vec![
            row.scenario.clone(),
            row.figure.clone(),
            middle(&row.base),
            middle(&row.head),
            ratio,
            interval,
            p,
            match row.verdict {
                Verdict::Good => "",
                Verdict::Better => "better",
                Verdict::Worse => "WORSE",
                Verdict::Unknown => "not comparable",
            }
            .to_owned(),
        ]);
    }
    let mut out = format!("\n{}\n", markdown(&cells));
    let worse = rows
        .iter()
        .filter(|row| row.verdict == Verdict::Worse)
        .count();
    let _ = writeln!(
        out,
        "{worse} of {} figures are worse by more than {bound} % ({} % for the rare ones; failures by anything), which is not by chance.",
        rows.len(),
        3.0 * bound
    );
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Recorded by `loadtests compare steady --seconds 3 --json FILE` with one program on both sides; histograms
    /// left out.
    const SAME: &str = include_str!("../../recorded/same.json");

    /// The same with `--head-script pace=23ms` where the scenario says 20.
    const SLOWER: &str = include_str!("../../recorded/slower.json");

    fn judged(text: &str) -> Vec<Row> {
        rows(&serde_json::from_str(text).unwrap(), None, 5.0).unwrap()
    }

    fn worse(rows: &[Row]) -> Vec<&str> {
        let worse = rows.iter().filter(|row| row.verdict == Verdict::Worse);
        worse.map(|row| row.figure.as_str()).collect()
    }

    #[test]
    fn the_same_program_is_not_worse_than_itself() {
        let rows = judged(SAME);
        assert!(rows.len() >= 8);
        assert_eq!(worse(&rows), [""; 0]);
    }

    #[test]
    fn a_program_that_was_slowed_down_is_found_out() {
        let rows = judged(SLOWER);
        let worse = worse(&rows);
        assert!(
            worse.contains(&"gap p50") && worse.contains(&"tokens"),
            "{worse:?}"
        );
        assert!(report(&rows, 5.0).contains("| WORSE |"));
        // The other way round it is better, and nothing else.
        let turned = SLOWER
            .replace("\"base\"", "\"x\"")
            .replace("\"head\"", "\"base\"")
            .replace("\"x\"", "\"head\"");
        let rows = judged(&turned);
        assert!(rows.iter().any(|row| row.verdict == Verdict::Better));
        assert!(rows.iter().all(|row| row.verdict != Verdict::Worse));
    }

    fn results(base: [f64; 6], head: [f64; 6]) -> Value {
        let entry = |server: &str, figure: &str, values: [f64; 6]| json!({"scenario": "s", "server": server, "figures": [{"name": figure, "values": values}]});
        json!({"results": [entry("base", "gap p50", base), entry("head", "gap p50", head)]})
    }

    #[test]
    fn a_difference_must_be_sure_and_past_the_bound() {
        let base = [10.0, 10.1, 10.2, 10.3, 10.4, 10.5];
        let times = |by: f64| base.map(|value| value * by);
        let verdict = |head, bound| rows(&results(base, head), None, bound).unwrap()[0].verdict;
        assert_eq!(verdict(times(1.20), 5.0), Verdict::Worse);
        // Sure, but small; past the bound, but not sure.
        assert_eq!(verdict(times(1.06), 10.0), Verdict::Good);
        assert_eq!(
            verdict([9.9, 10.0, 11.5, 12.0, 13.0, 12.5], 5.0),
            Verdict::Good
        );
        assert!(rows(&results(base, [0.0; 6]), None, 5.0).is_err());
    }

    #[test]
    fn a_program_that_answers_nothing_or_fails_more_often_is_worse() {
        let recorded = |figure: &str, values: [f64; 6]| {
            let mut results: Value = serde_json::from_str(SAME).unwrap();
            let head = results["results"].as_array_mut().unwrap().iter_mut();
            for entry in head.filter(|entry| entry["server"] == "head") {
                for line in entry["figures"].as_array_mut().unwrap() {
                    if line["name"] == figure {
                        line["values"] = json!(values);
                    }
                }
            }
            results
        };
        let found = |figure, values| {
            let rows = rows(&recorded(figure, values), None, 5.0).unwrap();
            worse(&rows).join(", ")
        };
        assert_eq!(found("tokens", [0.0; 6]), "tokens");
        assert_eq!(found("errors", [0.5; 6]), "errors");
        assert_eq!(
            found("truncated", [0.1, 0.2, 0.1, 9.0, 1.0, 1.0]),
            "truncated"
        );
        // Once is chance.
        assert_eq!(found("refused", [0.0, 0.0, 0.0, 9.0, 0.0, 0.0]), "");
        // Without a token there are no times; they are told as missing and not left out.
        let mut silent = recorded("tokens", [0.0; 6]);
        for entry in silent["results"].as_array_mut().unwrap() {
            if entry["server"] == "head" {
                let figures = entry["figures"].as_array_mut().unwrap();
                figures.retain(|line| line["name"] != "gap p50");
            }
        }
        let rows = rows(&silent, None, 5.0).unwrap();
        let gap = rows.iter().find(|row| row.figure == "gap p50").unwrap();
        assert_eq!(gap.verdict, Verdict::Unknown);
    }

    #[test]
    fn phases_of_one_program_are_compared_by_their_names() {
        let figures =
            |factor: f64| [10.0, 10.1, 10.2, 10.3, 10.4, 10.5].map(|value| value * factor);
        let results = json!({"results": [{"scenario": "s", "server": "base", "figures": [
            {"name": "quiet: gap p99", "values": figures(1.0)},
            {"name": "scraped: gap p99", "values": figures(2.0)},
            {"name": "quiet/callers: gap p99", "values": figures(1.0)},
        ]}]});
        let rows = rows(&results, Some(["quiet", "scraped"]), 5.0).unwrap();
        assert_eq!(worse(&rows), ["gap p99"]);
        assert!(super::rows(&results, None, 5.0).is_err());
    }

    #[test]
    fn fewer_is_worse_where_more_is_better() {
        let ratio = |estimate: f64| {
            Some(Ratio {
                estimate,
                interval: [estimate * 0.99, estimate * 1.01],
                p: 0.002,
            })
        };
        assert_eq!(judge(ratio(0.8), false, 0.05), Verdict::Worse);
        assert_eq!(judge(ratio(0.8), true, 0.05), Verdict::Better);
        assert_eq!(judge(ratio(1.2), false, 0.05), Verdict::Better);
    }
}
