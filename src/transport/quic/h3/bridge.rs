//! One connection of HTTP/3, and the life of each of its requests.
//!
//! ```text
//!  stream accepted
//!      |  head within header_timeout            else H3_REQUEST_CANCELLED, or 431
//!      v
//!  the router's answer, frame by frame          each asked for when the last one is with quinn
//!      |  STOP_SENDING at any time              drops the answer, which is a client that left
//!      v
//!  finished; all acknowledged                   within write_timeout
//! ```

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode, header};
use bytes::Bytes;
use h3::error::Code;
use h3::server::{RequestResolver, RequestStream};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::task::JoinSet;
use tower_service::Service as _;

use super::backend::{Connection, Control, Reader, Slot, Writer};
use super::body::RequestBody;
use crate::transport::guard::{InFlight, Requests};
use crate::transport::quic::budget::{SendBudget, Share};
use crate::transport::quic::shared::Shared;
use crate::transport::quic::{Error, OF_A_CONNECTION, priority};

/// Serves a connection until it ends, or until `leave` and the requests that were begun before have
/// been answered.
pub(in crate::transport::quic) async fn serve(
    shared: Arc<Shared>,
    requests: &Arc<Requests>,
    leave: impl Future<Output = ()>,
) -> Result<(), Error> {
    let (connection, quic) = (&shared.connection, &shared.quic);
    let max_head = quic.serving.settings.max_header_bytes;
    // Twice: a head that is a little too large shall be answered, with 431.
    let (backend, slot) = Connection::new(connection.clone(), 2 * max_head);
    let mut http = h3::server::builder()
        .max_field_section_size(max_head as u64)
        .send_grease(false)
        .build::<_, Bytes>(backend)
        .await?;
    let budget = SendBudget::new(connection.clone(), quic.serving.send_budget);
    let tracker = quic.serving.closing.tracker.clone();
    let mut tasks = JoinSet::new();
    let mut leaving = false;
    let mut leave = std::pin::pin!(leave);
    while !(leaving && tasks.is_empty()) {
        tokio::select! {
            biased;
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "the task of an HTTP/3 request failed");
                }
            }
            () = &mut leave, if !leaving => {
                leaving = true;
                // The id in a GOAWAY is the first that was not processed (RFC 9114, section 5.2);
                // `h3` writes the last one it accepted plus this.
                http.shutdown(1).await?;
            }
            accepted = http.accept() => {
                let Some(resolver) = accepted? else { break };
                let Some(control) = take(&slot) else { continue };
                if leaving {
                    // Its client was told that it is not processed, and may ask elsewhere.
                    control.shared.refuse(Code::H3_REQUEST_REJECTED);
                    continue;
                }
                let in_flight = requests.begin();
                let (share, shared) = (budget.stream(), shared.clone());
                tasks.spawn(tracker.track_future(async move {
                    request(resolver, control, in_flight, share, shared).await;
                }));
            }
        }
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

fn take(slot: &Slot) -> Option<Control> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

