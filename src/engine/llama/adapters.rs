//! The `LoRA` adapters of one model: which are loaded, and which sets of them requests compute with.
//!
//! A context computes a call with one set of adapters, so sequences are grouped by theirs. Equal sets
//! are one [`AdapterSet`] with one group number as long as anybody holds it. A sequence holds its set,
//! and the context the set of its last call: an adapter that is removed here is freed when the last of
//! these lets go, and requests that began with it end with it.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use llama_cpp_2::model::LlamaModel;

use super::ffi::Adapter;
use super::gguf::{AdapterSummary, Base, GgufError, check_adapter};
use super::weights::{anonymous_file, descriptor_path};
use crate::engine::{AdapterCard, config};
use crate::generation::ranges::MAX_ADAPTERS;
use crate::generation::{AdapterRef, Failure, Kind, UseAdapter, clock};

/// Adapters of one model. Planning a graph costs memory for each, used or not.
const MOST_LOADED: usize = 128;

/// Sets in use at once. Each is a group of sequences that no call computes together with another.
const MOST_SETS: usize = 64;

/// Why an adapter could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// The file could not be opened or read.
    #[error("cannot read {path}")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The file is not an adapter for this model.
    #[error("{path} is no adapter for this model: {source}")]
    Unfit {
        /// Which file.
        path: String,
        /// What is wrong with it.
        source: GgufError,
    },
    /// llama.cpp refused it.
    #[error("{path}: {reason}")]
    Llama {
        /// Which file.
        path: String,
        /// Its own words.
        reason: String,
    },
    /// Names are told apart.
    #[error("there is an adapter named {0} already")]
    Taken(String),
    /// No more are loaded.
    #[error("a model takes {MOST_LOADED} adapters at most")]
    TooMany,
}

impl From<AdapterError> for Failure {
    /// For the operator, who has named the file.
    fn from(error: AdapterError) -> Self {
        let code = match &error {
            AdapterError::Taken(_) => "adapter_exists",
            AdapterError::TooMany => "too_many_adapters",
            AdapterError::Read { .. } | AdapterError::Unfit { .. } | AdapterError::Llama { .. } => {
                "adapter_unusable"
            }
        };
        let message = format!("{}.", crate::generation::chain(&error));
        Self::new(Kind::Invalid, message).with_code(code)
    }
}

/// Adapters with their scales, as one or more sequences compute with them.
pub(super) struct AdapterSet {
    group: u16,
    key: [u8; 32],
    /// In the order of their names; no scale is zero.
    items: Box<[(Arc<Adapter>, f32)]>,
}

impl AdapterSet {
    /// The number of the set that `set` is; 0 is the bare model.
    pub(super) fn group_of(set: Option<&Arc<Self>>) -> u16 {
        set.map_or(0, |set| set.group)
    }

    /// What a cache of keys and values must tell apart: equal exactly where the contents of the files
    /// and the scales are. All zeros is the bare model.
    pub(super) fn cache_key_of(set: Option<&Arc<Self>>) -> [u8; 32] {
        set.map_or([0; 32], |set| set.key)
    }

    /// The adapters with their scales; never none.
    pub(super) fn items(&self) -> &[(Arc<Adapter>, f32)] {
        &self.items
    }
}

/// The adapters of one model.
pub(super) struct Adapters {
    model: Arc<LlamaModel>,
    base: Base,
    shelf: Mutex<Shelf>,
}

#[derive(Default)]
struct Shelf {
    loaded: Vec<Loaded>,
    next_id: u32,
    /// The sets in use; the group of each is its place here, counted from 1.
    sets: Vec<Weak<AdapterSet>>,
}

struct Loaded {
    card: AdapterCard,
    hash: blake3::Hash,
    weights: Arc<Adapter>,
}

impl Adapters {
    pub(super) fn new(model: Arc<LlamaModel>, base: Base) -> Self {
        Self {
            model,
            base,
            shelf: Mutex::default(),
        }
    }

