//! Blocks on disk: what is there, and the thread that reads and writes it.
//!
//! One file per block, in a folder of the model's own, named after the block and the one before it, so
//! that a listing is all a start needs:
//!
//! ```text
//! <directory>/<model>/<key>-<parent or "root">.kv
//! "sluicegate kv 1\n" | key | parent, or the model's root | rows | BLAKE3 of all of that
//! ```
//!
//! The owner's thread keeps the index and decides; the thread here only does as it is told, reads before
//! writes. Files appear by rename and are never changed, so two processes may share a folder: each finds
//! what the other has removed missing, and computes it again. Nothing is synced: what a power cut leaves
//! half written fails its hash.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use super::blob::Block;
use super::forest::{Evicted, Forest};
use super::key::{Key, Root};
use super::store::Usage;

/// Blocks that may wait to be written. They are memory beyond the store's limit; what a disk cannot keep
/// up with for so many is better computed again.
const WRITES: usize = 32;

/// Blocks that may wait to be read: a prompt of 64 Ki tokens. Their room is within the store's limit.
const READS: usize = 1024;

/// How long nothing is written after a write failed. A full disk stays full for a while.
const REST: Duration = Duration::from_mins(1);

const MAGIC: [u8; 16] = *b"sluicegate kv 1\n";
const HEADER: usize = MAGIC.len() + 32 + 32;
const TRAILER: usize = 32;

/// Where blocks may be kept on disk, and how many.
#[derive(Clone, Debug)]
pub(crate) struct DiskLimits {
    /// Its folders are one per model.
    pub(crate) directory: PathBuf,
    /// Most bytes of this model's files.
    pub(crate) bytes: u64,
    /// Stands for the model and everything else that the rows depend on, but callers.
    pub(crate) model: Root,
    /// Size of every block.
    pub(crate) block: usize,
}

/// A read that has ended.
pub(super) struct Finished {
    pub(super) key: Key,
    /// `None` if it was not there or not what it should be.
    pub(super) block: Option<Block>,
}

/// The owner's side.
pub(super) struct Disk {
    index: Forest<State>,
    block: usize,
    shared: Arc<Shared>,
    reading: usize,
    /// Nothing is written before this time.
    rests_until: Option<Instant>,
    done: Vec<Done>,
    join: Option<JoinHandle<()>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Written,
    Waiting,
    /// Its file is gone; those of blocks behind it are still there.
    Lost,
}

struct Shared {
    work: Mutex<Work>,
    /// Work has come, or the owner is leaving.
    changed: Condvar,
}

#[derive(Default)]
struct Work {
    reads: VecDeque<Name>,
    writes: VecDeque<Write>,
    done: Vec<Done>,
    is_closed: bool,
}

/// What a block's file is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) key: Key,
    pub(super) parent: Option<Key>,
}

/// Files to remove, and then one to write.
struct Write {
    removed: Vec<Name>,
    written: Option<(Name, Arc<Block>)>,
}

enum Done {
    Read(Key, Result<Block, Loss>),
    Written(Key, io::Result<()>),
}

/// Why a block could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// There is no such file, or it cannot be read.
    Unreadable,
    /// It was not what it should be, and has been removed.
    Damaged,
}

impl Disk {
    /// Takes stock of the model's folder and starts the thread. `wake` is called there after every read.
    pub(super) fn open(
        limits: &DiskLimits,
        wake: impl Fn() + Send + 'static,
        usage: &mut Usage,
    ) -> io::Result<Self> {
        let folder = Folder {
            path: limits.directory.join(limits.model.key().to_string()),
            root: *limits.model.key(),
            block: limits.block,
        };
        let index = folder.take_stock(limits.bytes, usage)?;
        let shared = Arc::new(Shared {
            work: Mutex::default(),
            changed: Condvar::new(),
        });
        let theirs = shared.clone();
        let join = std::thread::Builder::new()
            .name("prefix-disk".into())
            .spawn(move || serve(&theirs, &folder, &wake))?;
        Ok(Self {
            index,
            block: limits.block,
            shared,
            reading: 0,
            rests_until: None,
            done: Vec::new(),
            join: Some(join),
        })
    }

    pub(super) fn block_bytes(&self) -> u64 {
        self.block as u64
    }

    /// Blocks and bytes.
    pub(super) fn size(&self) -> (usize, u64) {
        (self.index.len(), self.index.bytes())
    }

    /// A block that can be read now.
    pub(super) fn find(&mut self, key: &Key) -> Option<Name> {
        let is_there = self.index.touch(key) == Some(&State::Written);
        let parent = self.index.parent(key);
        (is_there && self.reading < READS).then_some(Name { key: *key, parent })
    }

