//! Replies to a question, right or changed: what is taken for one. The rule is
//! `proconsul::fuzzing::accept`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proconsul::fuzzing::accept(bytes));
