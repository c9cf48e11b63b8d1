//! **Pure.** How many of those who follow names at an address ask there: a hundred that lost it
//! together are not to ask a hundred times whether it is back.
//!
//! | heard there last | asks next |
//! | --- | --- |
//! | an answer, whatever it says | whoever wants to |
//! | nothing, an error, 429 | one, after a pause that doubles, and never before what the server asked for; the others wait for what that one hears |
//! | a refusal | one, after a pause that stays the same |
//!
//! The pauses are [`blocking`](crate::consul::blocking)'s.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rand::Rng;

use crate::{
    consul::blocking::{Backoff, Failure},
    endpoint::Outcome,
};

/// Those of all addresses, by their place in the list. Where there is none, anybody passes.
/// A std mutex: held for one look.
#[derive(Debug, Default)]
pub(super) struct Turnstiles(Mutex<HashMap<usize, Turnstile>>);

#[derive(Debug)]
struct Turnstile {
    backoff: Backoff,
    /// Nobody passes before.
    until: Instant,
    /// When somebody passed who has heard nothing yet.
    taken: Option<Instant>,
}

/// Who has heard nothing for so long stands still, with the runtime that it is in.
const LOST: Duration = Duration::from_secs(5);

impl Turnstile {
    fn is_free(&self, now: Instant) -> bool {
        !self.is_taken(now) && now >= self.until
    }

    fn is_taken(&self, now: Instant) -> bool {
        let since = self.taken;
        since.is_some_and(|since| now.saturating_duration_since(since) < LOST)
    }
}

impl Turnstiles {
    /// Whether somebody may ask at that address.
    pub(super) fn is_free(&self, address: usize, now: Instant) -> bool {
        self.all()
            .get(&address)
            .is_none_or(|stile| stile.is_free(now))
    }

    /// Lets one through to that address, if somebody may ask there.
    pub(super) fn pass(&self, address: usize, now: Instant) -> Option<Pass<'_>> {
        let alone = match self.all().get_mut(&address) {
            Some(stile) if stile.is_free(now) => {
                stile.taken = Some(now);
                stile.taken
            }
            Some(_) => return None,
            None => None,
        };
        Some(Pass {
            stiles: self,
            address,
            alone,
        })
    }

    /// When one may be let through next, as far as that is known.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let all = self.all();
        let free = |stile: &Turnstile| {
            let lost = stile.taken.map(|since| since + LOST);
            lost.map_or(stile.until, |lost| lost.max(stile.until))
        };
        let waits = all.values().map(free);
        waits.filter(|until| *until > now).min()
    }

    /// Somebody was answered at that address.
    pub(super) fn answered(&self, address: usize) {
        self.all().remove(&address);
    }

    /// Somebody was not. `pass`: what it was let through with, if it had to be; `asked`: the
    /// pause that the server asked for.
    pub(super) fn failed(
        &self,
        address: usize,
        pass: Option<Pass<'_>>,
        failure: (Failure, Option<Duration>),
        now: Instant,
        dice: &mut impl Rng,
    ) {
        let (failure, asked) = failure;
        let mut all = self.all();
        let stile = all.entry(address).or_insert_with(|| Turnstile {
            backoff: Backoff::default(),
            until: now,
            taken: None,
        });
        // Those who had asked before heard of the same failure: it is one.
        if stile.until <= now && (!stile.is_taken(now) || is_alone(pass.as_ref())) {
            stile.until = now + stile.backoff.pause(failure, asked, dice);
        } else if let Some(asked) = asked {
            stile.until = stile.until.max(now + asked.min(Backoff::LONGEST));
        }
        drop(all);
        drop(pass);
    }

    fn all(&self) -> MutexGuard<'_, HashMap<usize, Turnstile>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody asks at an address. Dropped, the next one may.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    stiles: &'a Turnstiles,
    address: usize,
    /// Since when the others wait for this one.
    alone: Option<Instant>,
}

