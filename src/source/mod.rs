//! **Shell.** From a rung of the ladder to the source that it stands for. What
//! each source says is put into the ladder's words here, nothing is decided.

pub(crate) mod catalog;
pub(crate) mod circuits;
pub(crate) mod default_address;
pub(crate) mod dns;
pub(crate) mod hosts;
pub(crate) mod manners;
pub(crate) mod snapshot_file;
pub(crate) mod static_catalog;
pub(crate) mod static_file;
mod static_rung;

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::Semaphore, time::timeout_at};

use self::{
    catalog::{Blocked, Miss, Told},
    circuits::{Asking, Circuits},
    default_address::Defaults,
    dns::DnsSource,
    manners::Manners,
    static_file::StaticFile,
};
use crate::{
    circuit::{Asker, Gate, Mode},
    clock,
    config::{CONNECTIONS, Config},
    consul::{
        address::HttpAddress,
        blocking::Turn,
        dns_settings::{DnsSettings, Lacks},
        health::ask::{self, Ask, Place},
        http::Agent,
    },
    endpoint::{Attempt, Outcome, Source, Transport},
    error::{Error, ErrorKind},
    found::{Found, Instance},
    ladder::{Heard, Nothing, Rung},
    name::{ConsulName, Domain, Locality, Subject},
    records::read::{self, Asks},
};

/// How long an agent is given to tell how its DNS interface is set.
const PATIENCE: Duration = Duration::from_millis(150);

/// Connections to the HTTP API that look-ups have at once, each one or two at most. Those above wait for their turn: a flood of names is not to use up what Consul allows
/// a client, which names that are followed need too.
const LOOKUPS: usize = 64;

/// The same where names that are followed may use up all connections.
const FEWEST_LOOKUPS: usize = catalog::reverse::AT_ONCE;

/// A set, and what its source says of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Finding {
    pub(crate) found: Found,
    pub(crate) source: Source,
    pub(crate) transport: Transport,
    /// `None`: the source does not say.
    pub(crate) ttl: Option<Duration>,
    /// Why it may lack instances.
    pub(crate) doubt: Option<Box<str>>,
}

/// One question to all sources.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question<'a> {
    pub(crate) name: &'a ConsulName,
    /// The same in full.
    pub(crate) fqdn: &'a str,
}

/// The sources of one resolver.
#[derive(Debug)]
pub(crate) struct Sources {
    dns: DnsSource,
    agent: Arc<Agent>,
    http_circuits: Circuits,
    /// One for each look-up that the HTTP API is asked for.
    http_seats: Semaphore,
    catalog: Option<StaticFile>,
    /// Default addresses, by service.
    defaults: Defaults,
    /// The place that the static catalog is of: the one that names are in which
    /// say none.
    home: Locality,
    /// The domains whose names are Consul's: ours, and `consul`, which an agent
    /// with an alternative domain goes on using in its answers.
    zones: Vec<Domain>,
    rungs: Vec<Rung>,
    manners: Manners,
}

impl Sources {
    pub(crate) fn new(config: &Config) -> Result<Self, Error> {
        let mut zones = vec![config.domain.clone(), Domain::default()];
        zones.dedup();
        let agent = Agent::new(config.http.clone())
            .map_err(|error| Error::new(ErrorKind::Invalid, error.to_string()))?;
        let catalog =
            (config.catalog.clone()).map(|path| StaticFile::new(path, config.domain.as_str()));
        let rungs = [
            (Rung::Dns, !config.dns.is_empty()),
            (Rung::Http, agent.addresses().len() > 0),
            (
                Rung::Static,
                !config.must_be_found && (catalog.is_some() || !config.defaults.is_empty()),
            ),
        ];
        Ok(Self {
            dns: DnsSource::new(&config.dns),
            http_circuits: Circuits::new(Source::Http, agent.addresses().map(ToString::to_string)),
            http_seats: Semaphore::new(
                (CONNECTIONS.saturating_sub(config.watches)).clamp(FEWEST_LOOKUPS, LOOKUPS),
            ),
            agent: Arc::new(agent),
            defaults: config.defaults.clone(),
            catalog,
            home: config.home(),
            zones,
            rungs: rungs
                .into_iter()
                .filter(|(_, there)| *there)
                .map(|(rung, _)| rung)
                .collect(),
            manners: Manners::default(),
        })
    }

