//! Makes one measurement: a fresh gateway for each run of streams, and figures from what came of it.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::figures::{
    costs, gap, growth, longest_gap, memory, per, per_stream, percent, rate, total_memory,
};
use super::load::{self, Others, Outcome, Plan};
use super::relay::{Path, Relay};
use super::units::{Acks, Kind, ONE_WAY, Unit};
use crate::gateway::{Program, Setup};
use crate::net::Transport;
use crate::numbers::{float, ms, p99};
use crate::table::{Figure, figure};

/// A script without an end worth the name.
const ENDLESS: &str = "scripted?tokens=100000000";

/// Streams of the groups with many of them.
const MANY: usize = 10_000;

/// Connections that these are spread over where connections have many streams.
const MANY_CONNECTIONS: usize = 100;

/// How measurements are made.
pub(super) struct Bench {
    /// The gateway.
    pub(super) program: Program,
    /// How long each run is measured.
    pub(super) spell: Duration,
    /// How long it runs before that.
    pub(super) warm_up: Duration,
    /// Which datagrams are lost.
    pub(super) seed: u64,
}

impl Bench {
    /// Makes a measurement. Needs a `LocalSet`.
    ///
    /// # Errors
    /// The gateway does not start, or streams failed.
    pub(super) async fn measure(&self, unit: &Unit) -> Result<Vec<Figure>> {
        match unit.kind {
            Kind::Full { connections } => {
                let plan = self.plan(unit.transport, 64, connections, None);
                let outcome = self.run(&plan, &[], None, false).await?;
                let figures = vec![rate(&outcome), longest_gap(&outcome)];
                Ok([figures, costs(&outcome), vec![per_stream(&outcome)]].concat())
            }
            Kind::Singly => {
                let plan = self.plan(unit.transport, 64, 8, Some(Duration::from_millis(1)));
                let outcome = self.run(&plan, &[], None, false).await?;
                let figures = vec![rate(&outcome), gap("p99 gap", &outcome, 0.99)];
                Ok([figures, costs(&outcome)].concat())
            }
            Kind::Paced { connections } => {
                let plan = self.plan(
                    unit.transport,
                    1000,
                    connections,
                    Some(Duration::from_millis(50)),
                );
                let outcome = self.run(&plan, &[], None, false).await?;
                let figures = vec![
                    gap("p99 gap", &outcome, 0.99),
                    figure(
                        "p99 gap error",
                        "ms",
                        ms(outcome.stats.gap_error.percentile(0.99)),
                    ),
                ];
                Ok([figures, costs(&outcome), vec![per_stream(&outcome)]].concat())
            }
            Kind::Path { loss_percent } => self.path(unit.transport, loss_percent).await,
            Kind::Acks(acks) => self.acks(unit.transport, acks).await,
            Kind::Slow => {
                let mut plan = self.plan(unit.transport, 0, MANY_CONNECTIONS, None);
                plan.others = Some(others(MANY, MANY_CONNECTIONS, 1000));
                let outcome = self.run(&plan, &[], None, false).await?;
                Ok(memory(&outcome))
            }
            Kind::Idle => {
                let plan = self.plan(
                    unit.transport,
                    MANY,
                    MANY_CONNECTIONS,
                    Some(Duration::from_secs(2)),
                );
                let outcome = self.run(&plan, &[], None, false).await?;
                Ok(memory(&outcome))
            }
            Kind::Stalled => {
                let mut plan = self.plan(unit.transport, 50, 5, Some(Duration::from_millis(10)));
                let alone = self.run(&plan, &[], None, false).await?;
                plan.others = Some(others(5000, 50, 0));
                let beside = self.run(&plan, &[], None, false).await?;
                Ok([growth(&alone, &beside), vec![total_memory(&beside)]].concat())
            }
            Kind::Beside { running } => {
                let mut plan =
                    self.plan(unit.transport, running, 1, Some(Duration::from_millis(10)));
                plan.small = true;
                let alone = self.run(&plan, &[], None, false).await?;
                plan.others = Some(others(1, 0, 0));
                let beside = self.run(&plan, &[], None, false).await?;
                let all_tokens = figure(
                    "tokens that came",
                    "%",
                    percent(beside.stats.tokens, alone.stats.tokens),
                );
                Ok([growth(&alone, &beside), vec![all_tokens]].concat())
            }
            Kind::Dead => {
                let plan = self.plan(unit.transport, 64, 8, None);
                let path = Path::default();
                let outcome = self.run(&plan, &[], Some(path), true).await?;
                let [before, alive, dead] = outcome.server;
                let each = |kib: u64| float(kib) / float(outcome.open as u64);
                Ok(vec![
                    figure(
                        "resident per stream, running",
                        "KiB",
                        each(alive.process.saturating_sub(before.process)),
                    ),
                    figure(
                        "resident per stream, dead",
                        "KiB",
                        each(dead.process.saturating_sub(before.process)),
                    ),
                    figure(
                        "sockets per stream, dead",
                        "KiB",
                        each(dead.sockets.saturating_sub(before.sockets)),
                    ),
                ])
            }
        }
    }

