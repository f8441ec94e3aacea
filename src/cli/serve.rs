//! `sluicegate serve`: the gateway until a signal ends it.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::check::{self, BAD_CONFIG};
use crate::app::App;
use crate::config::{Config, Flags, Sources};
use crate::telemetry::Logs;

/// Serves until a signal, or until a model turns out to be unusable.
pub(super) fn run(flags: Flags) -> anyhow::Result<ExitCode> {
    let mut config = match Sources::of_process(flags).and_then(|sources| Config::load(&sources)) {
        Ok(config) => config,
        Err(error) => {
            check::report(&error)?;
            return Ok(ExitCode::from(BAD_CONFIG));
        }
    };
    config.engine.program = Some(super::program());
    let logs = Logs::install(&config.telemetry).context("cannot start logging")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("runtime")
        .build()
        .context("cannot start the runtime")?;
    // `logs` outlives the runtime: the last lines of every task are written.
    let result = runtime.block_on(serve(config, &logs));
    // Whatever still runs on the blocking pool (a load) is not waited for.
    runtime.shutdown_background();
    result
}

async fn serve(config: Config, logs: &Logs) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let app = App::start(config, logs.dropped())?;
    tokio::select! {
        loaded = app.loaded() => loaded.map_err(anyhow::Error::msg)?,
        () = signals.next() => return Ok(end(app, &mut signals).await),
    }
    announce(&app);
    signals.next().await;
    Ok(end(app, &mut signals).await)
}

/// Drains, or not even that after a second signal.
async fn end(app: App, signals: &mut Signals) -> ExitCode {
    tracing::info!(open_streams = app.open_streams(), "draining");
    tokio::select! {
        () = app.drain() => {}
        () = signals.next() => {
            tracing::warn!("second signal: ending at once");
            app.stop_now().await;
        }
    }
    ExitCode::SUCCESS
}

/// Says where to go. On standard output, because it is what the command was run for; logs are on
/// standard error.
fn announce(app: &App) {
    let mut out = std::io::stdout().lock();
    for address in app.public_addresses() {
        // A closed standard output is no reason not to serve.
        let _ = writeln!(out, "Sluicegate is ready: open http://{address}/");
    }
    for address in app.secure_addresses() {
        let _ = writeln!(out, "Over TLS https://{address}/");
    }
    for address in app.ops_addresses() {
        let _ = writeln!(out, "For operators http://{address}/metrics");
    }
    let _ = out.flush();
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
