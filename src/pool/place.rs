//! **Pure.** What is known of one endpoint by its users: failures, rest, latency. Time
//! comes in as an argument.
//!
//! | state | is given | until |
//! | --- | --- | --- |
//! | closed | as its strategy says | so many failures in a row |
//! | open | to nobody, while enough others are left | its rest is over |
//! | half open | to one call at a time | one succeeds: closed; one fails: open |

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::policy::Breaker;

/// Latencies lose their weight in this time (Finagle's Peak EWMA).
const DECAY: f64 = 10e9;

/// Less time than this is none, in nanoseconds: a thousandth of [`DECAY`].
const BRIEF: u64 = 10_000_000;

/// A latency that is as near as that, and as soon after the last, is the same.
const NEAR: f64 = 0.1;
const SOON: u64 = 100_000_000;

/// What a call is reckoned to cost, in nanoseconds, where nothing was reported yet.
const UNKNOWN: f64 = 1e6;

/// What calls that fail are reckoned to cost at most, in nanoseconds, if they do not take
/// longer.
const SLOW: f64 = 1e9;

/// What is left after so many nanoseconds: close to an exponential decay, and cheaper.
fn decayed(gone: u64) -> f64 {
    let gone = gone as f64 / DECAY;
    1.0 / (1.0 + gone * (1.0 + gone / 2.0))
}

/// Whether an endpoint is left alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BreakerState {
    /// It is used.
    #[default]
    Closed,
    /// It failed, and rests.
    Open,
    /// It has rested: one call at a time tries it.
    HalfOpen,
}

impl fmt::Display for BreakerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        })
    }
}

/// How a call ended, as far as the endpoint is to be blamed for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Feedback {
    /// The endpoint did its work; also where it refused what was wrong with the question.
    Success,
    /// It could not be reached, did not answer in time, or failed by itself.
    Failure,
}

/// A call that tries an endpoint which has rested.
const NOT_ON_TRIAL: u8 = 0;
const FREE: u8 = 1;
const TAKEN: u8 = 2;

/// How many endpoints fail. Read by every call, and seldom written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Failing {
    /// Of a pool: those that have failed since they succeeded.
    here: Arc<AtomicU32>,
    /// Of all pools of a resolver: those that rest or are tried.
    open: Arc<AtomicU64>,
}

impl Failing {
    pub(crate) fn of(open: &Arc<AtomicU64>) -> Self {
        Self {
            here: Arc::default(),
            open: Arc::clone(open),
        }
    }

    pub(crate) fn is_none(&self) -> bool {
        self.here.load(Ordering::Relaxed) == 0
    }
}

#[derive(Debug)]
pub(crate) struct Place {
    failing: Failing,
    /// In a row.
    failures: AtomicU32,
    trial: AtomicU8,
    /// Those whom its server told that it does not serve. A std mutex: held for a look.
    refused: Mutex<Vec<u64>>,
    /// Nanoseconds, as the bits of an f64; negative where nothing was reported.
    latency: AtomicU64,
    /// When that was so, in nanoseconds.
    told: AtomicU64,
    slow: Mutex<Slow>,
}

/// What changes seldom. A std mutex: held for a look.
#[derive(Clone, Copy, Debug, Default)]
struct Slow {
    /// It rests until then.
    rests: Option<Instant>,
    /// Since when it is used, where it is to begin slowly.
    begun: Option<Instant>,
    /// It is given although it rests: too many do, or its rest is over.
    lent: bool,
    /// It is no endpoint of the service any more: what is said of it counts for nothing.
    gone: bool,
}

/// What a report leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Nothing,
    /// It rests from now on, or is used again.
    Opened,
    Closed,
}

impl Place {
    /// `begins`: it came later than others, and begins slowly.
    pub(crate) fn new(now: Instant, begins: bool, failing: &Failing) -> Self {
        let slow = Slow {
            begun: begins.then_some(now),
            ..Slow::default()
        };
        Self {
            failing: failing.clone(),
            failures: AtomicU32::new(0),
            trial: AtomicU8::new(NOT_ON_TRIAL),
            refused: Mutex::default(),
            latency: AtomicU64::new((-1.0_f64).to_bits()),
            told: AtomicU64::new(0),
            slow: Mutex::new(slow),
        }
    }

