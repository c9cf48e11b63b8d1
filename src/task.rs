//! **Shell.** Tasks in the background: the runtime that they need, and an owner for each.

use tokio::{runtime::Handle, task::AbortHandle};

use crate::error::{Error, ErrorKind};

/// The runtime that this is called in. `what` cannot be done without one.
pub(crate) fn runtime(what: &str) -> Result<Handle, Error> {
    Handle::try_current().map_err(|error| {
        let message = format!("{what} within a tokio runtime only");
        Error::caused(ErrorKind::Invalid, message, error)
    })
}

/// A task that ends with its owner.
#[derive(Debug)]
pub(crate) struct Owned(pub(crate) AbortHandle);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}
