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
//! | sends the question back to us | it is found out by a question of ours, and asked no more |

mod exchange;
mod health;
mod memory;
mod message;
mod system;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{timeout, timeout_at},
};
use tracing::{debug, warn};

#[cfg(any(fuzzing, test))]
pub(crate) use self::message::answers;
use self::{
    health::{Health, LONGEST_REST, REST, is_fair},
    memory::{Memory, Reply},
    message::{cannot_tell, own_head, room, truncated},
    system::System,
};
use super::{
    shortcut::{Fill, Plain, addresses},
    upstreams::{self, Upstreams},
};
use crate::{
    clock,
    endpoint::Transport,
    flight::{Flights, Runs},
};

/// Who has a stale answer waits so long for a newer one.
const PATIENCE: Duration = Duration::from_millis(700);

/// All of them together, at most.
const LIMIT: Duration = Duration::from_millis(820);

/// So long a question is asked however soon its first client leaves: others may have joined,
/// and what is heard is kept.
const LEAST: Duration = Duration::from_millis(400);

/// Questions sent on at once, half the seats of a lane, and those who wait for another's, a
/// quarter: those about Consul's names find one however long others are waited for.
const MOST_SEATS: usize = 512;
const MOST_BESIDE: usize = 256;

/// Forwards to upstreams, and remembers.
#[derive(Debug)]
pub(super) struct Forwarder {
    upstreams: Upstreams,
    own: Vec<SocketAddr>,
    /// Std mutexes: held for one look, never across an await.
    system: Mutex<System>,
    health: Mutex<Health>,
    memory: Mutex<Memory>,
    flights: Flights<Box<[u8]>, Option<Reply>>,
    seats: Semaphore,
    beside: Semaphore,
    /// Names that only we ask for, and of whom.
    probes: Mutex<HashMap<Box<[u8]>, SocketAddr>>,
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
}

impl Forwarder {
    fn new(upstreams: Upstreams, own: Vec<SocketAddr>) -> Self {
        Self {
            upstreams,
            own,
            system: Mutex::default(),
            health: Mutex::default(),
            memory: Mutex::default(),
            // Whoever asks has an end of its own before that.
            flights: Flights::new(2 * LIMIT),
            seats: Semaphore::new(MOST_SEATS),
            beside: Semaphore::new(MOST_BESIDE),
            probes: Mutex::default(),
        }
    }

    /// The one for these upstreams, if there are any: the one before, with what it knows,
    /// where they are the same.
    pub(super) fn after(
        before: Option<&Arc<Self>>,
        upstreams: Upstreams,
        own: &[SocketAddr],
    ) -> Option<Arc<Self>> {
        if upstreams.is_none() {
            return None;
        }
        let Some(before) = before.filter(|before| before.upstreams == upstreams) else {
            return Some(Arc::new(Self::new(upstreams, own.to_vec())));
        };
        before.health().forgive();
        Some(Arc::clone(before))
    }

    /// The answer to a packet about the name with these labels, by that time. `plain`: the
    /// packet, if it is an ordinary question.
    pub(super) async fn answer(
        self: &Arc<Self>,
        packet: &[u8],
        labels: &[&[u8]],
        plain: Option<&Plain>,
        transport: Transport,
        deadline: Instant,
    ) -> Forwarded {
        let asking = self.ask_or_remember(packet, labels, plain, transport, deadline);
        let forwarded = asking.await;
        if let Forwarded::Reply(reply) = &forwarded
            && !(self.upstreams).trusts(labels, || addresses(reply))
        {
            debug!("an answer that leads into this network is not handed on");
            return Forwarded::Filtered;
        }
        forwarded
    }

    async fn ask_or_remember(
        self: &Arc<Self>,
        packet: &[u8],
        labels: &[&[u8]],
        plain: Option<&Plain>,
        transport: Transport,
        deadline: Instant,
    ) -> Forwarded {
        if self.is_probe(labels) {
            return Forwarded::Nobody;
        }
        let key = plain.map(|plain| plain.key.as_bytes());
        let kept = |stale| self.memory().answer(packet, plain?, stale, clock::now());
        if let Some(reply) = kept(false) {
            return Forwarded::Reply(reply);
        }
        let servers = self.servers(labels);
        if servers.is_empty() {
            return kept(true).map_or(Forwarded::Nobody, Forwarded::Reply);
        }
        let now = clock::now();
        if now >= deadline {
            return kept(true).map_or(Forwarded::Failed, Forwarded::Reply);
        }
        if let Some(key) = key
            && (self.failure(key, LONGEST_REST).is_some() || self.health().are_down(&servers, now))
            && let Some(reply) = kept(true)
        {
            self.ask_beside(packet, key, servers, transport);
            return Forwarded::Reply(reply);
        }
        let deadline = deadline.min(now + LIMIT);
        let end = deadline.max(now + LEAST);
        let asking = self.ask(packet, key, servers, transport, end);
        let patience = if key.is_some_and(|key| self.memory().knows(key)) {
            PATIENCE
        } else {
            LIMIT
        };
        let until = deadline.min(now + patience);
        let told = timeout_at(until.into(), asking).await;
        if let (Err(_), Some(key)) = (&told, key)
            && is_fair(now, until, clock::now())
        {
            self.fails(key);
        }
        let told = told.ok().flatten();
        // Whoever says that it cannot tell knows less than what was known.
        if told.as_deref().is_none_or(|told| cannot_tell(told))
            && let Some(reply) = kept(true)
        {
            return Forwarded::Reply(reply);
        }
        match told {
            // It was asked for another client, who can take more, or is longer than was asked for.
            Some(told) if transport == Transport::Udp && told.len() > room(packet) => {
                Forwarded::Reply(own_head(&truncated(&told), packet))
            }
            Some(told) => Forwarded::Reply(own_head(&told, packet)),
            None => Forwarded::Failed,
        }
    }

