//! Starts a server as a process of its own and waits until it is ready.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::process::{Child, Command};
use tokio::time::sleep;

/// How often it is asked whether it is ready.
const LOOK: Duration = Duration::from_millis(10);

/// A process that is ended when this is dropped.
pub(crate) struct Running {
    /// Its id.
    pub(crate) pid: u32,
    child: Child,
}

impl Running {
    /// Ends it, and waits until it is gone.
    pub(crate) async fn stop(mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.child.kill().await;
    }
}

/// Starts a program, with what it prints in `log`, and waits until it is ready.
///
/// # Errors
/// It does not start, ends, or is not ready after `limit`; the last lines that it printed are told.
pub(crate) async fn start(
    mut command: Command,
    log: &Path,
    limit: Duration,
    mut is_ready: impl AsyncFnMut() -> bool,
) -> Result<Running> {
    let output = File::create(log)?;
    let name = command.as_std().get_program().display().to_string();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("could not start {name}"))?;
    let pid = child.id().context("it ended at once")?;
    let begin = Instant::now();
    while !is_ready().await {
        if let Some(status) = child.try_wait()? {
            bail!("{name} ended with {status}: {}", tail(log));
        }
        if begin.elapsed() > limit {
            bail!("{name} is not ready: {}", tail(log));
        }
        sleep(LOOK).await;
    }
    Ok(Running { pid, child })
}

/// Ports that nobody listens on now.
pub(crate) fn free_ports<const N: usize>() -> Result<[u16; N]> {
    // All are held until all are known, so that they differ.
    let mut listeners = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

/// The last lines of a file, on one line.
fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::Folder;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn a_program_that_ends_tells_what_it_printed() {
        let folder = Folder::new("program").unwrap();
        let log = folder.path().join("log");
        let never = async || false;
        let error = start(shell("echo no; exit 3"), &log, Duration::MAX, never)
            .await
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("exit status: 3: no"), "{error}");
    }

    #[tokio::test]
    async fn a_program_that_is_ready_runs_until_it_is_stopped() {
        let folder = Folder::new("program-ready").unwrap();
        let log = folder.path().join("log");
        let begun = async || fs::read_to_string(&log).is_ok_and(|text| text == "up\n");
        let script = shell("echo up; read -r line < /dev/zero");
        let running = start(script, &log, Duration::MAX, begun).await.unwrap();
        let process = format!("/proc/{}", running.pid);
        assert!(Path::new(&process).exists());
        running.stop().await;
        assert!(!Path::new(&process).exists());
    }

    #[test]
    fn free_ports_differ() {
        let [one, two, three] = free_ports().unwrap();
        assert!(one != two && two != three && one != three);
    }
}
