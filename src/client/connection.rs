//! The client: what can be asked, over whichever transport, and the way out when UDP is blocked.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::bound;
use super::error::Error;
use super::exchange::{Answer, Request};
use super::feed::Feed;
use super::quic::{Fault, To};
use super::stream::{ChatStream, EVENT_STREAM, Frames};
use super::{ApiKey, ChatRequest, Endpoint, Model, Options, Transport, http1, http2, tls};
use crate::wire::sluice::FRAMES;

/// How long a request may take whose answer nobody waits for: a person may wait for its end.
const SAY_TIMEOUT: Duration = Duration::from_secs(1);

/// A client of one server. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

/// What clones share, and streams that may have to reconnect.
#[derive(Debug)]
pub(super) struct Inner {
    endpoint: Endpoint,
    options: Options,
    tls: OnceCell<tls::Configs>,
    http2: http2::Shared,
    quic: bound::Shared,
    /// UDP does not get through: never to be tried again.
    is_udp_blocked: AtomicBool,
    is_fall_back_told: AtomicBool,
    /// Requests whose answers nobody waits for.
    said: TaskTracker,
}

impl Client {
    /// A client; connects when it is first asked for something. A [`Transport`] is enough for `options`.
    #[must_use]
    pub fn new(endpoint: Endpoint, options: impl Into<Options>) -> Self {
        Self(Arc::new(Inner {
            endpoint,
            options: options.into(),
            tls: OnceCell::new(),
            http2: http2::Shared::default(),
            quic: bound::Shared::default(),
            is_udp_blocked: AtomicBool::new(false),
            is_fall_back_told: AtomicBool::new(false),
            said: TaskTracker::new(),
        }))
    }

    /// The server's address.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.0.endpoint
    }

    /// What is spoken: what was chosen, or HTTP/2 once UDP was found to be blocked.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.0.transport()
    }

    /// What was chosen, the first time that this is asked after UDP was found to be blocked: for telling
    /// somebody once.
    #[must_use]
    pub fn take_fall_back(&self) -> Option<Transport> {
        let inner = &*self.0;
        let is_news = inner.is_udp_blocked.load(Ordering::Relaxed)
            && !inner.is_fall_back_told.swap(true, Ordering::Relaxed);
        is_news.then_some(inner.options.transport)
    }

    /// Starts a chat and returns its events, once the server has accepted it.
    ///
    /// # Errors
    /// No connection, or the server refused.
    pub async fn chat(&self, request: &ChatRequest) -> Result<ChatStream, Error> {
        if self.0.options.transport != Transport::Quic {
            return Ok(ChatStream::of_events(self.chat_frames(request).await?));
        }
        // Whoever speaks `sluice/1` has its format over HTTP as well, after a fall back.
        let answer = self.post(request, FRAMES).await?;
        match &*answer.content_type() {
            FRAMES => Ok(ChatStream::of_frames(self.feed(answer))),
            EVENT_STREAM => Ok(ChatStream::of_events(Frames::new(self.feed(answer)))),
            other => Err(Error::not_a_stream(other)),
        }
    }

    /// Starts a chat and returns its raw events.
    ///
    /// # Errors
    /// No connection, or the server refused.
    pub async fn chat_frames(&self, request: &ChatRequest) -> Result<Frames, Error> {
        let accept = "text/event-stream, application/json";
        let answer = self.post(request, accept).await?;
        match &*answer.content_type() {
            EVENT_STREAM => Ok(Frames::new(self.feed(answer))),
            other => Err(Error::not_a_stream(other)),
        }
    }

    /// The models that the server offers, in its order.
    ///
    /// # Errors
    /// No connection, the server refused, or its answer is no list of models.
    pub async fn models(&self) -> Result<Vec<Model>, Error> {
        #[derive(Deserialize)]
        struct List {
            data: Vec<Model>,
        }
        let request = Request::get(self.0.endpoint.path("models"), "application/json");
        let answer = self.0.send(&request).await?.accepted().await?;
        let body = answer.document().await?;
        let list: List =
            serde_json::from_slice(&body).map_err(|source| Error::malformed(&body, source))?;
        Ok(list.data)
    }

    /// Moves the QUIC connection, if there is one, to a new socket, as after a change of network. Streams
    /// go on. Where only the address of the same network interface changed, this happens by itself.
    ///
    /// # Errors
    /// There is no socket to be had; then the old one stays.
    pub async fn rebind(&self) -> io::Result<()> {
        match self.0.quic.current().await {
            Some(connection) => connection.rebind(),
            None => Ok(()),
        }
    }

    /// Waits until the server has been told of streams that were dropped and, on QUIC, of the end of the
    /// connection: a moment in which dropping cannot wait. To be called before a process ends, or the server may
    /// learn of it only when the connection times out.
    pub async fn close(&self) {
        self.0.said.close();
        self.0.said.wait().await;
        self.0.said.reopen();
        if let Some(connection) = self.0.quic.current().await {
            connection.close().await;
        }
    }

    async fn post(&self, request: &ChatRequest, accept: &'static str) -> Result<Answer, Error> {
        let path = self.0.endpoint.path("chat/completions");
        let mut asked = Request::post(path, accept, request.body());
        if let Some(traceparent) = &request.traceparent {
            asked.set("traceparent", traceparent);
        }
        self.0.send(&asked).await?.accepted().await
    }

    fn feed(&self, answer: Answer) -> Feed {
        Feed::new(answer, &self.0, self.0.options.resume)
    }
}

