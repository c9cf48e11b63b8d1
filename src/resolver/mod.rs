//! **Door.** [`Resolver`]: the flow of a look-up. Its rules are elsewhere: what
//! holds in [`cache`](crate::cache), which source is next in
//! [`ladder`](crate::ladder), what a source says in [`source`](crate::source).

mod askable;
mod told;

use std::{
    borrow::Cow,
    collections::HashMap,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use compact_str::CompactString;
use tracing::{debug, warn};

pub use self::askable::Name;
use crate::{
    balance::{Picker, Strategy},
    cache::{Cache, Look},
    clock,
    config::{Config, ResolverBuilder},
    endpoint::{Answer, Freshness, Source, Transport},
    error::{Error, ErrorKind},
    flight::Flights,
    found::{Found, Held, Host},
    ladder::{Ladder, Step},
    name::{ConsulName, Domain, Subject},
    record::Records,
    records::{self, Asked},
    source::{Finding, Question, Sources, hosts::Hosts},
    zone,
};

/// Names in Consul's zone that stand for others in it are followed this far, as
/// Consul does.
const DEEPEST: u8 = 3;

/// Finds services registered in Consul.
///
/// Cheap to clone: all clones share one cache, one set of connections and the
/// questions in the air. To be used within a tokio runtime. Dropping the last
/// clone closes the connections; questions still in the air end by themselves
/// within their time limit.
#[derive(Clone, Debug)]
pub struct Resolver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    sources: Sources,
    hosts: Hosts,
    /// A std mutex: held for one look-up, never across an await.
    cache: Mutex<Cache>,
    flights: Flights<ConsulName, Result<Answer, Error>>,
}

impl ResolverBuilder {
    /// Makes the resolver. It asks nobody and opens no file yet.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for the first setting that is not valid.
    pub fn build(self) -> Result<Resolver, Error> {
        Resolver::new(self.finish()?)
    }
}

impl Resolver {
    /// A builder with the defaults; the environment is not read.
    pub fn builder() -> ResolverBuilder {
        ResolverBuilder::default()
    }

    /// A resolver set up by the environment alone; see
    /// [`ResolverBuilder::environment`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for the first variable that is not valid.
    pub fn from_env() -> Result<Self, Error> {
        Self::builder().environment().build()
    }

    fn new(config: Config) -> Result<Self, Error> {
        let cache = Mutex::new(Cache::new(config.cache.clone()));
        let sources = Sources::new(&config)?;
        let flights = Flights::new();
        Ok(Self(Arc::new(Inner {
            config,
            sources,
            hosts: Hosts::new(),
            cache,
            flights,
        })))
    }

    /// The domain whose names this resolver answers.
    pub fn domain(&self) -> &Domain {
        &self.0.config.domain
    }

    /// Every endpoint of `name`: a text as a user types it (`web`, `v2.web`,
    /// `web@dc2`, `web.service.consul`), or a [`ConsulName`], which saves the
    /// parsing.
    ///
    /// From the cache without waiting where that holds; else from the first
    /// source that knows. Questions about one name are asked once, however many
    /// callers wait.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] when Consul says that there is nothing,
    /// [`ErrorKind::Denied`], [`ErrorKind::Unavailable`] and
    /// [`ErrorKind::Timeout`] when no source answered,
    /// [`ErrorKind::Invalid`] for a name that DNS cannot carry. Where a source
    /// failed, [`Error::attempts`] tells each step.
    ///
    /// # Cancel safety
    ///
    /// Safe: a caller that leaves does not stop the question, whose result still
    /// reaches the others and the cache.
    ///
    /// # Panics
    ///
    /// When called outside a tokio runtime and the cache does not know the name.
    pub async fn lookup(&self, name: impl Name) -> Result<Answer, Error> {
        let name = self.complete(name.as_name(self.domain())?)?;
        let inner = &self.0;
        if let Some(result) = inner.cached(&name) {
            return result;
        }
        let started = inner.flights.join(
            &name,
            || inner.cached(&name),
            || {
                let (inner, name) = (Arc::clone(inner), name.clone().into_owned());
                async move {
                    {
                        let deadline = clock::now() + inner.config.timeout;
                        inner.find(&name, deadline, 0).await
                    }
                }
            },
        );
        started.await.unwrap_or_else(|| {
            let message = format!(
                "the look-up of {} was ended from outside",
                name.fqdn(self.domain())
            );
            Err(Error::new(ErrorKind::Unavailable, message))
        })
    }

    /// Reads the files that are configured, so that a bad one is told at the start
    /// and not when it is needed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a file that cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Safe: it may be left at any time and called again.
    pub async fn check(&self) -> Result<(), Error> {
        self.0.sources.check().await
    }

