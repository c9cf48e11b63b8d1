//! **Pure.** When a set is asked for ahead of its time.

use std::time::Duration;

/// A set is asked for anew, by whoever is given it, when it holds for no longer than one part in
/// so many of its time, or up to twice that: who asks often never waits for a source.
const AHEAD: u32 = 8;
pub(super) const MOST_AHEAD: Duration = Duration::from_secs(1);

/// How long before its end a set is asked for that holds for so long. For each name it is
/// another part: those that were found together are not asked for together for ever.
pub(crate) fn ahead(key: &str, holds: Duration) -> Duration {
    let part = (key.bytes()).fold(0_u32, |part, byte| part.wrapping_mul(31) ^ u32::from(byte));
    let least = (holds / AHEAD).min(MOST_AHEAD);
    least + least * (part % 256) / 256
}
