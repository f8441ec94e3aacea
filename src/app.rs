//! The composition root: configuration in, running gateway out.
//!
//! Owns every task and the order in which they end: listeners and their connections, loading, the
//! watch, the metrics thread, and through the registry the engines' threads.

mod reload;
mod scrape;

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, info_span};

use crate::auth::{Callers, Gate};
use crate::config::{Config, Loaded};
use crate::control::detail::Detail;
use crate::control::log::LogFilter;
use crate::control::reload::{Refused, Reloaded, Reloader};
use crate::engine::Plan;
use crate::gateway::settings::{Drain, Patience};
use crate::gateway::{Gateway, Parts, Phase};
use crate::generation::{Watch, clock};
use crate::limit::{self, Limiter};
use crate::route::Registry;
use crate::telemetry::profile::Recent;
use crate::telemetry::{Metrics, PROCESS, Scrape, Tracer, Upkeep};
use crate::transport::early;
use crate::transport::files;
use crate::transport::http::{self, Context};
use crate::transport::listen::{self, Closing, Listener, Serving, WriteTimeout};
use crate::transport::ops;
use crate::transport::quic::{self, Quic};
use crate::transport::resume::Streams;
use crate::transport::tls::Tls;
use crate::wire;

pub use self::reload::{Host, Reread};

/// Connections to the operator's port: scrapers, probes and a few people.
const OPS_CONNECTIONS: usize = 64;

/// After the last stream: how long connections may take at least to flush what is written.
const FLUSH: Duration = Duration::from_secs(2);

/// And at most: a reader who has stopped must not hold up the end.
const LAST_BYTES: Duration = Duration::from_secs(5);

/// What a second signal leaves for the last words of streams, and for engines to look up.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A running gateway.
pub struct App {
    gateway: Arc<Gateway>,
    registry: Arc<Registry>,
    drain: Arc<ArcSwap<Drain>>,
    reloader: Arc<Reloader>,
    detail: Detail,
    /// Streams that outlive their connection, if any may.
    streams: Option<Arc<Streams>>,
    public: Endpoint,
    ops: Endpoint,
    watching: JoinHandle<()>,
    /// Forgets idle callers.
    sweeping: JoinHandle<()>,
    /// Writes quotas, and shares limits with other nodes.
    limits: Background,
    /// Exports what is kept of the requests.
    tracer: Arc<Tracer>,
    /// Loads the models, then replaces engines that die.
    keeping: Mutex<Option<JoinHandle<()>>>,
    loaded: watch::Receiver<Option<Result<(), String>>>,
    _upkeep: Upkeep,
}

/// A task that has something to do at the end.
#[derive(Default)]
struct Background {
    stop: CancellationToken,
    tracker: TaskTracker,
}

