//! Replies to a blocking query. The rule is `proconsul::fuzzing::blocking`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proconsul::fuzzing::blocking(bytes));