    /// The records of type `kind` (`SRV`, `A`, `AAAA`, `TXT`, `PTR`, `ANY`, `SOA`,
    /// `NS`, …) that Consul would answer for `name`, made of the same set that
    /// [`lookup`](Self::lookup) finds. A name that does not exist is an answer
    /// here: `NXDOMAIN`.
    ///
    /// # Errors
    ///
    /// As `lookup`, but for [`ErrorKind::NotFound`]; [`ErrorKind::Invalid`] also
    /// for a type that there is not.
    ///
    /// # Cancel safety
    ///
    /// Safe, as `lookup`.
    pub async fn records(&self, name: impl Name, kind: &str) -> Result<Records, Error> {
        let name = self.complete(name.as_name(self.domain())?)?;
        let asked = Asked::about(&name, kind, self.domain()).ok_or_else(|| {
            let kind = kind.escape_debug();
            let message =
                format!("there is no record type {kind}: try SRV, A, AAAA, TXT, PTR, ANY, SOA, NS");
            Error::new(ErrorKind::Invalid, message)
        })?;
        let (sections, answer) = zone::answer(self, &asked).await;
        let (code, records) = records::printed(&sections);
        match answer {
            Err(error) if !error.is_not_found() => Err(error),
            answer => Ok(Records {
                code,
                records,
                error: answer.as_ref().err().cloned(),
                answer: answer.ok().flatten(),
            }),
        }
    }

    /// DNS replies that answered no question of ours, since this resolver was made:
    /// forged, late or garbled. They are ignored (RFC 5452, section 9.1); many of
    /// them are worth a look at who sends them.
    pub fn ignored_replies(&self) -> u64 {
        self.0.sources.strangers()
    }

    /// The endpoints of an answer, ready to be picked from one by one.
    pub fn picker(&self, answer: &Answer, strategy: Strategy) -> Picker {
        Picker::new(answer.endpoints(), strategy, clock::dice())
    }

    /// The minimum of the zone's SOA, in seconds.
    pub(crate) fn soa_minimum(&self) -> u32 {
        self.0.sources.minimum()
    }

    /// Fills in the configured datacenter, namespace and partition.
    fn complete<'a>(&self, name: Cow<'a, ConsulName>) -> Result<Cow<'a, ConsulName>, Error> {
        let Config {
            datacenter,
            namespace,
            partition,
            domain,
            ..
        } = &self.0.config;
        if let (None, None, None) = (datacenter, namespace, partition) {
            return Ok(name);
        }
        let (datacenter, namespace, partition) = (
            datacenter.as_deref(),
            namespace.as_deref(),
            partition.as_deref(),
        );
        let full = name.with_defaults(datacenter, namespace, partition)?;
        if !full.fits(domain) {
            let message = format!(
                "{} is longer than the 255 bytes that DNS can carry",
                full.fqdn(domain)
            );
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        Ok(Cow::Owned(full))
    }
}

impl Inner {
    /// What the cache knows of a name.
    fn cached(&self, name: &ConsulName) -> Option<Result<Answer, Error>> {
        let look = self.cache().look(name.key(), clock::lately());
        match look {
            Look::Fresh(held, age) => Some(Ok(Answer {
                held,
                age,
                freshness: Freshness::Fresh,
                attempts: None,
            })),
            Look::Nothing => Some(Err(told::not_found(name, &self.config.domain, Vec::new()))),
            Look::Unknown => None,
        }
    }

