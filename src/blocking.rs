//! **Door.** For code that is not async: a [`Resolver`] with a thread of its own that does
//! the waiting.

use std::{fmt, sync::Arc, thread};

use tokio::{runtime::Handle, sync::oneshot};

use crate::{
    config::ResolverBuilder,
    endpoint::Answer,
    error::{Error, ErrorKind},
    pool::Policy,
    resolver::{Name, Service},
};

/// A [resolver](crate::Resolver) for code that is not async. Cheap to clone.
///
/// ```no_run
/// use proconsul::{Resolver, blocking};
///
/// let resolver = blocking::Resolver::new(Resolver::builder().environment())?;
/// let answer = resolver.lookup("web")?;
/// // Picks are never async.
/// let web = resolver.service("web")?;
/// let lease = resolver.run(web.pick())??;
/// # Ok::<(), proconsul::Error>(())
/// ```
#[derive(Clone)]
pub struct Resolver {
    inner: crate::Resolver,
    own: Arc<Own>,
}

/// The thread ends with the last clone, and the last service that is followed on it.
pub(crate) struct Own {
    runtime: Handle,
    stop: Option<oneshot::Sender<()>>,
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // It may have ended by itself.
            _ = stop.send(());
        }
    }
}

impl Resolver {
    /// A resolver with these settings, and its thread.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for the first setting that is not valid, [`ErrorKind::Io`]
    /// where no thread can be started.
    pub fn new(settings: ResolverBuilder) -> Result<Self, Error> {
        let inner = settings.build()?;
        let failed = |error: std::io::Error| {
            let message = format!("the thread of a blocking resolver cannot be started: {error}");
            Error::caused(ErrorKind::Io, message, error)
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let (stop, stopped) = oneshot::channel();
        let handle = runtime.handle().clone();
        let wait = move || {
            // Ends also where the sender is dropped.
            _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name("proconsul".into());
        thread.spawn(wait).map_err(failed)?;
        let own = Own {
            runtime: handle,
            stop: Some(stop),
        };
        Ok(Self {
            inner,
            own: Arc::new(own),
        })
    }

    /// The resolver itself, for futures that are [run](Self::run).
    pub fn resolver(&self) -> &crate::Resolver {
        &self.inner
    }

    /// Every endpoint of a name; see [`Resolver::lookup`](crate::Resolver::lookup).
    ///
    /// # Errors
    ///
    /// As there; and as [`run`](Self::run).
    pub fn lookup(&self, name: impl Name) -> Result<Answer, Error> {
        self.run(self.inner.lookup(name))?
    }

    /// A live handle of a name; see [`Resolver::service`](crate::Resolver::service).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn service(&self, name: impl Name) -> Result<Service, Error> {
        self.service_with(name, Policy::default())
    }

    /// The same with a policy.
    ///
    /// # Errors
    ///
    /// As [`Resolver::service_with`](crate::Resolver::service_with).
    pub fn service_with(&self, name: impl Name, policy: Policy) -> Result<Service, Error> {
        let _guard = self.own.runtime.enter();
        Ok(self.inner.service_with(name, policy)?.on(&self.own))
    }

    /// Waits for anything that is async here, such as [`Service::pick`] or
    /// [`Service::call`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] in async code, which would stand still: there the future is
    /// awaited. Within `spawn_blocking` it is that too, for one cannot be told from the
    /// other: `Handle::current().block_on(future)` waits there.
    pub fn run<F: Future>(&self, future: F) -> Result<F::Output, Error> {
        if Handle::try_current().is_ok() {
            let message = "this is async code: await the future, a blocking call would stop \
                           everything else on this thread; within spawn_blocking use \
                           Handle::current().block_on(future)";
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        Ok(self.own.runtime.block_on(future))
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("blocking::Resolver")
            .field("resolver", &self.inner)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolver() -> Resolver {
        let settings = crate::Resolver::builder().dns("none").http("none");
        Resolver::new(settings.default_address("web", "10.0.0.1:80")).unwrap()
    }

    #[test]
    fn what_is_async_is_waited_for() {
        let resolver = resolver();
        assert_eq!(resolver.lookup("web").unwrap().endpoints().len(), 1);
        let service = resolver.service("web").unwrap();
        let lease = resolver.run(service.pick()).unwrap().unwrap();
        assert_eq!(lease.socket_addr().to_string(), "10.0.0.1:80");
        let thread = Arc::downgrade(&resolver.own);
        // Not async, and on any thread.
        let clone = resolver.clone();
        drop(resolver);
        thread::spawn(move || service.try_pick().map(drop))
            .join()
            .unwrap()
            .unwrap();
        // Who is followed goes on being followed without the resolver.
        let service = clone.service("web").unwrap();
        drop(clone);
        assert_eq!(thread.strong_count(), 1);
        drop(service);
        assert_eq!(thread.strong_count(), 0);
    }

    #[tokio::test]
    async fn async_code_is_not_stopped() {
        let refused = resolver().lookup("web").unwrap_err();
        assert!(refused.to_string().contains("await"), "{refused}");
    }
}
