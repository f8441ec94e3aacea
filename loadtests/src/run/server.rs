//! Who is asked: a gateway that is started for a scenario, or any server that speaks OpenAI's words.

use anyhow::{Context, Result};
use toml::{Table, Value};

use super::scenario::{Load, Scenario};
use crate::gateway::{self, DEMO, Gateway, Program, Setup};
use crate::net::{Site, Transport};
use crate::process::Reading;
use crate::target::Target;

/// A server, by the name that reports call it.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    /// For reports.
    pub(super) name: String,
    /// What it is.
    pub(super) kind: Kind,
}

/// What is asked.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// The gateway, started with the scenario's configuration and then this.
    Gateway {
        /// Its program.
        program: Program,
        /// Over the scenario's.
        overlay: Table,
        /// Changes of scripted models' scripts.
        script: Option<String>,
    },
    /// A server that runs already.
    Peer(Peer),
}

/// A server that runs already.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// Where it is.
    pub(super) target: Target,
    /// What it asks for.
    pub(super) key: Option<String>,
    /// The model to ask for, if not the scenario's.
    pub(super) model: Option<String>,
    /// Whether it knows no more than OpenAI's own words.
    pub(super) is_plain: bool,
    /// Its process, if it is on this machine.
    pub(super) pid: Option<u32>,
}

/// One that can be asked.
pub(super) enum Server {
    /// Started here, ended when this is dropped; and changes of scripts.
    Gateway(Box<Gateway>, Option<String>),
    /// Somebody else's.
    Peer(Peer),
}

impl Subject {
    /// Starts it, if it does not run.
    ///
    /// # Errors
    /// It does not start.
    pub(super) async fn start(&self, scenario: &Scenario) -> Result<Server> {
        match &self.kind {
            Kind::Peer(peer) => Ok(Server::Peer(peer.clone())),
            Kind::Gateway {
                program,
                overlay,
                script,
            } => {
                let mut setup = Setup::new().with_table(configuration(scenario));
                if scenario.is_secure()? {
                    setup = setup.secure();
                }
                let setup = setup.with_table(overlay.clone());
                let gateway = program.start(&setup, &scenario.name).await?;
                let server = Server::Gateway(Box::new(gateway), script.clone());
                Ok(server)
            }
        }
    }
}

/// What a scenario asks of the gateway's configuration.
fn configuration(scenario: &Scenario) -> Table {
    let mut table = scenario.gateway.clone();
    let models = table
        .entry("models")
        .or_insert_with(|| Value::Array(Vec::new()));
    if let Value::Array(models) = models {
        for model in models.iter_mut().filter_map(Value::as_table_mut) {
            if model.get("path").and_then(Value::as_str) == Some("demo") {
                model.insert("path".to_owned(), DEMO.into());
            }
        }
        models.extend((0..scenario.further_models).map(|index| {
            let mut model = Table::new();
            model.insert("name".to_owned(), further(index).into());
            model.insert("engine".to_owned(), "scripted".into());
            Value::Table(model)
        }));
    }
    table
}

/// The name of a further model.
pub(super) fn further(index: usize) -> String {
    format!("further-{index}")
}

impl Server {
    /// Ends it, if it was started.
    pub(super) async fn stop(self) {
        if let Self::Gateway(gateway, _) = self {
            gateway.stop().await;
        }
    }

    /// How it is reached over a transport.
    ///
    /// # Errors
    /// It is not.
    pub(super) fn site(&self, transport: Transport) -> Result<Site> {
        match self {
            Self::Gateway(gateway, _) => gateway.site(transport),
            Self::Peer(peer) => Site::of_target(&peer.target, peer.key.as_deref()),
        }
    }

    /// A load's transports with their shares. Others are asked over HTTP/1.1 only.
    ///
    /// # Errors
    /// There is no such transport.
    pub(super) fn transports(&self, load: &Load) -> Result<Vec<(Transport, usize)>> {
        match self {
            Self::Gateway(..) => load.transports(),
            Self::Peer(peer) if peer.target.is_secure => Ok(vec![(Transport::Http1Tls, 1)]),
            Self::Peer(_) => Ok(vec![(Transport::Http1, 1)]),
        }
    }

    /// What a scenario's model is called here.
    pub(super) fn model(&self, model: &str) -> String {
        match self {
            Self::Peer(Peer {
                model: Some(own), ..
            }) => own.clone(),
            // The last one that names a setting is the one that holds.
            Self::Gateway(_, Some(script)) if model.contains('?') => format!("{model}&{script}"),
            Self::Gateway(_, Some(script)) => format!("{model}?{script}"),
            _ => model.to_owned(),
        }
    }

    /// Whether it knows no more than OpenAI's own words.
    pub(super) fn is_plain(&self) -> bool {
        matches!(self, Self::Peer(peer) if peer.is_plain)
    }

    /// CPU time and memory, where its process is known.
    ///
    /// # Errors
    /// The process is gone.
    pub(super) fn reading(&self) -> Result<Option<Reading>> {
        match self {
            Self::Gateway(gateway, _) => gateway.reading().map(Some),
            Self::Peer(Peer { pid, .. }) => {
                pid.map(|pid| Reading::of(&pid.to_string())).transpose()
            }
        }
    }

    /// What it says of itself, where that is known.
    ///
    /// # Errors
    /// It does not answer.
    pub(super) async fn metrics(&self) -> Result<Option<String>> {
        match self {
            Self::Gateway(gateway, _) => gateway.metrics().await.map(Some),
            Self::Peer(_) => Ok(None),
        }
    }

    /// Asks once whether it is well.
    ///
    /// # Errors
    /// It does not say so, or there is no such question.
    pub(super) async fn healthz(&self) -> Result<()> {
        let Self::Gateway(gateway, _) = self else {
            return Err(anyhow::anyhow!("only the gateway is asked"));
        };
        let answer = gateway::get(gateway.address, "/healthz").await;
        answer.map(drop).context("/healthz")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_model_is_found_and_further_models_have_names() {
        let text = "question = \"?\"\nduration = \"1s\"\nshort = \"1s\"\nwarm_up = \"0s\"\nfurther_models = 2\n\
                    [[gateway.models]]\nname = \"demo\"\npath = \"demo\"\n\
                    [[load]]\nname = \"a\"\narrivals = { closed = 1 }\nmodel = \"demo\"\nprompt = 1\ntokens = 1\n";
        let slo = "[[slo]]\nfigure = \"errors\"\nat_most = 0\nwhy = \"so\"\n";
        let slos = ["errors", "truncated", "refused"].map(|name| slo.replace("errors", name));
        let scenario = Scenario::parse("x", text, &slos.concat()).unwrap();
        let table = configuration(&scenario);
        let models = table["models"].as_array().unwrap();
        assert_eq!(models.len(), 3);
        assert_eq!(models[0]["path"].as_str(), Some(DEMO));
        assert_eq!(models[2]["name"].as_str(), Some("further-1"));
    }
}
