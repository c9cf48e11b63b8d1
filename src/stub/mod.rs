//! **Door.** The stub: a DNS server for Consul's domain on this machine. What a
//! packet means and how an answer fits is in `stub/answer.rs`, the sockets are in
//! `stub/listen.rs`, what the zone answers in `zone.rs`.

pub(crate) mod answer;
mod budget;
mod forward;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod listen;
mod networks;
pub(crate) mod shortcut;
mod tally;
pub(crate) mod upstreams;

#[cfg(any(fuzzing, test))]
pub(crate) use self::forward::answers as answers_forwarded;
pub use self::{networks::Networks, tally::Traffic, upstreams::Upstreams};

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use tokio::time::timeout_at;

use self::{
    answer::{Judged, Question, Recursion},
    budget::Budget,
    forward::{Forwarded, Forwarder},
    listen::Sockets,
    shortcut::{Fill, Given, Late, Plain, Recipe, Shortcuts},
    tally::Counted,
    upstreams::Local,
};
use crate::{
    cache::Hits,
    clock,
    endpoint::Transport,
    error::{Error, ErrorKind},
    flight::Runs,
    name::{self, NotAName},
    records::write::{self, Sections},
    resolver::Resolver,
    zone,
};

/// A DNS server for Consul's domain, bound and ready to [`run`](Self::run).
#[derive(Debug)]
pub struct Stub {
    sockets: Vec<Sockets>,
    server: Arc<Server>,
    trusted: Networks,
}

/// Every question is answered within 900 ms, before clients ask again after a second.
const LIMIT: Duration = Duration::from_millis(850);

/// So much of the time is kept for what is known, or written down, where no source answers.
const SPARE: Duration = Duration::from_millis(80);

/// What every packet is answered from.
#[derive(Debug)]
struct Server {
    /// Where it answers.
    addresses: Vec<SocketAddr>,
    /// A std lock: held for one look, never across an await.
    current: RwLock<Arc<Current>>,
    counted: Arc<Counted>,
    /// Of names that nothing is known of. A std mutex: held for one look.
    budget: Mutex<Budget>,
    /// Of connections, and of sockets bound to every address. A std mutex: held for one look,
    /// never across an await.
    shortcuts: Mutex<Shortcuts>,
}

/// What may be replaced while a stub runs.
#[derive(Debug)]
struct Current {
    resolver: Resolver,
    /// `None`: names that are not Consul's are refused.
    forwarder: Option<Arc<Forwarder>>,
}

/// Changes what a stub answers from while it runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Control(Arc<Server>);

impl Control {
    /// The resolver that it answers from now.
    pub fn resolver(&self) -> Resolver {
        self.0.current().resolver.clone()
    }

    /// From now on it answers from this resolver, and sends other names there.
    pub fn replace(&self, resolver: Resolver, upstreams: Upstreams) {
        self.0.replace(resolver, upstreams);
    }
}

/// What goes out, and what may be remembered of it.
struct Reply {
    bytes: Vec<u8>,
    fill: Option<Fill>,
}

impl Stub {
    /// Binds each address on UDP and TCP. Port 0 takes a free port, the same for
    /// both; [`addresses`](Self::addresses) tells which. `0.0.0.0` and `[::]` stand
    /// for every address of their family; a question is answered from the one that
    /// it was sent to: over TCP always, over UDP on Linux.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] with the address that cannot be had, and why.
    pub async fn bind(resolver: Resolver, addresses: &[SocketAddr]) -> Result<Self, Error> {
        let mut sockets = Vec::with_capacity(addresses.len());
        for address in addresses {
            sockets.push(
                Sockets::bind(*address)
                    .await
                    .map_err(|error| not_bound(*address, error))?,
            );
        }
        Ok(Self::over(resolver, sockets))
    }

    /// Takes sockets that are bound already, as a service manager hands them over.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] for a socket that cannot be used.
    pub fn with_sockets(
        resolver: Resolver,
        udp: Vec<std::net::UdpSocket>,
        tcp: Vec<std::net::TcpListener>,
    ) -> Result<Self, Error> {
        let udp = udp.into_iter().map(Sockets::of_udp);
        let tcp = tcp.into_iter().map(Sockets::of_tcp);
        let sockets: io::Result<Vec<_>> = udp.chain(tcp).collect();
        let sockets = sockets.map_err(|error| {
            let message = format!("a socket that was handed over cannot be used: {error}");
            Error::caused(ErrorKind::Io, message, error)
        })?;
        Ok(Self::over(resolver, sockets))
    }

