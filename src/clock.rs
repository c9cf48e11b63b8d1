//! **Shell.** The only file that reads a clock or seeds dice. Everything else
//! gets `now` and a generator as arguments, so that tests can move time by hand.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    sync::{Mutex, Once, OnceLock, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rand::{RngExt as _, rngs::SmallRng};

/// Monotonic time. It is tokio's, so that a test's paused time counts here too.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// As [`now`], but behind by up to a tick of the kernel (1 to 10 ms), never ahead:
/// for what is read on every hit.
///
/// The exact clock waits for all that was read from memory before, so that the
/// processor cannot start on the next hit while this one waits; among many names
/// that is most of what a hit costs.
pub(crate) fn lately() -> Instant {
    #[cfg(all(target_os = "linux", not(test)))]
    if let Some(instant) = ticked() {
        return instant;
    }
    now()
}

/// Nanoseconds since a moment of this process, never 0: for latencies, which are read with
/// each call. Exact as [`now`], and cheaper once [`hurry`] is done: the processor's counter is
/// read without waiting for what was begun before.
pub(crate) fn nanoseconds() -> u64 {
    // A test moves time by hand.
    #[cfg(not(test))]
    if let Some(counter) = COUNTER.get() {
        return counter.nanoseconds();
    }
    by_the_kernel()
}

/// The same by the kernel's clock.
fn by_the_kernel() -> u64 {
    let since = now().saturating_duration_since(*ORIGIN.get_or_init(now));
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX).max(1)
}

static ORIGIN: OnceLock<Instant> = OnceLock::new();

/// The processor's counter, compared with the kernel's clock once.
struct Counter {
    clock: quanta::Clock,
    raw: u64,
    /// What the kernel's clock said then.
    at: u64,
}

static COUNTER: OnceLock<Counter> = OnceLock::new();

impl Counter {
    #[cfg_attr(test, expect(dead_code, reason = "a test moves time by hand"))]
    fn nanoseconds(&self) -> u64 {
        let since = self.clock.delta_as_nanos(self.raw, self.clock.raw());
        self.at.saturating_add(since)
    }
}

/// Compares the processor's counter with the kernel's clock, in the background: that takes a
/// millisecond, on odd machines some hundred.
pub(crate) fn hurry() {
    static BEGUN: Once = Once::new();
    BEGUN.call_once(|| {
        let compare = || {
            let clock = quanta::Clock::new();
            let (raw, at) = (clock.raw(), by_the_kernel());
            // Nobody else does.
            _ = COUNTER.set(Counter { clock, raw, at });
        };
        // Without it the kernel's clock is read, as until then.
        _ = std::thread::Builder::new()
            .name("proconsul-clock".into())
            .spawn(compare);
    });
}

/// The kernel's clock as of its last tick. Both clocks count from one zero, which
/// `Instant` hides: one moment read from both tells it.
#[cfg(target_os = "linux")]
#[cfg_attr(test, expect(dead_code, reason = "a test moves time by hand"))]
fn ticked() -> Option<Instant> {
    use nix::time::{ClockId, clock_gettime};
    static MOMENT: OnceLock<Option<(Instant, Duration)>> = OnceLock::new();
    let read = |clock| clock_gettime(clock).ok().map(Duration::from);
    let (instant, since_zero) = (*MOMENT.get_or_init(|| {
        // The closest pair of a few: the thread may be put aside between two reads.
        let pairs = (0..5).filter_map(|_| {
            let instant = now();
            let since_zero = read(ClockId::CLOCK_MONOTONIC)?;
            Some((now().duration_since(instant), (instant, since_zero)))
        });
        pairs.min_by_key(|(apart, _)| *apart).map(|(_, pair)| pair)
    }))?;
    let ticked = read(ClockId::CLOCK_MONOTONIC_COARSE)?;
    match ticked.checked_sub(since_zero) {
        Some(later) => instant.checked_add(later),
        None => instant.checked_sub(since_zero.saturating_sub(ticked)),
    }
}

/// Time since 1970: for the serial of an SOA record and the age of a snapshot.
#[expect(clippy::disallowed_methods, reason = "this is the file that may")]
pub(crate) fn since_1970() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Seconds since 1970, for the serial of an SOA record. Wraps as serials do (RFC
/// 1982).
#[expect(clippy::cast_possible_truncation, reason = "serials wrap, RFC 1982")]
pub(crate) fn serial() -> u32 {
    since_1970().as_secs() as u32
}

/// A number that nobody outside can foretell: for the name of a new file.
pub(crate) fn nonce() -> u64 {
    rand::rng().random()
}

/// A query id that nobody outside can foretell (RFC 5452, section 4.5).
pub(crate) fn query_id() -> u16 {
    rand::rng().random()
}

/// Fast dice for the order of answers and the choice of endpoints.
pub(crate) fn dice() -> SmallRng {
    rand::make_rng()
}

thread_local! {
    static DICE: RefCell<Option<SmallRng>> = const { RefCell::new(None) };
    /// One more than its number; 0: it has none yet.
    static THREAD: Cell<usize> = const { Cell::new(0) };
    /// Beside it, so that it is read without a look at whether it still is there.
    static GIVEN_BACK: Cell<Option<Numbered>> = const { Cell::new(None) };
}

/// 64 random bits of dice that each thread has for itself.
pub(crate) fn roll() -> u64 {
    DICE.with_borrow_mut(|own| own.get_or_insert_with(dice).random())
}

/// The calling thread's number: the first that asks is 0. No two that live have the same, and
/// those of threads that have ended are given anew, the lowest first.
pub(crate) fn thread() -> usize {
    THREAD.with(|number| match number.get() {
        0 => {
            let own = numbered();
            number.set(own.wrapping_add(1));
            own
        }
        more => more - 1,
    })
}

#[cold]
fn numbered() -> usize {
    let mut numbers = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner);
    let own = numbers.free.pop_first().unwrap_or_else(|| {
        numbers.next += 1;
        numbers.next - 1
    });
    // A thread that is about to end keeps its number for ever: nobody gives it back.
    _ = GIVEN_BACK.try_with(|given| given.set(Some(Numbered(own))));
    own
}

/// Numbers of threads. A std mutex: held for a look, once a thread.
struct Numbers {
    next: usize,
    free: BTreeSet<usize>,
}

static NUMBERS: Mutex<Numbers> = Mutex::new(Numbers {
    next: 0,
    free: BTreeSet::new(),
});

/// Gives its number back with its thread.
struct Numbered(usize);

impl Drop for Numbered {
    fn drop(&mut self) {
        // What the thread still does has another number, or none.
        _ = THREAD.try_with(|number| number.set(0));
        let mut numbers = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner);
        numbers.free.insert(self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    #[test]
    fn no_two_threads_that_live_have_the_same_number_and_those_that_ended_leave_theirs() {
        let numbers = || {
            let both = thread::scope(|threads| {
                // Before the other: that one may have ended, and left its number, at once.
                let other = super::thread();
                let one = threads.spawn(|| (super::thread(), super::thread()));
                let one = one.join().unwrap();
                assert_eq!(one.0, one.1);
                [one.0, other]
            });
            assert_ne!(both[0], both[1]);
            both[0]
        };
        let highest = (0..200).map(|_| numbers()).max().unwrap();
        // Other tests have threads as well, but not two hundred.
        assert!(highest < 150, "{highest}");
    }
}
