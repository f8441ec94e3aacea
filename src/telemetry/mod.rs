//! What the process tells about itself: logs, metrics and traces.
//!
//! Nothing here may slow a stream down: log lines go through a bounded queue that drops rather than
//! waits, and metric handles are looked up when a model is set up, never when something is counted.

pub mod config;
pub mod profile;
mod logs;
mod metrics;
mod request;
mod slo;
mod steps;
mod trace;

pub use config::Config;
pub use logs::{LogControl, LogError, Logs};
pub use metrics::config::Config as MetricsConfig;
pub use metrics::{
    ConnectionOpen, EarlyRequest, Handshake, Limit, LimitLoad, LimitMetrics, Metrics, ModelInfo,
    ModelLoad, ModelMetrics, ModelScrape, Operations, Page, Pages, QuicCounts, Route, Scope,
    Scrape, Speaking, TicketLoad, Traffic, Transport, Transports, UNKNOWN_MODEL, Upkeep, Watched,
};
pub use request::RequestRecorder;
pub use slo::{Burn, Slo, Verdict};
pub use steps::Steps;
pub use trace::{ExportError, Reason, TraceLoad, Tracer};

/// The target of spans of the process's own work: those are exported with the traces of requests.
pub(crate) const PROCESS: &str = "sluicegate::process";