    fn over(resolver: Resolver, sockets: Vec<Sockets>) -> Self {
        let addresses = sockets.iter().map(Sockets::address).collect();
        let server = Arc::new(Server::new(resolver, addresses));
        let trusted = Networks::default();
        Self {
            sockets,
            server,
            trusted,
        }
    }

    /// Where it answers.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.server.addresses.clone()
    }

    /// Sends questions for names that are not Consul's to these servers; otherwise they
    /// are refused. Answers say then that recursion is available.
    #[must_use]
    pub fn forwarding(self, upstreams: Upstreams) -> Self {
        let resolver = self.server.current().resolver.clone();
        self.server.replace(resolver, upstreams);
        self
    }

    /// Only clients of these networks get replies by UDP as long as they can take. Others get at
    /// most three times what they sent and 1,232 bytes, and come over TCP for more: for who
    /// writes another's address on a question, the stub is no better than any other way to flood
    /// it (RFC 5358). Default: this machine, private and link-local networks.
    #[must_use]
    pub fn trusting(self, trusted: Networks) -> Self {
        Self { trusted, ..self }
    }

    /// At most so many questions a second go to Consul for names of which nothing is known, also
    /// not that they do not exist, and as many at once; 0 is no limit. Who asks for more of them
    /// is told that there is no time (SERVFAIL, "Not Ready": RFC 8914, section 4.15), so that a
    /// flood of names that somebody makes up is not one at the agent. Of the last half one
    /// client's socket gets 64 a second, so that others find what they need. Default: 5,000.
    #[must_use]
    pub fn unknown_per_second(self, most: u32) -> Self {
        *self.server.budget() = Budget::new(most, clock::now());
        self
    }

    /// Changes what it answers from, now and later: the handle outlives
    /// [`run`](Self::run).
    pub fn control(&self) -> Control {
        Control(Arc::clone(&self.server))
    }

    /// What it has answered, now and later: the handle outlives [`run`](Self::run).
    pub fn traffic(&self) -> Traffic {
        Traffic(Arc::clone(&self.server.counted))
    }

    /// Answers until `stop` completes; then takes no more questions, sends the
    /// answers that are still due for at most 5 s, and returns.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the sockets, those for UDP within 100 ms.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let trusted = Arc::new(self.trusted);
        listen::run(self.sockets, &self.server, &trusted, stop).await;
    }
}

impl Server {
    fn new(resolver: Resolver, addresses: Vec<SocketAddr>) -> Self {
        let shortcuts = Mutex::new(Shortcuts::new(resolver.cache_bytes()));
        let forwarder = None;
        let current = Current {
            resolver,
            forwarder,
        };
        let now = clock::now();
        Self {
            addresses,
            current: RwLock::new(Arc::new(current)),
            counted: Arc::new(Counted::new(now)),
            budget: Mutex::new(Budget::new(budget::DEFAULT, now)),
            shortcuts,
        }
    }

    fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn replace(&self, resolver: Resolver, upstreams: Upstreams) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let forwarder = Forwarder::after(current.forwarder.as_ref(), upstreams, &self.addresses);
        let next = Arc::new(Current {
            resolver,
            forwarder,
        });
        let before = std::mem::replace(&mut *current, next);
        drop(current);
        before.resolver.is_replaced();
    }

    /// Adds the reply to a packet, with its length before it, where one is remembered.
    fn remembered(
        &self,
        packet: &[u8],
        plain: &Plain,
        transport: Transport,
        out: &mut Vec<u8>,
    ) -> bool {
        let start = out.len();
        let mut shortcuts = self.shortcuts();
        let room = shortcuts.room(plain);
        out.resize(start + 2 + room, 0);
        let given = shortcuts.answer(packet, plain, clock::lately(), &mut out[start + 2..]);
        drop(shortcuts);
        let hits = match given {
            Given::Reply(length) => {
                if let Ok(prefix) = u16::try_from(length) {
                    out[start..start + 2].copy_from_slice(&prefix.to_be_bytes());
                    out.truncate(start + 2 + length);
                    self.counted.remembered(&out[start + 2..], transport);
                    return true;
                }
                Hits::default()
            }
            Given::Miss { hits } => hits,
        };
        out.truncate(start);
        self.served(packet, hits);
        false
    }

    /// For a datagram that nobody has time for: what was known, or that it is so.
    fn late(&self, packet: &[u8], plain: Option<&Plain>) -> Option<Vec<u8>> {
        let reply = plain.and_then(|plain| {
            let mut shortcuts = self.shortcuts();
            let mut out = vec![0; shortcuts.room(plain).max(shortcut::REFUSAL)];
            match shortcuts.late(packet, plain, clock::lately(), &mut out)? {
                Late::Known(length) => {
                    out.truncate(length);
                    self.counted.remembered(&out, Transport::Udp);
                }
                Late::Shed(length) => {
                    out.truncate(length);
                    self.counted.shed();
                }
            }
            Some(out)
        });
        if reply.is_none() {
            self.counted.dropped();
        }
        reply
    }

    /// The life of one packet that came at `since`. `None`: nothing is to be sent.
    async fn answer(
        &self,
        packet: &[u8],
        client: SocketAddr,
        transport: Transport,
        since: Instant,
    ) -> Option<Reply> {
        let reply = self.reply(packet, client, transport, since).await;
        let took = clock::now().saturating_duration_since(since);
        match &reply {
            Some(reply) => self.counted.answered(&reply.bytes, transport, took),
            None => self.counted.dropped(),
        }
        reply
    }

    async fn reply(
        &self,
        packet: &[u8],
        client: SocketAddr,
        transport: Transport,
        since: Instant,
    ) -> Option<Reply> {
        let unremembered = |bytes| Some(Reply { bytes, fill: None });
        let current = self.current();
        let Current {
            resolver,
            forwarder,
        } = &*current;
        let recursion = match forwarder {
            Some(_) => Recursion::Available,
            None => Recursion::None,
        };
        let question = match answer::judge(packet, resolver.domain(), recursion) {
            Judged::Drop => return None,
            Judged::Reply(reply) => return unremembered(reply),
            Judged::Ask(question) => question,
        };
        let of_others =
            |others| Box::pin(self.forwarded(others, packet, &question, transport, since + LIMIT));
        if is_elsewhere(&question)
            && let Some(forwarder) = forwarder
        {
            return of_others(forwarder).await;
        }
        // An address that Consul does not know may be known to others, who need time too.
        let others = forwarder.as_ref().filter(|_| question.asked.is_reverse());
        let own = if others.is_some() { LIMIT / 2 } else { LIMIT };
        let answer = if self.may_ask(resolver, &question, client) {
            let by = Some(since + own - SPARE);
            let answer = zone::answer(resolver, &question.asked, Runs::Here, by);
            let answer = timeout_at((since + own).into(), answer).await;
            answer.map_err(|_| Sections::failed(ErrorKind::Timeout))
        } else {
            Err(Sections::not_ready())
        };
        // What Consul cannot tell others may know as well.
        let told = answer.as_ref().ok().map(|(_, told)| told);
        let is_known = matches!(told, Some(Ok(Some(_))));
        if let Some(others) = others.filter(|_| !is_known)
            && let Some(Reply { bytes, fill }) = of_others(others).await
        {
            // As soon as Consul can tell, its word comes first again.
            let no = told.filter(|told| told.as_ref().err().is_none_or(Error::is_not_found));
            let fill = fill.filter(|_| no.is_some());
            return Some(Reply { bytes, fill });
        }
        let (sections, answer) = match answer {
            Ok(answer) => answer,
            Err(sections) => return unremembered(question.reply(&sections, transport)),
        };
        let body = question.body(&sections, transport);
        // That a name does not exist is kept from the second time on that somebody asks: a
        // flood of names that are asked for once takes no room.
        let asked_before = (answer.as_ref().err()).is_none_or(|error| error.attempts().is_empty());
        let fill = || {
            let plain = shortcut::read(packet, transport == Transport::Tcp)?;
            Some(Fill {
                key: plain.key.as_bytes().into(),
                recipe: Recipe::of(&body, sections.extended)?,
                since: clock::lately(),
                term: zone::hold(resolver, &question.asked, &answer)?,
            })
        };
        let fill = asked_before.then(fill).flatten();
        Some(Reply {
            bytes: question.finish(body, &sections),
            fill,
        })
    }

    /// Whether a source may be asked for it, where one has to be.
    fn may_ask(&self, resolver: &Resolver, question: &Question, client: SocketAddr) -> bool {
        let may = !is_unknown(resolver, question) || self.budget().take(client, clock::lately());
        if !may {
            self.counted.turned_away();
        }
        may
    }

    /// The reply to a datagram for a name that may not be asked for now, with no more work than
    /// it takes to see that: there may be a hundred thousand a second.
    fn turned_away(&self, packet: &[u8], client: SocketAddr, since: Instant) -> Option<Vec<u8>> {
        if self.budget().has(client, clock::lately()) {
            return None;
        }
        let plain = shortcut::read(packet, false)?;
        let current = self.current();
        let resolver = &current.resolver;
        let judged = answer::judge(packet, resolver.domain(), Recursion::None);
        let Judged::Ask(question) = judged else {
            return None;
        };
        // Others may know who has an address.
        if question.asked.is_reverse() || !is_unknown(resolver, &question) {
            return None;
        }
        let mut reply = vec![0; shortcut::REFUSAL];
        let length = plain.overload(packet, &mut reply)?;
        reply.truncate(length);
        self.counted.turned_away();
        let took = clock::lately().saturating_duration_since(since);
        self.counted.answered(&reply, Transport::Udp, took);
        Some(reply)
    }

    /// The answer of others. `None`: nobody else is to be asked who has an address.
    async fn forwarded(
        &self,
        forwarder: &Arc<Forwarder>,
        packet: &[u8],
        question: &Question,
        transport: Transport,
        deadline: Instant,
    ) -> Option<Reply> {
        let own = |sections: &Sections| {
            let bytes = question.reply(sections, transport);
            Some(Reply { bytes, fill: None })
        };
        let labels = question.labels();
        match upstreams::local(&labels) {
            Some(Local::Loopback) => return own(&write::loopback(&question.asked)),
            Some(Local::NoSuchName) => return own(&Sections::nowhere()),
            None => {}
        }
        if question.is_about_no_record() {
            return own(&Sections::not_implemented());
        }
        // Who wants no recursion wants nobody to be asked.
        if !question.wants_recursion() {
            let is_reverse = question.asked.is_reverse();
            return (!is_reverse).then(|| own(&Sections::refused())).flatten();
        }
        // What is signed is not taken apart, and what a client says of itself is neither
        // kept nor shared.
        let plain = shortcut::read(packet, transport == Transport::Tcp);
        let plain = plain.filter(|plain| !plain.wants_signatures && !plain.has_options);
        let plain = plain.as_ref();
        let told = forwarder.answer(packet, &labels, plain, transport, deadline);
        match told.await {
            Forwarded::Reply(bytes) => {
                let fill = plain.and_then(|plain| forwarder.fill(plain));
                Some(Reply { bytes, fill })
            }
            Forwarded::Filtered => own(&Sections::filtered()),
            Forwarded::Nobody if question.asked.is_reverse() => None,
            Forwarded::Nobody => own(&Sections::refused()),
            Forwarded::Failed => own(&Sections::failed(ErrorKind::Unavailable)),
        }
    }

    /// The answer to a question was given so often without asking the resolver.
    fn served(&self, packet: &[u8], hits: Hits) {
        if hits == Hits::default() {
            return;
        }
        let current = self.current();
        let resolver = &current.resolver;
        if let Judged::Ask(question) = answer::judge(packet, resolver.domain(), Recursion::None)
            && let Ok(name) = &question.asked.meaning
        {
            resolver.served(name, hits);
        }
    }

    fn keep(&self, fill: Fill) {
        self.shortcuts().keep(fill, clock::lately());
    }

    fn budget(&self) -> MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shortcuts(&self) -> MutexGuard<'_, Shortcuts> {
        self.shortcuts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a source has to be asked for a name that nothing is known of.
fn is_unknown(resolver: &Resolver, question: &Question) -> bool {
    zone::sought(&question.asked).is_some_and(|name| !resolver.knows_of(name))
}

/// Whether a name is none that Consul knows of. `consul` is Consul's also where another
/// domain is configured: it is never asked of others.
fn is_elsewhere(question: &Question) -> bool {
    question.asked.meaning == Err(NotAName::Elsewhere)
        && name::below(&question.labels(), ["consul"]).is_none()
}

fn not_bound(address: SocketAddr, error: io::Error) -> Error {
    let next = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another program answers there: choose another port with --listen"
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need the capability CAP_NET_BIND_SERVICE: choose another with --listen"
        }
        io::ErrorKind::AddrNotAvailable => "this machine has no such address",
        _ => "choose another with --listen",
    };
    Error::caused(
        ErrorKind::Io,
        format!("{address} cannot be bound: {error}; {next}"),
        error,
    )
}