async fn request(
    resolver: RequestResolver<Connection, Bytes>,
    control: Control,
    in_flight: InFlight,
    share: Share,
    shared: Arc<Shared>,
) {
    let Control {
        early,
        mut stopped,
        shared: stream,
    } = control;
    let serving = &shared.quic.serving;
    let address = shared.connection.remote_address();
    let mut head = Box::pin(resolver.resolve_request());
    let in_time = tokio::time::timeout(serving.settings.header_timeout, &mut head).await;
    if in_time.is_err() {
        stream.refuse(Code::H3_REQUEST_CANCELLED);
    }
    // With the future goes the stream, if it is still in there.
    drop(head);
    let (head, both) = match in_time {
        Ok(Ok(request)) => request,
        Ok(Err(error)) => return tracing::debug!(peer = %address, %error, "no request"),
        Err(_) => return tracing::debug!(peer = %address, "headers took too long"),
    };
    let (mut send, recv) = both.split();
    if is_malformed(head.headers()) {
        send.stop_stream(Code::H3_MESSAGE_ERROR);
        return tracing::debug!(peer = %address, "a request with fields of a connection");
    }
    stream.prioritize(priority::urgency(head.headers()));
    let mut request = with_body(head, recv);
    shared.tell(request.extensions_mut(), early);
    request.extensions_mut().insert(in_flight.arrived());
    let answer = answer(
        &mut send,
        (&share, serving.write_timeout.get()),
        serving.router.clone(),
        request,
        in_flight,
    );
    let outcome = tokio::select! {
        biased;
        _ = &mut stopped => Err(None),
        answered = answer => answered.map_err(Some),
    };
    match outcome {
        Ok(()) => {
            // Closing the connection now would throw away what is still on its way.
            let acknowledged = tokio::time::timeout(serving.write_timeout.get(), stopped).await;
            if acknowledged.is_err() {
                send.stop_stream(Code::H3_REQUEST_CANCELLED);
            }
        }
        Err(None) => send.stop_stream(Code::H3_REQUEST_CANCELLED),
        Err(Some(error)) => {
            tracing::debug!(peer = %address, %error, "an answer was broken off");
            send.stop_stream(Code::H3_INTERNAL_ERROR);
        }
    }
}

fn with_body(head: Request<()>, recv: RequestStream<Reader, Bytes>) -> Request<Body> {
    let announced = head
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    head.map(|()| Body::new(RequestBody::new(recv, announced)))
}

/// Asks the router and writes what it answers.
async fn answer(
    send: &mut RequestStream<Writer<Bytes>, Bytes>,
    (share, patience): (&Share, Duration),
    mut router: Router,
    request: Request<Body>,
    in_flight: InFlight,
) -> Result<(), Error> {
    let is_head = request.method() == Method::HEAD;
    let (parts, body) = router.call(request).await?.into_parts();
    let mut body = in_flight.until_end_of(body, &parts.extensions);
    let mut head = Response::from_parts(parts, ());
    for name in OF_A_CONNECTION {
        head.headers_mut().remove(name);
    }
    let has_body = !is_head
        && !head.status().is_informational()
        && head.status() != StatusCode::NO_CONTENT
        && head.status() != StatusCode::NOT_MODIFIED;
    if has_body
        && !head.headers().contains_key(header::CONTENT_LENGTH)
        && let Some(length) = body.size_hint().exact()
    {
        head.headers_mut()
            .insert(header::CONTENT_LENGTH, length.into());
    }
    in_time(patience, send.send_response(head)).await?;
    while has_body && let Some(frame) = body.frame().await {
        match frame.map_err(Error::from)?.into_data() {
            Ok(data) if data.is_empty() => {}
            // Until quinn has taken this, nothing more is asked of the body.
            Ok(data) => in_time(patience, share.write(send.send_data(data))).await?,
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    in_time(patience, send.send_trailers(trailers)).await?;
                }
            }
        }
    }
    in_time(patience, send.finish()).await?;
    Ok(())
}

/// Waits so long for a write, which ends this stream and no other: its reader keeps its window shut.
async fn in_time<E: Into<Error>>(
    patience: Duration,
    write: impl Future<Output = Result<(), E>>,
) -> Result<(), Error> {
    match tokio::time::timeout(patience, write).await {
        Ok(written) => written.map_err(Into::into),
        Err(_) => Err("the reader keeps its window shut".into()),
    }
}

/// Whether a request is malformed by what it says about a connection (RFC 9114, section 4.2).
fn is_malformed(headers: &HeaderMap) -> bool {
    let trailers_only = headers
        .get_all(header::TE)
        .iter()
        .all(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"));
    !trailers_only
        || OF_A_CONNECTION
            .iter()
            .any(|name| headers.contains_key(*name))
}
