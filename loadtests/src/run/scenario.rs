//! Scenarios: one folder for each question, with what is done (`scenario.toml`) and what should come of it
//! (`slo.toml`).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use toml::Table;

use super::slo::{self, Slo};
use crate::net::Transport;

/// Most streams at once of one load, so that no file can ask for more than a machine has ports.
const MOST_STREAMS: usize = 20_000;

/// The longest that a scenario may take.
const LONGEST: Duration = Duration::from_hours(1);

/// What is done.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Scenario {
    /// Its folder's name.
    #[serde(skip)]
    pub(super) name: String,
    /// What it should come to.
    #[serde(skip)]
    pub(super) slos: Vec<Slo>,
    /// What it answers.
    pub(super) question: String,
    /// How long is measured, all phases together.
    #[serde(with = "humantime_serde")]
    pub(super) duration: Duration,
    /// The same with `--short`.
    #[serde(with = "humantime_serde")]
    pub(super) short: Duration,
    /// Load before a phase counts.
    #[serde(with = "humantime_serde")]
    pub(super) warm_up: Duration,
    /// The gateway's configuration; `demo` as a model's path is the model of this repository.
    #[serde(default)]
    pub(super) gateway: Table,
    /// So many scripted models besides, each of which is asked once.
    #[serde(default)]
    pub(super) further_models: usize,
    /// Who asks.
    #[serde(rename = "load")]
    pub(super) loads: Vec<Load>,
    /// One after the other; none is one with all loads.
    #[serde(rename = "phase", default)]
    pub(super) phases: Vec<Phase>,
}

/// Callers of one kind.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Load {
    /// For phases, figures and objectives.
    pub(super) name: String,
    /// When requests come.
    pub(super) arrivals: Arrivals,
    /// Which model is asked.
    pub(super) model: String,
    /// Over what, and how many of each in turn.
    #[serde(default = "over_http1")]
    pub(super) transports: BTreeMap<String, usize>,
    /// Connections of a transport that has many streams on each.
    #[serde(default = "four")]
    pub(super) connections: usize,
    /// Words of a prompt that are its own.
    pub(super) prompt: Span,
    /// Words before those that all requests have in common.
    #[serde(default)]
    pub(super) shared: usize,
    /// Tokens of an answer.
    pub(super) tokens: Span,
    /// Bytes a second that are read; 0 reads nothing after the first token. Absent: all that comes.
    pub(super) reads: Option<usize>,
    /// Whether it is in the figures of the whole.
    #[serde(default = "yes")]
    pub(super) counts: bool,
}

/// When requests come.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Arrivals {
    /// So many callers, each of whom asks again when its answer has ended.
    Closed(usize),
    /// So many a second on average, whatever becomes of those before (a Poisson process).
    Rate(f64),
    /// So many at once, again and again.
    Burst {
        /// How many.
        streams: usize,
        /// How often.
        #[serde(with = "humantime_serde")]
        every: Duration,
    },
    /// So many, once; all have begun before anything counts.
    Held(usize),
}

/// A number, or the least and the most of what is drawn evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum Span {
    One(u32),
    Between([u32; 2]),
}

/// A time with some of the loads.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Phase {
    /// For figures and objectives.
    pub(super) name: String,
    /// Its part of the duration, beside the other phases' parts.
    #[serde(default = "one")]
    pub(super) share: f64,
    /// The names of its loads; none is all.
    #[serde(default)]
    pub(super) loads: Vec<String>,
    /// How often the metrics are read.
    #[serde(default, with = "humantime_serde")]
    pub(super) scrape: Option<Duration>,
    /// How often the gateway is asked how it is.
    #[serde(default, with = "humantime_serde")]
    pub(super) healthz: Option<Duration>,
}

fn over_http1() -> BTreeMap<String, usize> {
    BTreeMap::from([("h1".to_owned(), 1)])
}

fn four() -> usize {
    4
}

fn yes() -> bool {
    true
}

fn one() -> f64 {
    1.0
}

impl Span {
    /// The least and the most.
    pub(super) fn ends(self) -> [u32; 2] {
        match self {
            Self::One(value) => [value; 2],
            Self::Between(ends) => ends,
        }
    }
}

