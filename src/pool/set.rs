//! **Pure.** A set that is picked from: immutable, with everything worked out before.
//! Whoever rests is not in it, so that a pick asks nobody.
//!
//! What threads write when they pick, others do not read. A call in the air holds its
//! thread's own view of the set; where a strategy asks for loads, it holds the seat that
//! its endpoint has for the thread instead, and the number of holders is the load.

use std::{
    net::SocketAddr,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use super::{
    Pool,
    near::Handle,
    place::{Failing, Place},
};
use crate::{
    balance::{Draw, Plan, Strategy},
    endpoint::Endpoint,
};

/// An endpoint and what is known of it.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) endpoint: Endpoint,
    pub(crate) place: Arc<Place>,
    pub(crate) pool: Weak<Pool>,
    /// When the pool was made.
    pub(crate) made: Instant,
}

impl Member {
    pub(crate) fn nanoseconds(&self, now: Instant) -> u64 {
        nanoseconds(self.made, now)
    }
}

/// Nanoseconds since a pool was made, never 0: what latencies are reckoned by.
pub(crate) fn nanoseconds(made: Instant, now: Instant) -> u64 {
    let since = now.saturating_duration_since(made).as_nanos();
    u64::try_from(since).unwrap_or(u64::MAX).max(1)
}

/// A set as one thread picks from it: on a line of the processor's cache of its own.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct View {
    core: Arc<Core>,
    /// In the order of the plan; empty where loads do not count.
    seats: Box<[Arc<Chair>]>,
}

/// What all threads read.
#[derive(Debug)]
struct Core {
    /// The number of their pool.
    pool: usize,
    plan: Plan,
    /// Beside each other: a call wants no more.
    addresses: Box<[SocketAddr]>,
    members: Box<[Arc<Member>]>,
    failing: Failing,
    /// Some are looked at before they are given.
    watched: bool,
    slow_start: Duration,
}

/// An endpoint as one thread uses it: on a line of its own as well.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Seat {
    address: SocketAddr,
    member: Arc<Member>,
}

/// Where a seat stands while no call holds it: all other holders are calls.
#[derive(Debug)]
struct Chair(Arc<Seat>);

impl Chair {
    fn load(&self) -> usize {
        Arc::strong_count(&self.0).saturating_sub(1)
    }
}

/// What a call in the air holds.
#[derive(Debug)]
pub(super) enum Hold {
    Set(Handle, u32),
    Seat(Arc<Seat>),
}

impl Hold {
    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Self::Set(view, at) => view.core.addresses[*at as usize],
            Self::Seat(seat) => seat.address,
        }
    }

    pub(crate) fn member(&self) -> &Member {
        match self {
            Self::Set(view, at) => &view.core.members[*at as usize],
            Self::Seat(seat) => &seat.member,
        }
    }

    /// Whether nobody has failed lately, so that a success is no news.
    pub(crate) fn is_all_well(&self) -> bool {
        match self {
            Self::Set(view, _) => view.core.failing.is_none(),
            Self::Seat(seat) => seat.member.place.failures() == 0,
        }
    }
}

/// An endpoint, and its seats where loads count: one for each of some threads.
#[derive(Clone, Debug)]
pub(crate) struct Seats {
    pub(crate) member: Arc<Member>,
    seats: Box<[Arc<Chair>]>,
}

impl Seats {
    pub(crate) fn new(member: Member, strategy: Strategy, threads: usize) -> Self {
        let member = Arc::new(member);
        let counts = matches!(strategy, Strategy::LeastLoaded | Strategy::Latency);
        let seat = |_| {
            let seat = Arc::new(Seat {
                address: member.endpoint.socket_addr(),
                member: Arc::clone(&member),
            });
            Arc::new(Chair(seat))
        };
        Self {
            seats: (0..if counts { threads } else { 0 }).map(seat).collect(),
            member,
        }
    }

    /// Calls in the air, where they count.
    pub(crate) fn load(&self) -> Option<usize> {
        let calls = self.seats.iter().map(|chair| chair.load());
        (!self.seats.is_empty()).then(|| calls.sum())
    }
}

/// A set for all threads: a view for each of some.
#[derive(Debug)]
pub(crate) struct Set(Box<[Arc<View>]>);

/// What a pick takes from outside.
pub(crate) trait Caller {
    /// 64 random bits.
    fn bits(&mut self) -> u64;
    /// How often this thread asked before.
    fn turn(&mut self) -> usize;
    fn now(&mut self) -> Instant;
    /// The same exactly, since a moment of the pool's own.
    fn nanoseconds(&mut self) -> u64;
}

