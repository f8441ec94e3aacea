//! Sockets: bytes in, bytes out.
//!
//! `listen` accepts and bounds connections, `http` maps paths to gateway calls, `tokens` is where
//! the connection's room for a frame becomes demand for tokens, `vectors` answers with one document.

mod assets;
pub mod config;
pub mod files;
mod guard;
pub mod http;
pub mod listen;
pub mod ops;
mod outq;
mod pace;
mod rpc;
pub mod tls;
mod tokens;
mod vectors;
