//! Proves the plumbing: that this builds, links proconsul and is steered by
//! coverage. The rule it checks is that text survives a lossless round trip.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proconsul as _;

#[cfg(not(fuzzing))]
compile_error!("build with scripts/fuzz, which sets `--cfg fuzzing` for proconsul too");

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        assert_eq!(text.chars().collect::<String>(), text);
    }
});
