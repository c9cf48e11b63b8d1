//! **Door.** What is known of a name that is followed, and who is told of it: whoever holds a
//! handle, and the pools that picks are made from. Who finds it out is [`follow`](super::follow)'s
//! to say.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{found::Held, pool::Pool};

/// What a follower last heard.
#[derive(Clone, Debug)]
pub(super) enum Known {
    /// Nothing yet.
    Unheard,
    /// And when a source last gave it.
    Set(Arc<Held>, Instant),
    /// There is no such name, or nothing healthy.
    Gone,
    /// No source has answered for as long as a set may be given.
    Lost,
}

/// What a follower tells, and whom: those who wait for it, and the pools that picks are
/// made from.
#[derive(Debug)]
pub(super) struct News {
    pub(super) known: watch::Sender<Known>,
    /// Whoever followed it ended with its runtime.
    pub(super) lone: AtomicBool,
    /// Each by the number that it knows this name by. A std mutex: held while they are
    /// told, so that none is told the older of two after the newer.
    pools: Mutex<Vec<(Weak<Pool>, usize)>>,
}

impl Default for News {
    fn default() -> Self {
        Self {
            known: watch::Sender::new(Known::Unheard),
            lone: AtomicBool::new(false),
            pools: Mutex::default(),
        }
    }
}

impl News {
    pub(super) fn add(&self, pool: &Arc<Pool>, feed: usize) {
        self.pools().push((Arc::downgrade(pool), feed));
        self.tell_pools();
    }

    fn tell_pools(&self) {
        self.pools().retain(|(pool, feed)| {
            let Some(pool) = pool.upgrade() else {
                return false;
            };
            match &*self.known.borrow() {
                Known::Unheard => {}
                Known::Set(held, _) => pool.feed(*feed, Some(Arc::clone(held))),
                Known::Gone => pool.feed(*feed, None),
                Known::Lost => pool.forget(*feed),
            }
            true
        });
    }

    pub(super) fn tell(&self, known: Known) {
        let told = self.known.send_if_modified(|before| {
            let same = match (&*before, &known) {
                (Known::Set(before, _), Known::Set(held, _)) => Arc::ptr_eq(before, held),
                (Known::Gone, Known::Gone) | (Known::Lost, Known::Lost) => true,
                _ => false,
            };
            *before = known;
            !same
        });
        if told {
            self.tell_pools();
        }
    }

    /// Nobody tells anything here any more, until it is followed again. `wakes`: whoever waits
    /// is to see to that.
    pub(super) fn end(&self, wakes: bool) {
        self.lone.store(true, Ordering::SeqCst);
        for (pool, _) in &*self.pools() {
            if let Some(pool) = pool.upgrade() {
                pool.set_lone(true);
            }
        }
        if wakes {
            self.known.send_modify(|_| {});
        }
    }

    /// Whether something was told that may still be given.
    pub(super) fn is_told(&self, now: Instant, keep: Duration) -> bool {
        let is_told = matches!(&*self.known.borrow(), Known::Set(..) | Known::Gone);
        is_told && !self.is_outdated(now, keep)
    }

    /// Whether what was last told is older than what may be given.
    pub(super) fn is_outdated(&self, now: Instant, keep: Duration) -> bool {
        match &*self.known.borrow() {
            Known::Set(_, since) => now.saturating_duration_since(*since) >= keep,
            Known::Unheard | Known::Gone | Known::Lost => false,
        }
    }

    fn pools(&self) -> MutexGuard<'_, Vec<(Weak<Pool>, usize)>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
