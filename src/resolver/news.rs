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

use tokio::sync::{Notify, watch};

use super::climb::Landed;
use crate::{
    endpoint::{Attempt, Outcome},
    error::Error,
    found::Held,
    pool::Pool,
};

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
    /// Why nobody answers now, where that is so. Sent when it becomes another one: the text of
    /// each attempt is another.
    pub(super) problem: watch::Sender<Option<Error>>,
    /// A query waits for a change, and whoever answers it is there.
    is_followed: AtomicBool,
    /// What it is told is not believed, until that is settled.
    is_held: AtomicBool,
    /// It was told to be gone, and is not believed so any more.
    pub(super) again: Notify,
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
            problem: watch::Sender::default(),
            is_followed: AtomicBool::new(false),
            is_held: AtomicBool::new(false),
            again: Notify::new(),
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

    /// Whoever follows it was answered.
    pub(super) fn follows(&self) {
        self.is_followed.store(true, Ordering::Relaxed);
        self.is_held.store(false, Ordering::Relaxed);
        self.has_no_problem();
    }

    /// Whoever follows it was told what is not believed.
    pub(super) fn holds(&self, error: &Error) {
        self.is_held.store(true, Ordering::Relaxed);
        self.has_problem(error);
    }

    /// Nobody follows it now; others are asked.
    pub(super) fn lost(&self) {
        self.is_followed.store(false, Ordering::Relaxed);
        self.is_held.store(false, Ordering::Relaxed);
    }

    /// What a look-up came to.
    pub(super) fn landed(&self, landed: &Landed) {
        match landed {
            Landed::Found(_) | Landed::Nothing(_) => self.answered(),
            // Whoever follows it knows better.
            Landed::Kept(_) if self.is_followed.load(Ordering::Relaxed) => {}
            Landed::Kept(_) if self.is_held.load(Ordering::Relaxed) => {}
            Landed::Kept(error) => self.has_problem(error),
        }
    }

    /// A source answered somebody. What is held it does not settle: that would be a problem anew
    /// each time that whoever follows it asks.
    pub(super) fn answered(&self) {
        if !self.is_held.load(Ordering::Relaxed) {
            self.has_no_problem();
        }
    }

    fn has_problem(&self, error: &Error) {
        let is_silence = |error: &Error| error.is_unavailable();
        self.problem.send_if_modified(|before| {
            let same = before.as_ref().is_some_and(|before| {
                before.kind() == error.kind() || (is_silence(before) && is_silence(error))
            });
            // Who is left alone tells less than when it was asked.
            let skipped = |attempt: &Attempt| attempt.outcome == Outcome::Skipped;
            if !same || !error.attempts().iter().all(skipped) {
                *before = Some(error.clone());
            }
            !same
        });
    }

    fn has_no_problem(&self) {
        self.problem
            .send_if_modified(|before| before.take().is_some());
    }

    /// Nobody tells anything here any more, until it is followed again. `wakes`: whoever waits
    /// is to see to that.
    pub(super) fn end(&self, wakes: bool) {
        self.lone.store(true, Ordering::SeqCst);
        self.lost();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        endpoint::{Source, Transport},
        error::ErrorKind,
    };

    fn failed(kind: ErrorKind, outcome: Outcome, millis: u64) -> Landed {
        let attempt = Attempt {
            source: Source::Http,
            address: "http://127.0.0.1:1".into(),
            transport: Transport::Http,
            outcome,
            elapsed: Duration::from_millis(millis),
            received: 0,
            count: 0,
            detail: Box::default(),
        };
        let text = format!("web: {attempt}");
        Landed::Kept(Error::with_attempts(kind, text, vec![attempt]))
    }

    #[test]
    fn a_problem_is_news_when_it_is_another_one_and_not_at_each_attempt() {
        let (news, gone) = (
            News::default(),
            failed(ErrorKind::NotFound, Outcome::NotFound, 1),
        );
        let Landed::Kept(gone) = gone else { return };
        let mut told = news.problem.subscribe();
        let mut is_told = |landed: &Landed| {
            news.landed(landed);
            let is_told = told.has_changed().unwrap();
            (
                is_told,
                told.borrow_and_update().clone().map(|one| one.to_string()),
            )
        };
        let refused = is_told(&failed(ErrorKind::Unavailable, Outcome::Refused, 1));
        assert!(refused.0);
        // What was left alone says less.
        let skipped = is_told(&failed(ErrorKind::Unavailable, Outcome::Skipped, 2));
        assert_eq!(skipped, (false, refused.1));
        let late = is_told(&failed(ErrorKind::Timeout, Outcome::TimedOut, 3));
        assert!(!late.0 && late.1.unwrap().contains("timeout"));
        assert!(is_told(&failed(ErrorKind::Denied, Outcome::Denied, 4)).0);
        assert_eq!(is_told(&Landed::Nothing(gone.clone())), (true, None));
        assert_eq!(is_told(&Landed::Nothing(gone)), (false, None));
        // Whoever follows it hears better.
        news.follows();
        let failure = failed(ErrorKind::Unavailable, Outcome::Refused, 5);
        assert_eq!(is_told(&failure), (false, None));
        news.lost();
        assert!(is_told(&failure).0);
    }

    #[test]
    fn what_whoever_follows_a_name_does_not_believe_is_settled_by_nobody_else() {
        let news = News::default();
        let of = |kind, outcome| match failed(kind, outcome, 1) {
            Landed::Kept(error) => error,
            _ => unreachable!("it failed"),
        };
        let denied = of(ErrorKind::Denied, Outcome::Denied);
        let found = Landed::Nothing(of(ErrorKind::NotFound, Outcome::NotFound));
        let mut told = news.problem.subscribe();
        let mut tells = |what: &dyn Fn()| {
            what();
            let is_told = told.has_changed().unwrap();
            told.mark_unchanged();
            is_told
        };
        assert!(tells(&|| news.holds(&denied)));
        let failure = failed(ErrorKind::Unavailable, Outcome::Refused, 1);
        for landed in [&found, &failure] {
            assert!(!tells(&|| news.landed(landed)), "{landed:?}");
            assert!(!tells(&|| news.holds(&denied)));
        }
        assert!(tells(&|| news.follows()), "it is settled");
        news.holds(&denied);
        // Nobody follows it now: whoever is asked instead tells.
        news.lost();
        assert!(tells(&|| news.landed(&found)));
        assert!(news.problem.borrow().is_none());
    }
}