    /// Begins to read a block that was found.
    pub(super) fn read(&mut self, name: Name) {
        self.reading += 1;
        self.shared.lock().reads.push_back(name);
        self.shared.changed.notify_one();
    }

    /// Begins to write a block, unless it is there (then it is the one used last), its parent is not, or
    /// the disk is behind.
    pub(super) fn write(
        &mut self,
        key: Key,
        parent: Option<Key>,
        block: &Arc<Block>,
        usage: &mut Usage,
    ) {
        let known = self.index.touch(&key);
        if matches!(known, Some(State::Written | State::Waiting)) || block.len() != self.block {
            return;
        }
        let mut work = self.shared.lock();
        let now = Instant::now();
        if work.writes.len() >= WRITES || self.rests_until.is_some_and(|until| now < until) {
            usage.disk_dropped += 1;
            return;
        }
        self.rests_until = None;
        let mut removed = Vec::new();
        let bytes = file_bytes(self.block);
        // Held until it is written: its file must not be removed before it appears.
        let taken = self
            .index
            .put(key, parent, bytes, State::Waiting, true, |node| {
                evict(&node, &mut removed, usage);
            });
        let written = taken.is_ok().then(|| (Name { key, parent }, block.clone()));
        if written.is_some() || !removed.is_empty() {
            work.writes.push_back(Write { removed, written });
            drop(work);
            self.shared.changed.notify_one();
        }
    }

