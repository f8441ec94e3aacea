//! Cutting and joining, against blobs that are written here as llama.cpp writes them.

use std::sync::Arc;

use proptest::prelude::*;

use super::super::blob::BlobError;
use super::super::{Block, Format, learn};

/// A sequence's state as llama.cpp would hold it: what a row holds follows from layer and position.
#[derive(Clone, Debug)]
struct Model {
    streams: u32,
    stream: u32,
    sequence: i32,
    /// Type and bytes of a row, K of every layer and V of every layer.
    keys: Vec<(i32, usize)>,
    values: Vec<(i32, usize)>,
    rotations: [u32; 2],
    /// In the order of their cells.
    positions: Vec<u32>,
    lists_ids: bool,
}

/// Rows of a block, as positions are counted.
const ROWS: u32 = crate::engine::llama::plan::GRID;

fn count<T>(all: &[T]) -> u32 {
    u32::try_from(all.len()).unwrap()
}

fn row(section: usize, position: u32, bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|at| section * 31 + position as usize * 7 + position as usize / 64 + at)
        .map(|value| value.to_le_bytes()[0])
        .collect()
}

fn words(out: &mut Vec<u8>, words: &[u32]) {
    out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}

impl Model {
    fn write(&self) -> Vec<u8> {
        let mut out = Vec::new();
        words(
            &mut out,
            &[0xaf14_3cd8, self.sequence.cast_unsigned(), self.streams],
        );
        for stream in 0..self.streams {
            if stream != self.stream {
                words(&mut out, &[0]);
                continue;
            }
            words(&mut out, &[count(&self.positions)]);
            for &position in &self.positions {
                if self.lists_ids {
                    words(&mut out, &[position, 1, self.sequence.cast_unsigned()]);
                } else {
                    words(&mut out, &[position, 0]);
                }
            }
            words(&mut out, &[0, count(&self.keys)]);
            words(&mut out, &self.rotations);
            for (section, &(kind, bytes)) in self.keys.iter().chain(&self.values).enumerate() {
                out.extend(kind.to_le_bytes());
                out.extend((bytes as u64).to_le_bytes());
                for &position in &self.positions {
                    out.extend(row(section, position, bytes));
                }
            }
        }
        out
    }

    /// What a block of this model must be.
    fn block(&self, number: u32) -> Vec<u8> {
        let first = number * ROWS;
        let sections = self.keys.iter().chain(&self.values).enumerate();
        sections
            .flat_map(|(section, &(_, bytes))| {
                (first..first + ROWS).flat_map(move |at| row(section, at, bytes))
            })
            .collect()
    }
}

fn rows(layers: usize) -> impl Strategy<Value = Vec<(i32, usize)>> {
    proptest::collection::vec((0..40, 1usize..40), layers)
}

fn model() -> impl Strategy<Value = Model> {
    let shape = (1u32..5, 1usize..4).prop_flat_map(|(streams, layers)| {
        let values = prop_oneof![rows(layers), Just(Vec::new())];
        (Just(streams), 0..streams, rows(layers), values)
    });
    let cells = (0u32..200, 1u32..300)
        .prop_map(|(from, count)| (from..from + count).collect::<Vec<_>>())
        .prop_flat_map(|positions| {
            prop_oneof![
                Just(positions.clone()),
                Just(positions.clone()).prop_shuffle(),
                // Runs that lie in another order.
                (0..positions.len()).prop_map(move |at| {
                    let mut positions = positions.clone();
                    positions.rotate_left(at);
                    positions
                }),
            ]
        });
    (shape, cells, -1i32..300, any::<[u32; 2]>(), any::<bool>()).prop_map(
        |((streams, stream, keys, values), positions, sequence, rotations, lists_ids)| Model {
            streams,
            stream,
            sequence,
            keys,
            values,
            rotations,
            positions,
            lists_ids,
        },
    )
}

