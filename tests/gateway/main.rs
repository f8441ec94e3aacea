//! Tests of the whole server: a real gateway on a free port, spoken to over real sockets.
//!
//! One binary for everything that links the engine, since linking llama.cpp takes long. Each module
//! is one group of promises; each test's name is the promise.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

mod adapters;
mod attacks;
mod backpressure;
mod canary;
mod cancellation;
mod cancel_times;
mod client;
mod command_line;
mod connections;
mod deaths;
mod drain;
mod early;
mod files;
mod http3;
mod isolation;
mod jwt;
mod keys;
mod limits;
mod limits_callers;
mod models;
mod operate;
mod outcomes;
mod overload;
mod prefixes;
mod prompts;
mod quic_hostile;
mod resume;
mod scrapes;
mod shared;
mod sluice;
mod sluice_hostile;
mod streaming;
mod structured;
mod support;
mod text;
mod timeouts;
mod tls;
mod traced;
mod traces;
mod traffic;
mod vectors;
mod windows;