impl Load {
    /// Its transports with their shares.
    ///
    /// # Errors
    /// There is no such transport.
    pub(super) fn transports(&self) -> Result<Vec<(Transport, usize)>> {
        let one = |(name, share): (&String, &usize)| {
            let mut all = Transport::ALL.into_iter();
            let transport = all.find(|known| known.name() == name);
            Ok((
                transport.with_context(|| format!("no transport {name:?}"))?,
                *share,
            ))
        };
        self.transports.iter().map(one).collect()
    }

    fn check(&self) -> Result<()> {
        let shares: usize = self.transports()?.iter().map(|(_, share)| share).sum();
        ensure!((1..=1000).contains(&shares), "no transport has a share");
        ensure!(
            (1..=1000).contains(&self.connections),
            "1 to 1,000 connections"
        );
        let streams = match self.arrivals {
            Arrivals::Closed(streams) | Arrivals::Held(streams) => streams,
            Arrivals::Burst { streams, every } => {
                ensure!(!every.is_zero(), "bursts need time between them");
                streams
            }
            Arrivals::Rate(rate) => {
                ensure!(
                    rate > 0.0 && rate <= 1e5,
                    "a rate is above 0, and at most 100,000"
                );
                1
            }
        };
        ensure!(
            (1..=MOST_STREAMS).contains(&streams),
            "1 to {MOST_STREAMS} streams"
        );
        for span in [self.prompt, self.tokens] {
            let [least, most] = span.ends();
            ensure!(
                (1..=most).contains(&least),
                "a span goes from 1 or more upwards"
            );
        }
        Ok(())
    }
}

