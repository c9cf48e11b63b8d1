//! Any reply to our own question. The rule is `proconsul::fuzzing::reply`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proconsul::fuzzing::reply(bytes));
