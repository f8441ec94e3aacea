//! Values with the place where each was written: what all sources are merged into.

use std::collections::BTreeMap;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Origin, Problem};

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    /// Absent for the root, which no source writes.
    pub(super) origin: Option<Origin>,
}

/// TOML's values, as far as a configuration has use for them.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Boolean(bool),
    Integer(i64),
    Float(f64),
    String(String),
    Datetime(String),
    /// Each element keeps the index under which it was written, also when others are taken out.
    Array(Vec<(usize, Node)>),
    Table(BTreeMap<String, Node>),
}

/// One step down from a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// Reads a TOML file.
pub(super) fn parse_file(path: &str, text: &str) -> Result<Node, Vec<Problem>> {
    let path: Arc<str> = path.into();
    // Windows editors put a byte-order mark there.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let origin = |offset: usize| {
        let (line, text) = line_at(text, offset);
        Origin::File {
            path: path.clone(),
            line,
            text: text.into(),
        }
    };
    let (document, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Node::table(document.into_inner(), None, &origin).map_err(|problem| vec![problem]);
    }
    Err(errors
        .iter()
        .map(|error| Problem {
            origin: error.span().map(|span| origin(span.start)),
            message: error.message().to_owned(),
        })
        .collect())
}

/// Reads a value given outside a file: TOML where it parses, plain text otherwise.
pub(super) fn parse_value(text: &str, origin: &Origin) -> Result<Node, Problem> {
    match DeValue::parse(text) {
        Ok(value) => Node::value(value, None, &|_| origin.clone()),
        Err(_) => Ok(Node {
            value: Value::String(text.to_owned()),
            origin: Some(origin.clone()),
        }),
    }
}

fn line_at(text: &str, offset: usize) -> (usize, &str) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count();
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    let rest = text.get(start..).unwrap_or_default();
    (line + 1, rest.lines().next().unwrap_or_default().trim())
}

impl Node {
    pub(super) fn empty() -> Self {
        Self {
            value: Value::Table(BTreeMap::new()),
            origin: None,
        }
    }

    fn table(
        table: DeTable<'_>,
        origin: Option<Origin>,
        place: &dyn Fn(usize) -> Origin,
    ) -> Result<Self, Problem> {
        let mut entries = BTreeMap::new();
        for (key, value) in table {
            let key_at = place(key.span().start);
            entries.insert(
                key.into_inner().into_owned(),
                Self::value(value, Some(key_at), place)?,
            );
        }
        Ok(Self {
            value: Value::Table(entries),
            origin,
        })
    }

    fn value(
        value: Spanned<DeValue<'_>>,
        key_at: Option<Origin>,
        place: &dyn Fn(usize) -> Origin,
    ) -> Result<Self, Problem> {
        let origin = key_at.unwrap_or_else(|| place(value.span().start));
        let too_large = |text: &dyn std::fmt::Display| Problem {
            origin: Some(origin.clone()),
            message: format!("{text} is too large"),
        };
        let value = match value.into_inner() {
            DeValue::Boolean(value) => Value::Boolean(value),
            DeValue::String(text) => Value::String(text.into_owned()),
            DeValue::Datetime(datetime) => Value::Datetime(datetime.to_string()),
            DeValue::Integer(integer) => Value::Integer(
                i64::from_str_radix(integer.as_str(), integer.radix())
                    .map_err(|_| too_large(&integer))?,
            ),
            DeValue::Float(float) => {
                Value::Float(float.as_str().parse().map_err(|_| too_large(&float))?)
            }
            DeValue::Table(table) => return Self::table(table, Some(origin), place),
            DeValue::Array(array) => Value::Array(
                array
                    .into_iter()
                    .enumerate()
                    .map(|(index, value)| Ok((index, Self::value(value, None, place)?)))
                    .collect::<Result<_, Problem>>()?,
            ),
        };
        Ok(Self {
            value,
            origin: Some(origin),
        })
    }

    /// Puts `value` where `keys` lead, making tables on the way. A number leads into a list, at
    /// most one past its end. Tables are merged, all else is replaced.
    pub(super) fn set(&mut self, keys: &[&str], value: Self) -> Result<(), String> {
        let Some((key, rest)) = keys.split_first() else {
            self.merge(value);
            return Ok(());
        };
        if key.is_empty() {
            return Err("a key is empty".to_owned());
        }
        if let Value::Array(list) = &mut self.value {
            let index: usize = key
                .parse()
                .map_err(|_| format!("{key:?} must be the number of an entry, from 0"))?;
            if index > list.len() {
                return Err(format!(
                    "there is no entry {index}: the list has {}",
                    list.len()
                ));
            }
            if index == list.len() {
                list.push((index, Self::implied(rest, &value)));
            }
            return match list.get_mut(index) {
                Some((_, entry)) => entry.set(rest, value),
                None => Ok(()),
            };
        }
        if !matches!(self.value, Value::Table(_)) {
            self.value = Value::Table(BTreeMap::new());
        }
        if let Value::Table(entries) = &mut self.value {
            return entries
                .entry((*key).to_owned())
                .or_insert_with(|| Self::implied(rest, &value))
                .set(rest, value);
        }
        Ok(())
    }

