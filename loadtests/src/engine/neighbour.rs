//! A neighbour that keeps one core busy: this program again, pinned to a core and computing nothing.

use std::hint::black_box;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::getppid;
use rustix::thread::{CpuSet, sched_setaffinity};
use tokio::process::{Child, Command};

/// It ends by itself after this long, whatever becomes of who started it.
const LONGEST: Duration = Duration::from_mins(10);

/// Starts a neighbour on core `core`; it ends when the handle is dropped.
///
/// # Errors
/// This program cannot be started again.
pub(super) fn start(core: usize) -> Result<Child> {
    Command::new(std::env::current_exe()?)
        .args(["engine-neighbour", "--core", &core.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("could not start the busy neighbour")
}

/// Keeps `core` busy until who started it is gone.
///
/// # Errors
/// There is no such core.
pub(crate) fn run(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("could not stay on core {core}"))?;
    let (begin, parent) = (Instant::now(), getppid());
    while begin.elapsed() < LONGEST && getppid() == parent {
        for step in 0..10_000_000_u32 {
            black_box(step);
        }
    }
    Ok(())
}
