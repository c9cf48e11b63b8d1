//! **Shell.** One question in the air per name: the first to ask starts it, all
//! others wait for the same result.
//!
//! A caller that leaves cancels nothing: whoever joined still gets the result, and so
//! does the cache. So the question runs in a task of its own, unless its caller is one:
//! see [`Runs`].
//!
//! A task stands still with its runtime, which may be another one than that of who joined.
//! So a question that takes longer than any may is waited for no longer, and the next to
//! ask starts anew.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use foldhash::fast::RandomState;
use tokio::{runtime::Handle, sync::watch};

use crate::{clock, task};

/// Where the question of who asks first runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runs {
    /// In a task of its own: nobody knows whether the caller is polled again.
    Apart,
    /// With the caller, which is a task and waits for nothing else. If it leaves, the
    /// question goes on in a task of its own.
    Here,
}

/// Why nothing came of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// It panicked, or its runtime was shut down.
    Ended,
    /// It took longer than any may.
    Late,
}

/// Tells those who joined a question; there is none before the first of them.
type Joined<V> = Option<watch::Sender<Option<V>>>;

/// A question, as those see it who ask the same.
struct Aloft<V> {
    joined: Joined<V>,
    /// One that was started later has the same key and another number.
    number: u64,
    /// It is waited for no longer than that.
    late: Instant,
}

/// The questions, and how many there were. A std mutex: held for one look-up, never across
/// an await.
type Airborne<K, V> = Arc<Mutex<(HashMap<K, Aloft<V>, RandomState>, u64)>>;

/// The questions in the air.
pub(crate) struct Flights<K, V> {
    airborne: Airborne<K, V>,
    /// The longest that one may take.
    longest: Duration,
}

impl<K, V> Flights<K, V>
where
    K: Hash + Eq + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// `longest`: that any question takes whose runtime goes on.
    pub(crate) fn new(longest: Duration) -> Self {
        let airborne = Arc::new(Mutex::new((HashMap::default(), 0)));
        Self { airborne, longest }
    }

    /// Whether whoever asks now joins a question.
    pub(crate) fn is_airborne(&self, key: &K) -> bool {
        let airborne = self.airborne.lock().unwrap_or_else(PoisonError::into_inner);
        let known = airborne.0.get(key);
        known.is_some_and(|known| clock::now() < known.late)
    }

    /// How many have joined a question and wait.
    pub(crate) fn joined(&self, key: &K) -> usize {
        let airborne = self.airborne.lock().unwrap_or_else(PoisonError::into_inner);
        let joined = airborne.0.get(key).and_then(|one| one.joined.as_ref());
        joined.map_or(0, watch::Sender::receiver_count)
    }

    /// Joins the question about `key`, or starts it. `landed` looks once more,
    /// under the lock, whether a question that has just ended left a result.
    ///
    /// Cancel safe: dropping the future leaves the question in the air.
    pub(crate) async fn join<F>(
        &self,
        key: &K,
        runs: Runs,
        landed: impl FnOnce() -> Option<V>,
        start: impl FnOnce() -> F,
    ) -> Result<V, Lost>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let now = clock::now();
        // The task is spawned when the lock is free again: a runtime that does not
        // take it drops it here and now, and with it its seat, which wants the lock.
        let (landing, late, starts) = {
            let mut airborne = self.airborne.lock().unwrap_or_else(PoisonError::into_inner);
            let (all, count) = &mut *airborne;
            match all.get_mut(key).filter(|known| now < known.late) {
                Some(known) => (Some(join(&mut known.joined)), known.late, None),
                None => {
                    if let Some(result) = landed() {
                        return Ok(result);
                    }
                    let mut joined = None;
                    let landing = (runs == Runs::Apart).then(|| join(&mut joined));
                    *count += 1;
                    let (number, late) = (*count, now + self.longest);
                    let aloft = Aloft {
                        joined,
                        number,
                        late,
                    };
                    all.insert(key.clone(), aloft);
                    (landing, late, Some(number))
                }
            }
        };
        if let Some(number) = starts {
            let seat = Seat {
                key: Some(key.clone()),
                number,
                airborne: Arc::clone(&self.airborne),
            };
            // In a box: what is spawned is moved about.
            let flight = Flight {
                question: Box::pin(start()),
                seat,
            };
            match runs {
                Runs::Apart => drop(tokio::spawn(task::outcome(flight))),
                Runs::Here => return Here(Some(flight)).await.ok_or(Lost::Ended),
            }
        }
        let mut landing = landing.ok_or(Lost::Ended)?;
        match clock::timeout_at(late, landing.wait_for(Option::is_some)).await {
            Ok(Ok(result)) => result.clone().ok_or(Lost::Ended),
            // Somebody has started anew.
            Ok(Err(_)) if clock::now() >= late => Err(Lost::Late),
            Ok(Err(_)) => Err(Lost::Ended),
            Err(_) => Err(Lost::Late),
        }
    }
}

