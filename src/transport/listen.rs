//! TCP: accept, bound, shake hands, speak HTTP/1.1 or HTTP/2.
//!
//! Our own accept loop, because every step of a connection needs a bound that a ready-made server
//! does not set: the first byte, the protocol preface, the headers, the idle time between requests,
//! unsent bytes in the kernel, a peer that takes nothing. A connection holds its permit until it ends,
//! and hangs on a tracker that the owner of the listener waits for.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Version, header};
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;

use super::config::{HalfClose, Server};
use super::early::{Handshake, Secure};
use super::guard::{AHEAD, Guarded, InFlight, Requests};
use super::http2::Http2;
use super::outq::SendQueue;
use super::pace::{Pace, SmallFrames};
use super::peer_frames::PeerFrames;
use super::tls::{self, CIPHERTEXT_AHEAD, Tls};
use super::tokens::{MAX_FRAME, Streamed};
use crate::telemetry::{Metrics, Traffic, Transport};

/// Connections that the kernel keeps for us while the accept loop is busy.
const BACKLOG: i32 = 1024;

/// After `accept` fails (usually for want of file descriptors), wait this long instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The HTTP/2 client preface (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How connections of one listener end.
#[derive(Clone, Default)]
pub struct Closing {
    /// Stop accepting; close what is idle, let running requests finish.
    pub graceful: CancellationToken,
    /// End every connection now.
    pub now: CancellationToken,
    /// All connections.
    pub tracker: TaskTracker,
}

/// Binds an address with `SO_REUSEADDR`, so that a restart need not wait for old connections.
///
/// # Errors
/// As the system says: in use, not permitted, no such address.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // `[::]:8080` beside `0.0.0.0:8080` must be possible.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// A socket that takes connections, and whether they are secured.
pub struct Listener {
    /// The socket.
    pub socket: TcpListener,
    /// TLS, with what it shows and asks.
    pub tls: Option<Arc<Tls>>,
    /// What its answers say of QUIC.
    pub alt_svc: Option<HeaderValue>,
}

/// What every connection of an endpoint's listeners shares.
pub struct Serving {
    /// The handlers.
    pub router: Router,
    /// Timeouts and bounds.
    pub settings: Server,
    /// What HTTP/2 offers and bears.
    pub http2: Http2,
    /// How long a peer may take nothing of what is sent to it.
    pub write_timeout: WriteTimeout,
    /// Bytes of one stream that may be unsent or unacknowledged.
    pub send_budget: usize,
    /// Places for connections, shared by all public listeners.
    pub places: Arc<Semaphore>,
    /// Where connections are counted, if they are.
    pub metrics: Option<Arc<Metrics>>,
    /// How connections end.
    pub closing: Closing,
}

/// How long a peer may take nothing of what is sent to it. Clones share it, and it may be changed.
#[derive(Clone, Debug, Default)]
pub struct WriteTimeout(Arc<AtomicU64>);

impl WriteTimeout {
    /// So long by now.
    #[must_use]
    pub fn get(&self) -> Duration {
        Duration::from_micros(self.0.load(Relaxed))
    }

    /// So long from now on.
    pub fn set(&self, timeout: Duration) {
        let micros = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
        self.0.store(micros, Relaxed);
    }
}

impl Serving {
    /// Where it is counted what this transport carries, if it is.
    pub(super) fn traffic(&self, transport: Transport) -> Option<Arc<Traffic>> {
        let metrics = self.metrics.as_ref()?;
        Some(metrics.transports.traffic(transport).clone())
    }

    /// What of a stream's budget is left for the kernel beside the buffers above it: hyper's, the frame
    /// that it holds, and what TLS has encrypted. Never less than the kernel takes unsent anyway.
    fn kernel_share(&self) -> usize {
        let above =
            self.http2.max_send_buffer.max(AHEAD + MAX_FRAME) + MAX_FRAME + CIPHERTEXT_AHEAD;
        let share = self.send_budget.saturating_sub(above);
        share.max(self.settings.notsent_lowat)
    }
}

