//! **Shell.** The agent's HTTP API: one file per duty.

pub(crate) mod address;
pub(crate) mod api;
pub(crate) mod blocking;
pub(crate) mod dns_settings;
pub(crate) mod health;
pub(crate) mod http;
pub(crate) mod instances;
pub(crate) mod progress;
pub(crate) mod tls;
pub(crate) mod token;
