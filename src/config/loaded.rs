//! A configuration with what was written to make it, so that another can be held against it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;

use super::error::{ConfigError, masked};
use super::tree::{self, Node, Step, Value};
use super::{Config, Sources, live, read};
use crate::control::reload::Change;

/// Every key with its default; what a change is told from and to where nothing is written.
const REFERENCE: &str = include_str!("../../config/sluicegate.toml");

/// A configuration, and the values that were written for it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What they make.
    pub config: Config,
    written: Node,
}

/// What another configuration would change.
#[derive(Debug)]
pub struct Changed {
    /// What would run: as before, but for what a reload changes.
    pub runs: Loaded,
    /// What that is.
    pub live: Vec<Change>,
    /// What else is different, and waits for a restart.
    pub restart: Vec<Change>,
}

impl Loaded {
    /// Merges the sources and checks the result.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let written = sources.merge().map_err(ConfigError::Wrong)?;
        Ok(Self {
            config: Config::check(&mut written.clone())?,
            written,
        })
    }

    /// What would run if `wanted` were wanted now.
    ///
    /// Where what runs on until a restart does not go with what could change now, nothing would change.
    ///
    /// # Errors
    /// What was written cannot be put together.
    pub fn changed(&self, wanted: &Self) -> Result<Changed, ConfigError> {
        let mut written = self.written.clone();
        for name in live::live() {
            written.take_over(name, &wanted.written);
        }
        let mut config: Config = read::read(&mut written.clone()).map_err(ConfigError::Wrong)?;
        // Found out at the start, and no setting.
        config
            .engine
            .program
            .clone_from(&self.config.engine.program);
        let fits = config.is_safe();
        let runs = if fits {
            Self { config, written }
        } else {
            self.clone()
        };
        let (live, restart) = self.differences(wanted);
        let (live, held): (Vec<_>, Vec<_>) = live.into_iter().partition(|_| fits);
        Ok(Changed {
            runs,
            live,
            restart: held.into_iter().chain(restart).collect(),
        })
    }

    /// What is different in what counts, not only in how it is written: first what a reload changes.
    fn differences(&self, wanted: &Self) -> (Vec<Change>, Vec<Change>) {
        let defaults =
            tree::parse_file("", REFERENCE).map_or_else(|_| BTreeMap::new(), |n| flat(&n));
        let (old, new) = (flat(&self.written), flat(&wanted.written));
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        let mut seen: BTreeMap<String, bool> = BTreeMap::new();
        let changes = names.into_iter().filter_map(|name| {
            let (was, is) = (old.get(name), new.get(name));
            if was.map(|(_, value)| value) == is.map(|(_, value)| value) {
                return None;
            }
            let (path, _) = was.or(is)?;
            // An entry of a list means something only with the others.
            let whole = path.split(|step| matches!(step, Step::Index(_))).next()?;
            let counts = *seen
                .entry(read::path_text(whole))
                .or_insert_with(|| self.counts(whole, &wanted.written));
            counts.then(|| {
                let default = defaults.get(name);
                let shown = |value: Option<&(Vec<Step>, Json)>| {
                    value.or(default).map(|(_, value)| value.clone())
                };
                let key = plain(path);
                let (from, to) = (shown(was), shown(is));
                let is_hidden = |value: &Option<Json>| {
                    let text = value.as_ref().and_then(Json::as_str);
                    text.is_some_and(|text| masked(text) != text)
                };
                let hide = live::is_secret(&key) || is_hidden(&from) || is_hidden(&to);
                let change = if hide {
                    Change::secret(name.clone())
                } else {
                    Change::new(name.clone(), from, to)
                };
                (live::is_live(&key), change)
            })
        });
        let (live, restart): (Vec<_>, Vec<_>) = changes.partition(|(is_live, _)| *is_live);
        let only = |changes: Vec<(bool, Change)>| changes.into_iter().map(|(_, change)| change);
        (only(live).collect(), only(restart).collect())
    }

    /// Whether taking over this one thing makes another configuration.
    fn counts(&self, path: &[Step], wanted: &Node) -> bool {
        let mut with = self.written.clone();
        with.take_over(&plain(path), wanted);
        let before: Result<Config, _> = read::read(&mut self.written.clone());
        let after: Result<Config, _> = read::read(&mut with);
        match (before, after) {
            (Ok(before), Ok(after)) => before != after,
            // It goes only together with something else that is different.
            _ => true,
        }
    }
}

/// A path without the numbers of list entries.
fn plain(path: &[Step]) -> String {
    let keys = path.iter().filter_map(|step| match step {
        Step::Key(key) => Some(key.as_str()),
        Step::Index(_) => None,
    });
    keys.collect::<Vec<_>>().join(".")
}

/// Every value with its place, by name: `limits.anonymous.streams`, `models[0].name`.
fn flat(root: &Node) -> BTreeMap<String, (Vec<Step>, Json)> {
    let mut found = BTreeMap::new();
    collect(root, &mut Vec::new(), &mut found);
    found
}

fn collect(node: &Node, path: &mut Vec<Step>, found: &mut BTreeMap<String, (Vec<Step>, Json)>) {
    let mut below = |step: Step, node: &Node| {
        path.push(step);
        collect(node, path, found);
        path.pop();
    };
    match &node.value {
        Value::Table(entries) => {
            for (key, node) in entries {
                below(Step::Key(key.clone()), node);
            }
        }
        Value::Array(list) if list.iter().any(|(_, entry)| entry.is_table()) => {
            for (index, entry) in list {
                below(Step::Index(*index), entry);
            }
        }
        _ => {
            found.insert(read::path_text(path), (path.clone(), node.json()));
        }
    }
}
