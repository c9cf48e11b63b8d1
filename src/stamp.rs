//! **Shell.** [`Stamp`]: tells whether a file is still the one that was read.
//! Used where a file is read again once it changes: token, certificates, static
//! catalog.

use std::{fs::Metadata, time::SystemTime};

/// Length, time of change and identity of a file. A file that is replaced
/// (renamed over, or by a symlink that points elsewhere) is another file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    length: u64,
    modified: Option<SystemTime>,
    /// Device and inode; zero where there are none.
    identity: (u64, u64),
}

impl Stamp {
    /// The stamp in a file's metadata, links followed.
    pub(crate) fn of(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        let identity = {
            use std::os::unix::fs::MetadataExt as _;
            (metadata.dev(), metadata.ino())
        };
        #[cfg(not(unix))]
        let identity = (0, 0);
        Self {
            length: metadata.len(),
            modified: metadata.modified().ok(),
            identity,
        }
    }
}
