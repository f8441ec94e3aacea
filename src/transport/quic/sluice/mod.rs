//! `sluice/1`: another dress for requests and answers of HTTP, around the same router.
//!
//! ```text
//!  stream accepted
//!      |  REQUEST or RESUME within header_timeout   else RESPONSE with an ERROR
//!      v
//!  the router's answer, frame by frame              each asked for when the last one is with quinn
//!      |  STOP_SENDING at any time                  drops the answer, which is a client that left
//!      |  nothing taken for write_timeout           resets the stream, and no other
//!      v
//!  finished; all acknowledged                       within write_timeout
//! ```
//!
//! `incoming` reads what the client sends, `answer` writes what it gets. The frames are those of
//! [`crate::wire::sluice`].

mod answer;
mod incoming;

use std::sync::Arc;

use axum::body::Body;
use axum::http::Request;
use quinn::{RecvStream, SendStream, VarInt};
use tokio::task::JoinSet;

use self::answer::{Answer, Broken};
use self::incoming::Incoming;
use super::budget::{SendBudget, Share};
use super::shared::Shared;
use super::{Error, NO_ERROR};
use crate::generation::Kind;
use crate::transport::guard::{InFlight, Requests};
use crate::wire::failure::codes;

/// Serves a connection until it ends, or until `leave` and the requests that were begun before have
/// been answered.
pub(super) async fn serve(
    shared: Arc<Shared>,
    requests: &Arc<Requests>,
    leave: impl Future<Output = ()>,
) -> Result<(), Error> {
    let (connection, quic) = (&shared.connection, &shared.quic);
    // Nothing is read from these, so none may hold room.
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(0));
    let budget = SendBudget::new(connection.clone(), quic.serving.send_budget);
    let tracker = quic.serving.closing.tracker.clone();
    let mut tasks = JoinSet::new();
    let mut leaving = false;
    let mut leave = std::pin::pin!(leave);
    while !(leaving && tasks.is_empty()) {
        tokio::select! {
            biased;
            Some(ended) = tasks.join_next() => log_panic(ended),
            () = &mut leave, if !leaving => leaving = true,
            accepted = connection.accept_bi() => {
                let Ok((send, recv)) = accepted else { break };
                if leaving {
                    // Not processed: its client may ask elsewhere.
                    refuse(send, recv, code(Kind::Draining));
                    continue;
                }
                let in_flight = requests.begin();
                let (share, shared) = (budget.stream(), shared.clone());
                tasks.spawn(tracker.track_future(async move {
                    stream(send, recv, in_flight, &share, &shared).await;
                }));
            }
        }
    }
    while let Some(ended) = tasks.join_next().await {
        log_panic(ended);
    }
    let draining = shared.quic.serving.closing.graceful.is_cancelled();
    let reason = if draining {
        code(Kind::Draining)
    } else {
        NO_ERROR
    };
    connection.close(reason, b"");
    Ok(())
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "the task of a sluice/1 request failed");
    }
}

/// The code with which streams are reset, or stopped, for this kind of failure.
fn code(kind: Kind) -> VarInt {
    VarInt::from_u32(codes(kind).quic)
}

fn refuse(mut send: SendStream, mut recv: RecvStream, code: VarInt) {
    // Either may have ended by itself.
    let _ = recv.stop(code);
    let _ = send.reset(code);
}

/// The life of one request.
async fn stream(
    mut send: SendStream,
    recv: RecvStream,
    in_flight: InFlight,
    share: &Share,
    shared: &Shared,
) {
    let peer = shared.connection.remote_address();
    let write_timeout = shared.quic.serving.write_timeout.get();
    let mut stopped = std::pin::pin!(send.stopped());
    let outcome = tokio::select! {
        biased;
        _ = &mut stopped => Err(Broken::Gone),
        outcome = exchange(&mut send, recv, in_flight, share, shared) => outcome,
    };
    let reset = match outcome {
        // Closing the connection now would throw away what is still on its way.
        Ok(()) => match tokio::time::timeout(write_timeout, stopped).await {
            Ok(_) => return,
            Err(_) => Kind::Stalled,
        },
        Err(Broken::Gone) => Kind::Cancelled,
        Err(Broken::Stalled) => Kind::Stalled,
        Err(Broken::Answer(error)) => {
            tracing::debug!(%peer, %error, "an answer was broken off");
            Kind::Internal
        }
    };
    // Dropped without this it would be finished, as if all were there. It may be gone already.
    let _ = send.reset(code(reset));
}

async fn exchange(
    send: &mut SendStream,
    recv: RecvStream,
    in_flight: InFlight,
    share: &Share,
    shared: &Shared,
) -> Result<(), Broken> {
    let serving = &shared.quic.serving;
    let peer = shared.connection.remote_address();
    let early = recv.is_0rtt();
    let mut answer = Answer::new(send, share, serving.write_timeout.get());
    let mut incoming = Incoming::new(recv, serving.settings.max_header_bytes);
    let request = match incoming.request(serving.settings.header_timeout).await {
        Ok(request) => request,
        Err(failure) => {
            tracing::debug!(%peer, %failure, "no request");
            incoming.stop(code(failure.kind));
            return answer.refuse(&failure).await;
        }
    };
    answer.prioritize(request.headers());
    let mut request: Request<Body> = request.map(|()| Body::new(incoming));
    shared.tell(request.extensions_mut(), early);
    request.extensions_mut().insert(in_flight.arrived());
    answer
        .respond(serving.router.clone(), request, in_flight)
        .await
}
