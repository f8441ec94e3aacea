//! Sockets: bytes in, bytes out.
//!
//! `listen` accepts and bounds connections, `quic` does so over UDP, `http` maps paths to gateway calls, `tokens` is where
//! the connection's room for a frame becomes demand for tokens, `resume` keeps streams whose connection is lost,
//! `vectors` and `plain` answer with one document.

mod assets;
mod bind;
pub mod config;
pub mod early;
pub mod files;
mod guard;
pub mod http;
pub mod http2;
pub mod listen;
pub mod ops;
mod outq;
mod pace;
mod peer_frames;
mod plain;
pub mod quic;
pub mod resume;
mod rpc;
mod standing;
pub mod tls;
mod tokens;
mod traced;
mod vectors;
