//! **Door.** The climb of one question: the [`ladder`](crate::ladder) says what to
//! do, the sources do it, cache and [`evidence`](crate::evidence) take in what came
//! of it.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use compact_str::CompactString;
use tokio::{sync::Semaphore, time::timeout_at};
use tracing::{debug, warn};

use super::{Inner, follow::POLL, fresh, told};
use crate::{
    air::Air,
    cache::{Before, Look, stale::PATIENCE},
    catalog,
    circuit::{Gate, Mode},
    clock,
    consul::api::Api,
    endpoint::{Answer, Attempt, Source, Transport},
    error::{Error, ErrorKind},
    evidence::{Belief, Canary, Others, WINDOW, Word},
    found::{Found, Held, Host},
    ladder::{Heard, Ladder, Nothing, Rung, Start, Step},
    name::{ConsulName, Domain, Subject},
    protection::Reason,
    records,
    source::{Finding, Question},
};

/// Names in Consul's zone that stand for others in it are followed this far, as
/// Consul does.
const DEEPEST: u8 = 3;

/// After a refresh in vain a stale set is given for so long before the sources are
/// asked again.
/// With the time between two probes this stays below a second, and below twice as
/// many questions as a source that is well is asked.
pub(super) const REST: Duration = Duration::from_millis(500);

/// This part of a look-up's time is kept for what comes after the sources.
const SPARE: u32 = 8;

/// Names in Consul's zone that stand in one set and are asked for at the same time: a set of
/// thousands is not to be a flood.
const HOSTS_AT_ONCE: usize = 64;

/// The canary is to answer within this.
const CANARY: Duration = Duration::from_millis(150);

/// What a question came to.
#[derive(Clone, Debug)]
pub(super) enum Landed {
    Found(Answer),
    /// There is no such name, and that is believed.
    Nothing(Error),
    /// No source answered, or what they say is not believed: what was known before
    /// stays.
    Kept(Error),
}

impl Landed {
    /// What another question has left in the cache.
    pub(super) fn of(known: Result<Answer, Error>) -> Self {
        match known {
            Ok(answer) => Self::Found(answer),
            Err(error) => Self::Nothing(error),
        }
    }

    fn attempts(&self) -> &[Attempt] {
        match self {
            Self::Found(answer) => answer.attempts(),
            Self::Nothing(error) | Self::Kept(error) => error.attempts(),
        }
    }

    fn into_result(self) -> Result<Answer, Error> {
        match self {
            Self::Found(answer) => Ok(answer),
            Self::Nothing(error) | Self::Kept(error) => Err(error),
        }
    }
}

