//! Starts the servers under measurement, one at a time, and ends them.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use tokio::process::Command;

use super::client;
use super::scenario::Unit;
use crate::program;

/// How long a server may take to load its model.
const LOAD: Duration = Duration::from_mins(2);

/// How a server is started.
#[derive(Clone, Debug)]
pub(super) struct Server {
    /// Which one.
    pub(super) product: Product,
    /// Its program.
    pub(super) program: PathBuf,
    /// Flags after all others.
    pub(super) flags: Vec<String>,
}

/// The servers that are known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Product {
    /// This repository's.
    Sluicegate,
    /// llama.cpp's.
    Llama,
}

/// A server that is ready; it is ended when this is dropped.
pub(super) struct Running {
    /// Where it is.
    pub(super) address: SocketAddr,
    /// Its process.
    pub(super) pid: u32,
    /// Which one it is.
    pub(super) product: Product,
    process: program::Running,
}

impl Server {
    /// The arguments for a measurement, and for Sluicegate the configuration that they name.
    pub(super) fn arguments(
        &self,
        unit: &Unit,
        model: &Path,
        ports: [u16; 2],
        folder: &Path,
    ) -> (Vec<String>, Option<String>) {
        let parallel = unit.parallel();
        let mut arguments: Vec<String> = Vec::new();
        let config = match self.product {
            Product::Sluicegate => {
                let file = folder.join("sluicegate.toml");
                arguments.extend([
                    "serve".into(),
                    "--config".into(),
                    file.display().to_string(),
                ]);
                Some(sluicegate_config(unit, model, ports))
            }
            Product::Llama => {
                let context = u64::from(unit.row.context) * parallel as u64;
                let flags = [
                    ("-m", model.display().to_string()),
                    ("--host", Ipv4Addr::LOCALHOST.to_string()),
                    ("--port", ports[0].to_string()),
                    ("-np", parallel.to_string()),
                    ("-c", context.to_string()),
                ];
                for (flag, value) in flags {
                    arguments.extend([flag.to_owned(), value]);
                }
                arguments.push("--no-webui".to_owned());
                arguments.extend(unit.row.llama.iter().cloned());
                None
            }
        };
        arguments.extend(self.flags.iter().cloned());
        (arguments, config)
    }

    /// Starts it and waits until it is ready. What it prints goes to a file in `folder`.
    ///
    /// # Errors
    /// It does not start; the last lines that it printed are told.
    pub(super) async fn start(&self, unit: &Unit, model: &Path, folder: &Path) -> Result<Running> {
        let ports = program::free_ports()?;
        let (arguments, config) = self.arguments(unit, model, ports, folder);
        if let Some(config) = config {
            std::fs::write(folder.join("sluicegate.toml"), config)?;
        }
        let log = folder.join("server.log");
        let mut command = Command::new(&self.program);
        command.args(&arguments);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports[0]));
        let path = match self.product {
            Product::Sluicegate => "/readyz",
            Product::Llama => "/health",
        };
        let is_ready = async || client::get(address, path).await == Some(200);
        let process = program::start(command, &log, LOAD, is_ready).await?;
        Ok(Running {
            address,
            pid: process.pid,
            product: self.product,
            process,
        })
    }
}

impl Running {
    /// Ends it, and waits until it is gone.
    pub(super) async fn stop(self) {
        self.process.stop().await;
    }
}

fn sluicegate_config(unit: &Unit, model: &Path, ports: [u16; 2]) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let mut config = format!(
        "[server]\nlisten = \"127.0.0.1:{}\"\n\n[ops]\nlisten = \"127.0.0.1:{}\"\n\n\
         [[models]]\nname = \"m\"\npath = {}\ncontext = {}\nparallel = {}\n",
        ports[0],
        ports[1],
        quoted(&model.display().to_string()),
        unit.row.context,
        unit.parallel(),
    );
    for (key, value) in &unit.row.sluicegate {
        let _ = writeln!(config, "{key} = {value}");
    }
    config
}

#[cfg(test)]
mod tests {
    use super::super::scenario;
    use super::*;

    fn unit() -> Unit {
        let row = "[[row]]\nkind = \"stalled\"\nmodel = \"m\"\nstreams = [4]\nstalled = 2\ncontext = 512\n\
                   prompt = 8\nllama = [\"-t\", \"1\"]\nsluicegate = { kv_layout = \"unified\" }\n";
        scenario::read(Some(row)).unwrap().remove(0)
    }

    fn server(product: Product) -> Server {
        Server {
            product,
            program: "x".into(),
            flags: vec!["--last".to_owned()],
        }
    }

    #[test]
    fn llama_server_gets_room_for_every_stream_and_the_rows_flags() {
        let server = server(Product::Llama);
        let (arguments, config) =
            server.arguments(&unit(), "a b.gguf".as_ref(), [1, 2], "/f".as_ref());
        let expected = "-m|a b.gguf|--host|127.0.0.1|--port|1|-np|6|-c|3072|--no-webui|-t|1|--last";
        assert_eq!((arguments.join("|").as_str(), config), (expected, None));
    }

    #[test]
    fn sluicegate_gets_a_configuration_with_the_rows_keys() {
        let server = server(Product::Sluicegate);
        let (arguments, config) =
            server.arguments(&unit(), "a\"b.gguf".as_ref(), [1, 2], "/f".as_ref());
        assert_eq!(
            arguments.join("|"),
            "serve|--config|/f/sluicegate.toml|--last"
        );
        let config: toml::Table = config.unwrap().parse().unwrap();
        assert_eq!(config["server"]["listen"].as_str(), Some("127.0.0.1:1"));
        let model = &config["models"][0];
        assert_eq!(model["path"].as_str(), Some("a\"b.gguf"));
        assert_eq!(model["parallel"].as_integer(), Some(6));
        assert_eq!(model["kv_layout"].as_str(), Some("unified"));
    }
}
