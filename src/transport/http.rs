//! HTTP: paths to gateway calls, answers to responses.
//!
//! Every handler does the same few things: read the head, read the bounded body, let a dialect parse
//! it, ask the gateway, let the dialect dress the answer.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Extensions, HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::BodyExt;
use std::sync::Arc;
use tower_http::catch_panic::CatchPanicLayer;

use super::listen::Peer;
use super::pace::Pace;
use super::resume::{self, Streams};
use super::standing::Asked;
use super::tokens::{First, Streamed, TokenBody};
use super::{assets, bind, early, plain, rpc, standing, traced, vectors};
use crate::gateway::Gateway;
use crate::gateway::settings::LONGEST;
use crate::generation::{Caller, Deadlines, Failure, Kind, RequestId, clock};
use crate::telemetry::{Page, Pages, Route, Tracer};
use crate::wire::{self, Call, Head, failure, openai};

/// The header that identifies a request, in and out.
pub(super) const REQUEST_ID: &str = "x-request-id";

/// How long a caller is willing to wait for the whole answer: seconds, or with a unit (`1500ms`).
const REQUEST_TIMEOUT: &str = "x-request-timeout";

/// What handlers need.
#[derive(Clone)]
pub struct Context {
    /// Where requests go.
    pub gateway: Arc<Gateway>,
    /// Bounds on what a body may ask for.
    pub limits: wire::Limits,
    /// Most bytes of a body.
    pub max_body_bytes: usize,
    /// From the end of the headers to the end of the body.
    pub body_timeout: Duration,
    /// Streams that outlive their connection, if any may.
    pub streams: Option<Arc<Streams>>,
    /// What judges bound tokens and early data.
    pub early: Arc<early::Policy>,
    /// Where traces begin.
    pub tracer: Arc<Tracer>,
}

/// The public paths.
pub fn router(context: Context) -> Router {
    let paths = Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/chat/completions/input_tokens", post(plain::count))
        .route("/v1/completions", post(completions))
        .route("/v1/embeddings", post(vectors::post_embeddings))
        .route("/v1/rerank", post(vectors::post_rerank))
        // llama-server's other names for the same.
        .route("/v1/reranking", post(vectors::post_rerank))
        .route("/rerank", post(vectors::post_rerank))
        .route("/reranking", post(vectors::post_rerank))
        .route("/v1/models", get(plain::list_models))
        .route("/v1/models/{*id}", get(plain::one_model))
        .route(
            "/v1/streams/{id}",
            get(resume::follow).delete(resume::cancel),
        )
        .route("/v1/tokenize", post(plain::tokenize))
        .route("/v1/detokenize", post(plain::detokenize))
        .route(early::BIND, post(bind::post))
        .route("/rpc", post(rpc::handle))
        // who calls one of these is told where they stand;
        .route_layer(middleware::from_fn_with_state(
            context.clone(),
            standing::tell,
        ))
        .route("/rpc/openrpc.json", get(rpc::openrpc))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .merge(assets::router())
        .fallback(async || {
            fail(&Failure::new(
                Kind::NotFound,
                "There is nothing at this path.",
            ))
        })
        .method_not_allowed_fallback(async || {
            fail(&Failure::new(
                Kind::MethodNotAllowed,
                "This path does not take this method.",
            ))
        });
    // From the outside in:
    paths
        // nothing gets by it that may not be served, whatever its path;
        .layer(middleware::from_fn_with_state(
            context.clone(),
            early::judge,
        ))
        // a defect in a handler ends one request, not the connection's other streams;
        .layer(CatchPanicLayer::custom(|_| {
            fail(&Failure::internal("a handler panicked"))
        }))
        // every answer carries the request's id and trace, also those of the layers below.
        .layer(middleware::from_fn_with_state(context.clone(), identify))
        .with_state(context)
}

