//! Starts the gateway under measurement, with a scripted model and all listeners on free ports.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::Transport;
use crate::program::{self, Running};

/// How long it may take to be ready.
const START: Duration = Duration::from_secs(20);

/// Where the gateway keeps its own certificate, in its state directory.
const CERTIFICATE: &str = "dev-cert.pem";

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

/// A gateway that is ready; it is ended when this is dropped.
pub(super) struct Gateway {
    /// Its process.
    pub(super) pid: u32,
    /// Its certificate.
    pub(super) certificate: CertificateDer<'static>,
    clear: SocketAddr,
    secure: SocketAddr,
    running: Running,
}

impl Program {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// It does not start; the last lines that it printed are told.
    pub(super) async fn start(&self, settings: &[String]) -> Result<Gateway> {
        let ports = free_ports()?;
        let config = self.folder.join("sluicegate.toml");
        let state = self.folder.join("state");
        fs::write(&config, configuration(ports, &state))?;
        let log = self.folder.join("gateway.log");
        let mut command = Command::new(&self.file);
        command.args(["serve", "--config"]).arg(&config);
        for setting in settings.iter().chain(&self.settings) {
            command.args(["--set", setting]);
        }
        let [clear, secure, _] = ports.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let is_ready = async || answers(clear, "200").await && answers(secure, "").await;
        let running = program::start(command, &log, START, is_ready).await?;
        let certificate = CertificateDer::from_pem_file(state.join(CERTIFICATE))
            .context("could not read the gateway's certificate")?;
        Ok(Gateway {
            pid: running.pid,
            certificate,
            clear,
            secure,
            running,
        })
    }
}

impl Gateway {
    /// Where it speaks a transport.
    pub(super) fn address(&self, transport: Transport) -> SocketAddr {
        if transport.is_secure() {
            self.secure
        } else {
            self.clear
        }
    }

    /// Ends it, and waits until it is gone.
    pub(super) async fn stop(self) {
        self.running.stop().await;
    }
}

/// Whether somebody listens, and says that it is ready if that is asked for.
async fn answers(address: SocketAddr, status: &str) -> bool {
    let Ok(mut socket) = TcpStream::connect(address).await else {
        return false;
    };
    if status.is_empty() {
        return true;
    }
    let request = b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let mut answer = String::new();
    socket.write_all(request).await.is_ok()
        && socket.read_to_string(&mut answer).await.is_ok()
        && answer.split(' ').nth(1) == Some(status)
}

/// Bounds so wide that none is met but those of a single stream. Stalled readers are left alone for as long
/// as they are measured.
fn configuration([clear, secure, ops]: [u16; 3], state: &Path) -> String {
    let state = toml::Value::String(state.display().to_string());
    format!(
        "[server]\nlisten = \"127.0.0.1:{clear}\"\nstate_dir = {state}\nmax_connections = 20000\n\
         max_streams_per_connection = 1000\n\n\
         [tls]\nlisten = \"127.0.0.1:{secure}\"\nself_signed = true\n\n\
         [quic]\nmax_streams = 1000\n\n\
         [ops]\nlisten = \"127.0.0.1:{ops}\"\n\n\
         [stream]\nstall_timeout = \"10m\"\n\n\
         [limits]\nmax_streams = 20000\n\n\
         [telemetry]\nlog = \"warn\"\n\n\
         [[models]]\nname = \"scripted\"\nengine = \"scripted\"\n"
    )
}

/// Three ports that nobody listens on now; the second one is free on UDP as well.
fn free_ports() -> Result<[u16; 3]> {
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let (clear, ops) = (listen()?, listen()?);
    for _ in 0..100 {
        let secure = listen()?;
        let port = secure.local_addr()?.port();
        if UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok([clear.local_addr()?.port(), port, ops.local_addr()?.port()]);
        }
    }
    bail!("no port is free on both TCP and UDP")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_has_the_ports_and_quotes_the_path() {
        let config: toml::Table = configuration([1, 2, 3], "a \"b\"".as_ref())
            .parse()
            .unwrap();
        assert_eq!(config["server"]["listen"].as_str(), Some("127.0.0.1:1"));
        assert_eq!(config["tls"]["listen"].as_str(), Some("127.0.0.1:2"));
        assert_eq!(config["ops"]["listen"].as_str(), Some("127.0.0.1:3"));
        assert_eq!(config["server"]["state_dir"].as_str(), Some("a \"b\""));
    }

    #[tokio::test]
    async fn ready_is_who_says_so() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            use std::io::{Read, Write};
            for status in ["503 Loading", "200 OK"] {
                let (mut socket, _) = listener.accept().unwrap();
                let _ = socket.read(&mut [0; 1024]).unwrap();
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                socket.write_all(answer.as_bytes()).unwrap();
            }
        });
        assert!(!answers(address, "200").await);
        assert!(answers(address, "200").await);
        server.join().unwrap();
        assert!(!answers(address, "").await);
    }

    #[test]
    fn free_ports_are_three() {
        let [one, two, three] = free_ports().unwrap();
        assert!(one != two && two != three && one != three);
    }
}
