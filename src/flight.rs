//! **Shell.** One question in the air per name: the first to ask starts it, all
//! others wait for the same result.
//!
//! The question runs in a task of its own. A caller that leaves cancels nothing:
//! whoever joined still gets the result, and so does the cache.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

type Landing<V> = watch::Receiver<Option<V>>;

/// The questions in the air.
pub(crate) struct Flights<K, V> {
    /// A std mutex: held for one look-up, never across an await.
    airborne: Arc<Mutex<HashMap<K, Landing<V>>>>,
}

impl<K, V> Flights<K, V>
where
    K: Hash + Eq + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(crate) fn new() -> Self {
        Self {
            airborne: Arc::default(),
        }
    }

    /// Joins the question about `key`, or starts it. `landed` looks once more,
    /// under the lock, whether a question that has just ended left a result;
    /// `None` comes back only when the question's task panicked or its runtime
    /// was shut down.
    ///
    /// Cancel safe: dropping the future leaves the question in the air.
    pub(crate) async fn join<F>(
        &self,
        key: &K,
        landed: impl FnOnce() -> Option<V>,
        start: impl FnOnce() -> F,
    ) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        // The task is spawned when the lock is free again: a runtime that does not
        // take it drops it here and now, and with it its seat, which wants the lock.
        let (mut landing, seat) = {
            let mut airborne = self.airborne.lock().unwrap_or_else(PoisonError::into_inner);
            match airborne.get(key) {
                Some(landing) => (landing.clone(), None),
                None => {
                    if let Some(result) = landed() {
                        return Some(result);
                    }
                    let (sender, landing) = watch::channel(None);
                    airborne.insert(key.clone(), landing.clone());
                    let airborne = Arc::clone(&self.airborne);
                    (
                        landing,
                        Some((
                            sender,
                            Seat {
                                key: key.clone(),
                                airborne,
                            },
                        )),
                    )
                }
            }
        };
        if let Some((sender, seat)) = seat {
            // In a box: what is spawned is moved about.
            let question = Box::pin(start());
            tokio::spawn(async move {
                let result = question.await;
                // Whoever comes now finds the result where `landed` looks.
                drop(seat);
                let _ = sender.send(Some(result));
            });
        }
        let result = landing.wait_for(Option::is_some).await;
        result.ok().and_then(|result| result.clone())
    }
}

/// Frees a key however its task ends.
struct Seat<K: Hash + Eq, V> {
    key: K,
    airborne: Arc<Mutex<HashMap<K, Landing<V>>>>,
}

impl<K: Hash + Eq, V> Drop for Seat<K, V> {
    fn drop(&mut self) {
        self.airborne
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
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
    use tokio::time::sleep;

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
        let (flights, asked) = (Arc::new(Flights::new()), Counted::default());
        let callers: Vec<_> = (0..10_000)
            .map(|_| {
                let (flights, asked) = (Arc::clone(&flights), asked.clone());
                tokio::spawn(async move { flights.join(&"web", || None, || asked.ask()).await })
            })
            .collect();
        for caller in callers {
            assert_eq!(caller.await.unwrap(), Some(0));
        }
        assert_eq!(asked.0.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_leaves_does_not_cancel_the_question() {
        let (flights, asked) = (Flights::new(), Counted::default());
        let leaver = flights.join(&"web", || None, || asked.clone().ask());
        assert!(
            tokio::time::timeout(Duration::from_millis(1), leaver)
                .await
                .is_err()
        );
        let second = flights.join(&"web", || None, || asked.clone().ask()).await;
        assert_eq!((second, asked.0.load(Ordering::Relaxed)), (Some(0), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_question_starts_when_the_last_has_landed() {
        let (flights, asked) = (Flights::new(), Counted::default());
        assert_eq!(
            flights.join(&"web", || None, || asked.clone().ask()).await,
            Some(0)
        );
        assert_eq!(
            flights.join(&"web", || None, || asked.clone().ask()).await,
            Some(1)
        );
        assert_eq!(
            flights
                .join(&"web", || Some(9), || asked.clone().ask())
                .await,
            Some(9)
        );
    }

    #[test]
    fn outside_a_runtime_it_panics_and_leaves_the_name_free() {
        let flights: Flights<&str, usize> = Flights::new();
        let mut joining = std::pin::pin!(flights.join(&"web", || None, || async { 7 }));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let polled =
            std::panic::AssertUnwindSafe(|| joining.as_mut().poll(&mut context).is_ready());
        assert!(std::panic::catch_unwind(polled).is_err());
        assert!(
            flights
                .airborne
                .try_lock()
                .is_ok_and(|airborne| airborne.is_empty())
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_that_panics_frees_its_name() {
        let flights: Flights<&str, usize> = Flights::new();
        let lost = flights
            .join(&"web", || None, || async { panic!("on purpose") })
            .await;
        assert_eq!(lost, None);
        assert_eq!(flights.join(&"web", || None, || async { 7 }).await, Some(7));
    }
}
