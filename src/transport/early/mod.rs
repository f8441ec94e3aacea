//! The one place where it is decided who asks, and where early data and bound tokens are judged, for every
//! protocol and every path.
//!
//! ```text
//!  request
//!      |
//!  who asks?          from the headers alone; what is shown and not believed ends here
//!      |              no bound token, no proof, not early: straight on
//!  has a proof?       its body is read first, since the proof covers it
//!      |
//!  the policy         serve: on to the handler, with what the token says
//!      |              refuse: answered in the caller's dialect
//!      v
//!  hold               within `auth.max_held`, until the handshake has ended; then judged again
//! ```
//!
//! Nothing of the body is read before it is known who asks, and without a proof nothing before the verdict:
//! what is held keeps its sender waiting behind the flow windows. A handshake has only so much time, so
//! nothing is held for longer.

mod credential;
mod handshake;

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use tokio::sync::{Semaphore, SemaphorePermit};

pub(super) use self::credential::credential;
pub(super) use self::handshake::Handshake;
use super::http::{
    Context, REQUEST_ID, accept, caller, challenge, document, fail, read_body, refused,
};
use super::listen::Peer;
use super::{assets, traced};
use crate::auth::token::{Grant, PREFIX};
use crate::auth::{Arrival, Decision, Gate, Refusal, Session, Shown, Signed, Verdict};
use crate::generation::{Failure, Kind, RequestId, clock};
use crate::telemetry::{EarlyRequest, Metrics, Route};
use crate::wire::jsonrpc::Reply;
use crate::wire::{self, failure, openai};

/// Proves that the sender of a request holds the keys of the connection it came on.
const PROOF: HeaderName = HeaderName::from_static("x-sluice-proof");

/// Set by a proxy that has not seen the end of its client's handshake (RFC 8470, section 5.1).
pub(super) const EARLY_DATA: HeaderName = HeaderName::from_static("early-data");

/// Where a token is bound. That is never done early: who asks must be there.
pub(super) const BIND: &str = "/v1/bind";

/// Request extension: the TLS connection of ours beneath a request. Absent without one.
#[derive(Clone)]
pub(super) struct Secure {
    session: Arc<Session>,
    handshake: Handshake,
    came_early: bool,
}

impl Secure {
    /// `came_early`: the request began before the handshake had ended.
    pub(super) fn new(session: Arc<Session>, handshake: Handshake, came_early: bool) -> Self {
        Self {
            session,
            handshake,
            came_early,
        }
    }

    /// Keys and lineage of the connection.
    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// Whether the request may be a copy of another for all that is known by now: it came as early data,
    /// and the handshake has still not ended.
    pub(super) fn is_early(&self) -> bool {
        self.came_early && !self.handshake.has_ended()
    }
}

/// What judging needs.
pub struct Policy {
    gate: Arc<Gate>,
    /// Places to wait in.
    held: Semaphore,
    metrics: Arc<Metrics>,
}

impl Policy {
    /// `max_held`: requests that may wait for the end of their handshakes at once.
    #[must_use]
    pub fn new(gate: Arc<Gate>, max_held: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            gate,
            held: Semaphore::new(max_held.min(Semaphore::MAX_PERMITS)),
            metrics,
        }
    }

    /// What makes and believes tokens.
    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }

    fn count(&self, was_early: bool, decision: Decision) {
        let counted = match decision {
            Decision::Serve => EarlyRequest::Served,
            Decision::Hold => EarlyRequest::Held,
            Decision::Refuse(refusal) => {
                self.metrics.transports.auth_refused(refusal.name());
                tracing::info!(
                    reason = refusal.name(),
                    early = was_early,
                    "a request was refused for its credential or for coming early"
                );
                EarlyRequest::Refused
            }
        };
        if was_early {
            self.metrics.transports.early_request(counted);
        }
    }
}

/// Lets a request through to its handler when it may be served.
pub(super) async fn judge(
    State(context): State<Context>,
    request: Request,
    next: Next,
) -> Response {
    let (mut parts, body) = request.into_parts();
    match admit(&context, &mut parts, body).await {
        Ok(body) => {
            traced::mark(&context.gateway, &parts);
            next.run(Request::from_parts(parts, body)).await
        }
        Err(Unserved::Failed(failure)) => refuse(&context, &parts, &failure),
        // Its connection is being closed; a request that was never one is not counted.
        Err(Unserved::NeverThere) => fail(&Refusal::TooEarly.failure()),
    }
}