fn plain() -> Model {
    Model {
        streams: 3,
        stream: 1,
        sequence: 1,
        keys: vec![(1, 24), (1, 40)],
        values: vec![(8, 24), (8, 12)],
        rotations: [0, 64],
        positions: (0..130).collect(),
        lists_ids: true,
    }
}

/// The whole blocks among consecutive positions.
fn whole(positions: &[u32]) -> std::ops::Range<u32> {
    let first = positions.iter().min().unwrap().div_ceil(ROWS);
    let end = (positions.iter().max().unwrap() + 1) / ROWS;
    first..end.max(first)
}

proptest! {
    #[test]
    fn blocks_hold_the_rows_of_their_positions_whatever_the_order_of_cells(model in model()) {
        let blob = model.write();
        let format = learn(&blob).expect("it can be cut");
        let wanted = whole(&model.positions);
        let first = *model.positions.iter().min().unwrap();
        let blocks = format.cut(&blob, first, wanted.clone()).unwrap();
        prop_assert_eq!(blocks.len(), wanted.len());
        for (number, block) in wanted.zip(&blocks) {
            prop_assert_eq!(block.as_bytes(), model.block(number));
            prop_assert_eq!(block.len(), format.bytes_per_block());
        }
    }

    #[test]
    fn joined_blocks_are_a_blob_of_the_positions_from_0_on(model in model(), count in 0u32..4) {
        let format = learn(&model.write()).expect("it can be cut");
        let blocks: Vec<_> =
            (0..count).map(|number| Arc::new(Block::from_bytes(model.block(number)))).collect();
        let expected = Model {
            stream: 0,
            sequence: 0,
            positions: (0..count * ROWS).collect(),
            lists_ids: true,
            ..model
        };
        let mut joined = b"what was there before".to_vec();
        format.join(&blocks, &mut joined).unwrap();
        if count == 0 {
            let mut empty = Vec::new();
            words(&mut empty, &[0xaf14_3cd8, 0, expected.streams]);
            empty.extend(vec![0; 4 * expected.streams as usize]);
            prop_assert_eq!(joined, empty);
        } else {
            prop_assert_eq!(joined, expected.write());
        }
    }

    #[test]
    fn a_blob_that_ends_early_or_goes_on_is_refused(model in model(), cut in any::<prop::sample::Index>(), more in 1usize..40) {
        let blob = model.write();
        let format = learn(&blob).unwrap();
        let short = &blob[..cut.index(blob.len())];
        prop_assert_eq!(learn(short), None);
        prop_assert_eq!(format.cut(short, 0, 0..1), Err(BlobError::Layout));
        let long = [&blob[..], &vec![0; more]].concat();
        prop_assert_eq!(learn(&long), None);
    }

    #[test]
    fn no_bytes_make_it_panic_or_ask_for_much(bytes in proptest::collection::vec(any::<u8>(), 0..300), flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        prop_assert_eq!(learn(&bytes), None);
        let mut blob = plain().write();
        let format = learn(&blob).unwrap();
        for (at, value) in flips {
            let at = at.index(200);
            blob[at] = value;
        }
        let _ = format.cut(&blob, 0, 0..2);
        let _ = learn(&blob);
    }
}

#[test]
fn a_blob_of_another_context_is_refused() {
    let model = plain();
    let format: Format = learn(&model.write()).unwrap();
    let mut others = vec![model.clone(); 5];
    others[0].streams = 4;
    others[1].keys[0].0 = 2;
    others[2].values[1].1 += 1;
    others[3].rotations = [64, 64];
    others[4].values.clear();
    for other in others {
        let blob = other.write();
        assert_ne!(learn(&blob), None);
        assert_eq!(format.cut(&blob, 0, 0..1), Err(BlobError::Foreign));
    }
    // Which sequence and stream it was does not matter.
    let other = Model {
        stream: 2,
        sequence: 2,
        ..model
    };
    assert!(format.cut(&other.write(), 0, 0..1).is_ok());
}

