//! `sluicegate serve`: the gateway until a signal ends it.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::check::{self, BAD_CONFIG};
use crate::app::{App, Host, Reread};
use crate::config::{Flags, Loaded, Sources};
use crate::telemetry::Logs;

/// Serves until a signal, or until a model turns out to be unusable.
pub(super) fn run(flags: Flags) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("runtime")
        .build()
        .context("cannot start the runtime")?;
    // Before anything that takes time: none of them may end a process that is about to serve.
    let mut signals = {
        let _entered = runtime.enter();
        Signals::new()?
    };
    let reread: Reread = Box::new(move || Sources::of_process(flags.clone()));
    let mut loaded = match reread().and_then(|sources| Loaded::load(&sources)) {
        Ok(loaded) => loaded,
        Err(error) => {
            check::report(&error)?;
            return Ok(ExitCode::from(BAD_CONFIG));
        }
    };
    loaded.config.engine.program = Some(super::program());
    let logs = Logs::install(&loaded.config.telemetry).context("cannot start logging")?;
    // `logs` outlives the runtime: the last lines of every task are written.
    let result = runtime.block_on(serve(loaded, reread, &logs, &mut signals));
    // Whatever still runs on the blocking pool (a load) is not waited for.
    runtime.shutdown_background();
    result
}

async fn serve(
    loaded: Loaded,
    reread: Reread,
    logs: &Logs,
    signals: &mut Signals,
) -> anyhow::Result<ExitCode> {
    let host = Host {
        log_lines_dropped: Arc::new(logs.dropped()),
        log: Some(logs.handle()),
        tracer: None,
        reread,
    };
    let app = App::start(loaded, host)?;
    let Signals {
        end,
        reload,
        more,
        less,
    } = signals;
    let serving = async {
        tokio::select! {
            loaded = app.loaded() => loaded.map_err(anyhow::Error::msg)?,
            () = end.next() => return Ok(()),
        }
        announce(&app);
        end.next().await;
        Ok(())
    };
    let operating = async {
        loop {
            tokio::select! {
                // The log says how it went.
                _ = reload.recv() => drop(app.reload("SIGHUP").await),
                _ = more.recv() => app.detail().double(),
                _ = less.recv() => app.detail().halve(),
            }
        }
    };
    let ended: anyhow::Result<()> = tokio::select! {
        ended = serving => ended,
        never = operating => never,
    };
    ended?;
    Ok(drain(app, end).await)
}

/// Drains, or not even that after a second signal.
async fn drain(app: App, end: &mut End) -> ExitCode {
    tracing::info!(open_streams = app.open_streams(), "draining");
    tokio::select! {
        () = app.drain() => {}
        () = end.next() => {
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
    end: End,
    reload: Signal,
    more: Signal,
    less: Signal,
}

/// What ends the process: a terminal's Ctrl-C, or a supervisor.
struct End {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            end: End {
                terminate: listen(SignalKind::terminate())?,
                interrupt: listen(SignalKind::interrupt())?,
            },
            reload: listen(SignalKind::hangup())?,
            more: listen(SignalKind::user_defined1())?,
            less: listen(SignalKind::user_defined2())?,
        })
    }
}

impl End {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
