//! The rungs that cost I/O: question in, what was heard out.

pub(crate) mod catalog;
pub(crate) mod static_catalog;
pub(crate) mod static_file;
