//! **Word.** What a look-up gives: [`Endpoint`], [`Answer`] and the words that
//! say where it came from. How a set is found lives in the sources, how long it
//! holds in the cache.

use std::{
    collections::BTreeMap, fmt, mem, net::IpAddr, net::SocketAddr, sync::Arc, time::Duration,
};

use crate::{
    found::{Facts, Held},
    protection::Reason,
};

/// One place where a service can be reached: one address and one port of one
/// registered instance. Where several are registered there, the healthiest stands for
/// all; [`Filter::matches`](crate::Filter::matches) looks at each of them.
///
/// What a source cannot know is `None`: Consul's DNS interface tells nothing of
/// tags, metadata or health, its HTTP catalog tells all.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Endpoint {
    /// The address, as registered or as resolved from the SRV target.
    pub address: IpAddr,
    /// The port; 0 where the instance was registered without one, and for names
    /// that have none (nodes and addresses).
    pub port: u16,
    /// RFC 2782 priority, lowest first. Consul always says 1.
    pub priority: u16,
    /// RFC 2782 weight: the instance's own for its health (passing or warning).
    pub weight: u16,
    /// The SRV target, absolute, with its final dot. What is not plain is escaped
    /// (RFC 1035, section 5.1): `bad\032node.node.dc1.consul.`
    pub target: Arc<str>,
    /// The node that the instance is registered on.
    pub node: Option<Arc<str>>,
    /// The instance's id, unique on its node.
    pub id: Option<Box<str>>,
    /// The instance's tags.
    pub tags: Option<Box<[Box<str>]>>,
    /// The instance's metadata.
    pub meta: Option<Box<BTreeMap<Box<str>, Box<str>>>>,
    /// The worst of the checks of the node and of the instance.
    pub health: Option<Health>,
    /// Of others that are registered at the same place.
    pub(crate) others: Vec<Facts>,
}

impl Endpoint {
    /// Address and port together, as a socket wants them.
    pub fn socket_addr(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    /// With what was known of the same endpoint before and is not told now.
    pub(crate) fn completed_by(&self, before: &Self) -> Self {
        let now = self.clone();
        let others = match now.tags {
            Some(_) => now.others,
            None => before.others.clone(),
        };
        Self {
            others,
            node: now.node.or_else(|| before.node.clone()),
            id: now.id.or_else(|| before.id.clone()),
            tags: now.tags.or_else(|| before.tags.clone()),
            meta: now.meta.or_else(|| before.meta.clone()),
            health: now.health.or(before.health),
            ..now
        }
    }

    /// Takes in another registration of the same place: the healthiest stands for all.
    pub(crate) fn join(&mut self, mut other: Self) {
        if self.tags.is_none() || other.tags.is_none() {
            *self = self.completed_by(&other);
            return;
        }
        if Health::is_better(other.health, self.health) {
            mem::swap(self, &mut other);
        }
        // A host name may have the same address twice.
        if (&self.node, &self.id) != (&other.node, &other.id) {
            self.others.push(Facts {
                id: other.id,
                tags: other.tags.unwrap_or_default(),
                meta: other.meta.map_or_else(BTreeMap::new, |meta| *meta),
                health: other.health,
                others: Vec::new(),
            });
            self.others.append(&mut other.others);
        }
    }
}

impl fmt::Display for Endpoint {
    /// `10.0.0.1:8080`, `[2001:db8::1]:8080`; the address alone where there is
    /// no port.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            0 => self.address.fmt(f),
            _ => self.socket_addr().fmt(f),
        }
    }
}

/// State of an instance by its checks (Consul docs: Health checks).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Health {
    /// Every check passes, or there is none.
    Passing,
    /// At least one check warns, none is critical. Consul's DNS lists these.
    Warning,
    /// At least one check is critical. Such instances are never answered.
    Critical,
    /// A state that this version does not know; Consul's DNS gives it weight 1.
    Unknown,
}

impl Health {
    /// Consul's own word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
            Self::Unknown => "unknown",
        }
    }

    /// What a check's status says.
    pub(crate) fn of_status(status: Option<&str>) -> Self {
        match status {
            Some("passing") => Self::Passing,
            Some("warning") => Self::Warning,
            Some("critical") => Self::Critical,
            _ => Self::Unknown,
        }
    }

    /// Whether one that may be known is better than another: to know nothing is worst.
    pub(crate) fn is_better(one: Option<Self>, other: Option<Self>) -> bool {
        let rank = |health: Option<Self>| health.map_or(u8::MAX, Self::rank);
        rank(one) < rank(other)
    }

    /// As Consul counts: a critical check outweighs a strange one, and that one outweighs a
    /// warning.
    pub(crate) fn rank(self) -> u8 {
        match self {
            Self::Passing => 0,
            Self::Warning => 1,
            Self::Unknown => 2,
            Self::Critical => 3,
        }
    }
}

/// Where an answer came from: a rung of the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// Consul's DNS interface.
    Dns,
    /// Consul's HTTP API.
    Http,
    /// The snapshot of an earlier run.
    Snapshot,
    /// The static catalog file.
    Static,
}

