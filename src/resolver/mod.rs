//! **Door.** [`Resolver`]: the flow of a look-up. Its rules are elsewhere: what
//! holds in [`cache`](crate::cache), which source is next in
//! [`ladder`](crate::ladder), what a source says in [`source`](crate::source).

mod askable;
mod climb;
mod failures;
mod follow;
mod followers;
mod lookup;
mod news;
mod probe;
mod pulse;
mod service;
mod told;
mod turnstile;
mod warm;
mod weigh;

use std::{
    borrow::Cow,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, sync::Notify};

pub use self::{
    askable::Name,
    lookup::Lookup,
    service::{Changes, Endpoints, Problems, Service},
};
use self::{climb::Landed, failures::Failures, followers::Followers, warm::Snapshot};
use crate::{
    balance::{Picker, Strategy},
    cache::{
        Cache, Hits, Look, Rest,
        fate::Term,
        stale::{Waits, Wish},
    },
    circuit::Gate,
    clock,
    config::{Config, ResolverBuilder},
    consul::{
        api::{self, Api},
        dns_settings::DnsSettings,
        http::Agent,
    },
    endpoint::{Answer, Attempt, Freshness, Source},
    error::{Error, ErrorKind},
    evidence::Evidence,
    flight::{Flights, Runs},
    found::Held,
    ladder::Rung,
    metrics::{Counters, Gauges, Metrics},
    name::{ConsulName, Domain, Locality},
    process::{self, Process},
    protection::Reason,
    record::Records,
    records::{self, Asked, write::Origin},
    source::{Sources, circuits::Circuits, hosts::Hosts},
    status::{Cached, SourceStatus, Status},
    task, zone,
};

/// Nobody's call waits for a list or a setting: it may take this long, and longer where a
/// look-up may.
const API: Duration = Duration::from_secs(5);

/// Finds services registered in Consul.
///
/// Cheap to clone: all clones share one cache, one set of connections and the
/// questions in the air. To be used within a tokio runtime. Dropping the last
/// clone closes the connections; questions still in the air end by themselves
/// within their time limit.
///
/// Not for the child of a process that forks without starting another program (fork(2)
/// without execve(2)): it has none of the runtime's threads and shares the sockets. What is
/// known is given there, and whatever would have to be asked is [`ErrorKind::Invalid`]. Fork
/// first, and build the resolver and its runtime in the child.
#[derive(Clone, Debug)]
pub struct Resolver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    process: Process,
    config: Config,
    origin: Origin,
    /// Shared with the queries that follow names, which do not hold the rest.
    sources: Arc<Sources>,
    hosts: Hosts,
    /// A std mutex: held for one look-up, never across an await.
    cache: Mutex<Cache>,
    /// The same.
    evidence: Mutex<Evidence>,
    /// The same.
    failures: Mutex<Failures>,
    /// Sets that Consul gave, so far.
    sets: AtomicU64,
    flights: Flights<ConsulName, Landed>,
    counters: Arc<Counters>,
    /// Whether those wait for the sources who have a stale set. A std mutex: held for one look.
    waits: Mutex<Waits>,
    /// Who waits so is told that it is in vain.
    in_vain: Notify,
    /// Whether the sources answered the last question that tells, and when. A std mutex: held for
    /// one look.
    heard: Mutex<Option<(bool, Instant)>>,
    followers: Followers,
    snapshot: Option<Snapshot>,
}

impl ResolverBuilder {
    /// Makes the resolver. It asks nobody and opens no file yet.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for the first setting that is not valid.
    pub fn build(self) -> Result<Resolver, Error> {
        Resolver::new(self.finish()?, None)
    }

