//! **Shell.** Questions that were asked beside each other and have not been answered yet.
//! They run where they are waited for, in no tasks of their own.

use std::{future::poll_fn, pin::Pin, task::Poll, time::Instant};

use crate::clock;

/// Questions in the air, the oldest first: whom each was put to, since when, and what it
/// waits for.
pub(crate) struct Air<'a, K, T>(Vec<(K, Instant, Asking<'a, T>)>);

type Asking<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl<K, T> Default for Air<'_, K, T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'a, K, T> Air<'a, K, T> {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Since when the oldest has been asked.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.0.first().map(|(_, since, _)| *since)
    }

    /// One more is asked.
    pub(crate) fn ask(
        &mut self,
        whom: K,
        asking: impl Future<Output = T> + Send + 'a,
        now: Instant,
    ) {
        self.0.push((whom, now, Box::pin(asking)));
    }

    /// The first to say something, and since when it was asked, if that is before `until`.
    ///
    /// Cancel-safe: nobody is forgotten.
    pub(crate) async fn hear(&mut self, until: Instant) -> Option<(K, Instant, T)> {
        let first = poll_fn(|context| {
            for at in 0..self.0.len() {
                let (.., asking) = &mut self.0[at];
                if let Poll::Ready(told) = asking.as_mut().poll(context) {
                    let (whom, since, _) = self.0.remove(at);
                    return Poll::Ready((whom, since, told));
                }
            }
            Poll::Pending
        });
        clock::timeout_at(until, first).await.ok()
    }

    /// Waits for nobody any more: those who have said nothing, and since when.
    pub(crate) fn leave(&mut self) -> Vec<(K, Instant)> {
        let left = std::mem::take(&mut self.0).into_iter();
        left.map(|(whom, since, _)| (whom, since)).collect()
    }
}
