//! What an HTTP server says: status, headers and body. The rule is
//! `proconsul::fuzzing::http`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proconsul::fuzzing::http(bytes));