    /// Makes a resolver that begins with what another one knows, holds and has counted; that
    /// one goes on by itself and writes no snapshot any more: for settings that change while a
    /// process runs. Only the counts are taken over where the domain is another one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for the first setting that is not valid; the other
    /// resolver is as it was then.
    pub fn build_after(self, before: &Resolver) -> Result<Resolver, Error> {
        let resolver = Resolver::new(self.finish()?, Some(&before.0))?;
        if resolver.domain() == before.domain() {
            (resolver.0.cache()).take_over(&before.0.cache(), clock::now());
            let same_rights = resolver.0.config.sees_as(&before.0.config);
            (resolver.0.evidence()).take_over(&before.0.evidence(), same_rights);
        }
        Ok(resolver)
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

    fn new(config: Config, before: Option<&Inner>) -> Result<Self, Error> {
        let mut cache = Cache::new(config.cache.clone());
        if let Some(before) = before {
            cache.count_on(before.cache().hits());
        }
        let evidence = Mutex::new(Evidence::new(config.protection));
        let sources = Arc::new(Sources::new(&config)?);
        let watches = config.watches.min(process::quarter_of_descriptors());
        let followers = Followers::new(watches);
        let flights = Flights::new(config.timeout + lookup::AFTER);
        let written = before.and_then(|before| before.snapshot.as_ref());
        let snapshot = match (config.snapshot.clone(), written) {
            (Some(path), Some(written)) => Some(written.hand_over(path)),
            (Some(path), None) => Some(Snapshot::new(path)),
            (None, written) => {
                written.inspect(|written| written.give_up());
                None
            }
        };
        let counters = before.map_or_else(Arc::default, |before| Arc::clone(&before.counters));
        Ok(Self(Arc::new(Inner {
            process: Process::own(),
            origin: Origin::of(&config.domain),
            config,
            sources,
            hosts: Hosts::new(),
            cache: Mutex::new(cache),
            evidence,
            failures: Mutex::default(),
            sets: AtomicU64::new(0),
            counters,
            waits: Mutex::default(),
            in_vain: Notify::new(),
            heard: Mutex::default(),
            followers,
            snapshot,
            flights,
        })))
    }

    pub(crate) fn config(&self) -> &Config {
        &self.0.config
    }

    /// The HTTP API, for what is no look-up.
    pub(crate) fn agent(&self) -> &Arc<Agent> {
        self.0.sources.agent()
    }

    /// Requests that are no look-up.
    pub(crate) fn api(&self) -> Api {
        self.api_of(&self.config().home())
    }

    /// Requests that are for the agent itself.
    pub(crate) fn agent_api(&self) -> Api {
        // It knows no other datacenter than its own.
        self.api_of(&Locality {
            datacenter: None,
            ..self.config().home()
        })
    }

    /// Requests about another place.
    pub(crate) fn api_of(&self, home: &Locality) -> Api {
        let limit = self.config().timeout.max(API);
        Api::new(Arc::clone(self.agent()), limit, api::place(home).into())
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.0.counters
    }

    /// The same in the form of records.
    pub(crate) fn origin(&self) -> &Origin {
        &self.0.origin
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
    /// callers wait. Where no source answers in time, the set known before is given,
    /// as stale (RFC 8767): after 150 ms at most, for a day by default, while it is
    /// still asked for. [`Lookup::require_fresh`] and [`Lookup::max_age`] say
    /// otherwise.
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
    /// When polled outside a tokio runtime and the cache does not know the name.
    pub fn lookup<N: Name>(&self, name: N) -> Lookup<'_, N> {
        Lookup::new(self, name)
    }

    /// Names that a source says are gone and that are given all the same, with why:
    /// the name as in `web.service`, without the domain.
    pub fn protected(&self) -> Vec<(String, Reason)> {
        let mut evidence = self.0.evidence();
        evidence
            .held(clock::now())
            .map(|(name, why)| (name.to_owned(), why))
            .collect()
    }

    /// Believes from now on what the sources say of the names that are
    /// [`protected`](Self::protected), each until it is found again or gone: the operator knows
    /// better.
    pub fn release_protected(&self) {
        let released = self.0.evidence().release();
        let mut cache = self.0.cache();
        released.iter().for_each(|name| cache.wake(name));
    }

    /// Which sources are asked, and what is held, as it is now.
    pub fn status(&self) -> Status {
        let inner = &self.0;
        let now = clock::now();
        let rungs = [(Rung::Dns, Source::Dns), (Rung::Http, Source::Http)];
        let sources = rungs.into_iter().filter_map(|(rung, source)| {
            let circuits = inner.sources.circuits(rung)?;
            let addresses = circuits.states().into_iter().map(|(address, since)| {
                let down = since.map(|since| now.saturating_duration_since(since));
                (address.into(), down)
            });
            let status = SourceStatus {
                source,
                up: inner.sources.gate(rung, now) == Gate::Pass,
                addresses: addresses.collect(),
            };
            inner.sources.rungs().contains(&rung).then_some(status)
        });
        let sources: Vec<_> = sources.collect();
        let protected = inner.evidence().held(now).len();
        let cache = inner.cache();
        let answers = !inner.has_failed() && sources.iter().any(|source: &SourceStatus| source.up);
        let ready = answers
            || inner.sources.rungs().contains(&Rung::Static)
            || cache.list(now).next().is_some();
        Status {
            sources,
            names: cache.len(),
            bytes: cache.bytes(),
            hits: cache.hits().iter().sum(),
            stale: inner.counters.stale(),
            watches: inner.followers.watches(),
            protected,
            answers,
            ready,
        }
    }

    /// The sets in the cache, those that were used last first, at most `most`.
    pub fn cached(&self, most: usize) -> Vec<Cached> {
        let sets: Vec<_> = {
            let cache = self.0.cache();
            let all = cache.list(clock::now()).take(most);
            all.map(|(held, age, freshness)| (Arc::clone(held), age, freshness))
                .collect()
        };
        let cached = |(held, age, freshness): (Arc<Held>, Duration, Freshness)| Cached {
            name: held.name.clone(),
            source: held.source,
            freshness,
            age,
            endpoints: held.endpoints.len(),
            complete: held.complete,
            protected: self.0.evidence().reason(&held.key),
        };
        sets.into_iter().map(cached).collect()
    }

    /// How many sets [`cached`](Self::cached) has without a limit.
    pub fn cached_sets(&self) -> usize {
        self.0.cache().list(clock::now()).count()
    }

    /// The metrics of this resolver, as they are now. Prints as Prometheus text.
    pub fn metrics(&self) -> Metrics {
        let inner = &self.0;
        let now = clock::now();
        let sources = [(Rung::Dns, Source::Dns), (Rung::Http, Source::Http)];
        let sources = sources.into_iter().filter_map(|(rung, source)| {
            let circuits = inner.sources.circuits(rung)?;
            let configured = inner.sources.rungs().contains(&rung);
            let up = inner.sources.gate(rung, now) == Gate::Pass;
            configured.then(|| (source, up, circuits.transitions()))
        });
        let sources = sources.collect();
        let protected = inner.evidence().held(now).len();
        let gauges = {
            let cache = inner.cache();
            Gauges {
                hits: cache.hits(),
                sources,
                protected,
                entries: cache.len(),
                bytes: cache.bytes(),
                watches: inner.followers.watches(),
                empty: inner.followers.empty(),
                ignored_replies: inner.sources.strangers(),
                panics: task::panics(),
            }
        };
        Metrics::new(&inner.counters, &gauges)
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
        let (sections, answer) = zone::answer(self, &asked, Runs::Apart, None, usize::MAX).await;
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

    /// How long what was found at a name may be given without asking here again. `answer`:
    /// what was found; `None`: that there is nothing.
    pub(crate) fn hold(&self, name: &ConsulName, answer: Option<&Answer>) -> Option<Term> {
        let name = self.complete(Cow::Borrowed(name)).ok()?;
        let held = answer.map(|answer| &answer.held);
        self.0.cache().hold(name.key(), held)
    }

    /// Whether anything is known of a name, old or new, or will be, since it is being asked for.
    pub(crate) fn knows_of(&self, name: &ConsulName) -> bool {
        let Ok(name) = self.complete(Cow::Borrowed(name)) else {
            return false;
        };
        !matches!(self.0.look(&name), Look::Unknown) || self.0.flights.is_airborne(&name)
    }

    /// What is known of a name, without asking anybody, for whoever gives it.
    pub(crate) fn known(&self, name: &ConsulName) -> Option<Answer> {
        let name = self.complete(Cow::Borrowed(name)).ok()?;
        match self.0.look(&name) {
            Look::Fresh(held, age, _) => Some(fresh(held, age)),
            Look::Stale(held, age, _) => {
                self.0.counters.gave_stale(held.source, 1);
                Some(self.0.stale(held, age))
            }
            Look::Nothing | Look::Unknown => None,
        }
    }

    /// Whoever [holds](Self::hold) something of this one looks into another one from now on.
    pub(crate) fn is_replaced(&self) {
        self.0.cache().end();
    }

    /// A name was given so often by whoever [holds](Self::hold) it.
    pub(crate) fn served(&self, name: &ConsulName, given: Hits) {
        let Ok(name) = self.complete(Cow::Borrowed(name)) else {
            return;
        };
        let source = self.0.cache().served(name.key(), given);
        if let Some(source) = source.filter(|_| given.stale > 0) {
            self.0.counters.gave_stale(source, given.stale);
        }
    }

    /// Bytes that the cache may use.
    pub(crate) fn cache_bytes(&self) -> usize {
        self.0.config.cache.bytes
    }

    /// How Consul's own DNS interface is set, as far as that is known.
    pub(crate) fn dns_settings(&self) -> Arc<DnsSettings> {
        self.0.sources.manners()
    }

    /// Fills in the configured datacenter, namespace and partition.
    pub(crate) fn complete<'a>(
        &self,
        name: Cow<'a, ConsulName>,
    ) -> Result<Cow<'a, ConsulName>, Error> {
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
    /// What is known of a name, where nobody has to be asked for it.
    fn cached(self: &Arc<Self>, name: &ConsulName, wish: Wish) -> Option<Result<Answer, Error>> {
        match self.look(name) {
            Look::Fresh(held, age, rest) if wish.takes(age, true) => {
                self.renew(name, rest);
                Some(Ok(fresh(held, age)))
            }
            Look::Stale(held, age, rest @ (Rest::Resting | Rest::Aside))
                if wish.takes(age, false) =>
            {
                self.renew(name, rest);
                Some(Ok(self.stale(held, age)))
            }
            Look::Nothing => Some(Err(self.not_found(name, Vec::new()))),
            // Whoever says how old an answer may be wants somebody to be asked.
            Look::Unknown if wish == Wish::default() => self.failed_lately(name).map(Err),
            Look::Fresh(..) | Look::Stale(..) | Look::Unknown => None,
        }
    }

    /// What nobody could tell of a name a moment ago. A source that is due for a probe is asked
    /// all the same.
    fn failed_lately(&self, name: &ConsulName) -> Option<Error> {
        let now = clock::lately();
        let state = self.state();
        let error = self.failures().recall(name.key(), state, now)?;
        let mut rungs = self.sources.rungs().iter();
        let is_probed = rungs.any(|&rung| self.sources.is_probe_due(rung, clock::now()));
        (!is_probed).then_some(error)
    }

    /// Nobody could tell what is behind a name of which nothing is known.
    /// `state`: what the sources were when they were asked.
    fn fails(&self, name: &ConsulName, error: &Error, state: failures::State) {
        let now = clock::lately();
        self.failures().remember(name.key(), error, state, now);
    }

    /// What failures are compared by.
    fn state(&self) -> failures::State {
        let rungs = self.sources.rungs().iter();
        let circuits = rungs.filter_map(|&rung| self.sources.circuits(rung));
        failures::State {
            transitions: circuits.map(Circuits::transitions).sum(),
            sets: self.sets.load(Ordering::Relaxed),
        }
    }

    fn failures(&self) -> MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a name that was given, where that is due.
    fn renew(self: &Arc<Self>, name: &ConsulName, rest: Rest) {
        if rest != Rest::Aside {
            return;
        }
        let now = clock::now();
        // What is known is given outside of a runtime too.
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let renews = self.cache().renews(name.key(), now, now + climb::REST);
        if renews && self.process.check().is_ok() {
            let (inner, name) = (Arc::clone(self), name.clone());
            // Ends within the time limit of a look-up.
            runtime.spawn(async move { inner.fly(&name, Runs::Here, None, || None).await });
        }
    }

    fn not_found(&self, name: &ConsulName, attempts: Vec<Attempt>) -> Error {
        let instead = self.sources.instead_of_consul();
        told::not_found(name, &self.config.domain, instead, attempts)
    }

    fn look(&self, name: &ConsulName) -> Look {
        self.cache().look(name.key(), clock::lately())
    }

    /// A set of before, marked.
    fn stale(&self, held: Arc<Held>, age: Duration) -> Answer {
        let protected = self.evidence().reason(&held.key);
        Answer {
            freshness: Freshness::Stale,
            protected,
            ..fresh(held, age)
        }
    }

    /// One more name that was known is hidden from us: after a few nobody waits who has something
    /// stale.
    fn denied(&self, now: Instant) {
        if self.waits().denied(now) {
            self.in_vain.notify_waiters();
        }
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn evidence(&self) -> MutexGuard<'_, Evidence> {
        self.evidence.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fresh(held: Arc<Held>, age: Duration) -> Answer {
    Answer {
        held,
        age,
        freshness: Freshness::Fresh,
        protected: None,
        attempts: None,
    }
}