impl Inner {
    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn transport(&self) -> Transport {
        let chosen = self.options.transport;
        if chosen.is_quic() && self.is_udp_blocked.load(Ordering::Relaxed) {
            Transport::Http2
        } else {
            chosen
        }
    }

    /// Sends a request and leaves it at that.
    pub(super) fn say(self: &Arc<Self>, request: Request) {
        // Without a runtime there is nobody to do it.
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let client = Arc::clone(self);
        let said = async move {
            let _ = timeout(SAY_TIMEOUT, client.send(&request)).await;
        };
        self.said.spawn_on(said, &runtime);
    }

    /// Sends a request and waits for the head of its answer, whatever it says.
    pub(super) async fn send(&self, request: &Request) -> Result<Answer, Error> {
        let tls = self.tls().await?;
        let tcp = tls.map(|tls| &tls.tcp);
        let key = self.options.api_key.as_ref().map(ApiKey::header);
        let key = key.transpose()?;
        let request = &request.keyed(key.as_ref());
        match (self.transport(), tls) {
            (Transport::Http1, _) => http1::send(&self.endpoint, tcp, request).await,
            (Transport::Http2, _) => self.http2.send(&self.endpoint, tcp, request).await,
            (Transport::Http3 | Transport::Quic, None) => Err(Error::NotSecure),
            (transport, Some(tls)) => {
                let to = To {
                    server: &self.endpoint,
                    transport,
                    tls: &tls.quic,
                    patience: self.options.quic_patience,
                    key: key.as_ref(),
                };
                match self.quic.send(to, request).await {
                    Ok(answer) => Ok(answer),
                    Err(Fault::Failed(error)) => Err(error),
                    Err(Fault::Unanswered) => {
                        self.is_udp_blocked.store(true, Ordering::Relaxed);
                        let authority = self.endpoint.authority().to_owned();
                        Err(Error::Unanswered { authority })
                    }
                    Err(Fault::Blocked) => {
                        // With neither there is no server; what TCP says of that is the better error.
                        let answer = self.http2.send(&self.endpoint, tcp, request).await?;
                        self.is_udp_blocked.store(true, Ordering::Relaxed);
                        Ok(answer)
                    }
                }
            }
        }
    }

    async fn tls(&self) -> Result<Option<&tls::Configs>, Error> {
        if !self.endpoint.is_secure() {
            return Ok(None);
        }
        let made = self.tls.get_or_try_init(|| async {
            let options = self.options.clone();
            let read = tokio::task::spawn_blocking(move || tls::Configs::new(&options));
            read.await.map_err(|error| Error::Tls(error.into()))?
        });
        made.await.map(Some)
    }
}
