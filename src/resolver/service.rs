//! **Door.** [`Service`]: a live handle of one name, and the [`Changes`] of its
//! endpoints.

use std::{
    fmt,
    ops::Deref,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_core::Stream;
use tokio::sync::watch;

use super::{Name, Resolver, follow::Known};
use crate::{
    cache::Look,
    change::Change,
    endpoint::{Answer, Endpoint},
    error::{Error, ErrorKind},
    found::Held,
    name::ConsulName,
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
}

impl Resolver {
    /// A live handle of `name`. It is asked for from now on, in the background.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a name that DNS cannot carry, and outside a tokio
    /// runtime, where nothing can be followed.
    pub fn service(&self, name: impl Name) -> Result<Service, Error> {
        let name = self.complete(name.as_name(self.domain())?)?.into_owned();
        if tokio::runtime::Handle::try_current().is_err() {
            let message = "a service can be followed within a tokio runtime only";
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let heard = self.0.follow(&name);
        Ok(Service {
            resolver: self.clone(),
            name,
            heard,
        })
    }
}

impl Service {
    /// The name, as it was asked for.
    pub fn name(&self) -> &ConsulName {
        &self.name
    }

    /// The endpoints known now; none before the first answer, and none where the
    /// name does not exist or nothing behind it is healthy.
    pub fn endpoints(&self) -> Endpoints {
        Endpoints(held(&self.heard.borrow()))
    }

    /// The same with source, age and completeness, as a look-up gives them. `None`
    /// where there is nothing to give.
    pub fn answer(&self) -> Option<Answer> {
        let inner = &self.resolver.0;
        match inner.look(&self.name) {
            Look::Fresh(held, age) => Some(super::fresh(held, age)),
            Look::Stale(held, age, _) => Some(inner.stale(held, age)),
            Look::Nothing | Look::Unknown => None,
        }
    }

    /// Waits until there is an endpoint.
    ///
    /// # Cancel safety
    ///
    /// Safe: it waits for a state and takes nothing.
    pub async fn ready(&self) {
        let mut heard = self.heard.clone();
        let there = |known: &Known| held(known).is_some_and(|held| !held.endpoints.is_empty());
        // The sender lives as long as the resolver, which this holds.
        let _ = heard.wait_for(there).await;
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
        if matches!(*known, Known::Unheard) {
            return None;
        }
        let now = Endpoints(held(&known));
        drop(known);
        let change = Change::between(self.before.as_deref().unwrap_or_default(), &now);
        let first = self.before.is_none();
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
        Known::Set(held) => Some(Arc::clone(held)),
        Known::Unheard | Known::Gone => None,
    }
}