/// Accepts until told to stop. Connections run on until [`Closing`] ends them.
pub async fn accept(listener: Listener, serving: Arc<Serving>) {
    let closing = &serving.closing;
    loop {
        let place = tokio::select! {
            biased;
            () = closing.graceful.cancelled() => return,
            place = serving.places.clone().acquire_owned() => place,
        };
        let Ok(place) = place else { return };
        let accepted = tokio::select! {
            biased;
            () = closing.graceful.cancelled() => return,
            accepted = listener.socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (serving, tls) = (serving.clone(), listener.tls.clone());
                let alt_svc = listener.alt_svc.clone();
                closing.tracker.spawn(async move {
                    let _counted = serving
                        .metrics
                        .as_ref()
                        .map(|metrics| metrics.transports.connection_opened());
                    tokio::select! {
                        biased;
                        () = serving.closing.now.cancelled() => {}
                        result = connection(stream, peer, tls, alt_svc, &serving) => {
                            if let Err(error) = result {
                                tracing::debug!(%peer, %error, "connection ended");
                            }
                        }
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

type Error = Box<dyn std::error::Error + Send + Sync>;

async fn connection(
    mut stream: TcpStream,
    address: SocketAddr,
    tls: Option<Arc<Tls>>,
    alt_svc: Option<HeaderValue>,
    serving: &Serving,
) -> Result<(), Error> {
    tune(&stream, &serving.settings)?;
    let Some(tls) = tls else {
        let first_bytes = sniff(&mut stream);
        let (head, is_http2) = timeout(serving.settings.first_byte_timeout, first_bytes)
            .await
            .map_err(|_| "nothing was sent")??;
        if head.is_empty() {
            return Ok(());
        }
        let peer = Peer {
            address,
            identity: None,
        };
        let about = About::new(peer, None, alt_svc);
        return serve(stream, head, is_http2, about, serving).await;
    };
    let (stream, session) = tls.accept(stream, address).await?;
    let (_, tls) = stream.get_ref();
    let is_http2 = tls.alpn_protocol() == Some(b"h2");
    let peer = Peer {
        address,
        identity: tls.peer_certificates().and_then(tls::identity_of),
    };
    // No early data over TCP: rustls is not told to take any.
    let handshake = Handshake::ended(peer.identity.clone());
    let secure = Secure::new(session, handshake, false);
    let about = About::new(peer, Some(secure), alt_svc);
    serve(stream, Bytes::new(), is_http2, about, serving).await
}

/// Who is at the other end of a connection.
#[derive(Clone)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    /// What its certificate says, if it showed one.
    pub(super) identity: Option<Arc<str>>,
}

/// Serves a connection whose first bytes, `head`, were read already.
async fn serve<S>(
    stream: S,
    head: Bytes,
    is_http2: bool,
    mut about: About,
    serving: &Serving,
) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + SendQueue + Unpin + Send + 'static,
{
    let transport = if is_http2 {
        Transport::Http2
    } else {
        Transport::Http1
    };
    let traffic = serving.traffic(transport);
    let _speaking = traffic.as_ref().map(Traffic::connection);
    let requests = Requests::new(transport, traffic);
    let header_timeout = (!is_http2).then_some(serving.settings.header_timeout);
    let io = Guarded::new(
        stream,
        head,
        requests.clone(),
        header_timeout,
        serving.write_timeout.get(),
        serving.kernel_share(),
    );
    let io = TokioIo::new(if is_http2 {
        let small_frames = SmallFrames::new();
        about.pace.small_frames = Some(small_frames.clone());
        let most = serving.http2.max_control_frames.get();
        io.with_frames(PeerFrames::new(small_frames, most, serving.metrics.clone()))
    } else {
        io
    });
    let router = serving.router.clone();
    let service = {
        let requests = requests.clone();
        service_fn(move |request| {
            let (router, about) = (router.clone(), about.clone());
            respond(router, about, request, requests.begin())
        })
    };
    let graceful = serving.closing.graceful.cancelled();
    if is_http2 {
        let connection = http2_builder(serving).serve_connection(io, service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            result = connection.as_mut() => return Ok(result?),
            () = graceful => {}
            stalled = watch_http2(&requests, serving) => stalled?,
        }
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            result = connection.as_mut() => result?,
            stalled = watch_stalls(&requests, serving) => stalled?,
        }
    } else {
        let connection = http1_builder(&serving.settings).serve_connection(io, service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            result = connection.as_mut() => return Ok(result?),
            () = graceful => connection.as_mut().graceful_shutdown(),
            stalled = watch_stalls(&requests, serving) => stalled?,
        }
        tokio::select! {
            result = connection.as_mut() => result?,
            stalled = watch_stalls(&requests, serving) => stalled?,
        }
    }
    Ok(())
}

/// Returns when an HTTP/2 connection has been idle for too long. Its pings answer for the peer being
/// there, not for its having anything to ask.
///
/// # Errors
/// As [`watch_stalls`].
async fn watch_http2(requests: &Requests, serving: &Serving) -> Result<(), Error> {
    tokio::select! {
        stalled = watch_stalls(requests, serving) => stalled,
        () = requests.until_idle(serving.settings.idle_timeout) => Ok(()),
    }
}

/// Never returns while every answer finds room in time.
///
/// # Errors
/// One of them did not: its reader keeps the window shut, which no write on the socket would show.
async fn watch_stalls(requests: &Requests, serving: &Serving) -> Result<(), Error> {
    requests.until_stalled(serving.write_timeout.get()).await;
    Err("a stream's reader keeps its window shut".into())
}

fn tune(stream: &TcpStream, settings: &Server) -> io::Result<()> {
    stream.set_nodelay(settings.nodelay)?;
    let socket = SockRef::from(stream);
    // What the kernel has taken but not sent is text that a stopped reader can no longer hold back.
    let unsent = u32::try_from(settings.notsent_lowat).unwrap_or(u32::MAX);
    socket.set_tcp_notsent_lowat(unsent)?;
    if let Some(bytes) = settings.send_buffer {
        socket.set_send_buffer_size(bytes)?;
    }
    Ok(())
}

/// Reads until it is clear which protocol the peer speaks. What was read comes back with the verdict;
/// nothing at all means that the peer left.
async fn sniff(stream: &mut TcpStream) -> io::Result<(Bytes, bool)> {
    let mut head = Vec::with_capacity(PREFACE.len());
    loop {
        let mut next = [0; PREFACE.len()];
        let wanted = PREFACE.len() - head.len();
        let read = stream.read(&mut next[..wanted]).await?;
        head.extend_from_slice(&next[..read]);
        let may_be_http2 = PREFACE.starts_with(&head);
        if read == 0 || !may_be_http2 || head.len() == PREFACE.len() {
            let is_http2 = may_be_http2 && head.len() == PREFACE.len();
            return Ok((head.into(), is_http2));
        }
    }
}

fn http1_builder(settings: &Server) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // Runs while a kept-alive connection waits for its next request; the time for headers alone
        // is kept by `Guarded`.
        .header_read_timeout(settings.idle_timeout)
        .half_close(settings.half_close == HalfClose::Serve)
        // Of what we write, too, where `guard` does not stop sooner. For the same reason `pipeline_flush`
        // stays off, which lifts this bound.
        .max_buf_size(settings.max_header_bytes);
    builder
}

fn http2_builder(serving: &Serving) -> http2::Builder<Tracked> {
    let mut builder = http2::Builder::new(Tracked(serving.closing.tracker.clone()));
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(serving.settings.max_streams_per_connection.get())
        .max_header_list_size(u32::try_from(serving.settings.max_header_bytes).unwrap_or(u32::MAX));
    serving.http2.apply(&mut builder);
    builder
}

/// Runs HTTP/2's stream tasks on the tracker, so that a shutdown waits for them.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

/// What all requests of a connection have in common, and what is added to their answers.
#[derive(Clone)]
struct About {
    peer: Peer,
    secure: Option<Secure>,
    pace: Pace,
    alt_svc: Option<HeaderValue>,
}

impl About {
    fn new(peer: Peer, secure: Option<Secure>, alt_svc: Option<HeaderValue>) -> Self {
        Self {
            peer,
            secure,
            pace: Pace::default(),
            alt_svc,
        }
    }
}

async fn respond(
    mut router: Router,
    about: About,
    mut request: Request<Incoming>,
    mut in_flight: InFlight,
) -> Result<Response<Body>, std::convert::Infallible> {
    request.extensions_mut().insert(about.peer);
    let small_frames = about.pace.small_frames.clone();
    if let Some(small_frames) = &small_frames {
        small_frames.begin();
    }
    request.extensions_mut().insert(about.pace);
    request.extensions_mut().insert(in_flight.arrived());
    if let Some(secure) = about.secure {
        request.extensions_mut().insert(secure);
    }
    let is_http1 = request.version() < Version::HTTP_2;
    let mut response = router.call(request).await?;
    if response.extensions().get::<Streamed>().is_some() {
        in_flight.streams(is_http1);
    } else if let Some(small_frames) = small_frames {
        in_flight.counted_by(small_frames);
    }
    if let Some(alt_svc) = about.alt_svc {
        response.headers_mut().insert(header::ALT_SVC, alt_svc);
    }
    let (head, body) = response.into_parts();
    let body = Body::new(in_flight.until_end_of(body, &head.extensions));
    Ok(Response::from_parts(head, body))
}
