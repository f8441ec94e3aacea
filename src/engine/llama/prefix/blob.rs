//! llama.cpp's state of a sequence, cut into blocks of 64 positions and put together again.
//!
//! ```text
//! u32 magic | i32 sequence | u32 streams | per stream:
//!   u32 cells; nothing more if 0 (on a split layout, all streams but the sequence's own)
//!   per cell:  i32 position | u32 ids (0 or 1) | that many times i32 sequence
//!   u32 V is transposed | u32 layers | u32 rotation of K | u32 rotation of V
//!   K, per layer:  i32 type | u64 bytes of a row | a row per cell
//!   V, per layer:  i32 type | u64 bytes of a row | a row per cell   (models with MLA have no V)
//! ```
//!
//! Rows come in the order of their cells, which need not be that of their positions. A block holds the
//! same sections, K and V of every layer, each with the rows of its 64 positions in order, so that
//! both ways are a copy per section. llama.cpp believes what a blob says, short of sizes: whatever
//! differs in anything from what [`learn`] understood is refused here.

use std::ops::Range;
use std::sync::Arc;

use super::key::{BLOCK, Key, Root};

/// First word of a sequence's state.
const MAGIC: u32 = 0xaf14_3cd8;

/// Most streams a context can have: one per sequence id.
const MOST_STREAMS: u32 = 256;

/// K and V of [`BLOCK`] consecutive positions in every layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block(Box<[u8]>);

impl Block {
    pub(crate) fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes.into_boxed_slice())
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its size.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Why a blob could not be cut, or blocks not joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BlobError {
    /// It ends early, goes on too long, or is laid out in another way.
    #[error("the state of a sequence is not laid out as expected")]
    Layout,
    /// Laid out well, but of another context.
    #[error("the state of a sequence is of another context")]
    Foreign,
    /// A row lies before the position that the blob should begin at.
    #[error("a row is at position {0}, before the first one")]
    Early(u32),
    /// Two rows lie at one position.
    #[error("two rows are at position {0}")]
    Twice(u32),
    /// A wanted block has no row for this position.
    #[error("no row is at position {0}")]
    Missing(u64),
    /// A block is not of this format.
    #[error("a block has {0} bytes, which is not the size of one")]
    Size(usize),
}

/// What the blobs of one context have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    streams: u32,
    layers: u32,
    rotations: [u32; 2],
    /// K of every layer, then V of every layer.
    rows: Vec<Row>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    kind: i32,
    bytes: usize,
}

/// The format of a blob with at least one cell. `None` if it cannot be cut: transposed V, positions of
/// more than one part, or other caches (sliding windows, recurrent states) beside this one.
pub(crate) fn learn(blob: &[u8]) -> Option<Format> {
    let (format, mut contents) = parse(blob).ok()?;
    // Cells of another shape may read as cells of this one, but hardly as ones that differ.
    contents.positions.sort_unstable();
    let differ = contents.positions.windows(2).all(|two| two[0] < two[1]);
    differ.then_some(format)
}

impl Format {
    /// Bytes of a block.
    pub(crate) fn bytes_per_block(&self) -> usize {
        self.rows.iter().map(|row| row.bytes * BLOCK).sum()
    }

    /// A name for this format: blocks of two formats must not be mixed.
    pub(crate) fn name(&self) -> Key {
        let mut words = vec![self.layers, self.rotations[0], self.rotations[1]];
        words.extend(self.rows.iter().map(|row| row.kind.cast_unsigned()));
        let words: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let sizes = self.rows.iter().map(|row| row.bytes as u64);
        let sizes: Vec<u8> = sizes.flat_map(u64::to_le_bytes).collect();
        *Root::new(&[b"format", &words, &sizes]).key()
    }

    /// The `wanted` blocks, by number, of a blob of this format, whose rows begin at `first_position` or
    /// behind it, in any order. It may hold more rows than are wanted.
    pub(crate) fn cut(
        &self,
        blob: &[u8],
        first_position: u32,
        wanted: Range<u32>,
    ) -> Result<Vec<Block>, BlobError> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let (format, contents) = parse(blob)?;
        if format != *self {
            return Err(BlobError::Foreign);
        }
        let places = contents.places(first_position, &wanted)?;
        let (blocks, _) = places.as_chunks::<BLOCK>();
        Ok(blocks
            .iter()
            .map(|places| self.block(&contents, places))
            .collect())
    }

    /// The rows at these places of the blob.
    fn block(&self, contents: &Contents<'_>, places: &[u32; BLOCK]) -> Block {
        let mut bytes = Vec::with_capacity(self.bytes_per_block());
        // Almost always one run: cells are given out in order.
        let runs = places.chunk_by(|a, b| a + 1 == *b);
        let runs: Vec<Range<usize>> = runs
            .map(|run| run[0] as usize..run[0] as usize + run.len())
            .collect();
        for (row, section) in self.rows.iter().zip(&contents.sections) {
            for run in &runs {
                bytes.extend_from_slice(&section[run.start * row.bytes..run.end * row.bytes]);
            }
        }
        Block::from_bytes(bytes)
    }

    /// Writes to `out`, in place of what was there, a blob with these blocks at positions 0 and up, which
    /// llama.cpp takes for any sequence. (One of no blocks is valid, and changes nothing.)
    pub(crate) fn join(&self, blocks: &[Arc<Block>], out: &mut Vec<u8>) -> Result<(), BlobError> {
        let size = self.bytes_per_block();
        if let Some(odd) = blocks.iter().find(|block| block.len() != size) {
            return Err(BlobError::Size(odd.len()));
        }
        let cells = u32::try_from(blocks.len() * BLOCK).map_err(|_| BlobError::Layout)?;
        out.clear();
        out.reserve(blocks.len() * (size + BLOCK * 12) + self.rows.len() * 12 + 1024 + 32);
        let mut put = |word: u32| out.extend_from_slice(&word.to_le_bytes());
        put(MAGIC);
        // Whose it was is not looked at; nor is which stream the rows are written under.
        put(0);
        put(self.streams);
        put(cells);
        if cells > 0 {
            for position in 0..cells {
                put(position);
                put(1);
                put(0);
            }
            put(0);
            put(self.layers);
            put(self.rotations[0]);
            put(self.rotations[1]);
            let mut from = 0;
            for row in &self.rows {
                out.extend_from_slice(&row.kind.to_le_bytes());
                out.extend_from_slice(&(row.bytes as u64).to_le_bytes());
                let to = from + row.bytes * BLOCK;
                for block in blocks {
                    out.extend_from_slice(&block.0[from..to]);
                }
                from = to;
            }
        }
        for _ in 1..self.streams {
            out.extend_from_slice(&0u32.to_le_bytes());
        }
        Ok(())
    }
}

