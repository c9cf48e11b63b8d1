//! **Shell.** The file of the snapshot: private, replaced whole, kept by one process.
//! What is in it is [`snapshot`]'s.
//!
//! | found | done |
//! | --- | --- |
//! | nothing, or an empty file | an empty start |
//! | a link, a device, a pipe, a folder; a file that does not begin as a snapshot does | neither read nor replaced: the path may be mistyped |
//! | one of another user, one that others may write or we may not read, one with a second name, one that is too large | not read, as whoever put it there could put addresses there, and moved aside |
//! | one of ours that is of no use | moved aside |
//! | another process keeps it | read, never written |
//! | what the system does not let us read just now | tried again before it is replaced |
//!
//! Moved aside (`.refused`), in the place of the one before, is what was judged, and only when
//! a new one is written.
//!
//! Written to a new file beside it (`.new`), synced, renamed over the old one, and
//! the folder synced: whenever the power goes, either the old one or the new one is
//! there. One that cannot have a second name, as on some file systems, is aside for a moment
//! before the new one is there. What a process left that was killed meanwhile is taken away by
//! the next one.

// What comes from outside is read here: nothing that it says may end in a panic.
#![cfg_attr(
    not(test),
    warn(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, BufReader, Read as _, Write as _},
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
pub(crate) struct FileTrouble {
    why: Box<str>,
    pub(crate) left: Left,
}

/// What may become of one that is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// It is not ours: it is never replaced.
    Stays,
    /// It may be moved aside for a new one.
    GivesWay(Identity),
    /// The system did not let us see it, or write.
    Unknown,
}

/// Which file was judged: there may be another one since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

/// What becomes of the one that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    Replaced,
    /// This one is of no use, and not to be lost.
    Kept(Identity),
}

impl std::fmt::Display for FileTrouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

impl FileTrouble {
    fn new(why: impl Into<Box<str>>, left: Left) -> Self {
        let why = why.into();
        Self { why, left }
    }

    fn stays(why: impl Into<Box<str>>) -> Self {
        Self::new(why, Left::Stays)
    }
}

impl From<io::Error> for FileTrouble {
    fn from(error: io::Error) -> Self {
        Self::new(error.to_string(), Left::Unknown)
    }
}

impl From<&Metadata> for Identity {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
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

    /// All of it, and which one it was; `None` where there is none.
    pub(crate) async fn load(&self) -> Result<Option<(Vec<u8>, Identity)>, FileTrouble> {
        let path = Arc::clone(&self.path);
        self.blocking(move || read(&path, is_trusted)).await
    }