    fn slow(&self) -> MutexGuard<'_, Slow> {
        self.slow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn state(&self, now: Instant) -> BreakerState {
        match self.slow().rests {
            None => BreakerState::Closed,
            Some(until) if now < until => BreakerState::Open,
            Some(_) => BreakerState::HalfOpen,
        }
    }

    /// Until when it rests, or since when it may be tried.
    pub(crate) fn rests(&self) -> Option<Instant> {
        self.slow().rests
    }

    /// Whether its server tells nobody that it does not.
    pub(crate) fn serves(&self) -> bool {
        self.refused().is_empty()
    }

    fn refused(&self) -> MutexGuard<'_, Vec<u64>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its server's own word, as `who` heard it. True: that is news.
    #[cfg(feature = "grpc")]
    pub(crate) fn set_serving(&self, who: u64, serves: bool) -> bool {
        let mut refused = self.refused();
        let before = refused.is_empty();
        refused.retain(|one| *one != who);
        if !serves {
            refused.push(who);
        }
        refused.is_empty() != before
    }

    pub(crate) fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Whether it is looked at before it is given: it may be tried, or begins slowly.
    pub(crate) fn is_watched(&self, now: Instant, slow_start: Duration) -> bool {
        let slow = *self.slow();
        slow.rests.is_some()
            || slow
                .begun
                .is_some_and(|begun| now.saturating_duration_since(begun) < slow_start)
    }

    /// When it is to be looked at again without a report.
    pub(crate) fn due(&self, now: Instant, slow_start: Duration) -> Option<Instant> {
        let slow = *self.slow();
        let rest = slow.rests.filter(|until| now < *until);
        let begun = slow.begun.and_then(|begun| begun.checked_add(slow_start));
        rest.into_iter()
            .chain(begun.filter(|until| now < *until))
            .min()
    }

    /// Since when it is used, where it began slowly.
    pub(crate) fn begun(&self) -> Option<Instant> {
        self.slow().begun
    }

    /// Whether only a call that tries it may have it.
    pub(crate) fn is_on_trial(&self) -> bool {
        self.trial.load(Ordering::Relaxed) != NOT_ON_TRIAL
    }

    /// Whether one that is watched may be given to a call, and whether that tries it. Its
    /// share grows over `slow_start`, and is whole where nobody began before it: those that
    /// begin together share evenly. `eldest`: when the first of all began, where all began
    /// slowly. `lot`: a number from 0 to 1.
    pub(crate) fn admits(
        &self,
        now: Instant,
        slow_start: Duration,
        eldest: Option<Instant>,
        lot: f64,
    ) -> Option<bool> {
        if self.is_on_trial() {
            let taken =
                (self.trial).compare_exchange(FREE, TAKEN, Ordering::Relaxed, Ordering::Relaxed);
            return taken.is_ok().then_some(true);
        }
        let age = |since| now.saturating_duration_since(since);
        let whole = eldest.map_or(slow_start, |eldest| age(eldest).min(slow_start));
        let own = self.begun().map_or(whole, age);
        (own >= whole || lot * whole.as_secs_f64() < own.as_secs_f64()).then_some(false)
    }

