//! **Shell.** Tasks in the background: the runtime that they need, an owner for each, and what
//! becomes of one that panics.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

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

/// Of the whole process: what is broken is the program, whichever resolver met it.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Panics that were caught and counted, each of which is a defect of proconsul. Where it was the
/// process's panic hook has told.
pub(crate) fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// What a piece of work comes to; `None`: it panicked, which is counted.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    count(catch_unwind(AssertUnwindSafe(work)))
}

/// The same of a future, which has given back by then what it held. It takes no more room than that
/// one: an `async fn` would hold it twice.
pub(crate) fn outcome<T>(work: impl Future<Output = T>) -> impl Future<Output = Option<T>> {
    AssertUnwindSafe(work).catch_unwind().map(count)
}

fn count<T>(done: std::thread::Result<T>) -> Option<T> {
    if done.is_err() {
        PANICS.fetch_add(1, Ordering::Relaxed);
    }
    done.ok()
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
        if outcome(work()).await.is_some() {
            return;
        }
        error!("{what} panicked, which is a defect of proconsul: begun anew");
        sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_looks_after_work_takes_little_room_for_it() {
        let work = async {
            let room = [0_u8; 1_000];
            tokio::task::yield_now().await;
            room.len()
        };
        let alone = size_of_val(&work);
        let looked_after = size_of_val(&outcome(work));
        assert!(alone > 1_000 && looked_after < alone + 64, "{looked_after}");
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_panics_is_begun_anew_until_it_ends() {
        let (mut times, before) = (0, panics());
        let work = || {
            times += 1;
            let panics = times < 3;
            async move {
                tokio::task::yield_now().await;
                assert!(!panics, "on purpose");
            }
        };
        anew_after_panics("a test", Duration::from_secs(1), work).await;
        assert_eq!(times, 3);
        // Other tests may panic beside this one.
        assert!(panics() >= before + 2);
    }
}
