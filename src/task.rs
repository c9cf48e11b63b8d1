//! **Shell.** Tasks in the background: the runtime that they need, and an owner for each.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt as _;
use tokio::{runtime::Handle, task::AbortHandle, time::sleep};
use tracing::error;

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

/// Does work that nobody looks after; where it panics it is begun anew after a pause. `what`
/// ends then, for the log.
pub(crate) async fn anew_after_panics<F: Future<Output = ()>>(
    what: &str,
    pause: Duration,
    mut work: impl FnMut() -> F,
) {
    loop {
        // What it held it gives back before it is begun anew.
        if AssertUnwindSafe(work()).catch_unwind().await.is_ok() {
            return;
        }
        error!("{what} panicked, which is a defect of proconsul: begun anew");
        sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_that_panics_is_begun_anew_until_it_ends() {
        let mut times = 0;
        let work = || {
            times += 1;
            let panics = times < 3;
            async move {
                tokio::task::yield_now().await;
                assert!(!panics, "as the test wants it");
            }
        };
        anew_after_panics("a test", Duration::from_secs(1), work).await;
        assert_eq!(times, 3);
    }
}
