//! **Door.** [`Lookup`]: one look-up, as its caller holds it. What is known is given
//! without an allocation; else it waits for the question that is in the air, and
//! no longer than it must where something stale is there.

use std::{
    borrow::Cow,
    fmt,
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::time::timeout;

use super::{Inner, Name, Resolver, climb::Landed, fresh, told};
use crate::{
    cache::{
        Look,
        stale::{PATIENCE, SNAPSHOT_PATIENCE, Wish},
    },
    clock,
    endpoint::{Answer, Attempt, Outcome, Source},
    error::{Error, ErrorKind},
    flight::{Lost, Runs},
    found::Held,
    name::ConsulName,
};

/// Time that a question may take beyond that of a look-up: before a name is believed gone, others
/// are asked for.
pub(super) const AFTER: Duration = Duration::from_millis(500);

/// Whoever wants to be answered [by](Lookup::by) some time is told so long after it that there is
/// no answer.
const ANSWERED: Duration = Duration::from_millis(60);

/// This part of a look-up's time is kept for the way of what was found to who waits for it.
const LANDING: u32 = 16;

type Waiting = Pin<Box<dyn Future<Output = Result<Answer, Error>> + Send>>;

/// A look-up under way: await it. Made by [`Resolver::lookup`].
#[must_use = "a look-up does nothing until it is awaited"]
pub struct Lookup<'a, N> {
    resolver: &'a Resolver,
    name: N,
    wish: Wish,
    runs: Runs,
    by: Option<Instant>,
    waiting: Option<Waiting>,
}

impl<'a, N: Name> Lookup<'a, N> {
    pub(super) fn new(resolver: &'a Resolver, name: N) -> Self {
        Self {
            resolver,
            name,
            wish: Wish::default(),
            runs: Runs::Apart,
            by: None,
            waiting: None,
        }
    }

    /// Where the question runs that has to be asked for it.
    pub(crate) fn runs(mut self, runs: Runs) -> Self {
        self.runs = runs;
        self
    }

    /// From then on what is known, or written down, is as good as an answer; without either it
    /// ends a moment later.
    pub(crate) fn by(mut self, by: Option<Instant>) -> Self {
        self.by = by;
        self
    }

    /// Nothing stale: an error where no source answers now.
    pub fn require_fresh(mut self) -> Self {
        self.wish.fresh = true;
        self
    }

    /// Nothing that a source gave so long ago or longer, fresh or stale. Zero asks
    /// the sources in any case. What whoever follows the name is told while they are asked is as
    /// good as what they say.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.wish.max_age = Some(age);
        self
    }
}

impl<N: Name> Future for Lookup<'_, N> {
    type Output = Result<Answer, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Some(waiting) = &mut this.waiting {
            return waiting.as_mut().poll(context);
        }
        let resolver = this.resolver;
        let name = (this.name.as_name(resolver.domain())).and_then(|name| resolver.complete(name));
        let name = match name {
            Ok(name) => name,
            Err(error) => return Poll::Ready(Err(error)),
        };
        if let Some(known) = resolver.0.cached(&name, this.wish) {
            // Fresh sets are counted by the cache.
            if !known.as_ref().is_ok_and(Answer::is_fresh) {
                resolver.0.count(&known);
            }
            return Poll::Ready(known);
        }
        let (inner, name) = (Arc::clone(&resolver.0), Cow::into_owned(name));
        let (wish, runs, by) = (this.wish, this.runs, this.by);
        let waiting = this.waiting.insert(Box::pin(async move {
            let start = clock::now();
            let given = inner.wait(&name, start, wish, runs, by).await;
            inner.count(&given);
            let source = given.as_ref().ok().map(Answer::source);
            let time = clock::took(start);
            inner.counters.took(source, time);
            given
        }));
        waiting.as_mut().poll(context)
    }
}

