//! **Shell.** The only file that reads a clock or seeds dice. Everything else
//! gets `now` and a generator as arguments, so that tests can move time by hand.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rand::{RngExt as _, rngs::SmallRng};

/// Monotonic time. It is tokio's, so that a test's paused time counts here too.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Seconds since 1970, for the serial of an SOA record and nothing else. Wraps
/// as serials do (RFC 1982).
#[expect(clippy::cast_possible_truncation, reason = "serials wrap, RFC 1982")]
#[expect(clippy::disallowed_methods, reason = "this is the file that may")]
pub(crate) fn serial() -> u32 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() as u32)
}

/// A query id that nobody outside can foretell (RFC 5452, section 4.5).
pub(crate) fn query_id() -> u16 {
    rand::rng().random()
}

/// Fast dice for the order of answers and the choice of endpoints.
pub(crate) fn dice() -> SmallRng {
    rand::make_rng()
}
