//! **Door.** The life of one question: from what is remembered, from what the zone answers, or
//! from others, in time, and no more of them than Consul is to be asked.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

use super::{
    answer::{self, Judged, Question, Recursion},
    budget::{self, Budget},
    forward::{Asked, Forwarded, Forwarder, Waiters},
    framed::Framed,
    networks::Trusted,
    shortcut::{self, Fill, Given, Late, Plain, Recipe, Shortcuts, Way},
    tally::Counted,
    upstreams::{self, Local, Upstreams},
};
use crate::{
    cache::Hits,
    clock,
    endpoint::Transport,
    error::{Error, ErrorKind},
    flight::Runs,
    name::{self, NotAName},
    records::write::{self, MORE_THAN_FIT, Sections},
    resolver::Resolver,
    task, zone,
};

/// Bytes of long replies that wait until their clients take them, over all connections.
const MOST_DUE: usize = 64 << 20;

/// Every question is answered within 900 ms, before clients ask again after a second.
const LIMIT: Duration = Duration::from_millis(850);

/// So much of the time is kept for what is known, or written down, where no source answers.
const SPARE: Duration = Duration::from_millis(80);

/// What every packet is answered from.
#[derive(Debug)]
pub(super) struct Server {
    /// Where it answers.
    pub(super) addresses: Vec<SocketAddr>,
    /// A std lock: held for one look, never across an await.
    current: RwLock<Arc<Current>>,
    pub(super) counted: Arc<Counted>,
    /// Of names that nothing is known of. A std mutex: held for one look.
    budget: Mutex<Budget>,
    /// Of connections, and of sockets bound to every address. A std mutex: held for one look,
    /// never across an await.
    shortcuts: Mutex<Shortcuts>,
    /// The room that long replies over TCP have together until they are written, in bytes.
    pub(super) due: Arc<Semaphore>,
    pub(super) trusted: Arc<Trusted>,
}

/// What may be replaced while a stub runs.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) resolver: Resolver,
    /// `None`: names that are not Consul's are refused.
    forwarder: Option<Arc<Forwarder>>,
}

impl Current {
    fn recursion(&self) -> Recursion {
        match self.forwarder {
            Some(_) => Recursion::Available,
            None => Recursion::None,
        }
    }
}

/// What goes out, and what may be remembered of it.
pub(super) struct Reply {
    pub(super) bytes: Vec<u8>,
    pub(super) fill: Option<Fill>,
}

