//! **Door.** [`Kv`]: settings in Consul's key-value store, read, written and watched
//! (Consul docs: KV Store).

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

use std::{fmt, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use crate::{
    consul::{
        api::{Api, Repeat, json, segments, unread, unseen},
        http::{Reply, Trouble, Verb},
    },
    error::{Error, ErrorKind},
    resolver::Resolver,
    task::{Owned, runtime},
};

impl Resolver {
    /// Settings in Consul's key-value store.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), proconsul::Error> {
    /// let kv = proconsul::Resolver::from_env()?.kv();
    /// kv.put("web/limits", r#"{"calls": 100}"#).await?;
    /// let limits: Option<serde_json::Value> = kv.get_as("web/limits").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn kv(&self) -> Kv {
        Kv(self.api())
    }
}

/// Consul's key-value store; made by [`Resolver::kv`]. Cheap to clone.
///
/// Its methods fail with [`ErrorKind::Denied`] where the token may not,
/// [`ErrorKind::Unavailable`] and [`ErrorKind::Timeout`] where no agent answers, and
/// [`ErrorKind::Invalid`] for what Consul refuses: a key that is no path, a value above
/// 512 KiB. That a key is not there is no error.
#[derive(Clone, Debug)]
pub struct Kv(Api);

/// One key and its value.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KvEntry {
    /// The key, without a slash before it.
    pub key: Box<str>,
    /// The value, bytes of any kind.
    pub value: Box<[u8]>,
    /// A number of the user's own.
    pub flags: u64,
    /// The version: for [`Kv::put_if`].
    pub index: u64,
    /// The session that holds it locked.
    pub session: Option<Box<str>>,
}

impl fmt::Debug for KvEntry {
    /// Without the value: settings hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvEntry")
            .field("key", &self.key)
            .field("bytes", &self.value.len())
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

impl KvEntry {
    /// The value as text.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] where it is none.
    pub fn text(&self) -> Result<&str, Error> {
        std::str::from_utf8(&self.value).map_err(|error| {
            let message = format!("the value of {} is no text: {error}", self.key);
            Error::invalid(message, error)
        })
    }

    /// The value as JSON.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] where it is not what `T` is.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.value).map_err(|error| {
            // Serde's own words may hold the value: where it is wrong is enough.
            let at = format!("line {} column {}", error.line(), error.column());
            let key = &self.key;
            let message = format!("the value of {key} is not the JSON that is read there ({at})");
            Error::new(ErrorKind::Invalid, message)
        })
    }
}

/// As Consul tells it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Told {
    key: Box<str>,
    #[serde(default)]
    value: Option<String>,
    #[serde(default)]
    flags: u64,
    #[serde(default)]
    modify_index: u64,
    #[serde(default)]
    session: Option<Box<str>>,
}

