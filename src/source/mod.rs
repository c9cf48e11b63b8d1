//! **Shell.** The rungs that cost I/O.
pub(crate) mod dns;