    /// Reads the files that are configured, to tell at the start what is wrong
    /// with them.
    pub(crate) async fn check(&self) -> Result<(), Error> {
        if self.agent.addresses().len() > 0 {
            let checked = self.agent.check().await;
            checked.map_err(|error| Error::new(ErrorKind::Invalid, error.to_string()))?;
        }
        let Some(file) = &self.catalog else {
            return Ok(());
        };
        let Err(error) = file.load().await else {
            return Ok(());
        };
        let message = format!("the static catalog cannot be used: {error}");
        Err(Error::new(ErrorKind::Invalid, message))
    }

    /// The HTTP API, for what is no look-up.
    pub(crate) fn agent(&self) -> &Arc<Agent> {
        &self.agent
    }

    /// The rungs that are configured, in the order they are asked.
    pub(crate) fn rungs(&self) -> &[Rung] {
        &self.rungs
    }

    /// The domains whose names are Consul's.
    pub(crate) fn zones(&self) -> &[Domain] {
        &self.zones
    }

    /// DNS replies that answered no question of ours, so far.
    pub(crate) fn strangers(&self) -> u64 {
        self.dns.strangers()
    }

    /// How Consul itself answers, as far as that is known.
    pub(crate) fn manners(&self) -> Arc<DnsSettings> {
        self.manners.known()
    }

    /// What a rung may be asked now.
    pub(crate) fn gate(&self, rung: Rung, now: Instant) -> Gate {
        self.circuits(rung)
            .map_or(Gate::Pass, |circuits| circuits.gate(now))
    }

    /// Whether an address of a rung is due for a probe.
    pub(crate) fn is_probe_due(&self, rung: Rung, now: Instant) -> bool {
        self.circuits(rung)
            .is_some_and(|circuits| circuits.is_probe_due(now))
    }

    /// The addresses of a rung that are left alone, as steps of a look-up.
    pub(crate) fn skipped(&self, rung: Rung, now: Instant) -> Vec<Attempt> {
        let skipped = |(address, since): (&str, Option<Instant>)| {
            let down = now.saturating_duration_since(since?);
            let detail = format!("it failed {:.1} s ago and is probed", down.as_secs_f64());
            unanswered(rung, address, Outcome::Skipped, Duration::ZERO, detail)
        };
        let states = self
            .circuits(rung)
            .map(Circuits::states)
            .unwrap_or_default();
        states.into_iter().filter_map(skipped).collect()
    }

    /// Rungs that were asked and not waited for, as steps of a look-up that could
    /// have lasted until `deadline`.
    pub(crate) fn unheard(&self, left: &[(Rung, Instant)], deadline: Instant) -> Vec<Attempt> {
        let now = clock::now();
        let one = |&(rung, asked): &(Rung, Instant)| {
            let states = self.circuits(rung)?.states();
            let names: Vec<&str> = states.into_iter().map(|(name, _)| name).collect();
            let (outcome, detail) = if now >= deadline {
                (Outcome::TimedOut, String::new())
            } else {
                (Outcome::Late, "another source was quicker".to_owned())
            };
            let elapsed = now.saturating_duration_since(asked);
            unanswered(rung, &names.join(","), outcome, elapsed, detail)
        };
        left.iter().filter_map(one).collect()
    }

    /// How long DNS is given before HTTP is asked beside it.
    pub(crate) fn hedge(&self) -> Duration {
        self.dns.circuits.hedge()
    }

    /// The circuits of a rung that has addresses.
    pub(crate) fn circuits(&self, rung: Rung) -> Option<&Circuits> {
        match rung {
            Rung::Dns => Some(&self.dns.circuits),
            Rung::Http => Some(&self.http_circuits),
            Rung::Static => None,
        }
    }

    /// Asks one rung for a look-up, of which there may be thousands, at most until `limit`;
    /// gives each step that was made.
    pub(crate) async fn look_up(
        &self,
        rung: Rung,
        question: Question<'_>,
        limit: Instant,
    ) -> (Heard<Finding>, Vec<Attempt>) {
        match rung {
            // Large, and seldom: a question to DNS is not to carry their room with it.
            Rung::Http => Box::pin(self.look_up_over_http(question, limit)).await,
            _ => self.ask(rung, question, Mode::Ask, limit).await,
        }
    }

    async fn look_up_over_http(
        &self,
        question: Question<'_>,
        limit: Instant,
    ) -> (Heard<Finding>, Vec<Attempt>) {
        let start = clock::now();
        // Whoever has an address may be looked for in the whole catalog.
        let seats = match question.name.subject() {
            Subject::Reverse(_) => catalog::reverse::AT_ONCE,
            _ => 1,
        };
        let seats = self
            .http_seats
            .acquire_many(u32::try_from(seats).unwrap_or(u32::MAX));
        let Ok(Ok(_seats)) = timeout_at(limit.into(), seats).await else {
            let elapsed = clock::now().saturating_duration_since(start);
            let detail = "too many others were asked for first".to_owned();
            let (whom, outcome) = (self.first_address(), Outcome::TimedOut);
            let attempt = unanswered(Rung::Http, &whom, outcome, elapsed, detail);
            return (Heard::TimedOut, attempt.into_iter().collect());
        };
        self.ask(Rung::Http, question, Mode::Ask, limit).await
    }