fn join<V>(joined: &mut Joined<V>) -> watch::Receiver<Option<V>> {
    let sender = joined.get_or_insert_with(|| watch::channel(None).0);
    sender.subscribe()
}

/// Frees a key however its question ends.
struct Seat<K: Hash + Eq, V> {
    /// `None`: it is free, and may be another question's.
    key: Option<K>,
    number: u64,
    airborne: Airborne<K, V>,
}

impl<K: Hash + Eq, V> Seat<K, V> {
    fn free(&mut self) -> Joined<V> {
        let key = self.key.take()?;
        let mut airborne = self.airborne.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, _) = &mut *airborne;
        // Who was late may have lost it to another one.
        let own = all.get(&key).is_some_and(|one| one.number == self.number);
        own.then(|| all.remove(&key)).flatten()?.joined
    }
}

impl<K: Hash + Eq, V: Clone> Seat<K, V> {
    /// Tells who joined. Whoever comes now finds the result where `landed` looks.
    fn land(&mut self, result: &V) {
        if let Some(joined) = self.free() {
            let _ = joined.send(Some(result.clone()));
        }
    }
}

impl<K: Hash + Eq, V> Drop for Seat<K, V> {
    fn drop(&mut self) {
        self.free();
    }
}

/// A question in the air. Its result is told to all who joined, and given.
struct Flight<K: Hash + Eq, V, F> {
    question: Pin<Box<F>>,
    seat: Seat<K, V>,
}

impl<K: Hash + Eq, V, F> Unpin for Flight<K, V, F> {}

impl<K: Hash + Eq, V: Clone, F: Future<Output = V>> Future for Flight<K, V, F> {
    type Output = V;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<V> {
        let landed = self.question.as_mut().poll(context);
        if let Poll::Ready(result) = &landed {
            self.seat.land(result);
        }
        landed
    }
}

/// A flight that runs with its caller.
struct Here<F: Future<Output: Send> + Unpin + Send + 'static>(Option<F>);

impl<F: Future<Output: Send> + Unpin + Send + 'static> Future for Here<F> {
    /// `None`: it panicked.
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(flight) = &mut self.0 else {
            return Poll::Ready(None);
        };
        // As in a task: it is lost for all who wait, and takes nobody along.
        let polled = task::caught(|| Pin::new(flight).poll(context));
        if let Some(Poll::Pending) = polled {
            return Poll::Pending;
        }
        self.0 = None;
        polled.map_or(Poll::Ready(None), |landed| landed.map(Some))
    }
}

impl<F: Future<Output: Send> + Unpin + Send + 'static> Drop for Here<F> {
    fn drop(&mut self) {
        // Without a runtime nothing can go on.
        if let (Some(flight), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(task::outcome(flight));
        }
    }
}

