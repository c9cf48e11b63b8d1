//! **Pure.** Calls in the air, by endpoint and by thread. The numbers stand beside each other,
//! so that to compare two of ten thousand endpoints costs as much as two of ten.
//!
//! An endpoint has the same slot as long as it is known, whatever sets are made meanwhile: a
//! call that began in an older set is counted out in the newer. A slot is given anew when all
//! its calls have ended.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

/// Slots that stand together: they never move.
const CHUNK: usize = 1_024;

type Chunk = Arc<[Load]>;

/// The calls of one thread at one endpoint.
#[derive(Debug, Default)]
struct Load {
    /// Those that the thread began, less those that it ended. Nobody else writes it, so that
    /// it takes no lock of the memory to do so.
    own: AtomicU32,
    /// Those that other threads ended, less those that they began.
    others: AtomicU32,
}

impl Load {
    fn now(&self) -> u32 {
        let (own, others) = (&self.own, &self.others);
        let load = own
            .load(Ordering::Relaxed)
            .wrapping_sub(others.load(Ordering::Relaxed));
        // One of the two may be newer than the other.
        load.cast_signed().max(0).cast_unsigned()
    }
}

/// Those of one thread, by slot.
#[derive(Clone, Debug, Default)]
pub(super) struct Loads {
    /// The thread's number.
    thread: usize,
    chunks: Box<[Chunk]>,
}

fn of(chunks: &[Chunk], slot: u32) -> Option<&Load> {
    let slot = slot as usize;
    chunks.get(slot / CHUNK)?.get(slot % CHUNK)
}

impl Loads {
    /// Whether any are counted.
    pub(super) fn count(&self) -> bool {
        !self.chunks.is_empty()
    }

    pub(super) fn load(&self, slot: u32) -> u32 {
        of(&self.chunks, slot).map_or(0, Load::now)
    }

    /// A call begins, by the thread of that number.
    pub(super) fn begin(&self, slot: u32, by: usize) {
        let Some(load) = of(&self.chunks, slot) else {
            return;
        };
        if by == self.thread {
            let own = load.own.load(Ordering::Relaxed).wrapping_add(1);
            load.own.store(own, Ordering::Relaxed);
        } else {
            load.others.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Once for each [`begin`](Self::begin), by whatever thread.
    pub(super) fn end(&self, slot: u32, by: usize) {
        let Some(load) = of(&self.chunks, slot) else {
            return;
        };
        if by == self.thread {
            let own = load.own.load(Ordering::Relaxed).wrapping_sub(1);
            load.own.store(own, Ordering::Relaxed);
        } else {
            load.others.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// All slots of a pool.
#[derive(Debug)]
pub(super) struct Slots {
    /// The chunks of each thread.
    threads: Vec<Vec<Chunk>>,
    /// False: loads do not count, and there are no chunks.
    counts: bool,
    /// The first that was never given.
    next: u32,
    free: Vec<u32>,
    /// Of endpoints that are gone; some calls may still be in the air.
    leaving: Vec<u32>,
}

impl Slots {
    /// For so many threads.
    pub(super) fn new(threads: usize) -> Self {
        Self {
            counts: true,
            ..Self::none(threads)
        }
    }

    /// Where loads do not count.
    pub(super) fn none(threads: usize) -> Self {
        Self {
            threads: vec![Vec::new(); threads],
            counts: false,
            next: 0,
            free: Vec::new(),
            leaving: Vec::new(),
        }
    }

    /// Whether loads count at all.
    pub(super) fn count(&self) -> bool {
        self.counts
    }

    /// A slot for an endpoint.
    pub(super) fn take(&mut self) -> u32 {
        if !self.count() {
            return 0;
        }
        let mut leaving = std::mem::take(&mut self.leaving);
        leaving.retain(|slot| {
            let is_idle = self.load(*slot) == 0;
            if is_idle {
                self.free.push(*slot);
            }
            !is_idle
        });
        self.leaving = leaving;
        if let Some(slot) = self.free.pop() {
            return slot;
        }
        let slot = self.next;
        self.next = self.next.saturating_add(1);
        for chunks in &mut self.threads {
            if chunks.len() * CHUNK <= slot as usize {
                chunks.push((0..CHUNK).map(|_| Load::default()).collect());
            }
        }
        slot
    }

    /// Its endpoint is gone.
    pub(super) fn leave(&mut self, slot: u32) {
        if self.count() {
            self.leaving.push(slot);
        }
    }

    /// Calls in the air, of all threads.
    pub(super) fn load(&self, slot: u32) -> usize {
        let of_thread = |chunks: &Vec<Chunk>| {
            let load = of(chunks, slot);
            load.map_or(0, |load| load.now() as usize)
        };
        self.threads.iter().map(of_thread).sum()
    }

    /// For a set: those of each thread.
    pub(super) fn loads(&self) -> Vec<Loads> {
        let of_thread = |(thread, chunks): (usize, &Vec<Chunk>)| Loads {
            thread,
            chunks: chunks.clone().into(),
        };
        self.threads.iter().enumerate().map(of_thread).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_given_anew_when_its_last_call_has_ended() {
        let mut slots = Slots::new(2);
        let first = slots.take();
        let loads = slots.loads();
        loads[1].begin(first, 1);
        slots.leave(first);
        assert_ne!(slots.take(), first);
        loads[1].end(first, 0);
        assert_eq!((slots.take(), slots.load(first)), (first, 0));
    }

    #[test]
    fn whoever_begins_and_whoever_ends_the_sum_is_what_is_in_the_air() {
        let mut slots = Slots::new(2);
        let slot = slots.take();
        let loads = slots.loads();
        for (begins, ends) in [(0, 0), (0, 1), (1, 0), (7, 0), (0, 7), (7, 7)] {
            loads[0].begin(slot, begins);
            assert_eq!((loads[0].load(slot), slots.load(slot)), (1, 1));
            loads[0].end(slot, ends);
            assert_eq!((loads[0].load(slot), slots.load(slot)), (0, 0));
        }
    }

    #[test]
    fn slots_beyond_a_chunk_do_not_move_those_before() {
        let mut slots = Slots::new(1);
        let first = slots.take();
        let before = slots.loads();
        before[0].begin(first, 0);
        for _ in 0..3 * CHUNK {
            slots.take();
        }
        assert_eq!((slots.load(first), slots.loads()[0].load(first)), (1, 1));
        before[0].end(first, 0);
        assert_eq!(slots.load(first), 0);
        assert_eq!(Slots::none(2).take(), 0);
    }
}
