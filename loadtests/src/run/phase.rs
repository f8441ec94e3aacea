//! Runs one phase: callers, a warm-up, a measured spell, probes beside it, and what the server says of itself.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use super::callers::Callers;
use super::scenario::{Phase, Scenario};
use super::server::Server;
use super::tally::{Tally, Window};
use crate::histogram::Histogram;
use crate::net::Transport;
use crate::process::Reading;

/// How long requests that came by the clock have to end, after the last one came.
const PATIENCE: Duration = Duration::from_secs(10);

/// What came of a phase.
pub(super) struct Outcome {
    /// Its name; empty for the only one.
    pub(super) name: String,
    /// What the callers of each load saw, over each transport.
    pub(super) loads: Vec<Seen>,
    /// The measured spell.
    pub(super) spell: Duration,
    /// The server when measuring began and ended.
    pub(super) server: Option<[Reading; 2]>,
    /// This process.
    pub(super) own: [Reading; 2],
    /// The server's metrics when measuring began and after the last answer, and the time between.
    pub(super) metrics: Option<([String; 2], Duration)>,
    /// How long reading the metrics took.
    pub(super) scrapes: Option<Histogram>,
    /// How long it took to say that all is well.
    pub(super) healthz: Option<Histogram>,
}

/// What the callers of a load saw.
pub(super) struct Seen {
    /// The load's name.
    pub(super) load: String,
    /// Whether it is in the figures of the whole.
    pub(super) counts: bool,
    /// By transport.
    pub(super) tallies: Vec<(Transport, Tally)>,
}

/// Runs a phase. Needs a `LocalSet`.
///
/// # Errors
/// The server is not there, or its process cannot be read.
pub(super) async fn run(
    scenario: &Scenario,
    phase: &Phase,
    server: &Rc<Server>,
    spell: Duration,
    seed: u64,
) -> Result<Outcome> {
    let window = Rc::new(Window::default());
    let mut all = Vec::new();
    for (index, load) in scenario.loads_of(phase).enumerate() {
        let seed = seed.wrapping_mul(1000).wrapping_add(index as u64);
        let callers = Callers::start(load, server, &window, seed)
            .await
            .with_context(|| format!("load {:?}", load.name))?;
        all.push((load, callers));
    }
    for (_, callers) in &all {
        callers.settle().await;
    }
    let begin = Instant::now() + scenario.warm_up;
    window.set(begin, begin + spell);
    sleep_until(begin.into()).await;
    let readings =
        || -> Result<(Option<Reading>, Reading)> { Ok((server.reading()?, Reading::of("self")?)) };
    let (server_begin, own_begin) = readings()?;
    let metrics_begin = server.metrics().await?;
    let told = Instant::now();
    let scrapes = phase
        .scrape
        .map(|every| Probe::start(Rc::clone(server), Ask::Metrics, every));
    let healthz = phase
        .healthz
        .map(|every| Probe::start(Rc::clone(server), Ask::Health, every));
    sleep_until((begin + spell).into()).await;
    let (server_end, own_end) = readings()?;
    let scrapes = scrapes.map(Probe::finish).transpose()?;
    let healthz = healthz.map(Probe::finish).transpose()?;
    let mut loads = Vec::new();
    for (load, callers) in all {
        loads.push(Seen {
            load: load.name.clone(),
            counts: load.counts,
            tallies: callers.finish(PATIENCE).await,
        });
    }
    // After the last answer, so that what came is told of whole requests.
    let metrics_end = server.metrics().await?;
    Ok(Outcome {
        name: phase.name.clone(),
        loads,
        spell,
        server: server_begin.zip(server_end).map(<[_; 2]>::from),
        own: [own_begin, own_end],
        metrics: metrics_begin
            .zip(metrics_end)
            .map(|both| (<[_; 2]>::from(both), told.elapsed())),
        scrapes,
        healthz,
    })
}

/// What a probe asks.
#[derive(Clone, Copy, Debug)]
enum Ask {
    Metrics,
    Health,
}

/// Asks the server the same again and again, beside the load.
struct Probe {
    seen: Rc<RefCell<Histogram>>,
    fault: Rc<RefCell<Option<anyhow::Error>>>,
    task: JoinSet<()>,
}

impl Probe {
    fn start(server: Rc<Server>, ask: Ask, every: Duration) -> Self {
        let (seen, fault) = (Rc::<RefCell<Histogram>>::default(), Rc::default());
        let mut task = JoinSet::new();
        let probe: (_, Rc<RefCell<Option<anyhow::Error>>>) = (Rc::clone(&seen), Rc::clone(&fault));
        task.spawn_local(async move {
            let (seen, fault) = probe;
            let mut at = Instant::now();
            loop {
                at += every;
                sleep_until(at.into()).await;
                // One after the other, but by the clock: what comes late is late from when it should have come.
                let answer = match ask {
                    Ask::Metrics => server.metrics().await.map(drop),
                    Ask::Health => server.healthz().await,
                };
                if let Err(error) = answer {
                    fault.borrow_mut().get_or_insert(error);
                }
                seen.borrow_mut().record(at.elapsed(), 1);
            }
        });
        Self { seen, fault, task }
    }

    fn finish(self) -> Result<Histogram> {
        drop(self.task);
        match self.fault.take() {
            Some(error) => Err(error.context("a probe failed")),
            None => Ok(self.seen.take()),
        }
    }
}
