//! How the threads do that run tasks: how busy they are, and how late tasks come to run.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use metrics::Histogram;
use metrics_exporter_prometheus::PrometheusRecorder;
use tokio::runtime::{Handle, RuntimeMetrics};
use tokio::time::Instant;

use super::histogram;
use super::names::{
    RUNTIME_BUSY, RUNTIME_BUSY_RATIO, RUNTIME_PARKS, RUNTIME_QUEUE, RUNTIME_TASKS, RUNTIME_WORKERS,
    SCHEDULING_DELAY,
};
use super::text::Text;

/// Between two probes while there are streams: 20 wake-ups a second, of a few microseconds each.
const PROBE: Duration = Duration::from_millis(50);

/// And while there are none: nobody is kept waiting then.
const IDLE_PROBE: Duration = Duration::from_secs(1);

/// The series of the runtime.
pub(super) struct Runtime {
    delay: Histogram,
    /// The bits of an `f64`.
    busy_ratio: AtomicU64,
}

/// What the threads had done when they were last looked at.
#[derive(Clone, Copy)]
pub(super) struct Looked {
    at: std::time::Instant,
    busy: Duration,
}

impl Runtime {
    pub(super) fn new(recorder: &PrometheusRecorder) -> Self {
        Self {
            delay: histogram(recorder, SCHEDULING_DELAY, &[]),
            busy_ratio: AtomicU64::new(0),
        }
    }

    /// Sleeps and notes how late it wakes, for as long as it is polled; more often while `is_busy`.
    pub(super) async fn probe(&self, is_busy: impl Fn() -> bool) {
        loop {
            let pause = if is_busy() { PROBE } else { IDLE_PROBE };
            let due = Instant::now() + pause;
            tokio::time::sleep_until(due).await;
            self.delay.record(due.elapsed());
        }
    }

    /// Looks how busy the threads were since the last look.
    pub(super) fn look(&self, runtime: &Handle, last: Option<Looked>) -> Looked {
        let metrics = runtime.metrics();
        let now = Looked {
            at: std::time::Instant::now(),
            busy: busy(&metrics),
        };
        if let Some(last) = last {
            let passed = now.at.duration_since(last.at).as_secs_f64();
            let workers = u32::try_from(metrics.num_workers()).unwrap_or(u32::MAX);
            let busy = now.busy.saturating_sub(last.busy).as_secs_f64();
            let ratio = busy / (passed * f64::from(workers)).max(f64::MIN_POSITIVE);
            self.busy_ratio
                .store(ratio.clamp(0.0, 1.0).to_bits(), Relaxed);
        }
        now
    }

    pub(super) fn write(&self, text: &mut Text, runtime: Option<&Handle>) {
        let metrics = runtime.map(Handle::metrics);
        let of = |figure: fn(&RuntimeMetrics) -> usize| metrics.as_ref().map_or(0, figure);
        text.single(&RUNTIME_WORKERS, of(RuntimeMetrics::num_workers));
        text.single(&RUNTIME_TASKS, of(RuntimeMetrics::num_alive_tasks));
        text.single(&RUNTIME_QUEUE, of(RuntimeMetrics::global_queue_depth));
        let busy = metrics.as_ref().map_or(Duration::ZERO, busy);
        text.single(&RUNTIME_BUSY, busy.as_secs_f64());
        let ratio = f64::from_bits(self.busy_ratio.load(Relaxed));
        text.single(&RUNTIME_BUSY_RATIO, ratio);
        let parks = metrics.as_ref().map_or(0, parks);
        text.single(&RUNTIME_PARKS, parks);
    }
}

fn busy(metrics: &RuntimeMetrics) -> Duration {
    let workers = 0..metrics.num_workers();
    workers
        .map(|worker| metrics.worker_total_busy_duration(worker))
        .sum()
}

fn parks(metrics: &RuntimeMetrics) -> u64 {
    let workers = 0..metrics.num_workers();
    workers
        .map(|worker| metrics.worker_park_count(worker))
        .sum()
}
