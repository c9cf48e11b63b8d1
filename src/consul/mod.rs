//! The agent's HTTP API: one file per duty.

pub(crate) mod address;
pub(crate) mod health;
//http
//tls
pub(crate) mod token;
