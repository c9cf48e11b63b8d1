//! **Door.** All that is registered, healthy or not: names, instances, checks, and a
//! [`Registry`] that remembers them.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    clock,
    consul::{
        api::{Api, unread, unseen},
        health::ask::escaped,
        http::Reply,
        instances::{self, Instance, ServiceName},
    },
    endpoint::Attempt,
    error::{Error, ErrorKind},
    name::{ConsulName, Subject},
    pool::Filter,
    resolver::{Name, Resolver},
    source::{static_catalog::StaticCatalog, static_file::StaticFile},
};

/// Requests at once, while all services are read.
const AT_ONCE: usize = 8;

impl Resolver {
    /// The services in the catalog, by name, with the tags of their instances.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Denied`] where the token may not see them (a token that may see some
    /// sees those), [`ErrorKind::Unavailable`] and [`ErrorKind::Timeout`] where no agent
    /// answers, [`ErrorKind::Invalid`] where the HTTP API is turned off.
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn services(&self) -> Result<Vec<ServiceName>, Error> {
        services(&self.api()).await
    }

    /// All instances of a service, whatever their health, with their checks. None where
    /// there is no such service. It is named as in a look-up, `web`, `v2.web` or `web@dc2`, or
    /// as it is registered where that is no name of DNS.
    ///
    /// # Errors
    ///
    /// As [`services`](Self::services).
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn instances(&self, service: &str) -> Result<Vec<Instance>, Error> {
        let name = ConsulName::parse(service, self.domain()).ok();
        let name = name.and_then(|name| self.complete(Cow::Owned(name)).ok());
        if let Some(name) = name
            && let Subject::Service { service: own, tag } = name.subject()
            && name.locality().is_a_place()
        {
            let mut found = read(&self.api_of(name.locality()), own).await?;
            if let Some(tag) = tag {
                let tagged = Filter::new().tag(tag);
                found.retain(|one| tagged.matches_instance(one));
            }
            if !found.is_empty() || **own == *service.to_ascii_lowercase() {
                return Ok(found);
            }
        }
        read(&self.api(), service).await
    }

