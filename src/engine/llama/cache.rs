//! The engine thread's way to the prefixes in host memory: K/V out of the cells into blocks, and back.
//!
//! Where the layout of a sequence's state can be cut (`prefix/blob.rs`), every block of 64 tokens is
//! kept once, whoever computed it. Models whose state cannot be cut (recurrent ones, sliding windows)
//! keep their whole state at the last grid line of a prompt instead, as one block under that line's
//! name: it serves exactly the prompts that begin with all of it.

use std::sync::Arc;

use super::ffi::{Batch, Context, LlamaError};
use super::prefix::{Block, Format, Key, Lookup, Store, Usage, learn};
use super::sequence::{GRID, count};

/// How a model's state is kept.
#[derive(Debug)]
pub(super) enum Kind {
    /// Block by block.
    Blocks(Format),
    /// Whole, at grid lines.
    Checkpoints,
}

/// What is kept in host memory, and how.
pub(super) struct Cache {
    store: Option<Store>,
    kind: Kind,
    /// A state on its way in or out.
    blob: Vec<u8>,
    blocks: Vec<Arc<Block>>,
}

/// How much of a prompt is in host memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Depth {
    /// Blocks from the first one on.
    pub(super) blocks: u32,
    /// Whether the next one is on its way from the disk.
    pub(super) loading: bool,
}

impl Cache {
    /// Keeps states of `kind` in `store`; keeps nothing without one.
    pub(super) fn new(store: Option<Store>, kind: Kind) -> Self {
        Self {
            store,
            kind,
            blob: Vec::new(),
            blocks: Vec::new(),
        }
    }

    /// Finds out how the state of a context's model can be kept, by computing two tokens with it and
    /// forgetting the second.
    ///
    /// # Errors
    /// The model computes nothing.
    pub(super) fn learn(context: &mut Context) -> Result<Kind, LlamaError> {
        let mut batch = Batch::with_capacity(2);
        batch.push(0, 0, 0, false);
        batch.push(0, 1, 0, true);
        context.decode(&mut batch)?;
        let mut blob = Vec::new();
        let format = context
            .state_read(0, &mut blob)
            .ok()
            .and_then(|()| learn(&blob));
        let cuts = context.truncate(0, 1);
        context.forget(0);
        Ok(match format {
            Some(format) if cuts => Kind::Blocks(format),
            _ => Kind::Checkpoints,
        })
    }

    /// Goes on with another context of the same model: what is kept stays.
    pub(super) fn relearn(&mut self, kind: Kind) {
        self.kind = kind;
    }

    /// Whether anything can be kept.
    pub(super) fn is_on(&self) -> bool {
        self.store.is_some()
    }

