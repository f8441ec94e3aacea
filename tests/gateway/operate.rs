//! What operators do to a running gateway.

mod process;
mod profile;
mod reload;
mod streams;
