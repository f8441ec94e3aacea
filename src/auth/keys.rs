//! API keys: how they are made, how they are written down, and the table in which they are found.
//!
//! A key is `sgk_` and 256 random bits. Nothing keeps it: the configuration and the key file hold its
//! SHA-256. A key has as many random bits as its hash, so that nobody finds one for a hash that they
//! have seen, and a slow password hash would only slow down who has the key.

use std::collections::hash_map::Entry as Slot;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest;
use serde::de::{self, Error as _};
use serde::{Deserialize, Deserializer};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::{NoRandomness, random};
use crate::generation::{Caller, Rights, Scopes, Trace};

/// How a key begins: it is known for what it is wherever it turns up.
pub const PREFIX: &str = "sgk_";

/// How a hash is written.
const HASH: &str = "sha256:";

/// How the identity of a key's owner begins.
const IDENTITY: &str = "key:";

/// Longest id, owner and class, in bytes.
const MAX_NAME: usize = 64;

/// Most keys; a million take about 300 MB.
const MAX_KEYS: usize = 1 << 20;

/// A new key, to be shown once.
///
/// # Errors
/// If the system gives no random bytes.
pub fn mint() -> Result<Zeroizing<String>, NoRandomness> {
    let bytes = Zeroizing::new(random::<32>()?);
    let mut key = Zeroizing::new(String::with_capacity(PREFIX.len() + 43));
    key.push_str(PREFIX);
    URL_SAFE_NO_PAD.encode_string(*bytes, &mut key);
    Ok(key)
}

/// What is kept of a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// The hash of a key.
    #[must_use]
    pub fn of(key: &str) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, key.as_bytes()).as_ref());
        Self(hash)
    }

    fn stamp(self) -> u64 {
        let first = self.0.first_chunk().copied().unwrap_or_default();
        u64::from_be_bytes(first)
    }
}

impl FromStr for KeyHash {
    type Err = &'static str;

    /// Says nothing of the text: it may be a key that somebody put in the wrong place.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with(PREFIX) {
            return Err("this is a key; only its hash is kept, as `sluicegate key` prints it");
        }
        let wrong = "must be \"sha256:\" and 64 hexadecimal digits";
        let digits = text.strip_prefix(HASH).ok_or(wrong)?.as_bytes();
        let (pairs, rest) = digits.as_chunks::<2>();
        let mut hash = [0; 32];
        if pairs.len() != hash.len() || !rest.is_empty() {
            return Err(wrong);
        }
        for (byte, pair) in hash.iter_mut().zip(pairs) {
            for digit in pair {
                let value = char::from(*digit).to_digit(16).ok_or(wrong)?;
                *byte = *byte << 4 | u8::try_from(value).unwrap_or_default();
            }
        }
        Ok(Self(hash))
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HASH)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(..)")
    }
}

impl<'de> Deserialize<'de> for KeyHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// One key, as the configuration (`[[auth.keys]]`) and the key file (`[[keys]]`) write it down.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyEntry {
    /// What it is called in logs and metrics. Letters, digits and `.`, `_`, `-`, `@`.
    #[serde(deserialize_with = "name")]
    pub id: Arc<str>,
    /// Its SHA-256.
    pub hash: KeyHash,
    /// Who pays: keys of one owner share the limits of `[limits.organizations]`.
    #[serde(default, deserialize_with = "some_name")]
    pub owner: Option<Arc<str>>,
    /// What it is good for.
    #[serde(default = "usual_scopes", deserialize_with = "scopes")]
    pub scopes: Scopes,
    /// The models that it may use; absent: all of them.
    #[serde(default, deserialize_with = "models")]
    pub models: Option<Models>,
    /// When it ends: a time as RFC 3339 has it, or a date, on which it is over from midnight UTC on.
    #[serde(default, deserialize_with = "expires")]
    pub expires: Option<u64>,
    /// The class of limits.
    #[serde(default, deserialize_with = "some_name")]
    pub class: Option<Arc<str>>,
}

/// What a caller may do where nothing else is written: everything that is not an operator's.
#[must_use]
pub fn usual_scopes() -> Scopes {
    Scopes::GENERATE.with(Scopes::EMBED)
}

