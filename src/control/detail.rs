//! How much is recorded beyond what is counted: twice as much, or half, at a signal.

use std::sync::{Arc, Mutex, PoisonError};

use crate::telemetry::profile::Recent;
use crate::telemetry::{Metrics, Tracer};

/// Sixteen times as much at the most, and a sixteenth.
const STEPS: i32 = 4;

/// The detail of traces and of the continuous profile.
pub struct Detail {
    /// Doublings.
    steps: Mutex<i32>,
    tracer: Arc<Tracer>,
    recent: Arc<Recent>,
    metrics: Arc<Metrics>,
}

impl Detail {
    /// As configured.
    #[must_use]
    pub fn new(tracer: Arc<Tracer>, recent: Arc<Recent>, metrics: Arc<Metrics>) -> Self {
        metrics.operations.detail(1.0);
        Self {
            steps: Mutex::new(0),
            tracer,
            recent,
            metrics,
        }
    }

    /// Twice as much.
    pub fn double(&self) {
        self.turn(1);
    }

    /// Half as much.
    pub fn halve(&self) {
        self.turn(-1);
    }

    fn turn(&self, by: i32) {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        *steps = (*steps + by).clamp(-STEPS, STEPS);
        let factor = 2f64.powi(*steps);
        self.tracer.set_detail(factor);
        self.recent.set_detail(factor);
        self.metrics.operations.detail(factor);
        tracing::info!(factor, "the detail of traces and profiles was changed");
    }
}
