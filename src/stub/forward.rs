//! **Shell.** Names that are not Consul's: each packet goes on as it came, with an id
//! and a port of its own, and what comes back goes back, so that types and options that
//! nobody here knows stay whole. Who is asked is [`upstreams`]' to say.
//!
//! | upstream | the client gets |
//! | --- | --- |
//! | answers | that, kept for its TTL |
//! | is silent for its share of the time | the answer of the next one, or its own, whichever comes first; whoever failed is asked last for a while |
//! | refuses, says SERVFAIL, NOTIMP or REFUSED | the next one's answer, likewise |
//! | all of them, for a name that was answered before | that answer, as stale (RFC 8767): after [`PATIENCE`] at most, and at once where that has failed, or the last few questions, or nobody can be asked; then it is asked for beside that |
//! | all of them, otherwise; more than [`MOST_SEATS`] questions are in the air | SERVFAIL and an extended error; what failed is so for [`REST`] (RFC 9520) |
//! | all of them, but none had a fair time: we stood still | the same, and nothing is remembered of it |
//! | is drowned by replies under wrong ids | what it says over TCP, where guesses are useless |
//! | sends the question back to us | it is found out by a question of ours, and asked no more until such a question is answered |

mod exchange;
mod health;
mod memory;
mod message;
mod probe;
mod system;
mod tally;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use nix::errno::Errno;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};
use tracing::{debug, info, warn};

#[cfg(any(fuzzing, test))]
pub(crate) use self::message::answers;
pub(super) use self::tally::Standing;
use self::{
    exchange::Work,
    health::{Health, Hop, LONGEST_REST, REST, is_fair},
    memory::{Memory, Reply},
    message::{cannot_tell, own_head, room, truncated, with_room},
    probe::{Nonce, Probes},
    system::System,
    tally::{Tally, Trouble},
};
use super::{
    budget::{self, Budget},
    shortcut::{Fill, Plain, Way, addresses},
    upstreams::{self, Upstreams},
};
use crate::{
    clock,
    endpoint::Transport,
    flight::{Flights, Runs},
    task,
};

/// Who has a stale answer waits so long for a newer one.
const PATIENCE: Duration = Duration::from_millis(700);

/// All of them together, at most.
const LIMIT: Duration = Duration::from_millis(820);

/// So long a question is asked however soon its first client leaves: others may have joined,
/// and what is heard is kept.
const LEAST: Duration = Duration::from_millis(400);

/// Questions sent on at once, as many as one lane has seats: with two cores and more those about
/// Consul's names find one however long others are waited for.
const MOST_SEATS: usize = 512;

/// Clients who wait for another's question. They take no seat, neither here nor of a lane: what
/// is asked once costs others nothing. Where half of them are there, so many at most wait for one
/// question.
const MOST_WAITERS: usize = 10_000;
const MOST_WAITERS_OF_ONE: usize = 1_000;

/// Those of one socket of ours who wait for others' questions.
#[derive(Debug, Default)]
pub(super) struct Waiters(AtomicUsize);

impl Waiters {
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Leave to wait for another's question.
struct Waits<'a> {
    _room: SemaphorePermit<'a>,
    /// `None`: it has a seat, as those who ask.
    among: Option<&'a Waiters>,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        if let Some(among) = self.among {
            among.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// What stays where other upstreams are asked.
#[derive(Debug)]
pub(super) struct Lasting {
    pub(super) tally: Tally,
    /// Of names that nothing is remembered of. A std mutex: held for one look.
    budget: Mutex<Budget>,
    waiters: Semaphore,
}

impl Lasting {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            tally: Tally::default(),
            budget: Mutex::new(Budget::new(budget::DEFAULT, now)),
            waiters: Semaphore::new(MOST_WAITERS),
        }
    }

    pub(super) fn budget(&self) -> MutexGuard<'_, Budget> {
        lock(&self.budget)
    }
}

/// One question of a client's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) packet: &'a [u8],
    /// Of its name.
    pub(super) labels: &'a [&'a [u8]],
    /// The packet, if it is understood whole.
    pub(super) read: Option<&'a Plain>,
    pub(super) client: SocketAddr,
    pub(super) way: Way,
    /// Those of the socket that it came by.
    pub(super) waiters: &'a Waiters,
    pub(super) deadline: Instant,
}