#[test]
fn formats_that_differ_in_what_blocks_hold_have_other_names() {
    let model = plain();
    let name = |model: &Model| learn(&model.write()).unwrap().name();
    let mut wider = model.clone();
    wider.keys[0].1 += 1;
    let mut typed = model.clone();
    typed.keys[0].0 += 1;
    let split = Model {
        streams: 1,
        stream: 0,
        ..model.clone()
    };
    assert_ne!(name(&model), name(&wider));
    assert_ne!(name(&model), name(&typed));
    assert_eq!(name(&model), name(&split), "rows are the same");
}

#[test]
fn rows_that_are_missing_doubled_or_too_early_are_found() {
    let mut model = plain();
    let format = learn(&model.write()).unwrap();
    assert_eq!(format.cut(&model.write(), 0, 0..0), Ok(Vec::new()));
    assert_eq!(
        format.cut(&model.write(), 0, 0..3),
        Err(BlobError::Missing(130))
    );
    assert_eq!(
        format.cut(&model.write(), 0, 0..u32::MAX),
        Err(BlobError::Missing(130))
    );
    assert_eq!(
        format.cut(&model.write(), 5, 1..2),
        Err(BlobError::Early(0))
    );
    model.positions[70] = 140;
    assert_eq!(
        format.cut(&model.write(), 0, 0..2),
        Err(BlobError::Missing(70))
    );
    model.positions[70] = 71;
    assert_eq!(
        format.cut(&model.write(), 0, 0..2),
        Err(BlobError::Twice(71))
    );
    assert_eq!(learn(&model.write()), None);
}

#[test]
fn cells_of_two_streams_more_than_one_id_and_further_parts_are_not_cut() {
    let model = plain();
    let blob = model.write();
    let one = Model {
        streams: 1,
        stream: 0,
        ..model.clone()
    };
    // A second stream with cells: the streams' parts of two blobs, one after the other.
    let mut two = Vec::new();
    words(&mut two, &[0xaf14_3cd8, 1, 2]);
    two.extend(&one.write()[12..]);
    two.extend(&one.write()[12..]);
    assert_eq!(learn(&two), None);
    // A sliding window's cache behind this one.
    let behind = [&one.write()[..], &one.write()[8..]].concat();
    assert_eq!(learn(&behind), None);
    // A cell that lists two sequences, or another one than the blob's.
    let mut listed = blob.clone();
    listed[24] = 2;
    assert_eq!(learn(&listed), None);
    let mut foreign = blob.clone();
    foreign[28] = 9;
    assert_eq!(learn(&foreign), None);
    let mut magic = blob;
    magic[0] ^= 1;
    assert_eq!(learn(&magic), None);
}

#[test]
fn cells_with_more_than_a_position_are_not_cut() {
    // Three more words per cell: x, y and a token, as models with two-dimensional positions write.
    for cells in 1..5u32 {
        for text in [0, 1, 2] {
            let mut blob = Vec::new();
            words(&mut blob, &[0xaf14_3cd8, 0, 1, cells]);
            for at in 0..cells {
                words(&mut blob, &[at, 1, at * text, at * text, 1, 0]);
            }
            words(&mut blob, &[0, 1, 0, 0]);
            for _ in 0..2 {
                words(&mut blob, &[1, 8, 0]);
                blob.extend(vec![0; 8 * cells as usize]);
            }
            assert_eq!(learn(&blob), None, "{cells} cells");
        }
    }
}

#[test]
fn blocks_of_another_size_are_not_joined() {
    let model = plain();
    let format = learn(&model.write()).unwrap();
    let odd = Arc::new(Block::from_bytes(vec![0; format.bytes_per_block() - 1]));
    let error = format.join(&[odd], &mut Vec::new());
    assert_eq!(error, Err(BlobError::Size(format.bytes_per_block() - 1)));
}