impl Background {
    /// Lets it finish.
    async fn end(&self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// The listeners of one kind.
struct Endpoint {
    addresses: Vec<SocketAddr>,
    /// Those of them with TLS.
    secure: Vec<SocketAddr>,
    closing: Closing,
}

/// Where the listeners of one kind are to be.
struct Listen<'a> {
    plain: &'a [SocketAddr],
    secure: Option<(&'a Arc<Tls>, &'a [SocketAddr])>,
    write_timeout: &'a WriteTimeout,
}

impl App {
    /// Binds the listeners and starts loading the models. Requests are answered from now on: health
    /// checks truthfully, everything else once its model is ready.
    ///
    /// # Errors
    /// An address cannot be bound, or a thread cannot be started.
    #[expect(
        clippy::too_many_lines,
        reason = "everything is put together here, in the order in which it depends on each other"
    )]
    pub fn start(loaded: Loaded, host: Host) -> anyhow::Result<Self> {
        let config = loaded.config.clone();
        let registry = Registry::new(plans(&config));
        let telemetry = &config.telemetry.metrics;
        let metrics = Arc::new(Metrics::with(telemetry, registry.names())?);
        metrics.slo.set(&config.telemetry.slo);
        let tracer = match host.tracer {
            Some(tracer) => tracer,
            None => Tracer::start(&config.telemetry, metrics.slo.clone())?,
        };
        let starting = info_span!(target: PROCESS, "start");
        let watch = Watch::new();
        let state = config.server.state_dir.clone();
        let state = state.or_else(crate::config::state::directory);
        let (kept, limiter) = limiter(&config, &registry, state.as_deref(), &metrics);
        let gateway = Gateway::new(
            Parts {
                registry: registry.clone(),
                watch: watch.clone(),
                metrics: metrics.clone(),
                callers: ArcSwap::new(callers(&config)?),
                limiter: limiter.clone(),
            },
            Patience::new(&config.stream, &config.deadlines),
            &config.limits,
        );
        let timeout = WriteTimeout::default();
        timeout.set(write_timeout(&config));
        let drain = Arc::new(ArcSwap::from_pointee(config.drain.clone()));
        let log = host.log.map(|control| {
            let set = Box::new(move |filter: &_| control.set(filter));
            Arc::new(LogFilter::new(config.telemetry.log.clone(), set))
        });
        let recent = Arc::new(Recent::start(&config.profile, {
            let slo = metrics.slo.clone();
            Box::new(move || slo.burn().five_minutes)
        })?);
        let detail = Detail::new(tracer.clone(), recent.clone(), metrics.clone());
        let live = reload::Live {
            running: Mutex::new(loaded),
            reread: host.reread,
            log: log.clone(),
            tracer: tracer.clone(),
            metrics: metrics.clone(),
            recent: recent.clone(),
            gateway: gateway.clone(),
            limiter: limiter.clone(),
            kept: kept.clone(),
            write_timeout: timeout.clone(),
            drain: drain.clone(),
        };
        let apply = Arc::new(move || live.apply());
        let reloader = Arc::new(Reloader::new(apply, metrics.clone()));

        let gate = Arc::new(Gate::new(&config.auth, clock::unix_seconds())?);
        let tls = Tls::build(
            &config.tls,
            state.as_deref(),
            gate.clone(),
            Some(metrics.clone()),
        )?;
        let listen = Listen {
            plain: &config.server.listen,
            secure: tls.as_ref().map(|tls| (tls, &config.tls.listen[..])),
            write_timeout: &timeout,
        };
        let streams = Streams::new(&config.stream);
        let counted = Some(metrics.clone());
        let public = Endpoint::open(&listen, &config, counted, |config| {
            let context = Context {
                tracer: tracer.clone(),
                ..context(config, &gateway, streams.clone(), &gate, &metrics)
            };
            (http::router(context), connections(config))
        })?;
        let (upkeep, pages) = Upkeep::start(metrics.clone(), telemetry, {
            let (gateway, registry) = (gateway.clone(), registry.clone());
            let (streams, limits, tracer) = (streams.clone(), kept.clone(), tracer.clone());
            move || Scrape {
                streams_open: gateway.open_streams(),
                streams_kept: streams.as_ref().map_or(0, |streams| streams.count()),
                log_lines_dropped: (host.log_lines_dropped)(),
                tickets: scrape::tickets(&gate),
                limits: limits.load(),
                traces: tracer.load(),
                models: scrape::models(&registry),
            }
        })?;
        let listen = Listen {
            plain: &config.ops.listen,
            secure: None,
            write_timeout: &timeout,
        };
        let ops = Endpoint::open(&listen, &config, None, |config| {
            let control = ops::Control {
                registry: registry.clone(),
                watch: watch.clone(),
                recent: recent.clone(),
                reloader: reloader.clone(),
                log: log.clone(),
            };
            let paths = http::ops_router(gateway.clone(), &pages);
            let mut paths = paths.merge(ops::router(control));
            if config.ops.requires_key() {
                paths = ops::guarded(paths, gateway.clone());
            }
            (paths, OPS_CONNECTIONS)
        })?;
        let following = gateway.clone().follow_callers();
        let probed = metrics.clone();
        let watching = async move {
            let is_busy = || watch.open_streams() > 0;
            let filtering = async {
                if let Some(log) = log {
                    log.run().await;
                }
            };
            tokio::join!(watch.run(), following, probed.probe(is_busy), filtering);
        };

        let limits = Background::default();
        limits.tracker.spawn(kept.keep(limits.stop.clone()));
        let (done, loaded) = watch::channel(None);
        let keeping = tokio::spawn({
            let registry = registry.clone();
            async move {
                let result = registry.load(&metrics).instrument(starting).await;
                let _ = done.send(Some(result));
                registry.keep(&metrics).await;
            }
        });
        Ok(Self {
            watching: tokio::spawn(watching),
            sweeping: tokio::spawn(limiter.run()),
            limits,
            tracer,
            keeping: Mutex::new(Some(keeping)),
            gateway,
            registry,
            drain,
            reloader: reloader.clone(),
            detail,
            streams,
            public,
            ops,
            loaded,
            _upkeep: upkeep,
        })
    }

    /// Waits until every model was tried.
    ///
    /// # Errors
    /// What is wrong with the first model that cannot be used.
    pub async fn loaded(&self) -> Result<(), String> {
        let mut loaded = self.loaded.clone();
        match loaded.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(())),
            Err(_) => Err("loading was interrupted".to_owned()),
        }
    }

    /// Where requests are taken.
    #[must_use]
    pub fn public_addresses(&self) -> &[SocketAddr] {
        &self.public.addresses
    }

    /// Where requests are taken over TLS.
    #[must_use]
    pub fn secure_addresses(&self) -> &[SocketAddr] {
        &self.public.secure
    }

    /// Where operators look.
    #[must_use]
    pub fn ops_addresses(&self) -> &[SocketAddr] {
        &self.ops.addresses
    }

    /// Open streams.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.gateway.open_streams()
    }

    /// Reads the configuration again, and applies of it what can be applied while serving. `why` is for the
    /// log.
    ///
    /// # Errors
    /// Something is wrong with it; then nothing has changed.
    pub async fn reload(&self, why: &'static str) -> Result<Reloaded, Refused> {
        self.reloader.reload(why).await
    }

    /// How much is recorded in traces and profiles.
    #[must_use]
    pub fn detail(&self) -> &Detail {
        &self.detail
    }

    /// Ends everything in order: not ready at once; new work refused after the lag; running streams
    /// finish up to the time-out, the rest end with an error; connections flush; engines stop.
    pub async fn drain(&self) {
        let open_streams = self.open_streams();
        let draining = info_span!(target: PROCESS, "drain", open_streams);
        self.drain_all().instrument(draining).await;
        // After the last request was told.
        self.tracer.close().await;
    }

    async fn drain_all(&self) {
        self.gateway.enter(Phase::Leaving);
        let Drain { timeout, lag } = Drain::clone(&self.drain.load());
        let lag = lag.min(timeout);
        tokio::time::sleep(lag).await;
        self.gateway.enter(Phase::Closed);
        let deadline = Instant::now() + timeout.saturating_sub(lag);
        let cut = self.gateway.finish_streams(deadline - Instant::now()).await;
        if cut > 0 {
            tracing::warn!(streams = cut, "drain.timeout passed; streams were cut off");
        }
        // A slow reader of a finished answer has a little of what is left to take it.
        let left = deadline - Instant::now();
        self.public.close(left.clamp(FLUSH, LAST_BYTES)).await;
        self.forget_streams().await;
        self.stop_models().await;
        // After the last stream was charged.
        self.limits.end().await;
        self.watching.abort();
        self.sweeping.abort();
        self.ops.close(FLUSH).await;
    }
}

