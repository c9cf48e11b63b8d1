//! **Word.** Whether what was found is still so: shared by the cache, which ends it, and
//! by whoever made something of it that is given without asking the cache again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

/// Of one entry of the cache.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fate(Arc<AtomicBool>);

impl Fate {
    /// It is not so any more.
    pub(crate) fn end(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.load(Ordering::Acquire)
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
