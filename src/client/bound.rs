//! Requests over QUIC: one connection for all, and what makes early data safe to send on the next.
//!
//! ```text
//! first connection        POST /v1/bind, with the key of whoever asks, gives a token, good for this TLS
//!                         session and what resumes it
//! each further request    the token, and a proof made with a key of the very connection it goes on
//! next connection         the same with the early key, in the first flight: an answer after one round trip
//! ```
//!
//! A server without `/v1/bind`, or that gives us no token there, gets no tokens, no proofs and no early data,
//! but the key with each request. Sessions and the token are kept
//! in memory and end with the client.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::exchange::{Answer, Request};
use super::http3::Unsent;
use super::quic::{self, Connection, Fault, Handshake, To};
use super::{Endpoint, Error};
use crate::auth::Signed;

const REQUEST_ID: &str = "x-request-id";
const PROOF: HeaderName = HeaderName::from_static("x-sluice-proof");

/// How often one request is sent at most: as early data, after a refusal of that, with a new token, and on
/// a new connection when the server leaves the first.
const ATTEMPTS: usize = 4;

/// How long the answer to `/v1/bind` may take.
const BIND_TIMEOUT: Duration = Duration::from_secs(10);

/// The connection of a client, once there is one, and its token.
#[derive(Default)]
pub(super) struct Shared {
    /// Held while connecting, so that requests that start together share it.
    current: Mutex<Option<Arc<Bound>>>,
    known: Arc<StdMutex<Known>>,
    /// The one task that may be asking for a token.
    binding: StdMutex<JoinSet<()>>,
}

/// What outlives a connection.
#[derive(Default)]
struct Known {
    /// The newest token, and whose.
    token: Option<(Arc<str>, SocketAddr)>,
    /// The server has no `/v1/bind`, or not for us.
    is_unbindable: bool,
}

/// A connection and the token that holds on it.
struct Bound {
    connection: Arc<Connection>,
    token: StdMutex<Option<Arc<str>>>,
}

impl Shared {
    /// Sends a request and waits for the head of its answer.
    pub(super) async fn send(&self, to: To<'_>, request: &Request) -> Result<Answer, Fault> {
        let mut request = request.clone();
        // One id however often it is sent: a server that knows it does not execute it twice.
        request.set(REQUEST_ID, &uuid::Uuid::new_v4().simple().to_string());
        let (mut may_be_early, mut may_bind) = (true, true);
        let mut last = Error::Truncated;
        for _ in 0..ATTEMPTS {
            let bound = self.connection(to, may_be_early).await?;
            let connection = &bound.connection;
            let is_early = connection.state() == Handshake::Running;
            let is_signed = bound.sign(&mut request, to.key);
            // Early and signed, it may have been served; without that it was held, and dropped.
            let silence = if is_early && is_signed && !request.method.is_safe() {
                Fault::Unanswered
            } else {
                Fault::Blocked
            };
            let sent = tokio::select! {
                sent = connection.send(to.server, &request) => sent,
                () = connection.overdue() => {
                    self.forget(&bound).await;
                    return Err(silence);
                }
            };
            match sent {
                Ok(answer) if answer.status == StatusCode::TOO_EARLY && is_early => {
                    connection.established().await;
                }
                Ok(answer)
                    if answer.status == StatusCode::UNAUTHORIZED && is_signed && may_bind =>
                {
                    may_bind = false;
                    self.unbind(&bound);
                    bind(&bound, to.server, to.key, &self.known).await;
                }
                Ok(answer) => return Ok(answer),
                Err(Unsent::Leaving) => self.forget(&bound).await,
                Err(Unsent::Failed(error)) => {
                    if !(is_early && self.is_rejected(&bound).await) {
                        // The request learns of the end of its connection as soon as `overdue` does.
                        return Err(if connection.is_silent() {
                            silence
                        } else {
                            error.into()
                        });
                    }
                    last = error;
                }
            }
            may_be_early = false;
        }
        Err(last.into())
    }

    /// The connection, if there is one.
    pub(super) async fn current(&self) -> Option<Arc<Connection>> {
        let current = self.current.lock().await;
        current.as_ref().map(|bound| Arc::clone(&bound.connection))
    }