    /// The same for whoever looks at what another run is to use, and whether this one could
    /// write it.
    pub(crate) async fn check(&self) -> Result<Option<(Vec<u8>, Identity)>, FileTrouble> {
        let path = Arc::clone(&self.path);
        self.blocking(move || {
            // Root asks for a run that may be another user's.
            let read = read(&path, |owner| geteuid().is_root() || is_trusted(owner));
            if let Err(trouble) = &read
                && trouble.left == Left::Stays
            {
                return read;
            }
            let folder = folder(&path);
            access(folder, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|error| {
                let folder = folder.display();
                io::Error::other(format!("nothing can be written to {folder}: {error}"))
            })?;
            read
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
            // Whoever had the lock until now may have replaced what was judged.
            let is_kept = is_kept(&file.path, before)?;
            let aside = is_kept.then(|| file.aside());
            write(&file.path, &bytes(), aside.as_deref())
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, FileTrouble> + Send + 'static,
    ) -> Result<T, FileTrouble> {
        let done = match tokio::task::spawn_blocking(work).await {
            Ok(done) => done,
            Err(_) => Err(io::Error::other("the runtime is shutting down").into()),
        };
        done.map_err(|FileTrouble { why, left }| {
            FileTrouble::new(format!("the snapshot {}: {why}", self.path.display()), left)
        })
    }
}

const LIMIT: u64 = (BODY_LIMIT + HEADER_LIMIT) as u64;

fn read(
    path: &Path,
    is_trusted: impl Fn(u32) -> bool,
) -> Result<Option<(Vec<u8>, Identity)>, FileTrouble> {
    let Some((file, mut bytes, metadata)) = open(path)? else {
        return Ok(None);
    };
    let identity = Identity::from(&metadata);
    if let Some(why) = why_not_believed(&metadata, is_trusted) {
        return Err(FileTrouble::new(why, Left::GivesWay(identity)));
    }
    file.take(LIMIT + 1).read_to_end(&mut bytes)?;
    Ok(Some((bytes, identity)))
}

/// Refuses what is not ours to replace.
fn check_is_ours(path: &Path) -> Result<(), FileTrouble> {
    match open(path) {
        Err(trouble) if !matches!(trouble.left, Left::GivesWay(_)) => Err(trouble),
        _ => Ok(()),
    }
}

/// Whether what is there is moved aside for a new one.
fn is_kept(path: &Path, before: Before) -> Result<bool, FileTrouble> {
    let (there, is_believed) = match open(path) {
        Ok(None) => return Ok(false),
        Ok(Some((_, _, metadata))) => {
            let is_believed = why_not_believed(&metadata, is_trusted).is_none();
            (Identity::from(&metadata), is_believed)
        }
        Err(FileTrouble {
            left: Left::GivesWay(there),
            ..
        }) => (there, false),
        Err(trouble) => return Err(trouble),
    };
    match before {
        Before::Replaced => Ok(!is_believed),
        Before::Kept(judged) if judged == there => Ok(true),
        Before::Kept(_) => {
            let why = "has been replaced meanwhile: it is read before the next one is written";
            Err(FileTrouble::new(why, Left::Unknown))
        }
    }
}

/// Whose files are believed.
fn is_trusted(owner: u32) -> bool {
    owner == geteuid().as_raw() || owner == 0
}

/// Why somebody else may have put there what begins as one of ours.
fn why_not_believed(metadata: &Metadata, is_trusted: impl Fn(u32) -> bool) -> Option<&'static str> {
    if !is_trusted(metadata.uid()) {
        Some("belongs to another user")
    } else if metadata.mode() & STRANGERS != 0 {
        Some("may be written by others")
    } else if metadata.nlink() != 1 {
        Some("has a second name")
    } else if metadata.len() > LIMIT {
        Some("is larger than a snapshot can be")
    } else {
        None
    }
}

/// A file that begins as one of ours, and its beginning; `None` where there is none, or an
/// empty one.
fn open(path: &Path) -> Result<Option<(File, Vec<u8>, Metadata)>, FileTrouble> {
    // Without O_NONBLOCK a pipe would wait for its other end.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unopened(path, error)),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(FileTrouble::stays("is not a file"));
    }
    let (mut head, most) = (Vec::new(), snapshot::BEGIN.len() as u64);
    (&file).take(most).read_to_end(&mut head)?;
    if head.is_empty() {
        return Ok(None);
    }
    if !snapshot::begins(&head) {
        return Err(FileTrouble::stays(snapshot::Refused::NotOne.to_string()));
    }
    Ok(Some((file, head, metadata)))
}

