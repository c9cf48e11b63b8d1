//! **Shell.** The rung that asks the agents' HTTP API, for look-ups and for names that are
//! followed: what of a name the catalog can be asked, and what its reply means.
//!
//! Which address is asked and when the next one is asked beside it is [`catalog`]'s.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{
    Finding, Question, Sources,
    catalog::{self, Blocked, Miss, Told},
    circuits::{Asking, Circuits},
    failure, judged, said_nothing, unanswered,
};
use crate::{
    circuit::{Asker, Gate, Mode},
    clock,
    config::CONNECTIONS,
    consul::{
        address::HttpAddress,
        blocking::Turn,
        dns_settings::Lacks,
        health::ask::{self, Ask, Place, Reader},
        http::unconfirmed,
    },
    endpoint::{Attempt, Outcome, Source, Transport},
    found::{Found, Instance},
    ladder::{Heard, Nothing, Rung},
    name::{ConsulName, Subject},
};

/// How long an agent is given to tell how its DNS interface is set.
const PATIENCE: Duration = Duration::from_millis(150);

/// After a failure a server may be started anew and read its log for so long.
const SETTLING: Duration = Duration::from_secs(60);

/// Connections to the HTTP API that look-ups have at once, each one or two at most. Those above
/// wait for their turn: a flood of names is not to use up what Consul allows a client, which
/// names that are followed need too.
const LOOKUPS: usize = 64;

/// From so many on nobody is asked beside DNS before that is as late as it may be: where all are
/// late, whoever is asked has enough to do.
const HEDGES: usize = 16;

/// The same where names that are followed may use up all connections.
const FEWEST_LOOKUPS: usize = catalog::reverse::AT_ONCE;

/// One for each look-up that the HTTP API is asked for, beside so many names that are followed.
pub(super) fn seats(watches: usize) -> usize {
    (CONNECTIONS.saturating_sub(watches)).clamp(FEWEST_LOOKUPS, LOOKUPS)
}

impl Sources {
    /// Asks for a look-up, of which there may be thousands: in its turn, at most until `limit`.
    pub(crate) async fn look_up_over_http(
        &self,
        question: Question<'_>,
        mode: Mode,
        limit: Instant,
    ) -> (Heard<Box<Finding>>, Vec<Attempt>) {
        let start = clock::now();
        // Whoever has an address may be looked for in the whole catalog.
        let seats = match question.name.subject() {
            Subject::Reverse(_) => catalog::reverse::AT_ONCE,
            _ => 1,
        };
        let seats = self
            .http_seats
            .acquire_many(u32::try_from(seats).unwrap_or(u32::MAX));
        let Ok(Ok(_seats)) = clock::timeout_at(limit, seats).await else {
            let elapsed = clock::took(start);
            let detail = "too many others were asked for first".to_owned();
            let (whom, outcome) = (self.first_address(), Outcome::TimedOut);
            let attempt = unanswered(Rung::Http, &whom, outcome, elapsed, detail);
            return (Heard::TimedOut, attempt.into_iter().collect());
        };
        self.ask(Rung::Http, question, mode, limit).await
    }

    /// Whether so many ask the HTTP API that others had better wait for DNS.
    pub(crate) fn hedge_enough(&self) -> bool {
        self.http_seats.available_permits() + HEDGES <= self.most_http_seats
    }

    /// Whether something failed lately, or was behind: a server that was started anew may not know yet what
    /// there is.
    pub(crate) fn unsettled(&self, now: Instant) -> bool {
        let failed = |circuits: &Circuits| circuits.failed_within(SETTLING, now);
        failed(&self.dns.circuits) || failed(&self.http_circuits)
    }

    /// Somebody who is asked is behind what is known, or knows no leader: a server that was started
    /// anew, which others may be asked at as well.
    pub(crate) fn is_behind(&self, now: Instant) {
        self.http_circuits.failed(now);
    }

    /// Asks the leader for a name of which any server said that there is no such name. `None`:
    /// the HTTP API cannot be asked, or others who look something up need it.
    pub(crate) async fn confirm(
        &self,
        question: Question<'_>,
        limit: Instant,
    ) -> Option<(Heard<Box<Finding>>, Vec<Attempt>)> {
        let can_confirm = matches!(
            ask_of(question.name)?,
            Ask::Service { .. } | Ask::Connect { .. } | Ask::Ingress { .. } | Ask::Node { .. }
        );
        let is_open = self.gate(Rung::Http, clock::now()) == Gate::Pass;
        if !can_confirm || !self.rungs.contains(&Rung::Http) || !is_open {
            return None;
        }
        let _seat = self.http_seats.try_acquire().ok()?;
        let asked = ask::Question {
            reader: Reader::Leader,
            ..self.asked(question)?
        };
        let (asker, circuits) = (self.beside(question), &self.http_circuits);
        let told = catalog::ask(&self.agent, &asked, circuits, asker, limit, clock::now);
        let (told, attempts) = told.await;
        let heard = self.by_catalog(question.name, told);
        let heard = heard.unwrap_or_else(|| failure(&attempts));
        Some((heard, attempts))
    }