impl Inner {
    /// Climbs the ladder and keeps what was found. `by`: when what is written down on this
    /// machine is asked, whatever the sources are doing.
    pub(super) async fn find(
        self: &Arc<Self>,
        name: &ConsulName,
        deadline: Instant,
        by: Option<Instant>,
        depth: u8,
    ) -> Landed {
        let fqdn = name.fqdn(&self.config.domain);
        if let Subject::Address(address) = name.subject() {
            return Landed::Found(decoded(&fqdn, *address));
        }
        if self.sources.rungs().is_empty() {
            let message = "no source is configured: give an agent's address (--dns, --http) or a \
                           static catalog (--catalog)";
            return Landed::Kept(Error::new(ErrorKind::Invalid, message));
        }
        let start = clock::now();
        // The sources do not get all of it: the error is to be there in time.
        let until = deadline - deadline.saturating_duration_since(start) / SPARE;
        let question = Question { name, fqdn: &fqdn };
        let known = self.knows(name);
        let is_written_down = !known && self.sources.rungs().contains(&Rung::Static);
        let until = by
            .filter(|_| is_written_down)
            .map_or(until, |by| by.min(until));
        let mut attempts = Vec::new();
        let rungs = self.open_rungs(name, start, &mut attempts);
        let mut ladder = Ladder::start(Start {
            rungs: &rungs,
            shut: !attempts.is_empty(),
            known,
            hedge: self.sources.hedge(start),
            deadline: until,
            end: deadline,
        });
        let (mut air, mut now) = (Air::default(), start);
        let landed = loop {
            match ladder.step(now) {
                Step::Ask(rung, limit) => {
                    air.ask(rung, self.sources.look_up(rung, question, limit), now);
                }
                Step::Wait(until) => {
                    let first = air.hear(until).await;
                    now = clock::now();
                    if let Some((rung, _, (mut heard, mut made))) = first {
                        if let Heard::Nothing(nothing) = &heard
                            && !known
                            && self.may_see_nothing(rung, name, nothing)
                            && Box::pin(self.sees_nothing(rung)).await
                        {
                            heard = Heard::Denied;
                            told::mark_unseen(made.last_mut());
                        }
                        match attempts.is_empty() {
                            true => attempts = made,
                            false => attempts.extend(made),
                        }
                        ladder.hear(rung, heard);
                    }
                }
                Step::Give(finding) => {
                    attempts.extend(self.sources.unheard(&air.leave(), until));
                    if let Some(first) = attempts.first()
                        && first.source != finding.source
                    {
                        self.counters.fell(first.source, finding.source);
                    }
                    let addresses = Box::pin(self.addresses(&finding.found, deadline, depth));
                    let addresses = addresses.await;
                    let answer = self.keep(question, *finding, addresses);
                    break Landed::Found(Answer {
                        attempts: Some(attempts.into()),
                        ..answer
                    });
                }
                Step::Nothing(rung, nothing) => {
                    attempts.extend(self.sources.unheard(&air.leave(), until));
                    let denied = ladder.was_denied();
                    let said = Said {
                        rung,
                        nothing,
                        denied,
                        known,
                    };
                    // In a box, as all that is seldom waited for: no look-up is to carry its room.
                    break Box::pin(self.weigh(question, &said, attempts)).await;
                }
                Step::GiveUp(kind) => {
                    attempts.extend(self.sources.unheard(&air.leave(), until));
                    break Landed::Kept(told::failed(kind, &fqdn, attempts));
                }
            }
        };
        let now = clock::now();
        if now.saturating_duration_since(start) < PATIENCE && !matches!(landed, Landed::Kept(_)) {
            *self.slow() = None;
        }
        for attempt in landed.attempts() {
            self.counters.attempted(attempt.source, attempt.outcome);
        }
        if let Landed::Kept(_) = landed {
            self.cache().rest(name.key(), now + REST);
        }
        debug!(name = %fqdn, elapsed = ?now.saturating_duration_since(start), ok = matches!(landed, Landed::Found(_)), "looked up");
        landed
    }

    /// The rungs that may be asked. Of the others one step each is told, and those
    /// that are due are probed with this question, which nobody waits for.
    fn open_rungs(
        self: &Arc<Self>,
        name: &ConsulName,
        now: Instant,
        attempts: &mut Vec<Attempt>,
    ) -> Vec<Rung> {
        let mut open = Vec::new();
        for &rung in self.sources.rungs() {
            if self.sources.is_probe_due(rung, now) {
                let (inner, name) = (Arc::clone(self), name.clone());
                // Ends within the time limit of a look-up.
                tokio::spawn(async move { inner.probe(&name, rung).await });
            }
            match self.sources.gate(rung, now) {
                Gate::Pass => open.push(rung),
                Gate::Probe | Gate::Shut(_) => attempts.extend(self.sources.skipped(rung, now)),
            }
        }
        open
    }

    /// Asks a rung that is left alone whether it is back. What it knows is kept.
    async fn probe(self: &Arc<Self>, name: &ConsulName, rung: Rung) {
        let fqdn = name.fqdn(&self.config.domain);
        let question = Question { name, fqdn: &fqdn };
        let deadline = clock::now() + self.config.timeout;
        let (heard, _) = self
            .sources
            .ask(rung, question, Mode::Probe, deadline)
            .await;
        if let Heard::Whole(finding) = heard {
            *self.slow() = None;
            let addresses = self.addresses(&finding.found, deadline, 0).await;
            self.keep(question, *finding, addresses);
        }
    }

    /// Keeps a set that a source gave.
    fn keep(
        self: &Arc<Self>,
        question: Question<'_>,
        finding: Finding,
        addresses: Addresses,
    ) -> Answer {
        let held = Arc::new(self.settle(question, finding, addresses));
        let key = question.name.key();
        let (asked, was) = {
            let mut cache = self.cache();
            let asked = cache.take_asked(key);
            (asked, cache.put(Arc::clone(&held), clock::now()))
        };
        self.follow_if_hot(question.name, asked);
        self.kept(question.name, &held, was);
        fresh(held, Duration::ZERO)
    }

