//! Blocks through a real context, and what the other tests share.

mod blob;
mod forest;
mod store;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::blob::BlobError;
use super::key::BLOCK;
use super::*;
use crate::engine::config::{FlashAttention, KvLayout, Process, Settings};
use crate::engine::llama::ffi::{Batch, Context, MEMORY_IDS};
use crate::engine::llama::{DEMO, Weights, demo_settings, load};

/// A chain of names that begins with `tenant`.
fn names(tenant: &str, blocks: usize) -> Vec<Key> {
    let mut keys = Vec::new();
    let root = Root::new(&[tenant.as_bytes()]);
    chain(&root, &vec![1; blocks * BLOCK], &mut keys);
    keys
}

fn context(change: impl FnOnce(&mut Settings)) -> Context {
    let mut settings = demo_settings();
    settings.context = std::num::NonZeroU32::new(512);
    settings.parallel = 3;
    settings.threads = std::num::NonZeroU16::new(1);
    change(&mut settings);
    let weights = Weights::Embedded(DEMO);
    let (model, _, _) =
        load::map(&weights, &settings, &Process::default(), &Arc::default()).expect("it loads");
    let params = crate::engine::llama::context::context_params(&settings, &model);
    let abort = Arc::new(AtomicBool::new(false));
    Context::new(Arc::new(model), &params, abort).expect("a context")
}

fn token(position: u32) -> u32 {
    100 + position * 7919 % 1000
}

/// Computes the rows of a sequence from one position to another in one call; the last one's logits.
fn decode(context: &mut Context, sequence: u32, positions: std::ops::Range<u32>) -> Vec<u32> {
    let mut batch = Batch::with_capacity(positions.len());
    for position in positions.clone() {
        let is_last = position + 1 == positions.end;
        batch.push(token(position), position, sequence, is_last);
    }
    context.decode(&mut batch).expect("it decodes");
    let logits = context.logits(batch.len() - 1).expect("logits");
    logits.iter().map(|logit| logit.to_bits()).collect()
}

/// Computes positions 192..200 and a few more one by one.
fn continuation(context: &mut Context, sequence: u32) -> Vec<Vec<u32>> {
    let mut rows = vec![decode(context, sequence, 192..200)];
    rows.extend((200..208).map(|position| decode(context, sequence, position..position + 1)));
    rows
}

fn prefill(context: &mut Context, sequence: u32) {
    for chunk in 0..3 {
        decode(context, sequence, chunk * 64..(chunk + 1) * 64);
    }
}

fn state(context: &mut Context, sequence: u32) -> Vec<u8> {
    let mut blob = Vec::new();
    context.state_read(sequence, &mut blob).expect("a state");
    assert_eq!(blob.len(), context.state_size(sequence));
    blob
}

fn shared(blocks: Vec<Block>) -> Vec<Arc<Block>> {
    blocks.into_iter().map(Arc::new).collect()
}

#[test]
fn a_sequence_made_of_blocks_goes_on_with_the_same_bits() {
    let mut context = context(|_| {});
    prefill(&mut context, 0);
    let expected = continuation(&mut context, 0);

    // 208 rows: 3 blocks and a tail that is left out.
    let blob = state(&mut context, 0);
    let format = learn(&blob).expect("a layout that can be cut");
    let blocks = shared(format.cut(&blob, 0, 0..3).unwrap());
    assert!(
        blocks
            .iter()
            .all(|block| block.len() == format.bytes_per_block())
    );

    // Into a sequence with something else in it, while others hold cells too.
    decode(&mut context, 2, 0..40);
    decode(&mut context, 1, 0..7);
    let mut joined = Vec::new();
    format.join(&blocks, &mut joined).unwrap();
    context.state_write(1, &joined).expect("it is taken");
    assert_eq!(continuation(&mut context, 1), expected);

    // What that sequence holds now, cut again, is what it was made of.
    let blob = state(&mut context, 1);
    assert_eq!(learn(&blob), Some(format.clone()));
    assert_eq!(shared(format.cut(&blob, 0, 0..3).unwrap()), blocks);

    // Only the rows that are not kept yet need to be copied.
    assert!(context.forget_before(1, 128));
    let blob = state(&mut context, 1);
    assert_eq!(
        shared(format.cut(&blob, 128, 2..3).unwrap()),
        blocks[2..].to_vec()
    );
    assert_eq!(
        format.cut(&blob, 129, 2..3),
        Err(BlobError::Early(128)),
        "it begins before it should"
    );
    assert_eq!(format.cut(&blob, 0, 1..3), Err(BlobError::Missing(64)));
}

