//! **Pure.** How many questions a second may go to Consul for names of which nothing is known: a
//! flood of names that somebody makes up is to end here, and not at the agent.

use std::time::{Duration, Instant};

/// So many a second, unless told otherwise.
pub(super) const DEFAULT: u32 = 5_000;

/// What is not used is kept for so long.
const SAVED: Duration = Duration::from_secs(1);

/// A token bucket, which holds what a second brings.
#[derive(Debug)]
pub(super) struct Budget {
    /// Until the next token. `None`: there is no limit.
    each: Option<Duration>,
    /// When the bucket is full again.
    full: Instant,
}

impl Budget {
    /// `per_second`: 0 is no limit.
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        Self {
            each: SAVED.checked_div(per_second),
            full: now,
        }
    }

    /// Takes a token, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let Some(each) = self.each else {
            return true;
        };
        let full = self.full.max(now) + each;
        let takes = full.saturating_duration_since(now) <= SAVED;
        if takes {
            self.full = full;
        }
        takes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    /// Tokens that are there at once.
    fn takes(budget: &mut Budget, now: Instant) -> u32 {
        (0..).take_while(|_| budget.take(now)).count() as u32
    }

    #[test]
    fn a_second_brings_what_it_is_to_bring_and_no_more_is_saved() {
        let start = clock::now();
        let mut budget = Budget::new(DEFAULT, start);
        assert_eq!(takes(&mut budget, start), DEFAULT);
        let later = start + Duration::from_millis(100);
        assert_eq!(takes(&mut budget, later), DEFAULT / 10);
        assert_eq!(takes(&mut budget, later), 0);
        // The clock of another thread may be a little behind.
        assert_eq!(takes(&mut budget, start), 0);
        let much_later = later + Duration::from_secs(60);
        assert_eq!(takes(&mut budget, much_later), DEFAULT);
        let mut one = Budget::new(1, start);
        assert_eq!((takes(&mut one, start), takes(&mut one, later)), (1, 0));
    }

    #[test]
    fn nobody_is_refused_who_has_no_limit() {
        let now = clock::now();
        let mut budget = Budget::new(0, now);
        assert!((0..100_000).all(|_| budget.take(now)));
    }
}
