//! What an engine shows of itself when somebody looks: a copy of one moment, bounded in size.

use serde::{Deserialize, Serialize};

use crate::generation::{Class, RequestId};
use crate::telemetry::ModelLoad;

/// An engine as it was at one moment. Times are microseconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct EngineView {
    /// Its figures, those of its steps among them.
    pub load: ModelLoad,
    /// Who has which KV cells, where there are cells.
    pub kv: Option<KvView>,
    /// What calls take lately.
    pub recent: RecentCalls,
    /// Sequences that have an id, by that: at most [`EngineView::MOST`].
    pub sequences: Vec<SequenceView>,
    /// Sequences beyond those.
    pub more_sequences: u32,
    /// Sequences in line, the next one first as far as that is known: at most [`EngineView::MOST`].
    pub line: Vec<WaitingView>,
    /// Sequences in line beyond those.
    pub more_in_line: u32,
}

/// What calls take lately; 0 before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentCalls {
    /// Microseconds of a call that decodes.
    pub decode_us: u64,
    /// Nanoseconds of a token of a prompt.
    pub prefill_token_ns: u64,
}

/// Who has which KV cells. The parts add up to the capacity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvView {
    /// `split` or `unified`.
    pub layout: String,
    /// Cells in all.
    pub capacity: u64,
    /// Cells that running sequences hold, for what they have computed and may yet compute.
    pub running: u64,
    /// Cells that hold nothing but cached prefixes.
    pub kept: u64,
    /// Cells that nobody holds.
    pub free: u64,
    /// Prefixes kept in cells, the longest first: the tokens of each. At most [`EngineView::MOST`].
    pub prefixes: Vec<u32>,
}

/// What a sequence with an id is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SequenceState {
    /// Its prompt is read.
    Prefill,
    /// It waits for another to compute what its prompt begins with.
    Follows,
    /// It takes part in decode calls.
    Decode,
    /// It is out of the batch: its reader is behind.
    Paused,
}

/// A sequence with an id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceView {
    /// The request.
    pub request: RequestId,
    /// Which of its choices.
    pub choice: u32,
    /// A number that stands for who is charged, for as long as the process lives.
    pub tenant: u32,
    /// How urgent it is.
    pub class: Class,
    /// Its id: where its K/V is.
    pub id: u32,
    /// What it is doing.
    pub state: SequenceState,
    /// Cells that it holds.
    pub cells: u32,
    /// Of these, those that others hold, too.
    pub shared_cells: u32,
    /// Tokens whose K/V is computed.
    pub computed: u32,
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// Of these, those that it did not compute.
    pub cached_tokens: u32,
    /// Tokens generated.
    pub generated: u32,
    /// Since it was given its id.
    pub admitted_us: u64,
    /// Since it was last in a call.
    pub served_us: u64,
}

/// A sequence in line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingView {
    /// The request.
    pub request: RequestId,
    /// Which of its choices.
    pub choice: u32,
    /// As [`SequenceView::tenant`].
    pub tenant: u32,
    /// How urgent it is.
    pub class: Class,
    /// Its place, as it was last told; the next one has 1. 0 is not known yet.
    pub place: u32,
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// Tokens that it has generated already: it was set aside.
    pub generated: u32,
    /// Whether its K/V waits in host memory.
    pub is_parked: bool,
    /// Since it came.
    pub waited_us: u64,
}

impl EngineView {
    /// Most entries of a list. The engine's thread makes them between two steps.
    pub const MOST: usize = 256;
}
