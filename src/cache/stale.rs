//! **Pure.** Where stale is decided: what of a set that is known may be given, to
//! whom, after how long, and what TTL it wears (RFC 8767).
//!
//! | the set | given |
//! | --- | --- |
//! | holds still, and is as young as the caller wants it | at once, as fresh |
//! | holds no more, younger than [`Limits::keep`](super::Limits::keep) | when nothing newer came within [`PATIENCE`], as stale |
//! | the same, and the sources of this place kept somebody waiting for that long within [`SLOW`] | at once, while it is asked for |
//! | the same, and it was itself asked for in vain within [`LATELY`] before that | at once, while it is asked for |
//! | the same, but from the snapshot of an earlier run | the same, within [`SNAPSHOT_PATIENCE`] |
//! | the caller wants none that is stale, or younger ones | not at all |
//! | older | not at all |
//!
//! Age counts from the last time that a source gave the set. Giving it renews
//! nothing.

use std::time::Duration;

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
