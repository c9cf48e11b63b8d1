//! **Shell.** Names that are not Consul's: each packet goes on as it came, with an id
//! and a port of its own, and what comes back goes back, so that types and options that
//! nobody here knows stay whole. Who is asked is [`upstreams`]' to say.
//!
//! | upstream | the client gets |
//! | --- | --- |
//! | answers | that, kept for its TTL |
//! | is silent for [`TRY`], refuses, says SERVFAIL, NOTIMP or REFUSED | the next one's answer; whoever failed is asked last for a while |
//! | all of them, for a name that was answered before | that answer, as stale (RFC 8767): after [`PATIENCE`] at most, and at once where that has failed, or [`DOWN`] questions in a row, or nobody can be asked; then it is asked for beside that |
//! | all of them, otherwise; more than [`MOST_SEATS`] questions are in the air | SERVFAIL and an extended error; what failed is so for [`REST`] (RFC 9520) |
//! | is drowned by replies under wrong ids | what it says over TCP, where guesses are useless |
//! | sends the question back to us | it is found out by a question of ours, and asked no more |

mod exchange;
mod memory;
mod message;
mod system;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{timeout, timeout_at},
};
use tracing::{debug, warn};

#[cfg(any(fuzzing, test))]
pub(crate) use self::message::answers;
use self::{
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

/// One upstream is waited for so long before the next one is asked.
const TRY: Duration = Duration::from_millis(400);

/// Who has a stale answer waits so long for a newer one.
const PATIENCE: Duration = Duration::from_millis(700);

/// All of them together, at most.
const LIMIT: Duration = Duration::from_millis(820);

/// Whoever failed is asked last for so long, doubled with each failure. A question that
/// failed is not asked again before the shortest of it is over (RFC 9520, section 3.2), and
/// not waited for by who has a stale answer before the longest is.
const REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(30);

/// Nor is who was silent to so many questions in a row, as long as it is asked last.
const DOWN: u32 = 3;

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
    health: Mutex<HashMap<SocketAddr, Health>>,
    memory: Mutex<Memory>,
    flights: Flights<Box<[u8]>, Option<Reply>>,
    seats: Semaphore,
    beside: Semaphore,
    /// Names that only we ask for, and of whom.
    probes: Mutex<HashMap<Box<[u8]>, SocketAddr>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Health {
    /// In a row, and those without any reply.
    failures: u32,
    silent: u32,
    /// It is asked last until then.
    until: Option<Instant>,
    /// It sends questions back to us.
    loops: bool,
    /// It was asked whether it does.
    probed: bool,
}

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
        // Whoever sent questions back has another chance: that may have been mended.
        lock(&before.health).retain(|_, health| !health.loops);
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
        if let Some(key) = key
            && (self.failure(key, LONGEST_REST).is_some() || self.are_down(&servers))
            && let Some(reply) = kept(true)
        {
            self.ask_beside(packet, key, servers, transport);
            return Forwarded::Reply(reply);
        }
        let now = clock::now();
        let deadline = deadline.min(now + LIMIT);
        let asking = self.ask(packet, key, servers, transport, deadline);
        let patience = if key.is_some_and(|key| self.memory().knows(key)) {
            PATIENCE
        } else {
            LIMIT
        };
        let until = deadline.min(now + patience);
        let told = timeout_at(until.into(), asking).await;
        if let (Err(_), Some(key)) = (&told, key) {
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
        if let Some(key) = key {
            self.memory().hear(key, told.as_ref(), clock::now());
        }
        told
    }

    async fn climb(
        self: &Arc<Self>,
        packet: &[u8],
        servers: &[SocketAddr],
        transport: Transport,
        deadline: Instant,
    ) -> Option<Reply> {
        let mut last = None;
        for (at, &server) in servers.iter().enumerate() {
            let left = deadline.saturating_duration_since(clock::now());
            if left.is_zero() {
                break;
            }
            let limit = if at + 1 < servers.len() {
                TRY.min(left)
            } else {
                left
            };
            self.probe(server);
            let asked = async { exchange::ask(server, packet, transport).await.1 };
            let until = clock::now() + limit;
            match timeout_at(until.into(), asked).await {
                Ok(Ok(reply)) => {
                    let reply = Arc::new(reply);
                    self.heard(server, Some(&reply));
                    if !cannot_tell(&reply) {
                        return Some(reply);
                    }
                    last = Some(reply);
                }
                Ok(Err(error)) => {
                    debug!(%server, %error, "upstream failed");
                    self.heard(server, None);
                }
                Err(_) => {
                    debug!(%server, "upstream was silent");
                    self.heard(server, None);
                }
            }
        }
        last
    }

    /// The upstreams for a name: those that are well first, those that loop not at all.
    fn servers(&self, labels: &[&[u8]]) -> Vec<SocketAddr> {
        let system = match self.upstreams.wants_system() {
            true => lock(&self.system).servers(&self.own, clock::now()),
            false => Vec::new(),
        };
        let mut servers = self.upstreams.of(labels, &system);
        servers.retain(|server| !upstreams::is_ours(*server, &self.own));
        let (health, now) = (lock(&self.health), clock::now());
        servers.retain(|server| !health.get(server).is_some_and(|health| health.loops));
        // Stable: otherwise in the order in which they were named.
        servers.sort_by_key(|server| {
            let until = health.get(server).and_then(|health| health.until);
            until.is_some_and(|until| now < until)
        });
        servers
    }

    /// Whether nobody there says anything any more.
    fn are_down(&self, servers: &[SocketAddr]) -> bool {
        let (health, now) = (lock(&self.health), clock::now());
        servers.iter().all(|server| {
            let health = health.get(server).copied().unwrap_or_default();
            health.silent >= DOWN && health.until.is_some_and(|until| now < until)
        })
    }

    fn heard(&self, server: SocketAddr, reply: Option<&[u8]>) {
        let mut health = lock(&self.health);
        let health = health.entry(server).or_default();
        health.silent = match reply {
            Some(_) => 0,
            None => health.silent.saturating_add(1),
        };
        if reply.is_some_and(|reply| !cannot_tell(reply)) {
            health.failures = 0;
            health.until = None;
            return;
        }
        let rest = REST.saturating_mul(1 << health.failures.min(5));
        health.failures = health.failures.saturating_add(1);
        health.until = Some(clock::now() + rest.min(LONGEST_REST));
    }

    /// Asks an upstream once, beside its first question, for a name that only we know:
    /// if that comes back here, it would send every question in a circle.
    fn probe(self: &Arc<Self>, server: SocketAddr) {
        {
            let mut health = lock(&self.health);
            let health = health.entry(server).or_default();
            if health.probed {
                return;
            }
            health.probed = true;
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
        lock(&self.health).entry(server).or_default().loops = true;
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

    fn memory(&self) -> MutexGuard<'_, Memory> {
        lock(&self.memory)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
