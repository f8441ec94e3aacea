//! What operators do to a running gateway.

mod process;
mod reload;