/// Paths of the operator's port beside what [`router`] has in common with it.
pub fn ops_router(gateway: Arc<Gateway>, pages: &Pages) -> Router {
    let page = |page| {
        let pages = pages.clone();
        get(async move || match pages.page(page).await {
            Ok(text) => ([(header::CONTENT_TYPE, METRICS)], text).into_response(),
            Err(failure) => fail(&failure),
        })
    };
    Router::new()
        .route("/metrics", page(Page::Own))
        .route("/metrics/llamacpp", page(Page::LlamaServer))
        .route("/metrics/vllm", page(Page::Vllm))
        .route("/healthz", get(healthz))
        .route("/readyz", get(async move || readiness(&gateway)))
        .fallback(async || {
            fail(&Failure::new(
                Kind::NotFound,
                "There is nothing at this path.",
            ))
        })
}

/// Prometheus' text format.
const METRICS: &str = "text/plain; version=0.0.4";

async fn identify(State(context): State<Context>, mut request: Request, next: Next) -> Response {
    let id = request
        .headers()
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .and_then(RequestId::parse)
        .unwrap_or_else(RequestId::random);
    let value = HeaderValue::from_str(id.as_str()).ok();
    // RFC 9112, section 3.2: a request of HTTP/1.1 without it is answered with 400.
    let lacks_host = request.version() == axum::http::Version::HTTP_11
        && !request.headers().contains_key(header::HOST);
    let traced = traced::begin(&context.tracer, &mut request, &id);
    request.extensions_mut().insert(id);
    let mut response = if lacks_host {
        fail(&Failure::invalid("host", "The request has no Host header."))
    } else {
        next.run(request).await
    };
    traced.answered(&mut response);
    if let Some(value) = value {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    if context.gateway.is_closed() && response.version() < axum::http::Version::HTTP_2 {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn chat(State(context): State<Context>, request: Request) -> Response {
    generate(&context, request, Route::Chat, openai::parse_chat).await
}

async fn completions(State(context): State<Context>, request: Request) -> Response {
    generate(
        &context,
        request,
        Route::Completions,
        openai::parse_completion,
    )
    .await
}

type Parse = fn(&[u8], &Head<'_>) -> Result<Call, Failure>;

async fn generate(context: &Context, request: Request, route: Route, parse: Parse) -> Response {
    let pace = Pace::of(request.extensions());
    let accept = accept(request.headers());
    let with_ids = resume::wants_ids(request.headers());
    let call = match read_counted(context, request, route, parse).await {
        Ok((call, _)) => call,
        Err(failure) => {
            let mut out = BytesMut::new();
            let refusal = openai::refuse(&accept, &failure, &mut out);
            return refused(refusal, out.freeze(), &failure);
        }
    };
    let model = context.gateway.served_name(&call.request.model);
    let mut response = begin(context, call, route, &model, pace, with_ids).await;
    response.extensions_mut().insert(Asked(model));
    response
}

async fn begin(
    context: &Context,
    call: Call,
    route: Route,
    model: &str,
    pace: Pace,
    with_ids: bool,
) -> Response {
    let Call { request, answer } = call;
    let owner = request.caller.identity.clone();
    let stream = match context.gateway.generate(request, route).await {
        Ok(stream) => stream,
        Err(failure) => {
            let mut out = BytesMut::new();
            let refusal = answer.refuse(&failure, &mut out);
            return refused(refusal, out.freeze(), &failure);
        }
    };
    let encoder = answer.encoder(model, stream.is_deterministic());
    let is_streamed = answer.streamed();
    let patience = context.gateway.patience().clone();
    let body = TokenBody::new(stream, encoder, answer, pace, patience.keep_alive)
        .noticing(patience.queue_notice);
    match body.first().await {
        First::Refused(refusal, bytes, failure) => refused(refusal, bytes, &failure),
        First::Begins(body) if is_streamed => match &context.streams {
            Some(streams) => streams.answer(body, owner, with_ids),
            None => streamed(body.content_type(), Body::new(body)),
        },
        First::Begins(body) => {
            let content_type = body.content_type();
            document(content_type, body.into_document())
        }
    }
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz(State(context): State<Context>) -> Response {
    readiness(&context.gateway)
}

fn readiness(gateway: &Gateway) -> Response {
    match gateway.readiness() {
        Ok(()) => "ready\n".into_response(),
        Err(reasons) => {
            let text = reasons.join("\n") + "\n";
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

/// Reads head and body and parses them. Counts the request if that fails, or if its caller leaves
/// meanwhile; from then on it is the next one's to count.
pub(super) async fn read_counted<T>(
    context: &Context,
    request: Request,
    route: Route,
    parse: impl FnOnce(&[u8], &Head<'_>) -> Result<T, Failure>,
) -> Result<(T, RequestId), Failure> {
    let (parts, body) = request.into_parts();
    let id = parts
        .extensions
        .get::<RequestId>()
        .cloned()
        .unwrap_or_else(RequestId::random);
    let caller = caller(&parts.extensions);
    let recorder = context.gateway.recorder("", route, &id, &caller.trace);
    let parsed = async {
        refuse_foreign_pages(&parts.headers)?;
        let accept = accept(&parts.headers);
        let head = Head {
            id: id.clone(),
            caller,
            accept: &accept,
            deadlines: deadlines(&parts.headers)?,
            created: clock::unix_seconds(),
            limits: context.limits,
        };
        let bytes = read_body(context, &parts.headers, body).await?;
        parse(&bytes, &head)
    };
    match parsed.await {
        Ok(parsed) => {
            recorder.pass_on();
            Ok((parsed, id))
        }
        Err(failure) => {
            recorder.refused(&failure);
            Err(failure)
        }
    }
}

/// Who asks, as [`early::judge`] has found out. On paths where nobody is asked, whoever is at the other end of
/// the connection.
pub(super) fn caller(extensions: &Extensions) -> Caller {
    let known = extensions.get().cloned().unwrap_or_else(|| {
        let peer = extensions.get::<Peer>();
        Caller {
            address: peer.map(|peer| peer.address.ip()),
            identity: peer.and_then(|peer| peer.identity.clone()),
            ..Caller::default()
        }
    });
    Caller {
        trace: extensions.get().cloned().unwrap_or_default(),
        ..known
    }
}

pub(super) async fn read_body(
    context: &Context,
    headers: &HeaderMap,
    body: Body,
) -> Result<Bytes, Failure> {
    if headers.contains_key(header::CONTENT_ENCODING) {
        return Err(Failure::new(
            Kind::UnsupportedMedia,
            "Compressed request bodies are not supported.",
        ));
    }
    // Who asks first is told before anything is sent.
    let asks_first = headers.contains_key(header::EXPECT);
    let whole = gather(body, context.max_body_bytes, asks_first);
    tokio::time::timeout(context.body_timeout, whole)
        .await
        .unwrap_or_else(|_| {
            let limit = humantime::format_duration(context.body_timeout);
            Err(Failure::new(
                Kind::SlowRequest,
                format!("The request body did not arrive within {limit}."),
            ))
        })
}

/// A body that is too large is read on for so many times its bound, and thrown away, while it comes
/// without a pause: a client that is still writing when its connection closes never sees the answer
/// that says why.
const OVERRUN: usize = 8;
const PAUSE: Duration = Duration::from_millis(200);

async fn gather(mut body: Body, most: usize, asks_first: bool) -> Result<Bytes, Failure> {
    // A transport that knows why says it.
    let broken = |error: axum::Error| match error.into_inner().downcast::<Failure>() {
        Ok(failure) => *failure,
        Err(error) => Failure::new(Kind::Invalid, "The request body broke off.").with_source(error),
    };
    let declared = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let mut whole = BytesMut::new();
    let mut seen = 0usize;
    while seen.max(declared) <= most {
        let Some(frame) = body.frame().await else {
            return Ok(whole.freeze());
        };
        if let Ok(data) = frame.map_err(broken)?.into_data() {
            seen = seen.saturating_add(data.len());
            whole.extend_from_slice(&data);
        }
    }
    drop(whole);
    while !asks_first && seen <= most.saturating_mul(OVERRUN) {
        let Ok(Some(Ok(frame))) = tokio::time::timeout(PAUSE, body.frame()).await else {
            break;
        };
        seen = seen.saturating_add(frame.data_ref().map_or(0, Bytes::len));
    }
    Err(Failure::new(
        Kind::TooLarge,
        format!("The body is larger than the {most} bytes that this server takes."),
    ))
}

/// A page of another site may not spend this server's tokens through its visitor's browser. Browsers
/// say so themselves (Fetch Metadata); other clients send no such header.
pub(super) fn refuse_foreign_pages(headers: &HeaderMap) -> Result<(), Failure> {
    match headers.get("sec-fetch-site") {
        Some(site) if site == "cross-site" => Err(Failure::new(
            Kind::Forbidden,
            "Pages of other sites may not use this server.",
        )
        .with_code("cross_site")),
        _ => Ok(()),
    }
}

pub(super) fn accept(headers: &HeaderMap) -> String {
    let values = headers.get_all(header::ACCEPT).iter();
    let texts: Vec<_> = values.filter_map(|value| value.to_str().ok()).collect();
    texts.join(",")
}

fn deadlines(headers: &HeaderMap) -> Result<Deadlines, Failure> {
    let Some(value) = headers.get(REQUEST_TIMEOUT) else {
        return Ok(Deadlines::default());
    };
    let timeout = value.to_str().ok().and_then(duration).ok_or_else(|| {
        Failure::invalid(
            REQUEST_TIMEOUT,
            "x-request-timeout is a number of seconds, or one with a unit, such as 1500ms.",
        )
    })?;
    // Who waits that long in all waits no longer for any part.
    Ok(Deadlines {
        queue: Some(timeout),
        first_token: Some(timeout),
        gap: None,
        total: Some(timeout),
    })
}

fn duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let parsed = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => humantime::parse_duration(text).ok(),
    };
    parsed.filter(|duration| !duration.is_zero() && *duration <= LONGEST)
}

/// An answer that goes out as it comes.
pub(super) fn streamed(content_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    response.extensions_mut().insert(Streamed);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx holds a response back until its buffer is full, unless told not to.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// One complete document.
pub(super) fn document(content_type: &'static str, bytes: Bytes) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, bytes).into_response()
}

/// A failure in OpenAI's words, which all paths but `/rpc` speak.
pub(super) fn fail(failure: &Failure) -> Response {
    let mut out = BytesMut::new();
    let refusal = failure::refuse(failure, &mut out);
    refused(refusal, out.freeze(), failure)
}

/// As long as OpenAI's SDKs wait before they try again by themselves.
const PATIENCE: Duration = Duration::from_mins(2);

/// A refusal that a dialect has written.
pub(super) fn refused(refusal: wire::Refusal, bytes: Bytes, failure: &Failure) -> Response {
    let mut response = document(refusal.content_type, bytes);
    *response.status_mut() =
        StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    // SDKs wait no longer than this, and then come too early.
    let is_soon = failure.retry_after.is_none_or(|after| after <= PATIENCE);
    let retry = failure::codes(failure.kind).retry && is_soon;
    headers.insert(
        "x-should-retry",
        HeaderValue::from_static(if retry { "true" } else { "false" }),
    );
    challenge(failure, headers);
    if let Some(after) = failure.retry_after {
        // Whole seconds, rounded up (RFC 9110, section 10.2.3), and what OpenAI's SDKs read first.
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        headers.insert("retry-after-ms", HeaderValue::from(millis));
    }
    response
}

/// Says how to be let in: RFC 9110, section 15.5.2, wants that with every 401, and RFC 6750, section 3, has
/// the words.
pub(super) fn challenge(failure: &Failure, headers: &mut HeaderMap) {
    let challenge = match (failure.kind, failure.code) {
        (Kind::Unauthorized, Some("missing_api_key")) => "Bearer",
        (Kind::Unauthorized, _) => "Bearer error=\"invalid_token\"",
        (Kind::Forbidden, Some("insufficient_scope")) => "Bearer error=\"insufficient_scope\"",
        _ => return,
    };
    headers.insert(
        header::WWW_AUTHENTICATE,
        HeaderValue::from_static(challenge),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_seconds_or_have_a_unit() {
        let table = [
            ("2", Some(2000)),
            ("0.25", Some(250)),
            ("1500ms", Some(1500)),
            ("2m", Some(120_000)),
            ("0", None),
            ("-1", None),
            ("NaN", None),
            ("soon", None),
            ("1e19", None),
        ];
        for (text, millis) in table {
            assert_eq!(duration(text), millis.map(Duration::from_millis), "{text}");
        }
    }
}