impl App {
    /// Ends at once: every stream with an error, and what of it the sockets take now.
    pub async fn stop_now(&self) {
        self.gateway.end_streams();
        self.public.closing.graceful.cancel();
        self.public.closing.tracker.close();
        let _ = tokio::time::timeout(LAST_WORDS, self.public.closing.tracker.wait()).await;
        self.public.closing.now.cancel();
        let _ = tokio::time::timeout(LAST_WORDS, self.forget_streams()).await;
        let _ = tokio::time::timeout(LAST_WORDS, self.stop_models()).await;
        let _ = tokio::time::timeout(LAST_WORDS, self.limits.end()).await;
        let _ = tokio::time::timeout(LAST_WORDS, self.tracer.close()).await;
    }

    /// Until here, a reader could come back for the end of a stream.
    async fn forget_streams(&self) {
        if let Some(streams) = &self.streams {
            streams.close().await;
        }
    }

    /// First what would load models again, then the engines.
    async fn stop_models(&self) {
        let keeping = self
            .keeping
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(keeping) = keeping {
            keeping.abort();
            let _ = keeping.await;
        }
        self.registry.stop().await;
    }
}

impl Endpoint {
    fn open(
        listen: &Listen<'_>,
        config: &Config,
        metrics: Option<Arc<Metrics>>,
        serve: impl FnOnce(&Config) -> (Router, usize),
    ) -> anyhow::Result<Self> {
        let (router, places) = serve(config);
        let closing = Closing::default();
        let serving = Arc::new(Serving {
            router,
            settings: config.server.clone(),
            http2: config.http2.clone(),
            write_timeout: listen.write_timeout.clone(),
            send_budget: config.stream.send_budget,
            places: Arc::new(Semaphore::new(places)),
            metrics,
            closing: closing.clone(),
        });
        let open = |listener: Listener| -> anyhow::Result<SocketAddr> {
            let address = listener.socket.local_addr()?;
            let accepting = listen::accept(listener, serving.clone());
            closing.tracker.spawn(accepting);
            Ok(address)
        };
        let mut addresses = Vec::new();
        for &at in listen.plain {
            addresses.push(open(Listener {
                socket: listen::bind(at).with_context(|| format!("cannot listen on {at}"))?,
                tls: None,
                alt_svc: None,
            })?);
        }
        let mut secure = Vec::new();
        if let Some((tls, listen)) = listen.secure {
            let quic = Quic::new(serving.clone(), config.quic.clone(), tls.clone())?;
            for &at in listen {
                let (tcp, udp) = bind_both(at, config.quic.enabled)
                    .with_context(|| format!("cannot listen on {at}"))?;
                let port = tcp.local_addr()?.port();
                let alt_svc = udp.is_some().then(|| quic::alt_svc(port, &config.quic));
                secure.push(open(Listener {
                    socket: tcp,
                    tls: Some(tls.clone()),
                    alt_svc,
                })?);
                if let Some(udp) = udp {
                    let endpoint = quic.endpoint(udp)?;
                    closing.tracker.spawn(quic::accept(endpoint, quic.clone()));
                }
            }
            let (tls, graceful) = (tls.clone(), closing.graceful.clone());
            let following = async move { graceful.run_until_cancelled(tls.follow()).await };
            closing.tracker.spawn(following);
        }
        Ok(Self {
            addresses,
            secure,
            closing,
        })
    }

