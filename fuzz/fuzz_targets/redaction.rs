//! A token, and what is printed of whoever has it. The rule is
//! `proconsul::fuzzing::redaction`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proconsul::fuzzing::redaction(bytes));
