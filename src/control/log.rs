//! What is logged, for a while: a filter that an operator sets, and that goes back by itself.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::generation::Failure;
use crate::telemetry::config::Filter;

/// How long a filter holds of which nothing else is said.
const USUALLY: Duration = Duration::from_mins(10);

/// The longest that one may hold: nobody is to find a full disk after the weekend.
const LONGEST: Duration = Duration::from_hours(24);

/// Sets what is logged.
pub type Set = dyn Fn(&Filter) + Send + Sync;

/// The filter of the log: the configured one, or for a while another.
pub struct LogFilter {
    set: Box<Set>,
    now: Mutex<Now>,
    /// When it goes back, for the task that waits for it.
    ends: watch::Sender<Option<Instant>>,
}

struct Now {
    configured: Filter,
    /// What holds instead, and until when by the calendar.
    other: Option<(Filter, Timestamp)>,
}

/// Another filter, for a while.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Other {
    filter: String,
    #[serde(default = "usually", rename = "for", deserialize_with = "time")]
    time: Duration,
}

/// What is logged now.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    filter: String,
    /// What it goes back to.
    configured: String,
    /// When; nothing if it is the configured one.
    until: Option<String>,
}

fn usually() -> Duration {
    USUALLY
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let time: Duration = humantime_serde::deserialize(deserializer)?;
    if time.is_zero() || time > LONGEST {
        return Err(serde::de::Error::custom(
            "for must be longer than zero and at most 24h",
        ));
    }
    Ok(time)
}

impl LogFilter {
    /// `configured` holds already; `set` makes another one hold. [`Self::run`] must be driven for it to go
    /// back.
    #[must_use]
    pub fn new(configured: Filter, set: Box<Set>) -> Self {
        Self {
            set,
            now: Mutex::new(Now {
                configured,
                other: None,
            }),
            ends: watch::Sender::new(None),
        }
    }

    /// What is logged now.
    #[must_use]
    pub fn report(&self) -> Report {
        let now = self.lock();
        let other = now.other.as_ref();
        Report {
            filter: other
                .map_or(&now.configured, |(filter, _)| filter)
                .as_str()
                .to_owned(),
            configured: now.configured.as_str().to_owned(),
            until: other.map(|(_, until)| until.to_string()),
        }
    }

    /// Logs by another filter for a while.
    ///
    /// # Errors
    /// `Invalid`, with the parser's words.
    pub fn change(&self, other: Other) -> Result<Report, Failure> {
        let Other { filter, time } = other;
        let filter = Filter::try_from(filter)
            .map_err(|error| Failure::invalid("filter", error.to_string()))?;
        let shown = filter.as_str().to_owned();
        let until = Timestamp::now() + time;
        // First: the other one may let nothing of this kind through.
        tracing::info!(filter = shown, %until, "the log's filter is changed");
        {
            let mut now = self.lock();
            (self.set)(&filter);
            now.other = Some((filter, until));
            self.ends.send_replace(Some(Instant::now() + time));
        }
        Ok(self.report())
    }

    /// This is configured now, and holds from now on.
    pub fn configure(&self, filter: &Filter) {
        let mut now = self.lock();
        now.configured = filter.clone();
        self.go_back(&mut now);
        self.ends.send_replace(None);
    }

    /// Lets each filter go back when its time is over. Runs until it is dropped.
    pub async fn run(&self) {
        let mut ends = self.ends.subscribe();
        loop {
            let end = *ends.borrow_and_update();
            let over = async {
                match end {
                    Some(end) => tokio::time::sleep_until(end).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // The sender is ours.
                _ = ends.changed() => {}
                () = over => self.end(end),
            }
        }
    }

    /// The time that ended at `end` is over, unless another one has begun.
    fn end(&self, end: Option<Instant>) {
        let mut now = self.lock();
        if *self.ends.borrow() != end {
            return;
        }
        self.go_back(&mut now);
        self.ends.send_replace(None);
        let filter = now.configured.as_str().to_owned();
        drop(now);
        tracing::info!(filter, "the log's filter is the configured one again");
    }

    fn go_back(&self, now: &mut Now) {
        now.other = None;
        (self.set)(&now.configured);
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn filter(text: &str) -> Filter {
        Filter::try_from(text.to_owned()).unwrap()
    }

    /// A filter that starts as `info`, and everything that was set.
    fn rig() -> (Arc<LogFilter>, Arc<Mutex<Vec<String>>>) {
        let all = Arc::new(Mutex::new(Vec::new()));
        let sets = all.clone();
        let set = move |filter: &Filter| sets.lock().unwrap().push(filter.as_str().to_owned());
        let log = Arc::new(LogFilter::new(filter("info"), Box::new(set)));
        let running = log.clone();
        tokio::spawn(async move { running.run().await });
        (log, all)
    }

    fn other(json: &str) -> Other {
        serde_json::from_str(json).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_filter_goes_back_by_itself() {
        let (log, set) = rig();
        let report = log
            .change(other(r#"{"filter":"debug","for":"1h"}"#))
            .unwrap();
        assert_eq!((&*report.filter, &*report.configured), ("debug", "info"));
        assert!(report.until.is_some());
        tokio::time::sleep(Duration::from_mins(59)).await;
        // A second one begins its time anew.
        log.change(other(r#"{"filter":"trace"}"#)).unwrap();
        tokio::time::sleep(Duration::from_mins(9)).await;
        assert_eq!(log.report().filter, "trace");
        tokio::time::sleep(Duration::from_mins(2)).await;
        let report = log.report();
        assert_eq!((&*report.filter, report.until), ("info", None));
        assert_eq!(*set.lock().unwrap(), ["debug", "trace", "info"]);
    }

    #[tokio::test(start_paused = true)]
    async fn another_configuration_takes_its_place() {
        let (log, set) = rig();
        log.change(other(r#"{"filter":"debug"}"#)).unwrap();
        log.configure(&filter("warn"));
        assert_eq!(log.report().filter, "warn");
        tokio::time::sleep(Duration::from_hours(1)).await;
        assert_eq!(*set.lock().unwrap(), ["debug", "warn"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_filter_is_told_in_the_parsers_words() {
        let (log, set) = rig();
        let error = log.change(other(r#"{"filter":"wran"}"#)).unwrap_err();
        assert!(error.message.contains("did you mean \"warn\""), "{error:?}");
        for wrong in [
            r#"{"filter":"info","for":"25h"}"#,
            r#"{"filter":"info","for":"0s"}"#,
            r#"{"filter":"info","fro":"1h"}"#,
            "{}",
        ] {
            assert!(serde_json::from_str::<Other>(wrong).is_err(), "{wrong}");
        }
        assert!(set.lock().unwrap().is_empty());
    }
}
