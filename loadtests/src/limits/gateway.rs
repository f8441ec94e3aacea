//! Starts the gateway under measurement: a configuration of its own for each scenario, on free ports.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use toml::{Table, Value};

use super::keys;
use super::metrics;
use crate::process::Reading;
use crate::program::{self, Running};
use crate::random::Random;

/// How long it may take to be ready.
const START: Duration = Duration::from_secs(30);

/// The model of this repository.
const DEMO: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../src/engine/llama/demo/sluicegate-demo-q8_0.gguf"
);

/// How the gateway is started.
#[derive(Clone, Debug)]
pub(super) struct Program {
    /// Its file.
    pub(super) file: PathBuf,
    /// Settings, SECTION.KEY=VALUE, after all others.
    pub(super) settings: Vec<String>,
    /// For configuration, state and log.
    pub(super) folder: PathBuf,
}

/// A configuration: bounds so wide that none is met but those that a scenario sets.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    table: Table,
    random: Random,
}

/// A gateway that is ready; it is ended when this is dropped.
pub(super) struct Gateway {
    /// Where callers go.
    pub(super) address: SocketAddr,
    ops: SocketAddr,
    running: Running,
}

impl Setup {
    /// A gateway with a scripted model.
    pub(super) fn scripted() -> Self {
        Self::new().with("[[models]]\nname = \"scripted\"\nengine = \"scripted\"\n")
    }

    /// A gateway with the demo model, so many sequences at once and so many waiting.
    pub(super) fn demo(parallel: usize, waiting: usize) -> Self {
        let path = Value::String(DEMO.to_owned());
        Self::new().with(&format!(
            "[[models]]\nname = \"demo\"\npath = {path}\ncontext = 512\nparallel = {parallel}\n\
             waiting = {waiting}\n"
        ))
    }

    fn new() -> Self {
        Self {
            table: Table::new(),
            random: Random::new(5),
        }
        .with(
            "[tls]\nself_signed = false\n[limits]\nmax_streams = 20000\n[server]\n\
             max_connections = 20000\n[telemetry]\nlog = \"warn\"\n",
        )
    }

    /// Adds lines of TOML; lists grow.
    #[expect(clippy::expect_used, reason = "the lines are written in this program")]
    pub(super) fn with(mut self, lines: &str) -> Self {
        let lines: Table = lines.parse().expect("the scenario's lines are TOML");
        merge(&mut self.table, lines);
        self
    }

    /// Adds a key, and returns it.
    pub(super) fn key(&mut self, id: &str, class: Option<&str>) -> String {
        self.key_of(id, class, None)
    }

    /// Adds a key of an owner, and returns it.
    pub(super) fn key_of(&mut self, id: &str, class: Option<&str>, owner: Option<&str>) -> String {
        let key = keys::mint(&mut self.random);
        let mut entry = Table::new();
        entry.insert("id".to_owned(), id.into());
        entry.insert("hash".to_owned(), keys::hash(&key).into());
        for (name, value) in [("class", class), ("owner", owner)] {
            if let Some(value) = value {
                entry.insert(name.to_owned(), value.into());
            }
        }
        let mut auth = Table::new();
        auth.insert("keys".to_owned(), Value::Array(vec![entry.into()]));
        let mut table = Table::new();
        table.insert("auth".to_owned(), auth.into());
        merge(&mut self.table, table);
        key
    }

    /// The file's text.
    fn text(&self, [public, ops]: [u16; 2], state: &Path) -> String {
        let state = Value::String(state.display().to_string());
        let places = format!(
            "[server]\nlisten = \"127.0.0.1:{public}\"\nstate_dir = {state}\n\
             [ops]\nlisten = \"127.0.0.1:{ops}\"\n"
        );
        self.clone().with(&places).table.to_string()
    }
}

/// Puts the second table into the first one.
fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(into)), Value::Table(from)) => merge(into, from),
            (Some(Value::Array(into)), Value::Array(from)) => into.extend(from),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

impl Program {
    /// Starts it and waits until it is ready. `name` tells gateways that run at once apart.
    ///
    /// # Errors
    /// It does not start; the last lines that it printed are told.
    pub(super) async fn start(&self, setup: &Setup, name: &str) -> Result<Gateway> {
        let ports = program::free_ports()?;
        let config = self.folder.join(format!("{name}.toml"));
        let state = self.folder.join(format!("{name}-{}", ports[0]));
        fs::write(&config, setup.text(ports, &state))?;
        let mut command = Command::new(&self.file);
        command.args(["serve", "--config"]).arg(&config);
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        let [address, ops] = ports.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let is_ready = async || get(address, "/readyz").await.is_ok();
        let log = self.folder.join(format!("{name}.log"));
        let running = program::start(command, &log, START, is_ready).await?;
        Ok(Gateway {
            address,
            ops,
            running,
        })
    }
}

impl Gateway {
    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.running.pid
    }

    /// CPU time and memory.
    pub(super) fn reading(&self) -> Result<Reading> {
        Reading::of(&self.running.pid.to_string())
    }

    /// The sum of a metric's series whose labels hold all of these.
    pub(super) async fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        let text = get(self.ops, "/metrics").await?;
        Ok(metrics::sum(&text, name, labels))
    }

    /// Ends it, and waits until it is gone.
    pub(super) async fn stop(self) {
        self.running.stop().await;
    }
}

/// The body of a good answer.
async fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut socket = TcpStream::connect(address).await?;
    // HTTP/1.0: a body without chunks.
    let request = format!("GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.split(' ').nth(1) == Some("200"), "{path}: {head}");
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setup_is_one_file_with_all_that_was_added() {
        let mut setup = Setup::scripted().with("[limits.classes.slow]\nrequests_per_minute = 1\n");
        let one = setup.key("one", None);
        let two = setup.key_of("two", Some("slow"), Some("us"));
        let table: Table = setup.text([1, 2], "a \"b\"".as_ref()).parse().unwrap();
        assert_eq!(table["server"]["listen"].as_str(), Some("127.0.0.1:1"));
        assert_eq!(table["server"]["state_dir"].as_str(), Some("a \"b\""));
        assert_eq!(table["ops"]["listen"].as_str(), Some("127.0.0.1:2"));
        assert_eq!(table["limits"]["max_streams"].as_integer(), Some(20_000));
        let slow = &table["limits"]["classes"]["slow"];
        assert_eq!(slow["requests_per_minute"].as_integer(), Some(1));
        let keys = table["auth"]["keys"].as_array().unwrap();
        assert_eq!(keys.len(), 2);
        assert_eq!(keys[1]["class"].as_str(), Some("slow"));
        assert_eq!(keys[1]["owner"].as_str(), Some("us"));
        assert_eq!(keys[0]["hash"].as_str(), Some(keys::hash(&one).as_str()));
        assert_ne!(one, two);
    }
}