/// A point in time as it is written: RFC 3339, or a date, which begins at midnight UTC.
///
/// # Errors
/// It is neither, or before 1970.
pub fn time(text: &str) -> Result<u64, &'static str> {
    let wrong = || "must be a date (2027-01-31) or a time of RFC 3339 (2027-01-31T12:00:00Z)";
    let time: jiff::Timestamp = text
        .parse()
        .or_else(|_| format!("{text}T00:00:00Z").parse())
        .map_err(|_| wrong())?;
    u64::try_from(time.as_second()).map_err(|_| wrong())
}

/// What somebody wrote, without the keys that they put in the wrong place: it ends up in logs.
#[must_use]
pub fn masked(text: &str) -> String {
    let mut parts = text.split(PREFIX);
    let first = parts.next().unwrap_or_default().to_owned();
    let of_key = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    parts.fold(first, |shown, part| {
        shown + PREFIX + ".." + part.trim_start_matches(of_key)
    })
}

/// Whether a text may be an id, an owner or a class.
///
/// # Errors
/// What it may be.
pub fn check_name(text: &str) -> Result<(), String> {
    if text.starts_with(PREFIX) {
        return Err("this is a key; its name stands here, and in every log".to_owned());
    }
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte);
    if text.is_empty() || text.len() > MAX_NAME || !text.bytes().all(good) {
        return Err(format!(
            "must be 1 to {MAX_NAME} letters, digits, '.', '_', '-' or '@'"
        ));
    }
    Ok(())
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
    let text = String::deserialize(deserializer)?;
    check_name(&text).map_err(D::Error::custom)?;
    Ok(text.into())
}

fn some_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Arc<str>>, D::Error> {
    name(deserializer).map(Some)
}

fn scopes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Scopes, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    let mut scopes = Scopes::NONE;
    for name in &names {
        let Some(scope) = Scopes::parse(name) else {
            let known: Vec<_> = Scopes::ALL.names().collect();
            let known = known.join(", ");
            return Err(D::Error::custom(format_args!(
                "there is no scope {name:?}; there are {known}"
            )));
        };
        scopes = scopes.with(scope);
    }
    if scopes == Scopes::NONE {
        return Err(D::Error::custom(
            "a key without a scope is good for nothing",
        ));
    }
    Ok(scopes)
}

type Models = Arc<[Box<str>]>;

fn models<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Models>, D::Error> {
    let names = Vec::<Box<str>>::deserialize(deserializer)?;
    if names.is_empty() {
        return Err(D::Error::custom(
            "a key without a model is good for nothing; leave it out for all models",
        ));
    }
    Ok(Some(names.into()))
}

fn expires<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    struct Visitor;

    impl de::Visitor<'_> for Visitor {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a date or a time in quotes, such as \"2027-01-31\"")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
            time(text).map_err(E::custom)
        }
    }

    deserializer.deserialize_str(Visitor).map(Some)
}

/// Every key that is believed, found by its hash or by its identity.
#[derive(Debug, Default)]
pub struct Keys {
    by_hash: HashMap<KeyHash, Arc<Key>>,
    by_identity: HashMap<Arc<str>, Arc<Key>>,
    /// When those end that do, in order.
    ends: Vec<u64>,
}

/// One of them.
#[derive(Debug)]
pub struct Key {
    hash: KeyHash,
    caller: Caller,
}

/// An entry that does not fit to the others, or to what is configured.
#[derive(Debug, PartialEq, Eq)]
pub struct Misfit {
    /// Which one, in the order in which they were given.
    pub index: usize,
    /// The field at fault.
    pub field: &'static str,
    /// What is wrong.
    pub message: String,
}