impl<N> fmt::Debug for Lookup<'_, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookup")
            .field("wish", &self.wish)
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// Waits for a question as long as somebody should who has a stale set already.
    async fn wait_a_moment<T>(
        &self,
        name: &ConsulName,
        source: Source,
        by: Instant,
        landing: impl Future<Output = T>,
    ) -> Option<T> {
        let mut landing = pin!(landing);
        let mut in_vain = pin!(self.in_vain.notified());
        in_vain.as_mut().enable();
        // Polled once in any case: that puts the question into the air.
        let at_once = poll_fn(|context| Poll::Ready(landing.as_mut().poll(context))).await;
        if let Poll::Ready(landed) = at_once {
            return Some(landed);
        }
        let is_near = self.sources.is_near(name);
        if is_near && self.waits().are_in_vain(clock::now()) {
            return None;
        }
        let patience = match source {
            Source::Snapshot => SNAPSHOT_PATIENCE,
            _ => PATIENCE,
        };
        let start = clock::now();
        let landed = tokio::select! {
            biased;
            landed = clock::timeout_at(by.min(start + patience), landing) => landed.ok(),
            () = in_vain, if is_near => None,
        };
        let now = clock::now();
        if landed.is_none() && is_near && now >= start + patience {
            self.waits().waited(now);
        }
        landed
    }

    /// Puts a question into the air, or joins it there. `landed`: what one that has just ended
    /// may have left. `by`: what is written down on this machine is asked then.
    pub(super) async fn fly(
        self: &Arc<Self>,
        name: &ConsulName,
        runs: Runs,
        by: Option<Instant>,
        landed: impl FnOnce() -> Option<Landed>,
    ) -> Result<Landed, Lost> {
        // Who runs it with itself is a task of ours, which no child of a fork has.
        if runs == Runs::Apart
            && let Err(error) = self.process.check()
        {
            return Ok(Landed::Kept(error));
        }
        let start = || {
            let (inner, name) = (Arc::clone(self), name.clone());
            async move {
                let (now, time) = (clock::now(), inner.config.timeout);
                let deadline = now + time - time / LANDING;
                let landed = inner.find(&name, (now, deadline), by, 0).await;
                inner.tell_followers(&name, &landed);
                landed
            }
        };
        self.flights.join(name, runs, landed, start).await
    }

    fn count(&self, given: &Result<Answer, Error>) {
        match given {
            Ok(answer) => self.counters.found(answer.source(), answer.freshness()),
            Err(error) => self.counters.failed(error.kind()),
        }
    }

    /// Waits for the sources, at most for the time of a look-up; a set that is stale already
    /// bounds the wait. What is weighed for longer is for those who ask next.
    pub(super) async fn wait(
        self: &Arc<Self>,
        name: &ConsulName,
        start: Instant,
        wish: Wish,
        runs: Runs,
        by: Option<Instant>,
    ) -> Result<Answer, Error> {
        let end = start + self.config.timeout;
        let end = by.map_or(end, |by| end.min(by + ANSWERED));
        if self.snapshot.is_some() {
            // Another runtime may be reading it, and stand still.
            _ = timeout(self.config.timeout / 2, self.warm()).await;
        }
        let landed = || self.cached(name, wish).map(Landed::of);
        let landing = self.fly(name, runs, by, landed);
        let known = match self.look(name) {
            Look::Stale(held, age, _) if wish.takes(age, false) => Some((held, age)),
            _ => None,
        };
        let landed = match &known {
            None => clock::timeout_at(end, landing).await.ok(),
            // In a box: who has nothing to be given meanwhile is not to carry its room.
            Some((held, _)) => {
                let by = by.map_or(end, |by| by.min(end));
                Box::pin(self.wait_a_moment(name, held.source, by, landing)).await
            }
        };
        let error = match landed {
            Some(Ok(Landed::Found(answer))) => return Ok(answer),
            Some(Ok(Landed::Nothing(error))) => return Err(error),
            Some(Ok(Landed::Kept(error))) => error,
            Some(Err(Lost::Ended)) => {
                let fqdn = name.fqdn(&self.config.domain);
                let message = format!("the look-up of {fqdn} was ended from outside");
                Error::new(ErrorKind::Unavailable, message)
            }
            Some(Err(Lost::Late)) | None => told::late(name, &self.config.domain),
        };
        // A probe may have brought something newer in the meantime.
        match (self.look(name), known) {
            (Look::Fresh(held, age, _), _) if wish.takes(age, true) => Ok(fresh(held, age)),
            (Look::Stale(held, age, _), Some(_)) | (_, Some((held, age))) => {
                let mut attempts = error.attempts().to_vec();
                let waits = attempts.is_empty();
                attempts.push(self.remembered(&held, age, waits));
                Ok(Answer {
                    attempts: Some(attempts.into()),
                    ..self.stale(held, age)
                })
            }
            (_, None) => Err(error),
        }
    }

    /// The step of a look-up that gives what was known before. `waits`: the sources are still
    /// being asked.
    fn remembered(&self, held: &Held, age: Duration, waits: bool) -> Attempt {
        let file = match (held.source, &self.snapshot) {
            (Source::Snapshot, Some(snapshot)) => Some(snapshot.place()),
            _ => None,
        };
        let mut detail = format!("found {:.1} s ago", age.as_secs_f64());
        if waits {
            detail.push_str("; the sources have not answered yet");
        }
        Attempt {
            source: held.source,
            address: file.unwrap_or_else(|| "cache".into()),
            transport: held.transport,
            outcome: Outcome::Answered,
            elapsed: Duration::ZERO,
            received: 0,
            count: held.endpoints.len(),
            detail: detail.into(),
        }
    }
}
