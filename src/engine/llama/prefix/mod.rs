//! Prefixes that were computed once, kept outside the KV cells to be used again.
//!
//! The K/V of a prefix is cut into blocks of 64 tokens (`blob.rs`), named by a hash chain over everything
//! that they depend on (`key.rs`) and kept by recency within a number of bytes (`store.rs`, over the
//! trees of `forest.rs`), in memory and, where configured, on disk (`disk.rs`).

mod blob;
mod disk;
mod forest;
mod key;
mod store;

pub(super) use self::blob::{Block, Format, learn};
pub(super) use self::disk::DiskLimits;
pub(super) use self::key::{Key, Root, chain};
pub(super) use self::store::{Limits, Lookup, Store, Usage};

#[cfg(test)]
mod tests;
