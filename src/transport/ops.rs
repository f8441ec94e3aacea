//! The operator's API over HTTP: paths to calls of `control`.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use serde::Serialize;

use super::http::{document, fail, refuse_foreign_pages};
use crate::control::{adapters, engines};
use crate::engine::config;
use crate::generation::Failure;
use crate::route::Registry;
use crate::wire;

/// Most bytes of a body: a name, a path and a number.
const MAX_BODY: usize = 64 * 1024;

/// Paths of the operator's port that look at and change what is served.
pub fn router(registry: Arc<Registry>) -> Router {
    const ADAPTERS: &str = "/ops/v1/models/{model}/adapters";
    const ADAPTER: &str = "/ops/v1/models/{model}/adapters/{*name}";
    Router::new()
        .route("/ops/v1/models", get(list_engines))
        .route(ADAPTERS, get(list_adapters).post(add_adapter))
        .route(ADAPTER, delete(remove_adapter))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(registry)
}

async fn list_engines(State(registry): State<Arc<Registry>>) -> Response {
    answer(StatusCode::OK, Ok(engines::report(&registry)))
}

async fn list_adapters(
    State(registry): State<Arc<Registry>>,
    Path(model): Path<String>,
) -> Response {
    answer(StatusCode::OK, adapters::list(&registry, &model))
}

async fn add_adapter(
    State(registry): State<Arc<Registry>>,
    Path(model): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let added = async {
        refuse_foreign_pages(&headers)?;
        let adapter: config::Adapter = serde_json::from_slice(&body).map_err(|error| {
            Failure::invalid("body", format!("The body is no adapter: {error}."))
        })?;
        adapters::add(&registry, &model, adapter).await
    };
    answer(StatusCode::CREATED, added.await)
}

async fn remove_adapter(
    State(registry): State<Arc<Registry>>,
    Path((model, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let removed =
        refuse_foreign_pages(&headers).and_then(|()| adapters::remove(&registry, &model, &name));
    match removed {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(failure) => fail(&failure),
    }
}

fn answer(status: StatusCode, result: Result<impl Serialize, Failure>) -> Response {
    let json = result.and_then(|value| serde_json::to_vec(&value).map_err(Failure::internal));
    match json {
        Ok(json) => (status, document(wire::JSON, json.into())).into_response(),
        Err(failure) => fail(&failure),
    }
}
