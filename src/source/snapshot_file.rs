//! **Shell.** The file of the snapshot: private, replaced whole, kept by one process.
//! What is in it is [`snapshot`]'s.
//!
//! | found | done |
//! | --- | --- |
//! | nothing, or an empty file | an empty start |
//! | a link, a device, a pipe, a folder; a file of another user, one that others may write, one with a second name, one that is too large | neither read nor replaced: whoever put it there could put addresses there |
//! | a file that does not begin as a snapshot does | never replaced: the path may be mistyped |
//! | one of ours that is of no use | moved aside (`.refused`), in the place of the one before, when a new one is written |
//! | another process keeps it | read, never written |
//! | what the system does not let us read just now | tried again before it is replaced |
//!
//! Written to a new file beside it (`.new`), synced, renamed over the old one, and
//! the folder synced: whenever the power goes, either the old one or the new one is
//! there. What a process left of it that was killed meanwhile is taken away by the next
//! one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg, OFlag},
    unistd::{AccessFlags, access, geteuid},
};

use crate::snapshot::{self, BODY_LIMIT, HEADER_LIMIT};

/// Nobody but the owner may write, the group may read.
const STRANGERS: u32 = 0o022;

/// The file, and the right to write it.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotFile {
    path: Arc<Path>,
    /// Held as long as this lives, once it was had.
    lock: Arc<Mutex<Option<Flock<File>>>>,
    /// It is not written any more.
    given_up: Arc<AtomicBool>,
}

/// Why the file was not read or written: one sentence with its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileTrouble(Box<str>);

impl std::fmt::Display for FileTrouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What becomes of the one that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    Replaced,
    /// It is of no use, and not to be lost.
    Kept,
}

impl SnapshotFile {
    /// Opens nothing yet.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path: path.into(),
            lock: Arc::default(),
            given_up: Arc::default(),
        }
    }

    /// Gives up the right to write for ever, after a write that has begun.
    pub(crate) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
        *self.locked() = None;
    }

    /// [Gives up](Self::give_up) the right to write to whoever keeps that path from now
    /// on. Where it is the same, the lock goes with it.
    pub(crate) fn hand_over(&self, path: PathBuf) -> Self {
        let next = Self::new(path);
        if next.path != self.path {
            self.give_up();
            return next;
        }
        self.given_up.store(true, Ordering::Relaxed);
        Self {
            lock: Arc::clone(&self.lock),
            ..next
        }
    }

    fn locked(&self) -> MutexGuard<'_, Option<Flock<File>>> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where one of no use is moved to.
    pub(crate) fn aside(&self) -> PathBuf {
        beside(&self.path, ".refused")
    }

    /// All of it; `None` where there is none.
    pub(crate) async fn load(&self) -> Result<Option<Vec<u8>>, FileTrouble> {
        let path = Arc::clone(&self.path);
        self.blocking(move || read(&path, is_trusted)).await
    }

    /// The same for whoever looks at what another run is to use, and whether that one could
    /// write it.
    pub(crate) async fn check(&self) -> Result<Option<Vec<u8>>, FileTrouble> {
        let path = Arc::clone(&self.path);
        self.blocking(move || {
            let folder = folder(&path);
            access(folder, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|error| {
                let folder = folder.display();
                io::Error::other(format!("nothing can be written to {folder}: {error}"))
            })?;
            // Root asks for a run that may be another user's.
            read(&path, |owner| geteuid().is_root() || is_trusted(owner))
        })
        .await
    }

    /// Puts what `bytes` makes in its place, unless that was given up or what is there is not
    /// ours to replace. They are made where nobody waits for the thread: there may be many of
    /// them.
    pub(crate) async fn save(
        &self,
        before: Before,
        bytes: impl FnOnce() -> Vec<u8> + Send + 'static,
    ) -> Result<(), FileTrouble> {
        let file = self.clone();
        self.blocking(move || {
            // Held over the writing on purpose: one writer at a time.
            let mut lock = file.locked();
            if file.given_up.load(Ordering::Relaxed) {
                return Ok(());
            }
            // Before anything is left beside what is somebody else's.
            check_is_ours(&file.path)?;
            if lock.is_none() {
                *lock = Some(take_lock(&file.path)?);
            }
            let aside = (before == Before::Kept).then(|| file.aside());
            write(&file.path, &bytes(), aside.as_deref())
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, FileTrouble> {
        let done = match tokio::task::spawn_blocking(work).await {
            Ok(done) => done,
            Err(_) => Err(io::Error::other("the runtime is shutting down")),
        };
        done.map_err(|error| {
            FileTrouble(format!("the snapshot {}: {error}", self.path.display()).into())
        })
    }
}

const LIMIT: u64 = (BODY_LIMIT + HEADER_LIMIT) as u64;

fn read(path: &Path, is_trusted: impl Fn(u32) -> bool) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = open(path, is_trusted)? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut bytes)?;
    Ok((!bytes.is_empty()).then_some(bytes))
}

