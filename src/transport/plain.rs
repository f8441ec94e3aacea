//! Paths that are answered at once with one small document: models, tokens.

use axum::extract::{Path, Request, State};
use axum::response::Response;
use bytes::BytesMut;

use super::http::{Context, caller, document, fail, read_counted};
use crate::engine::{Card, TokenizeOptions};
use crate::gateway::Gateway;
use crate::generation::{Caller, Failure, Kind};
use crate::telemetry::Route;
use crate::wire::{self, Head, models, tokenize};

pub(super) async fn list_models(State(context): State<Context>, request: Request) -> Response {
    let cards = context.gateway.models(&caller(request.extensions()));
    let list: Vec<_> = cards.iter().map(as_model).collect();
    let mut out = BytesMut::new();
    models::write_list(&list, &mut out);
    document(wire::JSON, out.freeze())
}

pub(super) async fn one_model(
    State(context): State<Context>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    let cards = context.gateway.models(&caller(request.extensions()));
    match cards.iter().find(|(card, _)| *card.name == *id) {
        Some(card) => {
            let mut out = BytesMut::new();
            models::write_one(&as_model(card), &mut out);
            document(wire::JSON, out.freeze())
        }
        None => fail(
            &Failure::new(
                Kind::NotFound,
                "There is no such model, or it is not ready.",
            )
            .with_param("model")
            .with_code("model_not_found"),
        ),
    }
}

/// A model's card as the wire shows it.
pub(super) fn as_model((card, unavailable): &(Card, Option<String>)) -> models::Model<'_> {
    models::Model {
        id: &card.name,
        created: card.created,
        context: card.context,
        context_trained: card.context_trained,
        vocabulary: card.vocabulary,
        parameters: card.parameters,
        bytes: card.bytes,
        unavailable: unavailable.as_deref(),
        parent: card.parent.as_deref(),
    }
}

pub(super) async fn tokenize(State(context): State<Context>, request: Request) -> Response {
    simple(
        &context,
        request,
        tokenize::parse_tokenize,
        |asked| &asked.model,
        async |asked, caller| {
            let mut out = BytesMut::new();
            write_tokens(&context.gateway, caller, &asked, &mut out).await?;
            Ok(out)
        },
    )
    .await
}

pub(super) async fn detokenize(State(context): State<Context>, request: Request) -> Response {
    simple(
        &context,
        request,
        tokenize::parse_detokenize,
        |asked| &asked.model,
        async |asked, caller| {
            let gateway = &context.gateway;
            let pieces = gateway.detokenize(caller, &asked.model, &asked.tokens);
            let pieces = pieces.await?;
            let mut out = BytesMut::new();
            tokenize::write_content(&pieces, &mut out);
            Ok(out)
        },
    )
    .await
}

pub(super) async fn count(State(context): State<Context>, request: Request) -> Response {
    simple(
        &context,
        request,
        tokenize::parse_count,
        |asked| &asked.model,
        async |asked, caller| {
            let options = TokenizeOptions {
                add_special: true,
                parse_special: false,
            };
            let gateway = &context.gateway;
            let tokens = gateway
                .tokenize(caller, &asked.model, &asked.input, options)
                .await?;
            let mut out = BytesMut::new();
            tokenize::write_count(tokens.len(), &mut out);
            Ok(out)
        },
    )
    .await
}

/// Tokenizes and appends the answer; shared with JSON-RPC.
pub(super) async fn write_tokens(
    gateway: &Gateway,
    caller: &Caller,
    asked: &tokenize::Tokenize,
    out: &mut BytesMut,
) -> Result<(), Failure> {
    let options = TokenizeOptions {
        add_special: asked.add_special,
        parse_special: asked.parse_special,
    };
    let tokens = gateway
        .tokenize(caller, &asked.model, &asked.input, options)
        .await?;
    let pieces = if asked.with_pieces {
        Some(gateway.pieces(caller, &asked.model, &tokens).await?)
    } else {
        None
    };
    tokenize::write_tokens(&tokens, pieces.as_deref(), out);
    Ok(())
}

/// One JSON body in, one JSON document out. `model` is the model that was asked for.
async fn simple<T>(
    context: &Context,
    request: Request,
    parse: fn(&[u8], &Head<'_>) -> Result<T, Failure>,
    model: fn(&T) -> &str,
    work: impl AsyncFnOnce(T, &Caller) -> Result<BytesMut, Failure>,
) -> Response {
    let caller = caller(request.extensions());
    let (asked, id) = match read_counted(context, request, Route::Tokenize, parse).await {
        Ok(parsed) => parsed,
        Err(failure) => return fail(&failure),
    };
    let recorder = context
        .gateway
        .recorder(model(&asked), Route::Tokenize, &id, &caller.trace);
    match work(asked, &caller).await {
        Ok(out) => {
            recorder.answered();
            document(wire::JSON, out.freeze())
        }
        Err(failure) => {
            recorder.refused(&failure);
            fail(&failure)
        }
    }
}
