//! Sets of endpoints and all strategies. The rule is `proconsul::fuzzing::balance`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proconsul::fuzzing::balance(bytes));