/// Refuses what is not ours to replace.
fn check_is_ours(path: &Path) -> io::Result<()> {
    let mut head = Vec::new();
    if let Some(file) = open(path, is_trusted)? {
        let most = snapshot::BEGIN.len() as u64;
        file.take(most).read_to_end(&mut head)?;
    }
    match head.is_empty() || snapshot::begins(&head) {
        true => Ok(()),
        false => Err(io::Error::other(snapshot::Refused::NotOne.to_string())),
    }
}

/// Whose files are believed.
fn is_trusted(owner: u32) -> bool {
    owner == geteuid().as_raw() || owner == 0
}

/// A file that nobody else can have put there; `None` where there is none.
fn open(path: &Path, is_trusted: impl Fn(u32) -> bool) -> io::Result<Option<File>> {
    // Without O_NONBLOCK a pipe would wait for its other end.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => {
            return Err(io::Error::other("is a link: give the file itself"));
        }
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    let refused = if !metadata.is_file() {
        Some("is not a file")
    } else if !is_trusted(metadata.uid()) {
        Some("belongs to another user: remove it")
    } else if metadata.mode() & STRANGERS != 0 {
        Some("may be written by others: chmod 600 it, or remove it")
    } else if metadata.nlink() != 1 {
        Some("has a second name: remove one")
    } else if metadata.len() > LIMIT {
        Some("is larger than a snapshot can be: remove it")
    } else {
        None
    };
    match refused {
        Some(why) => Err(io::Error::other(why)),
        None => Ok(Some(file)),
    }
}

/// A file of ours beside it.
fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(what);
    name.into()
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// The lock stands beside the file, which is replaced.
fn take_lock(path: &Path) -> io::Result<Flock<File>> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).bits())
        .open(beside(path, ".lock"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => io::Error::other("is kept by another process: give each its own"),
        error => error.into(),
    })
}