impl Server {
    pub(super) fn new(resolver: Resolver, addresses: Vec<SocketAddr>) -> Self {
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
            due: Arc::new(Semaphore::new(MOST_DUE)),
            trusted: Arc::default(),
        }
    }

    pub(super) fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn replace(&self, resolver: Resolver, upstreams: Upstreams) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let (before, counted) = (current.forwarder.as_ref(), &self.counted);
        counted.lasting.tally.count_with(resolver.counters());
        let forwarder = Forwarder::after(before, upstreams, &self.addresses, &counted.lasting);
        counted.forwards_by(forwarder.as_ref());
        let next = Arc::new(Current {
            resolver,
            forwarder,
        });
        let before = std::mem::replace(&mut *current, next);
        drop(current);
        before.resolver.is_replaced();
    }

    /// What is remembered, for all packets that are there: nobody else looks meanwhile.
    pub(super) fn memory(&self, transport: Transport) -> Memory<'_> {
        Memory {
            server: self,
            shortcuts: self.shortcuts(),
            transport,
        }
    }

    /// For a datagram that nobody has time for: what was known, or that it is so.
    pub(super) fn late(
        &self,
        packet: &[u8],
        plain: Option<&Plain>,
        client: SocketAddr,
    ) -> Option<Vec<u8>> {
        let reply = plain.and_then(|plain| {
            let mut shortcuts = self.shortcuts();
            let mut out = vec![0; shortcuts.room(plain).max(shortcut::REFUSAL)];
            let late = shortcuts.late(packet, plain, clock::lately(), &mut out)?;
            match late {
                // Counted while nobody else looks.
                Late::Known(length) => {
                    out.truncate(length);
                    self.counted.remembered(&out, Transport::Udp);
                }
                Late::Shed(length) => {
                    drop(shortcuts);
                    if let Some(known) = self.known(packet, client) {
                        return Some(known);
                    }
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

    /// For a datagram that nobody has time for, and that no reply is remembered for: what the
    /// resolver knows all the same.
    pub(super) fn known(&self, packet: &[u8], client: SocketAddr) -> Option<Vec<u8>> {
        let current = self.current();
        let resolver = &current.resolver;
        let judged = answer::judge(packet, resolver.domain(), current.recursion());
        let Judged::Ask(question) = judged else {
            return None;
        };
        let sections = zone::known(resolver, &question.asked)?;
        let reply = question.reply(&sections, Way::udp(client.ip()));
        (self.counted).answered(&reply, Transport::Udp, Duration::ZERO);
        Some(reply)
    }

    /// The life of one packet that came at `since` from a client by a socket, which counts those of
    /// its own who wait for others' questions. `None`: nothing is to be sent. Where it
    /// panics, which is a defect, its client waits no longer for that.
    pub(super) async fn answer(
        &self,
        packet: &[u8],
        by: (SocketAddr, &Waiters),
        transport: Transport,
        since: Instant,
    ) -> Option<Reply> {
        let reply = task::outcome(self.reply(packet, by, transport, since)).await;
        let reply = reply.unwrap_or_else(|| self.broken(packet, by.0, transport));
        let took = clock::took(since);
        match &reply {
            Some(reply) => self.counted.answered(&reply.bytes, transport, took),
            None => self.counted.dropped(),
        }
        reply
    }

    /// SERVFAIL to a question that panicked.
    fn broken(&self, packet: &[u8], client: SocketAddr, transport: Transport) -> Option<Reply> {
        let bytes = self.failing(packet, client, transport, &Sections::broken())?;
        Some(Reply { bytes, fill: None })
    }

    /// SERVFAIL to a question whose answer there is no room for now.
    pub(super) fn busy(
        &self,
        packet: &[u8],
        client: SocketAddr,
        transport: Transport,
    ) -> Option<Vec<u8>> {
        self.failing(packet, client, transport, &Sections::not_ready())
    }

    fn failing(
        &self,
        packet: &[u8],
        client: SocketAddr,
        transport: Transport,
        sections: &Sections,
    ) -> Option<Vec<u8>> {
        let (current, way) = (self.current(), Way::of(transport, client));
        let judged = task::caught(|| {
            let (domain, recursion) = (current.resolver.domain(), current.recursion());
            match answer::judge(packet, domain, recursion) {
                Judged::Drop => None,
                Judged::Reply(reply) => Some(reply),
                Judged::Ask(question) => Some(question.reply(sections, way)),
            }
        });
        // It may have been the reading that panicked.
        judged.unwrap_or_else(|| answer::unread(packet))
    }

    async fn reply(
        &self,
        packet: &[u8],
        by: (SocketAddr, &Waiters),
        transport: Transport,
        since: Instant,
    ) -> Option<Reply> {
        let unremembered = |bytes| Some(Reply { bytes, fill: None });
        let current = self.current();
        let Current {
            resolver,
            forwarder,
        } = &*current;
        let question = match answer::judge(packet, resolver.domain(), current.recursion()) {
            Judged::Drop => return None,
            Judged::Reply(reply) => {
                self.counted.judged(&reply);
                return unremembered(reply);
            }
            Judged::Ask(question) => question,
        };
        let (client, _) = by;
        let way = Way::of(transport, client);
        let asked = (packet, by, way);
        let of_others = |others| Box::pin(self.forwarded(others, asked, &question, since + LIMIT));
        if is_elsewhere(&question) {
            if let Some(sections) = local(&question, &current) {
                return unremembered(question.reply(&sections, way));
            }
            if let Some(forwarder) = forwarder {
                return of_others(forwarder).await;
            }
        }
        // An address that Consul does not know may be known to others, who need time too.
        let others = forwarder.as_ref().filter(|_| question.asked.is_reverse());
        let own = if others.is_some() { LIMIT / 2 } else { LIMIT };
        let answer = if self.may_ask(resolver, &question, client) {
            let by = Some(since + own - SPARE);
            let answer = zone::answer(resolver, &question.asked, Runs::Here, by, MORE_THAN_FIT);
            let answer = clock::timeout_at(since + own, answer).await;
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
            Err(sections) => return unremembered(question.reply(&sections, way)),
        };
        let body = question.body(&sections, way);
        // That a name does not exist is kept from the second time on that somebody asks: a
        // flood of names that are asked for once takes no room.
        let asked_before = (answer.as_ref().err()).is_none_or(|error| error.attempts().is_empty());
        let fill = || {
            let plain = shortcut::read(packet, way)?;
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
    pub(super) fn turned_away(
        &self,
        packet: &[u8],
        client: SocketAddr,
        since: Instant,
    ) -> Option<Vec<u8>> {
        if self.budget().has(client, clock::lately()) {
            return None;
        }
        let plain = shortcut::read(packet, Way::udp(client.ip()))?;
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
        (packet, (client, waiters), way): (&[u8], (SocketAddr, &Waiters), Way),
        question: &Question,
        deadline: Instant,
    ) -> Option<Reply> {
        let own = |sections: &Sections| {
            let bytes = question.reply(sections, way);
            Some(Reply { bytes, fill: None })
        };
        let labels = question.labels();
        if question.is_about_no_record() {
            return own(&Sections::not_implemented());
        }
        // Who wants no recursion wants nobody to be asked.
        if !question.wants_recursion() {
            let is_reverse = question.asked.is_reverse();
            return (!is_reverse).then(|| own(&Sections::refused())).flatten();
        }
        let read = shortcut::read(packet, way);
        let asked = Asked {
            packet,
            labels: &labels,
            read: read.as_ref(),
            client,
            way,
            waiters,
            deadline,
        };
        match forwarder.answer(asked).await {
            Forwarded::Reply(bytes) => {
                // What was cut was not looked at whole.
                let is_whole = bytes.get(2).is_some_and(|flags| flags & 0x02 == 0);
                let plain = asked.plain().filter(|_| is_whole);
                let fill = plain.and_then(|plain| forwarder.fill(plain));
                Some(Reply { bytes, fill })
            }
            Forwarded::Filtered => own(&Sections::filtered()),
            Forwarded::Nobody if question.asked.is_reverse() => None,
            Forwarded::Nobody => own(&Sections::refused()),
            Forwarded::Failed => own(&Sections::failed(ErrorKind::Unavailable)),
            Forwarded::TurnedAway => {
                self.counted.turned_away();
                own(&Sections::not_ready())
            }
        }
    }

    /// The answer to a question was given so often without asking the resolver.
    pub(super) fn served(&self, packet: &[u8], hits: Hits) {
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

    pub(super) fn keep(&self, fill: Fill) {
        self.shortcuts().keep(fill, clock::lately());
    }

    pub(super) fn budget(&self) -> MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shortcuts(&self) -> MutexGuard<'_, Shortcuts> {
        self.shortcuts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The replies that are remembered.
pub(super) struct Memory<'a> {
    server: &'a Server,
    shortcuts: MutexGuard<'a, Shortcuts>,
    transport: Transport,
}

impl Memory<'_> {
    /// Adds the reply to a packet, with its length before it, where one is remembered `now`.
    pub(super) fn give(
        &mut self,
        packet: &[u8],
        plain: &Plain,
        now: Instant,
        out: &mut Framed,
    ) -> bool {
        let given = (self.shortcuts).answer_within(packet, plain, now, |most| out.room(most));
        let hits = match given {
            Given::Reply(length) => match out.take(length) {
                Some(reply) => {
                    self.server.counted.remembered(reply, self.transport);
                    return true;
                }
                None => Hits::default(),
            },
            Given::Miss { hits } => hits,
        };
        self.server.served(packet, hits);
        false
    }
}

/// Whether a source has to be asked for a name that nothing is known of.
fn is_unknown(resolver: &Resolver, question: &Question) -> bool {
    zone::sought(&question.asked).is_some_and(|name| !resolver.knows_of(name))
}

/// What is said of a name that nobody is to be asked for.
fn local(question: &Question, current: &Current) -> Option<Sections> {
    const TEST: &str = "test";
    let uses_test = || {
        let forwarder = current.forwarder.as_ref();
        let domain = current.resolver.domain().as_str().trim_end_matches('.');
        forwarder.is_some_and(|forwarder| forwarder.has_servers_below(TEST))
            || (domain.rsplit('.').next()).is_some_and(|top| top.eq_ignore_ascii_case(TEST))
    };
    Some(match upstreams::local(&question.labels(), uses_test)? {
        Local::Loopback => write::loopback(&question.asked),
        Local::NoSuchName => Sections::nothing_local(&question.asked),
    })
}

/// Whether a name is none that Consul knows of. `consul` is Consul's also where another
/// domain is configured: it is never asked of others.
fn is_elsewhere(question: &Question) -> bool {
    question.asked.meaning == Err(NotAName::Elsewhere)
        && name::below(&question.labels(), ["consul"]).is_none()
}
