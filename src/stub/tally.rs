//! **Word.** What one thread of the stub has answered. Each thread writes its own and
//! shares it with nobody; who asks for the sum reads all.

use std::sync::atomic::{AtomicU64, Ordering};

/// Response codes that are counted one by one; others count as the last.
const CODES: usize = 16;

/// Written by one thread. Aligned so that two threads never write one line of the
/// processor's cache.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Tally {
    /// Replies from memory, by response code.
    gave: [AtomicU64; CODES],
    /// Datagrams that nobody had time for.
    shed: AtomicU64,
    names: AtomicU64,
    bytes: AtomicU64,
}

impl Tally {
    /// A reply went out. `flags`: the fourth byte of its header.
    pub(crate) fn gave(&self, flags: u8) {
        add(&self.gave[usize::from(flags & 0x0F)], 1);
    }

    pub(crate) fn shed(&self, count: u64) {
        if count > 0 {
            add(&self.shed, count);
        }
    }

    /// Replies kept, and their bytes.
    pub(crate) fn holds(&self, (names, bytes): (usize, usize)) {
        let wide = |number| u64::try_from(number).unwrap_or(u64::MAX);
        self.names.store(wide(names), Ordering::Relaxed);
        self.bytes.store(wide(bytes), Ordering::Relaxed);
    }
}

/// There is one writer: nothing is lost between the two.
fn add(counter: &AtomicU64, more: u64) {
    let before = counter.load(Ordering::Relaxed);
    counter.store(before.wrapping_add(more), Ordering::Relaxed);
}