    fn plan(
        &self,
        transport: Transport,
        streams: usize,
        connections: usize,
        gap: Option<Duration>,
    ) -> Plan {
        Plan {
            transport,
            through: None,
            streams,
            connections,
            model: gap.map_or(ENDLESS.to_owned(), |gap| {
                format!("{ENDLESS}&pace={}ms", gap.as_millis())
            }),
            gap,
            small: false,
            others: None,
            warm_up: self.warm_up,
            spell: self.spell,
        }
    }

    /// Runs a plan on a fresh gateway, through a relay if there is a path, which may die when measuring
    /// begins.
    async fn run(
        &self,
        plan: &Plan,
        settings: &[String],
        path: Option<Path>,
        dies: bool,
    ) -> Result<Outcome> {
        let mut program = self.program.clone();
        program.settings.splice(0..0, settings.iter().cloned());
        let gateway = program.start(&setup(), "gateway").await?;
        let mut plan = plan.clone();
        let relay = path
            .map(|path| {
                let upstream = gateway.site(plan.transport)?.address;
                Relay::start(upstream, plan.transport.is_quic(), path)
            })
            .transpose()?;
        plan.through = relay.as_ref().map(|relay| relay.address);
        let outcome = load::run(&plan, &gateway, || {
            if let Some(relay) = relay.as_ref().filter(|_| dies) {
                relay.die();
            }
        })
        .await?;
        gateway.stop().await;
        if let Some((_, overflown)) = relay.as_ref().map(Relay::lost) {
            ensure!(
                overflown == 0,
                "the relay had no room for {overflown} datagrams"
            );
        }
        ensure!(
            outcome.stats.errors.is_empty(),
            "streams failed: {:?}",
            outcome.stats.errors
        );
        let wanted = plan.streams + plan.others.as_ref().map_or(0, |others| others.streams);
        ensure!(
            outcome.open == wanted,
            "{} of {wanted} streams opened",
            outcome.open
        );
        let paused = plan.gap.unwrap_or_default() > plan.spell;
        ensure!(
            path.is_some() || paused || outcome.heard == plan.streams,
            "{} of {} streams came to a stop",
            plan.streams - outcome.heard,
            plan.streams
        );
        Ok(outcome)
    }

    async fn path(&self, transport: Transport, loss_percent: f64) -> Result<Vec<Figure>> {
        let path = Some(Path {
            delay: ONE_WAY,
            loss_percent,
            seed: self.seed,
        });
        let plan = self.plan(transport, 4, 1, Some(Duration::from_millis(20)));
        let paced = self.run(&plan, &[], path, false).await?;
        let plan = self.plan(transport, 16, 1, None);
        let full = self.run(&plan, &[], path, false).await?;
        Ok(vec![
            gap("p50 gap", &paced, 0.5),
            gap("p99 gap", &paced, 0.99),
            longest_gap(&paced),
            figure(
                "tokens that came",
                "%",
                100.0 * float(paced.stats.tokens) * 0.020 / (paced.elapsed.as_secs_f64() * 4.0),
            ),
            figure(
                "as fast as they go",
                "tokens/s",
                float(full.stats.tokens) / full.elapsed.as_secs_f64(),
            ),
            figure(
                "of these streams silent",
                "",
                float((16 - full.heard) as u64),
            ),
        ])
    }

    async fn acks(&self, transport: Transport, acks: Acks) -> Result<Vec<Figure>> {
        let path = Some(Path {
            delay: ONE_WAY,
            ..Path::default()
        });
        let mut plan = self.plan(transport, 1, 1, Some(Duration::from_millis(10)));
        plan.model.push_str("&size=16");
        let untuned = self
            .run(&plan, &Acks::PLAIN.settings(), path, false)
            .await?;
        let tuned = self.run(&plan, &acks.settings(), path, false).await?;
        let up = |outcome: &Outcome| per(outcome.wire.datagrams_up, outcome.stats.tokens);
        let (untuned_late, tuned_late) = (p99(&untuned.late), p99(&tuned.late));
        Ok(vec![
            figure("datagrams up per token, plain", "", up(&untuned)),
            figure("datagrams up per token", "", up(&tuned)),
            figure("fewer", "%", 100.0 * (1.0 - up(&tuned) / up(&untuned))),
            figure(
                "datagrams down per token",
                "",
                per(tuned.wire.datagrams_down, tuned.stats.tokens),
            ),
            figure(
                "bytes down per token",
                "B",
                per(tuned.wire.down, tuned.stats.tokens),
            ),
            figure("p99 late, plain", "ms", ms(untuned_late)),
            figure("p99 late", "ms", ms(tuned_late)),
        ])
    }
}

/// Bounds so wide that none is met but those of a single stream. Stalled readers are left alone for as long as
/// they are measured.
fn setup() -> Setup {
    Setup::scripted().secure().with(
        "[server]\nmax_streams_per_connection = 1000\n[quic]\nmax_streams = 1000\n\
         [stream]\nstall_timeout = \"10m\"\n",
    )
}

fn others(streams: usize, connections: usize, rate: usize) -> Others {
    Others {
        streams,
        connections,
        rate,
        model: ENDLESS.to_owned(),
    }
}