    /// Keeps a set that is followed: it is known since then, and holds until then.
    pub(super) async fn keep_followed(
        self: &Arc<Self>,
        question: Question<'_>,
        finding: Finding,
        (since, until): (Instant, Instant),
    ) -> Arc<Held> {
        let deadline = clock::now() + self.config.timeout;
        let addresses = self.addresses(&finding.found, deadline, 0).await;
        let held = Arc::new(self.settle(question, finding, addresses));
        let was = {
            let mut cache = self.cache();
            cache.put_until(Arc::clone(&held), since, until)
        };
        self.kept(question.name, &held, was);
        held
    }

    /// Whether Consul itself gave a set of that name before.
    pub(super) fn knows(&self, name: &ConsulName) -> bool {
        match self.look(name) {
            // The operator's own list is no word of Consul's, and still there.
            Look::Fresh(held, ..) | Look::Stale(held, ..) => held.source != Source::Static,
            Look::Nothing | Look::Unknown => false,
        }
    }

    /// What else is to know of a set that was kept.
    fn kept(self: &Arc<Self>, name: &ConsulName, held: &Arc<Held>, was: Option<Before>) {
        let new = was.is_none();
        // Without the cache's lock: there may be thousands of them.
        let same = match was {
            Some(was) if records::same_members(&was.held.endpoints, &held.endpoints) => {
                was.renewed();
                true
            }
            Some(_) => {
                (self.counters.membership_changes).fetch_add(1, Ordering::Relaxed);
                false
            }
            None => false,
        };
        self.evidence().found(name.key());
        self.will_save(!same);
        if !new && held.source != Source::Static {
            self.meet_canary(name);
        }
    }

    /// A source says that there is no such name: what is made of that.
    pub(super) async fn weigh(
        self: &Arc<Self>,
        question: Question<'_>,
        said: &Said,
        attempts: Vec<Attempt>,
    ) -> Landed {
        let Question { name, fqdn } = question;
        let place = name.locality().datacenter.as_deref().unwrap_or_default();
        // Who lost sight of what is known says nothing of what is not.
        let now = clock::now();
        let (blind, asks, lately) = {
            let mut evidence = self.evidence();
            let wants = said.known && evidence.wants_canary(&said.nothing);
            let blind = evidence.is_blinded(now) && said.rung != Rung::Static;
            let asks = wants || blind;
            let lately = || evidence.canary_lately(said.rung, place, now);
            (blind, asks, asks.then(lately).flatten())
        };
        let canary = match (asks, lately) {
            (false, _) => Canary::Silent,
            (true, Some(canary)) => canary,
            (true, None) => self.ask_canary(said.rung, place).await,
        };
        let now = clock::now();
        let belief = match (said.known, blind) {
            (true, _) => {
                let (known, trickled) = {
                    let cache = self.cache();
                    (
                        cache.sets_held(),
                        cache.shrank_within(name.key(), WINDOW, now),
                    )
                };
                let word = Word {
                    key: name.key(),
                    place,
                    by: said.rung,
                    nothing: &said.nothing,
                    denied: said.denied,
                    canary,
                    trickled,
                    known,
                    others: None,
                };
                let first = self.evidence().judge(word, now);
                match first {
                    Belief::AskOthers(most) => {
                        let asking = Box::pin(self.ask_others(said.rung, name, most));
                        let others = Some(asking.await);
                        self.evidence().judge(Word { others, ..word }, clock::now())
                    }
                    belief => belief,
                }
            }
            (false, true) if canary != Canary::There => Belief::Held(Reason::NoCanary),
            (false, _) => Belief::Gone,
        };
        match belief {
            Belief::Gone | Belief::AskOthers(_) => {
                self.cache().put_nothing(name.key(), said.nothing.ttl, now);
                Landed::Nothing(told::not_found(name, &self.config.domain, attempts))
            }
            Belief::Held(reason) => {
                warn!(name = fqdn, %reason, "said to be gone, and not believed");
                Landed::Kept(told::held(fqdn, reason, attempts))
            }
        }
    }

