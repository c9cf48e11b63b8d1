//! **Pure.** When a rule counts as broken, and when as kept again: only what lasts is worth
//! somebody's sleep, and what flickers is told once. Time comes in as an argument.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Shares and averages are over this time.
pub(super) const WINDOW: Duration = Duration::from_secs(30);

/// Fewer events than this say nothing about a share or an average.
pub(super) const LEAST: u64 = 5;

/// One rule's state.
#[derive(Clone, Debug)]
pub(super) struct Judge {
    lasts: Duration,
    /// Since when it is other than what was told.
    since: Option<Instant>,
    raised: bool,
}

impl Judge {
    /// Of a rule that has to be broken, or kept, for so long.
    pub(super) fn new(lasts: Duration) -> Self {
        Self {
            lasts,
            since: None,
            raised: false,
        }
    }

    /// Whether the rule is broken now; `None`: that is not known, and changes nothing. Gives
    /// what is to be told: that it is raised, or cleared.
    pub(super) fn judge(&mut self, broken: Option<bool>, now: Instant) -> Option<bool> {
        let broken = broken?;
        if broken == self.raised {
            self.since = None;
            return None;
        }
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) < self.lasts {
            return None;
        }
        (self.since, self.raised) = (None, broken);
        Some(broken)
    }
}

/// What was counted over the last [`WINDOW`].
#[derive(Clone, Debug, Default)]
pub(super) struct Window(VecDeque<(Instant, Counted)>);

/// Counters that only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) all: u64,
    pub(super) bad: u64,
    pub(super) nanoseconds: u64,
}

impl Counted {
    /// The share of bad ones, between 0 and 1; `None`: too few to say.
    pub(super) fn share(self) -> Option<f64> {
        (self.all >= LEAST).then(|| self.bad as f64 / self.all as f64)
    }

    /// The time that one took; `None`: too few to say.
    pub(super) fn mean(self) -> Option<Duration> {
        let mean = self.nanoseconds.checked_div(self.all)?;
        (self.all >= LEAST).then(|| Duration::from_nanos(mean))
    }
}

impl Window {
    /// Takes the counters as they are, and gives what they grew by.
    pub(super) fn take(&mut self, counted: Counted, now: Instant) -> Counted {
        self.0.push_back((now, counted));
        // The last one before the window is where it begins.
        while let Some((next, _)) = self.0.get(1)
            && now.saturating_duration_since(*next) >= WINDOW
        {
            self.0.pop_front();
        }
        let first = self.0.front().map_or(counted, |(_, first)| *first);
        Counted {
            all: counted.all.saturating_sub(first.all),
            bad: counted.bad.saturating_sub(first.bad),
            nanoseconds: counted.nanoseconds.saturating_sub(first.nanoseconds),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const LASTS: Duration = Duration::from_secs(5);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_lasts_is_raised_once_and_cleared_once() {
        let start = clock::now();
        let mut judge = Judge::new(LASTS);
        let mut told = Vec::new();
        for second in 0..40 {
            let now = start + SECOND * second;
            let broken = (10..25).contains(&second);
            if let Some(raised) = judge.judge(Some(broken), now) {
                told.push((second, raised));
            }
        }
        assert_eq!(told, [(15, true), (30, false)]);
    }

    #[test]
    fn what_flickers_or_is_not_known_is_not_told() {
        let start = clock::now();
        let mut judge = Judge::new(LASTS);
        for second in 0..60 {
            let broken = match second % 6 {
                0 => Some(false),
                1 => None,
                _ => Some(true),
            };
            assert_eq!(
                judge.judge(broken, start + SECOND * second),
                None,
                "{second}"
            );
        }
    }

    #[test]
    fn a_window_forgets_and_few_say_nothing() {
        let start = clock::now();
        let mut window = Window::default();
        let counted = |all, bad| Counted {
            all,
            bad,
            nanoseconds: all * 1_000,
        };
        assert_eq!(window.take(counted(100, 100), start), counted(0, 0));
        let grown = window.take(counted(104, 104), start + SECOND);
        assert_eq!((grown.share(), grown.mean()), (None, None));
        let grown = window.take(counted(110, 105), start + SECOND * 2);
        assert_eq!(grown.share(), Some(0.5));
        assert_eq!(grown.mean(), Some(Duration::from_nanos(1_000)));
        let grown = window.take(counted(120, 105), start + WINDOW + SECOND * 2);
        assert_eq!((grown.all, grown.share()), (10, Some(0.0)));
    }
}
