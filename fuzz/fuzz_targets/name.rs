//! Labels and text to names and back. The rule is `proconsul::fuzzing::name`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proconsul::fuzzing::name(bytes));
