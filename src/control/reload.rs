//! Another configuration while serving: wholly or not at all, one at a time, and told key by key.

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use tokio::sync::Mutex;
use tracing::Instrument;

use crate::telemetry::{Metrics, PROCESS};

/// What is shown instead of a secret.
const CHANGED: &str = "(changed)";

/// One setting that is different.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// The setting's full name.
    pub key: String,
    /// What it was; nothing, where it was absent.
    pub from: Option<Value>,
    /// What it is now.
    pub to: Option<Value>,
}

impl Change {
    /// A setting that may be shown.
    #[must_use]
    pub fn new(key: String, from: Option<Value>, to: Option<Value>) -> Self {
        Self { key, from, to }
    }

    /// One that may not.
    #[must_use]
    pub fn secret(key: String) -> Self {
        Self::new(key, Some(CHANGED.into()), Some(CHANGED.into()))
    }
}

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Reloaded {
    /// What holds from now on.
    pub applied: Vec<Change>,
    /// What is different in the sources, and holds after a restart.
    pub restart: Vec<Change>,
}

/// Why a reload did nothing: every problem of the sources, as `check` tells them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub String);

/// Reads the sources, and applies what can be applied; blocks meanwhile.
pub type Apply = dyn Fn() -> Result<Reloaded, Refused> + Send + Sync;

/// Reloads, one at a time.
pub struct Reloader {
    apply: Arc<Apply>,
    metrics: Arc<Metrics>,
    turn: Arc<Mutex<()>>,
}

impl Reloader {
    /// A reloader that does this.
    #[must_use]
    pub fn new(apply: Arc<Apply>, metrics: Arc<Metrics>) -> Self {
        Self {
            apply,
            metrics,
            turn: Arc::default(),
        }
    }

    /// Reads the sources again. `why` is who wants it, for the log.
    ///
    /// # Errors
    /// Something is wrong with what was read; then nothing has changed.
    pub async fn reload(&self, why: &'static str) -> Result<Reloaded, Refused> {
        let span = tracing::info_span!(target: PROCESS, "reload", why);
        async {
            let turn = self.turn.clone().lock_owned().await;
            let (apply, metrics) = (self.apply.clone(), self.metrics.clone());
            let span = tracing::Span::current();
            // Files are read, and key files may be large. Whoever asked may leave meanwhile: what is begun
            // keeps its turn, and is counted and told, all the same.
            let work = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                span.in_scope(|| {
                    let result = apply();
                    metrics.operations.reloaded(result.is_ok());
                    log(why, &result);
                    result
                })
            });
            work.await.unwrap_or_else(|error| {
                tracing::error!(%error, "a reload broke off");
                self.metrics.operations.reloaded(false);
                Err(Refused("The reload broke off; see the log.".to_owned()))
            })
        }
        .instrument(span)
        .await
    }
}

fn log(why: &str, result: &Result<Reloaded, Refused>) {
    let Reloaded { applied, restart } = match result {
        Ok(reloaded) => reloaded,
        Err(Refused(problems)) => {
            tracing::error!(why, %problems, "the configuration was not reloaded; nothing has changed");
            return;
        }
    };
    let text = |value: &Option<Value>| match value {
        None => "(absent)".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    for Change { key, from, to } in applied {
        tracing::info!(
            key,
            from = text(from),
            to = text(to),
            "a setting was changed"
        );
    }
    for Change { key, from, to } in restart {
        let (from, to) = (text(from), text(to));
        tracing::warn!(key, from, to, "a setting is different and needs a restart");
    }
    let (applied, restart) = (applied.len(), restart.len());
    tracing::info!(why, applied, restart, "the configuration was reloaded");
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex as Lock;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    /// A reloader whose every turn tells that it begins, and waits to be let go.
    fn rig() -> (Arc<Reloader>, Receiver<()>, SyncSender<()>, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new([]).unwrap());
        let (begins, begun) = sync_channel(8);
        let (go, wait) = sync_channel(8);
        let both = Lock::new((begins, wait));
        let apply = move || {
            let both = both
                .try_lock()
                .map_err(|_| Refused("two at once".to_owned()))?;
            both.0.send(()).unwrap();
            both.1.recv().unwrap();
            Ok(Reloaded::default())
        };
        let reloader = Arc::new(Reloader::new(Arc::new(apply), metrics.clone()));
        (reloader, begun, go, metrics)
    }

    #[tokio::test]
    async fn a_reload_whose_asker_has_left_keeps_its_turn_and_is_counted() {
        let (reloader, begun, go, metrics) = rig();
        let asking = reloader.clone();
        let left = tokio::spawn(async move { asking.reload("first").await });
        let begun = tokio::task::spawn_blocking(move || {
            begun.recv().unwrap();
            begun
        });
        let begun = begun.await.unwrap();
        left.abort();
        assert!(left.await.unwrap_err().is_cancelled());
        let asking = reloader.clone();
        let second = tokio::spawn(async move { asking.reload("second").await });
        // It has come to where it waits for its turn, or would have begun.
        tokio::task::yield_now().await;
        assert!(begun.try_recv().is_err(), "two at once");
        go.send(()).unwrap();
        go.send(()).unwrap();
        assert_eq!(second.await.unwrap(), Ok(Reloaded::default()));
        let text = metrics.render(&crate::telemetry::Scrape::default());
        let applied = r#"sluicegate_config_reloads_total{result="applied"} 2"#;
        assert!(text.contains(applied), "{text}");
    }
}
