//! Sluicegate: an LLM streaming gateway in one binary.
//!
//! Follow one request. [`main`](../src/main.rs) reads flags and runs the [`app`], which opens the
//! sockets. [`transport`] accepts a connection; before it reads a bounded body and lets a dialect of [`wire`]
//! parse it, [`auth`] has said who asks. The [`gateway`] admits the request within its caller's [`limit`]s, asks
//! [`route`] for the model's engine, starts it there and guards the stream. An [`engine`] computes tokens, or plays them, into a small ring per
//! sequence. On the way back a [`generation::TokenStream`] takes from the ring only what the
//! connection has room for, the dialect's encoder writes it, and when a reader stops, the ring fills
//! and the sequence leaves the batch. [`telemetry`] hears how it ended.
//!
//! A module imports only from floors below its own, and peers on one floor do not know each other;
//! `tests/floors.rs` keeps it so.
//!
//! ```text
//!  6  main, cli, app, config
//!  5  transport | client
//!  4  gateway | wire | control
//!  3  route
//!  2  auth | limit | engine
//!  1  telemetry
//!  0  generation
//! ```

pub mod app;
pub mod cli;
pub mod config;
pub mod transport;
pub mod client;
pub mod wire;
pub mod gateway;
pub mod control;
pub mod route;
pub mod auth;
pub mod limit;
pub mod engine;
pub mod telemetry;
pub mod generation;