/// Why a request does not come to its handler.
enum Unserved {
    Failed(Failure),
    /// It was held, and the handshake did not end.
    NeverThere,
}

impl From<Failure> for Unserved {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// The request's body when it may be served. Tells `parts` who asks.
async fn admit(context: &Context, parts: &mut Parts, body: Body) -> Result<Body, Unserved> {
    let policy = &context.early;
    let secure = parts.extensions.get::<Secure>().cloned();
    // Also where the handshake has ended since: who asks was not known when the request was told.
    let came_early = secure.as_ref().is_some_and(|secure| secure.came_early);
    // Where nobody is asked who they are, nobody's body is gathered either.
    let has_proof = parts.headers.contains_key(PROOF) && !is_open(parts.uri.path());
    let mut place = None;
    if came_early
        && let Some(secure) = secure.as_ref().filter(|secure| secure.is_early())
        && credential(&parts.headers).text.is_empty()
    {
        // With the end of the handshake, who asks may still show a certificate.
        place = Some(hold(policy, secure).await?);
    }
    if let (true, Some(secure)) = (came_early, &secure) {
        ended(secure, parts);
    }
    let is_bound = identify(context, parts, secure.as_ref())?;
    if !is_bound && !has_proof && !came_early && !parts.headers.contains_key(EARLY_DATA) {
        return Ok(body);
    }
    let (body, read) = if has_proof {
        let read = read_body(context, &parts.headers, body).await?;
        (Body::from(read.clone()), read)
    } else {
        (body, Bytes::new())
    };
    loop {
        let is_early = secure.as_ref().is_some_and(Secure::is_early);
        if is_early && place.is_none() {
            place = policy.held.try_acquire().ok();
        }
        let room = place.is_some();
        let verdict = verdict(policy, parts, secure.as_ref(), &read, is_early, room);
        policy.count(is_early, verdict.decision);
        match (verdict.decision, &secure) {
            (Decision::Refuse(refusal), _) => return Err(refusal.failure().into()),
            (Decision::Hold, Some(secure)) => {
                if !secure.handshake.finished().await {
                    return Err(Unserved::NeverThere);
                }
            }
            _ => break,
        }
    }
    drop(place);
    if let (true, false, Some(secure)) = (came_early, is_bound, &secure) {
        // Where the credential counts for nothing, the certificate does, and it may be there by now.
        ended(secure, parts);
        identify(context, parts, Some(secure))?;
    }
    Ok(body)
}

/// Waits for the end of the handshake, if there is room.
async fn hold<'p>(policy: &'p Policy, secure: &Secure) -> Result<SemaphorePermit<'p>, Unserved> {
    let Ok(place) = policy.held.try_acquire() else {
        policy.count(true, Decision::Refuse(Refusal::TooEarly));
        return Err(Refusal::TooEarly.failure().into());
    };
    policy.count(true, Decision::Hold);
    if secure.handshake.finished().await {
        Ok(place)
    } else {
        Err(Unserved::NeverThere)
    }
}

/// Tells a request what the end of its handshake has told of the other side, if it has ended.
fn ended(secure: &Secure, parts: &mut Parts) {
    if let Some(peer) = parts.extensions.get_mut::<Peer>() {
        peer.identity = secure.handshake.peer();
    }
}

/// Finds out who asks, from the head alone, and tells `parts`; whether by a bound token. Nobody is asked
/// who wants what is open to all.
fn identify(
    context: &Context,
    parts: &mut Parts,
    secure: Option<&Secure>,
) -> Result<bool, Failure> {
    let credential = credential(&parts.headers);
    let today = clock::unix_seconds();
    let grant = if credential.text.starts_with(PREFIX) {
        let policy = &context.early;
        let opened = policy
            .gate
            .open(credential.text, secure.map(Secure::session), today);
        Some(opened.map_err(|refusal| {
            let is_early = secure.is_some_and(Secure::is_early);
            policy.count(is_early, Decision::Refuse(refusal));
            refusal.failure()
        })?)
    } else {
        None
    };
    if !is_open(parts.uri.path()) {
        if !credential.is_clear {
            context.gateway.refuse_two_credentials()?;
        }
        let peer = parts.extensions.get::<Peer>();
        let caller = context.gateway.authenticate(Shown {
            address: peer.map(|peer| peer.address.ip()),
            credential: Some(credential.text).filter(|text| !text.is_empty()),
            certificate: peer.and_then(|peer| peer.identity.as_ref()),
            bound: grant.as_ref(),
            today,
        })?;
        parts.extensions.insert(caller);
    }
    let is_bound = grant.is_some();
    if let Some(grant) = grant {
        parts.extensions.insert(Arc::<Grant>::new(grant));
    }
    Ok(is_bound)
}

