//! **Door.** The climb of one question: the [`ladder`](crate::ladder) says what to
//! do, the sources do it, the cache takes in what came of it. What is said to be gone is
//! [weighed](super::weigh).

use std::{
    collections::BTreeMap,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use compact_str::CompactString;
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use super::{
    Inner,
    follow::POLL,
    fresh, told,
    weigh::{Patience, Said},
};
use crate::{
    air::Air,
    cache::{Look, Was, stale::PATIENCE},
    circuit::{Gate, Mode},
    clock,
    endpoint::{Answer, Attempt, Source, Transport},
    error::{Error, ErrorKind},
    found::{Found, Held, Host},
    ladder::{Heard, Ladder, Rung, Start, Step},
    name::{ConsulName, Domain, Subject},
    protection::Reason,
    records,
    source::{Finding, Question},
    task::{self, Owned},
};

/// Names in Consul's zone that stand for others in it are followed this far, as
/// Consul does.
const DEEPEST: u8 = 3;

/// After a refresh in vain a stale set is given for so long before the sources are
/// asked again.
/// With the time between two probes this stays below a second, and below twice as
/// many questions as a source that is well is asked.
pub(super) const REST: Duration = Duration::from_millis(500);

/// The same of what is held because many vanished with it: all of them are asked for again, of
/// each source, by whoever asks.
const REST_OF_MANY: Duration = Duration::from_secs(2);

/// This part of a look-up's time is kept for what comes after the sources.
const SPARE: u32 = 15;

/// Names in Consul's zone that stand in one set and are asked for at the same time: a set of
/// thousands is not to be a flood.
const HOSTS_AT_ONCE: usize = 64;

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
            Err(error) if error.is_not_found() => Self::Nothing(error),
            Err(error) => Self::Kept(error),
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
    /// Climbs the ladder from `start` on and keeps what was found. `by`: when what is written
    /// down on this machine is asked, whatever the sources are doing.
    pub(super) async fn find(
        self: &Arc<Self>,
        name: &ConsulName,
        (start, deadline): (Instant, Instant),
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
        // The sources do not get all of it: the error is to be there in time.
        let fair = deadline - deadline.saturating_duration_since(start) / SPARE;
        let question = Question { name, fqdn: &fqdn };
        let known = self.knows(name);
        let is_written_down = !known && self.sources.rungs().contains(&Rung::Static);
        let until = by
            .filter(|_| is_written_down)
            .map_or(fair, |by| by.min(fair));
        let state = self.state();
        let mut attempts = Vec::new();
        let (rungs, mut overdue) = self.open_rungs(name, start, &mut attempts);
        let mut ladder = Ladder::start(Start {
            rungs: &rungs,
            overdue: &overdue,
            shut: !attempts.is_empty(),
            known,
            hedge: self.sources.hedge(start),
            deadline: until,
            end: deadline,
        });
        let (mut air, mut now) = (Air::default(), start);
        let (mut asked, mut took) = (Vec::new(), Duration::ZERO);
        let since = |asked: &[(Rung, Instant)], rung| {
            let last = asked.iter().rfind(|(one, _)| *one == rung);
            last.map_or(start, |(_, when)| *when)
        };
        let landed = loop {
            match ladder.step(now) {
                Step::Ask(rung, limit) => {
                    let mode = match overdue.iter().position(|left| *left == rung) {
                        Some(at) => {
                            overdue.remove(at);
                            // This one may take its time.
                            if self.sources.is_probed_apart(rung, name) {
                                self.probe_beside(name, rung, now);
                            }
                            Mode::Try
                        }
                        None => Mode::Ask,
                    };
                    asked.push((rung, now));
                    match rung {
                        Rung::Http => air.ask(rung, self.look_up_apart(name, mode, limit), now),
                        _ => air.ask(rung, self.sources.ask(rung, question, mode, limit), now),
                    }
                }
                Step::Wait(moment) => {
                    let first = air.hear(moment).await;
                    now = clock::now();
                    if let Some((rung, since, (mut heard, mut made))) = first {
                        if let Heard::Nothing(nothing) = &heard {
                            took = now.saturating_duration_since(since);
                            if !known
                                && self.may_see_nothing(rung, name, nothing)
                                && Box::pin(self.is_blind(rung, until)).await
                            {
                                heard = Heard::Denied;
                                told::mark_unseen(made.last_mut());
                            }
                        }
                        match attempts.is_empty() {
                            true => attempts = made,
                            false => attempts.extend(made),
                        }
                        ladder.hear(rung, heard);
                    } else if self.sources.hedge_enough() {
                        ladder.hedge_later();
                    }
                }
                Step::Give(finding) => {
                    self.heard_of(name, finding.source != Source::Static);
                    attempts.extend(self.sources.unheard(&air.leave(), until));
                    if let Some(first) = attempts.first()
                        && first.source != finding.source
                    {
                        self.counters.fell(first.source, finding.source);
                    }
                    let addresses = Box::pin(self.addresses(&finding.found, deadline, depth));
                    let addresses = addresses.await;
                    let since = since(&asked, Rung::of(finding.source));
                    break self.keep(question, *finding, addresses, since, attempts);
                }
                Step::Nothing(rung, nothing) => {
                    self.heard_of(name, rung != Rung::Static);
                    attempts.extend(self.sources.unheard(&air.leave(), until));
                    let denied = ladder.was_denied();
                    let said = Said {
                        rung,
                        nothing,
                        denied,
                        known,
                        asked: Some(since(&asked, rung)),
                        patience: Patience { took, until },
                    };
                    // In a box, as all that is seldom waited for: no look-up is to carry its room.
                    break Box::pin(self.weigh(question, &said, attempts)).await;
                }
                Step::GiveUp(kind) => {
                    self.in_vain(name);
                    attempts.extend(self.sources.unheard(&air.leave(), until));
                    break Landed::Kept(told::failed(kind, &fqdn, attempts));
                }
            }
        };
        // Others were enough; they are due all the same.
        for rung in overdue {
            self.probe_beside(name, rung, now);
        }
        let now = clock::now();
        if now.saturating_duration_since(start) < PATIENCE && !matches!(landed, Landed::Kept(_)) {
            self.waits().heard();
        }
        for attempt in landed.attempts() {
            self.counters.attempted(attempt.source, attempt.outcome);
        }
        if let Landed::Kept(error) = &landed {
            // Who had less time than others, and needed it, says nothing for them.
            if !known && depth == 0 && (until == fair || now < until) {
                self.fails(name, error, state);
            }
            let rest = match self.evidence().reason(name.key()) {
                Some(Reason::Mass) => REST_OF_MANY,
                _ => REST,
            };
            let is_first = self.cache().rest(name.key(), now, now + rest);
            let is_denied = error.kind() == ErrorKind::Denied && self.sources.is_near(name);
            if known && is_first && is_denied {
                self.denied(now);
            }
        }
        debug!(name = %fqdn, elapsed = ?now.saturating_duration_since(start), ok = matches!(landed, Landed::Found(_)), "looked up");
        landed
    }

    /// Asks the HTTP API in a task of its own, which ends with whoever waits for it: what it
    /// tells may be megabytes, and others run where this look-up does.
    fn look_up_apart(
        self: &Arc<Self>,
        name: &ConsulName,
        mode: Mode,
        limit: Instant,
    ) -> impl Future<Output = (Heard<Box<Finding>>, Vec<Attempt>)> + use<> {
        let (inner, name) = (Arc::clone(self), name.clone());
        let asked = tokio::spawn(task::outcome(async move {
            let fqdn = name.fqdn(&inner.config.domain);
            let question = Question {
                name: &name,
                fqdn: &fqdn,
            };
            (inner.sources.look_up_over_http(question, mode, limit)).await
        }));
        let asking = Owned(asked.abort_handle());
        async move {
            let told = asked.await;
            drop(asking);
            // It panicked, or its runtime ends.
            told.ok().flatten().unwrap_or((Heard::Failed, Vec::new()))
        }
    }

    /// The rungs that may be asked, and those whose probe is overdue. Of the others one step
    /// each is told, and those that are due are probed beside.
    fn open_rungs(
        self: &Arc<Self>,
        name: &ConsulName,
        now: Instant,
        attempts: &mut Vec<Attempt>,
    ) -> (Vec<Rung>, Vec<Rung>) {
        let (mut open, mut overdue) = (Vec::new(), Vec::new());
        for &rung in self.sources.rungs() {
            match self.sources.gate(rung, now) {
                Gate::Pass => open.push(rung),
                Gate::Overdue | Gate::Awaited => {
                    overdue.push(rung);
                    continue;
                }
                Gate::Probe | Gate::Shut(_) => attempts.extend(self.sources.skipped(rung, now)),
            }
            self.probe_beside(name, rung, now);
        }
        (open, overdue)
    }

    /// Keeps a set that a source gave who was asked then. What whoever follows the name was told
    /// since stays, and is given.
    pub(super) fn keep(
        self: &Arc<Self>,
        question: Question<'_>,
        finding: Finding,
        addresses: Addresses,
        asked: Instant,
        attempts: Vec<Attempt>,
    ) -> Landed {
        let held = Arc::new(self.settle(question, finding, addresses));
        let key = question.name.key();
        let (hits, was) = {
            let mut cache = self.cache();
            let now = clock::now();
            if let Some(told) = cache.told_since(key, asked, now) {
                drop(cache);
                return self.landed(question.name, told, attempts);
            }
            let hits = cache.take_asked(key);
            (hits, cache.put(Arc::clone(&held), now))
        };
        self.follow_if_hot(question.name, hits);
        self.kept(question.name, &held, was);
        found(held, Duration::ZERO, attempts)
    }

    /// What is known of a name, in the place of what came too late.
    pub(super) fn landed(&self, name: &ConsulName, told: Look, attempts: Vec<Attempt>) -> Landed {
        match told {
            Look::Fresh(held, age, _) | Look::Stale(held, age, _) => {
                self.evidence().found(name.key());
                found(held, age, attempts)
            }
            Look::Nothing | Look::Unknown => Landed::Nothing(self.not_found(name, attempts)),
        }
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
            cache.put_followed(Arc::clone(&held), since, until, clock::now())
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
    fn kept(self: &Arc<Self>, name: &ConsulName, held: &Arc<Held>, was: Was) {
        // Without the cache's lock: there may be thousands of them.
        let same = match was {
            Was::Set(was) if records::same_members(&was.held.endpoints, &held.endpoints) => {
                let again = was.held.source != Source::Snapshot;
                was.renewed();
                again
            }
            Was::Set(_) | Was::Nothing => {
                self.counters.membership_changed();
                false
            }
            Was::Unknown => false,
        };
        self.evidence().found(name.key());
        self.will_save(!same);
        if held.source != Source::Static {
            self.sets.fetch_add(1, Ordering::Relaxed);
            self.meet_canary(name);
        }
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
        // The catalog cuts nothing: what it leaves out is gone, or not to be seen.
        let is_part = source == Source::Dns && doubt.is_some();
        let mut warnings: Vec<Box<str>> = doubt.into_iter().collect();
        let mut carried = None;
        for (host, told) in addresses {
            let addresses = match told {
                Ok(addresses) => addresses,
                Err(Lost::Gone(why)) => {
                    warnings.push(format!("{host} has no address: {why}").into());
                    continue;
                }
                Err(Lost::Unheard(why)) => {
                    let before = self.addresses_before(name, &host);
                    let addresses = match &before {
                        None => "no address",
                        Some(_) => "the addresses of before",
                    };
                    warnings.push(format!("{host} has {addresses}: {why}").into());
                    let (before, since) = before.unzip();
                    carried = since.or(carried);
                    before.unwrap_or_default()
                }
            };
            records::resolve(&mut found, &host, &addresses, self.sources.zones());
        }
        if is_part && let Some((count, since)) = self.members_before(name, &mut found) {
            warnings.push(format!("{count} of before, which it does not name, are kept").into());
            carried = Some(carried.map_or(since, |carried: Instant| carried.min(since)));
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
            part: is_part,
            carried,
            warnings,
        }
    }

    /// Adds what a part of a set does not name and the whole one did: a part deletes nothing.
    /// Gives how many these are, and since when nobody tells them: they are kept for no longer
    /// than a stale set.
    fn members_before(&self, name: &ConsulName, found: &mut Found) -> Option<(usize, Instant)> {
        let (held, since) = self.set_before(name)?;
        // What was a part itself, of nobody knows what, is no better.
        if !held.complete && held.carried.is_none() {
            return None;
        }
        let count = found.add_missing(&held.found);
        (count > 0).then_some((count, since))
    }

    /// The addresses that a host name had in the set that is known, and since when nobody tells
    /// them anew.
    fn addresses_before(&self, name: &ConsulName, host: &str) -> Option<(Vec<IpAddr>, Instant)> {
        let (held, since) = self.set_before(name)?;
        let addresses = records::resolved(&held.found, host);
        (!addresses.is_empty()).then(|| (addresses.to_vec(), since))
    }

    /// The set that is known, and since when nobody tells anew what of it is older than itself:
    /// that is kept for no longer than a stale set.
    fn set_before(&self, name: &ConsulName) -> Option<(Arc<Held>, Instant)> {
        let now = clock::now();
        let (Look::Fresh(held, ..) | Look::Stale(held, ..)) = self.look(name) else {
            return None;
        };
        let since = held.carried.unwrap_or(now);
        let is_kept = now.saturating_duration_since(since) < self.config.cache.keep;
        is_kept.then_some((held, since))
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
    pub(super) async fn addresses(
        self: &Arc<Self>,
        found: &Found,
        deadline: Instant,
        depth: u8,
    ) -> Addresses {
        let lost = || {
            Err(Lost::Unheard(
                "its look-up was ended from outside".to_owned(),
            ))
        };
        let names = records::unresolved(found).map(|name| (Arc::clone(name), lost()));
        let mut all: Addresses = names.collect();
        let mut asked = tokio::task::JoinSet::new();
        // One for each set: who stands for another waits for that one's.
        let seats = Arc::new(Semaphore::new(HOSTS_AT_ONCE));
        for name in all.keys().cloned() {
            let (inner, seats) = (Arc::clone(self), Arc::clone(&seats));
            asked.spawn(task::outcome(async move {
                let found = inner.address(&name, &seats, deadline, depth).await;
                (name, found)
            }));
        }
        while let Some(one) = asked.join_next().await {
            all.extend(one.ok().flatten());
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
    ) -> Result<Vec<IpAddr>, Lost> {
        let in_zone = |zone: &&Domain| records::is_within(host, zone);
        let Some(zone) = self.sources.zones().iter().find(in_zone) else {
            // Which does not tell that there is nothing from that nobody answered.
            let told = self.hosts.resolve(host, deadline).await;
            return told.map_err(Lost::Unheard);
        };
        if depth >= DEEPEST {
            let why = "names in Consul's zone stand for each other in a circle";
            return Err(Lost::Gone(why.to_owned()));
        }
        let name = ConsulName::parse(host, zone).map_err(|error| Lost::Gone(error.to_string()))?;
        let seat = clock::timeout_at(deadline, seats.acquire()).await;
        let Ok(Ok(_seat)) = seat else {
            let why = "too many others of the same set were asked for first";
            return Err(Lost::Unheard(why.to_owned()));
        };
        let deeper = Arc::clone(self).find_deeper(name, deadline, depth + 1);
        let found = deeper.await.map_err(|error| match error.is_not_found() {
            true => Lost::Gone(error.to_string()),
            false => Lost::Unheard(error.to_string()),
        })?;
        // Half of what stands behind a name is no answer to what stands before it.
        if !found.is_complete() {
            let why = found
                .warnings()
                .first()
                .map_or("it is not whole", |why| why);
            return Err(Lost::Unheard(why.to_owned()));
        }
        if found.endpoints().is_empty() {
            return Err(Lost::Gone("it has none".to_owned()));
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
        Box::pin(async move {
            self.find(&name, (clock::now(), deadline), None, depth)
                .await
                .into_result()
        })
    }
}

fn found(held: Arc<Held>, age: Duration, attempts: Vec<Attempt>) -> Landed {
    Landed::Found(Answer {
        attempts: Some(attempts.into()),
        ..fresh(held, age)
    })
}

/// What host names lead to, or why they lead nowhere.
pub(super) type Addresses = BTreeMap<Arc<str>, Result<Vec<IpAddr>, Lost>>;

/// Why a host name leads nowhere.
pub(super) enum Lost {
    /// It has no address, as Consul says.
    Gone(String),
    /// Nobody said, or not in time.
    Unheard(String),
}

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
        part: false,
        carried: None,
        warnings: Box::default(),
    };
    fresh(Arc::new(held), Duration::ZERO)
}
