//! **Door.** The names that are followed, and since when and for whom. How one of them is
//! followed is [`follow`](super::follow)'s to say.
//!
//! | followed | until |
//! | --- | --- |
//! | a name that a [`Service`](crate::Service) handle is held of | the last handle is dropped |
//! | a name that is asked [`HOT`] times or more between two answers | it is asked less often in [`WHILE`](super::follow::WHILE) or more |
//!
//! The connections are bounded by [`ResolverBuilder::watches`]; above that names are polled.
//!
//! [`ResolverBuilder::watches`]: crate::ResolverBuilder::watches

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
};

use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
    task::AbortHandle,
};

use super::{
    Inner,
    climb::Landed,
    follow::{Following, POLL},
    news::{Known, News},
    pulse::Pulses,
    turnstile::Turnstiles,
};
use crate::{clock, error::Error, name::ConsulName, pool::Pool, task};

/// Asked so often between two answers, a name is worth a connection of its own.
const HOT: u32 = 20;

/// The names that are followed. Dropped, it ends their queries.
#[derive(Debug)]
pub(super) struct Followers {
    /// By the name's key. A std mutex: held for one look, never across an await.
    all: Mutex<HashMap<Box<str>, Follower>>,
    /// One for each blocking query.
    pub(super) connections: Arc<Semaphore>,
    pub(super) pulses: Arc<Pulses>,
    pub(super) stiles: Arc<Turnstiles>,
    most: usize,
}

#[derive(Debug)]
struct Follower {
    news: Arc<News>,
    task: AbortHandle,
}

impl Followers {
    pub(super) fn new(most: usize) -> Self {
        Self {
            all: Mutex::default(),
            connections: Arc::new(Semaphore::new(most)),
            pulses: Arc::default(),
            stiles: Arc::default(),
            most,
        }
    }

    /// Names that are followed by a query of their own.
    pub(super) fn watches(&self) -> usize {
        self.most - self.connections.available_permits()
    }

    /// Names without an endpoint.
    pub(super) fn empty(&self) -> usize {
        let is_empty = |follower: &&Follower| match &*follower.news.known.borrow() {
            Known::Unheard => false,
            Known::Set(held, _) => held.endpoints.is_empty(),
            Known::Gone | Known::Lost => true,
        };
        self.all().values().filter(is_empty).count()
    }

    /// What is told of a name that is followed.
    fn news(&self, key: &str) -> Option<Arc<News>> {
        self.all().get(key).map(|known| Arc::clone(&known.news))
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Box<str>, Follower>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Followers {
    fn drop(&mut self) {
        for follower in self.all().values() {
            follower.task.abort();
        }
    }
}

impl Inner {
    /// A name was found that had been asked so often since it was found before.
    pub(super) fn follow_if_hot(self: &Arc<Self>, name: &ConsulName, asked: u32) {
        let room = self.followers.connections.available_permits() > 0;
        if asked >= HOT && room && self.sources.can_follow(name) {
            drop(self.follow(name, None));
        }
    }

    /// Follows a name; whoever holds what is given of what is known keeps it followed. `pool`: it is told
    /// too, by that number of the name.
    ///
    /// Panics outside a tokio runtime.
    pub(super) fn follow(
        self: &Arc<Self>,
        name: &ConsulName,
        pool: Option<(&Arc<Pool>, usize)>,
    ) -> Heeds {
        let mut all = self.followers.all();
        let known = all.get(name.key());
        let news = known.map_or_else(Arc::default, |known| Arc::clone(&known.news));
        let heard = Heeds {
            known: news.known.subscribe(),
            problem: news.problem.subscribe(),
        };
        if let Some((pool, feed)) = pool {
            news.add(pool, feed);
        }
        // Its runtime may have ended: whoever listens still does.
        let is_lone = news.lone.swap(false, Ordering::SeqCst);
        if known.is_some_and(|known| !is_lone && !known.task.is_finished()) {
            return heard;
        }
        let following = Following::new(self, name, &news);
        // Its owner is the map: it is aborted when the resolver goes.
        let mut running = Running {
            following,
            began: false,
            ended: false,
        };
        let task = tokio::spawn(async move {
            // All of it, or nobody would know where it is dropped before.
            let running = &mut running;
            running.began = true;
            let (following, what) = (&running.following, "whoever follows a name");
            task::anew_after_panics(what, POLL, || following.run()).await;
            running.ended = true;
        });
        let task = task.abort_handle();
        all.insert(name.key().into(), Follower { news, task });
        heard
    }

    /// Whoever followed a name ended with its runtime: it is followed again in this one, if this
    /// is one. What is too old to be given is given no longer, in any case.
    pub(super) fn follow_again(self: &Arc<Self>, name: &ConsulName) {
        if let Some(news) = self.followers.news(name.key())
            && news.is_outdated(clock::now(), self.config.cache.keep)
        {
            news.tell(Known::Lost);
        }
        if Handle::try_current().is_ok() {
            drop(self.follow(name, None));
        }
    }

    /// What a look-up of a name came to, for those who follow it.
    pub(super) fn tell_followers(&self, name: &ConsulName, landed: &Landed) {
        if let Some(news) = self.followers.news(name.key()) {
            news.landed(landed);
        }
    }

    /// A name that was told to be gone is held after all: whoever follows it looks.
    pub(super) fn is_taken_back(&self, key: &str) {
        if let Some(news) = self.followers.news(key) {
            news.again.notify_one();
        }
    }

    /// Ends following a name that nobody listens to and that is asked seldom. False:
    /// it goes on.
    pub(super) fn leave(&self, name: &ConsulName) -> bool {
        let mut all = self.followers.all();
        let listeners = all
            .get(name.key())
            .map_or(0, |one| one.news.known.receiver_count());
        if listeners > 0 || self.cache().take_asked(name.key()) >= HOT {
            return false;
        }
        all.remove(name.key());
        self.cache().expire(name.key(), clock::now());
        true
    }
}

/// What whoever follows a name tells.
pub(super) struct Heeds {
    pub(super) known: watch::Receiver<Known>,
    pub(super) problem: watch::Receiver<Option<Error>>,
}

/// One that runs. Dropped before it has ended, as by a runtime that is shut down, it says so.
struct Running {
    following: Following,
    began: bool,
    ended: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        self.following.is_lost(self.began);
    }
}
