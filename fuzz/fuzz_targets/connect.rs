//! Certificates and roots as Connect tells them. The rule is
//! `proconsul::fuzzing::connect`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proconsul::fuzzing::connect(bytes));