/// Draws that may meet somebody who is not to be given now, before all are looked at.
const TRIES: u32 = 8;

impl Set {
    /// Of members in the order of [`usable`](crate::balance::usable), for so many threads:
    /// a power of two.
    pub(crate) fn new(
        pool: usize,
        all: &[&Seats],
        strategy: Strategy,
        slow_start: Duration,
        threads: usize,
        failing: &Failing,
        now: Instant,
    ) -> Self {
        let endpoints: Vec<_> = all.iter().map(|one| one.member.endpoint.clone()).collect();
        let watched = |one: &&Seats| one.member.place.is_watched(now, slow_start);
        let core = Arc::new(Core {
            pool,
            plan: Plan::new(&endpoints, strategy),
            addresses: endpoints.iter().map(Endpoint::socket_addr).collect(),
            members: all.iter().map(|one| Arc::clone(&one.member)).collect(),
            failing: failing.clone(),
            watched: all.iter().any(watched),
            slow_start,
        });
        let view = |thread: usize| {
            let seats = all.iter().filter_map(|one| one.seats.get(thread).cloned());
            Arc::new(View {
                core: Arc::clone(&core),
                seats: seats.collect(),
            })
        };
        Self((0..threads).map(view).collect())
    }

    /// How many there are to pick from.
    pub(crate) fn len(&self) -> usize {
        self.0.first().map_or(0, |view| view.core.members.len())
    }

    /// The view of a thread, by its number.
    pub(crate) fn view(&self, thread: usize) -> Option<&Arc<View>> {
        self.0.get(thread & self.0.len().wrapping_sub(1))
    }
}

impl View {
    pub(super) fn pool(&self) -> usize {
        self.core.pool
    }

    /// The seat for a call, where loads count.
    pub(super) fn seat(&self, at: u32) -> Option<Arc<Seat>> {
        let chair = self.seats.get(at as usize)?;
        Some(Arc::clone(&chair.0))
    }

    /// The place of the next one in the set, and whether the call tries an endpoint that
    /// rested.
    pub(super) fn pick(&self, key: Option<u64>, caller: &mut impl Caller) -> Option<(u32, bool)> {
        let mut own = Own {
            seats: &self.seats,
            caller,
            now: None,
        };
        let at = self.core.plan.draw(key, &mut own)?;
        if self.core.watched {
            return self.pick_watched(at, key, &mut own);
        }
        Some((at, false))
    }

    /// The first who may be given from that draw on, and whether that is a trial.
    #[cold]
    fn pick_watched<C: Caller>(
        &self,
        first: u32,
        key: Option<u64>,
        own: &mut Own<'_, C>,
    ) -> Option<(u32, bool)> {
        let (now, core) = (own.caller.now(), &self.core);
        let count = u32::try_from(core.members.len()).ok()?;
        let mut at = first;
        for again in 0..TRIES.saturating_add(count) {
            let lot = (own.caller.bits() >> 11) as f64 / (1_u64 << 53) as f64;
            let place = &core.members.get(at as usize)?.place;
            if let Some(trial) = place.admits(now, core.slow_start, lot) {
                return Some((at, trial));
            }
            at = match again < TRIES && key.is_none() {
                true => core.plan.draw(None, own)?,
                false => (at + 1) % count,
            };
        }
        // All begin at once, or are being tried: somebody has to.
        let calm = |at: &u32| {
            let member = core.members.get(*at as usize);
            member.is_some_and(|member| member.place.rests().is_none())
        };
        Some(((0..count).find(calm).unwrap_or(first), false))
    }
}

/// A thread's view of its seats.
struct Own<'a, C> {
    seats: &'a [Arc<Chair>],
    caller: &'a mut C,
    /// In nanoseconds, read once.
    now: Option<u64>,
}

impl<C: Caller> Draw for Own<'_, C> {
    fn bits(&mut self) -> u64 {
        self.caller.bits()
    }

    fn turn(&mut self) -> usize {
        self.caller.turn()
    }

    fn load(&mut self, at: u32) -> u32 {
        let load = self.seats.get(at as usize).map_or(0, |chair| chair.load());
        u32::try_from(load).unwrap_or(u32::MAX)
    }

    fn cost(&mut self, at: u32) -> f64 {
        let load = self.load(at);
        let now = *self.now.get_or_insert_with(|| self.caller.nanoseconds());
        let seat = self.seats.get(at as usize);
        seat.map_or(0.0, |seat| seat.0.member.place.cost(load, now))
    }
}
