//! What the engines tell about themselves, written as it was read for the scrape.
//!
//! The figures are the engine's own: they start at zero again when a model is loaded again, which
//! Prometheus knows how to take.

use super::load::{ModelInfo, ModelLoad, ModelScrape};
use super::names::{
    BATCH_ROWS, DRAFT_TOKENS, ENGINE_THREADS, KV_CAPACITY, KV_IDLE, KV_USED, MODEL_INFO,
    MODEL_READY, MOVES, PARKED, PARKS, PAUSES, PHASE_SECONDS, PREFIX_BYTES, PREFIX_HITS,
    PREFIX_QUERIES, REQUESTS_RUNNING, REQUESTS_WAITING, SEQUENCES_PAUSED, STEP_SECONDS,
};
use super::text::{Family, Text};
use crate::telemetry::steps::Steps;

/// Models of the configuration, each with what was read of it, if it has been ready.
pub(super) type Read<'a> = [(&'a str, Option<&'a ModelScrape>)];

/// Takes one figure out of many.
type Figure = fn(&ModelLoad) -> u64;

pub(super) fn write(text: &mut Text, models: &Read<'_>) {
    text.family(&MODEL_READY);
    for (name, model) in models {
        let is_ready = model.is_some_and(|model| model.is_ready);
        text.sample(&MODEL_READY, &[("model", name)], u8::from(is_ready));
    }
    text.family(&MODEL_INFO);
    for (name, model) in models {
        if let Some(model) = model {
            write_info(text, name, &model.info);
        }
    }
    let figures: [(&Family, Figure); 13] = [
        (&REQUESTS_RUNNING, |load| load.running.into()),
        (&REQUESTS_WAITING, |load| load.waiting.into()),
        (&SEQUENCES_PAUSED, |load| load.paused.into()),
        (&PARKED, |load| load.parked.into()),
        (&PAUSES, |load| load.pauses),
        (&PARKS, |load| load.parks),
        (&MOVES, |load| load.moves),
        (&KV_USED, |load| load.kv_used),
        (&KV_IDLE, |load| load.kv_idle),
        (&KV_CAPACITY, |load| load.kv_capacity),
        (&PREFIX_BYTES, |load| load.prefix_bytes),
        (&PREFIX_QUERIES, |load| load.prefix_queries),
        (&PREFIX_HITS, |load| load.prefix_hits),
    ];
    for (family, figure) in figures {
        text.family(family);
        for (name, load) in loads(models) {
            text.sample(family, &[("model", name)], figure(&load));
        }
    }
    text.family(&ENGINE_THREADS);
    for (name, load) in loads(models) {
        for (phase, threads) in [
            ("decode", load.threads_decode),
            ("prefill", load.threads_prefill),
        ] {
            text.sample(
                &ENGINE_THREADS,
                &[("model", name), ("phase", phase)],
                threads,
            );
        }
    }
    text.family(&DRAFT_TOKENS);
    for (name, load) in loads(models) {
        let rejected = load.drafted.saturating_sub(load.accepted_drafts);
        for (result, count) in [("accepted", load.accepted_drafts), ("rejected", rejected)] {
            text.sample(&DRAFT_TOKENS, &[("model", name), ("result", result)], count);
        }
    }
    write_steps(text, models);
}

fn loads<'a>(models: &'a Read<'_>) -> impl Iterator<Item = (&'a str, ModelLoad)> {
    models
        .iter()
        .map(|(name, model)| (*name, model.map(|model| model.load).unwrap_or_default()))
}

fn write_info(text: &mut Text, name: &str, info: &ModelInfo) {
    let known = |figure: Option<u64>| figure.map(|figure| figure.to_string()).unwrap_or_default();
    let labels = [
        ("model", name),
        ("context", &info.context.to_string()),
        ("parameters", &known(info.parameters)),
        ("bytes", &known(info.bytes)),
    ];
    text.sample(&MODEL_INFO, &labels, 1);
}

fn write_steps(text: &mut Text, models: &Read<'_>) {
    text.family(&PHASE_SECONDS);
    for (name, load) in loads(models) {
        for (phase, micros) in phases(&load.steps) {
            let labels = [("model", name), ("phase", phase)];
            text.sample(&PHASE_SECONDS, &labels, seconds(micros));
        }
    }
    text.family(&STEP_SECONDS);
    for (name, load) in loads(models) {
        let Steps {
            by_time, step_us, ..
        } = load.steps;
        let edges = Steps::MICROS.map(seconds);
        text.histogram(
            &STEP_SECONDS,
            &[("model", name)],
            &edges,
            &by_time,
            seconds(step_us),
        );
    }
    text.family(&BATCH_ROWS);
    for (name, load) in loads(models) {
        let steps = &load.steps;
        for (phase, by_rows, rows) in [
            ("decode", &steps.decode_by_rows, steps.decode_rows),
            ("prefill", &steps.prefill_by_rows, steps.prefill_rows),
        ] {
            let labels = [("model", name), ("phase", phase)];
            text.histogram(&BATCH_ROWS, &labels, &Steps::ROWS, by_rows, rows);
        }
    }
}

/// Where the time of the steps went; together, all of it.
fn phases(steps: &Steps) -> [(&'static str, u64); 5] {
    [
        ("prefill", steps.prefill_us),
        ("decode", steps.decode_us),
        ("sample", steps.sample_us),
        ("emit", steps.emit_us),
        ("other", steps.other_us),
    ]
}

#[expect(clippy::cast_precision_loss, reason = "exact for 285 years")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}
