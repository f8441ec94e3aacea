//! Embeddings and rankings over HTTP: one body in, one document out.

use axum::extract::{Request, State};
use axum::response::Response;
use bytes::BytesMut;

use super::http::{Context, document, fail, read_counted};
use super::standing::Asked;
use crate::generation::Failure;
use crate::telemetry::Route;
use crate::wire::{self, openai};

/// Numbers that are written where we are; more take longer than a runtime thread should be held
/// (about 40 ns each) and go to the blocking pool.
const INLINE: usize = 16 * 1024;

/// `POST /v1/embeddings`.
pub(super) async fn post_embeddings(State(context): State<Context>, request: Request) -> Response {
    let route = Route::Embeddings;
    let read = read_counted(&context, request, route, openai::parse_embeddings).await;
    let (asked, _) = match read {
        Ok(read) => read,
        Err(failure) => return fail(&failure),
    };
    let model = context.gateway.served_name(&asked.request.model);
    answer(model, embeddings(&context, asked, route).await)
}

/// `POST /v1/rerank`.
pub(super) async fn post_rerank(State(context): State<Context>, request: Request) -> Response {
    let route = Route::Rerank;
    let read = read_counted(&context, request, route, openai::parse_rerank).await;
    let (asked, _) = match read {
        Ok(read) => read,
        Err(failure) => return fail(&failure),
    };
    let model = context.gateway.served_name(&asked.request.model);
    answer(model, rerank(&context, asked, route).await)
}

fn answer(model: String, result: Result<BytesMut, Failure>) -> Response {
    let mut response = match result {
        Ok(out) => document(wire::JSON, out.freeze()),
        Err(failure) => fail(&failure),
    };
    response.extensions_mut().insert(Asked(model));
    response
}

/// Computes and writes the vectors; shared with JSON-RPC. Counts the request.
pub(super) async fn embeddings(
    context: &Context,
    asked: openai::Embeddings,
    route: Route,
) -> Result<BytesMut, Failure> {
    let model = context.gateway.served_name(&asked.request.model);
    let vectors = context.gateway.embed(asked.request, route).await?;
    let is_short = vectors.numbers.len() <= INLINE;
    let write = move || {
        let mut out = BytesMut::new();
        openai::write_embeddings(&vectors, &model, asked.base64, &mut out);
        out
    };
    if is_short {
        return Ok(write());
    }
    tokio::task::spawn_blocking(write)
        .await
        .map_err(Failure::internal)
}

/// Ranks the documents and writes the best; shared with JSON-RPC. Counts the request.
pub(super) async fn rerank(
    context: &Context,
    asked: openai::Rerank,
    route: Route,
) -> Result<BytesMut, Failure> {
    let model = context.gateway.served_name(&asked.request.model);
    let scores = context.gateway.rerank(asked.request.clone(), route).await?;
    let mut out = BytesMut::new();
    openai::write_ranking(&asked, &scores, &model, &mut out);
    Ok(out)
}
