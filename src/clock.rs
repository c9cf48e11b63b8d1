//! **Shell.** The only file that reads a clock or seeds dice. Everything else
//! gets `now` and a generator as arguments, so that tests can move time by hand.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    sync::{
        Mutex, Once, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rand::{RngExt as _, rngs::SmallRng};
use tokio::time::Timeout;

/// Time that never goes back, and that passes while the machine is suspended too, as soon as
/// that is [noticed](suspended): what ages go by. It is tokio's, so that a test's paused time
/// counts here too.
///
/// tokio's timers do not know of it: [`sleep_until`] and [`timeout_at`] do.
pub(crate) fn now() -> Instant {
    static LOOKED: AtomicU64 = AtomicU64::new(0);
    let awake = monotonic();
    let since = awake.saturating_duration_since(*BEGUN.get_or_init(monotonic));
    suspended::look(since, &LOOKED);
    suspended::after(awake)
}

/// How long something took that began `then`: what the machine was suspended meanwhile is no part
/// of it.
pub(crate) fn took(then: Instant) -> Duration {
    took_by(then, now())
}

/// The same, by a time of [`now`] that was read already.
pub(crate) fn took_by(then: Instant, now: Instant) -> Duration {
    let all = now.saturating_duration_since(then);
    all.saturating_sub(suspended::since(then))
}

/// Completes when the machine was suspended, within a second of its waking up. Connections that
/// it had may be none any more then, and nothing tells of it.
///
/// Cancel-safe.
pub(crate) async fn resumed() {
    let before = suspended::so_far();
    while suspended::so_far() == before {
        tokio::time::sleep(Duration::from_secs(1)).await;
        now();
    }
}

/// Sleeps until that time of [`now`]. A machine that is suspended meanwhile sleeps so much
/// longer.
///
/// Cancel-safe.
pub(crate) fn sleep_until(at: Instant) -> tokio::time::Sleep {
    tokio::time::sleep_until(timer(at))
}

/// Waits until that time of [`now`], as [`sleep_until`] does.
///
/// As cancel-safe as what is waited for.
pub(crate) fn timeout_at<F: IntoFuture>(at: Instant, future: F) -> Timeout<F::IntoFuture> {
    tokio::time::timeout_at(timer(at), future)
}

/// When a timer is due, which knows nothing of suspended time.
fn timer(at: Instant) -> tokio::time::Instant {
    let awake = at.checked_sub(suspended::so_far()).unwrap_or(at);
    tokio::time::Instant::from_std(awake)
}

/// Time that stands still while the machine is suspended: what something has lasted.
pub(crate) fn monotonic() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// A moment of this process, before all others that are compared with it.
static BEGUN: OnceLock<Instant> = OnceLock::new();

/// For how long the machine was suspended since this process began to look.
mod suspended {
    use std::collections::VecDeque;

    use super::{AtomicU64, Duration, Instant, Ordering};

    /// When it was, as [`now`](super::now) told it until that was noticed, and for how long.
    type Naps = VecDeque<(Instant, Duration)>;

    /// Naps that are known.
    const MOST: usize = 64;

    /// All of that time.
    pub(super) fn so_far() -> Duration {
        #[cfg(test)]
        return state::naps(|naps| naps.iter().map(|(_, length)| *length).sum());
        #[cfg(not(test))]
        Duration::from_nanos(SUSPENDED.load(Ordering::Relaxed))
    }

    /// That of it which is after `then`.
    pub(super) fn since(then: Instant) -> Duration {
        if so_far().is_zero() {
            return Duration::ZERO;
        }
        let after = |(from, length): &(Instant, Duration)| (*from >= then).then_some(*length);
        state::naps(|naps| naps.iter().filter_map(after).sum())
    }

    /// A moment, as if the machine had not been suspended.
    pub(super) fn after(awake: Instant) -> Instant {
        match so_far() {
            Duration::ZERO => awake,
            more => awake.checked_add(more).unwrap_or(awake),
        }
    }

    /// Looks, unless somebody who counts from the same moment did so within about 4 ms.
    pub(super) fn look(since: Duration, looked: &AtomicU64) {
        const BITS: u32 = 22;
        let nanoseconds = since.as_secs() * 1_000_000_000 + u64::from(since.subsec_nanos());
        let now = nanoseconds >> BITS;
        if looked.load(Ordering::Relaxed) != now {
            looked.store(now, Ordering::Relaxed);
            #[cfg(target_os = "linux")]
            compare();
        }
    }

    /// Compares the kernel's clock that stands still meanwhile with the one that does not.
    #[cold]
    #[cfg(target_os = "linux")]
    fn compare() {
        use std::sync::OnceLock;

        use nix::time::{ClockId, clock_gettime};
        /// They are not read at once: what is less is the time between.
        const LEAST: Duration = Duration::from_millis(500);
        static APART: OnceLock<Duration> = OnceLock::new();
        let read = |clock| clock_gettime(clock).ok().map(Duration::from);
        let (Some(before), Some(all), Some(awake)) = (
            read(ClockId::CLOCK_MONOTONIC),
            read(ClockId::CLOCK_BOOTTIME),
            read(ClockId::CLOCK_MONOTONIC),
        ) else {
            return;
        };
        // Put aside between two of them: the next one looks.
        if awake.saturating_sub(before) > LEAST / 10 {
            return;
        }
        let apart = all.saturating_sub(awake);
        let grown = apart.saturating_sub(*APART.get_or_init(|| apart));
        if grown < so_far() + LEAST {
            return;
        }
        state::naps(|naps| {
            // Another thread may have been quicker.
            let length = grown.saturating_sub(so_far());
            if length >= LEAST {
                nap(naps, length);
            }
        });
    }

