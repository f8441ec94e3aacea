//! The operator's API over HTTP: paths to calls of `control`, and who may take them.

mod profile;

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRef, Path, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use serde::Serialize;

use super::early::credential;
use super::http::{document, fail, refuse_foreign_pages};
use super::listen::Peer;
use crate::auth::Shown;
use crate::control::log::{self, LogFilter};
use crate::control::reload::{Refused, Reloader};
use crate::control::{adapters, engines, streams};
use crate::engine::config;
use crate::gateway::Gateway;
use crate::generation::{Failure, Kind, RequestId, Scopes, Watch, clock};
use crate::route::Registry;
use crate::telemetry::profile::Recent;
use crate::wire;

/// Most bytes of a body: a name, a path and a number.
const MAX_BODY: usize = 64 * 1024;

/// Streams in one answer at the most: as many as a person or a script can make something of.
const MOST_STREAMS: usize = 100_000;

/// What operators look at and change.
#[derive(Clone)]
pub struct Control {
    /// The models.
    pub registry: Arc<Registry>,
    /// The open streams.
    pub watch: Arc<Watch>,
    /// Profiles.
    pub recent: Arc<Recent>,
    /// Reads the configuration again.
    pub reloader: Arc<Reloader>,
    /// What is logged, if that can be changed.
    pub log: Option<Arc<LogFilter>>,
}

impl FromRef<Control> for Arc<Registry> {
    fn from_ref(control: &Control) -> Self {
        control.registry.clone()
    }
}

impl FromRef<Control> for Arc<Watch> {
    fn from_ref(control: &Control) -> Self {
        control.watch.clone()
    }
}

impl FromRef<Control> for Arc<Reloader> {
    fn from_ref(control: &Control) -> Self {
        control.reloader.clone()
    }
}

impl FromRef<Control> for Option<Arc<LogFilter>> {
    fn from_ref(control: &Control) -> Self {
        control.log.clone()
    }
}

/// Paths of the operator's port that look at and change what is served.
pub fn router(control: Control) -> Router {
    const ADAPTERS: &str = "/ops/v1/models/{model}/adapters";
    const ADAPTER: &str = "/ops/v1/models/{model}/adapters/{*name}";
    Router::new()
        .route("/ops/v1/models", get(list_engines))
        .route(ADAPTERS, get(list_adapters).post(add_adapter))
        .route(ADAPTER, delete(remove_adapter))
        .route("/ops/v1/engine", get(look_at_engines))
        .route("/ops/v1/streams", get(list_streams))
        .route("/ops/v1/streams/{id}", delete(cancel_stream))
        .route("/ops/v1/reload", post(reload))
        .route("/ops/v1/log", get(show_log).put(change_log))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(control.clone())
        .merge(profile::router(control.recent))
}

/// Asks for a key in front of all of the operator's paths but the probes.
pub fn guarded(router: Router, gateway: Arc<Gateway>) -> Router {
    router.layer(middleware::from_fn_with_state(gateway, ask_for_key))
}

async fn ask_for_key(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
    next: Next,
) -> Response {
    if matches!(request.uri().path(), "/healthz" | "/readyz") {
        return next.run(request).await;
    }
    match may(&gateway, &request) {
        Ok(()) => next.run(request).await,
        Err(failure) => fail(&failure),
    }
}