    /// Whether a prompt's last grid line must be the end of a call, so that the state can be kept there.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self.kind, Kind::Checkpoints)
    }

    /// Takes in what the disk has given.
    pub(super) fn poll(&mut self) {
        if let Some(store) = &mut self.store {
            store.poll();
        }
    }

    /// What is kept.
    pub(super) fn usage(&self) -> Usage {
        self.store.as_ref().map(Store::usage).unwrap_or_default()
    }

    /// How much of a prompt with these names is in host memory. Begins to fetch what is on disk.
    pub(super) fn depth(&mut self, keys: &[Key]) -> Depth {
        let Some(store) = &mut self.store else {
            return Depth::default();
        };
        match self.kind {
            Kind::Blocks(_) => {
                // All that is on disk is asked for at once, behind the first one too.
                let mut loading = None;
                for (at, key) in keys.iter().enumerate() {
                    match store.get(key) {
                        Lookup::Ready(_) => {}
                        Lookup::Loading => {
                            loading.get_or_insert(at);
                        }
                        Lookup::Absent => {
                            return Depth {
                                blocks: count(loading.unwrap_or(at)),
                                loading: loading.is_some(),
                            };
                        }
                    }
                }
                Depth {
                    blocks: count(loading.unwrap_or(keys.len())),
                    loading: loading.is_some(),
                }
            }
            Kind::Checkpoints => {
                let mut loading = false;
                for (at, key) in keys.iter().enumerate().rev() {
                    match store.get(key) {
                        Lookup::Ready(_) => {
                            return Depth {
                                blocks: count(at) + 1,
                                loading,
                            };
                        }
                        Lookup::Loading => loading = true,
                        Lookup::Absent => {}
                    }
                }
                Depth { blocks: 0, loading }
            }
        }
    }

    /// Puts the blocks of these names into the cells of a sequence, which then holds them and nothing
    /// else. False if they are not all there any more, or llama.cpp did not take them: the sequence
    /// then holds nothing.
    pub(super) fn restore(&mut self, context: &mut Context, sequence: u32, keys: &[Key]) -> bool {
        let restored = self.gather(keys) && {
            let taken = context.state_write(sequence, &self.blob);
            if let Err(error) = &taken {
                tracing::warn!(%error, "a cached prefix was not taken back");
            }
            taken.is_ok()
        };
        if !restored {
            context.forget(sequence);
        }
        restored
    }

    /// Puts the state that the blocks of these names are into the blob; false if they are not all there.
    fn gather(&mut self, keys: &[Key]) -> bool {
        let Some(store) = &mut self.store else {
            return false;
        };
        self.blocks.clear();
        match &self.kind {
            Kind::Blocks(format) => {
                for key in keys {
                    let Lookup::Ready(block) = store.get(key) else {
                        return false;
                    };
                    self.blocks.push(block);
                }
                self.blob.clear();
                if let Err(error) = format.join(&self.blocks, &mut self.blob) {
                    tracing::warn!(%error, "a cached prefix could not be put together");
                    return false;
                }
            }
            Kind::Checkpoints => {
                let Some(Lookup::Ready(block)) = keys.last().map(|key| store.get(key)) else {
                    return false;
                };
                self.blob.clear();
                self.blob.extend_from_slice(block.as_bytes());
            }
        }
        self.blocks.clear();
        true
    }

    /// How many of a sequence's first blocks need not be saved, because they are kept already.
    pub(super) fn saved(&self, keys: &[Key]) -> u32 {
        let Some(store) = &self.store else {
            return count(keys.len());
        };
        let saved = match self.kind {
            Kind::Blocks(_) => keys.iter().take_while(|key| store.holds(key)).count(),
            Kind::Checkpoints => {
                (keys.iter().rposition(|key| store.holds(key))).map_or(0, |at| at + 1)
            }
        };
        count(saved)
    }

    /// Keeps the blocks of these names that a sequence has in its cells. Blocks before `from` are kept
    /// already; if `is_last`, the sequence ends here, and what is not saved may be forgotten. Where
    /// states are kept whole, `keys` must be all that is computed, to the token.
    pub(super) fn save(
        &mut self,
        context: &mut Context,
        sequence: u32,
        keys: &[Key],
        from: u32,
        is_last: bool,
    ) {
        let Some(store) = &mut self.store else {
            return;
        };
        let to = count(keys.len());
        if from >= to {
            return;
        }
        // What is not there need not be copied.
        let first = if is_last && context.forget_before(sequence, from * GRID) {
            from * GRID
        } else {
            0
        };
        self.blob.clear();
        if let Err(error) = context.state_read(sequence, &mut self.blob) {
            tracing::warn!(%error, "a prefix could not be read");
            return;
        }
        match &self.kind {
            Kind::Blocks(format) => match format.cut(&self.blob, first, from..to) {
                Ok(blocks) => {
                    for (block, at) in blocks.into_iter().zip(from as usize..) {
                        let parent = at.checked_sub(1).and_then(|before| keys.get(before));
                        if let Some(key) = keys.get(at) {
                            store.put(*key, parent.copied(), block);
                        }
                    }
                }
                Err(error) => tracing::warn!(%error, "a prefix could not be cut into blocks"),
            },
            Kind::Checkpoints => {
                if let Some(key) = keys.last() {
                    store.put(*key, None, Block::from_bytes(self.blob.clone()));
                }
            }
        }
    }

    /// Bytes that one token takes in host memory, as far as known.
    pub(super) fn bytes_per_token(&self) -> u64 {
        match &self.kind {
            Kind::Blocks(format) => (format.bytes_per_block() as u64).div_ceil(u64::from(GRID)),
            Kind::Checkpoints => 0,
        }
    }
}
