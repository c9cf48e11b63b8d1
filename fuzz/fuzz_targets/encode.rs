//! Messages, read, written and read again. The rule is
//! `proconsul::fuzzing::encode`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proconsul::fuzzing::encode(bytes));
