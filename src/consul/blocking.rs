//! **Pure.** When a blocking query is asked again, and with which index (Consul
//! docs: Blocking Queries). Time and dice come in as arguments.
//!
//! | heard | next |
//! | --- | --- |
//! | nothing yet | index 0: the present state, at once |
//! | an index | a query that waits for a higher one, at most [`WAIT`] |
//! | an index of 0 | 1: less would not wait |
//! | a lower index than ever before | not believed as long as that may pass ([`Progress`]), and asked for elsewhere after [`CAUGHT_UP`] |
//! | the same after that time, from who hears of a leader | the state: the servers' data is another one |
//! | the index asked with, before its time | the state: a snapshot that is restored wakes who waits, with what was before it |
//! | no index | not to be followed |
//! | the same content as before, at once | [`BURST`] times at once, then after 1 s, doubling to [`SLOWEST`]: indexes move for other reasons too |
//! | the same content with another index, right after such a pause | at once, and not counted: the index moved during the pause |
//! | whatever else | at once; from [`CHANGES`] in a row on, one each [`CHANGE`] |
//! | refused | after [`REFUSED`]: that costs nothing, and who is back is to be found within a second |
//! | silence, an error, 429 | after 0.25 s, doubling to [`SLOWEST`], never less than what the server asks for |
//!
//! Pauses are spread by a fifth, so that many who lost the same agent do not come
//! back as one.

use std::time::{Duration, Instant};

use rand::{Rng, RngExt as _};

use super::progress::Progress;

/// How long a query waits for a change. Below the 60 s that proxies like to cut.
const WAIT: Duration = Duration::from_secs(55);

/// Replies without news that cost no pause.
const BURST: u32 = 2;

/// Replies that are asked for as quickly as they come, and how often then: a service
/// that changes without end is not to keep an agent busy.
const CHANGES: u32 = 20;
const CHANGE: Duration = Duration::from_millis(100);

/// A reply that took so long waited: it is no sign of a loop.
const WAITED: Duration = Duration::from_secs(1);

/// Time that a server is given to catch up.
const CAUGHT_UP: Duration = Duration::from_millis(500);

/// Longest pause.
const SLOWEST: Duration = Duration::from_secs(15);

/// Pause after the first failure.
const FIRST: Duration = Duration::from_millis(250);

/// Pause while the address refuses.
const REFUSED: Duration = Duration::from_millis(600);

/// What is to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    /// `None`: the present state, without waiting.
    pub(crate) index: Option<u64>,
    /// How long the server is to wait for a change.
    pub(crate) wait: Duration,
    /// When the query is given up: the server adds up to a sixteenth to its wait.
    pub(crate) limit: Duration,
    /// Not before.
    pub(crate) due: Instant,
}

/// How a query failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Refused,
    Other,
}

/// The state of one question that is followed.
#[derive(Clone, Debug)]
pub(crate) struct Blocking {
    /// 0: nothing was heard yet.
    index: u64,
    /// Failures do not forget it.
    progress: Progress,
    wait: Duration,
    due: Instant,
    /// That of the last reply, whatever is asked with next.
    heard: u64,
    /// Replies in a row that came at once and brought nothing.
    idle: u32,
    /// There was a pause for them before the query that is asked.
    rested: bool,
    /// When all replies so far would have come at one each [`CHANGE`].
    told: Instant,
    backoff: Backoff,
}

/// The pauses after failures in a row.
#[derive(Clone, Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// No server is given a longer pause, whatever it asks for.
    pub(crate) const LONGEST: Duration = Duration::from_secs(60);

    /// After one more; the server asked for a pause of `asked`.
    pub(crate) fn pause(
        &mut self,
        failure: Failure,
        asked: Option<Duration>,
        dice: &mut impl Rng,
    ) -> Duration {
        let pause = match failure {
            Failure::Refused => REFUSED,
            Failure::Other => doubled(FIRST, self.failures),
        };
        self.failures = self.failures.saturating_add(1);
        let asked = asked.unwrap_or_default().min(Self::LONGEST);
        spread(pause, dice).max(asked + asked * dice.random_range(0..=100_u32) / 1_000)
    }
}

impl Blocking {
    pub(crate) fn new(now: Instant) -> Self {
        Self::after(Progress::default(), now)
    }

