//! `sluice/1`: our own protocol on QUIC, and the format of its answers.
//!
//! One stream that the client opens carries one request and its answer, as frames (see [`frames`]):
//!
//! ```text
//! client   REQUEST | DATA … | FIN
//! server             RESPONSE | PROGRESS | TOKENS … PING … | USAGE | END | FIN     a generation
//!                    RESPONSE | DATA … | END | FIN                                 anything else
//!                    RESPONSE | … | ERROR | FIN                                    a failure
//! ```
//!
//! What stands between RESPONSE and the end of a generation is the format [`FRAMES`], which the paths of
//! [`super::openai`] also speak over HTTP when `Accept` asks for it. FIN without END or ERROR is a
//! stream that broke off. `ARCHITECTURE.md` describes the protocol for those who write a client.

pub mod fault;
pub(super) mod format;
pub mod frames;
pub mod head;
#[cfg(test)]
mod tests;

/// The protocol's name in ALPN (RFC 7301).
pub const ALPN: &[u8] = b"sluice/1";

/// The media type of a generation's events as frames.
pub const FRAMES: &str = "application/vnd.sluice.frames";
