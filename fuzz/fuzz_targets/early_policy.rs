//! Any schedule of early and late requests against token binding and the replay record.
#![no_main]

#[path = "../../src/auth/mod.rs"]
#[allow(dead_code, unused_imports, reason = "only a part of it is called here")]
mod auth;
#[path = "../../src/generation/caller.rs"]
#[allow(dead_code, reason = "nobody asks for all of it here")]
mod caller;
#[path = "../../src/generation/failure.rs"]
#[allow(dead_code, reason = "only refusals come from here")]
mod failure;
#[path = "../../src/generation/outcome.rs"]
#[allow(dead_code, reason = "only refusals come from here")]
mod outcome;

use self::failure::Failure;
use self::outcome::Outcome;

/// What of it `auth` knows.
mod generation {
    pub use super::caller::{Caller, Rights, Scopes};
    pub use super::failure::{Failure, Kind};
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| auth::fuzz::early_policy(bytes));