    /// The services of the [static catalog](crate::ResolverBuilder::catalog), by name: what is
    /// written down where no agent tells what is registered. `None`: there is no such file.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a file that cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn static_services(&self) -> Result<Option<Vec<ServiceName>>, Error> {
        let service = |(name, tags): (&str, BTreeSet<&str>)| ServiceName {
            name: name.into(),
            tags: tags.into_iter().map(Into::into).collect(),
        };
        let written = self.written().await?;
        Ok(written.map(|catalog| catalog.services().map(service).collect()))
    }

    /// The instances of a service in the [static catalog](crate::ResolverBuilder::catalog), named
    /// as in a look-up. Nothing tells their health, and they have no node. `None`: there is no
    /// such file.
    ///
    /// # Errors
    ///
    /// As [`static_services`](Self::static_services); also for what is no name.
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn static_instances(&self, service: &str) -> Result<Option<Vec<Instance>>, Error> {
        let Some(written) = self.written().await? else {
            return Ok(None);
        };
        let name = ConsulName::parse(service, self.domain())?;
        let found = match name.subject() {
            // It knows its own datacenter only.
            Subject::Service { service, tag }
                if name.locality().is_within(&self.config().home()) =>
            {
                written.find(service, tag.as_deref())
            }
            _ => None,
        };
        Ok(Some(found.map_or_else(Vec::new, |found| {
            instances::written(service, &found)
        })))
    }

    async fn written(&self) -> Result<Option<Arc<StaticCatalog>>, Error> {
        let config = self.config();
        let Some(path) = config.catalog.clone().filter(|_| !config.must_be_found) else {
            return Ok(None);
        };
        let read = StaticFile::new(path, self.domain().as_str()).load().await;
        let failed = |error| {
            let message = format!("the static catalog cannot be used: {error}");
            Error::new(ErrorKind::Invalid, message)
        };
        read.map(|loaded| Some(loaded.catalog)).map_err(failed)
    }

    /// Whether a look-up of the name gives an endpoint.
    ///
    /// # Errors
    ///
    /// Those of a [look-up](Self::lookup) but [`ErrorKind::NotFound`]: that nobody answered
    /// is not that there is nothing.
    ///
    /// # Cancel safety
    ///
    /// Safe, as a look-up.
    pub async fn is_available(&self, name: impl Name) -> Result<bool, Error> {
        match self.lookup(name).await {
            Ok(answer) => Ok(!answer.endpoints().is_empty()),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All that is registered, remembered: see [`Registry`].
    pub fn registry(&self) -> Registry {
        Registry(Arc::new(Inner {
            api: self.api(),
            known: Mutex::default(),
            reading: Semaphore::new(1),
        }))
    }
}

const SERVICES: &str = "the services in the catalog";

async fn services(api: &Api) -> Result<Vec<ServiceName>, Error> {
    let (reply, attempts) = listed(api).await?;
    let read = instances::services(&reply.body).map_err(|error| unread(SERVICES, &error))?;
    // A catalog without Consul's own service is one that may not be read; a namespace may
    // have none.
    if read.is_empty() && (reply.head.filtered_by_acls || !api.is_in_a_namespace()) {
        return Err(denied(SERVICES, attempts));
    }
    Ok(read)
}

async fn listed(api: &Api) -> Result<(Reply, Vec<Attempt>), Error> {
    api.get_from("/v1/catalog/services?stale", SERVICES).await
}

async fn read(api: &Api, service: &str) -> Result<Vec<Instance>, Error> {
    let what = format!("the instances of {}", service.escape_debug());
    let path = format!("/v1/health/service/{}?stale", escaped(service));
    let (reply, attempts) = api.get_from(&path, &what).await?;
    let read = instances::instances(service, &reply.body).map_err(|error| unread(&what, &error))?;
    if read.is_empty() && (reply.head.filtered_by_acls || !sees_any(&api.anywhere()).await?) {
        return Err(denied(&what, attempts));
    }
    Ok(read)
}

/// Whether any service is seen: Consul's own is always there, so who sees none may see none.
pub(crate) async fn sees_any(api: &Api) -> Result<bool, Error> {
    let (reply, _) = listed(api).await?;
    Ok(instances::services(&reply.body).is_ok_and(|read| !read.is_empty()))
}

/// Nothing, because the token may see nothing, is not nothing.
fn denied(what: &str, attempts: Vec<Attempt>) -> Error {
    let mend = "give one with service:read and node:read, CONSUL_HTTP_TOKEN_FILE or --token-file";
    let message = format!("{what}: the token may not see them; {mend}");
    unseen(message, attempts)
}

/// All that is registered, as it was read last; made by [`Resolver::registry`].
///
/// What is asked for and not known is looked for, once a second at most; the rest is read
/// again when it is older than 30 s. One caller waits for that; to the others, and to all
/// while no agent answers, what was known is given; its [`age`](Self::age) tells. Services that
/// the token may not see are left out; one that it may not see any more stays as it was seen
/// last, since rights that are lost say nothing of a service. Cheap to clone; clones share what
/// they know.
///
/// It takes a request for each service: for calls a [`Service`](crate::Service) is made,
/// which is told of changes.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    api: Api,
    /// A std mutex: held for a look, never across an await.
    known: Mutex<Known>,
    /// One reads at a time; the others wait for what it brings.
    reading: Semaphore,
}

#[derive(Default)]
struct Known {
    services: BTreeMap<Box<str>, Arc<[Instance]>>,
    read: Option<Instant>,
    /// When it was read last, or somebody tried.
    tried: Option<Instant>,
}

/// What is known is read again after so long.
const KEEP: Duration = Duration::from_secs(30);

/// Time between two readings, whatever came of the first.
const PAUSE: Duration = Duration::from_secs(1);

impl Registry {
    /// The instances of a service, in whatever case it is written; none where there is no such
    /// service.
    ///
    /// # Errors
    ///
    /// As [`Resolver::services`], where nothing is known yet.
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn service(&self, name: &str) -> Result<Arc<[Instance]>, Error> {
        let known = |known: &Known| {
            let all = &known.services;
            let in_any_case = || {
                let mut all = all.iter();
                let found = all.find(|(own, _)| own.eq_ignore_ascii_case(name))?;
                Some(found.1)
            };
            all.get(name).or_else(in_any_case).cloned()
        };
        Ok(self.with(known).await?.unwrap_or_default())
    }

