//! Starts the gateway under measurement: a configuration of its own for each scenario, on free ports.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use toml::{Table, Value};

use crate::keys;
use crate::metrics;
use crate::net::{Site, Transport};
use crate::process::Reading;
use crate::program::{self, Running};
use crate::random::Random;

/// Where the gateway keeps its own certificate, in its state directory.
const CERTIFICATE: &str = "dev-cert.pem";

/// How long it may take to be ready.
const START: Duration = Duration::from_secs(30);

/// The model of this repository.
pub(crate) const DEMO: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../src/engine/llama/demo/sluicegate-demo-q8_0.gguf"
);

/// How the gateway is started.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// Its file.
    pub(crate) file: PathBuf,
    /// Settings, SECTION.KEY=VALUE, after all others.
    pub(crate) settings: Vec<String>,
    /// For configuration, state and log.
    pub(crate) folder: PathBuf,
}

/// A configuration: bounds so wide that none is met but those that a scenario sets.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    table: Table,
    random: Random,
    is_secure: bool,
}

/// A gateway that is ready; it is ended when this is dropped.
pub(crate) struct Gateway {
    /// Where callers go who need no TLS.
    pub(crate) address: SocketAddr,
    /// Where operators go.
    pub(crate) ops: SocketAddr,
    secure: Option<(SocketAddr, CertificateDer<'static>)>,
    running: Running,
}

impl Setup {
    /// A gateway with a scripted model.
    pub(crate) fn scripted() -> Self {
        Self::new().with("[[models]]\nname = \"scripted\"\nengine = \"scripted\"\n")
    }

    /// A gateway with the demo model, so many sequences at once and so many waiting.
    pub(crate) fn demo(parallel: usize, waiting: usize) -> Self {
        let path = Value::String(DEMO.to_owned());
        Self::new().with(&format!(
            "[[models]]\nname = \"demo\"\npath = {path}\ncontext = 512\nparallel = {parallel}\n\
             waiting = {waiting}\n"
        ))
    }

    /// A gateway without models.
    pub(crate) fn new() -> Self {
        Self {
            table: Table::new(),
            random: Random::new(5),
            is_secure: false,
        }
        .with(
            "[tls]\nself_signed = false\n[limits]\nmax_streams = 20000\n[server]\n\
             max_connections = 20000\n[telemetry]\nlog = \"warn\"\n",
        )
    }

    /// The same with a listener for TLS and QUIC.
    pub(crate) fn secure(mut self) -> Self {
        self.is_secure = true;
        self.with("[tls]\nself_signed = true\n")
    }

    /// Adds a table; lists grow.
    pub(crate) fn with_table(mut self, table: Table) -> Self {
        merge(&mut self.table, table);
        self
    }

    /// Adds lines of TOML; lists grow.
    #[expect(clippy::expect_used, reason = "the lines are written in this program")]
    pub(crate) fn with(mut self, lines: &str) -> Self {
        let lines: Table = lines.parse().expect("the scenario's lines are TOML");
        merge(&mut self.table, lines);
        self
    }

    /// Adds a key, and returns it.
    pub(crate) fn key(&mut self, id: &str, class: Option<&str>) -> String {
        self.key_of(id, class, None)
    }

    /// Adds a key of an owner, and returns it.
    pub(crate) fn key_of(&mut self, id: &str, class: Option<&str>, owner: Option<&str>) -> String {
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
    fn text(&self, [public, ops, secure]: [u16; 3], state: &Path) -> String {
        let state = Value::String(state.display().to_string());
        let places = format!(
            "[server]\nlisten = \"127.0.0.1:{public}\"\nstate_dir = {state}\n\
             [ops]\nlisten = \"127.0.0.1:{ops}\"\n[tls]\nlisten = \"127.0.0.1:{secure}\"\n"
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
    pub(crate) async fn start(&self, setup: &Setup, name: &str) -> Result<Gateway> {
        let ports = free_ports()?;
        let config = self.folder.join(format!("{name}.toml"));
        let state = self.folder.join(format!("{name}-{}", ports[0]));
        fs::write(&config, setup.text(ports, &state))?;
        let mut command = Command::new(&self.file);
        command.args(["serve", "--config"]).arg(&config);
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        let [address, ops, secure] =
            ports.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let is_ready = async || {
            get(address, "/readyz").await.is_ok()
                && (!setup.is_secure || TcpStream::connect(secure).await.is_ok())
        };
        let log = self.folder.join(format!("{name}.log"));
        let running = program::start(command, &log, START, is_ready).await?;
        let secure = if setup.is_secure {
            Some((secure, certificate(&state)?))
        } else {
            None
        };
        Ok(Gateway {
            address,
            ops,
            secure,
            running,
        })
    }
}

impl Gateway {
    /// How it is reached over a transport.
    ///
    /// # Errors
    /// That needs TLS, and it has none.
    pub(crate) fn site(&self, transport: Transport) -> Result<Site> {
        if !transport.is_secure() {
            return Site::of_gateway(self.address, None);
        }
        let (address, certificate) = self.secure.as_ref().context("this gateway has no TLS")?;
        Site::of_gateway(*address, Some(certificate))
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.running.pid
    }

    /// CPU time and memory.
    pub(crate) fn reading(&self) -> Result<Reading> {
        Reading::of(&self.running.pid.to_string())
    }

    /// The sum of a metric's series whose labels hold all of these.
    pub(crate) async fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        Ok(metrics::sum(&self.metrics().await?, name, labels))
    }

    /// All metrics, as Prometheus would read them.
    pub(crate) async fn metrics(&self) -> Result<String> {
        get(self.ops, "/metrics").await
    }

    /// Ends it, and waits until it is gone.
    pub(crate) async fn stop(self) {
        self.running.stop().await;
    }
}

fn certificate(state: &Path) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_file(state.join(CERTIFICATE))
        .context("could not read the gateway's certificate")
}

/// Three ports that nobody listens on now; the last one is free on UDP as well.
fn free_ports() -> Result<[u16; 3]> {
    for _ in 0..100 {
        let ports: [u16; 3] = program::free_ports()?;
        if UdpSocket::bind((Ipv4Addr::LOCALHOST, ports[2])).is_ok() {
            return Ok(ports);
        }
    }
    bail!("no port is free on both TCP and UDP")
}

/// The body of a good answer.
///
/// # Errors
/// None came, or it is no good one.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Result<String> {
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
        let table: Table = setup.text([1, 2, 3], "a \"b\"".as_ref()).parse().unwrap();
        assert_eq!(table["server"]["listen"].as_str(), Some("127.0.0.1:1"));
        assert_eq!(table["server"]["state_dir"].as_str(), Some("a \"b\""));
        assert_eq!(table["ops"]["listen"].as_str(), Some("127.0.0.1:2"));
        assert_eq!(table["tls"]["self_signed"].as_bool(), Some(false));
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