fn is_alone(pass: Option<&Pass<'_>>) -> bool {
    pass.is_some_and(|pass| pass.alone.is_some())
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        // Another may have passed since.
        if self.alone.is_some()
            && let Some(stile) = self.stiles.all().get_mut(&self.address)
            && stile.taken == self.alone
        {
            stile.taken = None;
        }
    }
}

/// Whether who else follows names at an address would hear the same. What is asked of another
/// place (not `home`) says nothing of the agent that passes it on, unless nobody is there.
pub(super) fn is_of_address(outcome: Outcome, home: bool) -> bool {
    match outcome {
        Outcome::Refused | Outcome::Unreachable | Outcome::Throttled => true,
        Outcome::TimedOut | Outcome::Failed | Outcome::Malformed | Outcome::Late => home,
        Outcome::Answered
        | Outcome::Partial
        | Outcome::NotFound
        | Outcome::Denied
        | Outcome::Skipped => false,
    }
}

/// How a query failed, and the pause after it; `asked`: the one that was asked for.
pub(super) fn failure(outcome: Outcome, asked: Option<Duration>) -> (Failure, Option<Duration>) {
    match outcome {
        Outcome::Refused => (Failure::Refused, None),
        // Those who ask to be left alone are asked again after a second at least.
        Outcome::Throttled => {
            let least = Duration::from_secs(1);
            (Failure::Other, Some(asked.unwrap_or(least).max(least)))
        }
        _ => (Failure::Other, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use rand::{SeedableRng as _, rngs::SmallRng};

    const FAILED: (Failure, Option<Duration>) = (Failure::Other, None);

    #[test]
    fn one_of_all_who_lost_an_address_asks_whether_it_is_back() {
        let (stiles, start) = (Turnstiles::default(), clock::now());
        let mut dice = SmallRng::seed_from_u64(1);
        for _ in 0..60 {
            let pass = stiles.pass(0, start);
            assert!(pass.is_some(), "nothing is amiss");
        }
        for _ in 0..60 {
            stiles.failed(0, None, FAILED, start, &mut dice);
        }
        let mut asked = Vec::new();
        for millis in 0..10_000_u64 {
            let now = start + Duration::from_millis(millis);
            let Some(pass) = stiles.pass(0, now) else {
                continue;
            };
            assert!(stiles.pass(0, now).is_none(), "one is there");
            assert!(stiles.pass(1, now).is_some(), "another address");
            asked.push(millis);
            stiles.failed(0, Some(pass), FAILED, now, &mut dice);
        }
        let first = asked.iter().filter(|at| **at < 1_000).count();
        assert!(first <= 2 && (4..=7).contains(&asked.len()), "{asked:?}");
        stiles.answered(0);
        assert!(stiles.is_free(0, start) && stiles.due(start).is_none());
    }

    #[test]
    fn who_leaves_without_having_heard_leaves_its_turn_to_the_next() {
        let (stiles, start) = (Turnstiles::default(), clock::now());
        stiles.failed(0, None, FAILED, start, &mut SmallRng::seed_from_u64(1));
        let due = stiles.due(start).expect("it is known when");
        assert!(!stiles.is_free(0, start));
        for _ in 0..3 {
            let pass = stiles.pass(0, due);
            assert!(pass.is_some() && !stiles.is_free(0, due));
        }
    }

    #[test]
    fn a_server_that_asks_for_a_pause_is_given_it() {
        let (stiles, start) = (Turnstiles::default(), clock::now());
        let mut dice = SmallRng::seed_from_u64(1);
        let asked = Duration::from_secs(7);
        // Also where others heard of the failure without it.
        stiles.failed(0, None, FAILED, start, &mut dice);
        stiles.failed(0, None, (Failure::Other, Some(asked)), start, &mut dice);
        assert_eq!(stiles.due(start), Some(start + asked));
        stiles.failed(1, None, (Failure::Other, Some(asked)), start, &mut dice);
        let early = start + asked - Duration::from_millis(1);
        assert!(!stiles.is_free(1, early) && stiles.is_free(1, start + 2 * asked));
    }
}
