//! What of a running gateway another configuration changes.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::{callers, write_timeout};
use crate::config::{Changed, Config, ConfigError, Loaded, Sources};
use crate::control::log::LogFilter;
use crate::control::reload::{Refused, Reloaded};
use crate::gateway::Gateway;
use crate::gateway::settings::{Drain, Patience};
use crate::generation::chain;
use crate::limit::{self, Limiter};
use crate::telemetry::profile::Recent;
use crate::telemetry::{LogControl, Metrics, Tracer};
use crate::transport::listen::WriteTimeout;

/// Reads the sources of the configuration again.
pub type Reread = Box<dyn Fn() -> Result<Sources, ConfigError> + Send + Sync>;

/// What a gateway has of the process that it runs in.
pub struct Host {
    /// Log lines dropped so far, for the metrics.
    pub log_lines_dropped: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// What changes the log's filter, if the log is ours.
    pub log: Option<LogControl>,
    /// Where traces go, if somebody else wants them.
    pub tracer: Option<Arc<Tracer>>,
    /// Called for every reload.
    pub reread: Reread,
}

/// What holds the settings that can be changed while serving.
pub(super) struct Live {
    /// What runs now.
    pub(super) running: Mutex<Loaded>,
    pub(super) reread: Reread,
    pub(super) gateway: Arc<Gateway>,
    pub(super) limiter: Arc<Limiter>,
    pub(super) kept: Arc<limit::Kept>,
    pub(super) write_timeout: WriteTimeout,
    pub(super) drain: Arc<ArcSwap<Drain>>,
    pub(super) log: Option<Arc<LogFilter>>,
    pub(super) tracer: Arc<Tracer>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) recent: Arc<Recent>,
}

impl Live {
    /// Reads the sources and applies what can be applied. Blocks: files are read.
    pub(super) fn apply(&self) -> Result<Reloaded, Refused> {
        let refused = |error: ConfigError| Refused(chain(&error));
        let sources = (self.reread)().map_err(refused)?;
        let wanted = Loaded::load(&sources).map_err(refused)?;
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = wanted.config.models != running.config.models;
        if let Some(problem) = wanted.config.unusable_model().filter(|_| is_new) {
            return Err(Refused(problem));
        }
        let Changed {
            runs,
            live,
            restart,
        } = running.changed(&wanted).map_err(refused)?;
        self.change(&running.config, &runs.config)?;
        *running = runs;
        Ok(Reloaded {
            applied: live,
            restart,
        })
    }

    /// First all that can fail, then all that cannot.
    fn change(&self, old: &Config, new: &Config) -> Result<(), Refused> {
        let classes = |config: &Config| -> Vec<_> {
            let names = config.limits.class_names();
            names.into_iter().map(str::to_owned).collect()
        };
        let believes_others = old.auth != new.auth || classes(old) != classes(new);
        let callers = believes_others.then(|| callers(new)).transpose();
        let callers = callers.map_err(|error| Refused(format!("{error:#}")))?;

        if old.limits != new.limits {
            self.kept.remember(&new.limits);
            self.limiter.set(&new.limits);
        }
        self.gateway
            .set_patience(Patience::new(&new.stream, &new.deadlines));
        self.write_timeout.set(write_timeout(new));
        self.drain.store(Arc::new(new.drain.clone()));
        if let Some(log) = &self.log
            && old.telemetry.log != new.telemetry.log
        {
            log.configure(&new.telemetry.log);
        }
        self.tracer.set(&new.telemetry.traces);
        self.metrics.slo.set(&new.telemetry.slo);
        if old.profile != new.profile {
            self.recent.set(&new.profile);
        }
        if let Some(callers) = callers {
            let streams = self.gateway.set_callers(callers);
            if streams > 0 {
                tracing::info!(streams, "streams of callers without a key were ended");
            }
        }
        Ok(())
    }
}
