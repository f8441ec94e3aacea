//! The adapters of a model: list, add, remove.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::engine::{AdapterCard, config};
use crate::generation::Failure;
use crate::route::Registry;

/// The adapters of one model, as operators see them.
#[derive(Debug, Serialize)]
pub struct List {
    model: Arc<str>,
    adapters: Vec<Adapter>,
}

/// One adapter, as operators see it.
#[derive(Debug, Serialize)]
pub struct Adapter {
    id: u32,
    name: Arc<str>,
    path: Box<Path>,
    scale: f32,
    created: u64,
    rank: u64,
    matrices: usize,
    bytes: u64,
    blake3: Arc<str>,
}

impl From<AdapterCard> for Adapter {
    fn from(card: AdapterCard) -> Self {
        Self {
            id: card.id,
            name: card.name,
            path: card.path.into(),
            scale: card.scale,
            created: card.created,
            rank: card.rank,
            matrices: card.matrices,
            bytes: card.bytes,
            blake3: card.hash,
        }
    }
}

/// The adapters of `model`.
///
/// # Errors
/// There is no such model, or it is not ready.
pub fn list(registry: &Registry, model: &str) -> Result<List, Failure> {
    let engine = registry.engine(model)?;
    Ok(List {
        model: engine.card().name.clone(),
        adapters: engine.adapters().into_iter().map(Adapter::from).collect(),
    })
}

/// Loads an adapter. Streams go on meanwhile.
///
/// # Errors
/// As [`list`]; `Invalid` says what is wrong with the file, or that the name is taken.
pub async fn add(
    registry: &Registry,
    model: &str,
    adapter: config::Adapter,
) -> Result<Adapter, Failure> {
    let engine = registry.engine(model)?;
    let name = adapter.name.to_string();
    let card = engine.add_adapter(adapter).await?;
    let path = card.path.display();
    tracing::info!(model, adapter = name, %path, hash = &*card.hash, "adapter added");
    Ok(card.into())
}

/// Takes an adapter from the requests to come; those that began with it end with it.
///
/// # Errors
/// As [`list`]; `NotFound` names the adapters that there are.
pub fn remove(registry: &Registry, model: &str, name: &str) -> Result<(), Failure> {
    registry.engine(model)?.remove_adapter(name)?;
    tracing::info!(model, adapter = name, "adapter removed");
    Ok(())
}
