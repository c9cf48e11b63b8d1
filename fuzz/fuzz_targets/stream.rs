//! Any bytes on a connection to the stub, in any pieces. The rule is
//! `proconsul::fuzzing::stream`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proconsul::fuzzing::stream(bytes));
