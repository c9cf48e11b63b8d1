//! **Shell.** One question in the air per name: the first to ask starts it, all
//! others wait for the same result.
//!
//! A caller that leaves cancels nothing: whoever joined still gets the result, and so
//! does the cache. So the question runs in a task of its own, unless its caller is one:
//! see [`Runs`].

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use foldhash::fast::RandomState;
use tokio::{runtime::Handle, sync::watch};

/// Where the question of who asks first runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runs {
    /// In a task of its own: nobody knows whether the caller is polled again.
    Apart,
    /// With the caller, which is a task and waits for nothing else. If it leaves, the
    /// question goes on in a task of its own.
    Here,
}

/// Tells those who joined a question; there is none before the first of them.
type Joined<V> = Option<watch::Sender<Option<V>>>;

/// A std mutex: held for one look-up, never across an await.
type Airborne<K, V> = Arc<Mutex<HashMap<K, Joined<V>, RandomState>>>;

/// The questions in the air.
pub(crate) struct Flights<K, V>(Airborne<K, V>);

impl<K, V> Flights<K, V>
where
    K: Hash + Eq + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    /// Whether whoever asks now joins a question.
    pub(crate) fn is_airborne(&self, key: &K) -> bool {
        let airborne = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        airborne.contains_key(key)
    }

    /// Joins the question about `key`, or starts it. `landed` looks once more,
    /// under the lock, whether a question that has just ended left a result;
    /// `None` comes back only when the question panicked or its runtime was shut
    /// down.
    ///
    /// Cancel safe: dropping the future leaves the question in the air.
    pub(crate) async fn join<F>(
        &self,
        key: &K,
        runs: Runs,
        landed: impl FnOnce() -> Option<V>,
        start: impl FnOnce() -> F,
    ) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        // The task is spawned when the lock is free again: a runtime that does not
        // take it drops it here and now, and with it its seat, which wants the lock.
        let (landing, starts) = {
            let mut airborne = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match airborne.get_mut(key) {
                Some(joined) => (Some(join(joined)), false),
                None => {
                    if let Some(result) = landed() {
                        return Some(result);
                    }
                    let mut joined = None;
                    let landing = (runs == Runs::Apart).then(|| join(&mut joined));
                    airborne.insert(key.clone(), joined);
                    (landing, true)
                }
            }
        };
        if starts {
            let seat = Seat {
                key: Some(key.clone()),
                airborne: Arc::clone(&self.0),
            };
            // In a box: what is spawned is moved about.
            let flight = Flight {
                question: Box::pin(start()),
                seat,
            };
            match runs {
                Runs::Apart => drop(tokio::spawn(flight)),
                Runs::Here => return Here(Some(flight)).await,
            }
        }
        let mut landing = landing?;
        let result = landing.wait_for(Option::is_some).await;
        result.ok().and_then(|result| result.clone())
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
    airborne: Airborne<K, V>,
}

impl<K: Hash + Eq, V> Seat<K, V> {
    fn free(&mut self) -> Joined<V> {
        let key = self.key.take()?;
        let mut airborne = self.airborne.lock().unwrap_or_else(PoisonError::into_inner);
        airborne.remove(&key).flatten()
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
        let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(flight).poll(context)));
        if let Ok(Poll::Pending) = polled {
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
            runtime.spawn(flight);
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
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };
    use tokio::time::{sleep, timeout};

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
            let (flights, asked) = (Arc::new(Flights::new()), Counted::default());
            let callers: Vec<_> = (0..10_000)
                .map(|_| {
                    let (flights, asked) = (Arc::clone(&flights), asked.clone());
                    let asking =
                        async move { flights.join(&"web", runs, || None, || asked.ask()).await };
                    tokio::spawn(asking)
                })
                .collect();
            for caller in callers {
                assert_eq!(caller.await.unwrap(), Some(0));
            }
            assert_eq!(asked.0.load(Ordering::Relaxed), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_leaves_does_not_cancel_the_question() {
        for runs in BOTH {
            let (flights, asked) = (Flights::new(), Counted::default());
            let join = || flights.join(&"web", runs, || None, || asked.clone().ask());
            assert!(timeout(Duration::from_millis(1), join()).await.is_err());
            let second = join().await;
            assert_eq!((second, asked.0.load(Ordering::Relaxed)), (Some(0), 1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_is_not_polled_holds_up_nobody_where_the_question_runs_apart() {
        let (flights, asked) = (Flights::new(), Counted::default());
        let join = || flights.join(&"web", Runs::Apart, || None, || asked.clone().ask());
        let mut first = Box::pin(join());
        assert!(timeout(Duration::from_millis(1), &mut first).await.is_err());
        assert_eq!(join().await, Some(0));
        assert_eq!(first.await, Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_question_starts_when_the_last_has_landed() {
        for runs in BOTH {
            let (flights, asked) = (Flights::new(), Counted::default());
            let join = |known| flights.join(&"web", runs, move || known, || asked.clone().ask());
            assert_eq!(join(None).await, Some(0));
            assert_eq!(join(None).await, Some(1));
            assert_eq!(join(Some(9)).await, Some(9));
        }
    }

    #[test]
    fn outside_a_runtime_it_panics_and_leaves_the_name_free() {
        let flights: Flights<&str, usize> = Flights::new();
        let joining = flights.join(&"web", Runs::Apart, || None, || async { 7 });
        let mut joining = std::pin::pin!(joining);
        let mut context = Context::from_waker(std::task::Waker::noop());
        let polled = AssertUnwindSafe(|| joining.as_mut().poll(&mut context).is_ready());
        assert!(catch_unwind(polled).is_err());
        assert!(
            flights
                .0
                .try_lock()
                .is_ok_and(|airborne| airborne.is_empty())
        );
    }

    #[test]
    fn a_caller_that_leaves_when_its_runtime_is_gone_leaves_the_name_free() {
        let flights: Flights<&str, usize> = Flights::new();
        let mut joining = Box::pin(flights.join(&"web", Runs::Here, || None, std::future::pending));
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(joining.as_mut().poll(&mut context).is_pending());
        drop(joining);
        assert!(flights.0.lock().unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_that_panics_frees_its_name() {
        for runs in BOTH {
            let flights: Flights<&str, usize> = Flights::new();
            let broken = || async { panic!("on purpose") };
            let lost = flights.join(&"web", runs, || None, broken).await;
            assert_eq!(lost, None);
            let well = || async { 7 };
            assert_eq!(flights.join(&"web", runs, || None, well).await, Some(7));
        }
    }
}