    /// Asks one rung, at most until `limit`; gives each step that was made.
    pub(crate) async fn ask(
        &self,
        rung: Rung,
        question: Question<'_>,
        mode: Mode,
        limit: Instant,
    ) -> (Heard<Finding>, Vec<Attempt>) {
        let mut attempts = Vec::new();
        let asker = Asker {
            mode,
            home: self.is_home(question.name.locality()),
        };
        let heard = match rung {
            Rung::Dns => self.ask_dns(question, asker, limit, &mut attempts).await,
            // Large, and seldom: a question to DNS is not to carry their room with it.
            Rung::Http => Box::pin(self.ask_http(question, asker, limit, &mut attempts)).await,
            Rung::Static => Box::pin(self.ask_static(question, &mut attempts)).await,
        };
        let heard = heard.unwrap_or_else(|| failure(&attempts));
        (heard, attempts)
    }

    async fn ask_dns(
        &self,
        question: Question<'_>,
        asker: Asker,
        limit: Instant,
        attempts: &mut Vec<Attempt>,
    ) -> Option<Heard<Finding>> {
        let asks = Asks::of(question.name);
        let heard = self
            .dns
            .ask(question.fqdn, asks.kind(), asker, limit, attempts)
            .await;
        let (reply, doubt) = match heard {
            dns::Heard::Records { reply, doubt } => (reply, doubt),
            dns::Heard::Nothing { reply } => {
                if let Some(soa) = read::zone_soa(&reply.message, &self.zones) {
                    self.manners.heard(soa);
                }
                return Some(said_nothing(read::negative_ttl(&reply.message)));
            }
            dns::Heard::Failed => return None,
        };
        let Some((found, ttl)) = asks.read(&reply.message, &self.zones) else {
            // Cut down to nothing is not the same as nothing.
            if doubt.is_some() {
                return None;
            }
            return Some(said_nothing(read::negative_ttl(&reply.message)));
        };
        let finding = Finding {
            found,
            source: Source::Dns,
            transport: reply.transport,
            ttl: Some(ttl),
            doubt: doubt.map(|doubt| {
                format!(
                    "the reply over {} is not known to be whole: {doubt}",
                    reply.transport
                )
                .into()
            }),
        };
        Some(judged(finding))
    }

    async fn ask_http(
        &self,
        question: Question<'_>,
        asker: Asker,
        limit: Instant,
        attempts: &mut Vec<Attempt>,
    ) -> Option<Heard<Finding>> {
        if self.is_beyond(question.name, limit).await {
            attempts.push(Attempt {
                source: Source::Http,
                address: self.first_address(),
                transport: Transport::Http,
                outcome: Outcome::NotFound,
                elapsed: Duration::ZERO,
                received: 0,
                count: 0,
                detail: "this version or edition of Consul has no such names".into(),
            });
            return Some(said_nothing(None));
        }
        let asked = self.asked(question)?;
        let circuits = &self.http_circuits;
        let told = catalog::ask(&self.agent, &asked, circuits, asker, limit, clock::now);
        let ((told, made), ()) = tokio::join!(told, self.refresh_manners(limit));
        attempts.extend(made);
        match (asked.ask, self.by_catalog(question.name, told)) {
            (Ask::Reverse { ip }, Some(Heard::Nothing(nothing))) => {
                self.search(ip, nothing, limit, attempts).await
            }
            (_, heard) => heard,
        }
    }

    /// An address that no node has: does a service?
    async fn search(
        &self,
        ip: IpAddr,
        nothing: Nothing,
        limit: Instant,
        attempts: &mut Vec<Attempt>,
    ) -> Option<Heard<Finding>> {
        let address = self.well()?;
        let searched = catalog::reverse::service_at(&self.agent, address, ip, limit);
        let (found, attempt) = searched.await;
        attempts.push(attempt);
        let Some(pointer) = found? else {
            return Some(Heard::Nothing(nothing));
        };
        let name = pointer.fqdn(self.zones.first()?.as_str())?;
        Some(Heard::Whole(Finding {
            found: Found::Pointers(vec![name.into()]),
            source: Source::Http,
            transport: Transport::Http,
            ttl: Some(Duration::ZERO),
            doubt: None,
        }))
    }