#[test]
fn a_cut_tail_can_be_computed_again() {
    let mut context = context(|_| {});
    prefill(&mut context, 0);
    let expected = continuation(&mut context, 0);
    assert!(context.truncate(0, 192));
    assert_eq!(continuation(&mut context, 0), expected);
}

#[test]
fn a_unified_pool_keeps_blocks_under_ids_that_never_decode() {
    let mut context = context(|settings| settings.kv_layout = KvLayout::Unified);
    prefill(&mut context, 0);
    let owner = MEMORY_IDS - 1;
    context.copy(0, owner, 192).unwrap();
    let before = state(&mut context, 0);
    let format = learn(&before).unwrap();
    let blocks = format.cut(&before, 0, 0..3).unwrap();
    // The owner's cells are listed without ids.
    context.forget(0);
    let kept = state(&mut context, owner);
    assert_eq!(learn(&kept), Some(format.clone()));
    assert_eq!(format.cut(&kept, 0, 0..3).unwrap(), blocks);
    // Shared again they are what they were.
    context.copy(owner, 1, 128).unwrap();
    let part = state(&mut context, 1);
    assert_eq!(format.cut(&part, 0, 0..2).unwrap(), blocks[..2]);
    // And a blob of blocks goes to an owner too.
    context.forget(owner);
    let mut joined = Vec::new();
    format.join(&shared(blocks.clone()), &mut joined).unwrap();
    context.state_write(owner, &joined).unwrap();
    let kept = state(&mut context, owner);
    assert_eq!(format.cut(&kept, 0, 0..3).unwrap(), blocks);
}

#[test]
fn quantized_rows_are_cut_like_any_other() {
    let mut context = context(|settings| {
        settings.kv_type_k = crate::engine::config::KvType::Q8_0;
        settings.kv_type_v = crate::engine::config::KvType::Q8_0;
    });
    prefill(&mut context, 0);
    let blob = state(&mut context, 0);
    let format = learn(&blob).expect("a layout that can be cut");
    let blocks = shared(format.cut(&blob, 0, 0..3).unwrap());
    let expected = continuation(&mut context, 0);
    let mut joined = Vec::new();
    format.join(&blocks, &mut joined).unwrap();
    context.state_write(2, &joined).unwrap();
    assert_eq!(continuation(&mut context, 2), expected);
}

#[test]
fn transposed_values_are_not_cut() {
    let mut context = context(|settings| settings.flash_attention = FlashAttention::Off);
    decode(&mut context, 0, 0..64);
    assert_eq!(learn(&state(&mut context, 0)), None);
}

#[test]
fn ids_and_positions_out_of_range_are_refused_before_the_call() {
    let mut split = context(|_| {});
    decode(&mut split, 0, 0..8);
    for id in [3, MEMORY_IDS, u32::MAX] {
        assert_eq!(split.state_size(id), 0);
        assert!(split.state_read(id, &mut Vec::new()).is_err());
        assert!(split.state_write(id, &[]).is_err());
        assert!(!split.truncate(id, 0));
        assert!(!split.forget_before(id, 1));
        assert!(split.copy(0, id, 8).is_err());
    }
    assert!(!split.truncate(0, u32::MAX));
    assert!(!split.forget_before(0, u32::MAX));
    assert!(split.copy(0, 1, 8).is_err(), "cells are not shared");
    let mut unified = context(|settings| settings.kv_layout = KvLayout::Unified);
    assert!(unified.copy(0, MEMORY_IDS, 8).is_err());
    assert!(unified.copy(MEMORY_IDS, 0, 8).is_err());
    assert!(unified.copy(0, 1, u32::MAX).is_err());
    assert_eq!(learn(&state(&mut split, 0)).map(|_| ()), Some(()));
}

#[test]
fn a_state_that_is_not_taken_leaves_the_sequence_empty() {
    let mut context = context(|_| {});
    prefill(&mut context, 0);
    let expected = continuation(&mut context, 0);
    let blob = state(&mut context, 0);
    for bad in [&blob[..blob.len() - 13], &blob[..4], &[]] {
        decode(&mut context, 1, 0..8);
        assert!(context.state_write(1, bad).is_err());
        // Position 0 is free again: computed from the start, it is as it ever was.
        prefill(&mut context, 1);
        assert_eq!(continuation(&mut context, 1), expected);
        context.forget(1);
    }
}