/// What everybody may see: whether the server is there, how it is spoken to, and the page, which asks for a
/// key itself.
fn is_open(path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz" | "/rpc/openrpc.json") || assets::is_asset(path)
}

fn verdict(
    policy: &Policy,
    parts: &Parts,
    secure: Option<&Secure>,
    body: &[u8],
    early: bool,
    room: bool,
) -> Verdict {
    let headers = &parts.headers;
    let id = only(headers, &HeaderName::from_static(REQUEST_ID)).unwrap_or_default();
    let named = RequestId::parse(id).is_some();
    let arrival = Arrival {
        session: secure.map(Secure::session),
        early,
        forwarded: headers.contains_key(EARLY_DATA),
        live_only: parts.uri.path() == BIND,
        room,
        // One that is no text, or is there twice, is a wrong one.
        proof: headers
            .contains_key(PROOF)
            .then(|| only(headers, &PROOF).unwrap_or_default()),
        now: Instant::now(),
        today: clock::unix_seconds(),
    };
    let request = Signed {
        id: if named { id } else { "" },
        method: parts.method.as_str(),
        path: parts.uri.path_and_query().map_or("", |path| path.as_str()),
        token: credential(headers).text,
        body,
    };
    let caller = caller(&parts.extensions);
    policy
        .gate
        .judge(&arrival, &request, caller.identity.as_deref())
}

fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.to_str().ok())?
}

/// Answers in the words of the path that was asked for, and counts the request there.
fn refuse(context: &Context, parts: &Parts, failure: &Failure) -> Response {
    let path = parts.uri.path();
    let route = route(path);
    if let (Some(route), Some(id)) = (route, parts.extensions.get::<RequestId>()) {
        let trace = parts.extensions.get().cloned().unwrap_or_default();
        context
            .gateway
            .recorder("", route, id, &trace)
            .refused(failure);
    }
    let mut out = BytesMut::new();
    let refusal = match route {
        Some(Route::Rpc) => {
            Reply::unknown().failure(failure, &mut out);
            let mut response = document(wire::JSON, out.freeze());
            // Proxies and clients of HTTP look for these there, whatever is inside (RFC 8470, section 5.2;
            // RFC 9110, section 15.5.2).
            match failure.kind {
                Kind::TooEarly => *response.status_mut() = StatusCode::TOO_EARLY,
                Kind::Unauthorized => *response.status_mut() = StatusCode::UNAUTHORIZED,
                _ => {}
            }
            challenge(failure, response.headers_mut());
            return response;
        }
        Some(Route::Chat | Route::Completions) => {
            openai::refuse(&accept(&parts.headers), failure, &mut out)
        }
        _ => failure::refuse(failure, &mut out),
    };
    refused(refusal, out.freeze(), failure)
}

/// Where requests to a path are counted.
fn route(path: &str) -> Option<Route> {
    Some(match path {
        "/v1/chat/completions" => Route::Chat,
        "/v1/completions" => Route::Completions,
        "/rpc" => Route::Rpc,
        "/v1/embeddings" => Route::Embeddings,
        "/v1/rerank" | "/v1/reranking" | "/rerank" | "/reranking" => Route::Rerank,
        "/v1/tokenize" | "/v1/detokenize" | "/v1/chat/completions/input_tokens" => Route::Tokenize,
        BIND => Route::Bind,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Scrape;

    #[test]
    fn every_refusal_has_a_series() {
        let metrics = Metrics::new([]).unwrap();
        for refusal in Refusal::ALL {
            metrics.transports.auth_refused(refusal.name());
        }
        let text = metrics.render(&Scrape::default());
        for refusal in Refusal::ALL {
            let name = refusal.name();
            let series = format!("sluicegate_auth_refusals_total{{reason=\"{name}\"}} 1\n");
            assert!(text.contains(&series), "{series}{text}");
        }
    }
}