impl<'a> Asked<'a> {
    /// The packet, if it is an ordinary question: what is signed is not taken apart, and what a
    /// client says of itself is neither kept nor shared.
    pub(super) fn plain(&self) -> Option<&'a Plain> {
        (self.read).filter(|read| !read.wants_signatures && !read.has_options)
    }

    fn key(&self) -> Option<&'a [u8]> {
        self.plain().map(|plain| plain.key.as_bytes())
    }

    /// The packet that goes on: it asks for no more than its client may have.
    fn sent(&self) -> Vec<u8> {
        with_room(self.packet, self.way.most())
    }

    /// Bytes that its reply may have.
    fn room(&self) -> usize {
        let most = usize::from(self.way.most());
        match self.way {
            Way::Loopback | Way::Elsewhere => room(self.packet).min(most),
            Way::Tcp => most,
        }
    }
}

/// Forwards to upstreams, and remembers.
#[derive(Debug)]
pub(super) struct Forwarder {
    upstreams: Upstreams,
    own: Vec<SocketAddr>,
    lasting: Arc<Lasting>,
    /// Std mutexes: held for one look, never across an await.
    system: Mutex<System>,
    health: Mutex<Health>,
    memory: Mutex<Memory>,
    flights: Flights<Box<[u8]>, Option<Reply>>,
    seats: Semaphore,
    probes: Mutex<Probes>,
}

/// No upstream had the time to answer: that says nothing of them, nor of the name.
#[derive(Debug)]
struct Unheard;

/// What the client gets.
#[derive(Debug)]
pub(super) enum Forwarded {
    Reply(Vec<u8>),
    /// It leads where it must not.
    Filtered,
    /// Nobody answered.
    Failed,
    /// There is nobody to ask.
    Nobody,
    /// More is asked for that nothing is remembered of than may be.
    TurnedAway,
}

impl Forwarder {
    fn new(upstreams: Upstreams, own: Vec<SocketAddr>, lasting: Arc<Lasting>) -> Self {
        for server in upstreams.all(&[]) {
            if upstreams::is_ours(server, &own) {
                warn!(%server, "this upstream is this very server, and is never asked");
            }
        }
        Self {
            upstreams,
            own,
            lasting,
            system: Mutex::default(),
            health: Mutex::default(),
            memory: Mutex::default(),
            // Whoever asks has an end of its own before that.
            flights: Flights::new(2 * LIMIT),
            seats: Semaphore::new(MOST_SEATS),
            probes: Mutex::default(),
        }
    }

    /// The one for these upstreams, if there are any: the one before, with what it knows,
    /// where they are the same.
    pub(super) fn after(
        before: Option<&Arc<Self>>,
        upstreams: Upstreams,
        own: &[SocketAddr],
        lasting: &Arc<Lasting>,
    ) -> Option<Arc<Self>> {
        if upstreams.is_none() {
            return None;
        }
        let Some(before) = before.filter(|before| before.upstreams == upstreams) else {
            let next = Self::new(upstreams, own.to_vec(), Arc::clone(lasting));
            return Some(Arc::new(next));
        };
        before.health().forgive();
        Some(Arc::clone(before))
    }

    /// Whether servers are named for a domain below that label.
    pub(super) fn has_servers_below(&self, top: &str) -> bool {
        self.upstreams.has_below(top)
    }

    /// The answer to a question, by its deadline.
    pub(super) async fn answer(self: &Arc<Self>, asked: Asked<'_>) -> Forwarded {
        let forwarded = self.ask_or_remember(asked).await;
        if let Forwarded::Reply(reply) = &forwarded
            && !(self.upstreams).trusts(asked.labels, || addresses(reply))
        {
            debug!("an answer that leads into this network is not handed on");
            self.lasting.tally.filtered();
            return Forwarded::Filtered;
        }
        forwarded
    }

