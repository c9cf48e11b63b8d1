//! An agent that forgets, is away, or has another with our id. The rule is `proconsul::fuzzing::registration`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proconsul::fuzzing::registration(bytes));
