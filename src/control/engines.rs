//! The models as they run: what each engine has chosen, and what it carries.

use std::sync::Arc;

use serde::Serialize;

use crate::engine::{EngineView, Gauges};
use crate::generation::{Failure, Kind};
use crate::route::Registry;

/// All models, ready or not.
#[derive(Debug, Serialize)]
pub struct Report {
    models: Vec<Model>,
}

#[derive(Debug, Serialize)]
struct Model {
    name: Arc<str>,
    /// Why it cannot be used, if so; nothing below is known then.
    #[serde(skip_serializing_if = "Option::is_none")]
    unavailable: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    engine: Option<Engine>,
}

#[derive(Debug, Serialize)]
struct Engine {
    running: u32,
    waiting: u32,
    paused: u32,
    parked: u32,
    /// Absent where there is no KV cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    kv: Option<Kv>,
    prefix_cache: PrefixCache,
    threads: Threads,
}

#[derive(Debug, Serialize)]
struct Kv {
    layout: &'static str,
    reason: &'static str,
    tokens_used: u64,
    tokens_idle: u64,
    tokens: u64,
}

#[derive(Debug, Serialize)]
struct PrefixCache {
    bytes: u64,
    hit_tokens: u64,
}

#[derive(Debug, Serialize)]
struct Threads {
    decode: u32,
    prefill: u32,
}

/// What the engines are doing, sequence by sequence.
#[derive(Debug, Serialize)]
pub struct Looks {
    models: Vec<Look>,
}

#[derive(Debug, Serialize)]
struct Look {
    name: Arc<str>,
    /// Why nothing is known, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    unavailable: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    engine: Option<EngineView>,
}

/// What every engine is doing, or the one of `model`. Each is asked between two of its steps, and none is
/// waited for longer than a second.
///
/// # Errors
/// `NotFound` if there is no such model.
pub async fn look(registry: &Registry, model: Option<&str>) -> Result<Looks, Failure> {
    let is_wanted = |name: &str| model.is_none_or(|model| model == name);
    let mut models = Vec::new();
    for engine in registry.ready() {
        let name = engine.card().name.clone();
        if is_wanted(&name) {
            let (engine, unavailable) = match engine.inspect().await {
                Ok(view) => (Some(view), None),
                Err(failure) => (None, Some(failure.message.into_owned())),
            };
            models.push(Look {
                name,
                unavailable,
                engine,
            });
        }
    }
    for (name, reason) in registry.not_ready() {
        if is_wanted(&name) {
            models.push(Look {
                name: name.into(),
                unavailable: Some(reason),
                engine: None,
            });
        }
    }
    match model.filter(|_| models.is_empty()) {
        None => Ok(Looks { models }),
        Some(model) => Err(Failure::new(
            Kind::NotFound,
            format!("There is no model {model}."),
        )),
    }
}

/// How every model runs.
#[must_use]
pub fn report(registry: &Registry) -> Report {
    let ready = registry.ready();
    let models = ready.iter().map(|engine| {
        let Gauges { load, layout } = engine.gauges();
        Model {
            name: engine.card().name.clone(),
            unavailable: None,
            engine: Some(Engine {
                running: load.running,
                waiting: load.waiting,
                paused: load.paused,
                parked: load.parked,
                kv: (!layout.name.is_empty()).then_some(Kv {
                    layout: layout.name,
                    reason: layout.reason,
                    tokens_used: load.kv_used,
                    tokens_idle: load.kv_idle,
                    tokens: load.kv_capacity,
                }),
                prefix_cache: PrefixCache {
                    bytes: load.prefix_bytes,
                    hit_tokens: load.prefix_hits,
                },
                threads: Threads {
                    decode: load.threads_decode,
                    prefill: load.threads_prefill,
                },
            }),
        }
    });
    let others = registry.not_ready();
    let others = others.into_iter().map(|(name, reason)| Model {
        name: name.into(),
        unavailable: Some(reason),
        engine: None,
    });
    Report {
        models: models.chain(others).collect(),
    }
}