    /// Begins where another one ended, which was told so far: what is older is not believed
    /// here either.
    pub(crate) fn after(mut progress: Progress, now: Instant) -> Self {
        progress.forget_who_is_behind();
        Self {
            index: 0,
            progress,
            wait: WAIT,
            due: now,
            heard: 0,
            idle: 0,
            rested: false,
            told: now,
            backoff: Backoff::default(),
        }
    }

    /// What to ask next. A present state has `limit` as its limit.
    pub(crate) fn turn(&self, limit: Duration) -> Turn {
        let blocks = self.index > 0;
        Turn {
            index: blocks.then_some(self.index),
            wait: if blocks { self.wait } else { Duration::ZERO },
            limit: if blocks { limit_of(self.wait) } else { limit },
            due: self.due,
        }
    }

    /// How long the next queries wait at most: [`WAIT`] unless something else has to be
    /// looked at meanwhile.
    pub(crate) fn wait(&mut self, most: Option<Duration>) {
        self.wait = most.map_or(WAIT, |most| most.min(WAIT));
    }

    /// Whether a reply with this index is believed, and then goes to [`Blocking::answered`].
    /// One that tells what is older than what was heard before is not, as long as that may
    /// pass, or as long as whoever told it does not hear of its leader (`led`): it is asked for
    /// again, best at another server.
    pub(crate) fn believes(&mut self, index: Option<u64>, led: bool, now: Instant) -> bool {
        let Some(index) = index.map(|index| index.max(1)) else {
            return true;
        };
        let believed = self.progress.believes(index, led, now);
        if !believed {
            self.again(now + CAUGHT_UP);
        }
        believed
    }

    /// A reply came after `took`, with the index of its header and, or not, other
    /// content than the one before. False: it cannot be followed.
    pub(crate) fn answered(
        &mut self,
        index: Option<u64>,
        news: bool,
        took: Duration,
        now: Instant,
        dice: &mut impl Rng,
    ) -> bool {
        self.backoff = Backoff::default();
        self.told = self.told.max(now) + CHANGE;
        let due = self.told.checked_sub(CHANGES * CHANGE);
        self.due = due.map_or(now, |due| due.max(now));
        let Some(index) = index.map(|index| index.max(1)) else {
            return false;
        };
        // It was told whole seconds.
        let waited = took >= Duration::from_secs(self.wait.as_secs());
        let woken = index == self.index && !news && !waited;
        self.index = if index < self.index || woken {
            0
        } else {
            index
        };
        let moved = std::mem::replace(&mut self.heard, index) != index;
        let rested = std::mem::take(&mut self.rested);
        if news || took >= WAITED {
            self.idle = 0;
            return true;
        }
        // Whoever asks after a pause is told at once of what happened in it: that says nothing
        // of how quickly the next one comes.
        if rested && moved {
            return true;
        }
        self.idle = self.idle.saturating_add(1);
        if let Some(over) = self.idle.checked_sub(BURST + 1) {
            let pause = spread(doubled(Duration::from_secs(1), over), dice);
            self.due = self.due.max(now + pause);
            self.rested = true;
        }
        true
    }

    /// What was heard is not settled: the state is to be asked for again then.
    pub(crate) fn again(&mut self, at: Instant) {
        self.index = 0;
        self.due = self.due.max(at);
    }

    /// It failed; the server asked for a pause of `asked`.
    pub(crate) fn failed(
        &mut self,
        failure: Failure,
        asked: Option<Duration>,
        now: Instant,
        dice: &mut impl Rng,
    ) {
        // What changed in the meantime is not known: the next reply is the state.
        self.index = 0;
        self.rested = false;
        self.progress.forget_who_is_behind();
        self.due = now + self.backoff.pause(failure, asked, dice);
    }
}

/// The longest that a query can take whose server is well, and how long what it
/// said last may be believed.
pub(crate) fn longest() -> Duration {
    limit_of(WAIT)
}

fn limit_of(wait: Duration) -> Duration {
    wait + wait / 16 + Duration::from_secs(5)
}

fn doubled(pause: Duration, times: u32) -> Duration {
    pause.saturating_mul(1 << times.min(10)).min(SLOWEST)
}

