//! The end of every trace, as the process itself is told of it.

use std::sync::{Arc, Mutex};

use sluicegate::generation::{Told, TraceSink};
use tokio::sync::Notify;

use super::within;

/// What was told so far.
#[derive(Default)]
pub(crate) struct Traces {
    told: Mutex<Vec<Told>>,
    came: Notify,
}

impl Traces {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The one trace that has ended, or will; there must be no second one.
    pub(crate) async fn one(&self) -> Told {
        let mut told = self.some(1).await;
        assert_eq!(told.len(), 1, "{told:#?}");
        told.remove(0)
    }

    /// So many traces, when that many have ended; more, if more have.
    pub(crate) async fn some(&self, count: usize) -> Vec<Told> {
        let all = async {
            loop {
                let came = self.came.notified();
                {
                    let mut told = self.told.lock().unwrap();
                    if told.len() >= count {
                        return std::mem::take(&mut *told);
                    }
                }
                came.await;
            }
        };
        within(all).await
    }

    pub(crate) fn none_yet(&self) {
        let told = self.told.lock().unwrap();
        assert!(told.is_empty(), "{told:#?}");
    }
}

impl TraceSink for Traces {
    fn told(&self, told: Told) {
        self.told.lock().unwrap().push(told);
        self.came.notify_one();
    }
}