fn may(gateway: &Gateway, request: &Request) -> Result<(), Failure> {
    let credential = credential(request.headers());
    if !credential.is_clear {
        gateway.refuse_two_credentials()?;
    }
    let peer = request.extensions().get::<Peer>();
    let caller = gateway.authenticate_somebody(Shown {
        address: peer.map(|peer| peer.address.ip()),
        credential: Some(credential.text).filter(|text| !text.is_empty()),
        today: clock::unix_seconds(),
        ..Shown::default()
    })?;
    // A profile is only looked at, but it costs something to make, and tells much.
    let looks_only = matches!(*request.method(), Method::GET | Method::HEAD)
        && !request.uri().path().starts_with("/debug/");
    let scope = if looks_only {
        Scopes::OPS_READ
    } else {
        Scopes::OPS_WRITE
    };
    gateway.permit_scope(&caller, scope)
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

/// `?model=`, or all of them.
async fn look_at_engines(State(registry): State<Arc<Registry>>, uri: Uri) -> Response {
    let mut model = None;
    for (name, value) in query(&uri) {
        match &*name {
            "model" => model = Some(value),
            _ => return fail(&unknown(&name, "model")),
        }
    }
    answer(
        StatusCode::OK,
        engines::look(&registry, model.as_deref()).await,
    )
}

/// `?model=`, `?caller=` and `?limit=`, in any order.
async fn list_streams(State(watch): State<Arc<Watch>>, uri: Uri) -> Response {
    let wanted = || {
        let mut wanted = streams::Wanted::default();
        for (name, value) in query(&uri) {
            match &*name {
                "model" => wanted.model = Some(value),
                "caller" => wanted.caller = Some(value),
                "limit" => wanted.limit = Some(number(&name, &value, 1..=MOST_STREAMS)?),
                _ => return Err(unknown(&name, "model, caller, limit")),
            }
        }
        Ok(wanted)
    };
    answer(
        StatusCode::OK,
        wanted().map(|wanted| streams::list(&watch, &wanted)),
    )
}

async fn cancel_stream(
    State(watch): State<Arc<Watch>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let cancelled = refuse_foreign_pages(&headers).and_then(|()| {
        let id = RequestId::parse(&id)
            .ok_or_else(|| Failure::invalid("id", "This is no request id."))?;
        streams::cancel(&watch, &id)
    });
    match cancelled {
        Ok(_) => StatusCode::NO_CONTENT.into_response(),
        Err(failure) => fail(&failure),
    }
}

/// What stands behind the question mark.
fn query(uri: &Uri) -> Vec<(String, String)> {
    let decoded = |text: &str| {
        let text = text.replace('+', " ");
        let text = percent_encoding::percent_decode_str(&text).decode_utf8_lossy();
        text.into_owned()
    };
    let pairs = uri.query().unwrap_or_default().split('&');
    pairs
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name), decoded(value))
        })
        .collect()
}

fn number<T>(name: &str, value: &str, range: RangeInclusive<T>) -> Result<T, Failure>
where
    T: FromStr + PartialOrd + Display,
{
    let number = value.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| {
        let (least, most) = range.into_inner();
        let message = format!("{name} is a number from {least} to {most}.");
        Failure::invalid(name.to_owned(), message)
    })
}

fn unknown(name: &str, known: &str) -> Failure {
    let message = format!("{name:?} means nothing here; what does: {known}.");
    Failure::invalid(name.to_owned(), message)
}

/// `422`: the request was fine, what it made us read was not.
async fn reload(State(reloader): State<Arc<Reloader>>, headers: HeaderMap) -> Response {
    if let Err(failure) = refuse_foreign_pages(&headers) {
        return fail(&failure);
    }
    match reloader.reload("POST /ops/v1/reload").await {
        Ok(done) => answer(StatusCode::OK, Ok(done)),
        Err(Refused(problems)) => {
            let failure = Failure::new(Kind::Invalid, problems).with_code("invalid_configuration");
            let mut response = fail(&failure);
            *response.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
            response
        }
    }
}

async fn show_log(State(log): State<Option<Arc<LogFilter>>>) -> Response {
    let log = log.ok_or_else(no_log);
    answer(StatusCode::OK, log.map(|log| log.report()))
}

async fn change_log(
    State(log): State<Option<Arc<LogFilter>>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let changed = || {
        refuse_foreign_pages(&headers)?;
        let log = log.ok_or_else(no_log)?;
        let other: log::Other = serde_json::from_slice(&body).map_err(|error| {
            let message = format!("The body is no {{\"filter\":…, \"for\":…}}: {error}.");
            Failure::invalid("body", message)
        })?;
        log.change(other)
    };
    answer(StatusCode::OK, changed())
}

fn no_log() -> Failure {
    let message = "The log is not this server's own, so it cannot change it.";
    Failure::new(Kind::NotFound, message).with_code("no_log")
}

fn answer(status: StatusCode, result: Result<impl Serialize, Failure>) -> Response {
    let json = result.and_then(|value| serde_json::to_vec(&value).map_err(Failure::internal));
    match json {
        Ok(json) => (status, document(wire::JSON, json.into())).into_response(),
        Err(failure) => fail(&failure),
    }
}
