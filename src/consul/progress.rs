//! **Pure.** How far Consul has told of one thing, by its index: a server that was started anew
//! or fell behind tells what was true once.

use std::time::{Duration, Instant};

/// Such a server is given so long to catch up. That the data were replaced by older ones is the
/// other reason for a lower index, and does not pass.
const PASSING: Duration = Duration::from_secs(3);

/// The index of what is believed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    highest: u64,
    /// Since when only less was heard.
    behind: Option<Instant>,
}

impl Progress {
    fn at(index: u64) -> Self {
        Self {
            highest: index,
            behind: None,
        }
    }

    /// Whether what came with this index is believed: not what is older than what was heard
    /// before, as long as that may pass. `led`: whoever told it hears of its leader. Of one who
    /// does not, nothing that is older is believed, however long that lasts: it may be reading
    /// what it wrote down before.
    pub(crate) fn believes(&mut self, index: u64, led: bool, now: Instant) -> bool {
        if index < self.highest {
            if !led {
                return false;
            }
            let since = *self.behind.get_or_insert(now);
            if now.saturating_duration_since(since) < PASSING {
                return false;
            }
        }
        *self = Self::at(index);
        true
    }

    /// Nobody is known to be behind: whoever tells less next has its time from then on.
    pub(crate) fn forget_who_is_behind(&mut self) {
        self.behind = None;
    }
}
