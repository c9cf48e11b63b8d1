//! Replies of the agent's HTTP API. The rule is `proconsul::fuzzing::catalog`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proconsul::fuzzing::catalog(bytes));
