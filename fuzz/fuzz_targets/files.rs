//! Files of the system's and of the operator's. The rule is
//! `proconsul::fuzzing::files`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proconsul::fuzzing::files(bytes));