    /// Takes what has ended; the reads among it go to `finished`.
    pub(super) fn take(&mut self, finished: &mut Vec<Finished>, usage: &mut Usage) {
        std::mem::swap(&mut self.shared.lock().done, &mut self.done);
        for done in self.done.drain(..) {
            match done {
                Done::Read(key, result) => {
                    self.reading -= 1;
                    match result {
                        Ok(_) => usage.disk_reads += 1,
                        Err(loss) => {
                            usage.disk_damaged += u64::from(loss == Loss::Damaged);
                            if self.index.value(&key) == Some(&State::Written) {
                                self.index.empty(&key, State::Lost);
                            }
                        }
                    }
                    let block = result.ok();
                    finished.push(Finished { key, block });
                }
                Done::Written(key, Ok(())) => {
                    usage.disk_writes += 1;
                    self.index.settle(&key, State::Written);
                }
                Done::Written(key, Err(error)) => {
                    usage.disk_failed += 1;
                    if self.rests_until.is_none() {
                        tracing::warn!(%error, "a block of a prefix could not be written to disk");
                    }
                    self.rests_until = Instant::now().checked_add(REST);
                    self.index.empty(&key, State::Lost);
                }
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.changed.notify_one();
        if let Some(join) = self.join.take() {
            // A panic over there has been reported by its thread.
            let _ = join.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn evict(node: &Evicted<State>, removed: &mut Vec<Name>, usage: &mut Usage) {
    if node.value == State::Written {
        usage.disk_evictions += 1;
        removed.push(Name {
            key: node.key,
            parent: node.parent,
        });
    }
}

/// The thread: reads first; when the owner has left, the writes that still wait, and no more reads.
fn serve(shared: &Shared, folder: &Folder, wake: &dyn Fn()) {
    let mut work = shared.lock();
    loop {
        if work.is_closed {
            work.reads.clear();
        }
        if let Some(name) = work.reads.pop_front() {
            drop(work);
            let read = folder.read(&name);
            work = shared.lock();
            work.done.push(Done::Read(name.key, read));
            drop(work);
            wake();
            work = shared.lock();
        } else if let Some(write) = work.writes.pop_front() {
            drop(work);
            for name in &write.removed {
                folder.remove(name);
            }
            let written = write
                .written
                .map(|(name, block)| Done::Written(name.key, folder.write(&name, &block)));
            work = shared.lock();
            work.done.extend(written);
        } else if work.is_closed {
            return;
        } else {
            let changed = shared.changed.wait(work);
            work = changed.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn file_bytes(block: usize) -> u64 {
    (HEADER + block + TRAILER) as u64
}

/// A model's folder.
struct Folder {
    path: PathBuf,
    /// Stands in a file where the key of a parent would, if there is none.
    root: Key,
    block: usize,
}

impl Folder {
    fn file(&self, name: &Name) -> PathBuf {
        self.path.join(name.to_string())
    }

    fn remove(&self, name: &Name) {
        // What another process has removed already is as good.
        let _ = fs::remove_file(self.file(name));
    }

    fn header(&self, name: &Name) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        let (magic, keys) = header.split_at_mut(MAGIC.len());
        magic.copy_from_slice(&MAGIC);
        keys[..32].copy_from_slice(name.key.as_bytes());
        keys[32..].copy_from_slice(name.parent.as_ref().unwrap_or(&self.root).as_bytes());
        header
    }

    fn write(&self, name: &Name, block: &Block) -> io::Result<()> {
        let temporary = self
            .path
            .join(format!("{}{TEMPORARY}", uuid::Uuid::new_v4().simple()));
        let write = || {
            let header = self.header(name);
            let mut hasher = blake3::Hasher::new();
            hasher.update(&header).update(block.as_bytes());
            let mut file = File::create_new(&temporary)?;
            file.write_all(&header)?;
            file.write_all(block.as_bytes())?;
            file.write_all(hasher.finalize().as_bytes())?;
            fs::rename(&temporary, self.file(name))
        };
        write().inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })
    }

    fn read(&self, name: &Name) -> Result<Block, Loss> {
        let path = self.file(name);
        let mut file = File::open(&path).map_err(|_| Loss::Unreadable)?;
        match self.contents(name, &mut file) {
            Ok(Some(block)) => {
                // Its recency, for the next start.
                let _ = file.set_modified(SystemTime::now());
                Ok(block)
            }
            Ok(None) => {
                self.remove(name);
                Err(Loss::Damaged)
            }
            Err(_) => Err(Loss::Unreadable),
        }
    }

    /// The block in a file; `None` if it is not what it should be.
    fn contents(&self, name: &Name, file: &mut File) -> io::Result<Option<Block>> {
        if file.metadata()?.len() != file_bytes(self.block) {
            return Ok(None);
        }
        let mut header = [0; HEADER];
        file.read_exact(&mut header)?;
        let mut rows = Vec::with_capacity(self.block);
        file.take(self.block as u64).read_to_end(&mut rows)?;
        let mut hash = [0; TRAILER];
        file.read_exact(&mut hash)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&header).update(&rows);
        let is_whole = header == self.header(name) && hasher.finalize() == hash;
        Ok(is_whole.then(|| Block::from_bytes(rows)))
    }

    /// Makes the folder if there is none, and lists it. Files of ours that cannot be used are removed, as
    /// are those that the limit leaves no room for; anybody else's are left alone.
    fn take_stock(&self, limit: u64, usage: &mut Usage) -> io::Result<Forest<State>> {
        fs::create_dir_all(&self.path)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let (file, metadata) = (entry.file_name(), entry.metadata()?);
            let Some(file) = file.to_str().filter(|_| metadata.is_file()) else {
                continue;
            };
            match Name::parse(file) {
                Some(name) if metadata.len() == file_bytes(self.block) => {
                    found.push((metadata.modified()?, name));
                }
                None if !is_ours(file) => {}
                _ => {
                    usage.disk_damaged += u64::from(!file.ends_with(TEMPORARY));
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
        let mut index = Forest::new(limit);
        for orphan in plant(&mut index, found, file_bytes(self.block)) {
            usage.disk_damaged += 1;
            self.remove(&orphan);
        }
        let mut removed = Vec::new();
        index.trim(|node| evict(&node, &mut removed, usage));
        for name in &removed {
            self.remove(name);
        }
        Ok(index)
    }
}

/// Plants all blocks whose parents are there, used in the order of their times; returns the others.
fn plant(index: &mut Forest<State>, mut found: Vec<(SystemTime, Name)>, bytes: u64) -> Vec<Name> {
    found.sort_by_key(|&(time, _)| time);
    let mut below = std::collections::HashMap::<_, Vec<_>>::new();
    for (used, (_, name)) in (1..).zip(found) {
        below.entry(name.parent).or_default().push((used, name));
    }
    let mut orphans = Vec::new();
    let mut next = below.remove(&None).unwrap_or_default();
    while let Some((used, name)) = next.pop() {
        let known = index.value(&name.key).is_some();
        let state = State::Written;
        if known
            || index
                .plant(name.key, name.parent, bytes, state, used)
                .is_err()
        {
            orphans.push(name);
            continue;
        }
        next.extend(below.remove(&Some(name.key)).unwrap_or_default());
    }
    orphans.extend(below.into_values().flatten().map(|(_, name)| name));
    orphans
}

const SUFFIX: &str = ".kv";
const TEMPORARY: &str = ".kv.tmp";

fn is_ours(file: &str) -> bool {
    file.ends_with(SUFFIX) || file.ends_with(TEMPORARY)
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.parent {
            Some(parent) => write!(f, "{}-{parent}{SUFFIX}", self.key),
            None => write!(f, "{}-root{SUFFIX}", self.key),
        }
    }
}

impl Name {
    fn parse(file: &str) -> Option<Self> {
        let (key, parent) = file.strip_suffix(SUFFIX)?.split_once('-')?;
        let name = Self {
            key: Key::parse(key)?,
            parent: match parent {
                "root" => None,
                parent => Some(Key::parse(parent)?),
            },
        };
        Some(name)
    }
}
