//! The codec of `sluice/1`: bytes to frames and back. It knows nothing else of this crate.
//!
//! ```text
//! frame:     type (varint) | length of the payload (varint) | payload, at most 64 KiB
//!
//! DATA       00   bytes
//! REQUEST    01   JSON: {"method", "path", "headers"}
//! RESUME     02   after (varint) | length of the id (varint) | id | JSON: headers, or nothing
//! RESPONSE   03   JSON: {"status", "headers"}
//! END        04   one varint for each choice: 1 stop, 2 length
//! ERROR      05   JSON: {"code", "kind", "status", "message", …}
//! PING       06   nothing that matters
//! TOKENS     10   choice (varint) | count of tokens (varint) | text (UTF-8)
//! LOGPROBS   11   choice (varint) | tokens, see `logprobs`
//! PROGRESS   12   prompt tokens (varint) | cached tokens (varint) | later versions: more varints
//! USAGE      13   prompt (varint) | cached (varint) | completion tokens (varint) | more, as above
//! others          skipped, whatever their length
//! ```

mod decode;
mod frame;
pub mod logprobs;
#[cfg(test)]
mod tests;
pub mod varint;

pub use decode::{Decoder, FrameError, first};
pub use frame::{Frame, Kind, MAX_PAYLOAD, Reasons, header};
pub use logprobs::{Score, Scores};
