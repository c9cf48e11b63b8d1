//! A whole conversation with a name server, and when each piece of it comes. The rule is
//! `proconsul::fuzzing::conversation`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proconsul::fuzzing::conversation(bytes));