    /// A set is made: whether it is given there. Where its rest is over, one call may try
    /// it.
    pub(crate) fn set_given(&self, given: bool, now: Instant) {
        let mut slow = self.slow();
        slow.lent = given && slow.rests.is_some();
        if slow.rests.is_some_and(|until| until <= now) {
            let free = (NOT_ON_TRIAL, FREE);
            _ = (self.trial).compare_exchange(free.0, free.1, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// It is no endpoint of the service any more, though a thread may remember it.
    pub(crate) fn retire(&self) {
        let mut slow = self.slow();
        slow.gone = true;
        self.forgive(&mut slow);
    }

    /// Nothing is held against it.
    fn forgive(&self, slow: &mut Slow) {
        if self.failures.swap(0, Ordering::Relaxed) != 0 {
            self.failing.here.fetch_sub(1, Ordering::Relaxed);
        }
        if slow.rests.take().is_some() {
            self.failing.open.fetch_sub(1, Ordering::Relaxed);
        }
        slow.lent = false;
        self.trial.store(NOT_ON_TRIAL, Ordering::Relaxed);
    }

    /// A call that was to try it ended without a word.
    pub(crate) fn untried(&self) {
        _ = (self.trial).compare_exchange(TAKEN, FREE, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// A call ended.
    pub(crate) fn report(
        &self,
        feedback: Feedback,
        trial: bool,
        breaker: &Breaker,
        now: impl FnOnce() -> Instant,
    ) -> Turn {
        match feedback {
            Feedback::Success => {
                // Read first: what is written is shared by all threads.
                if self.failures() == 0 && !trial {
                    return Turn::Nothing;
                }
                let mut slow = self.slow();
                let rested = slow.rests.is_some();
                // A call that began before it rested says nothing new.
                if slow.gone || (rested && !trial && !slow.lent) {
                    return Turn::Nothing;
                }
                self.forgive(&mut slow);
                if !rested {
                    return Turn::Nothing;
                }
                slow.begun = Some(now());
                Turn::Closed
            }
            Feedback::Failure => {
                let mut slow = self.slow();
                if slow.gone {
                    return Turn::Nothing;
                }
                let before = self.failures.fetch_add(1, Ordering::Relaxed);
                if before == 0 {
                    self.failing.here.fetch_add(1, Ordering::Relaxed);
                }
                let failures = before.saturating_add(1);
                // Calls that began before it rested say nothing new.
                let opens = match slow.rests {
                    None => breaker.failures > 0 && failures >= breaker.failures,
                    Some(_) => trial,
                };
                if !opens {
                    // Another call has closed it meanwhile.
                    if trial {
                        self.trial.store(NOT_ON_TRIAL, Ordering::Relaxed);
                    }
                    return Turn::Nothing;
                }
                let now = now();
                if slow.rests.is_none() {
                    self.failing.open.fetch_add(1, Ordering::Relaxed);
                }
                slow.rests = Some(now.checked_add(breaker.rest).unwrap_or(now));
                self.trial.store(NOT_ON_TRIAL, Ordering::Relaxed);
                Turn::Opened
            }
        }
    }

    /// A latency was seen: a longer one counts at once, shorter ones with time. `now`: in
    /// nanoseconds since a moment that is the same for all.
    pub(crate) fn took(&self, latency: Duration, now: u64) {
        let before = self.average();
        let gone = now.saturating_sub(self.told.load(Ordering::Relaxed));
        let latency = latency.as_secs_f64() * 1e9;
        let average = if before < 0.0 || latency > before {
            latency
        } else {
            // What changes nothing is not written, for others read it.
            if gone < SOON && latency > before * (1.0 - NEAR) {
                return;
            }
            let weight = decayed(gone);
            before * weight + latency * (1.0 - weight)
        };
        // Two at once may lose one: the next says the same.
        self.told.store(now, Ordering::Relaxed);
        self.latency.store(average.to_bits(), Ordering::Relaxed);
    }

    /// A call failed: whoever refuses at once is not the fastest. Twice as slow as it was, so
    /// that one failure costs little and several do not.
    pub(crate) fn took_in_vain(&self, latency: Duration, now: u64) {
        let known = Some(self.average()).filter(|average| *average >= 0.0);
        let before = known.unwrap_or(UNKNOWN);
        let slower = before.max((2.0 * before).min(SLOW));
        self.took(latency.max(Duration::from_nanos(slower as u64)), now);
    }

    /// What a call is likely to cost with so many in the air, in nanoseconds. `now`: as
    /// above.
    pub(crate) fn cost(&self, load: u32, now: u64) -> f64 {
        let average = self.average();
        let expected = if average < 0.0 {
            UNKNOWN * f64::from(load)
        } else {
            // What was slow long ago deserves another look.
            match now.saturating_sub(self.told.load(Ordering::Relaxed)) {
                // The way of all that is called often: a division saved.
                ..BRIEF => average,
                gone => average * decayed(gone),
            }
        };
        expected * (f64::from(load) + 1.0)
    }

    /// The average, if anything was reported.
    pub(crate) fn latency(&self) -> Option<Duration> {
        let average = self.average();
        (average >= 0.0).then(|| Duration::from_nanos(average as u64))
    }

    fn average(&self) -> f64 {
        f64::from_bits(self.latency.load(Ordering::Relaxed))
    }
}
