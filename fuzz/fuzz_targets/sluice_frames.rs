//! Any bytes, in any pieces, into the decoder of `sluice/1`.
#![no_main]

#[path = "../../src/wire/sluice/frames/mod.rs"]
#[allow(dead_code, unused_imports, reason = "only a part of the codec is called here")]
mod frames;

#[path = "../bodies/sluice_frames.rs"]
mod body;

// The first two bytes say where the rest is cut.
libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let [first, second, rest @ ..] = input {
        body::run(rest, &[usize::from(*first), usize::from(*second) * 16]);
    }
});
