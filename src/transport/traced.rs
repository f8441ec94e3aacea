//! A request's trace, from its first byte to the last one of its answer, over every transport alike.
//!
//! The connection notes how and when a request came ([`Arrived`]). The outermost layer of the router begins
//! its trace with what the caller says of theirs (W3C Trace Context), tells the answer's head, and leaves
//! the trace with the answer ([`Traced`]). Whoever writes the body keeps it until the body is over or nobody
//! wants it any more. Whoever works on the request holds it too, so it ends with the last of them: a stream
//! that outlives its connection takes it along.
//!
//! HTTP/1.1 begins with the first byte of the head, which its connection sees; HTTP/2 when hyper has read
//! the head, whose frames come together as a rule; HTTP/3 and `sluice/1` with the first bytes of the
//! request's own stream.

use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::response::Response;

use super::assets;
use super::http::caller;
use crate::gateway::Gateway;
use crate::generation::{RequestId, Scopes, Trace};
use crate::telemetry::{Tracer, Transport};

/// The caller's part of the trace (W3C Trace Context, section 3.2).
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What other systems want handed on (section 3.3).
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// More of it is not handed on (section 3.3.1.5 asks for 512 at least).
const MAX_TRACESTATE: usize = 512;

/// Names the trace and our part of it in every answer (W3C Trace Context, level 2, as drafted). One header
/// and not `x-trace-id` beside it: whoever looks for the trace's id finds it between the first two hyphens.
const TRACERESPONSE: HeaderName = HeaderName::from_static("traceresponse");

/// `1` asks for every detail of this request to be kept; see [`mark`].
const DEBUG: HeaderName = HeaderName::from_static("x-sluicegate-debug");

/// Paths without a parameter that are none of the page's. What a caller writes is never told as it is.
const ROUTES: [&str; 16] = [
    "/v1/chat/completions",
    "/v1/chat/completions/input_tokens",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/reranking",
    "/rerank",
    "/reranking",
    "/v1/models",
    "/v1/tokenize",
    "/v1/detokenize",
    "/v1/bind",
    "/rpc",
    "/rpc/openrpc.json",
    "/healthz",
    "/readyz",
];

/// What an unknown method is called (OpenTelemetry's semantic conventions of HTTP).
const OTHER: &str = "_OTHER";

/// Request extension: how it came.
#[derive(Clone, Copy)]
pub(super) struct Arrived {
    pub(super) transport: Transport,
    /// When its first byte came ([`crate::generation::clock::task_micros`]).
    pub(super) at: u64,
}

/// Response extension: its trace, for whoever writes the body.
#[derive(Clone)]
pub(super) struct Traced {
    pub(super) trace: Trace,
    /// Whether any of the body goes out: the answer to HEAD has none.
    pub(super) has_body: bool,
}

/// Begins the trace of a request and leaves it among its extensions. Probes have none: they come every few
/// seconds and nobody looks for them.
pub(super) fn begin(tracer: &Tracer, request: &mut Request, id: &RequestId) -> Traced {
    let trace = if matches!(request.uri().path(), "/healthz" | "/readyz") {
        Trace::none()
    } else {
        let headers = request.headers();
        let parent = only(headers, &TRACEPARENT);
        // Without the parent it belongs to, the state means nothing (section 3.3.1).
        let state = parent.and_then(|_| joined(headers, &TRACESTATE, MAX_TRACESTATE));
        tracer.begin(parent, state.as_deref())
    };
    let arrived = request.extensions().get::<Arrived>().copied();
    if let Some(arrived) = arrived {
        trace.began_at(arrived.at);
    }
    trace.exchange(|exchange| {
        exchange.method = method(request.method());
        exchange.route = route(request.uri().path());
        exchange.transport = arrived.map_or("", |arrived| arrived.transport.as_str());
        exchange.id = Some(id.clone());
    });
    request.extensions_mut().insert(trace.clone());
    Traced {
        trace,
        has_body: request.method() != Method::HEAD,
    }
}

impl Traced {
    /// Tells the head of the answer, names the trace in it, and goes with it.
    pub(super) fn answered(self, response: &mut Response) {
        let status = response.status().as_u16();
        self.trace.exchange(|exchange| exchange.status = status);
        if let Some(context) = self.trace.context() {
            let text = format!(
                "00-{:032x}-{:016x}-{:02x}",
                context.trace_id,
                context.span_id,
                u8::from(context.is_sampled)
            );
            if let Ok(value) = HeaderValue::try_from(text) {
                response.headers_mut().insert(TRACERESPONSE, value);
            }
        }
        response.extensions_mut().insert(self);
    }
}

