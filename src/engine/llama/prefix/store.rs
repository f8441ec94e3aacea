//! The blocks that are kept: in memory up to so many bytes, and on disk where that is configured.
//!
//! The engine thread asks for the blocks of a prompt in order, from the first on, until one is not there.
//! It never waits: what lies on disk only is read by another thread (`disk.rs`), in room that was made
//! for it when it was asked for, and found when somebody asks again.

use std::io;
use std::sync::Arc;

use super::blob::Block;
use super::disk::{Disk, DiskLimits, Finished};
use super::forest::Forest;
use super::key::Key;

/// How much may be kept.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Bytes of blocks in memory.
    pub(crate) memory: u64,
    /// Blocks are also kept on disk.
    pub(crate) disk: Option<DiskLimits>,
}

/// What became of a question for a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// Here it is.
    Ready(Arc<Block>),
    /// It is being read from disk; the store's `wake` is called when that is done.
    Loading,
    /// It must be computed.
    Absent,
}

/// What is kept, and what has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Blocks in memory, with those that are being read.
    pub(crate) blocks: usize,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Blocks on disk, with those on their way there.
    pub(crate) disk_blocks: usize,
    /// Their bytes.
    pub(crate) disk_bytes: u64,
    /// Questions for a block that found it in memory.
    pub(crate) hits: u64,
    /// Those that found it nowhere.
    pub(crate) misses: u64,
    /// Blocks that left memory to make room.
    pub(crate) evictions: u64,
    /// Blocks that were not taken: there was no room beside their own prefix, or that had gone.
    pub(crate) refused: u64,
    /// Blocks read from disk.
    pub(crate) disk_reads: u64,
    /// Blocks written to disk.
    pub(crate) disk_writes: u64,
    /// Blocks that left the disk to make room.
    pub(crate) disk_evictions: u64,
    /// Blocks not written because the disk was behind, or had failed a short while ago.
    pub(crate) disk_dropped: u64,
    /// Writes that failed, on a full disk for example.
    pub(crate) disk_failed: u64,
    /// Files removed because they were not what they should be.
    pub(crate) disk_damaged: u64,
}

enum Kept {
    Ready(Arc<Block>),
    Loading,
    /// It could not be read; blocks behind it are still here.
    Lost,
}

/// The blocks of one model.
pub(crate) struct Store {
    memory: Forest<Kept>,
    disk: Option<Disk>,
    finished: Vec<Finished>,
    usage: Usage,
}

impl Store {
    /// An empty memory over what an earlier process left on disk. `wake` is called, on another thread,
    /// after every read: [`Store::poll`] has something to take.
    ///
    /// # Errors
    /// The directory could not be made or read, or the thread not started.
    pub(crate) fn new(limits: &Limits, wake: impl Fn() + Send + 'static) -> io::Result<Self> {
        let mut usage = Usage::default();
        let disk = limits
            .disk
            .as_ref()
            .map(|disk| Disk::open(disk, wake, &mut usage));
        Ok(Self {
            memory: Forest::new(limits.memory),
            disk: disk.transpose()?,
            finished: Vec::new(),
            usage,
        })
    }

    /// Looks for a block, as the one used last; begins to read it if it lies on disk behind a prefix
    /// that is here or on its way.
    pub(crate) fn get(&mut self, key: &Key) -> Lookup {
        match self.memory.touch(key) {
            Some(Kept::Ready(block)) => {
                let block = block.clone();
                self.usage.hits += 1;
                self.write(key, &block);
                return Lookup::Ready(block);
            }
            Some(Kept::Loading) => return Lookup::Loading,
            Some(Kept::Lost) | None => {}
        }
        if self.begin_to_read(key) {
            Lookup::Loading
        } else {
            self.usage.misses += 1;
            Lookup::Absent
        }
    }

    /// Sees to it that a block in memory is on disk too: it may have been dropped there before.
    fn write(&mut self, key: &Key, block: &Arc<Block>) {
        if let Some(disk) = &mut self.disk {
            let parent = self.memory.parent(key);
            disk.write(*key, parent, block, &mut self.usage);
        }
    }

    fn begin_to_read(&mut self, key: &Key) -> bool {
        let Some(disk) = &mut self.disk else {
            return false;
        };
        let Some(name) = disk.find(key) else {
            return false;
        };
        let usage = &mut self.usage;
        // Held until it has been read: the room is made now, and its prefix stays.
        let bytes = disk.block_bytes();
        let taken = self
            .memory
            .put(name.key, name.parent, bytes, Kept::Loading, true, |_| {
                usage.evictions += 1;
            });
        match taken {
            Ok(()) => disk.read(name),
            Err(_) => usage.refused += 1,
        }
        taken.is_ok()
    }

    /// Whether a block is in memory. Its recency stays.
    pub(crate) fn holds(&self, key: &Key) -> bool {
        matches!(self.memory.value(key), Some(Kept::Ready(_)))
    }

    /// Keeps a block, unless its parent is not kept or nothing may go to make room for it.
    pub(crate) fn put(&mut self, key: Key, parent: Option<Key>, block: Block) {
        if let Some(Kept::Ready(known)) = self.memory.touch(&key) {
            let known = known.clone();
            self.write(&key, &known);
            return;
        }
        let block = Arc::new(block);
        let bytes = block.len() as u64;
        let kept = Kept::Ready(block.clone());
        let usage = &mut self.usage;
        let taken = self.memory.put(key, parent, bytes, kept, false, |_| {
            usage.evictions += 1;
        });
        if taken.is_err() {
            usage.refused += 1;
        }
        if let Some(disk) = &mut self.disk {
            disk.write(key, parent, &block, usage);
        }
    }

    /// Takes what the disk thread has finished.
    pub(crate) fn poll(&mut self) {
        let Some(disk) = &mut self.disk else { return };
        disk.take(&mut self.finished, &mut self.usage);
        for finished in self.finished.drain(..) {
            // It may have been computed in the meantime.
            if !matches!(self.memory.value(&finished.key), Some(Kept::Loading)) {
                continue;
            }
            match finished.block {
                Some(block) => {
                    let block = Kept::Ready(Arc::new(block));
                    self.memory.settle(&finished.key, block);
                }
                None => self.memory.empty(&finished.key, Kept::Lost),
            }
        }
    }

    /// What is kept, and what has happened so far.
    pub(crate) fn usage(&self) -> Usage {
        let (disk_blocks, disk_bytes) = self.disk.as_ref().map_or((0, 0), Disk::size);
        Usage {
            blocks: self.memory.len(),
            bytes: self.memory.bytes(),
            disk_blocks,
            disk_bytes,
            ..self.usage
        }
    }
}
