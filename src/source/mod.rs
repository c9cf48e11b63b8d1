//! **Shell.** From a rung of the ladder to the source that it stands for. What
//! each source says is put into the ladder's words here, nothing is decided.

pub(crate) mod catalog;
pub(crate) mod circuits;
pub(crate) mod default_address;
pub(crate) mod dns;
pub(crate) mod hosts;
mod http_rung;
pub(crate) mod manners;
pub(crate) mod snapshot_file;
pub(crate) mod static_catalog;
pub(crate) mod static_file;
mod static_rung;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

use self::{
    circuits::Circuits, default_address::Defaults, dns::DnsSource, manners::Manners,
    static_file::StaticFile,
};
use crate::{
    circuit::{Asker, Gate, Mode},
    clock,
    config::Config,
    consul::{dns_settings::DnsSettings, http::Agent},
    endpoint::{Attempt, Outcome, Source, Transport},
    error::{Error, ErrorKind},
    found::Found,
    ladder::{Heard, Nothing, Rung},
    name::{ConsulName, Domain, Locality, Subject},
    records::read::{self, Asks},
};

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
    /// Why it may be of before: whoever told it has not heard of its leader.
    pub(crate) unconfirmed: Option<Box<str>>,
}

impl Finding {
    /// Whether another one says the same of the name, whoever confirms it.
    pub(crate) fn says_as(&self, other: &Self) -> bool {
        let says = |one: &Self| (one.source, one.transport, one.ttl);
        says(self) == says(other) && self.doubt == other.doubt && self.found == other.found
    }
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
    most_http_seats: usize,
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
        let most_http_seats = http_rung::seats(config.watches);
        Ok(Self {
            dns: DnsSource::new(&config.dns),
            http_circuits: Circuits::new(Source::Http, agent.addresses().map(ToString::to_string)),
            http_seats: Semaphore::new(most_http_seats),
            most_http_seats,
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

    /// What is written down on this machine, where that alone is asked.
    pub(crate) fn instead_of_consul(&self) -> Option<&'static str> {
        if self.rungs != [Rung::Static] {
            return None;
        }
        Some(match (&self.catalog, self.defaults.is_empty()) {
            (None, _) => "the default addresses",
            (Some(_), true) => "the static catalog",
            (Some(_), false) => "the static catalog or the default addresses",
        })
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

    /// Whether a rung that is left alone is to be probed by another question than this one: it
    /// was silent, maybe to this very name, or the name says nothing of it.
    pub(crate) fn is_probed_apart(&self, rung: Rung, name: &ConsulName) -> bool {
        !self.is_near(name) || self.circuits(rung).is_some_and(Circuits::is_silent)
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
        if left.is_empty() {
            return Vec::new();
        }
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
    pub(crate) fn hedge(&self, now: Instant) -> Duration {
        self.dns.circuits.hedge(now)
    }

    /// The circuits of a rung that has addresses.
    pub(crate) fn circuits(&self, rung: Rung) -> Option<&Circuits> {
        match rung {
            Rung::Dns => Some(&self.dns.circuits),
            Rung::Http => Some(&self.http_circuits),
            Rung::Static => None,
        }
    }

    /// Asks one rung, at most until `limit`; gives each step that was made.
    pub(crate) async fn ask(
        &self,
        rung: Rung,
        question: Question<'_>,
        mode: Mode,
        limit: Instant,
    ) -> (Heard<Box<Finding>>, Vec<Attempt>) {
        let mut attempts = Vec::new();
        let asker = Asker {
            mode,
            home: self.is_near(question.name),
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
    ) -> Option<Heard<Box<Finding>>> {
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
            unconfirmed: None,
        };
        Some(judged(finding))
    }

    /// Whether how long an answer to a name takes says something of whoever gives it: another
    /// place is as slow as the way there, and a prepared query may ask in several.
    pub(crate) fn is_near(&self, name: &ConsulName) -> bool {
        !matches!(name.subject(), Subject::Query(_)) && self.is_home(name.locality())
    }

    /// Whether a name asks for no other place than our own.
    pub(crate) fn is_home(&self, asked: &Locality) -> bool {
        asked.is_within(&self.home)
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

fn said_nothing(ttl: Option<Duration>) -> Heard<Box<Finding>> {
    Heard::Nothing(Nothing {
        ttl,
        ..Nothing::default()
    })
}

/// In a box: a look-up that waits is not to carry its room.
fn judged(finding: Finding) -> Heard<Box<Finding>> {
    let finding = Box::new(finding);
    if finding.doubt.is_some() {
        Heard::Partial(finding)
    } else {
        Heard::Whole(finding)
    }
}

/// What a rung that gave nothing comes to, by its attempts.
fn failure(attempts: &[Attempt]) -> Heard<Box<Finding>> {
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
