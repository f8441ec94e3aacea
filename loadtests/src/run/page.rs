//! One page of results that needs nothing else: tables, and plots as SVG.

use std::fmt::Write as _;
use std::time::Duration;

use super::attribution::Attribution;
use super::figures::{times, titled};
use super::plot::{self, Axes, Series, escape};
use super::report::{self, Entry, PhasePart, Report, machine, told};
use super::scenario::Scenario;
use super::tally;
use crate::histogram::Histogram;
use crate::numbers::{float, ms, short};

const STYLE: &str = include_str!("page.css");

/// The page.
pub(super) fn page(report: &Report, scenarios: &[Scenario]) -> String {
    let is_good = report.is_good(scenarios);
    let mut out = format!(
        "<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n\
         <meta name=viewport content=\"width=device-width, initial-scale=1\">\n\
         <title>Load tests: {}</title>\n<style>{STYLE}</style>\n<main>\n",
        if is_good { "met" } else { "missed" }
    );
    let machine = machine();
    let _ = write!(
        out,
        "<h1>Load tests <b class={}>{}</b></h1>\n<p class=quiet>{}, {} cores</p>\n",
        if is_good { "met" } else { "missed" },
        if is_good { "met" } else { "missed" },
        escape(
            machine["cpu"]
                .as_str()
                .unwrap_or("a machine of an unknown kind")
        ),
        machine["cores"]
    );
    for scenario in scenarios {
        let entries: Vec<&Entry> = report.of(scenario).collect();
        if !entries.is_empty() {
            out.push_str(&section(report, scenario, &entries));
        }
    }
    out.push_str("</main>\n</html>\n");
    out
}

fn section(report: &Report, scenario: &Scenario, entries: &[&Entry]) -> String {
    let mut out = format!(
        "<section>\n<h2>{}</h2>\n<p>{}</p>\n",
        escape(&scenario.name),
        escape(&scenario.question)
    );
    for entry in entries {
        let mut rows = vec![
            ["objective", "value", "verdict"]
                .map(str::to_owned)
                .to_vec(),
        ];
        for row in report.verdicts(scenario, entry) {
            rows.push(vec![
                row.objective,
                row.value.map_or("–".to_owned(), short),
                told(row.is_met).to_owned(),
            ]);
        }
        if entries.len() > 1 {
            let _ = writeln!(out, "<h3>{}</h3>", escape(&entry.subject));
        }
        out.push_str(&table(&rows));
        let doubts = entry.doubts();
        if !doubts.is_empty() {
            out.push_str("<ul class=doubts>");
            for doubt in doubts {
                let _ = write!(out, "<li>{}</li>", escape(&doubt));
            }
            out.push_str("</ul>\n");
        }
    }
    out.push_str("<div class=plots>\n");
    for (title, svg) in plots(scenario, entries) {
        if !svg.is_empty() {
            let _ = writeln!(
                out,
                "<figure><figcaption>{}</figcaption>{svg}</figure>",
                escape(&title)
            );
        }
    }
    out.push_str("</div>\n");
    out.push_str(&table(&report::table(entries)));
    out.push_str("</section>\n");
    out
}