    /// Whether the agent does not know of such names at all.
    async fn is_beyond(&self, name: &ConsulName, limit: Instant) -> bool {
        if !Lacks::everything().has(name) {
            return false;
        }
        self.refresh_manners(limit).await;
        self.manners.known().has_no_such(name)
    }

    /// The first address of the HTTP API that is not known to fail.
    fn well(&self) -> Option<&HttpAddress> {
        let states = self.http_circuits.states();
        let well = states.iter().position(|(_, since)| since.is_none())?;
        self.agent.addresses().nth(well)
    }

    fn first_address(&self) -> Box<str> {
        let first = self.agent.addresses().next();
        first.map(ToString::to_string).unwrap_or_default().into()
    }

    /// Asks the first agent that is well how its DNS interface is set, if that is due.
    async fn refresh_manners(&self, limit: Instant) {
        let now = clock::now();
        if let Some(address) = self.well() {
            let limit = limit.saturating_duration_since(now).min(PATIENCE);
            self.manners.refresh(&self.agent, address, now, limit).await;
        }
    }

    /// The question as the catalog is asked it; `None` where it has no answer to it.
    fn asked<'a>(&'a self, question: Question<'a>) -> Option<ask::Question<'a>> {
        let locality = question.name.locality();
        Some(ask::Question {
            ask: ask_of(question.name)?,
            place: Place {
                datacenter: locality.datacenter.as_deref(),
                namespace: locality.namespace.as_deref(),
                partition: locality.partition.as_deref(),
                peer: locality.peer.as_deref(),
                sameness_group: locality.sameness_group.as_deref(),
            },
            domain: self.zones.first()?.as_str(),
            name: question.fqdn,
        })
    }

    /// Whether the agent tells of changes of this name by itself. A prepared query
    /// it does not (Consul docs: Blocking Queries).
    pub(crate) fn can_follow(&self, name: &ConsulName) -> bool {
        self.agent.addresses().len() > 0
            && ask_of(name)
                .is_some_and(|ask| !matches!(ask, Ask::Query { .. } | Ask::Reverse { .. }))
    }

    /// The first address of the HTTP API, from this place in the list on, that may be asked
    /// for the state of a name that is followed. One that is well comes before one that this
    /// question probes.
    pub(crate) fn followed_at(
        &self,
        name: &ConsulName,
        from: usize,
    ) -> Option<(usize, Asking<'_>)> {
        let count = self.agent.addresses().len();
        let home = self.is_home(name.locality());
        [Mode::Ask, Mode::Probe].into_iter().find_map(|mode| {
            let mut places = (from..from + count).map(|place| place % count);
            places.find_map(|place| {
                let asking = self.http_circuits.begin(place, Asker { mode, home })?;
                // Whoever followed may be told that nobody wants it any more.
                Some((place, asking.without_blame()))
            })
        })
    }

    /// One query of a name that is followed, to the address of that place. `asking`: where it
    /// asks for the state.
    pub(crate) async fn block(
        &self,
        question: Question<'_>,
        address: usize,
        asking: Option<Asking<'_>>,
        turn: &Turn,
    ) -> Option<(Option<Heard<Finding>>, Blocked)> {
        let asked = self.asked(question)?;
        let blocking = async {
            let blocked = catalog::block(&self.agent, &asked, address, turn).await;
            match asking {
                // That is about those who follow, who have a pause of their own.
                Some(asking) if blocked.outcome == Outcome::Throttled => asking.unheard(),
                Some(asking) => asking.heard(blocked.outcome),
                // Its connection may have been cut because nothing was said on it. But who
                // answers is well, whatever its circuit says.
                None if matches!(blocked.told, Ok(_) | Err(Miss::NotFound { .. })) => {
                    let asker = Asker {
                        mode: Mode::Ask,
                        home: self.is_home(question.name.locality()),
                    };
                    (self.http_circuits).hear(address, Outcome::Answered, asker, None);
                }
                None => {}
            }
            blocked
        };
        let manners = self.refresh_manners(clock::now() + PATIENCE);
        let (blocked, ()) = tokio::join!(blocking, manners);
        let heard = self.by_catalog(question.name, blocked.told.clone());
        Some((heard, blocked))
    }

