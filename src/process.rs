//! **Shell.** The process that this is. A child of fork(2) has none of its parent's threads, and
//! shares the sockets: what either asks may be answered to the other.

use crate::error::{Error, ErrorKind};

/// The process that something was made in, the only one that may ask anybody with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process(u32);

impl Process {
    pub(crate) fn own() -> Self {
        Self(std::process::id())
    }

    /// An error in a child of that process.
    pub(crate) fn check(self) -> Result<(), Error> {
        if self.0 == std::process::id() {
            return Ok(());
        }
        let message = format!(
            "this resolver was made by process {}, of which this one was forked: make another \
             one, and its runtime, after the fork",
            self.0
        );
        Err(Error::new(ErrorKind::Invalid, message))
    }
}
