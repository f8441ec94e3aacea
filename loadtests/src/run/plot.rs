//! Plots as SVG: lines over an axis that is linear or goes by powers of ten, and bars of parts.
//!
//! Nothing but shapes and text, with classes for colours, so that a page's style says how they look in light and
//! in dark.

use std::fmt::Write as _;

use crate::numbers::short;

/// Size of a plot, in its own units.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;

/// What is left around the lines for labels: left, right, top, bottom.
const MARGINS: [f64; 4] = [52.0, 26.0, 10.0, 38.0];

/// Series that have a colour of their own; later ones begin again.
const COLOURS: usize = 6;

/// A line of a plot.
pub(super) struct Series {
    /// For the legend.
    pub(super) name: String,
    /// In the order of their first coordinate.
    pub(super) points: Vec<(f64, f64)>,
}

/// What a plot's axes are.
pub(super) struct Axes {
    /// What goes to the right.
    pub(super) x: &'static str,
    /// Whether what goes to the right goes by powers of ten.
    pub(super) is_log: bool,
    /// The highest value, if not that of the lines.
    pub(super) top: Option<f64>,
}

/// Lines, with a legend where there are several. Nothing where there is nothing to draw.
pub(super) fn lines(title: &str, axes: &Axes, all: &[Series]) -> String {
    let points = || all.iter().flat_map(|series| &series.points);
    let xs = || {
        points()
            .map(|(x, _)| *x)
            .filter(|x| !axes.is_log || *x > 0.0)
    };
    let (least, most) = (xs().fold(f64::INFINITY, f64::min), xs().fold(0.0, f64::max));
    if !least.is_finite() {
        return String::new();
    }
    let (from, to) = if axes.is_log {
        around(least, most)
    } else {
        // One value alone still has an axis.
        (0.0, if most > 0.0 { most } else { 1.0 })
    };
    let highest = points().map(|(_, y)| *y).fold(0.0, f64::max);
    let top = axes.top.unwrap_or_else(|| round_up(highest));
    let [left, right, above, below] = MARGINS;
    let across = |x: f64| {
        let share = if axes.is_log {
            (x.max(from).log10() - from.log10()) / (to.log10() - from.log10())
        } else {
            (x - from) / (to - from)
        };
        left + share.clamp(0.0, 1.0) * (WIDTH - left - right)
    };
    let up = |y: f64| HEIGHT - below - (y / top).clamp(0.0, 1.0) * (HEIGHT - above - below);
    let mut out = open(title, HEIGHT);
    for step in 0..=4 {
        let value = top * f64::from(step) / 4.0;
        let y = up(value);
        let _ = write!(
            out,
            "<line class=grid x1={left} x2={:.1} y1={y:.1} y2={y:.1} />\
             <text class=y x={:.1} y={:.1}>{}</text>",
            WIDTH - right,
            left - 6.0,
            y + 4.0,
            tick(value)
        );
    }
    for value in ticks(from, to, axes.is_log) {
        let x = across(value);
        let _ = write!(
            out,
            "<line class=grid x1={x:.1} x2={x:.1} y1={above} y2={:.1} />\
             <text class=x x={x:.1} y={:.1}>{}</text>",
            HEIGHT - below,
            HEIGHT - below + 16.0,
            tick(value)
        );
    }
    let _ = write!(
        out,
        "<text class=name x={:.1} y={:.1}>{}</text>",
        f64::midpoint(left, WIDTH - right),
        HEIGHT - 5.0,
        escape(axes.x),
    );
    for (index, series) in all.iter().enumerate() {
        let mut path = String::new();
        for (x, y) in &series.points {
            let _ = write!(path, "{:.1},{:.1} ", across(*x), up(*y));
        }
        let colour = index % COLOURS;
        let _ = write!(
            out,
            "<polyline class=\"line c{colour}\" points=\"{}\" />",
            path.trim_end()
        );
    }
    out.push_str("</svg>");
    out.push_str(&legend(all.iter().map(|series| series.name.as_str())));
    out
}

/// A row of bars: its name, and its parts by theirs.
pub(super) type Bar<'a> = (String, Vec<(&'a str, Option<f64>)>);

/// Rows of parts that make a whole; a part that is not known is not drawn.
pub(super) fn bars(title: &str, unit: &str, rows: &[Bar<'_>]) -> String {
    let sum =
        |parts: &[(&str, Option<f64>)]| parts.iter().filter_map(|(_, part)| *part).sum::<f64>();
    let most = rows.iter().map(|(_, parts)| sum(parts)).fold(0.0, f64::max);
    let Some((_, first)) = rows.first().filter(|_| most > 0.0) else {
        return String::new();
    };
    let row_height = 46.0;
    #[expect(clippy::cast_precision_loss, reason = "there are few rows")]
    let height = rows.len() as f64 * row_height + 4.0;
    let mut out = open(title, height);
    let mut y = 4.0;
    for (name, parts) in rows {
        let _ = write!(
            out,
            "<text class=row x=0 y={:.1}>{}: {} {unit}</text>",
            y + 12.0,
            escape(name),
            short(sum(parts))
        );
        let mut x = 0.0;
        for (index, (_, part)) in parts.iter().enumerate() {
            let width = part.unwrap_or_default() / most * WIDTH;
            let colour = index % COLOURS;
            let _ = write!(
                out,
                "<rect class=c{colour} x={x:.1} y={:.1} width={width:.1} height=18 />",
                y + 18.0
            );
            x += width;
        }
        y += row_height;
    }
    out.push_str("</svg>");
    let names: Vec<String> = first
        .iter()
        .map(|(part, value)| match value {
            Some(_) => (*part).to_owned(),
            None => format!("{part} (not told)"),
        })
        .collect();
    out.push_str(&legend(names.iter().map(String::as_str)));
    out
}

fn open(title: &str, height: f64) -> String {
    let title = escape(title);
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=img aria-label=\"{title}\"><title>{title}</title>"
    )
}

