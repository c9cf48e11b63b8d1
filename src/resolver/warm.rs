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
        Arc, Mutex as StdMutex, MutexGuard, PoisonError, Weak,
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
    found::Held,
    snapshot::{self, Refused},
    source::snapshot_file::{Before, FileTrouble, Identity, Left, SnapshotFile},
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
    /// What is there could not be used, and is not to be lost.
    unread: AtomicBool,
    /// Why what is there is not used, or was not written. A std mutex: held for one look.
    problem: StdMutex<Option<Error>>,
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

    /// As a step of a look-up names it.
    pub(super) fn place(&self) -> Box<str> {
        self.file.path().display().to_string().into()
    }

    fn problem(&self) -> MutexGuard<'_, Option<Error>> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner)
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
            problem: StdMutex::default(),
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
    /// [`ErrorKind::Io`] with the file and why it cannot be written, or is not: what was not
    /// written as a snapshot is never replaced.
    ///
    /// # Cancel safety
    ///
    /// Safe: the file is replaced whole or not at all.
    pub async fn save_snapshot(&self) -> Result<(), Error> {
        self.0.save().await
    }

    /// Why what an earlier run found is not used, or what this one found was not written the
    /// last time that it was due. `None` where neither is so, and before the snapshot is read:
    /// the first look-up that has to wait does that.
    pub fn snapshot_problem(&self) -> Option<Error> {
        self.0.snapshot.as_ref()?.problem().clone()
    }

    /// Reads the snapshot, if one is configured, and sees whether it could be written; what is
    /// in it is not used. A resolver does without one that it cannot use: this is for those who
    /// want to know before.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] with the file where that is not one of ours, and is never
    /// replaced. [`ErrorKind::Io`] where it would not be used but make room for a new one, and
    /// where this process may not read it or not write to its folder: the one that is to use it
    /// may be another user's.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is changed.
    pub async fn check_snapshot(&self) -> Result<(), Error> {
        let Some(snapshot) = &self.0.snapshot else {
            return Ok(());
        };
        let checked = self.0.read(&snapshot.file, snapshot.file.check()).await;
        match checked {
            Ok(_) => Ok(()),
            Err(unused) => Err(match unused.left {
                Left::Stays => Error::new(ErrorKind::Invalid, unused.why),
                Left::Unknown => Error::new(ErrorKind::Io, unused.why),
                Left::GivesWay(_) => unused.told(&snapshot.file),
            }),
        }
    }
}

/// Why what is there is not used.
struct Unused {
    why: String,
    left: Left,
}

impl Unused {
    fn told(&self, file: &SnapshotFile) -> Error {
        let why = &self.why;
        let message = match self.left {
            Left::Stays | Left::Unknown => format!("{why}; it is neither used nor replaced"),
            Left::GivesWay(_) => {
                let aside = file.aside();
                let aside = aside.display();
                format!("{why}; it is not used, and will be {aside} when a new one is written")
            }
        };
        Error::new(ErrorKind::Io, message)
    }
}

impl Inner {
    /// Reads the snapshot, once.
    pub(super) async fn warm(&self) {
        let Some(snapshot) = &self.snapshot else {
            return;
        };
        let read = snapshot.read.get_or_init(|| async {
            if let Err(unused) = self.restore(snapshot).await {
                let problem = unused.told(&snapshot.file);
                warn!("{problem}");
                *snapshot.problem() = Some(problem);
                self.counters
                    .snapshot_errors
                    .fetch_add(1, Ordering::Relaxed);
            }
        });
        read.await;
    }

    async fn restore(&self, snapshot: &Snapshot) -> Result<(), Unused> {
        let file = &snapshot.file;
        let read = self.read(file, file.load()).await;
        snapshot.unread.store(read.is_err(), Ordering::Relaxed);
        let sets = read?;
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

    /// The sets that a file holds, and their ages.
    async fn read(
        &self,
        file: &SnapshotFile,
        bytes: impl Future<Output = Result<Option<(Vec<u8>, Identity)>, FileTrouble>>,
    ) -> Result<Vec<(Held, Duration)>, Unused> {
        let unread = |trouble: FileTrouble| Unused {
            why: trouble.to_string(),
            left: trouble.left,
        };
        let Some((bytes, which)) = bytes.await.map_err(unread)? else {
            return Ok(Vec::new());
        };
        let (domain, keep) = (self.config.domain.as_str(), self.config.cache.keep);
        let sets = snapshot::decode(&bytes, domain, clock::since_1970(), keep);
        sets.map_err(|refused: Refused| Unused {
            why: format!("the snapshot {}: {refused}", file.path().display()),
            left: Left::GivesWay(which),
        })
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
            let known = inner
                .snapshot
                .as_ref()
                .and_then(|one| one.problem().clone());
            let known = known.map(|known| known.to_string());
            if let Err(error) = inner.save().await
                && known != Some(error.to_string())
            {
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
        let written = self.write(snapshot).await;
        *snapshot.problem() = match &written {
            Ok(moved) => moved.clone(),
            Err(error) => Some(error.clone()),
        };
        if written.is_err() {
            snapshot.changed.store(true, Ordering::Relaxed);
            let errors = &self.counters.snapshot_errors;
            errors.fetch_add(1, Ordering::Relaxed);
        }
        written.map(drop)
    }

    /// Gives what became of one that was of no use.
    async fn write(&self, snapshot: &Snapshot) -> Result<Option<Error>, Error> {
        let (mut before, mut moved) = (Before::Replaced, None);
        if snapshot.unread.load(Ordering::Relaxed)
            && let Err(unused) = self.restore(snapshot).await
        {
            let Left::GivesWay(which) = unused.left else {
                return Err(unused.told(&snapshot.file));
            };
            before = Before::Kept(which);
            let aside = snapshot.file.aside();
            let message = format!("{}; it is {} now", unused.why, aside.display());
            moved = Some(Error::new(ErrorKind::Io, message));
        }
        let sets: Vec<_> = {
            let cache = self.cache();
            let all = cache.sets(clock::now());
            let worth = all.filter(|(held, _)| snapshot::is_worth(held));
            worth.map(|(held, age)| (Arc::clone(held), age)).collect()
        };
        let (domain, now) = (self.config.domain.clone(), clock::since_1970());
        let saved = snapshot.file.save(before, move || {
            let all = sets.iter().map(|(held, age)| (&**held, *age));
            snapshot::encode(domain.as_str(), now, all)
        });
        let saved = saved.await;
        saved.map_err(|trouble| {
            let message = format!("{trouble}; what was found is not kept");
            Error::new(ErrorKind::Io, message)
        })?;
        snapshot.unread.store(false, Ordering::Relaxed);
        if let Some(moved) = &moved {
            warn!("{moved}");
        }
        Ok(moved)
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