/// Every plot of a scenario with its title.
fn plots(scenario: &Scenario, entries: &[&Entry]) -> Vec<(String, String)> {
    let mut plots = Vec::new();
    for (at, what) in ["first token", "gap", "total"].into_iter().enumerate() {
        let mut series = Vec::new();
        for (name, phases) in all_phases(scenario, entries) {
            let mut sum = Histogram::default();
            for phase in phases {
                if let Some(whole) = phase.scopes.first() {
                    sum.merge(times(&whole.tally)[at].1);
                }
            }
            series.push(Series {
                name,
                points: shares(&sum),
            });
        }
        let axes = Axes {
            x: "ms",
            is_log: true,
            top: Some(100.0),
        };
        let title = format!("{what}: % within so many ms");
        let svg = plot::lines(&title, &axes, &series);
        plots.push((title, svg));
    }
    let mut series = Vec::new();
    let (mut requests, mut engine) = (Vec::new(), Vec::new());
    for (name, phases) in all_phases(scenario, entries) {
        let Some(phase) = phases.last() else {
            continue;
        };
        let step = tally::step(phase.spell);
        let points = phase
            .scopes
            .first()
            .map(|whole| rates(&whole.tally.points, step));
        series.push(Series {
            name: name.clone(),
            points: points.unwrap_or_default(),
        });
        if let Some(Attribution {
            request,
            engine: steps,
        }) = &phase.attribution
        {
            requests.push((name.clone(), request.clone()));
            engine.push((name, steps.clone()));
        }
    }
    let axes = Axes {
        x: "s",
        is_log: false,
        top: None,
    };
    let title = "tokens/s over time (last round)";
    plots.push((title.to_owned(), plot::lines(title, &axes, &series)));
    let title = "where the mean request spent its time (last round)";
    plots.push((title.to_owned(), plot::bars(title, "ms", &requests)));
    let title = "the engine's time for each second (last round)";
    plots.push((title.to_owned(), plot::bars(title, "ms", &engine)));
    plots
}

/// Each phase with each server, and what came of it in all rounds.
fn all_phases<'a>(scenario: &Scenario, entries: &[&'a Entry]) -> Vec<(String, Vec<&'a PhasePart>)> {
    let mut all = Vec::new();
    for entry in entries {
        for phase in &scenario.phases {
            let rounds = entry.rounds.iter().flatten();
            let of: Vec<&PhasePart> = rounds.filter(|part| part.name == phase.name).collect();
            let name = match (entries.len(), phase.name.as_str()) {
                (1, "") => "all".to_owned(),
                (1, phase) => phase.to_owned(),
                (_, phase) => titled(phase, &entry.subject),
            };
            all.push((name, of));
        }
    }
    all
}

/// How many per cent were within so many milliseconds.
fn shares(histogram: &Histogram) -> Vec<(f64, f64)> {
    let all = float(histogram.count());
    let mut seen = 0;
    let mut points = Vec::new();
    for (last, count) in histogram.buckets() {
        // Up to here none more has come.
        points.push((ms(last), 100.0 * float(seen) / all));
        seen += count;
        points.push((ms(last), 100.0 * float(seen) / all));
    }
    points
}

/// Tokens a second, by the middle of each step.
fn rates(points: &[u64], step: Duration) -> Vec<(f64, f64)> {
    let seconds = step.as_secs_f64();
    let point = |(index, count): (usize, &u64)| {
        (
            (float(index as u64) + 0.5) * seconds,
            float(*count) / seconds,
        )
    };
    points.iter().enumerate().map(point).collect()
}

/// The first row is the head.
fn table(rows: &[Vec<String>]) -> String {
    let mut out = String::from("<div class=scroll><table>\n");
    for (index, row) in rows.iter().enumerate() {
        out.push_str("<tr>");
        for cell in row {
            let class = match cell.as_str() {
                "met" => " class=met",
                "MISSED" => " class=missed",
                _ => "",
            };
            let tag = if index == 0 { "th" } else { "td" };
            let _ = write!(out, "<{tag}{class}>{}</{tag}>", escape(cell));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_goes_up_to_all_of_it_in_steps() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::from_millis(1), 3);
        histogram.record(Duration::from_millis(4), 1);
        let points = shares(&histogram);
        let heights: Vec<f64> = points.iter().map(|(_, y)| *y).collect();
        assert_eq!(heights, [0.0, 75.0, 75.0, 100.0]);
    }

    #[test]
    fn tokens_are_told_by_the_second() {
        let points = rates(&[5, 10], Duration::from_millis(500));
        assert_eq!(points, [(0.25, 10.0), (0.75, 20.0)]);
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let page = page(&Report::new(false), &[]);
        for other in ["http:", "https:", "<script", "url(", "@import"] {
            assert!(!page.contains(other), "{other}");
        }
    }

    #[test]
    fn cells_are_no_markup() {
        let rows = vec![vec!["a".to_owned()], vec!["<b>".to_owned()]];
        assert!(table(&rows).contains("<td>&lt;b&gt;</td>"));
    }
}
