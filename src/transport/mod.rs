//! Sockets: bytes in, bytes out.
//!
//! `listen` accepts and bounds connections, `quic` does so over UDP, `http` maps paths to gateway calls, `tokens` is where
//! the connection's room for a frame becomes demand for tokens, `vectors` answers with one document.

mod assets;
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
pub mod quic;
mod rpc;
pub mod tls;
mod tokens;
mod vectors;
