//! Any body of a snapshot file under a header that is right. The rule is
//! `proconsul::fuzzing::snapshot`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proconsul::fuzzing::snapshot(bytes));