    /// Loads an adapter. Blocks for as long as reading it takes; streams go on meanwhile.
    pub(super) fn add(&self, adapter: &config::Adapter) -> Result<AdapterCard, AdapterError> {
        let name = adapter.name.as_str();
        self.known().has_room_for(name)?;
        let path = &adapter.path;
        let (file, summary, hash) = read(path, &self.base)?;
        let weights = Adapter::load(&self.model, &descriptor_path(&file)).map_err(|error| {
            AdapterError::Llama {
                path: path.display().to_string(),
                reason: error.to_string(),
            }
        })?;
        if summary.unused > 0 {
            tracing::warn!(
                adapter = name,
                tensors = summary.unused,
                "the adapter has trained norms, which llama.cpp does not apply"
            );
        }
        let mut known = self.known();
        // Somebody may have been faster.
        known.has_room_for(name)?;
        let card = AdapterCard {
            id: known.next_id,
            name: name.into(),
            path: path.clone(),
            scale: adapter.scale,
            created: clock::unix_seconds(),
            rank: summary.rank,
            matrices: summary.pairs,
            bytes: summary.length,
            hash: hash.to_hex().as_str().into(),
        };
        known.next_id += 1;
        known.loaded.push(Loaded {
            card: card.clone(),
            hash,
            weights: Arc::new(weights),
        });
        Ok(card)
    }

    /// Takes an adapter from the requests to come; those that began with it end with it.
    pub(super) fn remove(&self, name: &str) -> Result<AdapterCard, Failure> {
        let mut known = self.known();
        let Some(at) = known.position(name) else {
            return Err(known.unknown(&format!("{name:?}")));
        };
        let loaded = known.loaded.remove(at);
        // Freeing it, if this was the last to hold it, is nothing to do under the lock.
        drop(known);
        Ok(loaded.card)
    }

    /// What is loaded, oldest first.
    pub(super) fn cards(&self) -> Vec<AdapterCard> {
        let known = self.known();
        known.loaded.iter().map(|one| one.card.clone()).collect()
    }

    /// The set that a request asks for: the adapter after the `:` of its model's name, if there is
    /// one, and those of `wanted`, whose scales stand. `None` is the bare model.
    pub(super) fn choose(
        &self,
        model: &str,
        wanted: &[UseAdapter],
    ) -> Result<Option<Arc<AdapterSet>>, Failure> {
        let named = model.split_once(':').map(|(_, name)| name);
        if named.is_none() && wanted.is_empty() {
            return Ok(None);
        }
        let mut known = self.known();
        let mut chosen = Vec::with_capacity(wanted.len() + 1);
        for one in wanted {
            let found = match &one.adapter {
                AdapterRef::Name(name) => known.position(name).ok_or_else(|| format!("{name:?}")),
                AdapterRef::Id(id) => {
                    let is = |loaded: &Loaded| loaded.card.id == *id;
                    let place = known.loaded.iter().position(is);
                    place.ok_or_else(|| format!("number {id}"))
                }
            };
            let at = found.map_err(|asked| known.unknown(&asked).with_param("lora"))?;
            if chosen.iter().any(|&(other, _)| other == at) {
                let name = &known.loaded[at].card.name;
                let message = format!("lora has the adapter {name:?} twice.");
                return Err(Failure::invalid("lora", message));
            }
            chosen.push((at, one.scale.unwrap_or(known.loaded[at].card.scale)));
        }
        if let Some(name) = named {
            let at = known.position(name).ok_or_else(|| {
                let failure = known.unknown(&format!("{name:?}"));
                failure.with_param("model").with_code("model_not_found")
            })?;
            if !chosen.iter().any(|&(other, _)| other == at) {
                chosen.push((at, known.loaded[at].card.scale));
            }
        }
        chosen.retain(|&(_, scale)| scale != 0.0);
        if chosen.len() > MAX_ADAPTERS {
            let message = format!("A request takes {MAX_ADAPTERS} adapters at most.");
            return Err(Failure::invalid("lora", message));
        }
        known.set(chosen)
    }