    /// Climbs the ladder and caches what was found.
    async fn find(
        self: &Arc<Self>,
        name: &ConsulName,
        deadline: Instant,
        depth: u8,
    ) -> Result<Answer, Error> {
        let fqdn = name.fqdn(&self.config.domain);
        if let Subject::Address(address) = name.subject() {
            return Ok(decoded(&fqdn, *address));
        }
        let start = clock::now();
        if self.sources.rungs().is_empty() {
            let message = "no source is configured: give an agent's address (--dns, --http) or a \
                           static catalog (--catalog)";
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let question = Question { name, fqdn: &fqdn };
        let mut attempts = Vec::new();
        let mut ladder = Ladder::start(self.sources.rungs(), deadline);
        let result = loop {
            match ladder.step(clock::now()) {
                Step::Ask(rung, limit) => {
                    let heard = self.sources.ask(rung, question, limit, &mut attempts).await;
                    ladder.hear(heard);
                }
                Step::Give(finding) => {
                    let held = Arc::new(self.settle(question, finding, deadline, depth).await);
                    self.cache().put(Arc::clone(&held));
                    let attempts = Some(attempts.into());
                    let (age, freshness) = (Duration::ZERO, Freshness::Fresh);
                    break Ok(Answer {
                        held,
                        age,
                        freshness,
                        attempts,
                    });
                }
                Step::Nothing(ttl) => {
                    self.cache().put_nothing(name.key(), ttl, clock::now());
                    break Err(told::not_found(name, &self.config.domain, attempts));
                }
                Step::GiveUp(kind) => break Err(told::failed(kind, &fqdn, attempts)),
            }
        };
        debug!(name = %fqdn, elapsed = ?clock::now().saturating_duration_since(start), ok = result.is_ok(), "looked up");
        result
    }

    /// Resolves the host names in a set and makes endpoints of it.
    async fn settle(
        self: &Arc<Self>,
        question: Question<'_>,
        finding: Finding,
        deadline: Instant,
        depth: u8,
    ) -> Held {
        let Finding {
            mut found,
            source,
            transport,
            ttl,
            doubt,
        } = finding;
        let Question { name, fqdn } = question;
        let mut warnings: Vec<Box<str>> = doubt.into_iter().collect();
        let mut names: Vec<Arc<str>> = records::unresolved(&found).cloned().collect();
        names.sort_unstable();
        names.dedup();
        let mut told = self.addresses(names.clone(), deadline, depth).await;
        for host in names {
            let lost = || Err("its look-up was ended from outside".to_owned());
            let addresses = told.remove(&host).unwrap_or_else(lost);
            match addresses {
                Ok(addresses) => {
                    records::resolve(&mut found, &host, &addresses, self.sources.zones())
                }
                Err(why) => warnings.push(format!("{host} has no address: {why}").into()),
            }
        }
        for warning in &warnings {
            warn!(name = fqdn, %warning, "answer is not complete");
        }
        let endpoints = records::endpoints(&found, fqdn);
        let complete = warnings.is_empty();
        let warnings = warnings.into();
        Held {
            key: name.key().into(),
            since: clock::now(),
            name: fqdn.into(),
            found,
            endpoints,
            source,
            transport,
            ttl,
            complete,
            warnings,
        }
    }

    /// The addresses of host names, all asked at once.
    async fn addresses(
        self: &Arc<Self>,
        names: Vec<Arc<str>>,
        deadline: Instant,
        depth: u8,
    ) -> HashMap<Arc<str>, Result<Vec<IpAddr>, String>> {
        let mut asked = tokio::task::JoinSet::new();
        for name in names {
            let inner = Arc::clone(self);
            asked.spawn(async move {
                let found = inner.address(&name, deadline, depth).await;
                (name, found)
            });
        }
        let mut all = HashMap::new();
        while let Some(one) = asked.join_next().await {
            all.extend(one);
        }
        all
    }

    /// The addresses of one host name: Consul's own if it is in Consul's zone,
    /// which nobody else is ever asked about.
    async fn address(
        self: &Arc<Self>,
        host: &Arc<str>,
        deadline: Instant,
        depth: u8,
    ) -> Result<Vec<IpAddr>, String> {
        let in_zone = |zone: &&Domain| records::is_within(host, zone);
        let Some(zone) = self.sources.zones().iter().find(in_zone) else {
            return self.hosts.resolve(host, deadline).await;
        };
        if depth >= DEEPEST {
            return Err("names in Consul's zone stand for each other in a circle".to_owned());
        }
        let name = ConsulName::parse(host, zone).map_err(|error| error.to_string())?;
        let deeper = Arc::clone(self).find_deeper(name, deadline, depth + 1);
        let found = deeper.await.map_err(|error| error.to_string())?;
        // Half of what stands behind a name is no answer to what stands before it.
        if !found.is_complete() || found.endpoints().is_empty() {
            let why = found.warnings().first().map_or("it has none", |why| why);
            return Err(why.to_owned());
        }
        Ok(found
            .endpoints()
            .iter()
            .map(|endpoint| endpoint.address)
            .collect())
    }

    /// [`find`](Self::find) for a name that another one stands for.
    fn find_deeper(
        self: Arc<Self>,
        name: ConsulName,
        deadline: Instant,
        depth: u8,
    ) -> Pin<Box<dyn Future<Output = Result<Answer, Error>> + Send>> {
        Box::pin(async move { self.find(&name, deadline, depth).await })
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An address that is written in the name: nobody has to be asked.
fn decoded(fqdn: &str, address: IpAddr) -> Answer {
    let found = Found::Host(Host {
        addresses: vec![address],
        ..Host::default()
    });
    let held = Held {
        key: CompactString::default(),
        since: clock::now(),
        name: fqdn.into(),
        endpoints: records::endpoints(&found, fqdn),
        found,
        source: Source::Static,
        transport: Transport::File,
        ttl: Duration::ZERO,
        complete: true,
        warnings: Box::default(),
    };
    Answer {
        held: Arc::new(held),
        age: Duration::ZERO,
        freshness: Freshness::Fresh,
        attempts: None,
    }
}
