//! `GET` and `DELETE /v1/streams/{id}`.

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use std::sync::Arc;

use super::super::early::EARLY_DATA;
use super::super::http::{Context, caller, fail, refuse_foreign_pages, streamed};
use super::super::pace::Pace;
use super::super::tokens::TokenBody;
use super::{Asked, Reader, Streams, unknown};
use crate::auth::Refusal;
use crate::generation::{Failure, Kind, Scopes};

/// Tells the id of a stream that can be resumed.
const STREAM_ID: &str = "x-stream-id";

/// `1` asks for the events' numbers in server-sent events (`id: 7`). Not sent otherwise: some SDKs do not
/// expect them.
const STREAM_IDS: &str = "x-stream-ids";

/// The number of the last event that an `EventSource` has seen (WHATWG HTML, section 9.2.4).
const LAST_EVENT_ID: &str = "last-event-id";

/// Whether the caller asks for the events' numbers.
pub(in crate::transport) fn wants_ids(headers: &HeaderMap) -> bool {
    headers.get(STREAM_IDS).is_some_and(|value| value == "1")
}

/// `GET /v1/streams/{id}?after=N`: what follows event N, and goes on.
pub(in crate::transport) async fn follow(
    State(context): State<Context>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    if request.method() == Method::HEAD {
        // It would take the stream away from its reader for nothing.
        return fail(&Failure::new(
            Kind::MethodNotAllowed,
            "A stream has no head of its own.",
        ));
    }
    if request.headers().contains_key(EARLY_DATA) {
        // A copy of it would take the stream away from its reader (RFC 8470, section 5.1).
        return fail(&Refusal::TooEarly.failure());
    }
    match try_follow(&context, &id, request) {
        Ok(response) => response,
        Err(failure) => fail(&failure),
    }
}

fn try_follow(context: &Context, id: &str, request: Request) -> Result<Response, Failure> {
    let (parts, _) = request.into_parts();
    refuse_foreign_pages(&parts.headers)?;
    let caller = caller(&parts.extensions);
    context.gateway.permit_scope(&caller, Scopes::GENERATE)?;
    let streams = kept(context)?;
    let query = parts.uri.query().unwrap_or_default();
    let from_header = parts.headers.get(LAST_EVENT_ID);
    let after = match (parameter(query, "after"), from_header) {
        (Some(after), _) => number(Some(after), "after")?,
        (None, Some(value)) => number(value.to_str().ok(), LAST_EVENT_ID)?,
        (None, None) => 0,
    };
    let ids =
        from_header.is_some() || wants_ids(&parts.headers) || parameter(query, "ids") == Some("1");
    let pace = Pace::of(&parts.extensions);
    let reader = streams.resume(id, &caller, after, ids, pace)?;
    if reader.is_at_end() {
        // What makes an EventSource stop coming back.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Ok(response(reader))
}

impl Streams {
    /// The answer that `body` gives, to be resumed if there is room for it.
    pub(in crate::transport) fn answer(
        self: &Arc<Self>,
        body: TokenBody,
        owner: Option<Arc<str>>,
        ids: bool,
    ) -> Response {
        let asked = Asked {
            owner,
            ids,
            is_rpc: false,
        };
        match self.keep(body, asked, |_| Bytes::new()) {
            Ok(reader) => response(reader),
            Err(body) => streamed(body.content_type(), Body::new(*body)),
        }
    }
}

fn response(reader: Reader) -> Response {
    let id = HeaderValue::from_str(reader.id());
    let mut response = streamed(reader.content_type(), Body::new(reader));
    if let Ok(id) = id {
        response.headers_mut().insert(STREAM_ID, id);
    }
    response
}

/// `DELETE /v1/streams/{id}`: ends it, and nothing of it is kept.
pub(in crate::transport) async fn cancel(
    State(context): State<Context>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    let (parts, _) = request.into_parts();
    let caller = caller(&parts.extensions);
    let cancelled = refuse_foreign_pages(&parts.headers)
        .and_then(|()| context.gateway.permit_scope(&caller, Scopes::GENERATE))
        .and_then(|()| kept(&context)?.cancel(&id, &caller));
    match cancelled {
        Ok(_) => StatusCode::NO_CONTENT.into_response(),
        Err(failure) => fail(&failure),
    }
}

fn kept(context: &Context) -> Result<&Arc<Streams>, Failure> {
    context.streams.as_ref().ok_or_else(unknown)
}

/// A parameter of a query whose values need no decoding.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find_map(|(key, value)| (key == name).then_some(value))
}

fn number(text: Option<&str>, name: &'static str) -> Result<u64, Failure> {
    text.and_then(|text| text.parse().ok()).ok_or_else(|| {
        Failure::invalid(
            name,
            format!("{name} is the number of the last event that was received; 0 for none."),
        )
    })
}