/// The cells of a blob.
struct Contents<'a> {
    positions: Vec<u32>,
    /// The rows of each entry of [`Format::rows`].
    sections: Vec<&'a [u8]>,
}

impl Contents<'_> {
    /// Which row holds each position of the wanted blocks.
    fn places(&self, first: u32, wanted: &Range<u32>) -> Result<Vec<u32>, BlobError> {
        const NONE: u32 = u32::MAX;
        let begin = u64::from(wanted.start) * BLOCK as u64;
        let count = wanted.len().saturating_mul(BLOCK);
        // Where there are fewer rows than are wanted, one place more than there are rows is left open.
        let mut places = vec![NONE; count.min(self.positions.len() + 1)];
        for (row, &position) in (0u32..).zip(&self.positions) {
            if position < first {
                return Err(BlobError::Early(position));
            }
            let at = u64::from(position).checked_sub(begin);
            let at = at.and_then(|at| usize::try_from(at).ok());
            if let Some(place) = at.and_then(|at| places.get_mut(at)) {
                if *place != NONE {
                    return Err(BlobError::Twice(position));
                }
                *place = row;
            }
        }
        let missing = (begin..).zip(&places).find(|&(_, &row)| row == NONE);
        match missing {
            Some((position, _)) => Err(BlobError::Missing(position)),
            None => Ok(places),
        }
    }
}

/// Reads a whole blob with cells in exactly one stream.
fn parse(blob: &[u8]) -> Result<(Format, Contents<'_>), BlobError> {
    let mut rest = Rest(blob);
    if rest.word()? != MAGIC {
        return Err(BlobError::Layout);
    }
    let sequence = rest.word()?;
    let streams = rest.word()?;
    if !(1..=MOST_STREAMS).contains(&streams) {
        return Err(BlobError::Layout);
    }
    let mut found = None;
    for stream in 0..streams {
        let cells = rest.word()?;
        if cells == 0 {
            continue;
        }
        if found.is_some() {
            return Err(BlobError::Layout);
        }
        // The streams behind this one have a word each: they are empty.
        let behind = (streams - stream - 1) as usize * 4;
        found = Some(rest.cells(streams, sequence, cells as usize, behind)?);
    }
    match found {
        Some(found) if rest.0.is_empty() => Ok(found),
        _ => Err(BlobError::Layout),
    }
}

/// What is left to read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], BlobError> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(BlobError::Layout)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BlobError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(BlobError::Layout)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn word(&mut self) -> Result<u32, BlobError> {
        self.array().map(u32::from_le_bytes)
    }

    fn cells(
        &mut self,
        streams: u32,
        sequence: u32,
        cells: usize,
        behind: usize,
    ) -> Result<(Format, Contents<'a>), BlobError> {
        // At least 8 bytes each: no count makes us reserve more than the blob could hold.
        if cells > self.0.len() / 8 {
            return Err(BlobError::Layout);
        }
        let mut positions = Vec::with_capacity(cells);
        for _ in 0..cells {
            let position = self.word()?;
            // Ids beyond those that decode own cells too, but are not listed.
            let is_listed = match self.word()? {
                0 => true,
                1 => self.word()? == sequence,
                _ => false,
            };
            if !is_listed || i32::try_from(position).is_err() {
                return Err(BlobError::Layout);
            }
            positions.push(position);
        }
        let is_transposed = self.word()? != 0;
        let layers = self.word()?;
        let rotations = [self.word()?, self.word()?];
        // At least 12 bytes each, as above.
        if is_transposed || layers == 0 || layers as usize > self.0.len() / 12 {
            return Err(BlobError::Layout);
        }
        let (mut rows, mut sections) = (Vec::new(), Vec::new());
        for half in 0..2 {
            if half == 1 && self.0.len() == behind {
                // Multi-head latent attention: V is computed from K.
                break;
            }
            for _ in 0..layers {
                let kind = i32::from_le_bytes(self.array()?);
                let bytes = u64::from_le_bytes(self.array()?);
                let bytes = usize::try_from(bytes).map_err(|_| BlobError::Layout)?;
                let all = bytes.checked_mul(cells).ok_or(BlobError::Layout)?;
                if kind < 0 || bytes == 0 {
                    return Err(BlobError::Layout);
                }
                rows.push(Row { kind, bytes });
                sections.push(self.take(all)?);
            }
        }
        let format = Format {
            streams,
            layers,
            rotations,
            rows,
        };
        Ok((
            format,
            Contents {
                positions,
                sections,
            },
        ))
    }
}