    /// Whether an agent that says "there is nothing" may show nothing at all: until Consul's
    /// own service, which is always there, was seen once.
    fn may_see_nothing(&self, rung: Rung, name: &ConsulName, nothing: &Nothing) -> bool {
        // Another datacenter need not be there itself.
        let place = name.locality().datacenter.as_deref();
        if rung == Rung::Static || (place.is_some() && place != self.config.datacenter.as_deref()) {
            return false;
        }
        // That of the agent's own, which is there whatever datacenter is configured.
        let evidence = self.evidence();
        evidence.wants_canary(nothing) && !evidence.knows_canary("")
    }

    /// Whether an agent shows nothing at all, not even Consul's own service.
    async fn sees_nothing(&self, rung: Rung) -> bool {
        if self.ask_canary(rung, "").await != Canary::Gone {
            return false;
        }
        // DNS has other rights, and HTTP is asked next. A token of ours may see a few services
        // and not Consul's own.
        let api = Api::new(Arc::clone(self.sources.agent()), CANARY, Box::default());
        let sees_any = Box::pin(catalog::sees_any(&api));
        rung == Rung::Dns || !sees_any.await.unwrap_or(true)
    }

    /// Asks for Consul's own service once a place, to know later whether it can be
    /// seen at all.
    fn meet_canary(self: &Arc<Self>, name: &ConsulName) {
        let place = name.locality().datacenter.clone().unwrap_or_default();
        if !self.evidence().meets_canary(&place) {
            return;
        }
        let inner = Arc::clone(self);
        // Bounded by the canary's own limit.
        tokio::spawn(async move {
            for &rung in inner.sources.rungs() {
                if rung != Rung::Static && inner.ask_canary(rung, &place).await == Canary::There {
                    break;
                }
            }
        });
    }

    /// Asks for others that are known, and for the name itself once more: does it go
    /// while they stay?
    async fn ask_others(self: &Arc<Self>, rung: Rung, name: &ConsulName, most: usize) -> Others {
        let names = self.cache().others(name.key(), most, WINDOW, clock::now());
        let others =
            (names.iter()).filter_map(|fqdn| ConsulName::parse(fqdn, &self.config.domain).ok());
        let mut asked = tokio::task::JoinSet::new();
        for (other, is_it) in others
            .map(|other| (other, false))
            .chain([(name.clone(), true)])
        {
            let inner = Arc::clone(self);
            asked.spawn(async move {
                let fqdn = other.fqdn(&inner.config.domain);
                let question = Question {
                    name: &other,
                    fqdn: &fqdn,
                };
                let limit = clock::now() + CANARY;
                let (heard, _) = inner.sources.ask(rung, question, Mode::Ask, limit).await;
                (is_it, heard)
            });
        }
        let mut others = Others::default();
        while let Some(one) = asked.join_next().await {
            let gone = match one {
                Ok((true, Heard::Whole(_) | Heard::Partial(_))) => {
                    others.back = true;
                    continue;
                }
                Ok((false, Heard::Whole(_) | Heard::Partial(_))) => false,
                Ok((false, Heard::Nothing(_) | Heard::Denied)) => true,
                Ok((true, _)) => continue,
                Ok((false, Heard::Failed | Heard::TimedOut)) | Err(_) => {
                    others.silent += 1;
                    continue;
                }
            };
            others.asked += 1;
            others.gone += usize::from(gone);
        }
        others
    }

    async fn ask_canary(&self, rung: Rung, place: &str) -> Canary {
        let Ok(mut name) = ConsulName::service("consul") else {
            return Canary::Silent;
        };
        if !place.is_empty() {
            let Ok(there) = name.with_datacenter(place) else {
                return Canary::Silent;
            };
            name = there;
        }
        let fqdn = name.fqdn(&self.config.domain);
        let question = Question {
            name: &name,
            fqdn: &fqdn,
        };
        let limit = clock::now() + CANARY;
        // In a box, as that is seldom: no look-up is to carry its room.
        let asking = Box::pin(self.sources.ask(rung, question, Mode::Ask, limit));
        let (heard, _) = asking.await;
        let canary = match heard {
            Heard::Whole(_) | Heard::Partial(_) => Canary::There,
            Heard::Nothing(_) | Heard::Denied => Canary::Gone,
            Heard::Failed | Heard::TimedOut => Canary::Silent,
        };
        self.evidence().canary(rung, place, canary, clock::now());
        canary
    }

