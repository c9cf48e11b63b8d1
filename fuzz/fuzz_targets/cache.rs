//! What happens to a cache, beside a model of it. The rule is
//! `proconsul::fuzzing::cache`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proconsul::fuzzing::cache(bytes));