    /// What the catalog told, in the ladder's words and as the agent's own DNS
    /// interface would give it; `None`: nothing.
    fn by_catalog(&self, name: &ConsulName, told: Result<Told, Miss>) -> Option<Heard<Finding>> {
        let Told {
            mut read,
            filtered_by_acls,
            known_leader,
            ..
        } = match told {
            Ok(told) => told,
            Err(Miss::NotFound {
                unhealthy,
                confirmed,
                index,
            }) => {
                return Some(Heard::Nothing(Nothing {
                    ttl: None,
                    unhealthy,
                    leader: Some(confirmed),
                    index,
                }));
            }
            Err(Miss::Denied(_) | Miss::Failed { .. }) => return None,
        };
        let manners = self.manners.known();
        if let Found::Instances(instances) = &mut read.found
            && manners.gives_only_passing(name)
        {
            let all = instances.len();
            instances.retain(Instance::is_passing);
            if instances.is_empty() {
                return Some(Heard::Nothing(Nothing {
                    ttl: None,
                    unhealthy: all,
                    leader: Some(known_leader != Some(false)),
                    index: None,
                }));
            }
        }
        let mut doubt = None;
        if filtered_by_acls {
            doubt = Some("the token may not see all instances".into());
        } else if read.skipped > 0 {
            let (skipped, first) = (read.skipped, read.first_reason.unwrap_or_default());
            let text = format!("{skipped} instances of the catalog were left out: {first}");
            doubt = Some(text.into());
        }
        let ttl = read.ttl.or_else(|| {
            let told = self.manners.are_told();
            told.then(|| manners.ttl(name, read.service.as_deref()))
        });
        Some(judged(Finding {
            found: read.found,
            source: Source::Http,
            transport: Transport::Http,
            ttl,
            doubt,
        }))
    }

    /// Whether a name asks for no other place than our own.
    fn is_home(&self, asked: &Locality) -> bool {
        let own = |asked: &Option<Box<str>>, own: &Option<Box<str>>| match (asked, own) {
            (None, _) => true,
            (Some(asked), Some(own)) => asked.eq_ignore_ascii_case(own),
            (Some(_), None) => false,
        };
        own(&asked.datacenter, &self.home.datacenter)
            && own(&asked.namespace, &self.home.namespace)
            && own(&asked.partition, &self.home.partition)
            && asked.peer.is_none()
            && asked.sameness_group.is_none()
            && asked.port.is_none()
    }
}

/// A step that brought no reply; the static rung has none.
fn unanswered(
    rung: Rung,
    address: &str,
    outcome: Outcome,
    elapsed: Duration,
    detail: String,
) -> Option<Attempt> {
    let (source, transport) = match rung {
        Rung::Dns => (Source::Dns, Transport::Udp),
        Rung::Http => (Source::Http, Transport::Http),
        Rung::Static => return None,
    };
    Some(Attempt {
        source,
        address: address.into(),
        transport,
        outcome,
        elapsed,
        received: 0,
        count: 0,
        detail: detail.into(),
    })
}

fn said_nothing(ttl: Option<Duration>) -> Heard<Finding> {
    Heard::Nothing(Nothing {
        ttl,
        ..Nothing::default()
    })
}

fn judged(finding: Finding) -> Heard<Finding> {
    if finding.doubt.is_some() {
        Heard::Partial(finding)
    } else {
        Heard::Whole(finding)
    }
}

/// What the catalog is asked for a name. `None`: it has no answer to that.
fn ask_of(name: &ConsulName) -> Option<Ask<'_>> {
    // An agent that does not know sameness groups, or named ports, answers in
    // silence as if none had been asked for, and nothing in its reply tells.
    let locality = name.locality();
    if locality.sameness_group.is_some() || locality.port.is_some() {
        return None;
    }
    Some(match name.subject() {
        Subject::Service { service, tag } => Ask::Service {
            name: service,
            tag: tag.as_deref(),
        },
        Subject::Connect { service } => Ask::Connect { name: service },
        Subject::Ingress { service } => Ask::Ingress { name: service },
        Subject::Node(node) => Ask::Node { name: node },
        Subject::Query(query) => Ask::Query { name: query },
        Subject::Apex => Ask::Servers,
        Subject::Reverse(ip) => Ask::Reverse { ip: *ip },
        Subject::Virtual { .. } | Subject::Address(_) => return None,
    })
}

/// What a rung that gave nothing comes to, by its attempts.
fn failure(attempts: &[Attempt]) -> Heard<Finding> {
    let all = |outcome| attempts.iter().all(|attempt| attempt.outcome == outcome);
    if attempts
        .iter()
        .any(|attempt| attempt.outcome == Outcome::Denied)
    {
        Heard::Denied
    } else if !attempts.is_empty() && all(Outcome::TimedOut) {
        Heard::TimedOut
    } else {
        Heard::Failed
    }
}
