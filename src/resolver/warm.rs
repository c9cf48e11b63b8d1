//! **Door.** What one run leaves to the next: the snapshot is read before the first
//! look-up that has to wait, and written
//!
//! | after | when |
//! | --- | --- |
//! | a name that is new to this run, or other members of one that is known | [`SOON`] |
//! | the same members, given or confirmed again: their age is another one | [`LATER`], or a quarter of the time that sets are kept |
//! | either of them | at the end, by [`Resolver::save_snapshot`] |

use std::{
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Mutex, OnceCell, watch};
use tracing::{debug, warn};

use super::{Inner, Resolver};
use crate::{
    clock,
    error::{Error, ErrorKind},
    snapshot,
    source::snapshot_file::SnapshotFile,
    task,
};

/// Between something new and the snapshot written. A crash loses no more.
const SOON: Duration = Duration::from_secs(2);

/// The same where only ages are new: of what is kept for a day, a minute is little.
const LATER: Duration = Duration::from_secs(60);

/// The snapshot of one resolver.
#[derive(Debug)]
pub(super) struct Snapshot {
    file: SnapshotFile,
    read: OnceCell<()>,
    /// A task is about to write it soon, and one later.
    soon: AtomicBool,
    later: AtomicBool,
    /// Something was given or confirmed since it was last written.
    changed: AtomicBool,
    /// What is there could not be read, and is not to be lost.
    unread: AtomicBool,
    /// Gone with the resolver: nobody waits any more to write what it found.
    ends: watch::Sender<()>,
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

    fn due(&self, soon: bool) -> &AtomicBool {
        if soon { &self.soon } else { &self.later }
    }

    /// Writes it no more.
    pub(super) fn give_up(&self) {
        self.file.give_up();
    }

    fn over(file: SnapshotFile, changed: bool) -> Self {
        Self {
            file,
            read: OnceCell::new(),
            soon: AtomicBool::new(false),
            later: AtomicBool::new(false),
            changed: AtomicBool::new(changed),
            unread: AtomicBool::new(false),
            ends: watch::Sender::default(),
            writing: Mutex::const_new(()),
        }
    }
}

impl Resolver {
    /// Writes the snapshot, if one is configured and a source gave or confirmed something
    /// since it was last written. A resolver does so by itself two seconds after it found
    /// something new, and within a minute after what it knew was confirmed; call it before a
    /// process ends.
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

    /// A source gave or confirmed a set. `new`: it is another one than was known.
    pub(super) fn will_save(self: &Arc<Self>, new: bool) {
        let Some(snapshot) = &self.snapshot else {
            return;
        };
        snapshot.changed.store(true, Ordering::Relaxed);
        if snapshot.due(new).swap(true, Ordering::Relaxed) {
            return;
        }
        let pause = match new {
            true => SOON,
            // What is kept for less is not to be too old in the file.
            false => LATER.min(self.config.cache.keep / 4).max(SOON),
        };
        let inner = Arc::downgrade(self);
        let due = Due(Weak::clone(&inner), new);
        let mut ends = snapshot.ends.subscribe();
        // Ends by itself, and with the resolver.
        tokio::spawn(task::outcome(async move {
            _ = tokio::time::timeout(pause, ends.changed()).await;
            drop(due);
            let Some(inner) = inner.upgrade() else { return };
            if let Err(error) = inner.save().await {
                warn!("{error}");
            }
        }));
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
        let (domain, now) = (self.config.domain.clone(), clock::since_1970());
        let saved = snapshot.file.save(move || {
            let all = sets.iter().map(|(held, age)| (&**held, *age));
            snapshot::encode(domain.as_str(), now, all)
        });
        let saved = saved.await;
        saved.map_err(|trouble| Error::new(ErrorKind::Io, trouble.to_string()))
    }
}

/// A snapshot is about to be written, soon or later, until this is dropped: also by a
/// runtime that ends.
struct Due(Weak<Inner>, bool);

impl Drop for Due {
    fn drop(&mut self) {
        if let Some(inner) = self.0.upgrade()
            && let Some(snapshot) = &inner.snapshot
        {
            snapshot.due(self.1).store(false, Ordering::Relaxed);
        }
    }
}
