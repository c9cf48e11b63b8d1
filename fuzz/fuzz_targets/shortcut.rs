//! Any packet to the fast lane, and any reply of an upstream. The rule is
//! `proconsul::fuzzing::shortcut`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proconsul::fuzzing::shortcut(bytes));