/// What is told of one that cannot be opened.
fn unopened(path: &Path, error: io::Error) -> FileTrouble {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_symlink() => FileTrouble::stays("is a link: give the file itself"),
        Ok(there) if !there.is_file() => FileTrouble::stays("is not a file"),
        // As one that was restored by root: for its name it is ours.
        Ok(there) if error.kind() == io::ErrorKind::PermissionDenied => {
            FileTrouble::new(error.to_string(), Left::GivesWay(Identity::from(&there)))
        }
        _ => error.into(),
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

fn write(path: &Path, bytes: &[u8], aside: Option<&Path>) -> Result<(), FileTrouble> {
    let name = beside(path, ".new");
    // Nobody else writes it: we have the lock.
    if !is_left_over(&name) {
        check_beside(&name)?;
    }
    remove(&name)?;
    let make_room = || aside.map_or(Ok(()), |aside| move_aside(path, aside));
    let written = write_new(&name, bytes)
        .map_err(FileTrouble::from)
        .and_then(|()| make_room())
        .and_then(|()| Ok(fs::rename(&name, path)?));
    if written.is_err() {
        // What is left of it is of no use to anybody.
        let _ = fs::remove_file(&name);
    }
    written?;
    Ok(File::open(folder(path))?.sync_all()?)
}

/// What holds nothing that could be lost: a link, which is not followed, or a file that the
/// disk has no bytes of.
fn is_left_over(name: &Path) -> bool {
    let Ok(metadata) = fs::symlink_metadata(name) else {
        return false;
    };
    let is_empty = || {
        let file = File::open(name)?;
        for byte in BufReader::new(file).bytes() {
            if byte? != 0 {
                return Ok(false);
            }
        }
        Ok::<_, io::Error>(true)
    };
    metadata.is_symlink()
        || (metadata.is_file() && metadata.len() <= LIMIT && is_empty().unwrap_or(false))
}

fn move_aside(path: &Path, aside: &Path) -> Result<(), FileTrouble> {
    check_beside(aside)?;
    remove(aside)?;
    // By a second name: at no moment there is none.
    fs::hard_link(path, aside).or_else(|_| fs::rename(path, aside))?;
    Ok(())
}

fn remove(name: &Path) -> io::Result<()> {
    match fs::remove_file(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Refuses what has a name that is to be ours, and is not.
fn check_beside(path: &Path) -> Result<(), FileTrouble> {
    check_is_ours(path).map_err(|FileTrouble { why, left }| {
        let path = path.display();
        FileTrouble::new(format!("{path} is in the way: {why}"), left)
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

    async fn loaded(file: &SnapshotFile) -> Option<Vec<u8>> {
        file.load().await.unwrap().map(|(bytes, _)| bytes)
    }

    /// The one that is there, judged to be of no use.
    fn judged(path: &Path) -> Before {
        Before::Kept(Identity::from(&fs::symlink_metadata(path).unwrap()))
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[tokio::test]
    async fn what_is_saved_is_loaded_private_and_alone_in_its_folder() {
        let folder = Folder::new();
        let file = folder.file();
        assert_eq!(loaded(&file).await, None);
        for bytes in [ONE.to_vec(), TWO.to_vec()] {
            file.save(Before::Replaced, {
                let bytes = bytes.clone();
                || bytes
            })
            .await
            .unwrap();
            assert_eq!(loaded(&file).await, Some(bytes));
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
        fs::write(&good, ONE).unwrap();

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

        fs::write(&path, ONE).unwrap();
        set_mode(&path, 0o666);
        assert!(refusal(&file).await.contains("written by others"));

        set_mode(&path, 0o600);
        let large = OpenOptions::new().write(true).open(&path).unwrap();
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
            let save = file.save(judged(path), || ONE.to_vec());
            let refused = save.await.unwrap_err();
            assert!(refused.to_string().contains(why), "{refused}");
            assert_eq!(refused.left, Left::Stays);
            assert_eq!(folder.names(), names);
        };
        fs::write(path, "my notes").unwrap();
        for mode in [0o600, 0o666] {
            set_mode(path, mode);
            kept("is no snapshot").await;
            assert_eq!(fs::read(path).unwrap(), b"my notes");
        }
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
            let save = file.save(judged(file.path()), || ONE.to_vec());
            save.await.unwrap();
            assert_eq!(loaded(&file).await, Some(ONE.to_vec()));
            assert_eq!(fs::read(&aside).unwrap(), left.as_bytes());
            set_mode(&aside, 0o666);
        }
        fs::write(&aside, "my notes").unwrap();
        let save = file.save(judged(file.path()), || TWO.to_vec());
        let refused = save.await.unwrap_err().to_string();
        assert!(refused.contains("refused is in the way"), "{refused}");
        assert_eq!(fs::read(&aside).unwrap(), b"my notes");
        assert_eq!(loaded(&file).await, Some(ONE.to_vec()));
        assert_eq!(
            folder.names(),
            ["snapshot", "snapshot.lock", "snapshot.refused"]
        );
    }

    #[tokio::test]
    async fn what_begins_as_ours_and_is_not_believed_makes_room() {
        let folder = Folder::new();
        let (file, aside) = (folder.file(), folder.file().aside());
        let path = file.path();
        let moved = async |why: &str| {
            let refused = file.load().await.unwrap_err();
            assert!(refused.to_string().contains(why), "{refused}");
            let Left::GivesWay(which) = refused.left else {
                panic!("{refused}: it stays");
            };
            let save = file.save(Before::Kept(which), || TWO.to_vec());
            save.await.unwrap();
            assert_eq!(loaded(&file).await, Some(TWO.to_vec()));
            assert_eq!(Identity::from(&fs::metadata(&aside).unwrap()), which);
        };
        // As Kubernetes makes it at each mount.
        fs::write(path, ONE).unwrap();
        set_mode(path, 0o660);
        moved("written by others").await;

        fs::hard_link(path, folder.0.join("other")).unwrap();
        moved("second name").await;

        let large = OpenOptions::new().write(true).open(path).unwrap();
        large.set_len(LIMIT + 1).unwrap();
        moved("larger").await;

        // Also where it came to be so while it was kept.
        set_mode(path, 0o660);
        let save = file.save(Before::Replaced, || THREE.to_vec());
        save.await.unwrap();
        assert_eq!(loaded(&file).await, Some(THREE.to_vec()));
        assert_eq!(fs::read(&aside).unwrap(), TWO);

        if !geteuid().is_root() {
            // Root may read all.
            set_mode(path, 0o000);
            moved("Permission denied").await;
        }
    }

    #[tokio::test]
    async fn what_another_process_wrote_since_it_was_judged_is_not_moved_aside() {
        let folder = Folder::new();
        let (first, second) = (folder.file(), folder.file());
        fs::write(first.path(), "proconsul-snapshot 1 damaged").unwrap();
        let before = judged(first.path());
        first.save(before, || ONE.to_vec()).await.unwrap();
        drop(first);
        let save = second.save(before, || TWO.to_vec());
        let refused = save.await.unwrap_err().to_string();
        assert!(refused.contains("replaced meanwhile"), "{refused}");
        assert_eq!(loaded(&second).await, Some(ONE.to_vec()));
        let aside = fs::read(second.aside()).unwrap();
        assert_eq!(aside, b"proconsul-snapshot 1 damaged");
    }

    #[tokio::test]
    async fn what_a_killed_process_left_is_taken_away_and_not_followed() {
        let folder = Folder::new();
        let (file, other) = (folder.file(), folder.0.join("other"));
        fs::write(&other, "precious").unwrap();
        let left = folder.0.join("snapshot.new");
        for what in [Some(&b"proconsul-snap"[..]), Some(b""), Some(&[0; 9]), None] {
            match what {
                Some(bytes) => {
                    fs::write(&left, bytes).unwrap();
                    set_mode(&left, 0o666);
                }
                None => symlink(&other, &left).unwrap(),
            }
            file.save(Before::Replaced, || ONE.to_vec()).await.unwrap();
            assert_eq!(loaded(&file).await, Some(ONE.to_vec()));
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
        let save = file.save(judged(file.path()), || TWO.to_vec());
        save.await.unwrap();
        assert_eq!(loaded(&file).await, Some(TWO.to_vec()));
    }

    #[tokio::test]
    async fn a_second_keeper_may_read_and_not_write() {
        let folder = Folder::new();
        let (first, second) = (folder.file(), folder.file());
        first.save(Before::Replaced, || ONE.to_vec()).await.unwrap();
        assert_eq!(loaded(&second).await, Some(ONE.to_vec()));
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
        assert_eq!(loaded(&second).await, Some(TWO.to_vec()));
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
        assert_eq!(loaded(&first).await, Some(FOUR.to_vec()));
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