impl Keys {
    /// A table of these. `is_class` tells whether there is a class of limits of that name.
    ///
    /// # Errors
    /// Ids and hashes that are there twice, and classes that are not there.
    pub fn new<'a>(
        entries: impl IntoIterator<Item = &'a KeyEntry>,
        is_class: impl Fn(&str) -> bool,
    ) -> Result<Self, Vec<Misfit>> {
        let (mut keys, mut misfits) = (Self::default(), Vec::new());
        for (index, entry) in entries.into_iter().enumerate() {
            let mut misfit = |field, message| {
                misfits.push(Misfit {
                    index,
                    field,
                    message,
                });
            };
            if index == MAX_KEYS {
                misfit("id", format!("there are more than {MAX_KEYS} keys"));
                break;
            }
            if let Some(class) = entry.class.as_deref().filter(|class| !is_class(class)) {
                misfit("class", format!("there is no [limits.classes.{class}]"));
            }
            let key = Arc::new(Key::of(entry));
            keys.ends.extend(entry.expires);
            match keys
                .by_identity
                .entry(format!("{IDENTITY}{}", entry.id).into())
            {
                Slot::Vacant(slot) => drop(slot.insert(key.clone())),
                Slot::Occupied(_) => misfit("id", format!("there are two keys {}", entry.id)),
            }
            match keys.by_hash.entry(entry.hash) {
                Slot::Vacant(slot) => drop(slot.insert(key)),
                Slot::Occupied(slot) => {
                    let other = slot.get().id();
                    misfit("hash", format!("the key {other} has the same"));
                }
            }
        }
        keys.ends.sort_unstable();
        if misfits.is_empty() {
            Ok(keys)
        } else {
            Err(misfits)
        }
    }

    /// The key whose text was shown.
    ///
    /// What is looked up is a hash, of which nobody can choose a part; so it tells nothing how long it takes
    /// to find its neighbours, and the comparison that decides takes the same time for all.
    #[must_use]
    pub fn shown(&self, text: &str) -> Option<&Key> {
        let hash = KeyHash::of(text);
        let key = self.by_hash.get(&hash)?;
        bool::from(key.hash.0.ct_eq(&hash.0)).then_some(key)
    }

    /// The key of an identity.
    #[must_use]
    pub fn of(&self, identity: &str) -> Option<&Key> {
        self.by_identity.get(identity).map(|key| &**key)
    }

    /// Whether an identity is that of a key, of this table or another.
    #[must_use]
    pub fn is_key(identity: &str) -> bool {
        identity.starts_with(IDENTITY)
    }

    /// The identities of this table that the new one does not know, knows by another secret, or lets end
    /// before now.
    #[must_use]
    pub fn gone_in(&self, new: &Self, today: u64) -> HashSet<Arc<str>> {
        let kept = |identity: &str, key: &Key| {
            let other = new.by_identity.get(identity);
            other.is_some_and(|other| other.hash == key.hash && !other.has_expired(today))
        };
        let all = self.by_identity.iter();
        let gone = all.filter(|(identity, key)| !kept(identity, key));
        gone.map(|(identity, _)| identity.clone()).collect()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_hash.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_hash.len()
    }

    /// Whether one of them ends after `from` and not after `to`, in seconds since 1970.
    #[must_use]
    pub fn expire_between(&self, from: u64, to: u64) -> bool {
        let ended = |at| self.ends.partition_point(|end| *end <= at);
        ended(from) < ended(to)
    }
}

impl Key {
    fn of(entry: &KeyEntry) -> Self {
        Self {
            hash: entry.hash,
            caller: Caller {
                address: None,
                identity: Some(format!("{IDENTITY}{}", entry.id).into()),
                organization: entry.owner.clone(),
                class: entry.class.clone(),
                rights: Rights {
                    scopes: entry.scopes,
                    models: entry.models.clone(),
                },
                until: entry.expires,
                stamp: entry.hash.stamp(),
                trace: Trace::none(),
            },
        }
    }

    fn id(&self) -> &str {
        let identity = self.caller.identity.as_deref().unwrap_or_default();
        identity.strip_prefix(IDENTITY).unwrap_or(identity)
    }

    /// Who has it.
    #[must_use]
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Whether its time is over.
    #[must_use]
    pub fn has_expired(&self, today: u64) -> bool {
        self.caller.until.is_some_and(|until| until <= today)
    }
}

/// Reads a key file; the entries with the line on which each begins.
///
/// # Errors
/// What is wrong, with its line, and nothing of what stands there.
pub fn parse_file(text: &str) -> Result<Vec<(usize, KeyEntry)>, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[serde(default)]
        keys: Vec<toml::Spanned<KeyEntry>>,
    }

    let line = |offset: usize| {
        let before = text.get(..offset).unwrap_or(text);
        before.matches('\n').count() + 1
    };
    let file: File = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(1, |span| line(span.start));
        format!("line {at}: {}", masked(error.message()))
    })?;
    let entries = file.keys.into_iter();
    Ok(entries
        .map(|entry| (line(entry.span().start), entry.into_inner()))
        .collect())
}

#[cfg(test)]
mod tests;