impl<K, V> fmt::Debug for Flights<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };
    use tokio::time::{sleep, timeout};

    const LONGEST: Duration = Duration::from_secs(1);

    const BOTH: [Runs; 2] = [Runs::Apart, Runs::Here];

    #[derive(Clone, Default)]
    struct Counted(Arc<AtomicUsize>);

    impl Counted {
        async fn ask(self) -> usize {
            sleep(Duration::from_millis(10)).await;
            self.0.fetch_add(1, Ordering::Relaxed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ten_thousand_callers_ask_one_question() {
        for runs in BOTH {
            let (flights, asked) = (Arc::new(Flights::new(LONGEST)), Counted::default());
            let callers: Vec<_> = (0..10_000)
                .map(|_| {
                    let (flights, asked) = (Arc::clone(&flights), asked.clone());
                    let asking =
                        async move { flights.join(&"web", runs, || None, || asked.ask()).await };
                    tokio::spawn(asking)
                })
                .collect();
            for caller in callers {
                assert_eq!(caller.await.unwrap(), Ok(0));
            }
            assert_eq!(asked.0.load(Ordering::Relaxed), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_leaves_does_not_cancel_the_question() {
        for runs in BOTH {
            let (flights, asked) = (Flights::new(LONGEST), Counted::default());
            let join = || flights.join(&"web", runs, || None, || asked.clone().ask());
            assert!(timeout(Duration::from_millis(1), join()).await.is_err());
            let second = join().await;
            assert_eq!((second, asked.0.load(Ordering::Relaxed)), (Ok(0), 1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_is_not_polled_holds_up_nobody_where_the_question_runs_apart() {
        let (flights, asked) = (Flights::new(LONGEST), Counted::default());
        let join = || flights.join(&"web", Runs::Apart, || None, || asked.clone().ask());
        let mut first = Box::pin(join());
        assert!(timeout(Duration::from_millis(1), &mut first).await.is_err());
        assert_eq!(join().await, Ok(0));
        assert_eq!(first.await, Ok(0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_question_starts_when_the_last_has_landed() {
        for runs in BOTH {
            let (flights, asked) = (Flights::new(LONGEST), Counted::default());
            let join = |known| flights.join(&"web", runs, move || known, || asked.clone().ask());
            assert_eq!(join(None).await, Ok(0));
            assert_eq!(join(None).await, Ok(1));
            assert_eq!(join(Some(9)).await, Ok(9));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_that_stands_still_is_not_waited_for_without_end_and_the_next_starts_anew() {
        let flights: Flights<&str, usize> = Flights::new(LONGEST);
        let late = || async {
            sleep(LONGEST * 4 / 3).await;
            9
        };
        let first = flights.join(&"web", Runs::Here, || None, late);
        assert!(timeout(Duration::ZERO, first).await.is_err());
        let well = || async { 7 };
        let second = flights.join(&"web", Runs::Apart, || None, well);
        let start = tokio::time::Instant::now();
        assert_eq!(second.await, Err(Lost::Late));
        assert_eq!(start.elapsed(), LONGEST);
        assert!(!flights.is_airborne(&"web"));
        let slow = || async {
            sleep(LONGEST / 2).await;
            7
        };
        let mut third = Box::pin(flights.join(&"web", Runs::Here, || None, slow));
        // Meanwhile the first one ends, and takes nothing along.
        assert!(timeout(LONGEST * 2 / 5, &mut third).await.is_err());
        assert!(flights.is_airborne(&"web"));
        assert_eq!(third.await, Ok(7));
        assert!(!flights.is_airborne(&"web"));
    }

    #[test]
    fn outside_a_runtime_it_panics_and_leaves_the_name_free() {
        let flights: Flights<&str, usize> = Flights::new(LONGEST);
        let joining = flights.join(&"web", Runs::Apart, || None, || async { 7 });
        let mut joining = std::pin::pin!(joining);
        let mut context = Context::from_waker(std::task::Waker::noop());
        let polled = AssertUnwindSafe(|| joining.as_mut().poll(&mut context).is_ready());
        assert!(catch_unwind(polled).is_err());
        assert!(
            flights
                .airborne
                .try_lock()
                .is_ok_and(|airborne| airborne.0.is_empty())
        );
    }

    #[test]
    fn a_caller_that_leaves_when_its_runtime_is_gone_leaves_the_name_free() {
        let flights: Flights<&str, usize> = Flights::new(LONGEST);
        let mut joining = Box::pin(flights.join(&"web", Runs::Here, || None, std::future::pending));
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(joining.as_mut().poll(&mut context).is_pending());
        drop(joining);
        assert!(flights.airborne.lock().unwrap().0.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_that_panics_frees_its_name_and_is_counted() {
        for runs in BOTH {
            let before = task::panics();
            let flights: Flights<&str, usize> = Flights::new(LONGEST);
            let broken = || async { panic!("on purpose") };
            let lost = flights.join(&"web", runs, || None, broken).await;
            assert_eq!(lost, Err(Lost::Ended));
            assert!(task::panics() > before);
            let well = || async { 7 };
            assert_eq!(flights.join(&"web", runs, || None, well).await, Ok(7));
        }
    }
}
