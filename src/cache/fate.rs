//! **Word.** Whether what was found is still so: shared by the cache, which ends it, and
//! by whoever made something of it that is given without asking the cache again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Instant,
};

/// Of one entry of the cache.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fate(Arc<AtomicU8>);

const HOLDS: u8 = 0;
const RENEWED: u8 = 1;
const GONE: u8 = 2;

impl Fate {
    /// It was found again, with the same members: the newer one is to be given.
    pub(crate) fn renew(&self) {
        self.0.store(RENEWED, Ordering::Release);
    }

    /// It is not so any more.
    pub(crate) fn end(&self) {
        self.0.store(GONE, Ordering::Release);
    }

    /// Whether something newer is known.
    pub(crate) fn is_over(&self) -> bool {
        self.0.load(Ordering::Acquire) != HOLDS
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.0.load(Ordering::Acquire) == GONE
    }
}

/// How long what was made of an entry may be given without asking the cache again.
#[derive(Clone, Debug)]
pub(crate) struct Term {
    pub(crate) until: Instant,
    /// Until then it may be given as stale where nobody has time to ask.
    pub(crate) kept: Instant,
    /// Who tells if that ends before, if anybody does.
    pub(crate) fate: Option<Fate>,
}

impl Term {
    /// For what depends on nobody.
    pub(crate) fn of(until: Instant) -> Self {
        Self {
            until,
            kept: until,
            fate: None,
        }
    }
}