    async fn connection(&self, to: To<'_>, may_be_early: bool) -> Result<Arc<Bound>, Fault> {
        let mut current = self.current.lock().await;
        if let Some(bound) = current.as_ref()
            && bound.connection.is_open()
        {
            return Ok(Arc::clone(bound));
        }
        let known = lock(&self.known).token.clone().filter(|_| may_be_early);
        let peer = known.as_ref().map(|(_, peer)| *peer);
        let connected = quic::connect(to, peer).await;
        let connection = Arc::new(connected.inspect_err(|_| {
            // The server may have moved.
            lock(&self.known).token = None;
        })?);
        let is_early = connection.state() != Handshake::Full;
        let token = known.map(|(token, _)| token).filter(|_| is_early);
        let bound = Arc::new(Bound {
            connection,
            token: StdMutex::new(token),
        });
        self.bind_later(&bound, to);
        *current = Some(Arc::clone(&bound));
        Ok(bound)
    }

    /// Asks for a token if this connection begins a new TLS session.
    fn bind_later(&self, bound: &Arc<Bound>, to: To<'_>) {
        if lock(&self.known).is_unbindable {
            return;
        }
        let (bound, known) = (Arc::clone(bound), Arc::clone(&self.known));
        let (server, key) = (to.server.clone(), to.key.cloned());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let state = bound.connection.established().await;
            let is_new = matches!(state, Handshake::Full | Handshake::Rejected);
            if is_new && bound.connection.is_open() {
                bind(&bound, &server, key.as_ref(), &known).await;
            }
        });
        *lock(&self.binding) = task;
    }

    /// Whether what was sent early was never read. Then the token is worth nothing either.
    async fn is_rejected(&self, bound: &Bound) -> bool {
        let is_rejected = tokio::select! {
            state = bound.connection.established() => state == Handshake::Rejected,
            () = bound.connection.overdue() => false,
        };
        if is_rejected {
            self.unbind(bound);
        }
        is_rejected
    }

    fn unbind(&self, bound: &Bound) {
        lock(&bound.token).take();
        lock(&self.known).token = None;
    }

    /// Gives a connection up for further requests; what is read from it goes on.
    async fn forget(&self, bound: &Arc<Bound>) {
        let mut current = self.current.lock().await;
        if current.as_ref().is_some_and(|now| Arc::ptr_eq(now, bound)) {
            *current = None;
        }
    }
}

impl Bound {
    /// Puts token and proof on a request, or in place of those of an earlier attempt the key. Whether it has
    /// the former.
    fn sign(&self, request: &mut Request, key: Option<&HeaderValue>) -> bool {
        request.headers.remove(AUTHORIZATION);
        request.headers.remove(PROOF);
        if let Some(key) = key {
            request.headers.insert(AUTHORIZATION, key.clone());
        }
        let token = lock(&self.token).clone();
        let (Some(token), Some(key)) = (token, self.connection.key()) else {
            return false;
        };
        let id = request.headers.get(REQUEST_ID);
        let signed = Signed {
            id: id.and_then(|id| id.to_str().ok()).unwrap_or_default(),
            method: request.method.as_str(),
            path: &request.path,
            token: &token,
            body: &request.body,
        };
        let proof = key.prove(&signed.message()).to_string();
        request.set("x-sluice-proof", &proof);
        request.set("authorization", &format!("Bearer {token}"));
        true
    }
}

/// Asks for a token for the TLS session of a connection. Without one, requests go unbound.
async fn bind(
    bound: &Bound,
    server: &Endpoint,
    key: Option<&HeaderValue>,
    known: &StdMutex<Known>,
) {
    #[derive(Deserialize)]
    struct Sealed {
        token: String,
    }
    let request = Request::post(server.path("bind"), "application/json", Vec::new());
    let request = request.keyed(key);
    let asked = async {
        let answer = bound.connection.send(server, &request).await.ok()?;
        if matches!(
            answer.status,
            StatusCode::NOT_FOUND
                | StatusCode::METHOD_NOT_ALLOWED
                | StatusCode::UNAUTHORIZED
                | StatusCode::FORBIDDEN
        ) {
            lock(known).is_unbindable = true;
        }
        let body = answer.accepted().await.ok()?.document().await.ok()?;
        serde_json::from_slice::<Sealed>(&body).ok()
    };
    if let Ok(Some(sealed)) = timeout(BIND_TIMEOUT, asked).await {
        let token: Arc<str> = sealed.token.into();
        *lock(&bound.token) = Some(Arc::clone(&token));
        lock(known).token = Some((token, bound.connection.peer()));
    }
}

fn lock<T>(mutex: &StdMutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("is_bound", &lock(&self.known).token.is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