/// Keeps every detail of a request that asks for it: where nobody is asked who they are, or from a caller who
/// has shown that they may see what an operator sees. From others the header means nothing.
pub(super) fn mark(gateway: &Gateway, parts: &Parts) {
    if only(&parts.headers, &DEBUG) != Some("1") {
        return;
    }
    let caller = caller(&parts.extensions);
    let is_operator = caller.identity.is_some() && caller.rights.scopes.contain(Scopes::OPS_READ);
    if is_operator || !gateway.asks_callers() {
        caller.trace.mark_debug();
    }
}

fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::CONNECT => "CONNECT",
        Method::TRACE => "TRACE",
        _ => OTHER,
    }
}

/// The path as the router names it; empty where there is nothing.
fn route(path: &str) -> &'static str {
    if let Some(route) = ROUTES.iter().find(|route| **route == path) {
        return route;
    }
    if path
        .strip_prefix("/v1/models/")
        .is_some_and(|id| !id.is_empty())
    {
        return "/v1/models/{*id}";
    }
    let stream = path.strip_prefix("/v1/streams/");
    if stream.is_some_and(|id| !id.is_empty() && !id.contains('/')) {
        return "/v1/streams/{id}";
    }
    assets::known(path).unwrap_or_default()
}

/// A field that is there once, as text.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.to_str().ok())?
}

/// The fields of a list put together (RFC 9110, section 5.3), unless that is too much.
fn joined(headers: &HeaderMap, name: &HeaderName, most: usize) -> Option<String> {
    let mut text = String::new();
    for value in headers.get_all(name) {
        let value = value.to_str().ok()?;
        if !text.is_empty() {
            text.push(',');
        }
        if text.len() + value.len() > most {
            return None;
        }
        text.push_str(value);
    }
    Some(text).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::generation::Sink;

    fn with(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_trace_begins_when_its_request_came() {
        let sink = Arc::new(Sink::default());
        let mut request = Request::new(axum::body::Body::empty());
        request.extensions_mut().insert(Arrived {
            transport: Transport::Http2,
            at: 1,
        });
        drop(begin(
            &Tracer::to(sink.clone()),
            &mut request,
            &RequestId::random(),
        ));
        drop(request);
        let told = sink.0.lock().unwrap();
        assert_eq!((told[0].began_at, told[0].exchange.transport), (1, "h2"));
    }

    #[test]
    fn no_path_of_a_caller_is_a_route() {
        for (path, expected) in [
            ("/", "/"),
            ("/app.js", "/app.js"),
            ("/rpc", "/rpc"),
            ("/v1/bind", crate::transport::early::BIND),
            ("/v1/models", "/v1/models"),
            ("/v1/models/", ""),
            ("/v1/models/a/b", "/v1/models/{*id}"),
            ("/v1/streams/x", "/v1/streams/{id}"),
            ("/v1/streams/x/y", ""),
            ("/v1/streams/", ""),
            ("/v1/chat/completions/", ""),
            ("/secret?not=even", ""),
        ] {
            assert_eq!(route(path), expected, "{path}");
        }
    }

    #[test]
    fn a_state_in_pieces_is_one_list_and_one_that_is_too_long_is_none() {
        let joined = |headers: &HeaderMap| joined(headers, &TRACESTATE, MAX_TRACESTATE);
        assert_eq!(joined(&with(&[])), None);
        assert_eq!(joined(&with(&[("tracestate", "")])), None);
        let two = [("tracestate", "a=1"), ("tracestate", "b=2,c=3")];
        assert_eq!(joined(&with(&two)).as_deref(), Some("a=1,b=2,c=3"));
        let half = "x".repeat(256);
        let most = [("tracestate", &half[..]), ("tracestate", &half[1..])];
        assert_eq!(joined(&with(&most)).unwrap().len(), 512);
        let more = [("tracestate", &half[..]), ("tracestate", &half[..])];
        assert_eq!(joined(&with(&more)), None);
        let odd = HeaderValue::from_bytes(b"a=\xff").unwrap();
        let mut headers = with(&[("tracestate", "a=1")]);
        headers.append(TRACESTATE, odd);
        assert_eq!(joined(&headers), None);
    }

    #[test]
    fn a_parent_is_there_once_or_not_at_all() {
        let parent = |fields: &[_]| only(&with(fields), &TRACEPARENT).map(str::to_owned);
        assert_eq!(parent(&[]), None);
        assert_eq!(parent(&[("traceparent", "a")]).as_deref(), Some("a"));
        assert_eq!(parent(&[("traceparent", "a"), ("traceparent", "a")]), None);
    }
}