/// A path below `/v1/kv/`.
fn path(key: &str) -> Result<String, Error> {
    let key = key.trim_start_matches('/');
    let is_step = |part: &str| matches!(part, "." | "..");
    if key.is_empty() || key.split('/').any(is_step) {
        let message = format!("{:?} is no key: write it as web/limits", key);
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    Ok(format!("/v1/kv/{}?", segments(key)))
}

fn entries(what: &str, reply: &Reply) -> Result<Vec<KvEntry>, Error> {
    if reply.head.status == 404 {
        return Ok(Vec::new());
    }
    let told: Option<Vec<Told>> = json(what, reply)?;
    let entry = |told: Told| {
        let value = BASE64_STANDARD.decode(told.value.unwrap_or_default());
        Ok(KvEntry {
            value: value.map_err(|error| unread(what, &error))?.into(),
            key: told.key,
            flags: told.flags,
            index: told.modify_index,
            session: told.session,
        })
    };
    told.unwrap_or_default().into_iter().map(entry).collect()
}

impl Kv {
    /// The value at a key, if there is one.
    ///
    /// # Errors
    ///
    /// See [`Kv`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn get(&self, key: &str) -> Result<Option<KvEntry>, Error> {
        let what = about(key);
        let reply = self.0.get(&path(key)?, &what).await?;
        Ok(entries(&what, &reply)?.pop())
    }

    /// The same, read as JSON.
    ///
    /// # Errors
    ///
    /// See [`Kv`]; [`ErrorKind::Invalid`] also for a value that `T` cannot be read from.
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn get_as<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        let entry = self.get(key).await?;
        entry.map(|entry| entry.json()).transpose()
    }

    /// Writes a value.
    ///
    /// # Errors
    ///
    /// See [`Kv`].
    ///
    /// # Cancel safety
    ///
    /// Dropped, it may have been written or not.
    pub async fn put(&self, key: &str, value: impl Into<Vec<u8>>) -> Result<(), Error> {
        let done = self.write(key, "", value.into(), Repeat::Safe).await?;
        match done {
            true => Ok(()),
            false => {
                let message = format!("{}: Consul did not take it", about(key));
                Err(Error::new(ErrorKind::Unavailable, message))
            }
        }
    }

    /// The same, as JSON.
    ///
    /// # Errors
    ///
    /// See [`Kv`]; [`ErrorKind::Invalid`] also for a value that JSON cannot hold.
    ///
    /// # Cancel safety
    ///
    /// As [`put`](Self::put).
    pub async fn put_as<T: Serialize>(&self, key: &str, value: &T) -> Result<(), Error> {
        let value = serde_json::to_vec(value)
            .map_err(|error| Error::invalid(format!("{}: {error}", about(key)), error))?;
        self.put(key, value).await
    }

    /// Writes a value where the key's [`index`](KvEntry::index) still is that; 0: where
    /// there is none. False: somebody was quicker.
    ///
    /// # Errors
    ///
    /// See [`Kv`]. Where the answer is lost it may have been written: read it again.
    ///
    /// # Cancel safety
    ///
    /// As [`put`](Self::put).
    pub async fn put_if(
        &self,
        key: &str,
        value: impl Into<Vec<u8>>,
        index: u64,
    ) -> Result<bool, Error> {
        let query = format!("&cas={index}");
        self.write(key, &query, value.into(), Repeat::Unsafe).await
    }

    async fn write(
        &self,
        key: &str,
        query: &str,
        value: Vec<u8>,
        repeat: Repeat,
    ) -> Result<bool, Error> {
        let path = format!("{}{query}", path(key)?);
        let what = about(key);
        let reply = self.0.ask(Verb::Put(value), &path, &what, repeat).await?;
        Ok(reply.body.trim_ascii() == b"true")
    }

    /// Deletes a key; one that is not there is deleted.
    ///
    /// # Errors
    ///
    /// See [`Kv`].
    ///
    /// # Cancel safety
    ///
    /// Dropped, it may have been deleted or not.
    pub async fn delete(&self, key: &str) -> Result<(), Error> {
        let path = path(key)?;
        let what = about(key);
        self.0.ask(Verb::Delete, &path, &what, Repeat::Safe).await?;
        Ok(())
    }

    /// Deletes all keys that begin so.
    ///
    /// # Errors
    ///
    /// See [`Kv`]; an empty prefix, which is everything, is [`ErrorKind::Invalid`].
    ///
    /// # Cancel safety
    ///
    /// As [`delete`](Self::delete).
    pub async fn delete_all(&self, prefix: &str) -> Result<(), Error> {
        let path = format!("{}&recurse", path(prefix)?);
        let what = about(prefix);
        self.0.ask(Verb::Delete, &path, &what, Repeat::Safe).await?;
        Ok(())
    }

    /// All keys that begin so, with their values; an empty prefix is every key. Without
    /// those that the token may not see.
    ///
    /// # Errors
    ///
    /// See [`Kv`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn list(&self, prefix: &str) -> Result<Vec<KvEntry>, Error> {
        let what = about(prefix);
        let path = format!(
            "/v1/kv/{}?recurse",
            segments(prefix.trim_start_matches('/'))
        );
        let (reply, attempts) = self.0.get_from(&path, &what).await?;
        let found = entries(&what, &reply)?;
        if found.is_empty() && reply.head.filtered_by_acls {
            let message = format!("{what}: the token may not see what there is");
            return Err(unseen(message, attempts));
        }
        Ok(found)
    }

    /// A setting that is told as it changes, read as JSON.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for what is no key, where the HTTP API is turned off, and outside a
    /// tokio runtime.
    pub fn watch<T: DeserializeOwned + Send + Sync + 'static>(
        &self,
        key: &str,
    ) -> Result<Setting<T>, Error> {
        self.watch_with(key, KvEntry::json)
    }

    /// The same, read by a function of one's own.
    ///
    /// # Errors
    ///
    /// As [`watch`](Self::watch).
    pub fn watch_with<T: Send + Sync + 'static>(
        &self,
        key: &str,
        read: impl Fn(&KvEntry) -> Result<T, Error> + Send + 'static,
    ) -> Result<Setting<T>, Error> {
        let path = path(key)?;
        let runtime = runtime("a setting can be watched")?;
        if self.0.is_off() {
            let message = "the HTTP API is turned off: settings come from it";
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let (tell, told) = watch::channel(State::default());
        let (api, what) = (self.0.clone(), about(key));
        let mut before = None;
        let task = runtime.spawn(async move {
            let heard = move |replied: Result<Reply, Trouble>| {
                let found = replied
                    .map_err(|trouble| Error::new(trouble.kind(), format!("{what}: {trouble}")))
                    .and_then(|reply| Ok(entries(&what, &reply)?.pop()));
                let found = match found {
                    Ok(found) => found,
                    Err(error) => {
                        tell.send_if_modified(|state| state.has_problem(error));
                        return false;
                    }
                };
                let is_news = before.as_ref() != Some(&found);
                if is_news || tell.borrow().problem.is_some() {
                    let value = found.as_ref().map(&read).transpose();
                    tell.send_modify(|state| {
                        state.is_known = true;
                        match value {
                            Ok(value) => {
                                (state.value, state.problem) = (value.map(Arc::new), None);
                            }
                            // The last one that could be read stays.
                            Err(error) => state.problem = Some(error),
                        }
                    });
                    before = Some(found);
                }
                is_news
            };
            api.follow(&path, None, heard).await;
        });
        Ok(Setting {
            told,
            _task: Arc::new(Owned(task.abort_handle())),
        })
    }
}