fn write(path: &Path, bytes: &[u8], aside: Option<&Path>) -> io::Result<()> {
    let name = beside(path, ".new");
    // Nobody else writes it: we have the lock. A link is not followed.
    if !name.is_symlink() {
        check_beside(&name)?;
    }
    match fs::remove_file(&name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let make_room = || match aside {
        None => Ok(()),
        Some(aside) => {
            check_beside(aside)?;
            fs::rename(path, aside)
        }
    };
    let written = write_new(&name, bytes)
        .and_then(|()| make_room())
        .and_then(|()| fs::rename(&name, path));
    if written.is_err() {
        // What is left of it is of no use to anybody.
        let _ = fs::remove_file(&name);
    }
    written?;
    File::open(folder(path))?.sync_all()
}

/// Refuses what has a name that is to be ours, and is not.
fn check_beside(path: &Path) -> io::Result<()> {
    check_is_ours(path).map_err(|error| {
        let path = path.display();
        io::Error::other(format!("{path} is in the way: {error}"))
    })
}

fn write_new(name: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits())
        .open(name)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    const ONE: &[u8] = b"proconsul-snapshot 1 one";
    const TWO: &[u8] = b"proconsul-snapshot 1 two";
    const THREE: &[u8] = b"proconsul-snapshot 1 three";
    const FOUR: &[u8] = b"proconsul-snapshot 1 four";
    const LATE: &[u8] = b"proconsul-snapshot 1 late";

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let name = format!("proconsul-snapshot-{:016x}", clock::nonce());
            let folder = std::env::temp_dir().join(name);
            fs::create_dir(&folder).unwrap();
            Self(folder)
        }

        fn file(&self) -> SnapshotFile {
            SnapshotFile::new(self.0.join("snapshot"))
        }

        fn names(&self) -> Vec<String> {
            let names = fs::read_dir(&self.0).unwrap();
            let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name();
            let mut names: Vec<_> = names
                .map(|entry| name(entry).into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::set_permissions(&self.0, fs::Permissions::from_mode(0o700));
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    async fn refusal(file: &SnapshotFile) -> String {
        file.load().await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn what_is_saved_is_loaded_private_and_alone_in_its_folder() {
        let folder = Folder::new();
        let file = folder.file();
        assert_eq!(file.load().await, Ok(None));
        for bytes in [ONE.to_vec(), TWO.to_vec()] {
            file.save(Before::Replaced, {
                let bytes = bytes.clone();
                || bytes
            })
            .await
            .unwrap();
            assert_eq!(file.load().await, Ok(Some(bytes)));
        }
        let mode = fs::metadata(file.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(folder.names(), ["snapshot", "snapshot.lock"]);
    }

    #[tokio::test]
    async fn what_somebody_else_may_have_put_there_is_refused() {
        let folder = Folder::new();
        let file = folder.file();
        let path = file.path().to_owned();
        let good = folder.0.join("good");
        fs::write(&good, "x").unwrap();

        symlink(&good, &path).unwrap();
        assert!(refusal(&file).await.contains("is a link"));
        fs::remove_file(&path).unwrap();

        fs::hard_link(&good, &path).unwrap();
        assert!(refusal(&file).await.contains("second name"));
        fs::remove_file(&path).unwrap();

        fs::create_dir(&path).unwrap();
        assert!(refusal(&file).await.contains("not a file"));
        fs::remove_dir(&path).unwrap();

        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(refusal(&file).await.contains("not a file"));
        fs::remove_file(&path).unwrap();

        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(refusal(&file).await.contains("written by others"));

        let large = File::create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        large
            .set_len((BODY_LIMIT + HEADER_LIMIT + 1) as u64)
            .unwrap();
        assert!(refusal(&file).await.contains("larger"));
    }

    #[tokio::test]
    async fn what_may_be_somebody_elses_is_not_replaced_and_nothing_is_left_beside_it() {
        let folder = Folder::new();
        let (file, other) = (folder.file(), folder.0.join("other"));
        let path = file.path();
        let kept = async |why: &str| {
            let names = folder.names();
            let save = file.save(Before::Kept, || ONE.to_vec());
            let refused = save.await.unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
            assert_eq!(folder.names(), names);
        };
        fs::write(path, "my notes").unwrap();
        kept("is no snapshot").await;
        assert_eq!(fs::read(path).unwrap(), b"my notes");

        fs::write(path, ONE).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
        kept("written by others").await;
        assert_eq!(fs::read(path).unwrap(), ONE);
        fs::rename(path, &other).unwrap();

        symlink(&other, path).unwrap();
        kept("is a link").await;
        assert!(path.is_symlink());
        fs::remove_file(path).unwrap();

        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        kept("is not a file").await;
        assert!(!fs::symlink_metadata(path).unwrap().is_file());
        // Read, a device has no end.
        let zeroes = SnapshotFile::new("/dev/zero".into());
        assert!(refusal(&zeroes).await.contains("is not a file"));
    }

    #[tokio::test]
    async fn what_is_of_no_use_is_moved_aside_over_nothing_but_the_one_before() {
        let folder = Folder::new();
        let file = folder.file();
        let aside = file.aside();
        for left in ["proconsul-snapshot 1 first", "proconsul-snapshot 1 second"] {
            fs::write(file.path(), left).unwrap();
            file.save(Before::Kept, || ONE.to_vec()).await.unwrap();
            assert_eq!(file.load().await, Ok(Some(ONE.to_vec())));
            assert_eq!(fs::read(&aside).unwrap(), left.as_bytes());
        }
        fs::write(&aside, "my notes").unwrap();
        let save = file.save(Before::Kept, || TWO.to_vec());
        let refused = save.await.unwrap_err().to_string();
        assert!(refused.contains("refused is in the way"), "{refused}");
        assert_eq!(fs::read(&aside).unwrap(), b"my notes");
        assert_eq!(file.load().await, Ok(Some(ONE.to_vec())));
    }

    #[tokio::test]
    async fn what_a_killed_process_left_is_taken_away_and_not_followed() {
        let folder = Folder::new();
        let (file, other) = (folder.file(), folder.0.join("other"));
        fs::write(&other, "precious").unwrap();
        let left = folder.0.join("snapshot.new");
        for link in [false, true] {
            match link {
                false => fs::write(&left, "proconsul-snap").unwrap(),
                true => symlink(&other, &left).unwrap(),
            }
            file.save(Before::Replaced, || ONE.to_vec()).await.unwrap();
            assert_eq!(file.load().await, Ok(Some(ONE.to_vec())));
            assert_eq!(folder.names(), ["other", "snapshot", "snapshot.lock"]);
        }
        assert_eq!(fs::read(&other).unwrap(), b"precious");
        // Nor is what never was one of ours.
        fs::write(&left, "my notes").unwrap();
        let save = file.save(Before::Replaced, || TWO.to_vec());
        let refused = save.await.unwrap_err().to_string();
        assert!(refused.contains("new is in the way"), "{refused}");
        assert_eq!(fs::read(&left).unwrap(), b"my notes");
    }

    #[tokio::test]
    async fn a_file_of_another_user_is_not_believed() {
        if !geteuid().is_root() {
            // Nobody else can give a file away; CI runs as root.
            return;
        }
        let folder = Folder::new();
        let file = folder.file();
        file.save(Before::Replaced, || ONE.to_vec()).await.unwrap();
        std::os::unix::fs::chown(file.path(), Some(65_534), None).unwrap();
        assert!(refusal(&file).await.contains("belongs to another user"));
    }

    #[tokio::test]
    async fn a_second_keeper_may_read_and_not_write() {
        let folder = Folder::new();
        let (first, second) = (folder.file(), folder.file());
        first.save(Before::Replaced, || ONE.to_vec()).await.unwrap();
        assert_eq!(second.load().await, Ok(Some(ONE.to_vec())));
        let refused = second
            .save(Before::Replaced, || TWO.to_vec())
            .await
            .unwrap_err()
            .to_string();
        assert!(refused.contains("another process"), "{refused}");
        drop(first);
        second
            .save(Before::Replaced, || TWO.to_vec())
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn whoever_hands_over_writes_no_more_and_keeps_nobody_from_it() {
        let folder = Folder::new();
        let first = folder.file();
        first.save(Before::Replaced, || ONE.to_vec()).await.unwrap();
        let second = first.hand_over(first.path().to_owned());
        second
            .save(Before::Replaced, || TWO.to_vec())
            .await
            .unwrap();
        first
            .save(Before::Replaced, || LATE.to_vec())
            .await
            .unwrap();
        assert_eq!(second.load().await, Ok(Some(TWO.to_vec())));
        let elsewhere = second.hand_over(folder.0.join("other"));
        elsewhere
            .save(Before::Replaced, || THREE.to_vec())
            .await
            .unwrap();
        folder
            .file()
            .save(Before::Replaced, || FOUR.to_vec())
            .await
            .unwrap();
        assert_eq!(first.load().await, Ok(Some(FOUR.to_vec())));
    }

    #[tokio::test]
    async fn a_save_that_fails_leaves_the_old_one_and_nothing_else() {
        let folder = Folder::new();
        let missing = SnapshotFile::new(folder.0.join("no/snapshot"));
        assert!(
            missing
                .save(Before::Replaced, || ONE.to_vec())
                .await
                .is_err()
        );
        let file = folder.file();
        // A folder in its place cannot be replaced by a file.
        fs::create_dir(file.path()).unwrap();
        assert!(file.save(Before::Replaced, || ONE.to_vec()).await.is_err());
        assert_eq!(folder.names(), ["snapshot"]);
    }
}
