//! All metrics together.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::time::Duration;

use super::names::{GAP_BOUNDS_US, WRITTEN};
use super::*;
use crate::generation::{Outcome, Record, Usage, Waits};
use crate::telemetry::TraceLoad;
use crate::telemetry::steps::Steps;

pub(in crate::telemetry) fn scrape(metrics: &Metrics) -> String {
    metrics.render(&Scrape {
        streams_open: 3,
        tickets: TicketLoad {
            issued: 6,
            early_ids: 2,
            ..TicketLoad::default()
        },
        limits: LimitLoad {
            redis_up: true,
            nodes: 4,
            redis_failures: 15,
            alone: 16,
            quota_failures: 17,
        },
        traces: TraceLoad {
            kept: [21, 22, 23, 24, 25],
            dropped: 26,
            ratio: 0.5,
        },
        streams_kept: 2,
        log_lines_dropped: 5,
        models: vec![ModelScrape {
            name: "m".into(),
            is_ready: true,
            info: ModelInfo {
                context: 4096,
                parameters: Some(8),
                bytes: None,
            },
            load: ModelLoad {
                running: 1,
                waiting: 2,
                paused: 3,
                pauses: 4,
                drafted: 9,
                accepted_drafts: 7,
                parked: 9,
                parks: 10,
                moves: 13,
                kv_idle: 11,
                prefix_bytes: 12,
                prefix_hits: 14,
                prefix_queries: 15,
                steps: Steps {
                    count: 3,
                    step_us: 1_000_000,
                    decode_us: 250_000,
                    decode_rows: 40,
                    prefill_us: 500_000,
                    sample_us: 30_000,
                    emit_us: 20_000,
                    other_us: 200_000,
                    decode_by_rows: counts(&[(0, 1), (4, 2), (13, 1)]),
                    by_time: counts(&[(0, 2), (16, 1)]),
                    ..Steps::default()
                },
                kv_used: 5,
                kv_capacity: 6,
                threads_decode: 7,
                threads_prefill: 8,
            },
        }],
    })
}

pub(in crate::telemetry) fn value(text: &str, series: &str) -> String {
    let line = text
        .lines()
        .find(|line| {
            line.strip_prefix(series)
                .is_some_and(|r| r.starts_with(' '))
        })
        .unwrap_or_else(|| panic!("no {series} in\n{text}"));
    line.rsplit(' ').next().unwrap().to_owned()
}

/// Counts at these places of a histogram, none elsewhere.
fn counts<const N: usize>(at: &[(usize, u64)]) -> [u64; N] {
    let mut counts = [0; N];
    for &(index, count) in at {
        counts[index] = count;
    }
    counts
}

/// What Prometheus asks of a page, and a little more: each family once, with help and type and all of its
/// samples behind them; no series twice; buckets that rise to the count.
pub(in crate::telemetry) fn check_page(text: &str) {
    let mut families = HashMap::new();
    let mut series = HashSet::new();
    let mut family = ("", "");
    let mut buckets: Option<(String, f64, f64)> = None;
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(!help.is_empty(), "{line}");
            family = (name, "");
            continue;
        }
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(name, family.0, "a type without help: {line}");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(families.insert(name, kind).is_none(), "twice: {line}");
            family = (name, kind);
            continue;
        }
        let (sample, number) = line.rsplit_once(' ').unwrap();
        let number: f64 = number.parse().unwrap_or_else(|_| panic!("{line}"));
        let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
        assert!(series.insert(sample), "twice: {line}");
        let part = name.strip_prefix(family.0);
        let part = part.unwrap_or_else(|| panic!("{line} in {family:?}"));
        match family.1 {
            "histogram" => {
                let key = labels.split("le=\"").next().unwrap();
                let key = format!("{}{key}", family.0);
                match part {
                    "_bucket" => {
                        let edge = labels.split("le=\"").nth(1).unwrap();
                        let edge = edge.trim_end_matches("\"}");
                        let edge = edge.replace("+Inf", "inf").parse::<f64>().unwrap();
                        if let Some((_, edge_before, count)) =
                            buckets.as_ref().filter(|before| before.0 == key)
                        {
                            assert!(edge > *edge_before && number >= *count, "{line}");
                        }
                        buckets = Some((key, edge, number));
                    }
                    "_sum" => {}
                    "_count" => {
                        let (_, edge, count) = buckets.as_ref().unwrap();
                        assert!(
                            edge.is_infinite() && count.to_bits() == number.to_bits(),
                            "{line}"
                        );
                    }
                    _ => panic!("{line} in {family:?}"),
                }
            }
            "counter" => assert!(part.is_empty() && number >= 0.0, "{line}"),
            _ => assert!(part.is_empty(), "{line}"),
        }
    }
    assert!(!series.is_empty());
}

