//! **Pure.** What the cache keeps beside a name, and until when that holds.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::fate::Fate;
use crate::found::Held;

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) until: Instant,
    /// From then on it is asked for ahead of its time.
    pub(super) renew: Instant,
    /// When a source last gave it.
    pub(super) since: Instant,
    pub(super) bytes: usize,
    /// How often it was given since it was put.
    pub(super) asked: u32,
    /// The set, where the key is one; so that a hit need not read the key for it.
    pub(super) set: Option<Arc<Held>>,
    /// What most entries do not have. In a box, so that a hit reads less memory.
    pub(super) rare: Option<Box<Rare>>,
}

#[derive(Debug, Default)]
pub(super) struct Rare {
    /// A refresh failed: when the next one is due, and until when nobody waits for it.
    pub(super) again: Option<(Instant, Instant)>,
    /// When the set last lost instances.
    pub(super) shrunk: Option<Instant>,
    /// It is followed until then, and holds for as long as followers live.
    pub(super) followed: Option<Instant>,
    /// For who gives it without asking here, if anybody does.
    pub(super) fate: Option<Fate>,
}

impl Entry {
    pub(super) fn shrank_within(&self, window: Duration, now: Instant) -> bool {
        (self.shrunk()).is_some_and(|when| now.saturating_duration_since(when) < window)
    }

    pub(super) fn shrunk(&self) -> Option<Instant> {
        self.rare.as_ref()?.shrunk
    }

    /// Until when it is followed, if it is.
    pub(super) fn followed(&self) -> Option<Instant> {
        self.rare.as_ref()?.followed
    }

    pub(super) fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// When it holds no more, with followers that live until `alive`.
    pub(super) fn until(&self, alive: Option<Instant>) -> Instant {
        let holds_on = self
            .followed()
            .zip(alive)
            .map(|(until, alive)| until.min(alive));
        holds_on.map_or(self.until, |until| self.until.max(until))
    }

    /// It holds no longer than until then, followed or not.
    pub(super) fn end_by(&mut self, until: Instant, alive: Option<Instant>) {
        self.until = self.until(alive).min(until);
        if let Some(rare) = &mut self.rare {
            rare.followed = None;
        }
    }

    /// Tells who gives it without asking here that it is not so any more.
    pub(super) fn end(&mut self) {
        if let Some(fate) = self.fate() {
            fate.end();
        }
    }

    pub(super) fn fate(&mut self) -> Option<Fate> {
        self.rare.as_mut()?.fate.take()
    }
}
