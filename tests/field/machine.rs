//! When this machine stood still, or one of its cores: what is late by that is nobody's lateness.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::time::Instant;

/// A sleeper's sleep.
const NAP: Duration = Duration::from_millis(20);

/// Who wakes so much later stood still. Whoever is awake and busy keeps no sleeper for so long.
const LATE: Duration = Duration::from_millis(80);

/// A time in which nothing went on, on one core at least.
pub(crate) type Standstill = (Instant, Instant);

/// Sleepers, one for each core: a host may take one of them alone.
pub(crate) struct Machine {
    stood: Arc<Mutex<Vec<Standstill>>>,
    done: Arc<AtomicBool>,
}

impl Machine {
    pub(crate) fn watched() -> Self {
        let machine = Self {
            stood: Arc::default(),
            done: Arc::default(),
        };
        let cores = thread::available_parallelism().map_or(2, usize::from);
        for _ in 0..cores {
            let (stood, done) = (Arc::clone(&machine.stood), Arc::clone(&machine.done));
            thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let due = Instant::now() + NAP;
                    thread::sleep(NAP);
                    let now = Instant::now();
                    if now > due + LATE {
                        let mut stood = stood.lock().unwrap_or_else(PoisonError::into_inner);
                        stood.push((due, now));
                    }
                }
            });
        }
        machine
    }

    /// All times until now, in order; none overlaps another.
    pub(crate) fn stood(&self) -> Vec<Standstill> {
        let stood = self.stood.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = stood.clone();
        drop(stood);
        all.sort_unstable();
        let mut merged: Vec<Standstill> = Vec::new();
        for (from, to) in all {
            match merged.last_mut() {
                Some((_, end)) if from <= *end => *end = to.max(*end),
                _ => merged.push((from, to)),
            }
        }
        merged
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

/// How long it stood still between these.
pub(crate) fn between(stood: &[Standstill], from: Instant, to: Instant) -> Duration {
    let part = |(began, ended): &Standstill| {
        (*ended.min(&to)).saturating_duration_since(*began.max(&from))
    };
    stood.iter().map(part).sum()
}

#[cfg(test)]
#[allow(
    unused_imports,
    reason = "the runner of all rows has no test of its own"
)]
mod tests {
    use super::*;

    #[test]
    fn what_it_stood_still_is_counted_once_and_where_it_was() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let machine = Machine::watched();
        *machine.stood.lock().unwrap() = vec![(at(5), at(7)), (at(1), at(3)), (at(2), at(4))];
        let stood = machine.stood();
        assert_eq!(stood, [(at(1), at(4)), (at(5), at(7))]);
        let between = |from, to| between(&stood, at(from), at(to)).as_secs();
        assert_eq!([between(0, 9), between(2, 6), between(4, 5)], [5, 3, 0]);
    }
}