    async fn ask_or_remember(self: &Arc<Self>, asked: Asked<'_>) -> Forwarded {
        let Asked { packet, labels, .. } = asked;
        if self.is_probe(labels) {
            return Forwarded::Nobody;
        }
        let key = asked.key();
        let kept = |stale| (self.memory()).answer(packet, asked.plain()?, stale, clock::now());
        if let Some(reply) = kept(false) {
            return Forwarded::Reply(reply);
        }
        let kept = || kept(true).inspect(|_| self.lasting.tally.gave_stale());
        let servers = self.servers(labels);
        if servers.is_empty() {
            return kept().map_or(Forwarded::Nobody, Forwarded::Reply);
        }
        let now = clock::now();
        if now >= asked.deadline {
            return kept().map_or(Forwarded::Failed, Forwarded::Reply);
        }
        if let Some(key) = key
            && (self.failure(key, LONGEST_REST).is_some() || self.health().are_down(&servers, now))
            && let Some(reply) = kept()
        {
            self.ask_beside(asked, key, servers);
            return Forwarded::Reply(reply);
        }
        if !self.may_ask(asked, now) {
            return Forwarded::TurnedAway;
        }
        let deadline = asked.deadline.min(now + LIMIT);
        let end = deadline.max(now + LEAST);
        let asking = self.ask(asked, servers, end);
        let patience = if key.is_some_and(|key| self.memory().knows(key)) {
            PATIENCE
        } else {
            LIMIT
        };
        let until = deadline.min(now + patience);
        let told = clock::timeout_at(until, asking).await;
        if let (Err(_), Some(key)) = (&told, key)
            && is_fair(now, until, clock::now())
        {
            self.fails(key);
        }
        let told = told.ok().flatten();
        // Whoever says that it cannot tell knows less than what was known.
        if told.as_deref().is_none_or(|told| cannot_tell(told))
            && let Some(reply) = kept()
        {
            return Forwarded::Reply(reply);
        }
        match told {
            // It was asked for another client, who can take more, or is longer than was asked for.
            Some(told) if told.len() > asked.room() => {
                Forwarded::Reply(own_head(&truncated(&told), packet))
            }
            Some(told) => Forwarded::Reply(own_head(&told, packet)),
            None => Forwarded::Failed,
        }
    }

    /// Whether upstreams may be asked, where they have to be: what is remembered, or in the air,
    /// or has just failed is free. So is what is never kept about a name that others ask for.
    fn may_ask(&self, asked: Asked<'_>, now: Instant) -> bool {
        let is_known = |key: &[u8]| {
            let is_remembered = self.memory().knows(key) || self.failure(key, REST).is_some();
            is_remembered || self.flights.is_airborne(&key.into())
        };
        let is_free = match (asked.key(), asked.read) {
            (Some(key), _) => is_known(key),
            (None, Some(read)) => {
                let memory = self.memory();
                let mut usual = read.key.usual();
                usual.any(|key| memory.knows(key.as_bytes()))
            }
            (None, None) => false,
        };
        is_free || self.lasting.budget().take(asked.client, now)
    }

    /// Asks one upstream after the other; whoever asks the same meanwhile, or while it has
    /// just failed, is given the same.
    async fn ask(
        self: &Arc<Self>,
        asked: Asked<'_>,
        servers: Vec<SocketAddr>,
        deadline: Instant,
    ) -> Option<Reply> {
        let (key, transport) = (asked.key(), asked.way.transport());
        let asking = || {
            let question = (asked.sent(), key.map(Into::into));
            Arc::clone(self).asked(question, servers, transport, deadline)
        };
        let Some(key) = key else {
            return asking().await;
        };
        let (flights, key) = (&self.flights, key.into());
        let _waits = match flights.is_airborne(&key) {
            true => Some(self.waits(flights.joined(&key), asked.waiters)?),
            false => None,
        };
        let failed = || self.failure(&key, REST);
        flights.join(&key, Runs::Here, failed, asking).await.ok()?
    }

    /// Lets one more client wait for a question, as so many others do. Where too many do it takes
    /// a seat, as long as half of them are free.
    fn waits<'a>(&'a self, others: usize, among: &'a Waiters) -> Option<Waits<'a>> {
        let room = &self.lasting.waiters;
        let is_crowded = room.available_permits() <= MOST_WAITERS / 2;
        if (!is_crowded || others < MOST_WAITERS_OF_ONE)
            && let Ok(room) = room.try_acquire()
        {
            among.0.fetch_add(1, Ordering::Relaxed);
            let among = Some(among);
            return Some(Waits { _room: room, among });
        }
        let seat = self.has_room().then(|| self.seats.try_acquire().ok());
        seat.flatten().map(|room| Waits {
            _room: room,
            among: None,
        })
    }

    /// Whether half the seats are free.
    fn has_room(&self) -> bool {
        self.seats.available_permits() > MOST_SEATS / 2
    }