    /// Asks one upstream after the other; whoever asks the same meanwhile, or while it has
    /// just failed, is given the same.
    async fn ask(
        self: &Arc<Self>,
        packet: &[u8],
        key: Option<&[u8]>,
        servers: Vec<SocketAddr>,
        transport: Transport,
        deadline: Instant,
    ) -> Option<Reply> {
        let question = (packet.to_vec(), key.map(Into::into));
        let asking = || Arc::clone(self).asked(question, servers, transport, deadline);
        let Some(key) = key else {
            return asking().await;
        };
        let (flights, key) = (&self.flights, key.into());
        let _seat = match flights.is_airborne(&key) {
            true => Some(self.seat_beside()?),
            false => None,
        };
        let failed = || self.failure(&key, REST);
        flights.join(&key, Runs::Here, failed, asking).await.ok()?
    }

    /// The same, where nobody waits for it: seldom, and with no more than half the seats.
    fn ask_beside(
        self: &Arc<Self>,
        packet: &[u8],
        key: &[u8],
        servers: Vec<SocketAddr>,
        transport: Transport,
    ) {
        if self.failure(key, REST).is_some() || !self.has_room() {
            return;
        }
        // So it is until more is heard.
        self.fails(key);
        let question = (packet.to_vec(), Some(key.into()));
        let deadline = clock::now() + LIMIT;
        // Bounded by that, and by its seat.
        tokio::spawn(Arc::clone(self).asked(question, servers, transport, deadline));
    }

    /// For who waits for another's question: with room, one of those for questions too.
    fn seat_beside(&self) -> Option<SemaphorePermit<'_>> {
        let beside = self.beside.try_acquire();
        let seat = beside.or_else(|full| match self.has_room() {
            true => self.seats.try_acquire(),
            false => Err(full),
        });
        seat.ok()
    }

    /// Half the seats are left to questions that somebody waits for.
    fn has_room(&self) -> bool {
        self.seats.available_permits() > MOST_SEATS / 2
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
        let (mut servers, mut asked) = (servers.iter().copied(), FuturesUnordered::new());
        // Whose turn it is, from when and until when.
        let mut turn = None;
        let (mut last, mut is_heard) = (None, false);
        loop {
            let now = clock::now();
            let left = deadline.saturating_duration_since(now);
            if turn.is_none()
                && !left.is_zero()
                && let Some(server) = servers.next()
            {
                self.probe(server);
                asked.push(exchange::ask(server, packet, transport));
                let share = self.health().share(server, servers.len() + 1, left);
                turn = Some((server, now, now + share));
            }
            let until = turn.map_or(deadline, |(_, _, until)| until);
            match timeout_at(until.into(), asked.next()).await {
                Ok(Some((server, Ok(reply)))) => {
                    is_heard = true;
                    self.health().heard(server, Some(&reply), clock::now());
                    turn = turn.filter(|(whose, ..)| *whose != server);
                    let reply = Arc::new(reply);
                    if !cannot_tell(&reply) {
                        return Ok(Some(reply));
                    }
                    last = Some(reply);
                }
                Ok(Some((server, Err(error)))) => {
                    debug!(%server, %error, "upstream failed");
                    is_heard = true;
                    // Of whoever was silent before it is known.
                    if turn.take_if(|(whose, ..)| *whose == server).is_some() {
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
    fn servers(&self, labels: &[&[u8]]) -> Vec<SocketAddr> {
        let now = clock::now();
        let system = match self.upstreams.wants_system() {
            true => lock(&self.system).servers(&self.own, now),
            false => Vec::new(),
        };
        let mut servers = self.upstreams.of(labels, &system);
        servers.retain(|server| !upstreams::is_ours(*server, &self.own));
        self.health().order(&mut servers, now);
        servers
    }

    /// Asks an upstream once, beside its first question, for a name that only we know:
    /// if that comes back here, it would send every question in a circle.
    fn probe(self: &Arc<Self>, server: SocketAddr) {
        if !self.health().is_to_be_probed(server) {
            return;
        }
        let label = format!("{:016x}{:016x}", clock::nonce(), clock::nonce());
        lock(&self.probes).insert(label.as_bytes().into(), server);
        let mut packet = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in [label.as_bytes(), b"test"] {
            packet.push(u8::try_from(label.len()).unwrap_or_default());
            packet.extend_from_slice(label);
        }
        // TXT, IN.
        packet.extend_from_slice(&[0, 0, 16, 0, 1]);
        // Bounded by its own limit.
        tokio::spawn(async move {
            _ = timeout(LIMIT, exchange::over_udp(server, &packet)).await;
        });
    }

    /// Whether a name is one of ours that went round. Whoever sent it on is asked no
    /// more.
    fn is_probe(&self, labels: &[&[u8]]) -> bool {
        let &[label, _] = labels else {
            return false;
        };
        let Some(server) = lock(&self.probes).remove(&label.to_ascii_lowercase()[..]) else {
            return false;
        };
        warn!(%server, "this upstream sends questions back to us: it is asked no more");
        self.health().loops(server);
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
