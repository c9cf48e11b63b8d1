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

type Chunk = Arc<[AtomicU32]>;

/// Those of one thread, by slot.
#[derive(Clone, Debug, Default)]
pub(super) struct Loads(Box<[Chunk]>);

fn of(chunks: &[Chunk], slot: u32) -> Option<&AtomicU32> {
    let slot = slot as usize;
    chunks.get(slot / CHUNK)?.get(slot % CHUNK)
}

impl Loads {
    /// Whether any are counted.
    pub(super) fn count(&self) -> bool {
        !self.0.is_empty()
    }

    pub(super) fn load(&self, slot: u32) -> u32 {
        of(&self.0, slot).map_or(0, |load| load.load(Ordering::Relaxed))
    }

    pub(super) fn begin(&self, slot: u32) {
        if let Some(load) = of(&self.0, slot) {
            load.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Once for each [`begin`](Self::begin).
    pub(super) fn end(&self, slot: u32) {
        if let Some(load) = of(&self.0, slot) {
            load.fetch_sub(1, Ordering::Relaxed);
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
                chunks.push((0..CHUNK).map(|_| AtomicU32::new(0)).collect());
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
            load.map_or(0, |load| load.load(Ordering::Relaxed) as usize)
        };
        self.threads.iter().map(of_thread).sum()
    }

    /// For a set: those of each thread.
    pub(super) fn loads(&self) -> Vec<Loads> {
        let of_thread = |chunks: &Vec<Chunk>| Loads(chunks.clone().into());
        self.threads.iter().map(of_thread).collect()
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
        loads[1].begin(first);
        slots.leave(first);
        assert_ne!(slots.take(), first);
        loads[1].end(first);
        assert_eq!((slots.take(), slots.load(first)), (first, 0));
    }

    #[test]
    fn slots_beyond_a_chunk_do_not_move_those_before() {
        let mut slots = Slots::new(1);
        let first = slots.take();
        let before = slots.loads();
        before[0].begin(first);
        for _ in 0..3 * CHUNK {
            slots.take();
        }
        assert_eq!((slots.load(first), slots.loads()[0].load(first)), (1, 1));
        before[0].end(first);
        assert_eq!(slots.load(first), 0);
        assert_eq!(Slots::none(2).take(), 0);
    }
}