fn legend<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut out = String::from("<ul class=legend>");
    for (index, name) in names.enumerate() {
        let colour = index % COLOURS;
        let _ = write!(out, "<li><i class=c{colour}></i>{}</li>", escape(name));
    }
    out.push_str("</ul>");
    out
}

/// Text that is no markup.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

/// The next of 1, 2, 5, 10, 20 …
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 4.0, 5.0, 8.0, 10.0];
    let step = steps.into_iter().find(|step| step * power >= value);
    step.unwrap_or(10.0) * power
}

/// 1, 2, 5, 10, 20 … from a millionth to a million millions.
fn ladder() -> impl Iterator<Item = f64> {
    (-6..12).flat_map(|power| [1.0, 2.0, 5.0].map(|step| step * 10_f64.powi(power)))
}

/// The steps of the ladder below and above, at least two steps from each other.
fn around(least: f64, most: f64) -> (f64, f64) {
    let below = ladder().take_while(|step| *step <= least).last();
    let below = below.unwrap_or(1e-6);
    let above = ladder()
        .filter(|step| *step > below)
        .find(|step| *step >= most);
    (below, above.unwrap_or(1e12))
}

fn ticks(from: f64, to: f64, is_log: bool) -> Vec<f64> {
    if is_log {
        // Numbers of the ladder are made in one way, so they are what they were.
        let all: Vec<f64> = ladder().filter(|step| (from..=to).contains(step)).collect();
        let is_power = |step: &f64| step.log10().fract().abs() < 1e-6;
        return match all.len() {
            0..=10 => all,
            _ => all.into_iter().filter(is_power).collect(),
        };
    }
    let step = round_up((to - from) / 8.0);
    let mut ticks = Vec::new();
    let mut value = from;
    while value <= to && ticks.len() < 12 {
        ticks.push(value);
        value += step;
    }
    ticks
}

/// A number as short as it can be.
fn tick(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 => format!("{}M", trim(value / 1e6)),
        size if size >= 1e3 => format!("{}k", trim(value / 1e3)),
        _ => trim(value),
    }
}

fn trim(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(points: &[(f64, f64)]) -> Series {
        Series {
            name: "a<b".to_owned(),
            points: points.to_vec(),
        }
    }

    const LOG: Axes = Axes {
        x: "ms",
        is_log: true,
        top: Some(100.0),
    };

    #[test]
    fn lines_stay_inside_and_names_are_no_markup() {
        let text = lines(
            "t",
            &LOG,
            &[series(&[(0.0, 0.0), (1.0, 50.0), (250.0, 100.0)])],
        );
        assert!(text.contains("a&lt;b") && !text.contains("a<b"));
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        // Zero is where the axis begins, and so is the least other value.
        assert!(text.contains("52.0,222.0 52.0,116.0 "), "{text}");
    }

    #[test]
    fn one_value_and_none_can_be_drawn() {
        let text = lines("t", &LOG, &[series(&[(5.0, 100.0)])]);
        assert!(text.contains("polyline") && !text.contains("NaN"));
        assert_eq!(lines("t", &LOG, &[series(&[])]), "");
        let linear = Axes {
            is_log: false,
            top: None,
            ..LOG
        };
        let text = lines("t", &linear, &[series(&[(0.0, 0.0)])]);
        assert!(text.contains("polyline") && !text.contains("NaN"));
    }

    #[test]
    fn parts_that_are_not_told_are_named_as_such() {
        let rows = [(
            "all".to_owned(),
            vec![("queue", Some(1.0)), ("prefill", None)],
        )];
        let text = bars("t", "ms", &rows);
        assert!(text.contains("prefill (not told)") && text.contains("all: 1.00 ms"));
        assert_eq!(bars("t", "ms", &[]), "");
    }

    #[test]
    fn axes_have_round_ends() {
        assert!((round_up(37.0) - 40.0).abs() < 1e-9);
        assert!((round_up(0.0) - 1.0).abs() < 1e-9);
        assert_eq!((tick(1500.0).as_str(), tick(0.1).as_str()), ("1.5k", "0.1"));
        assert_eq!(ticks(1.0, 1000.0, true).len(), 10);
        assert_eq!(ticks(1.0, 1e6, true).len(), 7);
        assert_eq!(around(20.0, 35.0), (20.0, 50.0));
        assert_eq!(around(0.0, 0.0), (1e-6, 2e-6));
    }
}
