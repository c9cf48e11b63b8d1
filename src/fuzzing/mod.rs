//! **Pure.** The rules that hold for every input, for the targets of `fuzz/`. Built
//! only with `--cfg fuzzing` and for tests; each function panics where its rule is broken.
//!
//! A rule about one room's own bytes stands beside that room; those about several rooms are
//! here.

mod agent;
mod balance;
mod cache;
mod redaction;
mod registration;
#[cfg(test)]
mod tests;
mod words;

pub use self::{
    agent::{blocking, catalog, http},
    balance::balance,
    cache::cache,
    redaction::redaction,
    registration::registration,
    words::{files, name, settings},
};
pub use crate::{
    connect::fuzz::connect,
    records::fuzz::reply,
    snapshot::snapshot,
    source::dns::fuzz::{accept, conversation},
    stub::{
        answer::{
            fuzz::{encode, packet},
            fuzz_lanes::shortcut,
        },
        fuzz::{stream, stub},
    },
};