    /// The empty container that the next of `keys` leads into, on the way to `value`.
    fn implied(keys: &[&str], value: &Self) -> Self {
        let numbered = |key: &&str| key.bytes().all(|b| b.is_ascii_digit());
        Self {
            value: if keys.first().is_some_and(numbered) {
                Value::Array(Vec::new())
            } else {
                Value::Table(BTreeMap::new())
            },
            origin: value.origin.clone(),
        }
    }

    /// Takes what `name` (`limits.classes`) means in `from`, also if that is nothing.
    pub(super) fn take_over(&mut self, name: &str, from: &Self) {
        let keys: Vec<&str> = name.split('.').collect();
        let path: Vec<Step> = keys
            .iter()
            .map(|key| Step::Key((*key).to_owned()))
            .collect();
        self.remove(&path);
        if let Some(node) = from.child(&path) {
            // Keys lead through tables only, so there is nothing that could be wrong.
            let _ = self.set(&keys, node.clone());
        }
    }

    fn child(&self, path: &[Step]) -> Option<&Self> {
        path.iter()
            .try_fold(self, |node, step| match (&node.value, step) {
                (Value::Table(entries), Step::Key(key)) => entries.get(key),
                _ => None,
            })
    }

    pub(super) fn is_table(&self) -> bool {
        matches!(self.value, Value::Table(_))
    }

    /// The value alone.
    pub(super) fn json(&self) -> serde_json::Value {
        match &self.value {
            Value::Boolean(value) => (*value).into(),
            Value::Integer(value) => (*value).into(),
            Value::Float(value) => (*value).into(),
            Value::String(text) | Value::Datetime(text) => text.as_str().into(),
            Value::Array(list) => list.iter().map(|(_, entry)| entry.json()).collect(),
            Value::Table(entries) => {
                let entries = entries.iter().map(|(key, node)| (key.clone(), node.json()));
                serde_json::Value::Object(entries.collect())
            }
        }
    }

    fn merge(&mut self, over: Self) {
        match (&mut self.value, over) {
            (
                Value::Table(entries),
                Self {
                    value: Value::Table(new),
                    origin,
                },
            ) => {
                for (key, value) in new {
                    match entries.get_mut(&key) {
                        Some(entry) => entry.merge(value),
                        None => {
                            entries.insert(key, value);
                        }
                    }
                }
                self.origin = origin.or(self.origin.take());
            }
            (_, over) => *self = over,
        }
    }

    /// Takes the model named `name` out of `models`, if it is there; returns how many are left.
    pub(super) fn models_without(&mut self, name: &str) -> usize {
        let Some(models) = self.child_mut(&Step::Key("models".to_owned())) else {
            return 0;
        };
        let Value::Array(list) = &mut models.value else {
            return 0;
        };
        list.retain(|(_, model)| match &model.value {
            Value::Table(entry) => !entry
                .get("name")
                .is_some_and(|node| matches!(&node.value, Value::String(text) if text == name)),
            _ => true,
        });
        for (place, (index, _)) in list.iter_mut().enumerate() {
            *index = place;
        }
        list.len()
    }

    /// Takes out what `path` leads to; says whether there was such a thing.
    pub(super) fn remove(&mut self, path: &[Step]) -> bool {
        let Some((first, rest)) = path.split_first() else {
            return false;
        };
        match (&mut self.value, first) {
            (Value::Table(entries), Step::Key(key)) if rest.is_empty() => {
                entries.remove(key).is_some()
            }
            (Value::Array(list), Step::Index(index)) if rest.is_empty() => {
                let before = list.len();
                list.retain(|(at, _)| at != index);
                list.len() < before
            }
            _ => self
                .child_mut(first)
                .is_some_and(|child| child.remove(rest)),
        }
    }

    fn child_mut(&mut self, step: &Step) -> Option<&mut Self> {
        match (&mut self.value, step) {
            (Value::Table(entries), Step::Key(key)) => entries.get_mut(key),
            (Value::Array(list), Step::Index(index)) => list
                .iter_mut()
                .find_map(|(at, node)| (at == index).then_some(node)),
            _ => None,
        }
    }

    /// Where the last thing on `path` that any source wrote was written.
    pub(super) fn origin_of(&self, path: &[Step]) -> Option<Origin> {
        let below = path.split_first().and_then(|(first, rest)| {
            let child = match (&self.value, first) {
                (Value::Table(entries), Step::Key(key)) => entries.get(key),
                (Value::Array(list), Step::Index(index)) => list
                    .iter()
                    .find_map(|(at, node)| (at == index).then_some(node)),
                _ => None,
            };
            child?.origin_of(rest)
        });
        below.or_else(|| self.origin.clone())
    }
}
