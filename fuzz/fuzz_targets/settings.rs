//! What users, variables and files say. The rule is `proconsul::fuzzing::settings`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proconsul::fuzzing::settings(bytes));
