//! Where settings come from besides the defaults, and how they are laid over each other.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::error::{ConfigError, Origin, Problem};
use super::keys;
use super::tree::{self, Node, Value};

/// The flags that make a configuration; `serve` and `check` share them.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// Read settings from this TOML file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Set one key, over file and environment; the value is TOML or plain text (repeatable)
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,

    /// Serve this GGUF file under this name, besides the models of the file (repeatable)
    #[arg(long, value_name = "NAME=PATH")]
    pub model: Vec<String>,

    /// Listen here for requests, instead of `server.listen` (repeatable)
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<SocketAddr>,
}

/// Everything that a configuration is made of.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file's name, for messages, and its text.
    pub file: Option<(PathBuf, String)>,
    /// Environment variables; those that do not begin with `SLUICEGATE_` are ignored.
    pub environment: Vec<(String, String)>,
    /// Flags.
    pub flags: Flags,
}

const PREFIX: &str = "SLUICEGATE_";

impl Sources {
    /// The flags, the file they name, and this process's environment.
    ///
    /// # Errors
    /// The file cannot be read, or is not UTF-8.
    pub fn of_process(flags: Flags) -> Result<Self, ConfigError> {
        let file = match &flags.config {
            None => None,
            Some(path) => {
                let text =
                    std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
                        path: path.clone(),
                        source,
                    })?;
                Some((path.clone(), text))
            }
        };
        // Variables that are not Unicode cannot be ours, except under our prefix, where the
        // replacement character then shows up in an error.
        let environment = std::env::vars_os()
            .map(|(name, value)| {
                let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
                (text(name), text(value))
            })
            .collect();
        Ok(Self {
            file,
            environment,
            flags,
        })
    }

    /// Lays the sources over each other.
    pub(super) fn merge(&self) -> Result<Node, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut root = Node::empty();
        if let Some((path, text)) = &self.file {
            match tree::parse_file(&path.to_string_lossy(), text) {
                Ok(file) => root = file,
                Err(found) => problems = found,
            }
        }
        let mut variables: Vec<_> = self.environment.iter().collect();
        variables.sort();
        for (name, value) in variables {
            let set = lay_variable(&mut root, name, value);
            problems.extend(set.err());
        }
        for assignment in &self.flags.set {
            problems.extend(lay_assignment(&mut root, assignment).err());
        }
        for model in &self.flags.model {
            problems.extend(lay_model(&mut root, model).err());
        }
        if !self.flags.listen.is_empty() {
            problems.extend(lay_listen(&mut root, &self.flags.listen).err());
        }
        if problems.is_empty() {
            Ok(root)
        } else {
            Err(problems)
        }
    }
}

fn lay_variable(root: &mut Node, name: &str, value: &str) -> Result<(), Problem> {
    let Some(rest) = name.strip_prefix(PREFIX) else {
        return Ok(());
    };
    let origin = Origin::Environment(name.into());
    let rest = rest.to_ascii_lowercase();
    let keys: Vec<&str> = rest.split("__").collect();
    if keys.len() > 1 || keys::all().contains(&rest) {
        return lay(root, &keys, value, origin);
    }
    // Others put variables with our name into the environment too (Kubernetes does, for a service
    // called like us), so the rest is ignored, but for what is surely meant for us.
    let meant = keys::all().iter().find(|key| key.replace('.', "_") == rest);
    match meant {
        None => Ok(()),
        Some(key) => Err(Problem {
            origin: Some(origin),
            message: format!(
                "two underscores go between section and key: {PREFIX}{}",
                key.replace('.', "__").to_ascii_uppercase()
            ),
        }),
    }
}

fn lay_assignment(root: &mut Node, assignment: &str) -> Result<(), Problem> {
    let origin = Origin::Flag(format!("--set {assignment}").into());
    match assignment.split_once('=') {
        Some((path, value)) => {
            let keys: Vec<&str> = path.trim().split('.').collect();
            lay(root, &keys, value.trim(), origin)
        }
        None => Err(Problem {
            origin: Some(origin),
            message: "write SECTION.KEY=VALUE".to_owned(),
        }),
    }
}

fn lay(root: &mut Node, keys: &[&str], value: &str, origin: Origin) -> Result<(), Problem> {
    let node = tree::parse_value(value, &origin)?;
    root.set(keys, node).map_err(|message| Problem {
        origin: Some(origin),
        message,
    })
}

/// Adds a model to the end of the list; one that has the name already gives its place up.
fn lay_model(root: &mut Node, flag: &str) -> Result<(), Problem> {
    let origin = Origin::Flag(format!("--model {flag}").into());
    let wrong = |message: String| Problem {
        origin: Some(origin.clone()),
        message,
    };
    let (name, path) = flag
        .split_once('=')
        .filter(|(name, path)| !name.is_empty() && !path.is_empty())
        .ok_or_else(|| wrong("write NAME=PATH".to_owned()))?;
    let text = |text: &str| Node {
        value: Value::String(text.to_owned()),
        origin: Some(origin.clone()),
    };
    let entry = Node {
        value: Value::Table(
            [("name", text(name)), ("path", text(path))]
                .map(|(key, node)| (key.to_owned(), node))
                .into(),
        ),
        origin: Some(origin.clone()),
    };
    let end = root.models_without(name).to_string();
    root.set(&["models", &end], entry).map_err(wrong)
}

fn lay_listen(root: &mut Node, addresses: &[SocketAddr]) -> Result<(), Problem> {
    let origin = Origin::Flag("--listen".into());
    let list = addresses.iter().enumerate().map(|(index, address)| {
        let node = Node {
            value: Value::String(address.to_string()),
            origin: Some(origin.clone()),
        };
        (index, node)
    });
    let node = Node {
        value: Value::Array(list.collect()),
        origin: Some(origin.clone()),
    };
    root.set(&["server", "listen"], node)
        .map_err(|message| Problem {
            origin: Some(origin),
            message,
        })
}