    /// Asks whoever can be asked for a name of which one server said that there is no such name,
    /// and the leader nothing: of what a cluster has agreed on, more than half of its servers know.
    /// `None`: nobody knows it, there is nobody else, or others who look something up need them.
    pub(crate) async fn known_to_any(
        &self,
        question: Question<'_>,
        limit: Instant,
    ) -> Option<(Heard<Box<Finding>>, Vec<Attempt>)> {
        let all = u32::try_from(self.agent.addresses().len()).unwrap_or(u32::MAX);
        if all < 2 {
            return None;
        }
        let _seats = self.http_seats.try_acquire_many(all.div_ceil(2)).ok()?;
        let asked = self.asked(question)?;
        let (asker, circuits) = (self.beside(question), &self.http_circuits);
        let told = catalog::ask_each(&self.agent, &asked, circuits, asker, limit, clock::now);
        let (told, attempts) = told.await;
        let heard = self.by_catalog(question.name, Ok(told?))?;
        let is_there = matches!(heard, Heard::Whole(_) | Heard::Partial(_));
        is_there.then_some((heard, attempts))
    }

    /// Whoever asks beside what a look-up has heard already.
    fn beside(&self, question: Question<'_>) -> Asker {
        Asker {
            mode: Mode::Beside,
            home: self.is_home(question.name.locality()),
        }
    }

    pub(super) async fn ask_http(
        &self,
        question: Question<'_>,
        asker: Asker,
        limit: Instant,
        attempts: &mut Vec<Attempt>,
    ) -> Option<Heard<Box<Finding>>> {
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
    ) -> Option<Heard<Box<Finding>>> {
        let address = self.well()?;
        let searched = catalog::reverse::service_at(&self.agent, address, ip, limit);
        let (found, attempt) = searched.await;
        attempts.push(attempt);
        let Some(pointer) = found? else {
            return Some(Heard::Nothing(nothing));
        };
        let name = pointer.fqdn(self.zones.first()?.as_str())?;
        Some(judged(Finding {
            found: Found::Pointers(vec![name.into()]),
            source: Source::Http,
            transport: Transport::Http,
            ttl: Some(Duration::ZERO),
            doubt: None,
            unconfirmed: None,
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
            reader: Reader::Any,
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
    /// for the state of a name that is followed, of those that are `free`. One that is well
    /// comes before one that this question probes.
    pub(crate) fn followed_at(
        &self,
        name: &ConsulName,
        from: usize,
        free: impl Fn(usize) -> bool,
    ) -> Option<(usize, Asking<'_>)> {
        let count = self.agent.addresses().len();
        let home = self.is_home(name.locality());
        [Mode::Ask, Mode::Probe].into_iter().find_map(|mode| {
            let places = (from..from + count).map(|place| place % count);
            let mut places = places.filter(|place| free(*place));
            places.find_map(|place| {
                let asker = Asker { mode, home };
                let asking = self.http_circuits.begin(place, asker, clock::now())?;
                // Whoever followed may be told that nobody wants it any more.
                Some((place, asking.without_blame()))
            })
        })
    }

    /// How long that address is given before others are asked beside it.
    pub(crate) fn hedge_of(&self, address: usize) -> Duration {
        self.http_circuits.hedge_of(address)
    }

    /// One query of a name that is followed, to the address of that place. `asking`: where it
    /// asks for the state.
    pub(crate) async fn block(
        &self,
        question: Question<'_>,
        address: usize,
        asking: Option<Asking<'_>>,
        turn: &Turn,
    ) -> Option<(Option<Heard<Box<Finding>>>, Blocked)> {
        let asked = self.asked(question)?;
        let circuits = &self.http_circuits;
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
                    circuits.hear(address, Outcome::Answered, asker, None, clock::now());
                }
                None if self.is_home(question.name.locality()) => circuits.failed(clock::now()),
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
    fn by_catalog(
        &self,
        name: &ConsulName,
        told: Result<Told, Miss>,
    ) -> Option<Heard<Box<Finding>>> {
        let Told {
            mut read,
            filtered_by_acls,
            known_leader,
            last_contact,
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
            unconfirmed: unconfirmed(known_leader, last_contact).map(Into::into),
        }))
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
