//! Any packet to the stub, and its reply to a client. The rule is `proconsul::fuzzing::packet`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proconsul::fuzzing::packet(bytes));