impl Source {
    /// `dns`, `http`, `snapshot`, `static`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Http => "http",
            Self::Snapshot => "snapshot",
            Self::Static => "static",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What carried an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Transport {
    /// A datagram.
    Udp,
    /// DNS over a TCP connection (RFC 7766).
    Tcp,
    /// HTTP, plain or over TLS or a unix socket.
    Http,
    /// A file on this machine.
    File,
}

impl Transport {
    /// `udp`, `tcp`, `http`, `file`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::File => "file",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether an answer is still what its source vouches for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Freshness {
    /// Younger than the time it was cached for.
    Fresh,
    /// Older; given because no source could say anything newer.
    Stale,
}

impl Freshness {
    /// `fresh`, `stale`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Stale => "stale",
        }
    }
}

impl fmt::Display for Freshness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The endpoints of one name, with their source, age and completeness.
///
/// Cheap to clone: all clones share one set.
#[derive(Clone)]
pub struct Answer {
    pub(crate) held: Arc<Held>,
    pub(crate) age: Duration,
    pub(crate) freshness: Freshness,
    /// Why the set is still given, though a source says that it is gone.
    pub(crate) protected: Option<Reason>,
    /// The steps of the look-up that fetched it; `None` when it came from cache.
    pub(crate) attempts: Option<Arc<[Attempt]>>,
}

impl Answer {
    /// The full name that was looked up, with its final dot.
    pub fn name(&self) -> &str {
        &self.held.name
    }

    /// Every endpoint that the source told of, without duplicates, in the
    /// source's order. [`Picker`](crate::Picker) chooses one of them.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.held.endpoints
    }

    /// The rung that the set came from.
    pub fn source(&self) -> Source {
        self.held.source
    }

    /// What carried it from there.
    pub fn transport(&self) -> Transport {
        self.held.transport
    }

    /// Fresh or stale.
    pub fn freshness(&self) -> Freshness {
        self.freshness
    }

    /// Whether it is fresh.
    pub(crate) fn is_fresh(&self) -> bool {
        self.freshness == Freshness::Fresh
    }

    /// Time since the source gave the set.
    pub fn age(&self) -> Duration {
        self.age
    }

    /// What is left of the time to live that the source gave; zero when that was
    /// zero, as it is by default in Consul, or is over.
    pub fn ttl(&self) -> Duration {
        self.held.ttl.saturating_sub(self.age)
    }

    /// Whether this is known to be the whole set. Where it is not,
    /// [`warnings`](Self::warnings) says why.
    pub fn is_complete(&self) -> bool {
        self.held.complete
    }

    /// What the caller should know about this set: one sentence each.
    pub fn warnings(&self) -> &[Box<str>] {
        &self.held.warnings
    }

    /// Why this set is still given though a source says that it is gone: that is
    /// not believed yet. `None`: nobody says so.
    pub fn protected(&self) -> Option<Reason> {
        self.protected
    }

    /// Every step of the look-up that fetched this set, in order; empty when it
    /// came from the cache.
    pub fn attempts(&self) -> &[Attempt] {
        self.attempts.as_deref().unwrap_or_default()
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("name", &self.name())
            .field("endpoints", &self.endpoints())
            .field("source", &self.source())
            .field("freshness", &self.freshness)
            .field("age", &self.age)
            .field("complete", &self.is_complete())
            .finish_non_exhaustive()
    }
}

/// One question put to one source, and what came of it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Attempt {
    /// The rung asked.
    pub source: Source,
    /// The address, URL or path asked; `cache` for what this process knew, whose
    /// [`source`](Self::source) is the one that it came from. Never holds a token.
    pub address: Box<str>,
    /// What carried the question.
    pub transport: Transport,
    /// What came of it.
    pub outcome: Outcome,
    /// Time from the question to its outcome.
    pub elapsed: Duration,
    /// Bytes of the reply; 0 without one.
    pub received: usize,
    /// Instances or records that the reply held.
    pub count: usize,
    /// The cause, and why the look-up went on from here; empty when there is
    /// nothing to add to the outcome.
    pub detail: Box<str>,
}

/// How one [`Attempt`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// A whole answer.
    Answered,
    /// An answer that is not known to be whole.
    Partial,
    /// The source says that there is no such name, or nothing healthy.
    NotFound,
    /// The connection was refused: nothing listens there.
    Refused,
    /// No answer within the time allowed.
    TimedOut,
    /// The source says that we may not know (ACL).
    Denied,
    /// The source answered that it cannot answer (SERVFAIL, HTTP 5xx).
    Failed,
    /// The reply could not be read.
    Malformed,
    /// The machine, the network or the file system said no.
    Unreachable,
    /// The source asks to be left alone for a while (HTTP 429, 503).
    Throttled,
    /// Nothing yet, when another source had answered.
    Late,
    /// Not asked: it failed just now, and is left alone until a probe finds it well.
    Skipped,
}

impl Outcome {
    /// The word used in JSON and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Partial => "partial",
            Self::NotFound => "not_found",
            Self::Refused => "refused",
            Self::TimedOut => "timeout",
            Self::Denied => "denied",
            Self::Failed => "failed",
            Self::Malformed => "malformed",
            Self::Unreachable => "unreachable",
            Self::Throttled => "throttled",
            Self::Late => "late",
            Self::Skipped => "skipped",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Attempt {
    /// `dns 127.0.0.1:8600 over udp: refused after 0.2 ms (connection refused)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.source, self.address)?;
        if self.source == Source::Dns {
            write!(f, " over {}", self.transport)?;
        }
        let millis = self.elapsed.as_secs_f64() * 1e3;
        write!(f, ": {} after {millis:.1} ms", self.outcome)?;
        if !self.detail.is_empty() {
            write!(f, " ({})", self.detail)?;
        }
        Ok(())
    }
}
