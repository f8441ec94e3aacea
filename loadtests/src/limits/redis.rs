//! A Redis server of our own, to be stopped and killed.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::program::{self, Running};

/// How long it may take to be ready.
const START: Duration = Duration::from_secs(10);

/// A server that is ready; it is ended when this is dropped.
pub(super) struct Redis {
    /// Where it is.
    pub(super) address: SocketAddr,
    running: Running,
}

/// The program, where the system has one.
pub(super) fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let files = std::env::split_paths(&path).map(|folder| folder.join("redis-server"));
    files.into_iter().find(|file| file.is_file())
}

impl Redis {
    /// Starts it on a free port, without anything on disk.
    ///
    /// # Errors
    /// It does not start.
    pub(super) async fn start(program: &Path, folder: &Path) -> Result<Self> {
        let [port] = program::free_ports()?;
        let mut command = Command::new(program);
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--save", "", "--appendonly", "no", "--dir"]);
        command.arg(folder);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let is_ready = async || pong(address).await.is_ok();
        let log = folder.join("redis.log");
        let running = program::start(command, &log, START, is_ready).await?;
        Ok(Self { address, running })
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It is gone.
    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.running.pid).ok().and_then(Pid::from_raw);
        Ok(kill_process(
            pid.context("no process has this id")?,
            signal,
        )?)
    }

    /// Ends it, and waits until it is gone.
    pub(super) async fn stop(self) {
        self.running.stop().await;
    }
}

async fn pong(address: SocketAddr) -> Result<()> {
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(b"PING\r\n").await?;
    let mut answer = [0; 7];
    socket.read_exact(&mut answer).await?;
    anyhow::ensure!(&answer == b"+PONG\r\n", "this is no Redis");
    Ok(())
}