    /// The same, where nobody waits for it: seldom, and with no more than half the seats, which
    /// leaves the others to questions that somebody waits for.
    fn ask_beside(self: &Arc<Self>, asked: Asked<'_>, key: &[u8], servers: Vec<SocketAddr>) {
        if self.failure(key, REST).is_some() || !self.has_room() {
            return;
        }
        // So it is until more is heard.
        self.fails(key);
        let question = (asked.sent(), Some(key.into()));
        let (transport, deadline) = (asked.way.transport(), clock::now() + LIMIT);
        // Bounded by that, and by its seat.
        let asking = Arc::clone(self).asked(question, servers, transport, deadline);
        tokio::spawn(task::outcome(asking));
    }

    /// One question, which has a seat. What was heard is kept even if nobody waits any more.
    async fn asked(
        self: Arc<Self>,
        (packet, key): (Vec<u8>, Option<Box<[u8]>>),
        servers: Vec<SocketAddr>,
        transport: Transport,
        deadline: Instant,
    ) -> Option<Reply> {
        let _seat = self.seats.try_acquire().ok()?;
        let told = self.climb(&packet, &servers, transport, deadline).await;
        if let (Some(key), Ok(told)) = (key, &told) {
            self.memory().hear(key, told.as_ref(), clock::now());
        }
        told.ok().flatten()
    }

    /// Asks one server after the other, and listens to all who were asked until one can tell.
    async fn climb(
        self: &Arc<Self>,
        packet: &[u8],
        servers: &[SocketAddr],
        transport: Transport,
        deadline: Instant,
    ) -> Result<Option<Reply>, Unheard> {
        let tally = &self.lasting.tally;
        let work = Work::new(tally);
        let mut servers = servers.iter().copied().peekable();
        let mut asked = FuturesUnordered::new();
        // Whose turn it is, from when and until when.
        let mut turn = None;
        let (mut last, mut is_heard) = (None, false);
        loop {
            let now = clock::now();
            let left = deadline.saturating_duration_since(now);
            if turn.is_none()
                && !left.is_zero()
                && let Some(server) = servers.next_if(|_| work.take(transport))
            {
                asked.push(exchange::ask(server, packet, transport, &work));
                let others = servers.len().min(work.left(transport));
                let share = self.health().share(server, others + 1, left);
                turn = Some((server, now, now + share));
            }
            let until = turn.map_or(deadline, |(_, _, until)| until);
            match clock::timeout_at(until, asked.next()).await {
                Ok(Some((server, Ok(reply)))) => {
                    is_heard = true;
                    self.health().heard(server, Some(&reply), clock::now());
                    turn = turn.filter(|(whose, ..)| *whose != server);
                    Trouble::of_reply(&reply).inspect(|trouble| tally.failed(*trouble));
                    let reply = Arc::new(reply);
                    if !cannot_tell(&reply) {
                        return Ok(Some(reply));
                    }
                    last = Some(reply);
                }
                Ok(Some((server, Err(error)))) if is_our_own(&error) => {
                    debug!(%server, %error, "this machine has no room to ask an upstream");
                    turn.take_if(|(whose, ..)| *whose == server);
                }
                Ok(Some((server, Err(error)))) => {
                    debug!(%server, %error, "upstream failed");
                    is_heard = true;
                    // Of whoever was silent before it is known.
                    if turn.take_if(|(whose, ..)| *whose == server).is_some() {
                        tally.failed(Trouble::of_error(&error));
                        self.health().heard(server, None, clock::now());
                    }
                }
                // All who were asked have failed, and nobody is left.
                Ok(None) => break,
                Err(_) => {
                    let Some((server, since, until)) = turn.take() else {
                        break;
                    };
                    debug!(%server, "upstream was silent");
                    let now = clock::now();
                    if is_fair(since, until, now) {
                        is_heard = true;
                        tally.failed(Trouble::TimedOut);
                        self.health().heard(server, None, now);
                    }
                }
            }
        }
        match is_heard {
            true => Ok(last),
            false => Err(Unheard),
        }
    }

