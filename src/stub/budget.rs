//! **Pure.** How many questions a second may go to Consul, or to upstreams, for names of which
//! nothing is known: a flood of names that somebody makes up is to end here, and not at the agent.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use foldhash::fast::RandomState;

/// Questions a second for names of which nothing is known that go to Consul, and to upstreams,
/// unless [`Stub::unknown_per_second`](super::Stub::unknown_per_second) and
/// [`Stub::forwarded_per_second`](super::Stub::forwarded_per_second) say otherwise.
pub const DEFAULT: u32 = 5_000;

/// What is not used is kept for so long.
const SAVED: Duration = Duration::from_secs(1);

/// Tokens of the lower half that one client may have in a second: whoever asks for thousands of
/// names leaves some to others.
const MOST_OF_ONE: u32 = 64;

/// A token bucket, which holds what a second brings.
#[derive(Debug)]
pub(super) struct Budget {
    /// Until the next token. `None`: there is no limit.
    each: Option<Duration>,
    /// When the bucket is full again.
    full: Instant,
    /// What each client's socket had of the lower half, in the second that ends then.
    had: HashMap<SocketAddr, u32, RandomState>,
    until: Instant,
}

impl Budget {
    /// `per_second`: 0 is no limit.
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        Self {
            each: SAVED.checked_div(per_second),
            full: now,
            had: HashMap::default(),
            until: now,
        }
    }

    /// Another limit from now on. What was taken of the one before stays so.
    pub(super) fn set(&mut self, per_second: u32) {
        self.each = SAVED.checked_div(per_second);
    }

    /// Takes a token for a client, if there is one.
    pub(super) fn take(&mut self, client: SocketAddr, now: Instant) -> bool {
        let Some(each) = self.each else {
            return true;
        };
        if !self.has(client, now) {
            return false;
        }
        self.full = self.full.max(now) + each;
        if self.is_low(now) {
            if now >= self.until {
                self.had.clear();
                self.until = now + SAVED;
            }
            *self.had.entry(client).or_default() += 1;
        }
        true
    }

    /// Whether there is a token for a client.
    pub(super) fn has(&self, client: SocketAddr, now: Instant) -> bool {
        let Some(each) = self.each else {
            return true;
        };
        let of_one = || self.had.get(&client).is_some_and(|had| *had >= MOST_OF_ONE);
        let had_its_share = self.is_low(now + each) && now < self.until && of_one();
        self.gone(now) + each <= SAVED && !had_its_share
    }

    /// What is gone of the bucket, in time.
    fn gone(&self, now: Instant) -> Duration {
        self.full.saturating_duration_since(now)
    }

    fn is_low(&self, now: Instant) -> bool {
        self.gone(now) > SAVED / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn client(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    /// Tokens that are there at once, for clients who take one each.
    fn takes(budget: &mut Budget, now: Instant) -> u32 {
        (0..)
            .take_while(|&port| budget.take(client(port), now))
            .count() as u32
    }

    #[test]
    fn who_asks_for_thousands_of_names_leaves_some_to_others() {
        let start = clock::now();
        let mut budget = Budget::new(DEFAULT, start);
        for second in 0..3 {
            let now = start + second * SAVED;
            let greedy = (0..20_000).filter(|_| budget.take(client(1), now)).count();
            assert_eq!(greedy as u32, DEFAULT / 2 + MOST_OF_ONE, "{second}");
            assert!((2..2_000).all(|other| budget.take(client(other), now)));
        }
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
        assert!((0..100_000).all(|_| budget.take(client(1), now)));
    }
}