    /// The machine was suspended for so long.
    fn nap(naps: &mut Naps, length: Duration) {
        if naps.len() == MOST {
            naps.pop_front();
        }
        naps.push_back((after(super::monotonic()), length));
        let nanoseconds = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        SUSPENDED.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// Nanoseconds.
    static SUSPENDED: AtomicU64 = AtomicU64::new(0);

    #[cfg(not(test))]
    mod state {
        use std::sync::{Mutex, PoisonError};

        use super::Naps;

        /// A std mutex: held for a look.
        static NAPS: Mutex<Naps> = Mutex::new(Naps::new());

        pub(super) fn naps<T>(look: impl FnOnce(&mut Naps) -> T) -> T {
            look(&mut NAPS.lock().unwrap_or_else(PoisonError::into_inner))
        }
    }

    /// Suspends the machine of the calling thread's test for so long.
    #[cfg(test)]
    pub(super) fn by_hand(length: Duration) {
        let now = super::now();
        state::naps(|naps| naps.push_back((now, length)));
    }

    /// Each test has a machine of its own.
    #[cfg(test)]
    mod state {
        use std::cell::RefCell;

        use super::Naps;

        thread_local! {
            static NAPS: RefCell<Naps> = const { RefCell::new(Naps::new()) };
        }

        pub(super) fn naps<T>(look: impl FnOnce(&mut Naps) -> T) -> T {
            NAPS.with_borrow_mut(look)
        }
    }
}

/// As [`now`], but behind by up to a tick of the kernel (1 to 10 ms), never ahead:
/// for what is read on every hit.
///
/// The exact clock waits for all that was read from memory before, so that the
/// processor cannot start on the next hit while this one waits; among many names
/// that is most of what a hit costs.
pub(crate) fn lately() -> Instant {
    #[cfg(all(target_os = "linux", not(any(test, fuzzing))))]
    if let Some(instant) = ticked() {
        return suspended::after(instant);
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
    let since = now().saturating_duration_since(*BEGUN.get_or_init(monotonic));
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX).max(1)
}

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
#[cfg_attr(
    any(test, fuzzing),
    expect(dead_code, reason = "a test moves time by hand")
)]
fn ticked() -> Option<Instant> {
    use nix::time::{ClockId, clock_gettime};
    static MOMENT: OnceLock<Option<(Instant, Duration)>> = OnceLock::new();
    static LOOKED: AtomicU64 = AtomicU64::new(0);
    let read = |clock| clock_gettime(clock).ok().map(Duration::from);
    let (instant, since_zero) = (*MOMENT.get_or_init(|| {
        // The closest pair of a few: the thread may be put aside between two reads.
        let pairs = (0..5).filter_map(|_| {
            let instant = monotonic();
            let since_zero = read(ClockId::CLOCK_MONOTONIC)?;
            Some((monotonic().duration_since(instant), (instant, since_zero)))
        });
        pairs.min_by_key(|(apart, _)| *apart).map(|(_, pair)| pair)
    }))?;
    let ticked = read(ClockId::CLOCK_MONOTONIC_COARSE)?;
    suspended::look(ticked, &LOOKED);
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

/// A number that nobody outside can foretell: for a name that is to be ours alone.
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
    use std::{thread, time::Duration};

    #[tokio::test(start_paused = true)]
    async fn what_took_its_time_took_no_more_because_the_machine_was_suspended() {
        let (before, second) = (super::now(), Duration::from_secs(1));
        tokio::time::sleep(second).await;
        super::suspended::by_hand(3600 * second);
        tokio::time::sleep(second).await;
        let between = super::now();
        super::suspended::by_hand(60 * second);
        tokio::time::sleep(second).await;
        assert_eq!(super::took(before), 3 * second);
        assert_eq!(super::took(between), second);
        assert_eq!(super::took(super::now()), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn ages_count_the_time_that_the_machine_was_suspended_and_timers_do_not() {
        const HOUR: Duration = Duration::from_secs(3600);
        let before = super::now();
        super::suspended::by_hand(HOUR);
        assert_eq!(super::now(), before + HOUR);
        assert_eq!(super::lately(), before + HOUR);
        let awake = tokio::time::Instant::now();
        super::sleep_until(super::now() + Duration::from_secs(5)).await;
        assert_eq!(awake.elapsed(), Duration::from_secs(5));
        // What was due meanwhile is due at once.
        super::sleep_until(before + HOUR / 2).await;
        assert!(awake.elapsed() < Duration::from_secs(6));
    }

    #[test]
    fn no_two_threads_that_live_have_the_same_number_and_those_that_ended_leave_theirs() {
        let numbers = || {
            // Before the other: it may have ended, and left its number, when this one asks.
            let other = super::thread();
            let both = thread::scope(|threads| {
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