fn series(text: &str) -> usize {
    let samples = text.lines();
    let samples = samples.filter(|line| !line.is_empty() && !line.starts_with('#'));
    samples.count()
}

#[test]
fn every_metric_is_rendered_from_the_start_with_help_and_never_as_a_summary() {
    let text = scrape(&Metrics::new(["m"]).unwrap());
    check_page(&text);
    assert!(!text.contains(" summary"), "{text}");
    let histograms = HISTOGRAMS.iter().map(|(name, ..)| (*name, "histogram"));
    let counters = COUNTERS.iter().map(|(name, _)| (*name, "counter"));
    let gauges = GAUGES.iter().map(|(name, _)| (*name, "gauge"));
    let written = WRITTEN
        .iter()
        .map(|family| (family.name, family.kind.as_str()));
    for (name, kind) in histograms.chain(counters).chain(gauges).chain(written) {
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name}");
        assert!(text.contains(&format!("# HELP {name} ")), "{name}");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
    }
}

#[test]
fn the_readme_says_what_each_metric_means() {
    let text = scrape(&Metrics::new(["m"]).unwrap());
    let kind = |name: &str| {
        let prefix = format!("# TYPE {name} ");
        text.lines().find_map(|line| line.strip_prefix(&prefix))
    };
    let families = text.lines().filter_map(|line| line.strip_prefix("# HELP "));
    let mut families: Vec<_> = families.filter_map(|line| line.split_once(' ')).collect();
    families.sort_unstable();
    let rows: Vec<_> = families
        .into_iter()
        .map(|(name, help)| format!("| `{name}` | {} | {help} |", kind(name).unwrap()))
        .collect();
    let table = rows.join("\n");
    let readme = include_str!("../../../README.md");
    assert!(readme.contains(&table), "its table is to be:\n{table}");
}