    fn known(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn position(&self, name: &str) -> Option<usize> {
        (self.loaded.iter()).position(|loaded| *loaded.card.name == *name)
    }

    fn has_room_for(&self, name: &str) -> Result<(), AdapterError> {
        if self.position(name).is_some() {
            return Err(AdapterError::Taken(name.into()));
        }
        if self.loaded.len() >= MOST_LOADED {
            return Err(AdapterError::TooMany);
        }
        Ok(())
    }

    /// The set of these adapters, by their places: the one in use, if there is one.
    fn set(&mut self, mut chosen: Vec<(usize, f32)>) -> Result<Option<Arc<AdapterSet>>, Failure> {
        if chosen.is_empty() {
            return Ok(None);
        }
        chosen.sort_by(|(a, _), (b, _)| {
            let name = |&at: &usize| &self.loaded[at].card.name;
            name(a).cmp(name(b))
        });
        let mut key = blake3::Hasher::new();
        for &(at, scale) in &chosen {
            key.update(self.loaded[at].hash.as_bytes());
            key.update(&scale.to_le_bytes());
        }
        let key = *key.finalize().as_bytes();
        let mut free = None;
        for (place, set) in self.sets.iter().enumerate() {
            match set.upgrade() {
                // Under whatever names: the same contents with the same scales compute the same.
                Some(set) if set.key == key => return Ok(Some(set)),
                Some(_) => {}
                None => free = free.or(Some(place)),
            }
        }
        let place = free.unwrap_or(self.sets.len());
        if place >= MOST_SETS {
            return Err(Failure::new(
                Kind::Overloaded,
                "Too many different sets of adapters are in use.",
            )
            .with_code("too_many_adapter_sets")
            .with_retry_after(super::RETRY_AFTER));
        }
        let items = chosen.iter().map(|&(at, scale)| {
            let weights = self.loaded[at].weights.clone();
            (weights, scale)
        });
        let set = Arc::new(AdapterSet {
            group: u16::try_from(place + 1).unwrap_or(u16::MAX),
            key,
            items: items.collect(),
        });
        match self.sets.get_mut(place) {
            Some(slot) => *slot = Arc::downgrade(&set),
            None => self.sets.push(Arc::downgrade(&set)),
        }
        Ok(Some(set))
    }

    /// `asked` is a name in quotes, or a number.
    fn unknown(&self, asked: &str) -> Failure {
        let names: Vec<_> = self.loaded.iter().map(|one| &*one.card.name).collect();
        let there_is = match &names[..] {
            [] => "it has none".to_owned(),
            names => format!("there is {}", names.join(", ")),
        };
        let asked: String = asked.chars().take(100).collect();
        Failure::new(
            Kind::NotFound,
            format!("The model has no adapter {asked}; {there_is}."),
        )
        .with_code("adapter_not_found")
    }
}

/// Checks a file without loading it.
pub(super) fn check(path: &Path, base: &Base) -> Result<(), AdapterError> {
    open(path, base).map(drop)
}

/// An adapter that nobody can change any more: checked, and hashed.
fn read(path: &Path, base: &Base) -> Result<(File, AdapterSummary, blake3::Hash), AdapterError> {
    let (mut file, summary) = open(path, base)?;
    let unreadable = |source| unreadable(path, source);
    file.rewind().map_err(unreadable)?;
    // A copy: what is checked is then what is hashed and loaded, whoever writes to the file.
    let mut copy = anonymous_file(file.take(summary.length)).map_err(unreadable)?;
    let summary = check_adapter(&copy, summary.length, base).map_err(|s| unfit(path, s))?;
    copy.rewind().map_err(unreadable)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(&copy).map_err(unreadable)?;
    copy.rewind().map_err(unreadable)?;
    Ok((copy, summary, hasher.finalize()))
}

fn open(path: &Path, base: &Base) -> Result<(File, AdapterSummary), AdapterError> {
    let unreadable = |source| unreadable(path, source);
    // Before it is opened: a pipe would be waited for.
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(unreadable(io::Error::other("it is not a file")));
    }
    let file = File::open(path).map_err(unreadable)?;
    let summary = check_adapter(&file, metadata.len(), base).map_err(|s| unfit(path, s))?;
    Ok((file, summary))
}

fn unreadable(path: &Path, source: io::Error) -> AdapterError {
    AdapterError::Read {
        path: path.display().to_string(),
        source,
    }
}

fn unfit(path: &Path, source: GgufError) -> AdapterError {
    AdapterError::Unfit {
        path: path.display().to_string(),
        source,
    }
}

#[cfg(test)]
mod tests;
