//! **Shell.** A token kept in a file: read again when the file changes, so that
//! a token can be replaced under a running program. A file that cannot be read,
//! or that turns empty, leaves the last good token in use.

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
    fmt, fs,
    io::Read as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use zeroize::Zeroizing;

use crate::{consul::token::Token, stamp::Stamp};

/// No token is longer.
const FILE_LIMIT: u64 = 64 << 10;

/// A file that holds a token.
pub(super) struct TokenFile {
    path: PathBuf,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    stamp: Option<Stamp>,
    /// What the file says, or held when it was last good.
    held: Option<Token>,
    /// Why there is none.
    why: Option<Box<str>>,
}

impl TokenFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            last: Mutex::default(),
        }
    }

    /// The token; `None` as long as the file never held one. An error only where
    /// nothing good was ever read. Blocks.
    pub(super) fn current(&self) -> Result<Option<Token>, Box<str>> {
        // Held over a read of the file on purpose: one reader is enough, and
        // nobody awaits here.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = match fs::metadata(&self.path) {
            Ok(metadata) => Stamp::of(&metadata),
            Err(error) => {
                last.stamp = None;
                return last.keep(&self.path, &error.to_string());
            }
        };
        if last.stamp == Some(seen) {
            return match (&last.held, &last.why) {
                (None, Some(why)) => Err(why.clone()),
                (held, _) => Ok(held.clone()),
            };
        }
        match read(&self.path) {
            Ok((stamp, token)) => {
                last.stamp = Some(stamp);
                last.why = None;
                if token.is_some() {
                    last.held = token;
                } else if last.held.is_some() {
                    tracing::warn!(path = %self.path.display(), "the token file is empty; the token it held stays in use");
                }
                Ok(last.held.clone())
            }
            Err(why) => {
                last.stamp = Some(seen);
                last.keep(&self.path, &why)
            }
        }
    }
}

impl Last {
    fn keep(&mut self, path: &Path, why: &str) -> Result<Option<Token>, Box<str>> {
        let why: Box<str> = format!("token file {}: {why}", path.display()).into();
        if self.held.is_none() {
            self.why = Some(why.clone());
            return Err(why);
        }
        // Once for each reason, not once for each request.
        if self.why.as_ref() != Some(&why) {
            tracing::warn!("{why}; the token it held stays in use");
            self.why = Some(why);
        }
        Ok(self.held.clone())
    }
}

fn read(path: &Path) -> Result<(Stamp, Option<Token>), Box<str>> {
    let failed = |error: std::io::Error| error.to_string().into_boxed_str();
    // Opening a pipe would wait for its other end.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err("is not a file".into());
    }
    let file = fs::File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    warn_of_readers(path, &metadata);
    if metadata.len() > FILE_LIMIT {
        return Err("is too large for a token".into());
    }
    // Wiped, as the token is: with room for all from the beginning, so that none is left behind.
    let room = usize::try_from(metadata.len()).unwrap_or_default();
    let mut bytes = Zeroizing::new(Vec::with_capacity(room.saturating_add(1)));
    file.take(FILE_LIMIT)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    let text = str::from_utf8(&bytes).map_err(|_| "holds no text")?;
    let token = Token::parse(text).map_err(|error| error.to_string())?;
    Ok((Stamp::of(&metadata), token))
}

#[cfg(unix)]
fn warn_of_readers(path: &Path, metadata: &fs::Metadata) {
    use std::os::unix::fs::MetadataExt as _;
    let mode = metadata.mode() & 0o777;
    if mode & !0o640 != 0 {
        let (path, mode) = (path.display(), format!("{mode:03o}"));
        tracing::warn!(%path, %mode, "the token file is open to more than its owner and group; set its mode to 640 or less");
    }
}

#[cfg(not(unix))]
fn warn_of_readers(_: &Path, _: &fs::Metadata) {}

impl fmt::Debug for TokenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TokenFile").field(&self.path).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Kept(PathBuf);

    impl Kept {
        fn new(name: &str) -> Self {
            let name = format!("proconsul-token-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let _ = fs::remove_file(&path);
            Self(path)
        }

        /// Replaces the file as careful writers do, by a rename.
        fn put(&self, bytes: &[u8]) {
            let new = self.0.with_extension("new");
            fs::write(&new, bytes).unwrap();
            fs::rename(new, &self.0).unwrap();
        }
    }

    impl Drop for Kept {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn told(file: &TokenFile) -> Option<String> {
        let token = file.current().unwrap();
        token.map(|token| token.secret().to_owned())
    }

    #[test]
    fn a_replaced_file_is_read_again_and_its_blanks_do_not_count() {
        let kept = Kept::new("again");
        let file = TokenFile::new(kept.0.clone());
        kept.put(b"one\n");
        assert_eq!(told(&file).as_deref(), Some("one"));
        assert_eq!(told(&file).as_deref(), Some("one"));
        kept.put(b"two\r\n");
        assert_eq!(told(&file).as_deref(), Some("two"));
    }

    #[test]
    fn the_last_good_token_stays_when_the_file_turns_bad() {
        let kept = Kept::new("kept");
        let file = TokenFile::new(kept.0.clone());
        kept.put(b"one");
        assert_eq!(told(&file).as_deref(), Some("one"));
        for bad in [&b""[..], b" \n", b"a b", b"\xff", &[b'x'; 70_000]] {
            kept.put(bad);
            assert_eq!(told(&file).as_deref(), Some("one"));
            assert_eq!(told(&file).as_deref(), Some("one"));
        }
        fs::remove_file(&kept.0).unwrap();
        assert_eq!(told(&file).as_deref(), Some("one"));
        kept.put(b"two");
        assert_eq!(told(&file).as_deref(), Some("two"));
    }

    #[test]
    fn a_file_that_was_never_good_is_an_error_that_does_not_repeat_it() {
        let kept = Kept::new("bad");
        let file = TokenFile::new(kept.0.clone());
        assert!(file.current().is_err());
        kept.put(b"hush hush");
        for _ in 0..2 {
            let why = file.current().unwrap_err();
            assert!(
                why.contains("no HTTP header") && !why.contains("hush"),
                "{why}"
            );
        }
        kept.put(b"");
        assert_eq!(told(&file), None);
        assert!(TokenFile::new(std::env::temp_dir()).current().is_err());
    }
}
