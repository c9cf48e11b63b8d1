//! **Shell.** The process that this is. A child of fork(2) has none of its parent's threads, and
//! shares the sockets: what either asks may be answered to the other.

use nix::sys::resource::{Resource, getrlimit};

use crate::error::{Error, ErrorKind};

/// A quarter of the descriptors that this process may have: as many connections may clients have
/// to a stub, and names be followed by.
pub(crate) fn quarter_of_descriptors() -> usize {
    let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(now, _)| now);
    usize::try_from(descriptors / 4).unwrap_or(usize::MAX)
}

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