fn about(key: &str) -> String {
    format!("the key {}", key.escape_debug())
}

struct State<T> {
    value: Option<Arc<T>>,
    problem: Option<Error>,
    is_known: bool,
}

impl<T> State<T> {
    /// Whether that is news.
    fn has_problem(&mut self, problem: Error) -> bool {
        let text = |problem: &Error| problem.to_string();
        let is_news = self.problem.as_ref().map(text) != Some(text(&problem));
        self.problem = Some(problem);
        is_news
    }
}

impl<T> Default for State<T> {
    fn default() -> Self {
        Self {
            value: None,
            problem: None,
            is_known: false,
        }
    }
}

/// A setting that is followed as long as a handle of it lives; made by [`Kv::watch`]. A
/// value that cannot be read changes nothing but the [`problem`](Self::problem), nor does an
/// agent that is not there.
pub struct Setting<T> {
    told: watch::Receiver<State<T>>,
    _task: Arc<Owned>,
}

impl<T> Clone for Setting<T> {
    fn clone(&self) -> Self {
        Self {
            told: self.told.clone(),
            _task: Arc::clone(&self._task),
        }
    }
}

impl<T> Setting<T> {
    /// The last value that could be read; `None` where there is none, and before the first
    /// answer.
    pub fn get(&self) -> Option<Arc<T>> {
        self.told.borrow().value.clone()
    }

    /// Why the value is not the newest: it cannot be read, or nobody answers.
    pub fn problem(&self) -> Option<Error> {
        self.told.borrow().problem.clone()
    }

    /// Waits for the first answer, and gives the value.
    ///
    /// # Cancel safety
    ///
    /// Safe: it waits for a state and takes nothing.
    pub async fn ready(&self) -> Option<Arc<T>> {
        let mut told = self.told.clone();
        match told.wait_for(|state| state.is_known).await {
            Ok(state) => state.value.clone(),
            Err(_) => None,
        }
    }

    /// Waits until value or problem are others, and gives the value.
    ///
    /// # Cancel safety
    ///
    /// Safe: what changes meanwhile is told the next time.
    pub async fn changed(&mut self) -> Option<Arc<T>> {
        if self.told.changed().await.is_err() {
            // Its runtime has ended.
            std::future::pending::<()>().await;
        }
        self.told.borrow_and_update().value.clone()
    }
}

impl<T> fmt::Debug for Setting<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setting")
            .field("problem", &self.problem())
            .finish_non_exhaustive()
    }
}
