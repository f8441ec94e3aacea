//! Any schedule of early and late requests against token binding and the replay record.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sluicegate::auth::fuzz::early_policy(bytes));
