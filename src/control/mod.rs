//! The operator's side: what can be looked at and changed while serving.
//!
//! Knows no HTTP; `transport/ops.rs` maps paths to the calls here.

pub mod adapters;
pub mod detail;
pub mod engines;
pub mod log;
pub mod profile;
pub mod reload;
pub mod streams;
