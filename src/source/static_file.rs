//! **Shell.** The static catalog's file: read at first use and again when it
//! changes. A new file that is bad leaves the last good one in use, with its
//! error beside it.

use std::{
    fmt, fs,
    io::Read as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    source::static_catalog::{StaticCatalog, StaticError},
    stamp::Stamp,
};

/// The largest file taken; a hundred thousand instances are in it.
const FILE_LIMIT: u64 = 16 << 20;

/// A file that holds a static catalog. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct StaticFile(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    domain: Box<str>,
    last: Mutex<Last>,
}

#[derive(Clone, Debug, Default)]
struct Last {
    stamp: Option<Stamp>,
    good: Option<Arc<StaticCatalog>>,
    error: Option<Arc<StaticFileError>>,
}

/// A catalog, and why it is not the file's present one.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub(crate) catalog: Arc<StaticCatalog>,
    pub(crate) outdated: Option<Arc<StaticFileError>>,
}

impl StaticFile {
    /// Looks at nothing yet.
    pub(crate) fn new(path: PathBuf, domain: &str) -> Self {
        Self(Arc::new(Inner {
            path,
            domain: domain.into(),
            last: Mutex::default(),
        }))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0.path
    }

    /// The catalog as the file holds it now, or as it last held a good one.
    ///
    /// Cancel-safe: a read that nobody waits for any more still counts.
    pub(crate) async fn load(&self) -> Result<Loaded, Arc<StaticFileError>> {
        let inner = Arc::clone(&self.0);
        match tokio::task::spawn_blocking(move || inner.load()).await {
            Ok(loaded) => loaded,
            Err(_) => {
                let why = Why::Io("the runtime is shutting down".into());
                Err(Arc::new(self.0.error(why)))
            }
        }
    }
}

impl Inner {
    /// Blocks. The mutex is held over a read on purpose: one reader is enough,
    /// and nobody awaits here.
    fn load(&self) -> Result<Loaded, Arc<StaticFileError>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = fs::metadata(&self.path).ok().as_ref().map(Stamp::of);
        let known = last.good.is_some() || last.error.is_some();
        if stamp.is_none() || stamp != last.stamp || !known {
            match self.read() {
                Ok(catalog) => {
                    last.good = Some(Arc::new(catalog));
                    last.error = None;
                }
                Err(why) => {
                    let error = self.error(why);
                    // Once for each reason, not once for each look-up.
                    if last.good.is_some() && last.error.as_deref() != Some(&error) {
                        tracing::warn!("{error}; the static catalog read before stays in use");
                    }
                    last.error = Some(Arc::new(error));
                }
            }
            last.stamp = stamp;
        }
        match (&last.good, &last.error) {
            (Some(catalog), outdated) => Ok(Loaded {
                catalog: Arc::clone(catalog),
                outdated: outdated.clone(),
            }),
            (None, Some(error)) => Err(Arc::clone(error)),
            (None, None) => Err(Arc::new(self.error(Why::Io("was not read".into())))),
        }
    }

    fn read(&self) -> Result<StaticCatalog, Why> {
        let failed = |error: std::io::Error| Why::Io(error.to_string().into());
        // Opening a pipe would wait for its other end.
        if !fs::metadata(&self.path).map_err(failed)?.is_file() {
            return Err(Why::Io("is not a file".into()));
        }
        let file = fs::File::open(&self.path).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(FILE_LIMIT + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if u64::try_from(bytes.len()).is_ok_and(|length| length > FILE_LIMIT) {
            return Err(Why::Io("is larger than 16 MiB".into()));
        }
        let text = str::from_utf8(&bytes).map_err(|_| Why::Io("is not UTF-8 text".into()))?;
        StaticCatalog::parse(text, &self.domain).map_err(Why::Text)
    }

    fn error(&self, why: Why) -> StaticFileError {
        StaticFileError {
            path: self.path.clone(),
            why,
        }
    }
}

/// Why a file gives no catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StaticFileError {
    path: PathBuf,
    why: Why,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Why {
    Io(Box<str>),
    Text(StaticError),
}

impl fmt::Display for StaticFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.path.display())?;
        match &self.why {
            Why::Io(why) => f.write_str(why),
            Why::Text(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StaticFileError {}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = r#"{"service":{"name":"web","address":"10.0.0.1"}}"#;

    struct Kept(PathBuf);

    impl Kept {
        fn new(name: &str) -> Self {
            let name = format!("proconsul-static-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let _ = fs::remove_file(&path);
            Self(path)
        }

        fn put(&self, bytes: impl AsRef<[u8]>) {
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

    #[tokio::test]
    async fn a_changed_file_is_read_again_and_an_unchanged_one_is_not() {
        let kept = Kept::new("changed");
        kept.put(ONE);
        let file = StaticFile::new(kept.0.clone(), "consul");
        let first = file.load().await.unwrap();
        let second = file.load().await.unwrap();
        assert!(Arc::ptr_eq(&first.catalog, &second.catalog));
        kept.put(ONE.replace("web", "api"));
        let third = file.load().await.unwrap();
        assert!(third.catalog.find("api", None).is_some());
    }

    #[tokio::test]
    async fn the_last_good_catalog_stays_when_the_file_turns_bad() {
        let kept = Kept::new("bad");
        kept.put(ONE);
        let file = StaticFile::new(kept.0.clone(), "consul");
        file.load().await.unwrap();
        for (bad, why) in [
            (&b"{"[..], "line 1, column 1: EOF while parsing an object"),
            (b"\xff", "is not UTF-8 text"),
            (
                br#"{"service":{"name":"x"}}"#,
                "entry 1, address: is missing",
            ),
        ] {
            kept.put(bad);
            for _ in 0..2 {
                let loaded = file.load().await.unwrap();
                assert!(loaded.catalog.find("web", None).is_some());
                let told = loaded.outdated.unwrap().to_string();
                assert_eq!(told, format!("{}: {why}", kept.0.display()));
            }
        }
        fs::remove_file(&kept.0).unwrap();
        assert!(file.load().await.unwrap().outdated.is_some());
        kept.put(ONE);
        assert!(file.load().await.unwrap().outdated.is_none());
    }

    #[tokio::test]
    async fn a_file_that_was_never_good_is_an_error_until_it_is() {
        let kept = Kept::new("never");
        let file = StaticFile::new(kept.0.clone(), "consul");
        assert!(file.load().await.is_err());
        kept.put("[]");
        assert!(file.load().await.is_err());
        assert!(file.load().await.is_err());
        kept.put(vec![b' '; (16 << 20) + 1]);
        let told = file.load().await.unwrap_err().to_string();
        assert!(told.ends_with("is larger than 16 MiB"), "{told}");
        kept.put(ONE);
        assert!(file.load().await.is_ok());
        let folder = StaticFile::new(std::env::temp_dir(), "consul");
        assert!(folder.load().await.is_err());
    }
}