#[test]
fn engine_series_say_where_the_time_of_steps_went_and_how_large_batches_were() {
    let text = scrape(&Metrics::new(["m"]).unwrap());
    for (phase, seconds) in [
        ("prefill", "0.5"),
        ("decode", "0.25"),
        ("sample", "0.03"),
        ("emit", "0.02"),
        ("other", "0.2"),
    ] {
        let series =
            format!(r#"sluicegate_engine_phase_seconds_total{{model="m",phase="{phase}"}}"#);
        assert_eq!(value(&text, &series), seconds, "{phase}");
    }
    for (series, expected) in [
        (r#"step_seconds_bucket{model="m",le="0.000125"}"#, "2"),
        (r#"step_seconds_bucket{model="m",le="4.096"}"#, "2"),
        (r#"step_seconds_bucket{model="m",le="+Inf"}"#, "3"),
        (r#"step_seconds_sum{model="m"}"#, "1"),
        (r#"step_seconds_count{model="m"}"#, "3"),
        (r#"batch_rows_bucket{model="m",phase="decode",le="8"}"#, "1"),
        (
            r#"batch_rows_bucket{model="m",phase="decode",le="16"}"#,
            "3",
        ),
        (r#"batch_rows_sum{model="m",phase="decode"}"#, "40"),
        (r#"batch_rows_count{model="m",phase="decode"}"#, "4"),
        (r#"batch_rows_count{model="m",phase="prefill"}"#, "0"),
    ] {
        let series = format!("sluicegate_engine_{series}");
        assert_eq!(value(&text, &series), expected, "{series}");
    }
    for (name, expected) in [("queries", "15"), ("hits", "14")] {
        let series = format!(r#"sluicegate_prefix_cache_{name}_tokens_total{{model="m"}}"#);
        assert_eq!(value(&text, &series), expected, "{series}");
    }
    let info = r#"sluicegate_model_info{model="m",context="4096",parameters="8",bytes=""}"#;
    assert_eq!(value(&text, info), "1");
    assert_eq!(value(&text, r#"sluicegate_model_ready{model="m"}"#), "1");
}

#[test]
fn a_model_that_was_loaded_again_counts_from_zero_again() {
    let metrics = Metrics::new(["m"]).unwrap();
    let pauses = r#"sluicegate_pauses_total{model="m"}"#;
    assert_eq!(value(&scrape(&metrics), pauses), "4");
    let text = metrics.render(&Scrape::default());
    assert_eq!(value(&text, pauses), "0");
    assert_eq!(value(&text, r#"sluicegate_model_ready{model="m"}"#), "0");
}

#[test]
fn models_beyond_the_budget_of_series_are_counted_together() {
    let names: Vec<_> = (0..60).map(|number| format!("m{number}")).collect();
    let names = || names.iter().map(String::as_str);
    let config = Config {
        max_series: NonZeroU32::new(5_000).unwrap(),
        ..Config::default()
    };
    let metrics = Metrics::with(&config, names()).unwrap();
    let models = names().map(|name| ModelScrape {
        name: name.into(),
        is_ready: true,
        info: ModelInfo::default(),
        load: ModelLoad::default(),
    });
    let page = Scrape {
        models: models.collect(),
        ..Scrape::default()
    };
    let text = metrics.render(&page);
    check_page(&text);
    let most = series(&text);
    assert!((4_000..=5_000).contains(&most), "{most}");
    for name in ["m58", "m59"] {
        let model = metrics.model(name);
        model.request_ended(Route::Chat, Outcome::Ok);
        model.gaps(&[1]);
    }
    let text = metrics.render(&page);
    let counted = r#"sluicegate_requests_total{model="other",route="chat",outcome="ok"}"#;
    assert_eq!(value(&text, counted), "2");
    let gaps = r#"sluicegate_inter_token_seconds_count{model="other"}"#;
    assert_eq!(value(&text, gaps), "2");
    assert_eq!(series(&text), most);

    // What the budget saved is what there would have been.
    let dropped: usize = value(&text, "sluicegate_series_dropped_total")
        .parse()
        .unwrap();
    let config = Config {
        max_series: NonZeroU32::new(1_000_000).unwrap(),
        ..Config::default()
    };
    let all = Metrics::with(&config, names()).unwrap().render(&page);
    assert_eq!(value(&all, "sluicegate_series_dropped_total"), "0");
    assert_eq!(series(&all), most - series_of_other(&text) + dropped);
}

fn series_of_other(text: &str) -> usize {
    let lines = text.lines();
    lines
        .filter(|line| line.contains(r#"model="other""#))
        .count()
}

#[test]
fn pulled_figures_are_those_of_the_scrape() {
    let text = scrape(&Metrics::new(["m"]).unwrap());
    assert_eq!(value(&text, "sluicegate_streams_open"), "3");
    assert_eq!(value(&text, "sluicegate_streams_kept"), "2");
    assert_eq!(
        value(&text, r#"sluicegate_tls_tickets_total{event="issued"}"#),
        "6"
    );
    assert_eq!(value(&text, "sluicegate_early_ids"), "2");
    for (name, expected) in [
        ("redis_up", "1"),
        ("nodes", "4"),
        ("redis_failures_total", "15"),
        ("alone_total", "16"),
        ("quota_write_failures_total", "17"),
    ] {
        assert_eq!(value(&text, &format!("sluicegate_limit_{name}")), expected);
    }
    assert_eq!(
        value(&text, r#"sluicegate_requests_running{model="m"}"#),
        "1"
    );
    assert_eq!(
        value(&text, r#"sluicegate_requests_waiting{model="m"}"#),
        "2"
    );
    assert_eq!(
        value(&text, r#"sluicegate_sequences_paused{model="m"}"#),
        "3"
    );
    for (name, expected) in [
        ("pauses_total", "4"),
        ("parks_total", "10"),
        ("moves_total", "13"),
        ("sequences_parked", "9"),
        ("kv_tokens_idle", "11"),
        ("prefix_cache_bytes", "12"),
    ] {
        let sample = format!(r#"sluicegate_{name}{{model="m"}}"#);
        assert_eq!(value(&text, &sample), expected, "{name}");
    }
    for (result, expected) in [("accepted", "7"), ("rejected", "2")] {
        let series = format!(r#"sluicegate_draft_tokens_total{{model="m",result="{result}"}}"#);
        assert_eq!(value(&text, &series), expected);
    }
    assert_eq!(value(&text, r#"sluicegate_kv_tokens_used{model="m"}"#), "5");
    assert_eq!(
        value(&text, r#"sluicegate_kv_tokens_capacity{model="m"}"#),
        "6"
    );
    let threads = |phase| format!(r#"sluicegate_engine_threads{{model="m",phase="{phase}"}}"#);
    assert_eq!(value(&text, &threads("decode")), "7");
    assert_eq!(value(&text, &threads("prefill")), "8");
    for (name, expected) in [
        (r#"telemetry_dropped_total{signal="log"}"#, "5"),
        (r#"telemetry_dropped_total{signal="trace"}"#, "26"),
        (r#"traces_kept_total{reason="error"}"#, "21"),
        (r#"traces_kept_total{reason="ratio"}"#, "25"),
        ("trace_ratio", "0.5"),
        ("slo_objective", "0.99"),
        (r#"slo_burn_rate{window="5m"}"#, "0"),
    ] {
        assert_eq!(value(&text, &format!("sluicegate_{name}")), expected);
    }
}

#[test]
fn buckets_rise() {
    for (name, _, buckets) in HISTOGRAMS {
        assert!(buckets.is_sorted_by(|a, b| a < b), "{name}");
    }
    assert!(GAP_BOUNDS_US.is_sorted_by(|a, b| a < b));
}

#[test]
fn strange_model_names_make_no_series() {
    let metrics = Metrics::new(["m"]).unwrap();
    let before = scrape(&metrics).lines().count();
    for number in 0..100_000 {
        let model = metrics.model(&format!("model-{number}"));
        model.request_ended(Route::Chat, Outcome::Invalid);
    }
    let text = scrape(&metrics);
    assert_eq!(text.lines().count(), before);
    let series = r#"sluicegate_requests_total{model="unknown",route="chat",outcome="invalid"}"#;
    assert_eq!(value(&text, series), "100000");
}

#[test]
fn each_outcome_and_route_has_its_own_counter() {
    let metrics = Metrics::new(["m"]).unwrap();
    let mut times = 0;
    for route in Route::ALL {
        for outcome in Outcome::ALL {
            times += 1;
            for _ in 0..times {
                metrics.model("m").request_ended(route, outcome);
            }
            let (route, outcome) = (route.as_str(), outcome.as_str());
            let series = format!(
                r#"sluicegate_requests_total{{model="m",route="{route}",outcome="{outcome}"}}"#
            );
            assert_eq!(value(&scrape(&metrics), &series), times.to_string());
        }
    }
}

#[test]
fn every_shed_request_has_a_reason_and_a_strange_one_is_other() {
    let metrics = Metrics::new([]).unwrap();
    let model = metrics.model("m");
    for code in [Some("queue_full"), Some("queue_full"), Some("new"), None] {
        model.refused(code);
    }
    let text = scrape(&metrics);
    for (reason, expected) in [("queue_full", "2"), ("other", "2"), ("too_early", "0")] {
        let series = format!(r#"sluicegate_shed_total{{reason="{reason}"}}"#);
        assert_eq!(value(&text, &series), expected, "{reason}");
    }
}

#[test]
fn where_the_time_of_a_request_went_is_in_its_histograms() {
    let metrics = Metrics::new(["m"]).unwrap();
    let record = Record {
        outcome: Outcome::Ok,
        finish: None,
        usage: Usage {
            completion_tokens: 11,
            ..Usage::default()
        },
        time_to_first_token: Some(Duration::from_secs(1)),
        duration: Duration::from_secs(6),
        max_gap_us: 0,
        waits: Waits {
            queue: Some(Duration::from_millis(250)),
            prefill: Some(Duration::from_millis(750)),
            stalled: Duration::from_millis(125),
            ..Waits::default()
        },
    };
    let model = metrics.model("m");
    model.spent(&record);
    let cut = Record {
        outcome: Outcome::ClientGone,
        ..record
    };
    model.spent(&cut);
    let text = scrape(&metrics);
    for (name, count, sum) in [
        ("tpot", "1", "0.5"),
        ("e2e", "1", "6"),
        ("queue", "2", "0.5"),
        ("prefill", "2", "1.5"),
        ("send_stall", "2", "0.25"),
    ] {
        let series = |part| format!(r#"sluicegate_{name}_seconds_{part}{{model="m"}}"#);
        assert_eq!(value(&text, &series("count")), count, "{name}");
        assert_eq!(value(&text, &series("sum")), sum, "{name}");
    }
}

#[test]
fn a_connection_counts_until_its_guard_is_dropped() {
    let metrics = Metrics::new([]).unwrap();
    let first = metrics.transports.connection_opened();
    let _second = metrics.transports.connection_opened();
    drop(first);
    assert_eq!(value(&scrape(&metrics), "sluicegate_connections_open"), "1");
}

#[test]
fn two_sets_of_metrics_do_not_meet() {
    let (a, b) = (Metrics::new(["m"]).unwrap(), Metrics::new(["m"]).unwrap());
    a.model("m").queued(Duration::from_millis(20));
    let count = r#"sluicegate_queue_seconds_count{model="m"}"#;
    assert_eq!(value(&scrape(&a), count), "1");
    assert_eq!(value(&scrape(&b), count), "0");
}

#[test]
fn each_second_notes_how_fast_requests_come() {
    let mut metrics = Metrics::new(["m"]).unwrap();
    metrics.started = Instant::now()
        .checked_sub(Duration::from_secs(10))
        .expect("the clock is older than that");
    for _ in 0..1_000 {
        metrics.model("m").request_came();
    }
    metrics.tick();
    let rate: f64 = value(&scrape(&metrics), "sluicegate_request_rate")
        .parse()
        .unwrap();
    // However long the loop above took.
    assert!(rate > 0.0 && rate <= 100.0, "{rate}");
}
