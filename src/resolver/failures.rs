//! **Pure.** Names of which nothing is known and that nobody could tell: for a second that is told
//! again, instead of asking all sources anew for each who asks (RFC 9520, section 3.2). It ends
//! before that as soon as a source changes its mind.

use std::{
    fmt,
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use compact_str::CompactString;
use lru::LruCache;

use crate::error::Error;

/// So long a failure is told again.
const REST: Duration = Duration::from_secs(1);

/// Names that are remembered.
const MOST: NonZeroUsize = NonZeroUsize::new(1_024).unwrap();

/// The names, those that failed last.
pub(super) struct Failures(LruCache<CompactString, Failure>);

#[derive(Debug)]
struct Failure {
    error: Error,
    when: Instant,
    state: State,
}

/// What is known of the sources: a failure says nothing any more when it has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// How often a source was left alone, or was well again.
    pub(super) transitions: u64,
    /// How many sets Consul gave: who sees one may see others.
    pub(super) sets: u64,
}

impl Default for Failures {
    fn default() -> Self {
        Self(LruCache::new(MOST))
    }
}

impl Failures {
    /// Nobody could tell what is behind a name.
    pub(super) fn remember(&mut self, key: &str, error: &Error, state: State, now: Instant) {
        let failure = Failure {
            error: error.clone(),
            when: now,
            state,
        };
        self.0.put(key.into(), failure);
    }

    /// What was told of a name within a second, if that is still so.
    pub(super) fn recall(&mut self, key: &str, state: State, now: Instant) -> Option<Error> {
        let Failure {
            error,
            when,
            state: then,
        } = self.0.peek(key)?;
        let age = now.saturating_duration_since(*when);
        // A set says nothing of a source that was silent, and all of rights that were lost.
        let same_rights = !error.is_denied() || then.sets == state.sets;
        if age < REST && then.transitions == state.transitions && same_rights {
            return Some(again(error, age));
        }
        self.0.pop(key);
        None
    }
}

/// A failure of before, which says so.
fn again(error: &Error, age: Duration) -> Error {
    let attempts = error.attempts().to_vec();
    let told = Again {
        error: error.clone(),
        age,
    };
    Error::told(error.kind(), told, attempts)
}

struct Again {
    error: Error,
    age: Duration,
}

impl fmt::Display for Again {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (error, age) = (&self.error, self.age.as_secs_f64());
        write!(
            f,
            "{error} (so it was {age:.1} s ago; what failed is not asked again for a second)"
        )
    }
}

impl fmt::Debug for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failures").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock, error::ErrorKind};

    const FIRST: State = State {
        transitions: 7,
        sets: 5,
    };

    fn failed(kind: ErrorKind) -> (Failures, Instant) {
        let (mut failures, now) = (Failures::default(), clock::now());
        failures.remember("web", &Error::new(kind, "nobody said"), FIRST, now);
        (failures, now)
    }

    #[test]
    fn a_failure_is_told_for_a_second_and_says_that_it_is_of_before() {
        let (mut failures, start) = failed(ErrorKind::Timeout);
        let later = start + Duration::from_millis(400);
        let told = failures.recall("web", FIRST, later).unwrap();
        assert_eq!(told.kind(), ErrorKind::Timeout);
        assert!(
            told.to_string()
                .starts_with("nobody said (so it was 0.4 s ago")
        );
        assert!(failures.recall("api", FIRST, later).is_none());
        assert!(failures.recall("web", FIRST, start + REST).is_none());
        // And is forgotten then.
        assert!(failures.recall("web", FIRST, later).is_none());
    }

    #[test]
    fn a_failure_ends_as_soon_as_a_source_is_well_again_or_rights_are_back() {
        let well = State {
            transitions: 8,
            ..FIRST
        };
        let found = State { sets: 6, ..FIRST };
        for (kind, state, ends) in [
            (ErrorKind::Unavailable, well, true),
            (ErrorKind::Unavailable, found, false),
            (ErrorKind::Denied, well, true),
            (ErrorKind::Denied, found, true),
        ] {
            let (mut failures, now) = failed(kind);
            assert_eq!(
                failures.recall("web", state, now).is_none(),
                ends,
                "{kind:?}"
            );
        }
    }

    #[test]
    fn names_that_somebody_makes_up_take_little_room() {
        let (mut failures, now) = failed(ErrorKind::Unavailable);
        let error = Error::new(ErrorKind::Unavailable, "nobody said");
        for at in 0..10_000 {
            failures.remember(&format!("n{at}"), &error, FIRST, now);
        }
        assert_eq!(failures.0.len(), MOST.get());
    }
}