    /// The upstreams for a name, in the order in which they are asked.
    fn servers(self: &Arc<Self>, labels: &[&[u8]]) -> Vec<SocketAddr> {
        let now = clock::now();
        let system = match self.upstreams.wants_system() {
            true => self.system(now),
            false => Vec::new(),
        };
        let mut servers = self.upstreams.of(labels, &system);
        servers.retain(|server| !upstreams::is_ours(*server, &self.own));
        let route = self.upstreams.route_number(labels);
        let asks = |servers: &mut Vec<SocketAddr>| {
            for server in &*servers {
                self.probe((*server, route), labels, now);
            }
            self.health().order(servers, route, now);
        };
        let is_of_system = servers.iter().all(|server| system.contains(server));
        asks(&mut servers);
        if servers.is_empty() && is_of_system && !system.is_empty() {
            // All of them send their questions to us.
            servers = lock(&self.system).behind();
            asks(&mut servers);
        }
        servers
    }

    /// How all upstreams do.
    pub(super) fn standings(&self) -> Vec<Standing> {
        let all = self.upstreams.all(lock(&self.system).known());
        let others = all
            .into_iter()
            .filter(|server| !upstreams::is_ours(*server, &self.own));
        let health = self.health();
        others.map(|server| health.standing(server)).collect()
    }

    /// The servers of resolv.conf.
    fn system(&self, now: Instant) -> Vec<SocketAddr> {
        let (servers, are_others) = lock(&self.system).servers(&self.own, now);
        if are_others {
            self.health().forgive();
        }
        servers
    }

    /// Asks an upstream now and then, beside the questions to it, for a name that only we know:
    /// if that comes back here, it would send every question in a circle.
    fn probe(self: &Arc<Self>, hop: Hop, labels: &[&[u8]], now: Instant) {
        if !self.health().is_to_be_probed(hop, now) {
            return;
        }
        let (domain, dice) = (
            self.upstreams.domain(labels),
            [(); 2].map(|()| clock::nonce()),
        );
        let question = lock(&self.probes).question(hop, domain, dice, now);
        let Some((nonce, packet)) = question else {
            return;
        };
        // It holds on to nothing that is remembered: a reload may be the end of that.
        let (forwarder, lasting) = (Arc::downgrade(self), Arc::clone(&self.lasting));
        // Bounded by its own limit.
        tokio::spawn(task::outcome(async move {
            let work = Work::new(&lasting.tally);
            let asking = exchange::over_udp(hop.0, &packet, &work);
            let told = timeout(LIMIT, asking).await.ok().and_then(Result::ok);
            if let Some(forwarder) = forwarder.upgrade() {
                forwarder.probed(hop, &nonce, told.as_deref());
            }
        }));
    }

    /// What came of that. Whoever cannot tell may have asked somebody who sends it back later, or
    /// nobody: that says as little as silence does.
    fn probed(&self, hop: Hop, nonce: &Nonce, told: Option<&[u8]>) {
        if !lock(&self.probes).is_out(nonce) {
            return;
        }
        if told.is_none_or(cannot_tell) {
            self.health().kept_silent(hop, clock::now());
        } else if self.health().passes(hop) {
            info!(server = %hop.0, "this upstream sends questions back to us no more");
        }
    }

    /// Whether a name is one of ours that went round. Whoever sent it on is asked no
    /// more.
    fn is_probe(&self, labels: &[&[u8]]) -> bool {
        let Some(hop) = lock(&self.probes).came_round(labels, clock::now()) else {
            return false;
        };
        if self.health().loops(hop) {
            warn!(server = %hop.0, "this upstream sends questions back to us: it is asked no more");
        }
        true
    }

    /// For the fast lane: what is known and holds.
    pub(super) fn fill(&self, plain: &Plain) -> Option<Fill> {
        self.memory().fill(plain, clock::now())
    }

    /// What was told where this failed so shortly ago.
    fn failure(&self, key: &[u8], within: Duration) -> Option<Option<Reply>> {
        self.memory().failure(key, within, clock::now())
    }

    fn fails(&self, key: &[u8]) {
        self.memory().fail(key.into(), None, clock::now());
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        lock(&self.health)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        lock(&self.memory)
    }
}

/// Whether an upstream could not be asked because this process or this machine ran out of
/// something: that says nothing of the upstream.
fn is_our_own(error: &io::Error) -> bool {
    const SHORT: [Errno; 4] = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM];
    let number = error.raw_os_error().map(Errno::from_raw);
    number.is_some_and(|number| SHORT.contains(&number))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
