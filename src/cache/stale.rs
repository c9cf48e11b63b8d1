//! **Pure.** Where stale is decided: what of a set that is known may be given, to
//! whom, after how long, and what TTL it wears (RFC 8767).
//!
//! | the set | given |
//! | --- | --- |
//! | holds still, and is as young as the caller wants it | at once, as fresh |
//! | holds no more, younger than [`Limits::keep`](super::Limits::keep) | when nothing newer came within [`PATIENCE`], as stale |
//! | the same, and the sources of this place kept somebody waiting for that long within [`SLOW`] | at once, while it is asked for |
//! | the same, and [`ENOUGH`] other names were hidden from us, one after the other | at once, while it is asked for |
//! | the same, and it was itself asked for in vain within [`LATELY`] before that | at once, while it is asked for |
//! | the same, but from the snapshot of an earlier run | the same, within [`SNAPSHOT_PATIENCE`] |
//! | the caller wants none that is stale, or younger ones | not at all |
//! | older | not at all |
//!
//! Age counts from the last time that a source gave the set. Giving it renews
//! nothing.

use std::time::{Duration, Instant};

/// How long a caller waits for something newer while a stale set is there: RFC
/// 8767 (section 5) says 1.8 s for clients of the Internet; those of a service
/// have given up by then.
pub(crate) const PATIENCE: Duration = Duration::from_millis(150);

/// The same for a set of an earlier run: a process that starts while everything is
/// down is to answer at once.
pub(crate) const SNAPSHOT_PATIENCE: Duration = Duration::from_millis(50);

/// After somebody waited in vain nobody waits for so long, whatever the name: a source that is
/// slow for one is slow for the next.
pub(crate) const SLOW: Duration = Duration::from_secs(10);

/// So many names that were known are hidden from us, each within [`NEXT`] of the last and none
/// found in between, and nobody waits for what is said of others: the rights are gone.
const ENOUGH: u8 = 3;
const NEXT: Duration = Duration::from_secs(1);

/// After a set was asked for in vain nobody waits for it for so long, beyond the time that it is
/// left alone: who asks often waits once.
pub(crate) const LATELY: Duration = Duration::from_millis(500);

/// Least and most TTL of a stale record. Zero would have it asked for again at
/// once (RFC 8767, section 4).
const TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// What a caller says of the age of what it wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wish {
    /// Nothing that is stale.
    pub(crate) fresh: bool,
    /// Nothing as old.
    pub(crate) max_age: Option<Duration>,
}

impl Wish {
    /// Whether a set of that age will do. `holds`: it is within its own time.
    pub(crate) fn takes(self, age: Duration, holds: bool) -> bool {
        (holds || !self.fresh) && self.max_age.is_none_or(|most| age < most)
    }
}

/// Whether the sources of this place are worth waiting for, to who has something stale.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    /// When somebody last waited in vain.
    slow: Option<Instant>,
    /// How many names in a row are hidden from us, and since when the last is.
    denied: Option<(u8, Instant)>,
}

impl Waits {
    /// Whether nobody waits.
    pub(crate) fn are_in_vain(&self, now: Instant) -> bool {
        let slow = |when| now.saturating_duration_since(when) < SLOW;
        self.slow.is_some_and(slow)
    }

    /// Somebody waited for as long as anybody does.
    pub(crate) fn waited(&mut self, now: Instant) {
        self.slow = Some(now);
    }

    /// A source answered in time, and is believed.
    pub(crate) fn heard(&mut self) {
        *self = Self::default();
    }

    /// One more name that was known is hidden from us. Whether nobody waits from now on.
    pub(crate) fn denied(&mut self, now: Instant) -> bool {
        let next = |when| now.saturating_duration_since(when) < NEXT;
        let before = self.denied.filter(|(_, last)| next(*last));
        let count = before.map_or(0, |(count, _)| count).saturating_add(1);
        self.denied = Some((count, now));
        let enough = count >= ENOUGH;
        if enough {
            self.waited(now);
        }
        enough
    }
}

/// The TTL that a stale answer wears, of a set whose own is `ttl`.
pub(crate) fn worn_ttl(ttl: Duration) -> Duration {
    let (least, most) = TTL;
    ttl.clamp(least, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn names_in_a_row_that_are_hidden_end_the_waiting_until_one_is_found() {
        let start = crate::clock::now();
        let mut waits = Waits::default();
        let at = |count: u32| start + NEXT / 2 * count;
        assert!(!waits.denied(at(0)) && !waits.denied(at(1)));
        assert!(!waits.are_in_vain(at(1)));
        assert!(waits.denied(at(2)) && waits.are_in_vain(at(2)));
        assert!(!waits.are_in_vain(at(2) + SLOW));
        waits.heard();
        assert!(!waits.are_in_vain(at(2)));
        // One that was found in between, or a while, begins a new row.
        assert!(!waits.denied(at(3)) && !waits.denied(at(4)));
        waits.heard();
        assert!(!waits.denied(at(5)) && !waits.denied(at(6)));
        assert!(!waits.denied(at(6) + NEXT));
    }

    #[test]
    fn a_wish_is_about_staleness_and_about_age() {
        let any = Wish::default();
        assert!(any.takes(MINUTE, false) && any.takes(MINUTE, true));
        let fresh = Wish { fresh: true, ..any };
        assert!(!fresh.takes(MINUTE, false) && fresh.takes(MINUTE, true));
        let young = Wish {
            max_age: Some(MINUTE / 2),
            ..any
        };
        assert!(!young.takes(MINUTE / 2, true) && young.takes(MINUTE / 3, false));
    }

    #[test]
    fn a_stale_ttl_is_never_zero_and_never_long() {
        assert_eq!(worn_ttl(Duration::ZERO), Duration::from_secs(1));
        assert_eq!(worn_ttl(Duration::from_secs(3)), Duration::from_secs(3));
        assert_eq!(worn_ttl(MINUTE), Duration::from_secs(5));
    }
}