fn spread(pause: Duration, dice: &mut impl Rng) -> Duration {
    pause * dice.random_range(900..=1_100_u32) / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use proptest::prelude::*;
    use rand::{SeedableRng as _, rngs::SmallRng};

    const SHORT: Duration = Duration::from_millis(1);
    const LIMIT: Duration = Duration::from_secs(1);
    const LED: bool = true;

    fn begun() -> (Blocking, Instant, SmallRng) {
        let now = clock::now();
        (Blocking::new(now), now, SmallRng::seed_from_u64(1))
    }

    #[test]
    fn the_first_reply_is_the_state_and_the_next_one_waits_for_a_change() {
        let (mut blocking, now, mut dice) = begun();
        let first = blocking.turn(LIMIT);
        assert_eq!((first.index, first.limit, first.due), (None, LIMIT, now));
        assert!(blocking.answered(Some(7), true, SHORT, now, &mut dice));
        let second = blocking.turn(LIMIT);
        assert_eq!((second.index, second.wait), (Some(7), WAIT));
        assert!(second.limit > WAIT + WAIT / 16);
        assert_eq!(second.due, now);
        blocking.wait(Some(LIMIT));
        let brief = blocking.turn(LIMIT);
        assert_eq!((brief.index, brief.wait), (Some(7), LIMIT));
        assert!(brief.limit < WAIT);
        blocking.wait(None);
        assert_eq!(blocking.turn(LIMIT), second);
    }

    #[test]
    fn an_index_of_zero_waits_one_that_falls_starts_anew_and_none_is_not_followed() {
        let (mut blocking, now, mut dice) = begun();
        blocking.answered(Some(0), true, SHORT, now, &mut dice);
        assert_eq!(blocking.turn(LIMIT).index, Some(1));
        blocking.answered(Some(900), true, SHORT, now, &mut dice);
        blocking.answered(Some(20), true, SHORT, now, &mut dice);
        assert_eq!(blocking.turn(LIMIT).index, None);
        assert!(!blocking.answered(None, true, SHORT, now, &mut dice));
    }

    #[test]
    fn what_is_older_than_what_was_heard_is_believed_when_it_does_not_pass() {
        let (mut blocking, start, mut dice) = begun();
        let at = |millis| start + Duration::from_millis(millis);
        assert!(blocking.believes(Some(900), LED, at(0)));
        blocking.failed(Failure::Other, None, at(10), &mut dice);
        assert!(!blocking.believes(Some(20), LED, at(20)));
        assert!(!blocking.believes(Some(850), LED, at(2_900)));
        let next = blocking.turn(LIMIT);
        assert_eq!((next.index, next.due), (None, at(2_900) + CAUGHT_UP));
        // It has caught up.
        assert!(blocking.believes(Some(900), LED, at(3_500)));
        assert!(!blocking.believes(Some(20), LED, at(4_000)));
        assert!(blocking.believes(Some(25), LED, at(7_001)));
        assert!(blocking.believes(Some(26), LED, at(7_002)));
        assert!(!blocking.believes(Some(24), LED, at(7_003)));
    }

    #[test]
    fn what_is_older_is_never_believed_of_who_hears_of_no_leader() {
        let (mut blocking, start, _) = begun();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(blocking.believes(Some(900), LED, at(0)));
        for seconds in 1..100 {
            assert!(!blocking.believes(Some(300), !LED, at(seconds)));
        }
        // Its time begins with a leader, whom the servers agree on before they have caught up.
        assert!(!blocking.believes(Some(300), LED, at(100)));
        assert!(!blocking.believes(Some(300), !LED, at(110)));
        assert!(blocking.believes(Some(300), LED, at(111)));
        // What is as new needs no leader.
        assert!(blocking.believes(Some(300), !LED, at(112)));
    }

    #[test]
    fn who_is_woken_without_a_change_asks_for_the_state() {
        let (mut blocking, now, mut dice) = begun();
        let mut next = |index, news, took| {
            blocking.answered(Some(index), news, took, now, &mut dice);
            blocking.turn(LIMIT).index
        };
        assert_eq!(next(900, true, SHORT), Some(900));
        assert_eq!(next(900, false, WAIT), Some(900));
        assert_eq!(next(900, false, SHORT), None);
        // And then waits again, should it have been nothing.
        assert_eq!(next(900, false, SHORT), Some(900));
    }

    #[test]
    fn replies_that_bring_nothing_are_asked_for_ever_more_seldom() {
        let (mut blocking, now, mut dice) = begun();
        let mut pauses = Vec::new();
        for _ in 1..12 {
            blocking.answered(Some(7), false, SHORT, now, &mut dice);
            pauses.push((blocking.turn(LIMIT).due - now).as_secs_f64().round() as u64);
        }
        assert_eq!(pauses[..6], [0, 0, 1, 2, 4, 8]);
        assert!(
            pauses[6..].iter().all(|pause| (14..=17).contains(pause)),
            "{pauses:?}"
        );
        blocking.answered(Some(12), true, SHORT, now, &mut dice);
        assert_eq!(blocking.turn(LIMIT).due, now);
        // One that waited its time is no loop.
        let mut now = now;
        for _ in 0..9 {
            now += WAIT;
            blocking.answered(Some(12), false, WAIT, now, &mut dice);
        }
        assert_eq!(blocking.turn(LIMIT).due, now);
    }

    #[test]
    fn what_comes_right_after_a_pause_says_nothing_of_how_quickly_the_next_one_comes() {
        let (mut blocking, now, mut dice) = begun();
        let mut index = 0;
        let mut pause = |took| {
            index += 1;
            blocking.answered(Some(index), false, took, now, &mut dice);
            (blocking.turn(LIMIT).due - now).as_secs_f64().round() as u64
        };
        // An index that moves every other second.
        assert_eq!([SHORT; 3].map(&mut pause), [0, 0, 1]);
        for _ in 0..4 {
            assert_eq!([SHORT, 2 * WAITED].map(&mut pause), [0, 0]);
        }
        // One that runs is asked for ever more seldom all the same.
        assert_eq!([SHORT; 7].map(&mut pause), [0, 0, 1, 0, 2, 0, 4]);
    }

    #[test]
    fn changes_are_followed_at_once_unless_they_never_end() {
        let (mut blocking, start, mut dice) = begun();
        let mut now = start;
        for index in 1..=1_000 {
            blocking.answered(Some(index), true, SHORT, now, &mut dice);
            let due = blocking.turn(LIMIT).due;
            assert!(index > u64::from(CHANGES) || due == now);
            now = due;
        }
        let least = (1_000 - CHANGES) * CHANGE;
        assert!(now - start >= least && now - start < least + CHANGE);
        // A pause later they are quick again.
        now += CHANGES * CHANGE;
        blocking.answered(Some(2_000), true, SHORT, now, &mut dice);
        assert_eq!(blocking.turn(LIMIT).due, now);
    }

    #[test]
    fn failures_pause_longer_each_and_refusals_always_the_same() {
        let (mut blocking, now, mut dice) = begun();
        blocking.answered(Some(7), true, SHORT, now, &mut dice);
        let mut pause = |failure, asked| {
            blocking.failed(failure, asked, now, &mut dice);
            assert_eq!(blocking.turn(LIMIT).index, None);
            blocking.turn(LIMIT).due - now
        };
        for _ in 0..9 {
            assert!(pause(Failure::Refused, None) < Duration::from_secs(1));
        }
        assert!(pause(Failure::Other, None) >= Duration::from_secs(10));
        assert!(pause(Failure::Other, Some(Duration::from_secs(30))) >= Duration::from_secs(27));
        let endless = Some(Duration::from_secs(1_000_000_000));
        assert!(pause(Failure::Other, endless) <= Duration::from_secs(70));
    }

    proptest! {
        /// Whatever the servers say, no more than this is asked.
        #[test]
        fn it_never_spins(said in prop::collection::vec((0u8..5, any::<u64>()), 1..400)) {
            let (mut blocking, start, mut dice) = begun();
            let mut now = start;
            let mut asked = 0_u32;
            for (what, index) in said {
                now = now.max(blocking.turn(LIMIT).due);
                asked += 1;
                match what {
                    0 => blocking.failed(Failure::Refused, None, now, &mut dice),
                    1 => blocking.failed(Failure::Other, None, now, &mut dice),
                    _ => {
                        blocking.answered(Some(index), what == 4, SHORT, now, &mut dice);
                    }
                }
            }
            // A failure costs its own pause, in which two replies more are earned.
            let seconds = (now - start).as_secs_f64();
            let most = f64::from(CHANGES) + 3.0 + seconds * 15.0;
            prop_assert!(f64::from(asked) <= most, "{asked} in {seconds} s");
        }
    }
}