    /// Closes idle connections at once, the others when their answers are out or `patience` is over.
    async fn close(&self, patience: Duration) {
        self.closing.graceful.cancel();
        self.closing.tracker.close();
        let flushed = self.closing.tracker.wait();
        if tokio::time::timeout(patience, flushed).await.is_err() {
            self.closing.now.cancel();
            // What is left are handlers whose connection is gone; they end with their next step.
            let _ = tokio::time::timeout(FLUSH, self.closing.tracker.wait()).await;
        }
    }
}

/// Other ports to try when TCP was given a free one that UDP cannot have.
const PORTS_TO_TRY: usize = 16;

/// A TCP socket and, if wanted, a UDP socket of the same number.
fn bind_both(at: SocketAddr, with_udp: bool) -> std::io::Result<(TcpListener, Option<UdpSocket>)> {
    let mut tries = if at.port() == 0 { PORTS_TO_TRY } else { 1 };
    loop {
        let tcp = listen::bind(at)?;
        if !with_udp {
            return Ok((tcp, None));
        }
        tries -= 1;
        match quic::bind(tcp.local_addr()?) {
            Ok(udp) => return Ok((tcp, Some(udp))),
            Err(error) if tries == 0 => return Err(error),
            Err(_) => {}
        }
    }
}

/// What the public paths need.
fn context(
    config: &Config,
    gateway: &Arc<Gateway>,
    streams: Option<Arc<Streams>>,
    gate: &Arc<Gate>,
    metrics: &Arc<Metrics>,
) -> Context {
    Context {
        gateway: gateway.clone(),
        limits: wire::Limits {
            json_depth: usize::from(config.server.max_json_depth),
            ..wire::Limits::default()
        },
        max_body_bytes: config.server.max_body_bytes,
        body_timeout: config.server.body_timeout,
        streams,
        early: Arc::new(early::Policy::new(
            gate.clone(),
            config.auth.max_held,
            metrics.clone(),
        )),
        tracer: Tracer::off(),
    }
}

/// The stream of a stalled reader is cut first; its connection gets as long again, so that a reader who
/// comes back late is still told why.
fn write_timeout(config: &Config) -> Duration {
    config.stream.stall_timeout.saturating_mul(2)
}

/// Connections at once: what is configured, or as many as the system has open files for.
fn connections(config: &Config) -> usize {
    let wanted = u64::from(config.server.max_connections.get());
    let room = files::make_room(wanted);
    if room < wanted {
        tracing::warn!(
            max_connections = wanted,
            room,
            "the limit of open files (ulimit -n) is lower than server.max_connections"
        );
    }
    usize::try_from(room)
        .unwrap_or(usize::MAX)
        .min(Semaphore::MAX_PERMITS)
}

fn callers(config: &Config) -> anyhow::Result<Arc<Callers>> {
    let callers = Callers::new(&config.auth, config.limits.class_names()).map_err(|wrong| {
        let texts: Vec<_> = wrong.iter().map(ToString::to_string).collect();
        anyhow::anyhow!(texts.join("\n"))
    })?;
    Ok(Arc::new(callers))
}

fn plans(config: &Config) -> Vec<Plan> {
    let ring = config.stream.ring;
    if config.models.is_empty() {
        return vec![Plan::demo(&config.engine, ring)];
    }
    let models = config.models.iter();
    models
        .map(|model| Plan::configured(model, &config.engine, ring))
        .collect()
}

/// Who may use how much, and what of it is kept and shared.
fn limiter(
    config: &Config,
    registry: &Registry,
    state: Option<&Path>,
    metrics: &Arc<Metrics>,
) -> (Arc<limit::Kept>, Arc<Limiter>) {
    let clock = limit::Clock::real();
    let kept = Arc::new(limit::Kept::open(&config.limits, state, &clock));
    let limiter = Limiter::new(
        &config.limits,
        registry.names(),
        kept.clone(),
        clock,
        metrics.clone(),
    );
    (kept, Arc::new(limiter))
}
