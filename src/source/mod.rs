//! **Shell.** From a rung of the ladder to the source that it stands for. What
//! each source says is put into the ladder's words here, nothing is decided.

pub(crate) mod dns;
pub(crate) mod hosts;

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use self::dns::DnsSource;
use crate::{
    config::Config,
    endpoint::{Attempt, Outcome, Source, Transport},
    found::Found,
    ladder::{Heard, Rung},
    name::{ConsulName, Domain},
    records::read::{self, Asks},
};

/// A set, and what its source says of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Finding {
    pub(crate) found: Found,
    pub(crate) source: Source,
    pub(crate) transport: Transport,
    pub(crate) ttl: Duration,
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
    /// The domains whose names are Consul's: ours, and `consul`, which an agent
    /// with an alternative domain goes on using in its answers.
    zones: Vec<Domain>,
    rungs: Vec<Rung>,
    /// Minimum of the zone's SOA in seconds, as Consul last told it.
    minimum: AtomicU32,
}

impl Sources {
    pub(crate) fn new(config: &Config) -> Self {
        let mut zones = vec![config.domain.clone(), Domain::default()];
        zones.dedup();
        let rungs = [(Rung::Dns, !config.dns.is_empty())];
        Self {
            dns: DnsSource::new(&config.dns),
            zones,
            minimum: AtomicU32::new(0),
            rungs: rungs
                .into_iter()
                .filter(|(_, there)| *there)
                .map(|(rung, _)| rung)
                .collect(),
        }
    }

    /// The rungs that are configured, in the order they are asked.
    pub(crate) fn rungs(&self) -> &[Rung] {
        &self.rungs
    }

    /// The domains whose names are Consul's.
    pub(crate) fn zones(&self) -> &[Domain] {
        &self.zones
    }

    /// For how long the zone says that what does not exist may be believed gone:
    /// the minimum of its SOA, in seconds.
    pub(crate) fn minimum(&self) -> u32 {
        self.minimum.load(Ordering::Relaxed)
    }

    /// Asks one rung, at most until `limit`; each step is written to `attempts`.
    pub(crate) async fn ask(
        &self,
        rung: Rung,
        question: Question<'_>,
        limit: Instant,
        attempts: &mut Vec<Attempt>,
    ) -> Heard<Finding> {
        let before = attempts.len();
        let heard = match rung {
            Rung::Dns => self.ask_dns(question, limit, attempts).await,
            Rung::Http | Rung::Static => None,
        };
        heard.unwrap_or_else(|| failure(&attempts[before..]))
    }

    async fn ask_dns(
        &self,
        question: Question<'_>,
        limit: Instant,
        attempts: &mut Vec<Attempt>,
    ) -> Option<Heard<Finding>> {
        let asks = Asks::of(question.name);
        let heard = self
            .dns
            .ask(question.fqdn, asks.kind(), limit, attempts)
            .await;
        let (reply, doubt) = match heard {
            dns::Heard::Records { reply, doubt } => (reply, doubt),
            dns::Heard::Nothing { reply } => {
                let ttl = read::negative_ttl(&reply.message);
                if let Some(Ok(seconds)) = ttl.map(|ttl| u32::try_from(ttl.as_secs())) {
                    self.minimum.store(seconds, Ordering::Relaxed);
                }
                return Some(Heard::Nothing(ttl));
            }
            dns::Heard::Failed => return None,
        };
        let Some((found, ttl)) = asks.read(&reply.message, &self.zones) else {
            return Some(Heard::Nothing(read::negative_ttl(&reply.message)));
        };
        let finding = Finding {
            found,
            source: Source::Dns,
            transport: reply.transport,
            ttl,
            doubt: doubt.map(|doubt| {
                format!(
                    "the reply over {} is not known to be whole: {doubt}",
                    reply.transport
                )
                .into()
            }),
        };
        Some(if finding.doubt.is_some() {
            Heard::Partial(finding)
        } else {
            Heard::Whole(finding)
        })
    }
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