    /// All instances, of whatever service, that are so.
    ///
    /// # Errors
    ///
    /// As [`service`](Self::service).
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn find(&self, filter: &Filter) -> Result<Vec<Instance>, Error> {
        let matching = |known: &Known| {
            let all = known
                .services
                .values()
                .flat_map(|instances| instances.iter());
            let found: Vec<_> = all
                .filter(|one| filter.matches_instance(one))
                .cloned()
                .collect();
            (!found.is_empty()).then_some(found)
        };
        Ok(self.with(matching).await?.unwrap_or_default())
    }

    /// The names that are known.
    ///
    /// # Errors
    ///
    /// As [`service`](Self::service).
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn names(&self) -> Result<Vec<Box<str>>, Error> {
        let names = |known: &Known| Some(known.services.keys().cloned().collect());
        Ok(self.with(names).await?.unwrap_or_default())
    }

    /// Time since all of it was read; `None`: it never was.
    pub fn age(&self) -> Option<Duration> {
        let read = self.known().read?;
        Some(clock::now().saturating_duration_since(read))
    }

    /// Reads all of it again.
    ///
    /// # Errors
    ///
    /// As [`Resolver::services`]; what was known stays.
    ///
    /// # Cancel safety
    ///
    /// Safe: what was known stays.
    pub async fn refresh(&self) -> Result<(), Error> {
        let began = clock::now();
        // It is never closed.
        let Ok(_reading) = self.0.reading.acquire().await else {
            return Ok(());
        };
        // Somebody else has just done it.
        if self.known().read.is_some_and(|read| read >= began) {
            return Ok(());
        }
        self.known().tried = Some(began);
        let names = services(&self.0.api).await?;
        let seats = Arc::new(Semaphore::new(AT_ONCE));
        let mut reading = JoinSet::new();
        for ServiceName { name, .. } in names {
            let (api, seats) = (self.0.api.clone(), Arc::clone(&seats));
            reading.spawn(async move {
                // It is never closed.
                let _seat = seats.acquire().await;
                let read = read(&api, &name).await;
                (name, read)
            });
        }
        let mut all = BTreeMap::new();
        while let Some(read) = reading.join_next().await {
            let Ok((name, read)) = read else { continue };
            match read {
                Ok(read) => _ = all.insert(name, read.into()),
                Err(error) if error.is_denied() => {
                    if let Some(before) = self.known().services.get(&name).cloned() {
                        all.insert(name, before);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let mut known = self.known();
        known.services = all;
        let now = clock::now();
        (known.read, known.tried) = (Some(now), Some(now));
        Ok(())
    }

    /// What is known, after it was read where it is old or where it is not there.
    async fn with<T>(&self, look: impl Fn(&Known) -> Option<T>) -> Result<Option<T>, Error> {
        let now = clock::now();
        let (found, is_due, is_known) = {
            let known = self.known();
            let found = look(&known);
            let since = |then: Instant| now.saturating_duration_since(then);
            let is_old = known.read.is_none_or(|read| since(read) >= KEEP);
            let may = known.tried.is_none_or(|tried| since(tried) >= PAUSE);
            let is_due = may && (is_old || found.is_none());
            (found, is_due, known.read.is_some())
        };
        // Somebody else reads already.
        let is_read = is_known && self.0.reading.available_permits() == 0;
        if is_known && (!is_due || is_read) {
            return Ok(found);
        }
        match self.refresh().await {
            Ok(()) => {}
            Err(error) if !is_known => return Err(error),
            // What was known is better than nothing.
            Err(error) => tracing::warn!("{error}; what was known is given"),
        }
        Ok(look(&self.known()))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let services = self.known().services.len();
        f.debug_struct("Registry")
            .field("services", &services)
            .field("age", &self.age())
            .finish_non_exhaustive()
    }
}
