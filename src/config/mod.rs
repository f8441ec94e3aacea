//! The configuration: a list of the sections that each folder defines, and how they are filled.
//!
//! A value comes from the last of these that names it: built-in default, file, environment
//! (`SLUICEGATE_SECTION__KEY`), flag. `serve` and `check` load through the same function, so what
//! one accepts the other does. Nothing here is defaulted in silence: a key that no section knows is
//! an error, and every error says where the value was written.

mod callers;
mod error;
mod keys;
mod limits;
mod live;
mod loaded;
mod read;
mod sources;
pub mod state;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;

use serde::Deserialize;

pub use self::error::{ConfigError, Origin, Problem};
pub use self::loaded::{Changed, Loaded};
pub use self::sources::{Flags, Sources};

use self::tree::Step;
use crate::auth::config::Auth;
use crate::engine::Plan;
use crate::engine::config::{Backing, Model, Process};
use crate::gateway::settings::{Deadlines, Drain, Stream};
use crate::generation::chain;
use crate::limit::config::Limits;
use crate::telemetry;
use crate::transport::config::{Ops, Server};
use crate::transport::http2::Http2;
use crate::transport::quic::config::Quic;
use crate::transport::tls::config::Tls;

/// Every section. `config/sluicegate.toml` describes each key.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The public listener.
    pub server: Server,
    /// Windows, frames and patience of HTTP/2.
    pub http2: Http2,
    /// The listener for TLS and QUIC.
    pub tls: Tls,
    /// The operator's listener.
    pub ops: Ops,
    /// Who is believed, token binding and early data.
    pub auth: Auth,
    /// QUIC beside the TLS listener.
    pub quic: Quic,
    /// The path of tokens to one reader.
    pub stream: Stream,
    /// Bounds on the time of one request.
    pub deadlines: Deadlines,
    /// How much callers may use.
    pub limits: Limits,
    /// Shutting down.
    pub drain: Drain,
    /// The models; with none, the built-in `demo` is served.
    pub models: Vec<Model>,
    /// What concerns llama.cpp as a whole.
    pub engine: Process,
    /// Logs, metrics and traces.
    pub telemetry: telemetry::Config,
    /// Where the time goes.
    pub profile: telemetry::profile::config::Config,
}

impl Config {
    /// Merges the sources and checks the result.
    ///
    /// # Errors
    /// Every problem of every source at once, as far as they can be told apart.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        Loaded::load(sources).map(|loaded| loaded.config)
    }

    /// What merged values make. On problems, `root` loses what they were found in.
    fn check(root: &mut tree::Node) -> Result<Self, ConfigError> {
        let config: Self = read::read(root).map_err(ConfigError::Wrong)?;
        let mut problems: Vec<Problem> = config
            .conflicts()
            .into_iter()
            .map(|(path, message)| Problem {
                origin: root.origin_of(&path),
                message: format!("{}: {message}", read::path_text(&path)),
            })
            .collect();
        if problems.is_empty() {
            return Ok(config);
        }
        problems.sort();
        Err(ConfigError::Wrong(problems))
    }

    /// Whether sections of two configurations go together: what would let strangers in, or not work at all.
    fn is_safe(&self) -> bool {
        callers::conflicts(self).is_empty()
    }

    /// What is wrong with the first model whose file cannot be used. What only llama.cpp finds (too little
    /// memory, for one) shows when serving.
    #[must_use]
    pub fn unusable_model(&self) -> Option<String> {
        self.models.iter().find_map(|model| {
            let plan = Plan::configured(model, &self.engine, self.stream.ring);
            let error = plan.inspect().err()?;
            Some(format!("model {}: {}", model.name, chain(&error)))
        })
    }

    /// What no section can see alone.
    fn conflicts(&self) -> Vec<(Vec<Step>, String)> {
        let mut found = Vec::new();
        let tls = if self.tls.is_on() {
            &self.tls.listen[..]
        } else {
            &[]
        };
        let mut public: Vec<_> = self.server.listen.iter().map(|at| ("server", at)).collect();
        for at in tls {
            if let Some((_, other)) = public.iter().find(|(_, other)| overlap(**other, *at)) {
                let message = format!("{at} collides with server.listen = {other}");
                found.push((vec![key("tls"), key("listen")], message));
            }
        }
        public.extend(tls.iter().map(|at| ("tls", at)));
        for ops in &self.ops.listen {
            if let Some((section, at)) = public.iter().find(|(_, at)| overlap(**at, *ops)) {
                let message = format!(
                    "{ops} collides with {section}.listen = {at}; what operators see must not be public"
                );
                found.push((vec![key("ops"), key("listen")], message));
            }
        }
        if self.server.tls_terminated && self.tls.is_on() {
            let message = "tokens would be bound to the proxy's connections, which all callers share; \
                           set tls.self_signed = false and leave tls.cert out";
            found.push((
                vec![key("server"), key("tls_terminated")],
                message.to_owned(),
            ));
        }
        for (name, message) in self.tls.conflicts() {
            found.push((vec![key("tls"), key(name)], message));
        }
        if let Some((name, message)) = self.quic.conflict() {
            found.push((vec![key("quic"), key(name)], message));
        }
        found.extend(callers::conflicts(self));
        found.extend(limits::conflicts(self));
        let mut names = HashSet::new();
        for (index, model) in self.models.iter().enumerate() {
            let at = |name| vec![key("models"), Step::Index(index), key(name)];
            if !names.insert(&model.name) {
                found.push((
                    at("name"),
                    format!("there are two models named {}", model.name),
                ));
            }
            if model.name.as_str() == telemetry::UNKNOWN_MODEL {
                let message = "in metrics, this stands for requests for no model that there is";
                found.push((at("name"), message.to_owned()));
            }
            let Backing::Gguf { path, settings } = &model.backing else {
                continue;
            };
            if let Some(message) = unreadable(path) {
                found.push((at("path"), message));
            }
            if let Some(message) = settings.chat_template.as_deref().and_then(unreadable) {
                found.push((at("chat_template"), message));
            }
            if let Some(message) = settings.draft_model.as_deref().and_then(unreadable) {
                found.push((at("draft_model"), message));
            }
            for (number, adapter) in settings.adapters.iter().enumerate() {
                if let Some(message) = unreadable(&adapter.path) {
                    let mut place = at("adapters");
                    place.extend([Step::Index(number), key("path")]);
                    found.push((place, message));
                }
            }
        }
        found
    }
}

fn key(name: &str) -> Step {
    Step::Key(name.to_owned())
}

/// Whether the second of two listeners could not be opened.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let same_host = a.ip() == b.ip()
        || (a.is_ipv4() == b.is_ipv4() && (a.ip().is_unspecified() || b.ip().is_unspecified()));
    a.port() == b.port() && a.port() != 0 && same_host
}

fn unreadable(path: &Path) -> Option<String> {
    match std::fs::File::open(path).and_then(|file| file.metadata()) {
        Ok(meta) if meta.is_file() => None,
        Ok(_) => Some(format!("{} is not a file", path.display())),
        Err(error) => Some(format!("cannot open {}: {error}", path.display())),
    }
}
