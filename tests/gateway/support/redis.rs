//! A Redis server of a test's own, which can be stopped, killed, started again and slowed.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redis::{Commands as _, Connection};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, tcp};
use tokio::task::JoinSet;

/// A server on a port of its own that keeps nothing on disk.
pub(crate) struct Redis {
    child: Child,
    port: u16,
}

impl Redis {
    pub(crate) fn start() -> Self {
        // Somebody else may take the port between the two lines; then another is tried.
        for _ in 0..20 {
            let port = free_port();
            if let Some(child) = spawn(port) {
                return Self { child, port };
            }
        }
        panic!("redis-server does not start (Debian's package redis-server has it)");
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    pub(crate) fn connect(&self) -> Connection {
        let client = redis::Client::open(self.url()).unwrap();
        client.get_connection().unwrap()
    }

    /// Runs one command.
    pub(crate) fn run(&self, words: &[&str]) {
        let (name, rest) = words.split_first().unwrap();
        let mut command = redis::cmd(name);
        command.arg(rest).exec(&mut self.connect()).unwrap();
    }

    pub(crate) fn keys(&self, like: &str) -> Vec<String> {
        self.connect().keys(like).unwrap()
    }

    pub(crate) fn text(&self, key: &str) -> String {
        self.connect().get(key).unwrap()
    }

    /// It stops where it is; connections stay open and nothing answers.
    pub(crate) fn freeze(&self) {
        kill_process(self.pid(), Signal::STOP).unwrap();
    }

    /// It goes on as if nothing had been.
    pub(crate) fn thaw(&self) {
        kill_process(self.pid(), Signal::CONT).unwrap();
    }

    /// It dies at once.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// A new, empty one on the same port.
    pub(crate) fn restart(&mut self) {
        self.child = spawn(self.port).expect("the port is still free");
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// `None`: the port is taken.
fn spawn(port: u16) -> Option<Child> {
    let mut child = Command::new("redis-server")
        .args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
        ])
        .args(["--appendonly", "no"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is installed (Debian's package redis-server)");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let is_ready = lines
        .by_ref()
        .map_while(Result::ok)
        .any(|line| line.contains("Ready to accept connections"));
    if is_ready {
        // Until its end, so that it never waits for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        return Some(child);
    }
    let _ = child.wait();
    None
}

/// A relay in front of a server that holds every answer back for a while.
pub(crate) struct Slow {
    pub(crate) url: String,
    _relays: JoinSet<()>,
}

impl Slow {
    pub(crate) async fn start(to: SocketAddr, delay: Duration) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let mut relays = JoinSet::new();
        relays.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(to).await else {
                    continue;
                };
                let ((from_near, to_near), (from_far, to_far)) =
                    (near.into_split(), far.into_split());
                open.spawn(relay(from_near, to_far, Duration::ZERO));
                open.spawn(relay(from_far, to_near, delay));
            }
        });
        Self {
            url,
            _relays: relays,
        }
    }
}

async fn relay(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, delay: Duration) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        tokio::time::sleep(delay).await;
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
