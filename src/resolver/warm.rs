//! **Door.** What one run leaves to the next: the snapshot is read before the first
//! look-up that has to wait, and written a moment after something was found.

use std::{
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Mutex, OnceCell};
use tracing::{debug, warn};

use super::{Inner, Resolver};
use crate::{
    clock,
    error::{Error, ErrorKind},
    snapshot,
    source::snapshot_file::SnapshotFile,
};

/// Between something found and the snapshot written. A crash loses no more.
const PAUSE: Duration = Duration::from_secs(2);

/// The snapshot of one resolver.
#[derive(Debug)]
pub(super) struct Snapshot {
    file: SnapshotFile,
    read: OnceCell<()>,
    /// A task is about to write it.
    due: AtomicBool,
    /// Something was found since it was last written.
    changed: AtomicBool,
    /// What is there could not be read, and is not to be lost.
    unread: AtomicBool,
    /// Held while it is written: whoever comes then waits for it.
    writing: Mutex<()>,
}

impl Snapshot {
    pub(super) fn new(path: PathBuf) -> Self {
        Self::over(SnapshotFile::new(path), false)
    }

    /// The snapshot of a resolver that takes over what this one's knows: only the
    /// new one writes from now on.
    pub(super) fn hand_over(&self, path: PathBuf) -> Self {
        Self::over(self.file.hand_over(path), true)
    }

    /// Writes it no more.
    pub(super) fn give_up(&self) {
        self.file.give_up();
    }

    fn over(file: SnapshotFile, changed: bool) -> Self {
        Self {
            file,
            read: OnceCell::new(),
            due: AtomicBool::new(false),
            changed: AtomicBool::new(changed),
            unread: AtomicBool::new(false),
            writing: Mutex::const_new(()),
        }
    }
}

impl Resolver {
    /// Writes the snapshot, if one is configured and something was found since it was
    /// last written. A resolver does so by itself two seconds after each find; call
    /// it before a process ends.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] with the file and why it cannot be written.
    ///
    /// # Cancel safety
    ///
    /// Safe: the file is replaced whole or not at all.
    pub async fn save_snapshot(&self) -> Result<(), Error> {
        self.0.save().await
    }
}

impl Inner {
    /// Reads the snapshot, once.
    pub(super) async fn warm(&self) {
        let Some(snapshot) = &self.snapshot else {
            return;
        };
        let read = snapshot.read.get_or_init(|| async {
            if let Err(why) = self.restore(snapshot).await {
                warn!("{why}; it is not used");
                self.counters
                    .snapshot_errors
                    .fetch_add(1, Ordering::Relaxed);
            }
        });
        read.await;
    }

    async fn restore(&self, snapshot: &Snapshot) -> Result<(), String> {
        let file = &snapshot.file;
        let read = file.load().await;
        let passes = read.as_ref().is_err_and(|trouble| trouble.passes);
        snapshot.unread.store(passes, Ordering::Relaxed);
        let Some(bytes) = read.map_err(|trouble| trouble.to_string())? else {
            return Ok(());
        };
        let keep = self.config.cache.keep;
        let domain = self.config.domain.as_str();
        let sets = snapshot::decode(&bytes, domain, clock::since_1970(), keep)
            .map_err(|why| format!("the snapshot {}: {why}", file.path().display()))?;
        debug!(sets = sets.len(), "snapshot read");
        let now = clock::now();
        let mut cache = self.cache();
        for (held, age) in sets {
            // A machine that started less than that ago may not know such a time.
            if let Some(since) = now.checked_sub(age) {
                cache.restore(Arc::new(held), since);
            }
        }
        Ok(())
    }

    /// Something was found: it is to be in the snapshot soon.
    pub(super) fn save_soon(self: &Arc<Self>) {
        let Some(snapshot) = &self.snapshot else {
            return;
        };
        snapshot.changed.store(true, Ordering::Relaxed);
        if snapshot.due.swap(true, Ordering::Relaxed) {
            return;
        }
        let inner = Arc::downgrade(self);
        let due = Due(Weak::clone(&inner));
        // Ends by itself, and does nothing where the resolver is gone.
        tokio::spawn(async move {
            tokio::time::sleep(PAUSE).await;
            drop(due);
            let Some(inner) = inner.upgrade() else { return };
            if let Err(error) = inner.save().await {
                warn!("{error}");
            }
        });
    }

    async fn save(&self) -> Result<(), Error> {
        let Some(snapshot) = &self.snapshot else {
            return Ok(());
        };
        // What an earlier run knew is not to be lost by what this one found.
        self.warm().await;
        let _writing = snapshot.writing.lock().await;
        if !snapshot.changed.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        self.write(snapshot).await.inspect_err(|_| {
            snapshot.changed.store(true, Ordering::Relaxed);
            let errors = &self.counters.snapshot_errors;
            errors.fetch_add(1, Ordering::Relaxed);
        })
    }

    async fn write(&self, snapshot: &Snapshot) -> Result<(), Error> {
        if snapshot.unread.load(Ordering::Relaxed)
            && let Err(why) = self.restore(snapshot).await
            && snapshot.unread.load(Ordering::Relaxed)
        {
            let message = format!("{why}; it is not replaced by what is newer");
            return Err(Error::new(ErrorKind::Io, message));
        }
        let sets: Vec<_> = {
            let cache = self.cache();
            let all = cache.sets(clock::now());
            let worth = all.filter(|(held, _)| snapshot::is_worth(held));
            worth.map(|(held, age)| (Arc::clone(held), age)).collect()
        };
        let all = sets.iter().map(|(held, age)| (&**held, *age));
        let bytes = snapshot::encode(self.config.domain.as_str(), clock::since_1970(), all);
        let saved = snapshot.file.save(bytes).await;
        saved.map_err(|trouble| Error::new(ErrorKind::Io, trouble.to_string()))
    }
}

/// A snapshot is about to be written, until this is dropped: also by a runtime that ends.
struct Due(Weak<Inner>);

impl Drop for Due {
    fn drop(&mut self) {
        if let Some(inner) = self.0.upgrade()
            && let Some(snapshot) = &inner.snapshot
        {
            snapshot.due.store(false, Ordering::Relaxed);
        }
    }
}