impl Scenario {
    /// Reads a folder.
    ///
    /// # Errors
    /// A file is missing, or says what makes no sense.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let file = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))
        };
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        Self::parse(&name, &file("scenario.toml")?, &file("slo.toml")?)
            .with_context(|| format!("{}", folder.display()))
    }

    /// The same from the texts of both files.
    ///
    /// # Errors
    /// They say what makes no sense.
    pub(super) fn parse(name: &str, scenario: &str, slos: &str) -> Result<Self> {
        let mut scenario: Self = toml::from_str(scenario).context("scenario.toml")?;
        name.clone_into(&mut scenario.name);
        if scenario.phases.is_empty() {
            scenario.phases.push(Phase {
                name: String::new(),
                share: 1.0,
                loads: Vec::new(),
                scrape: None,
                healthz: None,
            });
        }
        scenario.check().context("scenario.toml")?;
        scenario.slos = slo::read(slos).context("slo.toml")?;
        Ok(scenario)
    }

    fn check(&self) -> Result<()> {
        ensure!(!self.loads.is_empty(), "there is no [[load]]");
        ensure!(self.further_models <= 1000, "at most 1,000 further models");
        for (what, time) in [("duration", self.duration), ("short", self.short)] {
            ensure!(
                !time.is_zero() && time <= LONGEST,
                "{what}: above 0, at most an hour"
            );
        }
        let mut names: Vec<&str> = Vec::new();
        let loads = self.loads.iter().map(|load| load.name.as_str());
        let phases = self.phases.iter().map(|phase| phase.name.as_str());
        for name in loads.chain(phases) {
            ensure!(!names.contains(&name), "{name:?} is the name of two things");
            ensure!(
                !name.contains([':', '/']),
                "{name:?} has a colon or a slash"
            );
            names.push(name);
        }
        for load in &self.loads {
            load.check()
                .with_context(|| format!("load {:?}", load.name))?;
        }
        for phase in &self.phases {
            ensure!(
                phase.share > 0.0 && phase.share.is_finite(),
                "phase {:?}: a share is above 0",
                phase.name
            );
            for every in [phase.scrape, phase.healthz].into_iter().flatten() {
                ensure!(!every.is_zero(), "phase {:?}: how often?", phase.name);
            }
            for name in &phase.loads {
                if !self.loads.iter().any(|load| load.name == *name) {
                    bail!("phase {:?}: there is no load {name:?}", phase.name);
                }
            }
        }
        Ok(())
    }

    /// The loads of a phase.
    pub(super) fn loads_of<'a>(&'a self, phase: &'a Phase) -> impl Iterator<Item = &'a Load> {
        self.loads
            .iter()
            .filter(|load| phase.loads.is_empty() || phase.loads.contains(&load.name))
    }

    /// How long a phase is, of so much in all.
    pub(super) fn spell(&self, phase: &Phase, all: Duration) -> Duration {
        let shares: f64 = self.phases.iter().map(|phase| phase.share).sum();
        all.mul_f64(phase.share / shares)
    }

    /// Whether anything is asked over TLS.
    ///
    /// # Errors
    /// There is no such transport.
    pub(super) fn is_secure(&self) -> Result<bool> {
        let mut is_secure = false;
        for load in &self.loads {
            is_secure |= load.transports()?.iter().any(|(one, _)| one.is_secure());
        }
        Ok(is_secure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLO: &str = "[[slo]]\nfigure = \"errors\"\nat_most = 0\nwhy = \"so\"\n\
                       [[slo]]\nfigure = \"truncated\"\nat_most = 0\nwhy = \"so\"\n\
                       [[slo]]\nfigure = \"refused\"\nat_most = 0\nwhy = \"so\"\n";
    const HEAD: &str = "question = \"?\"\nduration = \"4s\"\nshort = \"1s\"\nwarm_up = \"1s\"\n";
    const LOAD: &str = "[[load]]\nname = \"a\"\narrivals = { rate = 2.5 }\nmodel = \"m\"\nprompt = [1, 8]\n\
                        tokens = 5\n";

    fn parse(text: &str) -> Result<Scenario> {
        Scenario::parse("x", text, SLO)
    }

    #[test]
    fn every_scenario_of_the_repository_can_be_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let mut count = 0;
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let scenario = Scenario::read(&path).unwrap();
            assert!(path.join("README.md").exists(), "{}", scenario.name);
            scenario.is_secure().unwrap();
            count += 1;
        }
        assert!(count >= 9);
    }

    #[test]
    fn a_scenario_without_phases_is_one_phase_with_all_loads() {
        let scenario = parse(&format!("{HEAD}{LOAD}")).unwrap();
        let [phase] = &scenario.phases[..] else {
            panic!("{:?}", scenario.phases)
        };
        assert_eq!(scenario.loads_of(phase).count(), 1);
        assert_eq!(scenario.spell(phase, scenario.duration), scenario.duration);
        assert_eq!(scenario.loads[0].arrivals, Arrivals::Rate(2.5));
        assert_eq!(scenario.loads[0].prompt.ends(), [1, 8]);
        assert!(!scenario.is_secure().unwrap());
    }

    #[test]
    fn phases_divide_the_time_by_their_shares() {
        let phases =
            "[[phase]]\nname = \"b\"\nshare = 3.0\n[[phase]]\nname = \"c\"\nloads = [\"a\"]\n";
        let scenario = parse(&format!("{HEAD}{LOAD}{phases}")).unwrap();
        let [three, one] = &scenario.phases[..] else {
            panic!("{:?}", scenario.phases)
        };
        assert_eq!(
            scenario.spell(three, scenario.duration),
            Duration::from_secs(3)
        );
        assert_eq!(
            scenario.spell(one, scenario.duration),
            Duration::from_secs(1)
        );
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        let good = format!("{HEAD}{LOAD}");
        for (from, to) in [
            ("rate = 2.5", "rate = 0.0"),
            ("rate = 2.5", "closed = 0"),
            ("rate = 2.5", "closed = 1000000"),
            ("rate = 2.5", "burst = { streams = 1, every = \"0s\" }"),
            ("rate = 2.5", "often = 1"),
            ("[1, 8]", "[8, 1]"),
            ("[1, 8]", "0"),
            ("\"4s\"", "\"2h\""),
            ("tokens = 5", "tokens = 5\ntransports = { h4 = 1 }"),
            ("tokens = 5", "tokens = 5\ntransports = {}"),
            ("name = \"a\"", "name = \"a: b\""),
            ("tokens = 5", "tokens = 5\nelse = 1"),
            ("tokens = 5", "tokens = 5\n[[phase]]\nname = \"a\""),
            (
                "tokens = 5",
                "tokens = 5\n[[phase]]\nname = \"p\"\nloads = [\"z\"]",
            ),
        ] {
            let text = good.replace(from, to);
            assert_ne!(text, good);
            assert!(parse(&text).is_err(), "{text}");
        }
    }
}