    /// Writes the addresses of host names into a set, and makes endpoints of it.
    fn settle(&self, question: Question<'_>, finding: Finding, addresses: Addresses) -> Held {
        let Finding {
            mut found,
            source,
            transport,
            ttl,
            doubt,
            unconfirmed,
        } = finding;
        let Question { name, fqdn } = question;
        let mut warnings: Vec<Box<str>> = doubt.into_iter().collect();
        for (host, told) in addresses {
            match told {
                Ok(addresses) => {
                    records::resolve(&mut found, &host, &addresses, self.sources.zones())
                }
                Err(why) => warnings.push(format!("{host} has no address: {why}").into()),
            }
        }
        let complete = warnings.is_empty();
        let most = match unconfirmed {
            Some(_) => self.config.cache.cap.min(POLL),
            None => self.config.cache.cap,
        };
        warnings.extend(unconfirmed);
        for warning in &warnings {
            warn!(name = fqdn, %warning, complete, "answer with a doubt");
        }
        let endpoints = records::endpoints(&found, fqdn);
        // One with its high bit set is taken as very long (RFC 8767, section 4), and never
        // handed on: a client may take it as zero (RFC 2181, section 8).
        let ttl = ttl.unwrap_or_else(|| self.ttl_before(name));
        let ttl = ttl.min(most);
        let warnings = warnings.into();
        Held {
            key: name.key().into(),
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

    /// The TTL that a name had when a source last said one; Consul's default is 0.
    fn ttl_before(&self, name: &ConsulName) -> Duration {
        match self.look(name) {
            Look::Fresh(held, ..) | Look::Stale(held, ..) => held.ttl,
            Look::Nothing | Look::Unknown => Duration::ZERO,
        }
    }

    /// The addresses of the host names in a set. Those that the deadline comes before have
    /// none.
    async fn addresses(self: &Arc<Self>, found: &Found, deadline: Instant, depth: u8) -> Addresses {
        let lost = || Err("its look-up was ended from outside".to_owned());
        let names = records::unresolved(found).map(|name| (Arc::clone(name), lost()));
        let mut all: Addresses = names.collect();
        let mut asked = tokio::task::JoinSet::new();
        // One for each set: who stands for another waits for that one's.
        let seats = Arc::new(Semaphore::new(HOSTS_AT_ONCE));
        for name in all.keys().cloned() {
            let (inner, seats) = (Arc::clone(self), Arc::clone(&seats));
            asked.spawn(async move {
                let found = inner.address(&name, &seats, deadline, depth).await;
                (name, found)
            });
        }
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
        seats: &Semaphore,
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
        let seat = timeout_at(deadline.into(), seats.acquire()).await;
        let Ok(Ok(_seat)) = seat else {
            return Err("too many others of the same set were asked for first".to_owned());
        };
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
        Box::pin(async move { self.find(&name, deadline, None, depth).await.into_result() })
    }
}

/// That there is no such name, who says so, and against what.
pub(super) struct Said {
    pub(super) rung: Rung,
    pub(super) nothing: Nothing,
    /// Another source said that we may not know.
    pub(super) denied: bool,
    /// There was a set before.
    pub(super) known: bool,
}

/// What host names lead to, or why they lead nowhere.
type Addresses = BTreeMap<Arc<str>, Result<Vec<IpAddr>, String>>;

/// An address that is written in the name: nobody has to be asked.
fn decoded(fqdn: &str, address: IpAddr) -> Answer {
    let found = Found::Host(Host {
        addresses: vec![address],
        ..Host::default()
    });
    let held = Held {
        key: CompactString::default(),
        name: fqdn.into(),
        endpoints: records::endpoints(&found, fqdn),
        found,
        source: Source::Static,
        transport: Transport::File,
        ttl: Duration::ZERO,
        complete: true,
        warnings: Box::default(),
    };
    fresh(Arc::new(held), Duration::ZERO)
}
