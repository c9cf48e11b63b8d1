//! **Door.** [`Service`]: a live handle of one name, and the [`Changes`] of its
//! endpoints.

use std::{
    fmt,
    ops::Deref,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use futures_core::Stream;
use tokio::{runtime::Handle, sync::watch, time::timeout};

use super::{Name, Resolver, news::Known};
use crate::{
    balance, blocking,
    cache::Look,
    change::Change,
    endpoint::{Answer, Endpoint},
    error::Error,
    found::Held,
    name::ConsulName,
    pool::{Lease, Policy, Pool, Standing},
    task,
};

/// A name that is followed as long as this lives: its endpoints are at hand without
/// waiting, and changes reach it by event.
///
/// Made by [`Resolver::service`]. Cheap to clone: all handles of one name share one
/// query.
#[derive(Clone)]
pub struct Service {
    resolver: Resolver,
    name: ConsulName,
    heard: watch::Receiver<Known>,
    problem: watch::Receiver<Option<Error>>,
    /// The same name in other datacenters, which this keeps followed.
    others: Arc<[(ConsulName, watch::Receiver<Known>)]>,
    pool: Arc<Pool>,
    /// The thread that it is followed on, where that is our own.
    _thread: Option<Arc<blocking::Own>>,
}

impl Resolver {
    /// A live handle of `name`, all of whose endpoints are used, by weight. It is asked
    /// for from now on, in the background.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) for a name that DNS cannot carry, and outside a tokio
    /// runtime, where nothing can be followed.
    pub fn service(&self, name: impl Name) -> Result<Service, Error> {
        self.service_with(name, Policy::default())
    }

    /// A live handle of `name`, of whose endpoints those are used, and in that way, that
    /// the policy says.
    ///
    /// # Errors
    ///
    /// As [`service`](Self::service); [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) also where the policy names a
    /// datacenter and the name has one of its own.
    pub fn service_with(&self, name: impl Name, policy: Policy) -> Result<Service, Error> {
        let name = self.complete(name.as_name(self.domain())?)?.into_owned();
        task::runtime("a service can be followed")?;
        let there = |place: &str| {
            let there = name.clone().with_datacenter(place);
            there.map_err(|error| Error::invalid(error.to_string(), error))
        };
        let others = policy.datacenters.iter().map(|place| there(place));
        let others: Vec<_> = others.collect::<Result<_, _>>()?;
        let pool = Pool::new(
            &name.fqdn(self.domain()),
            policy,
            1 + others.len(),
            &self.0.counters.breakers,
        );
        let follow = |feed, name: &ConsulName| self.0.follow(name, Some((&pool, feed)));
        let own = follow(0, &name);
        Ok(Service {
            resolver: self.clone(),
            heard: own.known,
            problem: own.problem,
            others: (1..)
                .zip(others)
                .map(|(feed, name)| {
                    let heard = follow(feed, &name).known;
                    (name, heard)
                })
                .collect(),
            pool,
            name,
            _thread: None,
        })
    }
}

impl Service {
    /// The name, as it was asked for.
    pub fn name(&self) -> &ConsulName {
        &self.name
    }

    /// The endpoints of the name known now, used or not; none before the first answer,
    /// none where the name does not exist or nothing behind it is healthy, and none when no
    /// source has answered for longer than
    /// [`keep_stale`](crate::ResolverBuilder::keep_stale) allows.
    pub fn endpoints(&self) -> Endpoints {
        self.stay_followed();
        Endpoints(held(&self.heard.borrow()))
    }

    /// The same with source, age and completeness, as a look-up gives them. `None`
    /// where there is nothing to give.
    pub fn answer(&self) -> Option<Answer> {
        let inner = &self.resolver.0;
        match inner.look(&self.name) {
            Look::Fresh(held, age, _) => Some(super::fresh(held, age)),
            Look::Stale(held, age, _) => Some(inner.stale(held, age)),
            Look::Nothing | Look::Unknown => None,
        }
    }

    /// Why no source answers now, or what they say is not believed: what is known of the name
    /// is not the newest, or nothing is known. `None`: a source answered the last question, or
    /// none was asked yet.
    pub fn problem(&self) -> Option<Error> {
        self.problem.borrow().clone()
    }

    /// Each time that the [problem](Self::problem) becomes another one, from now on; the first
    /// is the one that there is.
    pub fn problems(&self) -> Problems {
        let mut told = self.problem.clone();
        told.borrow_and_update();
        if self.problem().is_some() {
            told.mark_changed();
        }
        Problems {
            service: self.clone(),
            told,
        }
    }

    /// Waits until there is an endpoint to pick.
    ///
    /// # Cancel safety
    ///
    /// Safe: it waits for a state and takes nothing.
    pub async fn ready(&self) {
        self.while_followed(self.pool.ready()).await;
    }

    /// An endpoint for one call, by the policy. At once, without a lock, an allocation or
    /// a word to anybody.
    ///
    /// # Errors
    ///
    /// Where there is none, and why: [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) where Consul knows none that
    /// is healthy and as required, [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) where nothing is known yet
    /// or any more, or all rest. Where nothing is known because of a
    /// [problem](Self::problem), that.
    pub fn try_pick(&self) -> Result<Lease, Error> {
        self.stay_followed();
        self.pool.pick(None).ok_or_else(|| self.why_empty())
    }

    /// The same for a key: with [`Strategy::Hash`](crate::Strategy::Hash) all who know the
    /// same set are given the same endpoint for it.
    ///
    /// # Errors
    ///
    /// As [`try_pick`](Self::try_pick).
    pub fn try_pick_for(&self, key: impl AsRef<[u8]>) -> Result<Lease, Error> {
        self.stay_followed();
        let key = balance::hash(key.as_ref());
        (self.pool.pick(Some(key))).ok_or_else(|| self.why_empty())
    }

    #[cold]
    fn why_empty(&self) -> Error {
        let is_unheard = self.pool.is_unheard();
        let problem = self.problem().filter(|_| is_unheard);
        problem.unwrap_or_else(|| self.pool.why_empty())
    }

    /// As [`try_pick`](Self::try_pick), but where nothing is known yet it waits for that: as
    /// long as a look-up may take ([`ResolverBuilder::timeout`](crate::ResolverBuilder)).
    ///
    /// # Errors
    ///
    /// As `try_pick`; where no source answers, that of the
    /// [look-up](Resolver::lookup).
    ///
    /// # Cancel safety
    ///
    /// Safe: it holds nothing while it waits.
    pub async fn pick(&self) -> Result<Lease, Error> {
        self.stay_followed();
        if let Some(lease) = self.pool.pick(None) {
            return Ok(lease);
        }
        self.while_followed(self.pick_later()).await
    }

    async fn pick_later(&self) -> Result<Lease, Error> {
        // The question of the follower, if it is in the air: nobody is asked twice.
        let asked = self.resolver.lookup(&self.name);
        tokio::select! {
            () = self.pool.heard() => {}
            answer = asked => match answer {
                Err(error) if !error.is_not_found() => return Err(error),
                // It is about to be told to us as well.
                _ => _ = timeout(self.resolver.0.config.timeout, self.pool.heard()).await,
            }
        }
        self.try_pick()
    }

    /// The runtime that it was followed in may have ended: then it is followed in this one.
    fn stay_followed(&self) {
        if self.pool.is_lone() {
            self.follow_again();
        }
    }

    #[cold]
    fn follow_again(&self) {
        // Whoever ends meanwhile says so anew.
        if Handle::try_current().is_ok() {
            self.pool.set_lone(false);
        }
        let others = self.others.iter().map(|(name, _)| name);
        for name in [&self.name].into_iter().chain(others) {
            self.resolver.0.follow_again(name);
        }
    }

    /// Waits for something that whoever follows it tells.
    async fn while_followed<T>(&self, waits: impl Future<Output = T>) -> T {
        let (mut waits, mut heard) = (pin!(waits), self.heard.clone());
        loop {
            self.stay_followed();
            tokio::select! {
                biased;
                told = &mut waits => return told,
                Ok(()) = heard.changed() => {}
            }
        }
    }

    /// The thread that it is followed on lives as long as it does.
    pub(crate) fn on(mut self, thread: &Arc<blocking::Own>) -> Self {
        self._thread = Some(Arc::clone(thread));
        self
    }

    /// The name, absolute.
    pub(crate) fn fqdn(&self) -> String {
        self.name.fqdn(self.resolver.domain())
    }

    /// Its endpoints, without keeping them followed.
    #[cfg(feature = "grpc")]
    pub(crate) fn downgrade(&self) -> std::sync::Weak<Pool> {
        Arc::downgrade(&self.pool)
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// What is known of each endpoint that is used: Consul's word on its health, the
    /// breaker, calls in the air. Each prints as a line.
    pub fn standings(&self) -> Vec<Standing> {
        self.pool.standings()
    }

    /// The changes from now on. The first is the full set, as soon as it is known;
    /// it is empty where the name does not exist.
    pub fn changes(&self) -> Changes {
        Changes {
            service: self.clone(),
            before: None,
            next: None,
        }
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.fqdn(self.resolver.domain());
        f.debug_struct("Service")
            .field("name", &name)
            .finish_non_exhaustive()
    }
}

/// The problems of a service, one after the other; it is followed as long as this lives. Who is
/// slow is told the last of what was missed.
#[derive(Debug)]
#[must_use = "problems are told to whoever asks for the next one"]
pub struct Problems {
    service: Service,
    told: watch::Receiver<Option<Error>>,
}

impl Problems {
    /// The next one, when it is of another kind than the one before; `None`: there is none any
    /// more. How each attempt fails in turn is no news.
    ///
    /// # Cancel safety
    ///
    /// Safe: what changes meanwhile is told the next time.
    pub async fn next(&mut self) -> Option<Error> {
        let Self { service, told } = self;
        if service.while_followed(told.changed()).await.is_err() {
            // While nothing is told any more there is nothing to wait for.
            std::future::pending::<()>().await;
        }
        told.borrow_and_update().clone()
    }
}

/// Endpoints as they were at one moment. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Endpoints(Option<Arc<Held>>);

impl Deref for Endpoints {
    type Target = [Endpoint];

    fn deref(&self) -> &[Endpoint] {
        self.0.as_ref().map_or(&[], |held| &held.endpoints)
    }
}

type Next = Pin<Box<dyn Future<Output = watch::Receiver<Known>> + Send + Sync>>;

/// The changes of a service's endpoints, in order. Who is slow is told the sum of
/// what was missed. A [`Stream`] that does not end.
#[must_use = "changes are told to whoever asks for the next one"]
pub struct Changes {
    service: Service,
    /// The set that was told last.
    before: Option<Endpoints>,
    /// The wait for the next word of the follower.
    next: Option<Next>,
}

impl Changes {
    /// The next change.
    ///
    /// # Cancel safety
    ///
    /// Safe: no change is lost, it is told the next time.
    pub async fn next(&mut self) -> Change {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Change> {
        loop {
            self.service.stay_followed();
            if self.next.is_none()
                && let Some(change) = self.difference()
            {
                return Poll::Ready(change);
            }
            let mut heard = self.service.heard.clone();
            let next = self.next.get_or_insert_with(|| {
                Box::pin(async move {
                    // While nothing is told any more there is nothing to wait for.
                    if heard.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                    heard
                })
            });
            match next.as_mut().poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(heard) => {
                    self.service.heard = heard;
                    self.next = None;
                }
            }
        }
    }

    /// What is known now against what was told last; `None`: the same.
    fn difference(&mut self) -> Option<Change> {
        let known = self.service.heard.borrow_and_update();
        let first = self.before.is_none();
        if matches!(*known, Known::Unheard) || (first && matches!(*known, Known::Lost)) {
            return None;
        }
        let now = Endpoints(held(&known));
        drop(known);
        let change = Change::between(self.before.as_deref().unwrap_or_default(), &now);
        self.before = Some(now);
        (first || !change.is_empty()).then_some(change)
    }
}

impl Stream for Changes {
    type Item = Change;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Change>> {
        self.get_mut().poll(context).map(Some)
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes")
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

fn held(known: &Known) -> Option<Arc<Held>> {
    match known {
        Known::Set(held, _) => Some(Arc::clone(held)),
        Known::Unheard | Known::Gone | Known::Lost => None,
    }
}
