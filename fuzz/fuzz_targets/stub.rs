//! Any datagram to the stub, and its reply byte by byte. The rule is
//! `proconsul::fuzzing::stub`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proconsul::fuzzing::stub(bytes));
